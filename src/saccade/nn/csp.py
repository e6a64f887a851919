"""Cross-stage partial blocks: half of the channels take the long way through small residual steps.

CSPNet: Wang et al. 2019, arXiv 1911.11929. Spatial pyramid pooling: He et al. 2014, arXiv 1406.4729, as three pools
in a row, each of which sees what the one before left. Pyramid with a way down and a way up again: Liu et al. 2018
(PANet), arXiv 1803.01534.

B batch · C width · h, w grid · L levels, finest first
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.nn.conv import ConvNorm


class ResidualStep(nn.Module):
    """Two 3x3 convolutions around which the input is carried, ``[B, C, h, w]`` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width, activation=nn.SiLU)
        self.second = ConvNorm(width, width, activation=nn.SiLU)

    def forward(self, maps: Tensor) -> Tensor:
        """The maps plus what the two convolutions make of them."""
        stepped: Tensor = maps + self.second(self.first(maps))
        return stepped


class PartialBlock(nn.Module):
    """Half of the channels pass residual steps, the other half goes around; every step's result is read again.

    Args:
        num_in: width of what comes in.
        num_out: width of what goes out; each half has half of it.
        depth: number of residual steps.
    """

    def __init__(self, num_in: int, num_out: int, depth: int = 1) -> None:
        super().__init__()
        half = num_out // 2
        self.split = ConvNorm(num_in, 2 * half, 1, activation=nn.SiLU)
        self.steps = nn.ModuleList(ResidualStep(half) for _ in range(depth))
        self.join = ConvNorm((2 + depth) * half, num_out, 1, activation=nn.SiLU)

    def forward(self, maps: Tensor) -> Tensor:
        """``[B, C_in, h, w]`` to ``[B, C_out, h, w]``."""
        parts = list(self.split(maps).chunk(2, dim=1))
        for step in self.steps:
            parts.append(step(parts[-1]))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


class PoolPyramid(nn.Module):
    """What lies within 5, 9 and 13 cells of each cell, beside the cell itself, ``[B, C, h, w]`` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.narrow = ConvNorm(width, half, 1, activation=nn.SiLU)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.join = ConvNorm(4 * half, width, 1, activation=nn.SiLU)

    def forward(self, maps: Tensor) -> Tensor:
        """The same size; each cell has seen its wide surroundings."""
        parts = [self.narrow(maps)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


class PartialBackbone(nn.Module):
    """Stem and four stages, each halving the grid.

    Args:
        widths: channels of stem and stages, at strides 2, 4, 8, 16, 32.
        depths: residual steps of the stages.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.stem = ConvNorm(3, widths[0], stride=2, activation=nn.SiLU)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvNorm(num_in, num_out, stride=2, activation=nn.SiLU), PartialBlock(num_out, num_out, depth)
            )
            for num_in, num_out, depth in zip(widths, widths[1:], depths, strict=False)
        )
        self.pyramid = PoolPyramid(widths[-1])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pixels ``[B, 3, H, W]`` to maps at strides 8, 16 and 32."""
        maps, found = self.stem(pixels), []
        for stage in self.stages:
            maps = stage(maps)
            found.append(maps)
        return [*found[1:-1], self.pyramid(found[-1])]


class TwoWayPyramid(nn.Module):
    """Coarse maps tell finer ones what is there, then fine ones tell coarser ones where.

    Args:
        channels: widths of the L maps, finest first; those that go out are the same.
        depth: residual steps of each block.
    """

    def __init__(self, channels: Sequence[int], depth: int = 1) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(PartialBlock(fine + coarse, fine, depth) for fine, coarse in pairs)
        self.shrink = nn.ModuleList(ConvNorm(fine, fine, stride=2, activation=nn.SiLU) for fine, _ in pairs)
        self.up = nn.ModuleList(PartialBlock(fine + coarse, coarse, depth) for fine, coarse in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """L maps ``[B, C_l, h_l, w_l]`` to as many of the same shapes."""
        told = list(maps)
        for level in reversed(range(len(maps) - 1)):
            size = (int(told[level].shape[-2]), int(told[level].shape[-1]))
            coarse = F.interpolate(told[level + 1], size, mode="nearest")
            told[level] = self.down[level](torch.cat([told[level], coarse], dim=1))
        for level in range(len(maps) - 1):
            finer = self.shrink[level](told[level])
            told[level + 1] = self.up[level](torch.cat([finer, told[level + 1]], dim=1))
        return told
