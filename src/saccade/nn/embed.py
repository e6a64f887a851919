"""From pixels to tokens with positions: linear patch embedding; learned, sine-cosine and rotary positions.

Patches and learned positions: Dosovitskiy et al. 2020, arXiv 2010.11929. Fixed 2-D sine-cosine: Beyer et al. 2022,
arXiv 2205.01580. Axial rotary positions: Heo et al. 2024, arXiv 2403.13298.

A position is a place in the picture, not a count of patches: where the grid differs from the one the model was made
for, learned tables are resampled and the fixed functions are evaluated between the original places (half-cell centres).

B batch · C width · h, w grid · p patch size · D width of one head
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError

Grid = tuple[int, int]


class PatchEmbed(nn.Module):
    """Cuts pixels into p x p patches and maps each linearly to C numbers."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.project = nn.Conv2d(3, width, patch_size, stride=patch_size)
        nn.init.trunc_normal_(self.project.weight, std=(3 * patch_size**2) ** -0.5)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of patches of a canvas ``(H, W)``.

        Raises:
            InputError: where the size is not a multiple of the patch; names the nearest that are.
        """
        height, width = size
        patch = self.patch_size
        if height % patch or width % patch or not height or not width:
            low = tuple(max(side // patch, 1) * patch for side in size)
            high = tuple(max(-(-side // patch), 1) * patch for side in size)
            near = f"{low[0]}x{low[1]}" + (f" or {high[0]}x{high[1]}" if high != low else "")
            raise InputError(
                f"the image is {height}x{width}, which patches of {patch}x{patch} do not tile",
                expected=f"multiples of {patch}",
                remedy=f"resize to {near}",
            )
        return height // patch, width // patch

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` to tokens ``[B, h * w, C]``, row by row."""
        tokens: Tensor = self.project(pixels).flatten(2).transpose(1, 2)
        return tokens


def resample(table: Tensor, grid: Grid) -> Tensor:
    """A table of positions ``[1, h0, w0, C]`` laid over another grid: ``[1, h, w, C]``."""
    if tuple(table.shape[1:3]) == grid:
        return table
    planes = table.permute(0, 3, 1, 2).float()
    resized = F.interpolate(planes, grid, mode="bicubic", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).to(table.dtype)


class LearnedPositions(nn.Module):
    """One learned vector per patch.

    Attributes:
        table: ``[1, h, w, C]``.
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, *grid, width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: Grid) -> Tensor:
        """Positions ``[1, h * w, C]`` for a grid."""
        return resample(self.table, grid).flatten(1, 2)


class SinCosPositions(nn.Module):
    """Fixed sines and cosines: a quarter of the width each for sin y, cos y, sin x, cos x.

    Attributes:
        table: ``[1, h * w, C]`` for the grid the model was made for; not saved.
    """

    table: Tensor

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.base, self.width = grid, width
        self.register_buffer("table", sincos(places(grid, grid), width)[None], persistent=False)

    def forward(self, grid: Grid) -> Tensor:
        """Positions ``[1, h * w, C]`` for a grid."""
        if grid == self.base:
            return self.table
        return sincos(places(grid, self.base), self.width)[None].to(self.table)


class RotaryPositions(nn.Module):
    """Axial rotary positions: the first half of each head turns with y, the second with x.

    Attributes:
        cosines, sines: ``[h * w, D]`` for the grid the model was made for; not saved.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, grid: Grid, head_width: int) -> None:
        super().__init__()
        self.base, self.head_width = grid, head_width
        cosines, sines = rotation(places(grid, grid), head_width)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    def forward(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[h * w, D]`` for a grid."""
        if grid == self.base:
            return self.cosines, self.sines
        cosines, sines = rotation(places(grid, self.base), self.head_width)
        return cosines.to(self.cosines), sines.to(self.sines)


def places(grid: Grid, base: Grid) -> Tensor:
    """Centres (y, x) ``[h * w, 2]`` of the cells of ``grid``, counted in cells of ``base``."""
    axes = [
        (torch.arange(count, dtype=torch.float32) + 0.5) * (original / count) - 0.5
        for count, original in zip(grid, base, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def sincos(points: Tensor, width: int, temperature: float = 10_000.0) -> Tensor:
    """Sine-cosine codes ``[n, width]`` of points (y, x) ``[n, 2]``."""
    quarter = width // 4
    frequencies = temperature ** -(torch.arange(quarter, dtype=torch.float32) / max(quarter - 1, 1))
    angles = points[:, :, None] * frequencies
    return torch.cat([angles[:, 0].sin(), angles[:, 0].cos(), angles[:, 1].sin(), angles[:, 1].cos()], dim=1)


def rotation(points: Tensor, head_width: int, temperature: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[n, head_width]`` by which points (y, x) ``[n, 2]`` turn queries and keys."""
    quarter = head_width // 4
    frequencies = temperature ** -(torch.arange(quarter, dtype=torch.float32) / quarter)
    angles = (points[:, :, None] * frequencies).repeat_interleave(2, dim=-1).flatten(1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels of the patches of ``[B, N, T, D]``; tokens before the patches stay."""
    patches = heads[:, :, heads.shape[2] - cosines.shape[0] :]
    prefix = heads[:, :, : heads.shape[2] - cosines.shape[0]]
    quarter_turn = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    turned = patches * cosines.to(heads.dtype) + quarter_turn * sines.to(heads.dtype)
    return torch.cat([prefix, turned], dim=2)


def window_sincos(windows: Sequence[Grid], grid: Grid, width: int, temperature: float = 10_000.0) -> Tensor:
    """Sine-cosine codes ``[B, h * w, width]`` of cells, by the share of their picture that lies above and before them.

    Carion et al. 2020 (DETR), arXiv 2005.12872: every picture's own extent is one turn, whatever surrounds it.

    Args:
        windows: per picture rows and columns of the cells that show it, at the top left of the grid.
        grid: rows and columns h, w of all cells.
        width: C, a multiple of 4; the first half tells y, the second x, sines and cosines by turns.
        temperature: longest wave over the shortest.
    """
    half = width // 2
    waves = temperature ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
    codes = []
    for axis in (0, 1):
        counts = torch.tensor([window[axis] for window in windows], dtype=torch.float32)
        steps = torch.arange(1, grid[axis] + 1, dtype=torch.float32)
        angles = steps / (counts[:, None] + 1e-6) * (2 * math.pi)
        turned = angles[:, :, None] / waves
        codes.append(torch.stack([turned.sin(), turned.cos()], dim=-1).flatten(2))  # [B, n, half]
    rows = codes[0][:, :, None].expand(-1, -1, grid[1], -1)
    columns = codes[1][:, None].expand(-1, grid[0], -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(1, 2)
