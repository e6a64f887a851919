"""Layers with 8-bit weights and activations, multiplied by torch's own oneDNN kernels on processors that have them.

Jacob et al. 2018, arXiv 1712.05877; Dettmers et al. 2022, arXiv 2208.07339. Weights are rounded once, with a scale per
output channel; activations while the layer runs, with a scale per token (linear) or per picture (convolution). Nothing
is calibrated beforehand, and no result depends on the pictures beside it.

B batch · C, D channels in, out · h, w map
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MIN_LINEAR_FEATURES = 128
"""Linear layers narrower than this run as fast in float32."""

MIN_CONVOLUTION_CHANNELS = 32
"""Convolutions of fewer channels leave the kernel's lanes empty."""

MIN_PRODUCTS = 192
"""Where each number that goes into a convolution is multiplied by fewer weights, rounding it takes the time saved."""

TINY = 1e-12
"""Least magnitude that is divided by."""


def has_eight_bit_kernel() -> bool:
    """Whether torch multiplies 8-bit matrices through oneDNN here, and the processor has an instruction for it."""
    flags = cpu_flags()
    has_instruction = any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))
    has_operators = hasattr(torch.ops.onednn, "qlinear_pointwise") and hasattr(torch.ops.onednn, "qconv2d_pointwise")
    return has_instruction and torch._C._has_mkldnn and has_operators


def cpu_flags() -> str:
    """What Linux tells about the processors; empty elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""


class QuantizedLinear(nn.Module):
    """A linear layer with int8 weights and activations rounded token by token, ``[..., C] -> [..., D]``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rounded, self.scales = _round_weight(linear.weight)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(rounded), dtype=torch.int64)
        self.bias = torch.zeros(len(rounded)) if linear.bias is None else linear.bias.detach().float()

    def forward(self, features: Tensor) -> Tensor:
        """The layer applied to the last axis."""
        tokens = features.reshape(-1, features.shape[-1])
        # Two passes that write nothing are faster than one over absolute values that have to be written first.
        largest = torch.maximum(tokens.amax(1, keepdim=True), -tokens.amin(1, keepdim=True)).clamp_min_(TINY)
        # The kernel takes one scale for all tokens: each is brought to [-127, 127] before, and back afterwards. It
        # wants bytes around 128, and casting to signed bytes is seven times as fast: flipping their top bit adds 128.
        signed = (tokens * (127 / largest)).round_().to(torch.int8)
        rounded = signed.bitwise_xor_(-128).view(torch.uint8)
        weight = (self.packed, self.scales, self.zeros, None)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 128, *weight, 1.0, 0, torch.float32, "none", [], ""
        )
        torch.addcmul(self.bias, result, largest / 127, out=result)
        return result.reshape(*features.shape[:-1], -1)


