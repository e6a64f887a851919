"""Scores of many changed pictures in bfloat16, where the machine is fast at it and the scores stay what they were.

Random masks ask for differences between scores, averaged over hundreds of pictures, so a little rounding is harmless;
whether it is little is measured on the first pictures of every run. Relevance by attention adds up products of a whole
network and is as harmless; it is measured on the first picture that a model is asked about. Gradients at the pixels are
another matter: in bfloat16 those of ImageNet networks correlate 0.93 to 0.99 with the exact ones, so they are never
rounded.

T scores · B images · M masks · h, w grid
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from saccade.errors import ExplainError
from saccade.explanation.copies import deep_copy
from saccade.nn.fuse import fuse_batch_norms

TRIAL = 16
"""Masks on which rounded scores are compared with exact ones."""

MAX_DEVIATION = 0.05
"""Root mean square difference between rounded and exact scores, over the spread of the exact ones."""

MIN_CORRELATION = 0.999
"""Of a rounded map with the exact one, below which a model's maps are never rounded."""

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


def quick_copy(model: nn.Module) -> nn.Module:
    """A copy whose batch norms are folded into its convolutions, for many passes without gradients.

    The model itself where there is nothing to fold, where it is compiled, or where it cannot be copied. What is folded
    is guessed (``fuse_batch_norms``), so scores of the copy have to be compared.
    """
    parts = [*model.modules()]
    is_compiled = any(hasattr(part, "_orig_mod") for part in parts)
    if is_compiled or not any(isinstance(part, nn.BatchNorm2d) for part in parts):
        return model
    convolutions = [part for part in parts if isinstance(part, nn.Conv2d)]
    if any(part._forward_pre_hooks or is_parametrized(part) for part in convolutions):
        # Their weights are made anew in every pass (weight_norm, spectral_norm), which would undo the folding.
        return model
    try:
        copied = deep_copy(model)
    except ExplainError:
        return model
    return copied if fuse_batch_norms(copied) else model


def agrees(exact: Tensor, rounded: Tensor) -> bool:
    """Whether the rounded scores ``[T, B, M]`` of the same masks may stand for the exact ones."""
    spread = exact.double().std(dim=-1)
    deviation = (exact.double() - rounded.double()).square().mean(-1).sqrt()
    return bool((deviation <= MAX_DEVIATION * spread).all())


def maps_agree(exact: Tensor, rounded: Tensor) -> bool:
    """Whether rounded maps ``[T, B, h, w]`` may stand for the exact ones: every pair correlates nearly wholly."""
    pairs = torch.stack([exact, rounded]).double().flatten(3)
    centred = pairs - pairs.mean(dim=-1, keepdim=True)
    lengths = centred.norm(dim=-1)
    products = (centred[0] * centred[1]).sum(dim=-1)
    return bool((products >= MIN_CORRELATION * lengths[0] * lengths[1]).all())


def remembered(model: nn.Module) -> bool | None:
    """Whether the maps of a model agreed when they were tried; None where they never were, or its weights changed."""
    found = _TRIED.get(model)
    return found[1] if found is not None and found[0] == _state(model) else None


def remember(model: nn.Module, *, is_agreed: bool) -> None:
    """Keep, as long as the model lives and its weights stay, whether its rounded maps agreed."""
    _TRIED[model] = (_state(model), is_agreed)


_TRIED: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()


def _state(model: nn.Module) -> int:
    """Changes with every change of a weight: where each lies, and how often it was written."""
    return hash(tuple((parameter.data_ptr(), parameter._version) for parameter in model.parameters()))


def _is_fast(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
