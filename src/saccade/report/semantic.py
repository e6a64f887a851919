"""Sections on a segmenter: figures per class, label maps that went worst and best, their largest mistakes explained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade import render
from saccade.data.dataset import Dataset
from saccade.engine.evaluate import join_classes
from saccade.engine.predict import PredictConfig, Predictor
from saccade.errors import ExplainError, SaccadeError
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.methods import suited
from saccade.ops.masks import connected_components
from saccade.report.config import ReportConfig
from saccade.report.page import Card, Section, figure, overlay, panel, picture, verdict_of
from saccade.tasks.base import percent
from saccade.tasks.semantic import SemanticEvaluation, Shown, relabelled
from saccade.types import IGNORE, Classes, MapTarget, Segmentation

MOST_PIXELS = 1 << 19
"""Larger pictures are left out where many explanations of one picture are drawn: each takes its time."""


class _Case:
    """One picture of the gallery with truth and prediction, in the labels of the model."""

    def __init__(self, subject: Subject, dataset: Dataset, shown: Shown) -> None:
        sample = dataset[shown.index]
        assert isinstance(sample.target, MapTarget)
        relabel = join_classes(subject.classes, dataset.classes)
        predictor = Predictor(subject.model, PredictConfig(speed="exact"))  # type: ignore[arg-type]
        found = predictor([sample.image])[0]
        assert isinstance(found, Segmentation)
        self.shown, self.image = shown, sample.image
        self.truth, self.predicted = relabelled(sample.target.labels, relabel), found.labels

    def largest_mistake(self) -> tuple[Tensor, int] | None:
        """The largest connected region ``[h, w]`` of wrong pixels of one kind, and its true class."""
        wrong = (self.predicted != self.truth) & (self.truth != IGNORE)
        pairs = self.predicted.long() * 256 + self.truth.long()
        parts = connected_components(torch.where(wrong, pairs, -1), frozenset({-1}), most=1)
        if not parts:
            return None
        return parts[0].mask((int(wrong.shape[0]), int(wrong.shape[1]))), parts[0].label % 256


def sections(
    subject: Subject, dataset: Dataset, evaluation: SemanticEvaluation, config: ReportConfig
) -> list[Section | None]:
    """All there is to say of a segmenter; every picture is predicted once."""
    worst, median, best = (
        [_Case(subject, dataset, shown) for shown in part]
        for part in (evaluation.worst, evaluation.median, evaluation.best)
    )
    return [
        _figures(evaluation),
        _gallery("Worst label maps", worst, subject.classes),
        _gallery("From the middle", median, subject.classes),
        _gallery("Best label maps", best, subject.classes),
        _mistakes(subject, worst[: config.regions]),
        _methods(subject, [case.image for case in (*best, *median)], config),
    ]


def _figures(evaluation: SemanticEvaluation) -> Section:
    """Confusion of the pixels and figures per class."""
    confusion = render.confusion_matrix(evaluation.confusion, evaluation.classes, in_percent=True)
    tolerance = f"{evaluation.settings['boundary_tolerance']:.2%}"
    shown = {row.name: (row.iou, row.boundary_f) for row in evaluation.per_class if row.images}
    scores = render.bars(shown, ("IoU", "boundary F"), title="Classes")
    return Section(
        "Where it is right and wrong",
        "Rows of the matrix are true classes, in percent of their pixels. Boundary F is the F-score of the boundary "
        f"pixels that lie within {tolerance} of the picture's diagonal of a true one.",
        plots=[figure(confusion, "Confusion of the pixels"), figure(scores, "IoU and boundary F of each class")],
        table=evaluation.table(),
    )


def _gallery(title: str, cases: Sequence[_Case], classes: Classes) -> Section | None:
    """Each picture with its truth, its prediction and where they differ."""
    if not cases:
        return None
    hidden = classes.backgrounds
    cards = []
    for case in cases:
        pictures = [
            picture(case.image, "the picture", "picture"),
            picture(render.label_overlay(case.image, case.truth, len(classes), hidden), "truth", "truth"),
            picture(render.label_overlay(case.image, case.predicted, len(classes), hidden), "predicted", "predicted"),
            picture(render.error_map(case.image, case.predicted, case.truth), "mistakes", "mistakes"),
        ]
        cards.append(Card(pictures, [f"mean IoU {percent(case.shown.miou)}"], case.shown.source))
    legend = [(name, render.categorical(label)) for label, name in enumerate(classes) if label not in hidden]
    return Section(title, legend=legend, cards=cards, is_wide=True)


def _mistakes(subject: Subject, worst: Sequence[_Case]) -> Section | None:
    """The largest mistake of each of the worst pictures, and why the model made it."""
    cards = []
    for case in worst:
        found = case.largest_mistake()
        if found is None:
            continue
        region, true = found
        options = ExplainOptions(against=true)
        try:
            heat = explain_batch(subject, [case.image], [region], options)[0][0]
        except SaccadeError as error:
            cards.append(Card([picture(case.image, "the picture", "picture")], [str(error)], case.shown.source))
            continue
        pictures = [picture(heat.outlined, "the mistake", "the mistake"), overlay(heat, f"why {heat.of}")]
        share = float(region.float().mean())
        lines = [f"{percent(share)} of the picture: said {heat.of}"]
        cards.append(Card(pictures, lines, case.shown.source, verdict_of(heat)))
    if not cards:
        return None
    note = (
        "The largest connected region of wrong pixels in each of the worst pictures, outlined. The heat map shows what "
        "spoke for the answer rather than for the truth; the verdict says how far it can be trusted."
    )
    return Section("Largest mistakes, explained", note, cards=cards)


def _methods(subject: Subject, images: Sequence[Tensor], config: ReportConfig) -> Section | None:
    """Several methods on the class that covers most of some pictures, each with its verdict."""
    try:
        reasons = suited(subject.spec)
    except ExplainError:  # a model that slides has no maps; the mistakes say so
        return None
    names = [name for name in config.methods if reasons.get(name, "unknown") is None]
    rows: list[list[render.Panel]] = []
    small = [image for image in images if image[0].numel() <= MOST_PIXELS]
    for image in small[: min(config.compared, 2)] if names else []:
        maps = [explain_batch(subject, [image], [None], ExplainOptions(method=name))[0][0] for name in names]
        first = render.Panel(image=image, title="picture", caption=maps[0].of)
        rows.append([first, *(panel(heat, title=heat.name) for heat in maps)])
    if not rows:
        return None
    note = (
        "The class that covers most, explained by several methods. Methods that disagree are a warning in themselves; "
        "a map that failed its checks is crossed out rather than shown as if it were fine."
    )
    return Section("Methods side by side", note, plots=[figure(render.side_by_side(rows), "Methods side by side")])