class QuantizedConv2d(nn.Module):
    """A convolution with int8 weights and activations rounded picture by picture, ``[B, C, h, w] -> [B, D, h', w']``.

    What comes in is float32 or bfloat16, and what goes out is the same.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        rounded, self.scales = _round_weight(conv.weight)
        self.zeros = torch.zeros(len(rounded), dtype=torch.int64)
        self.bias = torch.zeros(len(rounded)) if conv.bias is None else conv.bias.detach().float()
        self.stride = (int(conv.stride[0]), int(conv.stride[1]))
        self.geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        # The kernels for 1x1 want their weights in an order that depends on the size of the map, and take several times
        # as long where it is another. Those of linear layers do the same at the same speed, in one order.
        self.is_linear = conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
        if self.is_linear:
            self.packed = torch.ops.onednn.qlinear_prepack(rounded.flatten(1), None)
        else:
            self.packed = torch.ops.onednn.qconv_prepack(rounded, self.scales, 1.0, 0, *self.geometry, None)

    def forward(self, features: Tensor) -> Tensor:
        """The convolution of every picture."""
        if self.is_linear:
            features = features[:, :, :: self.stride[0], :: self.stride[1]]
        is_below_zero = _is_below_zero(features)
        if is_below_zero.any() and not is_below_zero.all():  # then each is rounded as it would be alone
            return torch.cat([self(one) for one in torch.split(features, 1)])
        rounded, factor, zero_point = round_pictures(features, is_signed=bool(is_below_zero[0]))
        scale = factor.float().reciprocal_()
        if len(features) == 1:
            return self._multiply(rounded, float(scale), zero_point, self.bias, features.dtype)
        # The kernel takes one scale for all pictures, so theirs come afterwards.
        result = self._multiply(rounded, 1.0, zero_point, None, features.dtype)
        bias = self.bias.to(features.dtype)[:, None, None]
        return torch.addcmul(bias, result, scale.to(features.dtype), out=result)

    def _multiply(
        self, rounded: Tensor, scale: float, zero_point: int, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        given = (scale, zero_point, self.packed, self.scales, self.zeros, bias)
        rest: tuple[Any, ...] = (1.0, 0, dtype, "none", [], "")
        if self.is_linear:
            pixels = torch.ops.onednn.qlinear_pointwise(rounded.permute(0, 2, 3, 1), *given, *rest)
            return pixels.permute(0, 3, 1, 2)  # type: ignore[no-any-return]
        result: Tensor = torch.ops.onednn.qconv2d_pointwise(rounded, *given, *self.geometry, *rest)
        return result


def round_pictures(features: Tensor, *, is_signed: bool) -> tuple[Tensor, Tensor, int]:
    """Every picture as bytes, by its own scale.

    Args:
        features: ``[B, C, h, w]`` float32 or bfloat16.
        is_signed: whether anything is below zero.

    Returns:
        Bytes ``[B, C, h, w]`` uint8; what they were multiplied by, ``[B, 1, 1, 1]``; the byte that stands for 0.
    """
    bits = _bits(features)
    if is_signed:
        bits = bits.bitwise_and(torch.iinfo(bits.dtype).max)  # without the sign
    largest = bits.amax((1, 2, 3), keepdim=True).view(features.dtype).clamp_min_(TINY)
    # One step less than bytes have: in bfloat16 the factor, then the product may be rounded up.
    factor = (126 if is_signed else 254) / largest
    scaled = (features * factor).round_()
    if is_signed:  # the kernel wants bytes around 128: flipping the top bit adds that
        return scaled.to(torch.int8).bitwise_xor_(-128).view(torch.uint8), factor, 128
    # Bytes above 127 by way of 16 bits: the direct cast to unsigned ones takes several times as long.
    return scaled.to(torch.int16).to(torch.int8).view(torch.uint8), factor, 0


def quantize_linears(model: nn.Module) -> int:
    """Replace wide linear layers by 8-bit ones, in place; returns how many.

    The classification head stays in float32: it is small, and the scores are its direct output.
    """
    linears = [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]
    count = 0
    for path, linear in linears[:-1]:
        if min(linear.in_features, linear.out_features) < MIN_LINEAR_FEATURES:
            continue
        _replace(model, path, QuantizedLinear(linear))
        count += 1
    return count


def quantize_convolutions(model: nn.Module) -> int:
    """Replace convolutions that do much work for every number they read by 8-bit ones, in place; returns how many.

    Where the last layer is a convolution, the scores are its direct output: those of its width stay as they are,
    because there may be several.
    """
    layers = [(path, module) for path, module in model.named_modules() if any(True for _ in module.parameters(False))]
    last = layers[-1][1] if layers else None
    count = 0
    for path, conv in layers:
        if type(conv) is not nn.Conv2d or not _pays(conv):
            continue
        if conv.out_channels == getattr(last, "out_channels", None):
            continue
        _replace(model, path, QuantizedConv2d(conv))
        count += 1
    return count


def _pays(conv: nn.Conv2d) -> bool:
    """Whether this convolution can run in 8 bits, and would be faster."""
    if conv.groups > 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    area = conv.kernel_size[0] * conv.kernel_size[1]
    skipped = conv.stride[0] * conv.stride[1] if area > 1 else 1
    is_wide = min(conv.in_channels, conv.out_channels) >= MIN_CONVOLUTION_CHANNELS
    return is_wide and conv.out_channels * area / skipped >= MIN_PRODUCTS


def _round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight ``[D, ...]`` as int8, and the scale ``[D]`` of each output channel."""
    weight = weight.detach().float()
    scales = weight.flatten(1).abs().amax(1).clamp_min(TINY) / 127
    return (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), scales


def _is_below_zero(features: Tensor) -> Tensor:
    """Whether anything in each picture ``[B, C, h, w]`` is below zero, ``[B]`` bool."""
    has_sign = _bits(features).amin((1, 2, 3)) < 0
    # -0.0 has a sign as well, and comes out of a ReLU.
    return features.amin((1, 2, 3)) < 0 if has_sign.any() else has_sign


def _bits(features: Tensor) -> Tensor:
    """The same memory as whole numbers: those of floats from 0 up are in the same order, and compared faster."""
    return features.view(torch.int16 if features.dtype is torch.bfloat16 else torch.int32)


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
