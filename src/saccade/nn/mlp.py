"""The feed-forward half of a transformer block: two linear layers, or the gated SwiGLU with three.

SwiGLU: Shazeer 2020, arXiv 2002.05202. Its hidden width is two thirds of the plain one, so that three matrices hold as
many parameters as two. GELU: Hendrycks and Gimpel 2016, arXiv 1606.08415.

C width of a token · D hidden width
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]
MLPKind = Literal["mlp", "swiglu"]


def quick_gelu(values: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that some published weights were trained with."""
    return values * torch.sigmoid(1.702 * values)


def gelu_tanh(values: Tensor) -> Tensor:
    """The hyperbolic approximation of GELU that other published weights were trained with."""
    return F.gelu(values, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}
"""Activations by name; ``gelu`` is the exact one."""


def hidden_width(kind: MLPKind, width: int, ratio: float) -> int:
    """Hidden width D of a feed-forward layer whose plain form widens ``width`` by ``ratio``.

    For SwiGLU two thirds of it, at the nearest multiple of 8 that accelerators like.
    """
    plain = round(width * ratio)
    return plain if kind == "mlp" else max(round(plain * 2 / 3 / 8) * 8, 8)


class MLP(nn.Module):
    """Linear, activation, linear: ``[..., C]`` to ``[..., C]``."""

    def __init__(self, width: int, hidden: int, activation: Activation = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.widen = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[..., C]`` to tokens ``[..., C]``."""
        narrowed: Tensor = self.dropout(self.narrow(self.dropout(self.activation(self.widen(tokens)))))
        return narrowed


class SwiGLU(nn.Module):
    """``narrow(silu(gate) * value)``: ``[..., C]`` to ``[..., C]``; gate and value come from one multiplication."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.widen = nn.Linear(width, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[..., C]`` to tokens ``[..., C]``."""
        gate, value = self.widen(tokens).chunk(2, dim=-1)
        narrowed: Tensor = self.dropout(self.narrow(self.dropout(F.silu(gate) * value)))
        return narrowed


def build_mlp(kind: MLPKind, width: int, ratio: float, activation: Activation, dropout: float) -> nn.Module:
    """The feed-forward layer of one block."""
    hidden = hidden_width(kind, width, ratio)
    return MLP(width, hidden, activation, dropout) if kind == "mlp" else SwiGLU(width, hidden, dropout)


def in_float32(layer: nn.Module, values: Tensor) -> Tensor:
    """What a layer says of values ``[..., C]``, in float32; autocast does not reach it.

    For the last layer of boxes: as shares of a canvas of 1333 pixels neighbours in bfloat16 are up to 5 pixels apart. A
    layer whose weights are of a half type themselves computes in that.
    """
    kind = values.device.type
    # Tensors without numbers, on which a model is counted, know no autocast.
    with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        said: Tensor = layer(values.to(next(layer.parameters(), values).dtype))
    return said.float()


class ExactLayers(nn.Sequential):
    """Layers one after the other, the last of which answers in float32 (``in_float32``)."""

    def forward(self, values: Tensor) -> Tensor:
        """``[..., C_in]`` to ``[..., C_out]`` float32."""
        *first, last = self
        for layer in first:
            values = layer(values)
        return in_float32(last, values)
