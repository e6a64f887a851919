"""Scores of many changed pictures in bfloat16, where the machine is fast at it and the scores stay what they were.

Random masks ask for differences between scores, averaged over hundreds of pictures, so a little rounding is harmless;
whether it is little is measured on the first pictures of every run. Gradients at the pixels are another matter: in
bfloat16 those of ImageNet networks correlate 0.93 to 0.99 with the exact ones, so they are never rounded.

T scores · B images · M masks
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

TRIAL = 16
"""Masks on which rounded scores are compared with exact ones."""

MAX_DEVIATION = 0.05
"""Root mean square difference between rounded and exact scores, over the spread of the exact ones."""

MIN_PARAMETERS = 2_000_000
"""Smaller networks are done sooner than the conversions of their weights."""


def can_round(model: nn.Module, device: torch.device) -> bool:
    """Whether bfloat16 may pay: fast on this machine, a network of some size in float32, no autocast of the caller."""
    kind = device.type
    if kind not in ("cpu", "cuda") or torch.is_autocast_enabled(kind):
        return False
    floats = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if any(parameter.dtype != torch.float32 for parameter in floats):
        return False
    return sum(parameter.numel() for parameter in floats) >= MIN_PARAMETERS and _is_fast(kind)


def rounding(device: torch.device, *, is_on: bool) -> AbstractContextManager[object]:
    """The context in which a forward pass is rounded; without its cache, which would outlive the caller's weights."""
    if not is_on:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def agrees(exact: Tensor, rounded: Tensor) -> bool:
    """Whether the rounded scores ``[T, B, M]`` of the same masks may stand for the exact ones."""
    spread = exact.double().std(dim=-1)
    deviation = (exact.double() - rounded.double()).square().mean(-1).sqrt()
    return bool((deviation <= MAX_DEVIATION * spread).all())


def _is_fast(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
