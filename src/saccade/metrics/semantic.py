"""Figures of segmentation: pure functions on label maps, and one accumulator that never keeps a picture.

IoU is summed over the pixels of the whole data set (Everingham et al. 2010, PASCAL VOC). Boundary F-score: Csurka et
al. 2013, "What is a good evaluation measure for semantic segmentation?"; differs from it: matches are summed over the
data set instead of averaged over pictures, and the tolerance is rounded up to whole pixels. Interval: the bootstrap
over pictures (Efron 1979) with Poisson weights instead of draws (Chamandy et al. 2012), which needs no second pass.

K classes · R resamples · h, w size of one picture · N boundary pixels
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.metrics import classification
from saccade.metrics.classification import confusion_matrix
from saccade.types import IGNORE

PIXELS_AT_ONCE = 1 << 18
"""Pixels that are counted together: as 64-bit numbers they still fit the caches, however large the picture."""

MOST_RANKED = 4096
"""Pictures among which the median ones are looked for: all of them up to that many, a sample of that many beyond."""


class PerClass(NamedTuple):
    """Figures of each class over the pixels of all pictures, ``[K]`` float64; NaN where the denominator is empty.

    Attributes:
        iou: ``TP / (TP + FP + FN)``; NaN where the class neither occurs nor is predicted.
        dice: ``2 TP / (2 TP + FP + FN)``, the F1 score.
        precision: right among the pixels given this class.
        recall: found among the pixels of this class.
        boundary_f: F-score of the boundary pixels within the tolerance; NaN where there is no boundary, or none was
            looked at.
        share: share of the labelled pixels that are of this class.
        pictures: number of pictures in which the class occurs, int64.
    """

    iou: Tensor
    dice: Tensor
    precision: Tensor
    recall: Tensor
    boundary_f: Tensor
    share: Tensor
    pictures: Tensor


@dataclass(frozen=True, order=True)
class Ranked:
    """One picture and how well it was segmented.

    Attributes:
        score: mean IoU over the classes that are in the picture's truth or prediction.
        index: its place in the data set.
        source: where it comes from.
    """

    score: float
    index: int
    source: str


class Gallery(NamedTuple):
    """Pictures worth a look, by their own mean IoU; equal scores go by index.

    Attributes:
        worst: the lowest scores, lowest first.
        median: from the middle, lower scores first.
        best: the highest scores, highest first.
    """

    worst: tuple[Ranked, ...]
    median: tuple[Ranked, ...]
    best: tuple[Ranked, ...]


def pixel_confusion(labels: Tensor, predicted: Tensor, num_classes: int, *, ignore: int = IGNORE) -> Tensor:
    """Pixels ``[K, K]`` int64 of every pair: row the true class, column the predicted one.

    Args:
        labels: ``[h, w]`` uint8, true classes; ``ignore`` where nobody said, which counts nowhere.
        predicted: ``[h, w]`` uint8.
        num_classes: K.
        ignore: label of the pixels that take no part.

    Raises:
        InputError: where the sizes differ, or a labelled pixel has a class that does not exist.
    """
    if labels.shape != predicted.shape:
        raise InputError(
            f"the prediction is {tuple(predicted.shape)}, the label map {tuple(labels.shape)}", expected="equal sizes"
        )
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    parts = (torch.split(values.flatten().cpu(), PIXELS_AT_ONCE) for values in (labels, predicted))
    for truth, found in zip(*parts, strict=True):
        is_known = truth != ignore
        if not bool(is_known.all()):
            truth, found = truth[is_known], found[is_known]
        confusion += confusion_matrix(truth.long(), found.long(), num_classes)
    return confusion


def ious(confusion: Tensor) -> Tensor:
    """IoU of each class ``[K]`` float64 from a confusion matrix ``[K, K]``; NaN where it is nowhere."""
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())


def boundary_counts(
    predicted: Tensor, labels: Tensor, num_classes: int, *, tolerance: float, ignore: int = IGNORE
) -> Tensor:
    """Boundary pixels of each class, ``[4, K]`` int64: found and right, found, true and found, true.

    A boundary pixel has one of its four neighbours in another class. The border of the picture is no boundary, nor is
    the border of an ignored region: what the prediction says there is not looked at. A boundary pixel is right where
    the other map has one of the same class within ``tolerance``.

    Args:
        predicted: ``[h, w]`` uint8.
        labels: ``[h, w]`` uint8.
        num_classes: K.
        tolerance: largest Euclidean distance of a match, in pixels.
        ignore: label of the pixels that take no part.
    """
    truth = labels.cpu().numpy()
    is_known = truth != ignore
    (true_classes, true_points), (found_classes, found_points) = (
        _boundary(values, is_known) for values in (truth, predicted.cpu().numpy())
    )
    counts = torch.zeros(4, num_classes, dtype=torch.int64)
    for label in np.union1d(true_classes, found_classes).tolist():
        true, found = true_points[true_classes == label], found_points[found_classes == label]
        counts[0, label], counts[1, label] = _num_near(found, true, tolerance), len(found)
        counts[2, label], counts[3, label] = _num_near(true, found, tolerance), len(true)
    return counts


def boundary_f(counts: Tensor) -> Tensor:
    """F-score of each class ``[K]`` float64 from ``boundary_counts``; NaN without a boundary, 0 without a match."""
    right, found, recalled, true = counts.double()
    # The denominator keeps 2PR / (P + R) finite where one of the maps has no boundary at all.
    scores: Tensor = 2 * right * recalled / (right * true + recalled * found).clamp_min(1)
    return scores.where(found + true > 0, math.nan)


def _boundary(
    values: npt.NDArray[np.uint8], is_known: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]:
    """Classes ``[N]`` and places ``[N, 2]`` of the known pixels with a known neighbour of another class."""
    is_boundary = np.zeros(values.shape, dtype=bool)
    below = (values[1:] != values[:-1]) & is_known[1:] & is_known[:-1]
    beside = (values[:, 1:] != values[:, :-1]) & is_known[:, 1:] & is_known[:, :-1]
    is_boundary[1:] |= below
    is_boundary[:-1] |= below
    is_boundary[:, 1:] |= beside
    is_boundary[:, :-1] |= beside
    return values[is_boundary], np.argwhere(is_boundary)


def _num_near(points: npt.NDArray[np.intp], others: npt.NDArray[np.intp], tolerance: float) -> int:
    """How many of ``points [N, 2]`` have one of ``others [M, 2]`` within ``tolerance``."""
    if not len(points) or not len(others):
        return 0
    # Importing scipy costs a second, which only evaluations have to spend.
    from scipy.spatial import KDTree

    tree = KDTree(others, balanced_tree=False, compact_nodes=False)
    # The bound excludes itself.
    distances, _ = tree.query(points, distance_upper_bound=tolerance + 1e-6)
    return int(np.isfinite(distances).sum())


class SemanticMeter:
    """Accumulates label maps picture by picture; memory depends on K and R alone, not on the number of pictures.

    The result does not depend on the order of the pictures either: sums are whole numbers, and all chance belongs to a
    picture's index.

    Args:
        num_classes: K.
        ignore: label of the pixels that take no part.
        boundary_tolerance: share of a picture's diagonal, rounded up to whole pixels; None leaves boundaries out.
        resamples: R, bootstrap samples of the interval.
        seed: of the bootstrap, and of the sample that the median pictures are taken from.
        kept: most pictures of each kind in ``gallery``.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore: int = IGNORE,
        boundary_tolerance: float | None = 0.0075,
        resamples: int = 1000,
        seed: int = 0,
        kept: int = 8,
    ) -> None:
        self.num_classes, self.ignore, self.boundary_tolerance = num_classes, ignore, boundary_tolerance
        self.resamples, self.seed, self.kept = resamples, seed, kept
        self.reset()

    def reset(self) -> None:
        """Forget every picture."""
        num_classes = self.num_classes
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.num_pictures = 0
        self._occurs = torch.zeros(num_classes, dtype=torch.int64)
        self._boundaries = torch.zeros(4, num_classes, dtype=torch.int64)
        # Intersection, union and true pixels of every resample.
        self._resampled = torch.zeros(3, self.resamples, num_classes, dtype=torch.int64)
        self._num_ranked = 0
        self._worst: list[Ranked] = []
        self._best: list[Ranked] = []
        self._sample: list[tuple[float, Ranked]] = []

    def update(self, predicted: Tensor, labels: Tensor, *, index: int, source: str) -> None:
        """Add one picture.

        Args:
            predicted: ``[h, w]`` uint8, the class of every pixel.
            labels: ``[h, w]`` uint8, true classes, ``ignore`` where nobody said.
            index: its place in the data set; decides its weights in the bootstrap.
            source: where it comes from, for messages and the gallery.

        Raises:
            InputError: naming ``source``, where the sizes differ or a class does not exist.
        """
        try:
            confusion = pixel_confusion(labels, predicted, self.num_classes, ignore=self.ignore)
        except InputError as error:
            place = f"{source}: {error.where}" if error.where else source
            raise InputError(error.what, where=place, expected=error.expected, remedy=error.remedy) from None
        hits, true = confusion.diagonal(), confusion.sum(1)
        union = true + confusion.sum(0) - hits
        self.num_pictures += 1
        self.confusion += confusion
        self._occurs += true > 0
        if self.boundary_tolerance is not None:
            reach = math.ceil(self.boundary_tolerance * math.hypot(*labels.shape))
            options = {"tolerance": reach, "ignore": self.ignore}
            self._boundaries += boundary_counts(predicted, labels, self.num_classes, **options)
        generator = np.random.default_rng([self.seed, index])
        # How often a picture is drawn is binomial(N, 1/N), for many pictures Poisson(1): no need to know N.
        weights = torch.from_numpy(generator.poisson(1.0, self.resamples)).long()
        there = union.nonzero()[:, 0]
        counts = torch.stack([hits, union, true])[:, None, there]
        self._resampled[:, :, there] += weights[None, :, None] * counts
        self._rank(Ranked(float(ious(confusion)[there].mean()), index, source), generator.random())

    def _rank(self, picture: Ranked, ticket: float) -> None:
        if math.isnan(picture.score):  # nothing in it is labelled
            return
        self._num_ranked += 1
        insort(self._worst, picture)
        insort(self._best, picture)
        del self._worst[self.kept :], self._best[: -self.kept or None]
        # The lowest tickets are a uniform sample, whatever the order of the pictures.
        insort(self._sample, (ticket, picture))
        del self._sample[MOST_RANKED:]

    def per_class(self) -> PerClass:
        """Figures of each class over all pictures so far."""
        figures = classification.per_class(self.confusion)
        share = self.confusion.sum(1) / self.confusion.sum()
        scores = boundary_f(self._boundaries)
        rates = (ious(self.confusion), figures.f1, figures.precision, figures.recall)
        return PerClass(*rates, scores, share.double(), self._occurs.clone())

    def compute(self) -> dict[str, float]:
        """miou, pixel_accuracy, mean_accuracy, dice, and boundary_f unless left out; NaN without a labelled pixel.

        Means go over the classes with a labelled pixel anywhere. A class that is predicted but never true is no part of
        them; its pixels are missing from the classes they really belong to. The boundary score also leaves out classes
        without a boundary.
        """
        figures = self.per_class()
        is_there = figures.share > 0
        metrics = {
            "miou": float(figures.iou[is_there].mean()),
            "pixel_accuracy": float(self.confusion.diagonal().sum() / self.confusion.sum()),
            "mean_accuracy": float(figures.recall[is_there].mean()),
            "dice": float(figures.dice[is_there].mean()),
        }
        if self.boundary_tolerance is not None:
            metrics["boundary_f"] = float(figures.boundary_f[is_there].nanmean())
        return metrics

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap interval of miou over pictures; NaN without pictures or resamples.

        The mean of a resample goes over the classes that occur in it.

        Args:
            level: share of the resampled figures inside the interval.
        """
        hits, union, true = self._resampled.double()
        means = (hits / union).where(true > 0, math.nan).nanmean(dim=1)
        means = means[~means.isnan()]
        if not len(means):
            return math.nan, math.nan
        low, high = np.quantile(means.numpy(), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def gallery(self) -> Gallery:
        """The worst, the median and the best pictures: ``kept`` of each, or so few that no picture is there twice.

        Of fewer than three pictures, one of each kind all the same. Pictures without a labelled pixel are left out.
        """
        count = min(self.kept, max(self._num_ranked // 3, 1))
        ranked = sorted(picture for _, picture in self._sample)
        start = max((len(ranked) - count) // 2, 0)
        best = self._best[::-1][:count]
        return Gallery(tuple(self._worst[:count]), tuple(ranked[start : start + count]), tuple(best))
