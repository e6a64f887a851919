"""Convolution, batch norm, activation: the brick of convolutional decoders and detectors.

Batch norm: Ioffe & Szegedy 2015, arXiv 1502.03167.

B batch · C width · h, w grid
"""

from __future__ import annotations

from torch import Tensor, nn


class ConvNorm(nn.Module):
    """A convolution, a batch norm, an activation.

    Args:
        num_in: width of what comes in.
        num_out: width of what goes out.
        size: side of the kernel, odd.
        stride: of the convolution; at 1 the map keeps its size.
        groups: of the convolution; ``num_in`` makes it depthwise.
        activation: kind of the activation.
        has_norm: whether to normalise; without, the convolution has a bias instead.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        size: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.ReLU] | type[nn.SiLU] | type[nn.Hardswish] = nn.ReLU,
        has_norm: bool = True,
    ) -> None:
        super().__init__()
        # Declared as neighbours: ``engine.fast`` folds a batch norm into the convolution that stands before it.
        self.conv = nn.Conv2d(num_in, num_out, size, stride=stride, padding=size // 2, groups=groups, bias=not has_norm)
        self.norm = nn.BatchNorm2d(num_out) if has_norm else nn.Identity()
        self.activation = activation(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """``[B, C_in, h, w]`` to ``[B, C_out, h / stride, w / stride]``."""
        activated: Tensor = self.activation(self.norm(self.conv(maps)))
        return activated


def double_conv(num_in: int, num_out: int, *, has_norm: bool = True) -> nn.Sequential:
    """Two 3x3 convolutions, each with norm and ReLU."""
    return nn.Sequential(ConvNorm(num_in, num_out, has_norm=has_norm), ConvNorm(num_out, num_out, has_norm=has_norm))
