"""Objects as boxes or as masks: COCO's figures, the kinds of mistakes, the pictures that went worst and best.

K classes · R 101 recalls
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from saccade.metrics import detection_matches
from saccade.metrics.detection import HALF, THREE_QUARTERS, THRESHOLDS, DetectionMeter
from saccade.metrics.detection_errors import ErrorKind, error_shares, find_errors
from saccade.metrics.detection_matches import Matches, best_point, count_pictures, match
from saccade.metrics.overlap import Floats, Found, Kind, Truth, overlaps, run_lengths
from saccade.metrics.voc import voc_ap50
from saccade.tasks.base import LEVEL, EvaluateConfig, Evaluation, Facts, Table, Tally, Task, known, percent
from saccade.types import BoxTarget, Detections, Prediction, Target, TaskName

SAME_OBJECT = 0.8
"""Overlap from which a faster copy of a model found the same object: a pixel of each side, where objects are small."""
KINDS: tuple[Kind, ...] = ("boxes", "masks")
"""What of objects is compared."""
CLEAR_SCORE = 0.5
"""Score from which a faster copy must find what the model finds."""


@dataclass(frozen=True)
class ObjectFigures:
    """One class of objects; a figure is None where nothing can be said.

    Attributes:
        name: of the class.
        objects: true objects, crowds not counted.
        ap: average precision over overlaps of 0.5 to 0.95.
        ap50: at an overlap of 0.5.
        ap75: at an overlap of 0.75.
        voc_ap50: at an overlap of 0.5, the whole area under the curve.
        precision: right among the detections from ``score`` on, at an overlap of 0.5.
        recall: found by these.
        score: from which the F1 of the class is highest.
        right: objects found by detections from ``EvaluateConfig.score_threshold`` on, at an overlap of 0.5.
        wrong: detections from that score on that are no object of the class.
        missed: objects not found from that score on.
        box_ap: of the boxes, where all other figures are of masks.
    """

    name: str
    objects: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    voc_ap50: float | None
    precision: float | None
    recall: float | None
    score: float | None
    right: int
    wrong: int
    missed: int
    box_ap: float | None = None


@dataclass(frozen=True)
class ErrorFigures:
    """One kind of mistake (Bolya et al. 2020): how many, and what AP50 gains where they are mended."""

    kind: ErrorKind
    number: int
    gain: float | None


@dataclass(frozen=True)
class Curve:
    """Precision of one class at the recalls 0, 0.01 ... 1, to four decimals.

    Attributes:
        name: of the class.
        overlap: from which an object counts as found.
        precision: ``[R]``, interpolated.
    """

    name: str
    overlap: float
    precision: tuple[float, ...]


@dataclass(frozen=True)
class ShownObjects:
    """One picture of the gallery, from ``EvaluateConfig.score_threshold`` on, at an overlap of 0.5.

    Attributes:
        index: place in the data set.
        source: path or ``file#index``.
        f1: of its objects.
        right: objects that were found.
        wrong: detections that are no object.
        missed: objects that were not found.
    """

    index: int
    source: str
    f1: float
    right: int
    wrong: int
    missed: int


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation(Evaluation):
    """How well objects are found; ``confusion`` counts pairs that overlap by half, from ``score_threshold`` on.

    Objects that were missed and false alarms are no part of ``confusion``; they are in ``per_class``.

    Attributes:
        per_class: one row per class of the model.
        errors: the six kinds of mistakes among all detections.
        curves: precision over recall, for overlaps of 0.5 and 0.75, of each class that is there.
        num_objects: true objects, crowds not counted.
        num_detections: detections that count.
        worst: pictures with the lowest F1, lowest first.
        median: pictures from the middle.
        best: pictures with the highest F1, highest first.
    """

    kind: ClassVar[TaskName] = "detection"

    per_class: tuple[ObjectFigures, ...]
    errors: tuple[ErrorFigures, ...]
    curves: tuple[Curve, ...]
    num_objects: int
    num_detections: int
    worst: tuple[ShownObjects, ...]
    median: tuple[ShownObjects, ...]
    best: tuple[ShownObjects, ...]

    def table(self) -> Table:
        """AP, and precision and recall where F1 is highest, of each class."""
        has_boxes = any(row.box_ap is not None for row in self.per_class)
        head = ("class", "objects", "AP", "AP50", "AP75", "precision", "recall", "from score", "missed", "wrong")
        rows = []
        for row in self.per_class:
            rates = tuple(map(percent, (row.ap, row.ap50, row.ap75, row.precision, row.recall)))
            score = "–" if row.score is None else f"{row.score:.2f}"
            cells = (row.name, f"{row.objects:,}", *rates, score, f"{row.missed:,}", f"{row.wrong:,}")
            rows.append((*cells, percent(row.box_ap)) if has_boxes else cells)
        return Table((*head, "box AP") if has_boxes else head, rows)

    def conditions(self) -> list[str]:
        """Every threshold that a figure depends on."""
        names = (*SETTINGS, "max_detections", "score_threshold")
        return ["figures of: " + ", ".join(f"{name} {self.settings[name]}" for name in names if name in self.settings)]

    def remarks(self) -> list[str]:
        """The pictures with the lowest F1."""
        return [
            f"{one.source}: F1 {percent(one.f1)} ({one.right} right, {one.wrong} wrong, {one.missed} missed)"
            for one in self.worst
        ]


@dataclass(frozen=True, kw_only=True)
class InstanceEvaluation(DetectionEvaluation):
    """How well objects are cut out: every figure is of masks, but ``ap...`` and ``ar...`` in ``metrics``."""

    kind: ClassVar[TaskName] = "instance"


class DetectionTally(Tally):
    """Counts found objects.

    Args:
        classes: names, in the order of the model.
        relabel: ``[K_data]`` int64, the model's label for each label of the data set.
        config: how to evaluate.
        task: "detection" for boxes, "instance" for boxes and masks.

    Attributes:
        meters: by what is compared; all figures but the metrics are of the last one.
    """

    def __init__(
        self, classes: tuple[str, ...], relabel: Tensor, config: EvaluateConfig, task: TaskName = "detection"
    ) -> None:
        self.classes, self.relabel, self.config, self.task = classes, relabel, config, task
        kinds: tuple[Kind, ...] = ("boxes", "masks") if task == "instance" else ("boxes",)
        self.meters = {kind: DetectionMeter(len(classes), kind, max_detections=config.max_detections) for kind in kinds}

    def add(
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        indices: Sequence[int],
        sources: Sequence[str],
    ) -> None:
        """Count one batch of detections, each in the pixels of its own picture."""
        for prediction, target, index, source in zip(predictions, targets, indices, sources, strict=True):
            assert isinstance(prediction, Detections)
            assert isinstance(target, BoxTarget)
            labels = self.relabel[target.labels.cpu()]
            truth = BoxTarget(target.boxes.cpu(), labels, target.crowd.cpu(), target.masks)
            for meter in self.meters.values():
                meter.update(prediction, truth, index=index, source=source)

    def compute(self) -> dict[str, float]:
        """COCO's twelve figures and VOC's AP50 of the boxes; with ``mask_`` before their names those of the masks."""
        metrics: dict[str, float] = {}
        for kind, meter in self.meters.items():
            figures = meter.compute()
            figures["voc_ap50"] = _mean(voc_ap50(meter.pictures, len(self.classes)))
            metrics |= {f"mask_{name}" if kind == "masks" else name: value for name, value in figures.items()}
        return metrics

    def evaluation(self, facts: Facts) -> DetectionEvaluation:
        """Everything that was counted."""
        meter = list(self.meters.values())[-1]
        pictures = meter.pictures
        matches = match(pictures, self.config.max_detections)
        shares = error_shares(matches, find_errors(matches, pictures))
        per_class = self._per_class(meter, matches)
        worst, median, best = self._gallery(meter, matches)
        indices = [picture.index for picture in pictures]
        resamples, seed = self.config.detection_resamples, self.config.seed
        low, high = detection_matches.interval(matches, indices, resamples, seed, LEVEL)
        pairs = detection_matches.confusion(matches, pictures, len(self.classes), self.config.score_threshold)
        kind = InstanceEvaluation if self.task == "instance" else DetectionEvaluation
        return kind(
            task=self.task,
            headline="mask_ap" if self.task == "instance" else "ap",
            metrics={name: known(value) for name, value in self.compute().items()},
            interval=(known(low), known(high)),
            classes=self.classes,
            per_class=per_class,
            errors=tuple(ErrorFigures(name, share.number, known(share.gain)) for name, share in shares.items()),
            curves=self._curves(meter),
            confusion=tuple(tuple(row) for row in pairs.tolist()),
            num_objects=int((~matches.crowd).sum()),
            num_detections=len(matches.scores),
            worst=worst,
            median=median,
            best=best,
            num_images=len(pictures),
            missing_classes=tuple(row.name for row in per_class if not row.objects),
            skipped=facts.skipped,
            settings={**SETTINGS, **facts.settings},
            seconds=facts.seconds,
            images_per_second=len(pictures) / facts.seconds,
        )

    def _per_class(self, meter: DetectionMeter, matches: Matches) -> tuple[ObjectFigures, ...]:
        figures, voc = meter.per_class(), voc_ap50(meter.pictures, len(self.classes))
        boxes = self.meters["boxes"].per_class()["ap"] if self.task == "instance" else None
        rows = []
        for label, name in enumerate(self.classes):
            objects, point = matches.objects(label), best_point(matches, label)
            chosen = matches.matched[(matches.labels == label) & (matches.scores >= self.config.score_threshold), HALF]
            right = int((chosen >= 0).sum())
            rows.append(
                ObjectFigures(
                    name=name,
                    objects=len(objects),
                    ap=known(float(figures["ap"][label])),
                    ap50=known(float(figures["ap50"][label])),
                    ap75=known(float(figures["ap75"][label])),
                    voc_ap50=known(float(voc[label])),
                    precision=known(point.precision),
                    recall=known(point.recall),
                    score=known(point.score),
                    right=right,
                    wrong=int((chosen == detection_matches.FREE).sum()),
                    missed=len(objects) - right,
                    box_ap=None if boxes is None else known(float(boxes[label])),
                )
            )
        return tuple(rows)

    def _curves(self, meter: DetectionMeter) -> tuple[Curve, ...]:
        return tuple(
            Curve(self.classes[label], round(float(THRESHOLDS[step]), 2), tuple(curve.round(4).tolist()))
            for step in (HALF, THREE_QUARTERS)
            for label, curve in meter.curves(step).items()
        )

    def _gallery(self, meter: DetectionMeter, matches: Matches) -> tuple[tuple[ShownObjects, ...], ...]:
        """Worst, median and best pictures; those without an object and a detection are left out."""
        counts = count_pictures(matches, self.config.score_threshold)
        columns = (counts.f1().tolist(), counts.right.tolist(), counts.wrong.tolist(), counts.missed.tolist())
        shown = [
            ShownObjects(picture.index, picture.source, *row)
            for picture, *row in zip(meter.pictures, *columns, strict=True)
            if not math.isnan(row[0])
        ]
        # Among equals the picture with more mistakes is the worse one.
        shown.sort(key=lambda one: (one.f1, -one.wrong - one.missed, one.index))
        count = min(self.config.num_shown, max(len(shown) // 3, 1))
        start = max((len(shown) - count) // 2, 0)
        return tuple(shown[:count]), tuple(shown[start : start + count]), tuple(shown[::-1][:count])


SETTINGS: Mapping[str, Any] = {
    "overlaps": [round(float(step), 2) for step in THRESHOLDS],
    "size_limits": [32**2, 96**2],
    "areas": "of masks where there are any, else of boxes",
    "match_overlap": 0.5,
    "background_overlap": 0.1,
}
"""What affects the figures and cannot be set."""


def _score_gaps(detections: Detections, others: Detections, kind: Kind) -> Floats:
    """How far the scores of the detections that are among the others too are apart."""
    found, among = Found.of(detections, kind), Found.of(others, kind)
    none = np.zeros(len(among.labels), dtype=np.bool_)
    matrix = overlaps(found, Truth(among.boxes, among.labels, none, among.areas, among.shapes), kind)
    matrix = np.where(found.labels[:, None] == among.labels[None], matrix, 0.0)
    if not matrix.size:
        return np.zeros(0)
    gaps: Floats = np.abs(found.scores - among.scores[matrix.argmax(1)])[matrix.max(1) >= SAME_OBJECT]
    return gaps


def _mean(values: Floats) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else math.nan


class DetectionTask(Task):
    """Objects as boxes.

    Of a hundred clear objects a faster copy may lose or add two or three: suppression decides between near ties, so
    rounding moves some objects whole. Measured on small trained models: of a Faster R-CNN and 87 pictures of blood
    cells, a copy in bfloat16 agrees on 99.5 % of the clear objects and moves AP by 0.1 points, one in 8 bits on 98.9 %
    and by 0.2; of a Mask R-CNN and 56 pictures of nuclei on 99.1 % and by 0.2, and on 98.7 % and by 0.35.
    """

    name: ClassVar[TaskName] = "detection"
    headline: ClassVar[str] = "ap"
    min_agreement: ClassVar[float] = 0.975

    def tally(self, classes: tuple[str, ...], relabel: Tensor, config: EvaluateConfig) -> DetectionTally:
        """A new tally."""
        return DetectionTally(classes, relabel, config, self.name)

    def quality(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """AP, and AP50 where that ties."""
        return metrics[self.headline], metrics[f"{self.headline}50"]

    def agreement(self, predictions: Sequence[Prediction], reference: Sequence[Prediction]) -> tuple[float, float]:
        """Share of the clear objects of either side that the other has too, and the mean difference of their scores.

        The other's object has the same class, overlaps it almost wholly and may have any score, so that a score that
        moves across the limit does no harm. Where no object of the reference is clear, all are looked at. Of objects
        with masks the boxes are compared as well, and the worse figures count.
        """
        ours, theirs = ([one for one in row if isinstance(one, Detections)] for row in (predictions, reference))
        limit = CLEAR_SCORE if any(bool((one.scores >= CLEAR_SCORE).any()) for one in theirs) else 0.0
        pairs = [pair for o, t in zip(ours, theirs, strict=True) for pair in ((o.above(limit), t), (t.above(limit), o))]
        looked_at = sum(len(one) for one, _ in pairs)
        shares, differences = [], []
        for kind in KINDS[: 2 if self.name == "instance" else 1]:
            gaps = np.concatenate([np.zeros(0), *(_score_gaps(one, other, kind) for one, other in pairs)])
            shares.append(len(gaps) / looked_at if looked_at else 1.0)
            differences.append(float(gaps.mean()) if len(gaps) else 0.0)
        return min(shares), max(differences)

    def record(self, prediction: Prediction, top: int) -> dict[str, Any]:
        """Every object, likeliest first: class, score, box in pixels, raw candidate, run lengths where it has a mask.

        Args:
            prediction: of this task.
            top: plays no part; an object has one class.
        """
        assert isinstance(prediction, Detections)
        shapes = [] if prediction.masks is None else run_lengths(prediction.masks)
        rows = zip(prediction.scores.tolist(), prediction.boxes.tolist(), prediction.source.tolist(), strict=True)
        objects = []
        for index, (score, box, source) in enumerate(rows):
            one: dict[str, Any] = {"class": prediction.name(index), "score": score}
            one |= {"box": [round(side, 2) for side in box], "source": source}
            if shapes:
                counts = shapes[index]["counts"]
                text = counts.decode("ascii") if isinstance(counts, bytes) else counts
                one["mask"] = {"size": list(shapes[index]["size"]), "counts": text}
            objects.append(one)
        return {"objects": objects}


class InstanceTask(DetectionTask):
    """Objects as masks, with their boxes."""

    name: ClassVar[TaskName] = "instance"
    headline: ClassVar[str] = "mask_ap"
