"""Figures of detection: the twelve of COCO, per class, curves; one accumulator that keeps overlaps, never a mask.

Average precision over ten thresholds of overlap, recall at 1, 10 and 100 objects, sizes: Lin et al. 2014,
arXiv 1405.0312; computed by faster-coco-eval from the overlaps that were measured when a picture came in. So masks and
pictures are forgotten at once, and what is kept of a picture are a few numbers per object and pair of objects.

D found · G true objects · K classes · T 10 thresholds · R 101 recalls · A 4 sizes · M limits
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from saccade.errors import InputError
from saccade.metrics.overlap import Flags, Floats, Found, Kind, Labels, Truth, overlaps
from saccade.types import BoxTarget, Detections

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
"""T overlaps from which an object counts as found."""
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
"""R recalls at which precision is read; with the rounding of COCO's own program, which decides at exact recalls."""
SIZES = ("all", "small", "medium", "large")
"""Any area; below 32², up to 96², and from 96² pixels."""
HALF, THREE_QUARTERS = 0, 5
"""Places of 0.5 and 0.75 in ``THRESHOLDS``."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What is kept of one picture.

    Attributes:
        index: its place in the data set.
        source: where it comes from.
        scores: ``[D]``, falling.
        labels: ``[D]``.
        areas: ``[D]`` pixels.
        true_labels: ``[G]``.
        true_areas: ``[G]`` pixels.
        crowd: ``[G]``.
        overlaps: ``[D, G]``, see ``saccade.metrics.overlap``.
    """

    index: int
    source: str
    scores: Floats
    labels: Labels
    areas: Floats
    true_labels: Labels
    true_areas: Floats
    crowd: Flags
    overlaps: Floats

    @cached_property
    def groups(self) -> dict[int, tuple[Labels, Labels]]:
        """Class -> places of its found and of its true objects."""
        labels = {*self.labels.tolist(), *self.true_labels.tolist()}
        return {k: (np.flatnonzero(self.labels == k), np.flatnonzero(self.true_labels == k)) for k in sorted(labels)}


@dataclass(frozen=True, eq=False)
class CocoFigures:
    """What faster-coco-eval says; -1 where a class does not occur.

    Attributes:
        labels: the classes of the axis K, those that occur.
        precision: ``[T, R, K, A, M]``, interpolated.
        recall: ``[T, K, A, M]``.
        scores: ``[T, R, K, A, M]``, of the object at which each recall is reached.
    """

    labels: tuple[int, ...]
    precision: Floats
    recall: Floats
    scores: Floats

    def metrics(self, limits: Sequence[int]) -> dict[str, float]:
        """The twelve figures by name; NaN where nothing is to be found."""
        figures = {
            "ap": _mean(self.precision[:, :, :, 0, -1]),
            "ap50": _mean(self.precision[HALF, :, :, 0, -1]),
            "ap75": _mean(self.precision[THREE_QUARTERS, :, :, 0, -1]),
        }
        figures |= {f"ap_{SIZES[a]}": _mean(self.precision[:, :, :, a, -1]) for a in (1, 2, 3)}
        figures |= {f"ar_{limit}": _mean(self.recall[:, :, 0, m]) for m, limit in enumerate(limits)}
        return figures | {f"ar_{SIZES[a]}": _mean(self.recall[:, :, a, -1]) for a in (1, 2, 3)}


def _mean(values: Floats) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


