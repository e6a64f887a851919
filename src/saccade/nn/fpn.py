"""Feature pyramid: coarse maps, which know what, lent to fine maps, which know where.

Lin et al. 2016, arXiv 1612.03144. As there: 1x1 convolutions bring all maps to one width, coarse ones are enlarged by
nearest neighbours and added to the finer, a 3x3 convolution smooths each sum; every second cell of the coarsest makes
one more level. The norms are an option of Li et al. 2021, arXiv 2111.11429.

B batch · C_l widths of the maps, finest first · D width of the pyramid · h_l, w_l grids
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Maps of a backbone to maps of one width.

    Args:
        channels: widths C_l of the maps, finest first.
        width: D.
        has_norm: a batch norm behind every convolution, which then has no bias.
        has_top: one more level, of half the resolution of the coarsest.
    """

    def __init__(self, channels: Sequence[int], width: int, *, has_norm: bool = False, has_top: bool = True) -> None:
        super().__init__()
        self.has_top = has_top
        self.lateral = nn.ModuleList(_conv(num_in, width, 1, has_norm) for num_in in channels)
        self.smooth = nn.ModuleList(_conv(width, width, 3, has_norm) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``[B, C_l, h_l, w_l]``, finest first, to levels ``[B, D, h_l, w_l]``, finest first."""
        sums = [lateral(level) for lateral, level in zip(self.lateral, maps, strict=True)]
        for index in range(len(sums) - 1, 0, -1):
            finer = sums[index - 1]
            enlarged = F.interpolate(sums[index], size=(int(finer.shape[-2]), int(finer.shape[-1])), mode="nearest")
            sums[index - 1] = finer + enlarged
        levels = [smooth(level) for smooth, level in zip(self.smooth, sums, strict=True)]
        if self.has_top:
            levels.append(levels[-1][:, :, ::2, ::2])
        return levels


def _conv(num_in: int, num_out: int, size: int, has_norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(num_in, num_out, size, padding=size // 2, bias=not has_norm)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out)) if has_norm else nn.Sequential(conv)
