"""Anchors: boxes of fixed sizes and shapes around every cell of a map, which a head moves and stretches.

Ren et al. 2015, arXiv 1506.01497, section 3.1.1.

S sizes · R ratios · h, w grid
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shapes(sizes: Sequence[float], ratios: Sequence[float], device: torch.device | None = None) -> Tensor:
    """Anchors around the origin ``[R * S, 4]`` xyxy, all sizes of the first ratio first.

    Their halves are rounded to whole pixels, as published weights expect it.

    Args:
        sizes: square roots of their areas, in pixels.
        ratios: heights over widths.
        device: where they are made.
    """
    heights = torch.tensor(ratios, dtype=torch.float32, device=device).sqrt()
    sides = torch.tensor(sizes, dtype=torch.float32, device=device)
    high, wide = (heights[:, None] * sides).flatten(), (sides / heights[:, None]).flatten()
    return (torch.stack([-wide, -high, wide, high], dim=1) / 2).round()


def spread(shapes: Tensor, grid: tuple[int, int], stride: tuple[float, float]) -> Tensor:
    """Anchors of every cell, ``[h * w * A, 4]``: row by row, cell by cell, in the order of ``shapes`` ``[A, 4]``.

    Args:
        shapes: around the origin.
        grid: ``(h, w)``.
        stride: pixels from one cell to the next, down and right; the first cell is at the origin.
    """
    down = torch.arange(grid[0], dtype=torch.float32, device=shapes.device) * stride[0]
    right = torch.arange(grid[1], dtype=torch.float32, device=shapes.device) * stride[1]
    y, x = torch.meshgrid(down, right, indexing="ij")
    places = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (places + shapes).reshape(-1, 4)
