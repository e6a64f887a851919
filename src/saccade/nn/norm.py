"""Normalisation of tokens, and batch norms that keep what they know.

LayerNorm: Ba et al. 2016, arXiv 1607.06450. RMSNorm: Zhang and Sennrich 2019, arXiv 1910.07467. RMSNorm divides by the
root mean square only; it has neither a mean to subtract nor a bias.

C width
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NormKind = Literal["layer", "rms"]


def build_norm(kind: NormKind, width: int, eps: float) -> nn.Module:
    """The normalisation over the last axis of ``[..., width]``."""
    return nn.LayerNorm(width, eps=eps) if kind == "layer" else RMSNorm(width, eps=eps)


def batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    """All batch norms inside of a module, those that processes share (``SyncBatchNorm``) included."""
    # The common base has no public name; the public classes leave out the one of several processes.
    return (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))


def keep_statistics(module: nn.Module) -> None:
    """Batch norms inside of a module evaluate, whatever its own mode; the next ``train`` of it undoes that."""
    for norm in batch_norms(module):
        norm.training = False


FEWEST = 100_000
"""Numbers from which on passes over them cost more than calls."""


class RMSNorm(nn.RMSNorm):
    """torch's, with a gradient of fewer passes on a processor, for which torch has a kernel of LayerNorm only."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[..., C]`` over their root mean square, times the weight."""
        is_trained = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        is_large = x.device.type == "cpu" and x.numel() >= FEWEST
        if is_trained and is_large and not torch.compiler.is_compiling():
            normalised: Tensor = _RootMeanSquare.apply(x, self.weight, self.eps)
            return normalised
        return super().forward(x)


class _RootMeanSquare(torch.autograd.Function):
    """x * r * w with r = 1 / sqrt(mean(x^2) + eps), in float32 whatever the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
        width = x.shape[-1]
        wide = x.detach().float().reshape(-1, width) if x.dtype != torch.float64 else x.detach().reshape(-1, width)
        squares = torch.linalg.vecdot(wide, wide)[:, None] / width
        inverse = (squares + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt_()
        ctx.save_for_backward(wide, inverse, weight)
        normalised: Tensor = (wide * inverse).mul_(weight)
        return normalised.reshape(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        wide, inverse, weight = ctx.saved_tensors
        rows = gradient.reshape(wide.shape).to(wide.dtype).contiguous()
        scale = weight.to(wide.dtype)
        # The kernel of LayerNorm, told that the mean is 0, gives everything but the mean of the incoming gradient,
        # which LayerNorm takes away and RMSNorm does not.
        to_x, to_weight, _ = torch.ops.aten.native_layer_norm_backward(
            rows, wide, [wide.shape[1]], torch.zeros_like(inverse), inverse, scale, None, [True, True, False]
        )
        to_x += (rows @ scale / wide.shape[1])[:, None] * inverse
        return to_x.reshape(gradient.shape).to(gradient.dtype), to_weight.to(weight.dtype), None
