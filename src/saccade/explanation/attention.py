"""Explanations by attention: rollout, and relevance by attention times gradient.

Rollout: Abnar & Zuidema 2020, arXiv 2005.00928. Relevance: Chefer et al. 2021, arXiv 2103.15679 (self-attention rule).

Both multiply one matrix per block. Only the row of the token that is read out is needed, so it is carried from the last
block to the first: a vector times a matrix per block.

T scores · B images · N tokens · P prefix tokens · h, w grid
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ExplainError
from saccade.explanation.attribution import Attribution, ScoreFn
from saccade.explanation.perturbation import Precision
from saccade.explanation.queries import query_relevance
from saccade.explanation.record import exact, recording, unwrap
from saccade.explanation.rounded import can_round, maps_agree, remember, remembered, rounding
from saccade.types import ExplainSpec, ImageBatch

FEWEST_ROUNDED = 4
"""Pictures below which trying whether rounding is harmless costs more than it saves."""


@dataclass(frozen=True)
class AttentionRollout:
    """How much each patch flows into the token that is read out, if attention were all that mixes; any class.

    Attention is averaged over heads and, for the residual connection, with the identity.
    """

    name: ClassVar[str] = "rollout"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = True
    shares_forward: ClassVar[bool] = True

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the grid of patches, the same for every score that is read at the same place."""
        check_attention(spec)
        with recording(model, attention=spec.attention, with_gradients=False) as record:
            record.run(images)
            matrices = [attention.float().mean(dim=1) for attention in record.attention()]  # [B, N, N]
        places = _places(scores, images, spec)
        num_prefix, has_class_token = spec.attention[0].num_prefix, spec.has_class_token
        starts = [None] if places is None else list(places.to(matrices[0]))
        rows = [rollout_row(matrices, num_prefix, has_class_token, start) for start in starts]
        values = _on_grid(torch.stack([row.expand(len(images), -1) for row in rows]), images, spec)
        return Attribution(values.expand(len(scores), *values.shape[1:]).clone())


