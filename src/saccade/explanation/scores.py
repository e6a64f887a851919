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


def class_score(label: int) -> ScoreFn:
    """Why class ``label``? Its logit."""
    return ClassScore(label)


def contrast_score(label: int, against: int) -> ScoreFn:
    """Why class ``label`` and not class ``against``? The difference of their logits."""
    return ContrastScore(label, against)


def probability_score(label: int) -> ScoreFn:
    """The softmax probability of class ``label``; its maps also show evidence against the other classes."""
    return ProbabilityScore(label)


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


def _column(logits: Tensor, label: int) -> Tensor:
    if not 0 <= label < logits.shape[1]:
        raise InputError(f"class {label} does not exist", where="label", expected=f"0 to {logits.shape[1] - 1}")
    return logits[:, label]
