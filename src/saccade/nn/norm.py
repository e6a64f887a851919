"""Normalisation of tokens.

LayerNorm: Ba et al. 2016, arXiv 1607.06450. RMSNorm: Zhang and Sennrich 2019, arXiv 1910.07467. RMSNorm divides by the
root mean square only; it has neither a mean to subtract nor a bias.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

NormKind = Literal["layer", "rms"]


def build_norm(kind: NormKind, width: int, eps: float) -> nn.Module:
    """The normalisation over the last axis of ``[..., width]``."""
    return nn.LayerNorm(width, eps=eps) if kind == "layer" else nn.RMSNorm(width, eps=eps)