@dataclass(frozen=True)
class AttentionRelevance:
    """Attention times its gradient, positive part, gathered through all blocks: what each patch gave to the score.

    The gradient is that of the probabilities after the softmax, and all heads are averaged after rectification.

    Attributes:
        precision: ``auto`` lets the model compute in bfloat16 where that is fast, there are several pictures, and its
            first map stayed what it was; ``float32`` never.
    """

    precision: Precision = "auto"

    name: ClassVar[str] = "relevance"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = False
    shares_forward: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the grid of patches; of a detector with queries, on that of what they look at."""
        if spec.queries is not None:
            return query_relevance(model, images, scores, spec)
        check_attention(spec)
        if self.precision == "auto" and len(images) >= FEWEST_ROUNDED and can_round(model, images.pixels.device):
            is_agreed = remembered(unwrap(model))
            if is_agreed is None:
                first = images[0]
                exact = _relevance(model, first, scores, spec)
                is_agreed = maps_agree(exact, _relevance(model, first, scores, spec, is_rounded=True))
                remember(unwrap(model), is_agreed=is_agreed)
            if is_agreed:
                return Attribution(_relevance(model, images, scores, spec, is_rounded=True), notes=("in bfloat16",))
        return Attribution(_relevance(model, images, scores, spec))


def _relevance(
    model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec, *, is_rounded: bool = False
) -> Tensor:
    """``[T, B, h, w]``."""
    num_prefix = spec.attention[0].num_prefix
    places = _places(scores, images, spec)
    rows: list[Tensor] = []
    with recording(model, attention=spec.attention) as record:
        with rounding(images.pixels.device, is_on=is_rounded):
            record.run(images)
        attention = record.attention()
        for gradients in record.gradients(scores, attention):
            matrices = [
                (a.detach().float() * g.float()).clamp_min(0).mean(dim=2)  # [t, B, N, N]
                for a, g in zip(attention, gradients, strict=True)
            ]
            done = sum(len(row) for row in rows)
            start = None if places is None else places[done : done + len(matrices[0])].to(matrices[0])
            rows.append(relevance_row(matrices, num_prefix, spec.has_class_token, start))
    return _on_grid(torch.cat(rows), images, spec)


@exact()
def rollout_row(
    matrices: Sequence[Tensor], num_prefix: int, has_class_token: bool, start: Tensor | None = None
) -> Tensor:
    """The row ``[..., N]`` of the rolled-out attention ``[..., N, N]`` of the token read out; sums to 1.

    Args:
        matrices: of the blocks, in the order of the forward pass.
        num_prefix: P.
        has_class_token: whether token 0 is read out; else the mean of the patches.
        start: weights ``[..., N]`` with which the tokens are read out instead.
    """
    row, blocks = _read_out(matrices, num_prefix, has_class_token)
    row = row if start is None else start
    for matrix in reversed(blocks):
        row = (row + (row[..., None, :] @ matrix)[..., 0, :]) / 2
    return row


@exact()
def relevance_row(
    matrices: Sequence[Tensor], num_prefix: int, has_class_token: bool, start: Tensor | None = None
) -> Tensor:
    """The row ``[..., N]`` of R - I, where R starts as I and becomes R + MR for each matrix ``[..., N, N]``.

    With attention pooling the row is that of the pooling matrix times R. Arguments as of ``rollout_row``.
    """
    read, blocks = _read_out(matrices, num_prefix, has_class_token)
    start = read if start is None else start
    row = start
    for matrix in reversed(blocks):
        row = row + (row[..., None, :] @ matrix)[..., 0, :]
    # A pooling query is no patch: its own attention to the patches is evidence, not the identity.
    return row if len(blocks) < len(matrices) else row - start


def check_attention(spec: ExplainSpec) -> None:
    """Refuse models without observable attention.

    Raises:
        ExplainError: naming a method that works.
    """
    if not spec.attention:
        raise ExplainError(
            "this model has no attention that can be observed", remedy="use method='hirescam' or 'gradcam'"
        )


def _read_out(matrices: Sequence[Tensor], num_prefix: int, has_class_token: bool) -> tuple[Tensor, Sequence[Tensor]]:
    """The weights ``[..., N]`` with which the head reads the tokens, and the matrices of the blocks before it."""
    last = matrices[-1]
    if last.shape[-2] != last.shape[-1]:  # attention pooling: few queries look at all tokens
        read = last.mean(dim=-2)
        if len(matrices) > 1:  # it may look at the patches only
            read = F.pad(read, (matrices[-2].shape[-1] - read.shape[-1], 0))
        return read, matrices[:-1]
    start = last.new_zeros(*last.shape[:-2], last.shape[-1])
    if has_class_token:
        start[..., 0] = 1
    else:
        start[..., num_prefix:] = 1 / (last.shape[-1] - num_prefix)
    return start, matrices


def _places(scores: Sequence[ScoreFn], images: ImageBatch, spec: ExplainSpec) -> Tensor | None:
    """Weights ``[T, 1, N]`` of the tokens where each score is read; None where all scores read the whole picture."""
    given = [getattr(score, "weights", None) for score in scores]
    if all(weights is None for weights in given):
        return None
    canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
    site, rows = spec.attention[0], []
    for weights in given:
        everywhere = torch.ones(canvas) if weights is None else weights.float().cpu()
        pooled = F.adaptive_avg_pool2d(everywhere[None, None], site.grid(canvas)).flatten()
        rows.append(F.pad(pooled / pooled.sum(), (site.num_prefix, 0)))
    return torch.stack(rows)[:, None]


def _on_grid(rows: Tensor, images: ImageBatch, spec: ExplainSpec) -> Tensor:
    """Rows ``[T, B, N]`` to maps ``[T, B, h, w]`` without the prefix tokens."""
    site = spec.attention[0]
    height, width = site.grid((int(images.pixels.shape[-2]), int(images.pixels.shape[-1])))
    patches = rows[..., site.num_prefix :]
    if patches.shape[-1] != height * width:
        raise ExplainError(
            f"{patches.shape[-1]} patch tokens do not fill a grid of {height}x{width}",
            where=f"attention {site.path!r}",
            remedy="correct num_prefix or grid in the model's explain_spec",
        )
    return patches.reshape(*patches.shape[:-1], height, width)
