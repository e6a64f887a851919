"""Boxes to objects, many to one, by overlap.

Girshick et al. 2014, arXiv 1311.2524 (one threshold); Ren et al. 2015, arXiv 1506.01497, section 3.1.2 (two thresholds,
and the boxes that overlap an object most are positive whatever the overlap).

R boxes · N objects
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.ops.boxes import box_iou, crowd_overlap
from saccade.types import BoxTarget

BACKGROUND = -1
"""Mark of a box that is no object."""
IGNORED = -2
"""Mark of a box that nothing is learned from."""
ON_CROWD = 0.5
"""Share of a box that has to lie on crowds for it to be ignored."""


class Assignment(NamedTuple):
    """What became of R boxes.

    Attributes:
        matched: ``[R]`` int64, index of the object among all of the target, ``BACKGROUND`` or ``IGNORED``.
        iou: ``[R]`` float32, largest overlap with an object that is no crowd.
    """

    matched: Tensor
    iou: Tensor


@dataclass(frozen=True, kw_only=True)
class IoUAssigner(Config):
    """Each box takes the object that it overlaps most, if it overlaps it enough."""

    positive: float = 0.5
    """Overlap from which a box is the object."""
    negative: float = 0.5
    """Overlap below which a box is background; boxes between the two thresholds are ignored."""
    keep_best: bool = False
    """Whether the boxes that overlap an object most are positive whatever the overlap. Such a box still takes the
    object that it overlaps most itself; where that is another one, the object is without a box of its own."""

    def __post_init__(self) -> None:
        if not 0 < self.negative <= self.positive <= 1:
            raise ConfigError(
                f"the thresholds are {self.negative} and {self.positive}",
                where="assigner",
                expected="0 < negative <= positive <= 1",
            )

    @torch.no_grad()
    def __call__(self, boxes: Tensor, target: BoxTarget) -> Assignment:
        """Assign boxes ``[R, 4]`` to the objects of one picture; boxes on crowds that match no object are ignored."""
        boxes = boxes.float()
        matched = torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
        best = boxes.new_zeros(len(boxes))
        objects = torch.nonzero(~target.crowd)[:, 0]
        if len(objects) and len(boxes):
            overlaps = box_iou(target.boxes[objects], boxes)  # [N, R]
            best, nearest = overlaps.max(dim=0)
            is_positive = best >= self.positive
            if self.keep_best:
                highest = overlaps.amax(dim=1, keepdim=True)
                is_positive |= ((overlaps == highest) & (highest > 0)).any(dim=0)
            matched.masked_fill_(best >= self.negative, IGNORED)
            matched = torch.where(is_positive, objects[nearest], matched)
        if len(objects) < len(target):
            on_crowd = crowd_overlap(boxes, target.boxes[target.crowd]).amax(dim=1) >= ON_CROWD
            matched = torch.where(on_crowd & (matched == BACKGROUND), IGNORED, matched)
        return Assignment(matched, best)
