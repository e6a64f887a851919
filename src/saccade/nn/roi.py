"""The part of a map under a box, brought to a fixed size.

RoI pooling: Girshick 2015, arXiv 1504.08083 (the largest value of whole cells). RoIAlign: He et al. 2017, arXiv
1703.06870 (bilinear samples, nothing rounded). Which level of a pyramid a box reads: Lin et al. 2016, arXiv 1612.03144,
equation 1.

R boxes · C width · S side of the result · L levels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

RoIKind = Literal["align", "pool"]


class RoIExtractor(nn.Module):
    """Boxes to patches of the map that suits their size.

    Args:
        size: S, cells per side of a patch.
        strides: pixels per cell of each map, finest first, powers of two.
        kind: RoIAlign or RoI pooling.
        sampling: samples per side of a cell, of RoIAlign; 0 takes as many as the map has cells there.
        is_aligned: whether RoIAlign takes the middle of a cell for its place, which is right; networks published before
            2019 take its corner.
        canonical: side in pixels of a box that reads the level of stride 16; half as long, half the stride.
    """

    def __init__(
        self,
        size: int,
        strides: Sequence[int],
        kind: RoIKind = "align",
        sampling: int = 2,
        *,
        is_aligned: bool = True,
        canonical: float = 224,
    ) -> None:
        super().__init__()
        self.size, self.strides, self.kind = size, tuple(strides), kind
        self.sampling, self.is_aligned, self.canonical = sampling, is_aligned, canonical

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Patches ``[R, C, S, S]``, of the maps' type.

        Args:
            maps: L maps ``[B, C, h, w]``, finest first; levels beyond ``strides`` are not read.
            boxes: ``[R, 4]`` xyxy on the canvas.
            image: ``[R]`` int64, which picture of the batch each box is in.
        """
        regions = torch.cat([image[:, None].float(), boxes.float()], dim=1)
        if len(self.strides) == 1:
            return self._extract(maps[0], regions, self.strides[0])
        levels = self.levels(boxes)
        patches = maps[0].new_empty(len(boxes), int(maps[0].shape[1]), self.size, self.size)
        for level, stride in enumerate(self.strides):
            chosen = torch.nonzero(levels == level)[:, 0]
            # Also where there are none: every map then has a gradient, if of zeros, whatever the boxes are.
            patches = patches.index_copy_(0, chosen, self._extract(maps[level], regions[chosen], stride))
        return patches

    def levels(self, boxes: Tensor) -> Tensor:
        """Index of the map that each box ``[R, 4]`` reads, ``[R]`` int64."""
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).float().clamp_min(0).sqrt()
        # The small number keeps boxes of exactly the canonical size from being decided by rounding.
        exponents = torch.floor(4 + torch.log2(sides / self.canonical) + 1e-6)
        finest, coarsest = (math.log2(stride) for stride in (self.strides[0], self.strides[-1]))
        return (exponents.clamp(finest, coarsest) - finest).long()

    def _extract(self, level: Tensor, regions: Tensor, stride: int) -> Tensor:
        # The kernels want maps and regions of one type, and a place in the picture needs more digits than half types
        # have: in bfloat16 neighbours are 8 pixels apart from 1024 on.
        given = level.float() if level.dtype in {torch.bfloat16, torch.float16} else level
        regions = regions.to(given.dtype)
        if self.kind == "pool":
            patches: Tensor = roi_pool(given, regions, self.size, 1 / stride)
        else:
            patches = roi_align(given, regions, self.size, 1 / stride, self.sampling, self.is_aligned)
        return patches.to(level.dtype)
