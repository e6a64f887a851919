"""Upsampling: six ways to make a feature map larger, behind one signature.

Without parameters: max-unpooling (Zeiler et al. 2011, Adaptive deconvolutional networks; Badrinarayanan et al. 2015,
arXiv 1511.00561), bed of nails, nearest neighbour, bilinear. Learned: transposed convolution (Zeiler et al. 2010,
Deconvolutional networks; Dumoulin and Visin 2016, arXiv 1603.07285), started as bilinear interpolation like the
upsampling layers of Long et al. 2014, arXiv 1411.4038; sub-pixel convolution (Shi et al. 2016, arXiv 1609.05158),
started as nearest neighbour (Aitken et al. 2017, arXiv 1707.02937), so that no chequerboard is there before anything is
learned.

B batch · C channels · h, w grid · f factor
"""

from __future__ import annotations

import abc
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, InputError

UpsampleKind = Literal["max_unpool", "bed_of_nails", "nearest", "bilinear", "transposed", "sub_pixel"]
"""How a feature map is made larger."""


class Upsample(nn.Module, abc.ABC):
    """Base of the upsampling operators: maps ``[B, C, h, w]`` to ``[B, C, f * h, f * w]``.

    Attributes:
        factor: f, how many times the height and the width grow.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    @abc.abstractmethod
    def forward(self, maps: Tensor, indices: Tensor | None = None) -> Tensor:
        """The larger maps ``[B, C, f * h, f * w]``.

        Args:
            maps: ``[B, C, h, w]``.
            indices: ``[B, C, h, w]`` int64, where the max pooling of the same factor found each value, as
                ``max_pool2d(..., return_indices=True)`` gives them. Max-unpooling needs them, the others ignore them.
        """

    def extra_repr(self) -> str:
        """The factor."""
        return f"factor={self.factor}"


class MaxUnpool(Upsample):
    """Puts each value back where max pooling had found it; all else is zero."""

    def forward(self, maps: Tensor, indices: Tensor | None = None) -> Tensor:
        """The larger maps ``[B, C, f * h, f * w]``.

        Raises:
            InputError: without the indices, or with those of other maps.
        """
        if indices is None or indices.shape != maps.shape:
            raise InputError(
                "max-unpooling has no indices" if indices is None else f"the indices are {tuple(indices.shape)}",
                expected=f"{tuple(maps.shape)}, from the max pooling that it undoes",
            )
        return F.max_unpool2d(maps, indices, (self.factor, self.factor))


class BedOfNails(Upsample):
    """Puts each value into the upper left corner of its block; all else is zero."""

    def forward(self, maps: Tensor, indices: Tensor | None = None) -> Tensor:
        """The larger maps ``[B, C, f * h, f * w]``."""
        height, width = maps.shape[2] * self.factor, maps.shape[3] * self.factor
        gap = self.factor - 1
        nails = F.pad(maps[:, :, :, None, :, None], (0, gap, 0, 0, 0, gap))  # [B, C, h, f, w, f]
        return nails.reshape(maps.shape[0], maps.shape[1], height, width)


class Interpolate(Upsample):
    """Nearest neighbour, or bilinear between half-pixel centres."""

    def __init__(self, mode: Literal["nearest", "bilinear"], factor: int) -> None:
        super().__init__(factor)
        self.mode = mode

    def forward(self, maps: Tensor, indices: Tensor | None = None) -> Tensor:
        """The larger maps ``[B, C, f * h, f * w]``."""
        return F.interpolate(maps, scale_factor=float(self.factor), mode=self.mode)

    def extra_repr(self) -> str:
        """The mode and the factor."""
        return f"{self.mode}, factor={self.factor}"


class Transposed(Upsample):
    """A transposed convolution of stride f: every value paints a kernel of about 2f x 2f, scaled by itself.

    Attributes:
        convolution: ``[C, C, k, k]`` weights, at first one tent per channel, so that it interpolates bilinearly
            (towards zero at the border, where nothing lies beyond); no bias.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__(factor)
        kernel, padding = 2 * factor - factor % 2, factor // 2
        self.convolution = nn.ConvTranspose2d(channels, channels, kernel, factor, padding, bias=False)
        centre = (kernel - 1) / 2
        tent = 1 - (torch.arange(kernel) - centre).abs() / factor
        with torch.no_grad():
            self.convolution.weight.zero_()
            self.convolution.weight[range(channels), range(channels)] = tent[:, None] * tent

    def forward(self, maps: Tensor, indices: Tensor | None = None) -> Tensor:
        """The larger maps ``[B, C, f * h, f * w]``."""
        larger: Tensor = self.convolution(maps)
        return larger


class SubPixel(Upsample):
    """A 3x3 convolution to f² values per cell and channel, laid out as a block of f x f cells.

    Attributes:
        convolution: ``[C * f * f, C, 3, 3]`` weights; at first equal for all cells of a block.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__(factor)
        self.convolution = nn.Conv2d(channels, channels * factor**2, 3, padding=1)
        one = torch.empty(channels, channels, 3, 3)
        nn.init.kaiming_normal_(one, nonlinearity="linear")
        with torch.no_grad():
            self.convolution.weight.copy_(one.repeat_interleave(factor**2, dim=0))
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor, indices: Tensor | None = None) -> Tensor:
        """The larger maps ``[B, C, f * h, f * w]``."""
        return F.pixel_shuffle(self.convolution(maps), self.factor)


def build_upsample(kind: UpsampleKind, channels: int, factor: int = 2) -> Upsample:
    """The upsampling operator of a kind.

    Args:
        kind: which.
        channels: C of the maps; only the learned kinds depend on it.
        factor: how many times height and width grow.

    Raises:
        ConfigError: where ``factor`` is below 2.
    """
    if factor < 2:
        raise ConfigError(f"the factor is {factor}", where="upsample", expected="at least 2")
    if kind == "nearest" or kind == "bilinear":
        return Interpolate(kind, factor)
    if kind == "transposed":
        return Transposed(channels, factor)
    if kind == "sub_pixel":
        return SubPixel(channels, factor)
    return MaxUnpool(factor) if kind == "max_unpool" else BedOfNails(factor)
