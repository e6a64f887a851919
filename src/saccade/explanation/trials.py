"""What a verdict is measured with: cells of the picture, masks of both games, areas under curves, moving answers.

T scores · B images · N cells · P inner points of a curve · K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ExplainError
from saccade.explanation.attribution import ScoreFn
from saccade.explanation.boxes import enough_for
from saccade.explanation.faithfulness import keep_masks, mirrored_ties, orders
from saccade.explanation.record import mixing_layer
from saccade.explanation.scores import logits_of, when_hidden
from saccade.types import ImageBatch


class Answers(NamedTuple):
    """What a model says of every probe.

    Attributes:
        values: ``[1, B, probes, K]`` logits, or ``[T, B, probes, 1]`` scores where the outputs hold no logits of the
            whole picture.
        is_logits: which of the two.
    """

    values: Tensor
    is_logits: bool


def answers_of(model: nn.Module, images: ImageBatch, probes: Tensor, scores: Sequence[ScoreFn]) -> Answers:
    """The answers to probes ``[B, probes, 3, H, W]`` of the pictures; the first probe is the whole picture."""
    pixels, found, is_logits = probes.flatten(0, 1), [], True
    asked = enough_for(model, scores)
    with torch.no_grad():
        # Where the pictures of a batch are mixed, probes are kept apart.
        for part in torch.split(pixels, len(pixels) if mixing_layer(model) is None else 1):
            outputs = asked(images.with_pixels(part))
            try:
                found.append(logits_of(outputs)[None])
            except ExplainError:
                found.append(torch.stack([when_hidden(score)(outputs) for score in scores])[..., None])
                is_logits = False
    values = torch.cat(found, dim=1)
    return Answers(values.double().cpu().reshape(len(values), *probes.shape[:2], -1), is_logits)


def movement(answers: Answers) -> Tensor:
    """``[1 or T, B]``: root mean square over the probes of how far the answer moves from that to the whole picture."""
    values = answers.values
    if answers.is_logits and values.shape[-1] > 1:
        # What is common to all logits changes no answer.
        values = values - values.mean(-1, keepdim=True)
    length: Tensor = (values[:, :, 1:] - values[:, :, :1]).square().sum(-1).mean(-1).sqrt()
    return length


def cells_of(images: ImageBatch, cells: int) -> Tensor:
    """``[B, H, W]`` int64: the cell of each pixel; the number after the last cell is padding."""
    height, width = images.pixels.shape[-2:]
    grids = []
    for true_height, true_width in images.sizes:
        rows = (torch.arange(height) * cells // true_height).clamp(max=cells - 1)
        columns = (torch.arange(width) * cells // true_width).clamp(max=cells - 1)
        grid = rows[:, None] * cells + columns[None, :]
        grid[true_height:] = cells**2
        grid[:, true_width:] = cells**2
        grids.append(grid)
    return torch.stack(grids)


def pooled(values: Tensor, cell: Tensor, number: int) -> Tensor:
    """Mean of maps ``[T, B, h, w]`` in each cell, ``[T, B, N]``."""
    large = F.interpolate(values.cpu(), cell.shape[-2:], mode="bilinear", align_corners=False).flatten(2)
    index = cell.flatten(1).expand(len(values), -1, -1)
    total = torch.zeros(*values.shape[:2], number + 1).scatter_add_(-1, index, large)
    area = torch.zeros(*values.shape[:2], number + 1).scatter_add_(-1, index, torch.ones_like(large))
    return (total / area.clamp(min=1))[..., :number]


def strengths(values: Tensor, scores: Sequence[ScoreFn]) -> Tensor:
    """Maps ``[T, B, h, w]`` as places are ranked by them: where evidence counts either way, by its size."""
    values = values.float().nan_to_num(0.0, 0.0, 0.0)
    is_two_sided = torch.tensor([getattr(score, "is_two_sided", False) for score in scores], device=values.device)
    return torch.where(is_two_sided[:, None, None, None], values.abs(), values)


def both_games(values: Tensor, inner: list[int], seed: int) -> Tensor:
    """Keep masks ``[2 P, N]`` of the deletion, then the insertion, of one map; ties in one random order, mirrored."""
    generator = torch.Generator().manual_seed(seed)
    order = orders(values.flatten(), 1, generator)
    deleted = keep_masks(order, inner, is_deletion=True)[0]
    return torch.cat([deleted, keep_masks(mirrored_ties(order, values), inner, is_deletion=False)[0]])


def areas(
    seen: Tensor, inner: list[int], number: int, random_orders: int, *, has_region: bool = False
) -> dict[str, float]:
    """Figures from the scores ``[M]`` of: whole, blank, random deletions, centre (both), map (both), region (both)."""
    whole, blank = seen[:1], seen[1:2]
    fractions = torch.tensor([0, *inner, number], dtype=torch.float64) / number
    points = len(inner)
    runs = seen[2:].reshape(-1, points)
    runs, region = (runs[:-2], runs[-2:]) if has_region else (runs, runs[:0])

    def deleted(run: Tensor) -> float:
        return float(torch.trapezoid(torch.cat([whole, run, blank]), fractions))

    def inserted(run: Tensor) -> float:
        return float(torch.trapezoid(torch.cat([blank, run, whole]), fractions))

    control = [deleted(run) for run in runs[:random_orders]]
    span = float(seen.max() - seen.min())
    figures = {
        "deletion": deleted(runs[-2]),
        "insertion": inserted(runs[-1]),
        "deletion_random": sum(control) / len(control),
        "deletion_centre": deleted(runs[-4]),
        "insertion_centre": inserted(runs[-3]),
        "score": float(whole),
        "score_blank": float(blank),
        "score_range": span,
    }
    unit = span if span > 0 else 1.0
    figures["advantage"] = (figures["insertion"] - figures["deletion"]) / unit
    # Insertion by an order shows what deletion by its mirror image shows, so each pair has an advantage of its own.
    half = random_orders // 2
    by_chance = [(one - other) / unit for one, other in zip(control[:half], control[half:], strict=True)]
    figures["advantage_chance"] = (sum(value**2 for value in by_chance) / half) ** 0.5
    if has_region:
        figures["advantage_region"] = (inserted(region[1]) - deleted(region[0])) / unit
    figures["advantage_centre"] = (figures["insertion_centre"] - figures["deletion_centre"]) / unit
    return figures
