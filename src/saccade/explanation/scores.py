"""Score functions: intentions ("why this class?", "why this one and not that?") turned into one number per image.

Scores are logits: a probability also moves when *other* classes move, and its gradient vanishes as it comes close to
one (Simonyan et al. 2014, arXiv 1312.6034). ``probability_score`` is there for those who ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade.errors import ConfigError, ExplainError, InputError
from saccade.explanation.attribution import ScoreFn


@dataclass(frozen=True)
class ClassScore:
    """The logit of one class."""

    label: int

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""
        return _column(logits_of(outputs), self.label)


@dataclass(frozen=True)
class ContrastScore:
    """The logit of one class minus the logit of another: what speaks for the first and against the second."""

    label: int
    against: int

    def __post_init__(self) -> None:
        if self.label == self.against:
            raise ConfigError(
                f"class {self.label} is contrasted with itself", where="against", expected="two different classes"
            )

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""
        logits = logits_of(outputs)
        return _column(logits, self.label) - _column(logits, self.against)


@dataclass(frozen=True)
class ProbabilityScore:
    """The softmax probability of one class."""

    label: int

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""
        return _column(torch.softmax(logits_of(outputs).float(), dim=1), self.label)


@dataclass(frozen=True, eq=False)
class RegionScore:
    """How far the logit of one class lies above those of the others over a region of the picture, on average.

    Vinogradova et al. 2020, arXiv 2002.11434. Differs from it: the mean over the pixels, which does not grow with the
    region, and above the mean of the other classes: what is common to all logits of a pixel changes no label, and of
    two classes either logit may carry all the evidence.

    Attributes:
        label: the class.
        mask: ``[H, W]`` bool on the canvas, the region.
        against: the one other class; None: the mean of all others.
    """

    label: int
    mask: Tensor
    against: int | None = None

    def __post_init__(self) -> None:
        if self.label == self.against:
            raise ConfigError(
                f"class {self.label} is contrasted with itself", where="against", expected="two different classes"
            )
        if not bool(self.mask.any()):
            raise InputError("the region is empty", where="mask", expected="at least one pixel")

    def __repr__(self) -> str:
        rows, columns = torch.nonzero(self.mask, as_tuple=True)
        box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        against = "" if self.against is None else f", against={self.against}"
        return f"RegionScore(label={self.label}{against}, pixels={len(rows)}, box={box})"

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""
        logits = map_logits_of(outputs)
        if logits.shape[2:] != self.mask.shape:
            got = f"the region is {tuple(self.mask.shape)}, the canvas {tuple(logits.shape[2:])}"
            raise InputError(got, where="mask", expected="a region on the canvas")
        own = _column(logits, self.label)
        if self.against is not None:
            other = _column(logits, self.against)
        else:
            other = (logits.sum(dim=1) - own) / max(logits.shape[1] - 1, 1)
        return ((own - other).float() * self.weights.to(own.device)).sum(dim=(1, 2))

    @property
    def weights(self) -> Tensor:
        """``[H, W]`` float32 that sums to 1: where on the canvas the score is read."""
        return self.mask.float() / self.mask.sum()


def region_score(label: int, mask: Tensor, against: int | None = None) -> ScoreFn:
    """Why are the pixels of ``mask`` ``[H, W]`` of class ``label`` (and not ``against``)? Their mean logit above it."""
    return RegionScore(label, mask, against)


def class_score(label: int) -> ScoreFn:
    """Why class ``label``? Its logit."""
    return ClassScore(label)


def contrast_score(label: int, against: int) -> ScoreFn:
    """Why class ``label`` and not class ``against``? The difference of their logits."""
    return ContrastScore(label, against)


def probability_score(label: int) -> ScoreFn:
    """The softmax probability of class ``label``; its maps also show evidence against the other classes."""
    return ProbabilityScore(label)


def when_hidden(score: ScoreFn) -> ScoreFn:
    """The form of a score for pictures of which a part is hidden: its ``hidden``, or the score itself."""
    hidden: ScoreFn = getattr(score, "hidden", score)
    return hidden


def unbounded(score: ScoreFn) -> ScoreFn:
    """The form of a score that a softmax may be taken of: its ``unbounded`` (of shares), or the score itself."""
    free: ScoreFn = getattr(score, "unbounded", score)
    return free


def region_of(score: ScoreFn) -> Tensor | None:
    """The region ``[H, W]`` bool of the canvas that a score is about; None where it is about the whole picture."""
    mask = getattr(score, "mask", None)
    return mask if isinstance(mask, Tensor) else None


def logits_of(outputs: Any) -> Tensor:
    """The class logits ``[B, K]`` in what a classifier returns: the tensor itself, or its ``logits``.

    Raises:
        ExplainError: where neither is there.
    """
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ExplainError(
            f"the outputs are of type {type(outputs).__name__} and hold no class logits",
            expected="a tensor [B, K], or an object whose .logits is one",
            remedy="pass a score function that reads this type of outputs",
        )
    return logits


def map_logits_of(outputs: Any) -> Tensor:
    """The logits of every pixel ``[B, K, H, W]`` in what a segmenter returns: the tensor itself, or its ``logits``.

    Raises:
        ExplainError: where neither is there.
    """
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        raise ExplainError(
            f"the outputs are of type {type(outputs).__name__} and hold no class logits of pixels",
            expected="a tensor [B, K, H, W], or an object whose .logits is one",
            remedy="ask for a class of the whole picture instead of a region",
        )
    return logits


def _column(logits: Tensor, label: int) -> Tensor:
    if not 0 <= label < logits.shape[1]:
        raise InputError(f"class {label} does not exist", where="label", expected=f"0 to {logits.shape[1] - 1}")
    return logits[:, label]
