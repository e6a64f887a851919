"""Deformable attention: every query looks at a handful of learned points instead of at the whole picture.

Zhu et al. 2020 (Deformable DETR), arXiv 2010.04159, sections 4.1 and A.4: points are offsets from the query's box, in
halves of its sides; values between cells are bilinear, outside of the picture zero. Written with ``grid_sample`` alone,
so that it runs and exports everywhere.

B batch · Q queries · C width · N heads · D = C / N · L levels · P points per head and level
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.nn.attention import Watchable


class DeformableAttention(nn.Module):
    """Multi-head attention over sampled points of several maps.

    Args:
        width: C.
        num_heads: N; divides C.
        num_levels: L.
        num_points: P.

    Attributes:
        points: where the queries look passes here, ``[B, Q, N, L, P, 2]`` x and y as shares of the canvas.
        probabilities: how much each point counts passes here, ``[B, N, Q, L * P]``, a softmax.
    """

    def __init__(self, width: int, num_heads: int, num_levels: int, num_points: int = 4) -> None:
        super().__init__()
        self.shape = (num_heads, num_levels, num_points)
        self.offset = nn.Linear(width, math.prod(self.shape) * 2)
        self.weight = nn.Linear(width, math.prod(self.shape))
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.points = nn.Identity()
        self.probabilities = Watchable()
        self._initialise()

    def forward(self, queries: Tensor, boxes: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """What each query gathers, ``[B, Q, C]``.

        Args:
            queries: ``[B, Q, C]``.
            boxes: ``[B, Q, 4]`` around which they look: centre x, y, width, height as shares of the canvas.
            maps: L maps ``[B, C, h_l, w_l]`` that cover the canvas.
        """
        heads, _, count = self.shape
        batch, num_queries, width = queries.shape
        offsets = self.offset(queries).unflatten(-1, (*self.shape, 2))
        reference = boxes[:, :, None, None, None]
        points = self.points(reference[..., :2] + offsets / count * reference[..., 2:] * 0.5)
        weights = self.weight(queries).unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, N, Q, L * P]
        weights = self.probabilities(weights.softmax(-1))
        # Half precision would move points by whole cells.
        grids = (2 * points.float() - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [L, B * N, Q, P, 2]
        sampled = []
        for level, grid in zip(maps, grids, strict=True):
            values = F.conv2d(level, self.value.weight[:, :, None, None], self.value.bias)
            values = values.reshape(batch * heads, width // heads, *level.shape[-2:])
            sampled.append(F.grid_sample(values.float(), grid, align_corners=False))  # [B * N, D, Q, P]
        gathered = torch.cat(sampled, dim=-1) * weights.flatten(0, 1)[:, None].float()
        merged = gathered.sum(-1).reshape(batch, width, num_queries).transpose(1, 2)
        projected: Tensor = self.project(merged.to(queries.dtype))
        return projected

    def _initialise(self) -> None:
        """Heads look into different directions, points ever farther; all count alike."""
        heads, levels, count = self.shape
        angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, count + 1, dtype=torch.float32)[:, None]
        spread = (directions[:, None, None] * steps).expand(heads, levels, count, 2)
        nn.init.zeros_(self.offset.weight)
        with torch.no_grad():
            self.offset.bias.copy_(spread.flatten())
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)
        for matrix in (self.value, self.project):
            nn.init.xavier_uniform_(matrix.weight)
            nn.init.zeros_(matrix.bias)
