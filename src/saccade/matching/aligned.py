"""Task-aligned assignment: the points that already say an object's class and its box best, learn it.

Feng et al. 2021 (TOOD), arXiv 2108.07755: a point's alignment with an object is score^alpha * IoU^beta; the k best
points inside of its box become positive, and their aimed score is the alignment, scaled so that the best point of each
object aims at its IoU. With k = 1 every object has one point, and no suppression is needed afterwards (Wang et al.
2024, arXiv 2405.14458).

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
    def __call__(self, points: Tensor, boxes: Tensor, scores: Tensor, targets: Sequence[BoxTarget]) -> Aligned:
        """Assign points to objects.

        Args:
            points: ``[P, 2]`` x and y on the canvas.
            boxes: ``[B, P, 4]`` predicted.
            scores: ``[B, P, K]`` predicted, in [0, 1].
            targets: of B pictures, without crowds.
        """
        batch, num_points = scores.shape[:2]
        objects, labels, is_object = pad_targets(targets, boxes.device)
        is_object &= areas(objects) > 0
        if not objects.shape[1]:
            zeros = torch.zeros_like(scores)
            return Aligned(zeros[..., 0] > 0, zeros[..., 0].long(), torch.zeros_like(boxes), zeros)
        overlaps = paired_iou(boxes[:, None], objects[:, :, None])  # [B, M, P]
        of_class = scores.mT.gather(1, labels[:, :, None].expand(-1, -1, num_points))  # [B, M, P]
        alignment = of_class.pow(self.score_power) * overlaps.pow(self.iou_power)
        is_inside = (points > objects[:, :, None, :2]).all(-1) & (points < objects[:, :, None, 2:]).all(-1)
        is_inside &= is_object[:, :, None]
        chosen = self._best(alignment, is_inside)
        owner, is_positive = _one_owner(chosen, overlaps)
        aimed = _scaled(
            alignment, overlaps, chosen & (owner[:, None] == torch.arange(len(objects[0]))[:, None].to(owner))
        )
        pictures = torch.arange(batch, device=boxes.device)[:, None]
        values = torch.zeros_like(scores)
        values[pictures, torch.arange(num_points, device=boxes.device)[None], labels[pictures, owner]] = (
            aimed.gather(1, owner[:, None])[:, 0] * is_positive
        )
        return Aligned(is_positive, owner, objects[pictures, owner], values)

    def _best(self, alignment: Tensor, is_inside: Tensor) -> Tensor:
        """The ``most`` best points inside of each object, ``[B, M, P]`` bool."""
        # Where nothing overlaps yet all alignments are zero: any points inside will do, rather than ones outside.
        ranked = torch.where(is_inside, alignment, -1.0)
        places = ranked.topk(min(self.most, ranked.shape[-1]), dim=-1).indices
        return torch.zeros_like(is_inside).scatter_(2, places, value=True) & is_inside


def _one_owner(chosen: Tensor, overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """The object of each point ``[B, P]``, that with the largest IoU of those that chose it, and whether any did."""
    owner = torch.where(chosen, overlaps, -1.0).argmax(1)
    return owner, chosen.any(1)


def _scaled(alignment: Tensor, overlaps: Tensor, chosen: Tensor) -> Tensor:
    """Aimed scores ``[B, M, P]``: the alignment, scaled so that each object's best point aims at its best IoU."""
    kept = alignment * chosen
    highest = kept.amax(-1, keepdim=True)
    best = (overlaps * chosen).amax(-1, keepdim=True)
    return kept / highest.clamp_min(1e-30) * best
