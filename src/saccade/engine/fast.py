"""Faster copies of a model for inference: fused batch norm, channels-last, bfloat16, 8-bit layers.

Nothing here is trusted: ``engine.predict`` runs every candidate beside the float32 original on the user's own pictures
and keeps it only where it is faster and agrees.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from saccade.engine.quantize import cpu_flags, has_eight_bit_kernel, quantize_convolutions, quantize_linears

TRANSFORMERS_AT_ONCE = 4
"""Pictures that a processor sends through a transformer together: the activations of more outgrow the caches, and
beyond 32 MB the memory allocator gives each back to the system at once, which clears its pages again for the next."""

CONVOLUTIONS_AT_ONCE = 16
"""The same for convolutions, whose weights are put into another order in every pass: more pictures share that."""

ROUNDED_AT_ONCE = 8
"""The same for 8-bit convolutions, whose weights stay in their order."""


@dataclass(frozen=True)
class Candidate:
    """A faster copy of a model.

    Attributes:
        name: what was done, for people.
        model: the copy; runs on the same ``ImageBatch``.
        dtype: what the pixels have to be cast to.
        chunk: pictures that go through the model together; 0 for the whole batch.
    """

    name: str
    model: nn.Module
    dtype: torch.dtype = torch.float32
    chunk: int = 0


def candidates(model: nn.Module, device: torch.device) -> Iterator[Candidate]:
    """Faster copies worth trying on this machine, the safest first."""
    fused = copy.deepcopy(model).eval()
    num_fused = fuse_batch_norms(fused)
    chunk = 0 if device.type != "cpu" else CONVOLUTIONS_AT_ONCE if num_fused else TRANSFORMERS_AT_ONCE
    if num_fused:
        fused = fused.to(memory_format=torch.channels_last)
        yield Candidate(f"{num_fused} batch norms fused, channels last", fused, chunk=chunk)
    if has_fast_bfloat16(device):
        yield Candidate("bfloat16", copy.deepcopy(fused).to(torch.bfloat16), torch.bfloat16, chunk)
    if device.type == "cpu" and has_eight_bit_kernel():
        small = copy.deepcopy(fused)
        if count := quantize_convolutions(small):
            rest, dtype = ("bfloat16", torch.bfloat16) if has_fast_bfloat16(device) else ("float32", torch.float32)
            name = f"{count} convolutions in 8 bits, the rest in {rest}"
            yield Candidate(name, small.to(dtype), dtype, min(chunk, ROUNDED_AT_ONCE))
        small = copy.deepcopy(fused)
        if quantize_linears(small):
            yield Candidate("8-bit linear layers", small, chunk=chunk)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here, rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    flags = cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def fuse_batch_norms(model: nn.Module) -> int:
    """Fold every batch norm that directly follows a convolution into it, in place; returns how many.

    Two modules count as neighbours when they are declared one after the other with fitting widths. That is a
    convention, not a proof, which is why the caller compares outputs afterwards.
    """
    count = 0
    children = list(model.named_children())
    for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        if conv.out_channels != norm.num_features or norm.running_mean is None:
            continue
        setattr(model, conv_name, fuse_conv_bn_eval(conv, norm))
        # timm's BatchNormAct2d carries the activation that follows it.
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        setattr(model, norm_name, nn.Sequential(*rest) if rest else nn.Identity())
        count += 1
    return count + sum(fuse_batch_norms(child) for child in model.children())
