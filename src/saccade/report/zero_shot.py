"""Sections on a model of pictures and texts: recall both ways, categories by name, texts that found others first."""

from __future__ import annotations

from saccade import render
from saccade.data.dataset import Dataset
from saccade.report.config import ReportConfig
from saccade.report.page import Card, Section, figure, picture
from saccade.tasks.zero_shot import PLACES, Miss, ZeroShotEvaluation

_MOST_NAMES = 60
"""Categories of a confusion matrix that can still be read."""


def sections(dataset: Dataset, evaluation: ZeroShotEvaluation, config: ReportConfig) -> list[Section | None]:
    """Everything there is to say."""
    return [_recall(evaluation), _categories(evaluation), _misses(dataset, evaluation, config)]


def _recall(evaluation: ZeroShotEvaluation) -> Section:
    places = [float(place) for place in PLACES]
    lines = {}
    for way in evaluation.directions:
        lines[way.name] = (places, list(way.recall))
        lines[f"{way.name}, chance control"] = (places, list(way.chance))
    drawn = render.curves(lines, title="Found among the first", across="answers looked at", up="share of queries")
    note = (
        "Every text looks for its picture among all pictures, every picture for any of its texts. Chance is what a "
        "model reaches that sees nothing."
    )
    return Section("What finds what", note, plots=[figure(drawn, "Recall")], table=evaluation.table())


def _categories(evaluation: ZeroShotEvaluation) -> Section | None:
    if not evaluation.per_category:
        return None
    there = [row for row in evaluation.per_category if row.images]
    plots = []
    if len(evaluation.classes) <= _MOST_NAMES:
        confusion = render.confusion_matrix(evaluation.confusion, evaluation.classes)
        plots = [figure(confusion, "Confusion matrix of the categories")]
    note = " ".join(evaluation.conditions()) + ". The names were never trained as classes: they are read as texts."
    title = f"{len(there)} categories, told by their names alone"
    return Section(title, note, plots=plots, table=evaluation.category_table())


def _misses(dataset: Dataset, evaluation: ZeroShotEvaluation, config: ReportConfig) -> Section | None:
    worst = evaluation.mistakes[: config.mistakes]
    if not worst:
        return None
    cards = []
    for miss in worst:
        pictures = [
            picture(dataset[miss.index].image, "the picture of the text", "its picture"),
            picture(dataset[miss.found].image, "the picture found first", "found first"),
        ]
        cards.append(Card(pictures, _words(miss), miss.source))
    return Section("Texts whose picture stands last", "Beside it stands the picture that was found first.", cards=cards)


def _words(miss: Miss) -> list[str]:
    return [miss.text, f"at place {miss.place:g}", f"first: {miss.found_text}"]
