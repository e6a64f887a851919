"""Figures of classification: pure functions on tensors, and one thin accumulator over batches.

N images · K classes · B bins.

Calibration error: Guo et al. 2017, arXiv 1706.04599 (equal-width bins). Bootstrap: Efron 1979, percentile interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saccade.errors import InputError


class PerClass(NamedTuple):
    """Figures of each class, ``[K]`` float64; NaN where the denominator is empty.

    Attributes:
        precision: right among the images given this class; NaN where none was.
        recall: found among the images of this class; NaN where there are none.
        f1: harmonic mean of the two, ``2 TP / (2 TP + FP + FN)``; NaN where the class neither occurs nor is predicted.
        support: number of images of this class, int64.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor


class Reliability(NamedTuple):
    """How confidence compares with accuracy, bin by bin.

    Attributes:
        edges: ``[B + 1]`` of the confidence bins; bin i holds ``(edges[i], edges[i + 1]]``.
        counts: ``[B]`` int64, images per bin.
        confidence: ``[B]`` mean confidence; NaN in an empty bin.
        accuracy: ``[B]`` share that was right; NaN in an empty bin.
        error: expected calibration error, the mean of ``|confidence - accuracy|`` weighted by ``counts``; NaN without
            images.
    """

    edges: Tensor
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor
    error: float


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Counts ``[K, K]`` int64: row the true class, column the predicted one.

    Args:
        labels: ``[N]`` int64, true classes.
        predicted: ``[N]`` int64.
        num_classes: K.

    Raises:
        InputError: where a label lies outside the classes.
    """
    for name, values in (("labels", labels), ("predicted", predicted)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            found = f"values from {int(values.min())} to {int(values.max())}"
            raise InputError(found, where=name, expected=f"0 to {num_classes - 1}")
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(confusion: Tensor) -> PerClass:
    """Precision, recall, F1 and support of each class from a confusion matrix ``[K, K]``."""
    hits = confusion.diagonal().double()
    actual, claimed = confusion.sum(1).double(), confusion.sum(0).double()
    # 0 / 0 is NaN on purpose: a class without images has no recall, and calling it 0 would bend every average.
    return PerClass(hits / claimed, hits / actual, 2 * hits / (actual + claimed), confusion.sum(1))


def rank_of_truth(scores: Tensor, labels: Tensor) -> Tensor:
    """Number of classes ``[N]`` int64 placed before the true one; an image is right in the top k where this is below k.

    Ties go to the lower class id, as ``argmax`` does, so that a constant output cannot count as right for every class.

    Args:
        scores: ``[N, K]``, higher is likelier.
        labels: ``[N]`` int64.
    """
    own = scores.gather(1, labels[:, None])
    is_earlier = torch.arange(scores.shape[1], device=scores.device)[None] < labels[:, None]
    return ((scores > own) | ((scores == own) & is_earlier)).sum(1)


def reliability(confidence: Tensor, is_right: Tensor, num_bins: int = 15) -> Reliability:
    """Reliability table and expected calibration error over equal-width bins.

    Args:
        confidence: ``[N]`` in [0, 1], score of the predicted class.
        is_right: ``[N]`` bool.
        num_bins: B.
    """
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    confidence = confidence.double()
    bins = (torch.bucketize(confidence, edges) - 1).clamp(0, num_bins - 1)
    counts = torch.bincount(bins, minlength=num_bins)
    confidences = torch.bincount(bins, confidence, minlength=num_bins)
    rights = torch.bincount(bins, is_right.double(), minlength=num_bins)
    gap = float((confidences - rights).abs().sum() / len(confidence)) if len(confidence) else math.nan
    return Reliability(edges, counts, confidences / counts, rights / counts, gap)


def bootstrap_accuracy(
    is_right: Tensor, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy.

    The mean of N draws with replacement from r ones and N - r zeros is binomial(N, r/N) / N, so resamples are drawn
    from that distribution itself instead of from the images.

    Args:
        is_right: ``[N]`` bool.
        resamples: number of bootstrap samples.
        seed: of the draws.
        level: share of the resampled accuracies inside the interval.
    """
    count = is_right.numel()
    if not count:
        return math.nan, math.nan
    share = int(is_right.sum()) / count
    accuracies = np.random.default_rng(seed).binomial(count, share, resamples) / count
    low, high = np.quantile(accuracies, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Scored:
    """What is kept of each image: five numbers, whatever the number of classes.

    Attributes:
        labels: ``[N]`` int64, true classes.
        predicted: ``[N]`` int64.
        confidence: ``[N]`` float32, score of the predicted class.
        truth: ``[N]`` float32, score of the true class.
        rank: ``[N]`` int64, classes placed before the true one.
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    truth: Tensor
    rank: Tensor

    @property
    def is_right(self) -> Tensor:
        """``[N]`` bool."""
        return self.labels == self.predicted

    @property
    def negative_log_likelihood(self) -> Tensor:
        """``[N]`` float64; a probability that underflowed counts as the smallest normal float32."""
        return -self.truth.double().clamp_min(torch.finfo(torch.float32).tiny).log()


class ClassificationMeter:
    """Accumulates scores over batches; memory grows by five numbers per image."""

    def __init__(self, num_classes: int, *, top_k: int = 5, num_bins: int = 15) -> None:
        self.num_classes, self.top_k, self.num_bins = num_classes, top_k, num_bins
        self.reset()

    def reset(self) -> None:
        """Forget every batch."""
        self._parts: list[Scored] = []

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add one batch.

        Args:
            scores: ``[B, K]`` probabilities.
            labels: ``[B]`` int64.

        Raises:
            InputError: where the shapes disagree or a score is NaN.
        """
        if scores.ndim != 2 or scores.shape != (len(labels), self.num_classes):
            expected = f"[{len(labels)}, {self.num_classes}]"
            raise InputError("scores do not fit the labels", where=str(list(scores.shape)), expected=expected)
        # A NaN loses every comparison, so an image of NaN scores would rank its own class first and count as right.
        if bool(torch.isnan(scores).any()):
            raise InputError("the scores hold NaN", where="the model's output", remedy="check the weights")
        confidence, predicted = scores.max(1)
        truth = scores.gather(1, labels[:, None])[:, 0]
        kept = (labels, predicted, confidence.float(), truth.float(), rank_of_truth(scores, labels))
        self._parts.append(Scored(*(values.cpu() for values in kept)))

    def scored(self) -> Scored:
        """All images seen so far."""
        if not self._parts:
            empty = torch.zeros(0)
            return Scored(empty.long(), empty.long(), empty, empty, empty.long())
        columns = ("labels", "predicted", "confidence", "truth", "rank")
        return Scored(*(torch.cat([getattr(part, column) for part in self._parts]) for column in columns))

    def compute(self) -> dict[str, float]:
        """top1, top5 (or the given k, if there are more classes than that), macro_f1, nll, ece; NaN without images."""
        scored = self.scored()
        figures = per_class(confusion_matrix(scored.labels, scored.predicted, self.num_classes))
        metrics = {"top1": float(scored.is_right.double().mean())}
        if self.num_classes > self.top_k:
            metrics[f"top{self.top_k}"] = float((scored.rank < self.top_k).double().mean())
        metrics["macro_f1"] = float(figures.f1[figures.support > 0].mean())
        metrics["nll"] = float(scored.negative_log_likelihood.mean())
        metrics["ece"] = reliability(scored.confidence, scored.is_right, self.num_bins).error
        return metrics
