"""What every explainer takes and returns.

T scores · B images · h, w any grid that covers the whole canvas
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from saccade.types import ExplainSpec, ImageBatch

ScoreFn = Callable[[Any], Tensor]
"""What is explained: the raw outputs of a model, to one number per image ``[B]``. Explainers see nothing else of the
task."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """The evidence that an explainer found.

    Attributes:
        values: ``[T, B, h, w]`` float32; cell (i, j) covers its share of the whole canvas. Signed where the method is.
        error: ``[T, B]`` relative: the completeness gap, or the standard error of a Monte-Carlo estimate; None where
            the method has neither.
        layer: name of the layer it was read from; None where it was read from pixels.
        negative: ``[T, B]`` share of the evidence that spoke against the score before any rectification; None where
            unknown.
        notes: one sentence per peculiarity worth telling the reader of the map.
    """

    values: Tensor
    error: Tensor | None = None
    layer: str | None = None
    negative: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Whatever precision the model or the caller's autocast left behind: numpy knows no bfloat16.
        for name in ("values", "error", "negative"):
            given: Tensor | None = getattr(self, name)
            if given is not None and given.dtype != torch.float32:
                object.__setattr__(self, name, given.float())


@runtime_checkable
class Explainer(Protocol):
    """A method with its hyperparameters: a small frozen dataclass, whose ``repr`` goes into the report.

    Attributes:
        name: what users call it.
        is_signed: whether negative values mean evidence against the score.
        is_class_agnostic: whether the map is the same whatever the score.
    """

    name: ClassVar[str]
    is_signed: ClassVar[bool]
    is_class_agnostic: ClassVar[bool]

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Explain every score on every image; the model is left exactly as it was found."""
        ...
