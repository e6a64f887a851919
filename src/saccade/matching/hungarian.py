"""Queries to objects, one to one, at the least total cost.

Carion et al. 2020 (DETR), arXiv 2005.12872, section 3.1; Kuhn 1955. The class's part of the cost for sigmoid scores:
Zhu et al. 2020, arXiv 2010.04159.

Costs are computed for the whole batch at once, each picture's queries against its own objects only: B x Q x M numbers,
never B x Q x (objects of the batch). All layers of a decoder can be matched as one batch.

B batch · Q queries · K classes · M objects of the picture that has most · R pairs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.matching.padded import pad_targets
from saccade.ops.boxes import from_centres, generalized_iou, to_centres
from saccade.types import BoxTarget


class Objects(NamedTuple):
    """The objects of a batch, every picture filled up to M.

    Attributes:
        labels: ``[B, M]`` int64.
        boxes: ``[B, M, 4]`` centre x, y, width, height, as shares of the extent.
        is_object: ``[B, M]`` bool, False where filled up.
    """

    labels: Tensor
    boxes: Tensor
    is_object: Tensor

    @classmethod
    def of(cls, targets: Sequence[BoxTarget], extent: Tensor) -> Objects:
        """The objects of targets whose crowds are gone.

        Args:
            targets: of B pictures, on the canvas.
            extent: ``[B, 2]`` height and width, in pixels of the canvas, that the boxes are shares of.
        """
        corners, labels, is_object = pad_targets(targets, extent.device)
        sides = extent.float().flip(-1).repeat(1, 2)[:, None]
        return cls(labels, to_centres(corners / sides), is_object)

    def repeat(self, count: int) -> Objects:
        """The same objects ``count`` times, batch after batch."""
        return Objects(*(part.repeat(count, *[1] * (part.ndim - 1)) for part in self))


class Pairs(NamedTuple):
    """Who learns what.

    Attributes:
        image: ``[R]`` int64, index of the picture.
        query: ``[R]`` int64.
        object: ``[R]`` int64, index of the object in its picture.
    """

    image: Tensor
    query: Tensor
    object: Tensor


@dataclass(frozen=True, kw_only=True)
class HungarianMatcher(Config):
    """What a pair of query and object costs."""

    scores: Literal["softmax", "sigmoid"] = "softmax"
    """Minus the class's probability, or, for sigmoids, the focal loss that saying yes costs more than saying no."""
    distance: Literal["l1", "l2"] = "l1"
    """How far two boxes are apart: the sum of the absolute or of the squared differences of their four numbers."""
    class_cost: float = 1.0
    """Weight of the class."""
    box_cost: float = 5.0
    """Weight of the distance."""
    giou_cost: float = 2.0
    """Weight of minus the generalised IoU."""

    def __post_init__(self) -> None:
        costs = (self.class_cost, self.box_cost, self.giou_cost)
        if min(costs) < 0 or not sum(costs):
            raise ConfigError(f"the costs are {costs}", where="matcher", expected="at least 0, one of them above")

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, objects: Objects) -> Pairs:
        """The cheapest pairs of every picture, in the order of pictures and queries.

        Args:
            logits: ``[B, Q, K]``, with ``softmax`` ``[B, Q, K + 1]``.
            boxes: ``[B, Q, 4]`` as those of the objects.
            objects: of B pictures.
        """
        counts = objects.is_object.sum(1).tolist()
        costs = self.costs(logits, boxes, objects).cpu().numpy()
        image, query, chosen = [], [], []
        for index, count in enumerate(counts):
            rows, columns = linear_sum_assignment(costs[index, :, :count])
            image.extend([index] * len(rows))
            query.extend(rows.tolist())
            chosen.extend(columns.tolist())
        return Pairs(*torch.tensor([image, query, chosen], dtype=torch.int64, device=boxes.device))

    def costs(self, logits: Tensor, boxes: Tensor, objects: Objects) -> Tensor:
        """What each pair costs, ``[B, Q, M]`` float32; arguments as of the call."""
        logits, boxes = logits.float(), boxes.float()
        per_class = _probability_cost(logits) if self.scores == "softmax" else _focal_cost(logits)
        labels = objects.labels[:, None].expand(-1, logits.shape[1], -1)
        total = self.class_cost * per_class.gather(2, labels)
        ours, theirs = boxes[:, :, None], objects.boxes[:, None]
        # One coordinate after the other: four times less memory, and no slower.
        gaps = ((ours[..., i] - theirs[..., i]) for i in range(4))
        total += self.box_cost * sum(gap.abs() if self.distance == "l1" else gap.square() for gap in gaps)
        if self.giou_cost:
            total -= self.giou_cost * generalized_iou(from_centres(ours), from_centres(theirs))
        # A network gone astray must be told by the loss, which stays not finite, and not by the solver.
        return total.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)


def _probability_cost(logits: Tensor) -> Tensor:
    return -logits.softmax(-1)


def _focal_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    scores = logits.sigmoid()
    yes = -alpha * (1 - scores) ** gamma * torch.nn.functional.logsigmoid(logits)
    no = -(1 - alpha) * scores**gamma * torch.nn.functional.logsigmoid(-logits)
    return yes - no
