"""Sections on a detector: figures per class, what mistakes cost, the worst and best pictures, mistakes explained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saccade import render
from saccade.data.dataset import Dataset
from saccade.engine.evaluate import join_classes
from saccade.engine.predict import PredictConfig, Predictor
from saccade.errors import SaccadeError
from saccade.explanation.boxes import Watched
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.methods import METHODS, default_method, suited
from saccade.explanation.missed import why_missed
from saccade.metrics.detection import HALF, DetectionMeter
from saccade.metrics.detection_matches import FREE, match
from saccade.metrics.overlap import Kind
from saccade.models.detector import Detector
from saccade.report.config import ReportConfig
from saccade.report.page import Card, Picture, Section, figure, overlay, panel, picture, verdict_of
from saccade.tasks.base import Table, percent
from saccade.tasks.detection import DetectionEvaluation, ShownObjects
from saccade.types import BoxTarget, Classes, Detections

MOST_PIXELS = 1 << 18
"""On larger canvases the methods that take hundreds of forward passes are left out."""
MOST_TOLD = 3
"""Missed objects told of one picture."""


class _Case:
    """One picture of the gallery with truth and prediction, in the labels of the model."""

    def __init__(
        self, subject: Subject, dataset: Dataset, evaluation: DetectionEvaluation, shown: ShownObjects
    ) -> None:
        assert isinstance(subject.model, Watched)
        self.detector: Detector[object] = subject.model.detector
        sample = dataset[shown.index]
        assert isinstance(sample.target, BoxTarget)
        relabel = join_classes(subject.classes, dataset.classes)
        found = Predictor(self.detector, PredictConfig(speed="exact"))([sample.image])[0]
        assert isinstance(found, Detections)
        kind: Kind = "masks" if evaluation.task == "instance" else "boxes"
        masks = sample.target.masks if kind == "masks" else None
        self.shown, self.image = shown, sample.image
        self.truth = BoxTarget(sample.target.boxes, relabel[sample.target.labels], sample.target.crowd, masks)
        self.least: float = evaluation.settings["score_threshold"]
        self.found = found.above(self.least)
        self.excuse = "its mask fits too little or " if kind == "masks" else ""
        self.excuse += "it counts for another object"
        most = evaluation.settings["max_detections"]
        self.outcomes = outcomes(self.found, self.truth, len(subject.classes), kind, most)

    def false_alarms(self) -> list[int]:
        """Places of the detections that are no object, likeliest first."""
        return [place for place, outcome in enumerate(self.outcomes.found) if outcome == "false"]

    def missed(self) -> list[int]:
        """Places of the objects that were not found, largest first."""
        places = [place for place, outcome in enumerate(self.outcomes.truth) if outcome == "missed"]
        sides = (self.truth.boxes[:, 2:] - self.truth.boxes[:, :2]).prod(1).tolist()
        return sorted(places, key=lambda place: -sides[place])


def outcomes(found: Detections, truth: BoxTarget, num_classes: int, kind: Kind, most: int) -> render.Outcomes:
    """What became of the objects of one picture, by the rule of the figures, at an overlap of 0.5.

    Args:
        found: the detections that are shown.
        truth: the objects, in the labels of the detections.
        num_classes: K.
        kind: whether boxes or masks are compared.
        most: detections of one class that count.
    """
    meter = DetectionMeter(num_classes, kind, max_detections=most)
    meter.update(found, truth, index=0, source="")
    matches = match(meter.pictures, most)
    chosen = matches.matched[:, HALF]
    # The meter ranks by score; detections come ranked, so its rows are theirs.
    said: list[render.Outcome] = ["not counted"] * len(found)
    for row, object_ in zip(matches.row.tolist(), chosen.tolist(), strict=True):
        said[row] = "right" if object_ >= 0 else "false" if object_ == FREE else "not counted"
    hit = {object_ for object_ in chosen.tolist() if object_ >= 0}
    true: list[render.Outcome] = [
        "not counted" if crowd else "right" if place in hit else "missed"
        for place, crowd in enumerate(truth.crowd.tolist())
    ]
    return render.Outcomes(true, said)


def sections(
    subject: Subject, dataset: Dataset, evaluation: DetectionEvaluation, config: ReportConfig
) -> list[Section | None]:
    """All there is to say of a detector; every picture is predicted once."""
    worst, median, best = (
        [_Case(subject, dataset, evaluation, shown) for shown in part]
        for part in (evaluation.worst, evaluation.median, evaluation.best)
    )
    score = evaluation.settings["score_threshold"]
    return [
        _figures(evaluation),
        _errors(evaluation),
        _coco(evaluation),
        _gallery("Worst pictures", worst, subject.classes, score),
        _gallery("From the middle", median, subject.classes, score),
        _gallery("Best pictures", best, subject.classes, score),
        _mistakes(subject, worst[: config.regions]),
        _methods(subject, [*best, *median], config),
    ]


def top_figures(evaluation: DetectionEvaluation) -> list[str]:
    """Names of the metrics that stand at the top of the page; a section has all of them."""
    prefix = "mask_" if evaluation.task == "instance" else ""
    names = [f"{prefix}{name}" for name in ("ap50", "ap75", "ar_100")]
    return [*names, *(["ap", "ap50"] if prefix else [])]


def _figures(evaluation: DetectionEvaluation) -> Section:
    """Precision and recall, and figures per class."""
    plots = []
    for overlap in sorted({curve.overlap for curve in evaluation.curves}):
        lines = {curve.name: curve.precision for curve in evaluation.curves if curve.overlap == overlap}
        drawn = render.precision_recall(lines, title=f"Precision over recall, overlap {overlap:g}")
        plots.append(figure(drawn, f"Precision over recall at an overlap of {overlap:g}"))
    what = "masks" if evaluation.task == "instance" else "boxes"
    return Section(
        "Where it is right and wrong",
        f"{evaluation.num_objects:,} objects, {evaluation.num_detections:,} detections; all figures are of {what}. "
        "Precision and recall in the table are taken from the score at which F1 is highest; missed and wrong are "
        f"counted from score {evaluation.settings['score_threshold']:g} on, at an overlap of 0.5.",
        plots=plots,
        table=evaluation.table(),
    )


def _errors(evaluation: DetectionEvaluation) -> Section | None:
    """What each kind of mistake costs, and which classes are taken for which."""
    if not evaluation.errors:
        return None
    causes: dict[str, tuple[float | None, int]] = {one.kind: (one.gain, one.number) for one in evaluation.errors}
    plots = [figure(render.losses_by_cause(causes, title="What mistakes cost", unit="AP50"), "Cost of the mistakes")]
    pairs = evaluation.confusion
    if any(count for row, counts in enumerate(pairs) for column, count in enumerate(counts) if row != column):
        confusion = render.confusion_matrix(pairs, evaluation.classes)
        plots.append(figure(confusion, "Which class is taken for which"))
    note = (
        "Kinds of mistakes among all detections: the right place and a wrong class; the right class and not quite the "
        "place (overlap 0.1 to 0.5); neither; an object found twice; nothing there; and objects that nothing points "
        "at. The bars say how far AP50 would rise if all mistakes of one kind were mended; they do not add up."
    )
    return Section("Kinds of mistakes", note, plots=plots)


def _coco(evaluation: DetectionEvaluation) -> Section:
    """All figures by name."""
    known = {name: value for name, value in evaluation.metrics.items() if not name.startswith("mask_")}
    masks = {name.removeprefix("mask_"): v for name, v in evaluation.metrics.items() if name.startswith("mask_")}
    head = ("figure", "boxes", "masks") if masks else ("figure", "boxes")
    rows = [
        (name, percent(value), percent(masks.get(name))) if masks else (name, percent(value))
        for name, value in known.items()
    ]
    note = (
        "AP is averaged over overlaps of 0.50, 0.55 ... 0.95, AR over the same; small, medium and large are below "
        "32², below 96² and from 96² pixels."
    )
    return Section("All figures", note, table=Table(head, rows))


def _gallery(title: str, cases: Sequence[_Case], classes: Classes, score: float) -> Section | None:
    """Each picture with its truth and its prediction, coloured by what became of each object."""
    if not cases:
        return None
    cards = []
    for case in cases:
        truth, found = render.compared_boxes(case.image, case.truth, case.found, classes, case.outcomes)
        one = case.shown
        lines = [f"F1 {percent(one.f1)}: {one.right} right, {one.wrong} wrong, {one.missed} missed"]
        pictures = [picture(truth, "truth", "truth"), picture(found, "predicted", "predicted")]
        cards.append(Card(pictures, lines, one.source))
    legend = [*render.OUTCOME_COLOURS.items()]
    note = f"Detections from score {score:g} on, at an overlap of 0.5. What lies on a crowd is not counted."
    return Section(title, note, legend=legend, cards=cards, is_wide=True)


def _mistakes(subject: Subject, worst: Sequence[_Case]) -> Section | None:
    """The likeliest false alarm and the largest missed objects of each of the worst pictures, and why."""
    cards = [card for case in worst for card in (_false_alarm(subject, case), _overlooked(subject, case)) if card]
    if not cards:
        return None
    note = (
        "The likeliest false alarm of each of the worst pictures: what spoke for its class. And the largest missed "
        "objects: which raw candidate came closest, and what became of it."
    )
    return Section("Mistakes, explained", note, cards=cards)


def _false_alarm(subject: Subject, case: _Case) -> Card | None:
    places = case.false_alarms()[:1]
    if not places:
        return None
    name = f"{case.found.name(places[0])} {float(case.found.scores[places[0]]):.2f}"
    drawn = _marked(case.image, case.found.select(torch.tensor(places)), subject.classes, "false")
    first = picture(drawn, "the false alarm", "the false alarm")
    try:
        heat = explain_batch(subject, [case.image], [(case.found, places[0])], ExplainOptions())[0][0]
    except SaccadeError as error:
        return Card([first], [f"said {name}", str(error)], case.shown.source)
    lines, pictures = [f"said {name}: no object"], [first, overlay(heat, "why")]
    if heat.fired is not None:
        lines.append(f"from {heat.fired.words}")
        pictures.append(picture(heat.fired.drawn(case.image), "what fired", "what fired"))
    return Card(pictures, lines, case.shown.source, verdict_of(heat))


def _overlooked(subject: Subject, case: _Case) -> Card | None:
    places = case.missed()[:MOST_TOLD]
    if not places:
        return None
    objects = case.truth.select(torch.tensor(places))
    lines = []
    for missed in why_missed(case.detector, case.image, objects, min_score=case.least):
        # The box may be another object's, or the mask within it a bad one.
        rest = f", but {case.excuse}" if missed.cause == "found" else ""
        lines.append(missed.sentence + rest)
    drawn = _marked(case.image, objects, subject.classes, "missed")
    return Card([picture(drawn, "missed", "missed")], lines, case.shown.source)


def _marked(
    image: torch.Tensor, objects: Detections | BoxTarget, classes: Classes, outcome: render.Outcome
) -> torch.Tensor:
    return render.box_overlay(image, objects, classes, colours=[render.OUTCOME_COLOURS[outcome]] * len(objects))


def _canvas_pixels(case: _Case) -> int:
    preprocess = case.detector.preprocess
    height, width = preprocess.canvas([preprocess.content_size(*case.image.shape[1:])])
    return height * width


def _methods(subject: Subject, cases: Sequence[_Case], config: ReportConfig) -> Section | None:
    """Several methods on the likeliest detection of some pictures, each with its verdict."""
    reasons = suited(subject.spec, has_boxes=True)
    usual = default_method(subject.spec, has_boxes=True).name
    looks = ("cross_attention", "relevance") if subject.spec.queries else ()
    names = [name for name in dict.fromkeys((usual, *looks, *config.methods)) if reasons.get(name, "unknown") is None]
    rows: list[list[render.Panel]] = []
    chosen = [case for case in cases if len(case.found)]
    for case in chosen[: min(config.compared, 2)]:
        question = (case.found, 0)
        small = _canvas_pixels(case) <= MOST_PIXELS
        names = [name for name in names if small or not getattr(METHODS[name], "is_costly", False)]
        maps = [explain_batch(subject, [case.image], [question], ExplainOptions(method=name))[0][0] for name in names]
        first = render.Panel(image=maps[0].outlined, title="picture", caption=maps[0].of)
        rows.append([first, *(panel(heat, title=heat.name) for heat in maps)])
    if not rows:
        return None
    note = (
        "The likeliest detection, explained by several methods. Methods that disagree are a warning in themselves; a "
        "map that failed its checks is crossed out rather than shown as if it were fine."
    )
    plots: list[Picture] = [figure(render.side_by_side(rows), "Methods side by side")]
    return Section("Methods side by side", note, plots=plots)