class DetectionMeter:
    """Accumulates detections picture by picture; order does not matter, a picture's place in the data set does.

    Args:
        num_classes: K.
        kind: whether boxes or masks are compared.
        max_detections: most objects of one class in one picture that count, the likeliest first.
    """

    def __init__(self, num_classes: int, kind: Kind = "boxes", *, max_detections: int = 100) -> None:
        if max_detections < 1:
            raise InputError(f"max_detections is {max_detections}", expected="at least 1")
        self.num_classes, self.kind, self.max_detections = num_classes, kind, max_detections
        self.reset()

    def reset(self) -> None:
        """Forget every picture."""
        self._pictures: list[Picture] = []
        self._figures: CocoFigures | None = None

    @property
    def limits(self) -> tuple[int, ...]:
        """M numbers of objects at which recall is told: 1, 10 and ``max_detections``."""
        return (*(limit for limit in (1, 10) if limit < self.max_detections), self.max_detections)

    @property
    def pictures(self) -> list[Picture]:
        """What is known of each picture, in the order of the data set."""
        return sorted(self._pictures, key=lambda picture: picture.index)

    def update(self, detections: Detections, target: BoxTarget, *, index: int, source: str) -> None:
        """Add one picture.

        Args:
            detections: what was found, in its pixels.
            target: what is there, in its pixels and in the labels of the detections.
            index: its place in the data set.
            source: where it comes from, for messages.

        Raises:
            InputError: naming ``source``, where masks are missing, sizes differ or a class does not exist.
        """
        try:
            found, truth = Found.of(detections, self.kind), Truth.of(target, self.kind)
            self.add(found, truth, index=index, source=source)
        except InputError as error:
            place = f"{source}: {error.where}" if error.where else source
            raise InputError(error.what, where=place, expected=error.expected, remedy=error.remedy) from None

    def add(self, found: Found, truth: Truth, *, index: int, source: str) -> None:
        """Add one picture as plain arrays, at the full precision of a result file.

        Raises:
            InputError: as ``update``, without the source.
        """
        for labels, what in ((found.labels, "a detection"), (truth.labels, "the ground truth")):
            if len(labels) and not (labels.min() >= 0 and labels.max() < self.num_classes):
                wrong = next(label for label in labels.tolist() if not 0 <= label < self.num_classes)
                raise InputError(f"{what} has label {wrong}", expected=f"0 to {self.num_classes - 1}")
        if not np.isfinite(found.scores).all():
            raise InputError("the score of a detection is not a number", expected="finite scores")
        order = np.argsort(-found.scores, kind="stable")
        matrix = overlaps(found, truth, self.kind)[order]
        kept = (found.scores[order], found.labels[order], found.areas[order])
        self._pictures.append(Picture(index, source, *kept, truth.labels, truth.areas, truth.crowd, matrix))
        self._figures = None

    def figures(self) -> CocoFigures:
        """Precision and recall of every class, as faster-coco-eval computes them."""
        if self._figures is None:
            self._figures = coco_figures(self.pictures, self.limits)
        return self._figures

    def compute(self) -> dict[str, float]:
        """The twelve figures: ap, ap50, ap75, ap_small ... ar_1, ar_10, ar_100, ar_small ...; NaN without any object.

        ``ar_100`` is called after ``max_detections``. Means go over the classes that are there.
        """
        return self.figures().metrics(self.limits)

    def per_class(self) -> dict[str, Floats]:
        """``ap``, ``ap50`` and ``ap75`` of each class ``[K]``; NaN for a class that is not there."""
        precision = self.figures().precision[:, :, :, 0, -1]
        parts = {"ap": precision, "ap50": precision[[HALF]], "ap75": precision[[THREE_QUARTERS]]}
        rows = {name: np.full(self.num_classes, math.nan) for name in parts}
        for name, part in parts.items():
            for place, label in enumerate(self.figures().labels):
                rows[name][label] = _mean(part[:, :, place])
        return rows

    def curves(self, threshold: int = HALF) -> dict[int, Floats]:
        """Class -> interpolated precision at the recalls ``[R]``, for one place in ``THRESHOLDS``."""
        figures = self.figures()
        curves = {k: figures.precision[threshold, :, place, 0, -1] for place, k in enumerate(figures.labels)}
        return {label: curve for label, curve in curves.items() if curve[0] > -1}


def coco_figures(pictures: Sequence[Picture], limits: Sequence[int]) -> CocoFigures:
    """Give overlaps, scores and areas to faster-coco-eval.

    Args:
        pictures: in the order in which equal scores are ranked.
        limits: M numbers of objects of one class in one picture, rising.
    """
    groups: dict[int, list[Picture]] = {}
    for picture in pictures:
        for label in picture.groups:
            groups.setdefault(label, []).append(picture)
    shape = (len(THRESHOLDS), len(RECALLS), len(groups), len(SIZES), len(limits))
    figures = CocoFigures(tuple(sorted(groups)), np.zeros(shape), np.zeros((shape[0], *shape[2:])), np.zeros(shape))
    # One class after the other, with the pictures that have it: together they would take gigabytes.
    for place, label in enumerate(figures.labels):
        said = _evaluate(groups[label], label, limits)
        figures.precision[:, :, place] = said["precision"][:, :, 0]
        figures.recall[:, place] = said["recall"][:, 0]
        figures.scores[:, :, place] = said["scores"][:, :, 0]
    return figures


def _evaluate(pictures: Sequence[Picture], label: int, limits: Sequence[int]) -> Mapping[str, Floats]:
    """What faster-coco-eval says of one class."""
    import faster_coco_eval.faster_eval_api_cpp as program  # loads a library that only evaluations need
    from faster_coco_eval.core.cocoeval import Params

    found, true = program.Dataset(), program.Dataset()
    matrices: list[list[Floats | list[float]]] = []
    numbers = itertools.count(1)
    for place, picture in enumerate(pictures):
        ours, theirs = picture.groups[label]
        ours = ours[: limits[-1]]
        # The program looks into the rows only where there are both.
        matrices.append([picture.overlaps[ours[:, None], theirs] if len(ours) and len(theirs) else []])
        for score, area in zip(picture.scores[ours].tolist(), picture.areas[ours].tolist(), strict=True):
            found.append_ref(place, label, {"id": next(numbers), "score": score, "area": area})
        flags = picture.crowd[theirs].astype(int).tolist()
        for flag, area in zip(flags, picture.true_areas[theirs].tolist(), strict=True):
            true.append_ref(place, label, {"id": next(numbers), "area": area, "iscrowd": flag, "ignore": flag})
    options: Any = Params(iouType="bbox")  # only tells the program that overlaps are no key points
    options.iouThrs, options.recThrs, options.maxDets = THRESHOLDS, RECALLS, list(limits)
    options.areaRng = [[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]]
    options.imgIds, options.catIds = list(range(len(pictures))), [label]
    said: Mapping[str, Floats] = program.COCOevalEvaluateAccumulate(
        options, matrices, true, found, options.imgIds, options.catIds, True
    )
    return said
