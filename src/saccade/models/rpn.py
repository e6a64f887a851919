"""Region proposal network: where in the picture is anything at all?

Ren et al. 2015, arXiv 1506.01497; over the levels of a pyramid Lin et al. 2016, arXiv 1612.03144. A small head slides
over every level and says of each anchor how likely it holds an object and how to move and stretch it. The likeliest of
each level are kept, and of those that overlap the likelier one. Differs from the papers: boxes that leave the picture
are cut and learned from, and smooth L1 is quadratic below 1/9, as published weights were trained.

B batch · L levels · D width · A anchors of all levels · R_b proposals of a picture · H, W canvas
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.losses import smooth_l1
from saccade.matching.assign import IoUAssigner
from saccade.matching.sample import BalancedSampler
from saccade.ops import anchors as grids
from saccade.ops.boxes import batched_nms, clip, decode, encode, is_large
from saccade.types import BoxTarget

MIN_SIDE = 1e-3
"""Shortest side of a proposal, in pixels."""


@dataclass(frozen=True, kw_only=True)
class AnchorConfig(Config):
    """The anchors of every cell of every level."""

    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    """Per level, finest first: square roots of the anchors' areas, in pixels of the canvas."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights over widths; every size comes in every ratio."""

    def __post_init__(self) -> None:
        count = {len(level) for level in self.sizes}
        if len(count) != 1 or 0 in count or not self.ratios:
            raise ConfigError("the levels have different numbers of anchors", where="anchors", expected="one per size")
        if min(self.ratios) <= 0 or min(min(level) for level in self.sizes) < 2:
            raise ConfigError("sizes or ratios are too small", where="anchors", expected="sizes from 2, ratios above 0")

    @property
    def per_cell(self) -> int:
        """Anchors of one cell."""
        return len(self.sizes[0]) * len(self.ratios)


@dataclass(frozen=True, kw_only=True)
class RPNConfig(Config):
    """A region proposal network: what it looks at, how much it keeps, what it learns from."""

    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """The boxes that it starts from."""
    depth: int = 1
    """3x3 convolutions before the scores."""
    before_nms: tuple[int, int] = (2000, 1000)
    """Likeliest boxes of each level, in training and in evaluation."""
    after_nms: tuple[int, int] = (2000, 1000)
    """Most proposals of one picture, in training and in evaluation."""
    nms_iou: float = 0.7
    """Of two boxes of one level that overlap more than this, the likelier stays."""
    assigner: IoUAssigner = field(default_factory=lambda: IoUAssigner(positive=0.7, negative=0.3, keep_best=True))
    """Which anchors are objects, in training."""
    sampler: BalancedSampler = field(default_factory=BalancedSampler)
    """How many anchors of one picture are learned from."""

    def __post_init__(self) -> None:
        if self.depth < 1 or min(*self.before_nms, *self.after_nms) < 1 or not 0 < self.nms_iou <= 1:
            raise ConfigError("depth, before_nms, after_nms or nms_iou is out of range", where="rpn")


class RPNOutputs(NamedTuple):
    """What the network says of every anchor.

    Attributes:
        objectness: ``[B, A]`` logits, level by level, finest first.
        codes: ``[B, A, 4]`` how to move and stretch each anchor.
        anchors: ``[A, 4]`` xyxy on the canvas.
    """

    objectness: Tensor
    codes: Tensor
    anchors: Tensor


class RPN(nn.Module):
    """A head that all levels share.

    Args:
        config: of the network.
        width: D of the pyramid.
    """

    def __init__(self, config: RPNConfig, width: int) -> None:
        super().__init__()
        self.config = config
        per_cell = config.anchors.per_cell
        self.convs = nn.Sequential()
        for _ in range(config.depth):
            self.convs.extend([nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)])
        self.objectness = nn.Conv2d(width, per_cell, 1)
        self.codes = nn.Conv2d(width, 4 * per_cell, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor], canvas: tuple[int, int]) -> RPNOutputs:
        """Levels ``[B, D, h_l, w_l]`` of a canvas ``(H, W)`` to scores and codes of all anchors."""
        objectness, codes = [], []
        for level in levels:
            seen = self.convs(level)
            objectness.append(self.objectness(seen).permute(0, 2, 3, 1).flatten(1))
            codes.append(self.codes(seen).permute(0, 2, 3, 1).flatten(1))
        anchors = torch.cat([self._anchors(index, level, canvas) for index, level in enumerate(levels)])
        return RPNOutputs(torch.cat(objectness, 1), torch.cat(codes, 1).reshape(len(levels[0]), -1, 4), anchors)

    def _anchors(self, index: int, level: Tensor, canvas: tuple[int, int]) -> Tensor:
        config = self.config.anchors
        height, width = int(level.shape[-2]), int(level.shape[-1])
        # Whole numbers, as published weights expect them: the top level of a pyramid need not divide the canvas.
        stride = (canvas[0] // height, canvas[1] // width)
        return grids.spread(grids.shapes(config.sizes[index], config.ratios, level.device), (height, width), stride)

    @torch.no_grad()
    def propose(self, outputs: RPNOutputs, levels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The proposals ``[R_b, 4]`` of each picture, likeliest first.

        Args:
            outputs: what this network said.
            levels: what it was said of.
            sizes: ``(h, w)`` of each picture on the canvas; proposals are cut there.
        """
        most, kept = (pair[0 if self.training else 1] for pair in (self.config.before_nms, self.config.after_nms))
        counts = [int(level.shape[-2] * level.shape[-1]) * self.config.anchors.per_cell for level in levels]
        scores, places, numbers, start = [], [], [], 0
        for number, part in enumerate(torch.split(outputs.objectness.float(), counts, dim=1)):
            best, index = part.topk(min(most, counts[number]), dim=1)
            scores.append(best)
            places.append(index + start)
            numbers.append(torch.full_like(index[0], number))
            start += counts[number]
        place, level = torch.cat(places, 1), torch.cat(numbers)
        # Only what may become a proposal is decoded.
        codes = outputs.codes.gather(1, place[..., None].expand(-1, -1, 4)).float()
        boxes = decode(codes, outputs.anchors[place])
        found = []
        for own, score, size in zip(boxes, torch.cat(scores, 1), sizes, strict=True):
            own = clip(own, size)
            large = torch.nonzero(is_large(own, MIN_SIDE))[:, 0]
            own, score = own[large], score[large]
            found.append(own[batched_nms(own, score.sigmoid(), level[large], self.config.nms_iou)[:kept]])
        return found

    def loss(self, outputs: RPNOutputs, targets: Sequence[BoxTarget]) -> dict[str, Tensor]:
        """``rpn_objectness`` and ``rpn_boxes`` ``[]``: means over the sampled anchors of the batch."""
        scores, wanted, codes, aims = [], [], [], []
        for objectness, own_codes, target in zip(outputs.objectness, outputs.codes, targets, strict=True):
            matched = self.config.assigner(outputs.anchors, target).matched
            positive, negative = self.config.sampler(matched)
            chosen = torch.cat([positive, negative])
            scores.append(objectness[chosen].float())
            wanted.append((matched[chosen] >= 0).float())
            codes.append(own_codes[positive])
            aims.append(encode(target.boxes[matched[positive]], outputs.anchors[positive]))
        sampled = torch.cat(scores)
        count = max(len(sampled), 1)
        objectness_loss = F.binary_cross_entropy_with_logits(sampled, torch.cat(wanted), reduction="sum") / count
        return {
            "rpn_objectness": objectness_loss,
            "rpn_boxes": smooth_l1(torch.cat(codes), torch.cat(aims), beta=1 / 9) / count,
        }
