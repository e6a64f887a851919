"""Task-aligned assignment: the points that already say an object's class and its box best, learn it.

Feng et al. 2021 (TOOD), arXiv 2108.07755: a point's alignment with an object is score^alpha * IoU^beta; the k best
points inside of its box become positive, and their aimed score is the alignment, scaled so that the best point of each
object aims at its IoU. With k = 1 every object has one point, and no suppression is needed afterwards (Wang et al.
2024, arXiv 2405.14458).

Differs from the papers: an object that holds no point, as most do that are smaller than a cell of the finest map, takes
the nearest point of that map. It would teach nothing else, and its place would be taught as background.

B batch · P points · M objects of the picture that has most · K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.matching.padded import pad_targets
from saccade.ops.boxes import areas, paired_iou
from saccade.types import BoxTarget


class Aligned(NamedTuple):
    """What each point has to learn.

    Attributes:
        is_positive: ``[B, P]`` bool.
        owner: ``[B, P]`` int64, which object of its picture, where positive.
        boxes: ``[B, P, 4]`` the object's box, where positive.
        scores: ``[B, P, K]`` aimed scores in [0, 1]: zero but for the class of the object.
    """

    is_positive: Tensor
    owner: Tensor
    boxes: Tensor
    scores: Tensor


@dataclass(frozen=True, kw_only=True)
class AlignedAssigner(Config):
    """How many points learn an object, and what makes a point fit."""

    most: int = 10
    """Points per object; 1 for detection without suppression."""
    score_power: float = 0.5
    """Exponent alpha of the score."""
    iou_power: float = 6.0
    """Exponent beta of the IoU."""

    def __post_init__(self) -> None:
        if self.most < 1 or self.score_power < 0 or self.iou_power <= 0:
            raise ConfigError("most, score_power or iou_power is out of range", where="assigner")

    @torch.no_grad()
    def __call__(
        self,
        points: Tensor,
        boxes: Tensor,
        scores: Tensor,
        targets: Sequence[BoxTarget],
        *,
        finest: int | None = None,
    ) -> Aligned:
        """Assign points to objects.

        Args:
            points: ``[P, 2]`` x and y on the canvas.
            boxes: ``[B, P, 4]`` predicted.
            scores: ``[B, P, K]`` predicted, in [0, 1].
            targets: of B pictures, without crowds.
            finest: how many of the points, from the first on, are the finest map's: of these an object that holds no
                point takes the nearest. All of them where it is None.
        """
        batch, num_points, _ = scores.shape
        objects, labels, is_object = pad_targets(targets, boxes.device)
        is_object &= areas(objects) > 0
        values, owner = torch.zeros_like(scores), torch.zeros(batch, num_points, dtype=torch.int64, device=boxes.device)
        if not objects.shape[1]:
            return Aligned(owner > 0, owner, torch.zeros_like(boxes), values)
        # Few points lie in an object: everything but this first look is done for those pairs alone.
        fits = _is_inside(points, objects) & is_object[:, :, None]
        _admit_nearest(fits, points[:finest], objects, is_object)
        pairs = _Pairs(*torch.nonzero(fits).unbind(1))
        overlaps = paired_iou(boxes[pairs.image, pairs.point], objects[pairs.image, pairs.object])
        of_class = scores[pairs.image, pairs.point, labels[pairs.image, pairs.object]]
        alignment = of_class.pow(self.score_power) * overlaps.pow(self.iou_power)
        chosen = _best(alignment, pairs.image * objects.shape[1] + pairs.object, is_object.numel(), self.most)
        pairs, overlaps, alignment = _Pairs(*(part[chosen] for part in pairs)), overlaps[chosen], alignment[chosen]
        chosen = _one_owner(overlaps, pairs.image * num_points + pairs.point, pairs.object, owner.numel())
        pairs, overlaps, alignment = _Pairs(*(part[chosen] for part in pairs)), overlaps[chosen], alignment[chosen]
        row = pairs.image * objects.shape[1] + pairs.object
        owner[pairs.image, pairs.point] = pairs.object
        is_positive = torch.zeros_like(owner, dtype=torch.bool)
        is_positive[pairs.image, pairs.point] = True
        aimed = _scaled(alignment, overlaps, row, is_object.numel())
        values[pairs.image, pairs.point, labels[pairs.image, pairs.object]] = aimed
        pictures = torch.arange(batch, device=boxes.device)[:, None]
        return Aligned(is_positive, owner, objects[pictures, owner], values)


class _Pairs(NamedTuple):
    """Objects and points that lie in them, ``[N]`` each: which picture, which object, which point."""

    image: Tensor
    object: Tensor
    point: Tensor


def _is_inside(points: Tensor, objects: Tensor) -> Tensor:
    """Which points ``[P, 2]`` lie in which boxes ``[B, M, 4]``, ``[B, M, P]`` bool."""
    (across, down), (left, top, right, bottom) = points.unbind(1), objects[..., None].unbind(2)
    return (across > left) & (across < right) & (down > top) & (down < bottom)


def _admit_nearest(fits: Tensor, points: Tensor, objects: Tensor, is_object: Tensor) -> None:
    """Marks in ``fits`` ``[B, M, P]`` the nearest of some ``points`` ``[F, 2]`` for objects that none fits."""
    image, number = torch.nonzero(is_object & ~fits.any(2)).unbind(1)
    left, top, right, bottom = objects[image, number, :, None].unbind(1)
    distance = ((left + right) / 2 - points[:, 0]).square() + ((top + bottom) / 2 - points[:, 1]).square()
    fits[image, number, distance.argmin(1)] = True


def _best(alignment: Tensor, row: Tensor, num_rows: int, most: int) -> Tensor:
    """The indices of the ``most`` best pairs of each row, ``[N]`` each; rows rise."""
    counts = torch.bincount(row, minlength=num_rows)
    starts = counts.cumsum(0) - counts
    ranked = alignment.new_full((num_rows, max(int(counts.max()), 1)), -1.0)
    # Where nothing overlaps yet all alignments are zero, and any points inside will do.
    ranked[row, torch.arange(len(row), device=row.device) - starts[row]] = alignment
    values, places = ranked.topk(min(most, ranked.shape[1]), dim=1)
    return (starts[:, None] + places)[values >= 0]


def _one_owner(overlaps: Tensor, cell: Tensor, number: Tensor, num_cells: int) -> Tensor:
    """Which pairs stay ``[N]`` bool where a point was chosen by several: that with the largest IoU, then the first."""
    best = overlaps.new_zeros(num_cells).scatter_reduce(0, cell, overlaps, "amax")
    is_best = overlaps == best[cell]
    candidate = torch.where(is_best, number, torch.iinfo(number.dtype).max)
    first = number.new_full((num_cells,), torch.iinfo(number.dtype).max).scatter_reduce(0, cell, candidate, "amin")
    return is_best & (number == first[cell])


def _scaled(alignment: Tensor, overlaps: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Aimed scores ``[N]``: the alignment, scaled so that each object's best point aims at its best IoU."""
    highest, best = (part.new_zeros(num_rows).scatter_reduce(0, row, part, "amax") for part in (alignment, overlaps))
    return alignment / highest[row].clamp_min(1e-30) * best[row]
