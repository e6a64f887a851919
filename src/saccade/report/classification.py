"""Sections on a classifier: confusion and calibration, the worst mistakes explained, methods side by side."""

from __future__ import annotations

from saccade import render
from saccade.data.dataset import Dataset, Labelled
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.methods import suited
from saccade.report.config import ReportConfig
from saccade.report.page import Card, Section, figure, overlay, panel, picture, verdict_of
from saccade.tasks.base import percent
from saccade.tasks.classification import ClassificationEvaluation, Mistake


def figures(evaluation: ClassificationEvaluation) -> Section:
    """Confusion and calibration beside each other, classes below."""
    confusion = render.confusion_matrix(evaluation.confusion, evaluation.classes)
    bins = evaluation.reliability
    reliability = render.reliability_diagram(
        [row.confidence for row in bins],
        [row.accuracy for row in bins],
        [row.count for row in bins],
        error=evaluation.metrics["ece"],
    )
    pictures = [figure(confusion, "Confusion matrix"), figure(reliability, "Reliability diagram")]
    return Section(
        "Where it is right and wrong",
        "Rows of the matrix are true classes. A calibrated model lies on the diagonal of the second picture.",
        plots=pictures,
        table=evaluation.table(),
    )


def mistakes(
    subject: Subject, dataset: Dataset, evaluation: ClassificationEvaluation, config: ReportConfig
) -> Section | None:
    """The wrong predictions that the model was surest of, each with why it said so and what spoke for the truth."""
    worst = evaluation.mistakes[: config.mistakes]
    if not worst:
        return None
    cards = []
    for mistake in worst:
        image = dataset[mistake.index].image
        heat, truth = explain_batch(subject, [image], [mistake.predicted, mistake.true], ExplainOptions())[0]
        pictures = [
            picture(image, "the picture", "picture"),
            overlay(heat, f"why {mistake.predicted}"),
            overlay(truth, f"why {mistake.true}"),
        ]
        cards.append(Card(pictures, _words(mistake), mistake.source, verdict_of(heat)))
    note = (
        "The mistakes whose true class got the least probability. The second picture shows what spoke for the answer, "
        "the third what spoke for the truth. The verdict says how far the second can be trusted."
    )
    return Section("Worst mistakes, explained", note, cards=cards)


def methods(
    subject: Subject, dataset: Dataset, evaluation: ClassificationEvaluation, config: ReportConfig
) -> Section | None:
    """Several methods on the same pictures, each with its verdict."""
    reasons = suited(subject.spec)
    names = [name for name in config.methods if reasons.get(name, "unknown") is None]
    wrong = {mistake.index for mistake in evaluation.mistakes}
    labels = dataset.labels().tolist() if isinstance(dataset, Labelled) else []
    chosen: dict[int, int] = {}
    for index, label in enumerate(labels):
        if len(chosen) < config.compared and label not in chosen and index not in wrong:
            chosen[label] = index
    if not names or not chosen:
        return None
    rows = []
    for index in chosen.values():
        sample = dataset[index]
        row = [render.Panel(image=sample.image, title=dataset.classes[labels[index]], caption="picture")]
        for name in names:
            heat = explain_batch(subject, [sample.image], [None], ExplainOptions(method=name))[0][0]
            row.append(panel(heat, title=name))
        rows.append(row)
    page = figure(render.side_by_side(rows), "Methods side by side")
    note = (
        "The same pictures explained by several methods. Methods that disagree are a warning in themselves; a map that "
        "failed its checks is crossed out rather than shown as if it were fine."
    )
    return Section("Methods side by side", note, plots=[page])


def _words(mistake: Mistake) -> list[str]:
    said = f"said {mistake.predicted} ({percent(mistake.score)})"
    return [f"{said}, is {mistake.true} ({percent(mistake.true_score)})"]
