"""Faster copies of a model for inference: fused batch norm, channels-last, bfloat16 or 8-bit linear layers.

Nothing here is trusted: ``engine.predict`` runs every candidate beside the float32 original on the user's own pictures
and keeps it only where it is faster and agrees.

8-bit: weights are rounded per output channel, activations per token while it runs (Jacob et al. 2018, arXiv 1712.05877;
Dettmers et al. 2022, arXiv 2208.07339), so no prediction depends on the pictures beside it; multiplied by torch's own
oneDNN kernel.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

MIN_QUANTIZED_FEATURES = 128
"""Linear layers narrower than this run as fast in float32."""

TRANSFORMERS_AT_ONCE = 4
"""Pictures that a processor sends through a transformer together: the activations of more outgrow the caches, and
beyond 32 MB the memory allocator gives each back to the system at once, which clears its pages again for the next."""

CONVOLUTIONS_AT_ONCE = 16
"""The same for convolutions, whose weights are put into another order in every pass: more pictures share that."""


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
        if quantize_linears(small):
            yield Candidate("8-bit linear layers", small, chunk=chunk)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here, rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    flags = _cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def has_eight_bit_kernel() -> bool:
    """Whether torch multiplies 8-bit matrices through oneDNN here, and the processor has an instruction for it."""
    flags = _cpu_flags()
    has_instruction = any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return has_instruction and torch._C._has_mkldnn and hasattr(torch.ops.onednn, "qlinear_pointwise")


def _cpu_flags() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""


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


class QuantizedLinear(nn.Module):
    """A linear layer with int8 weights and activations rounded token by token, ``[..., C] -> [..., D]``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scales = weight.abs().amax(1).clamp_min(1e-12) / 127
        rounded = (weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float()

    def forward(self, features: Tensor) -> Tensor:
        """The layer applied to the last axis."""
        tokens = features.reshape(-1, features.shape[-1])
        # Two passes that write nothing are faster than one over absolute values that have to be written first.
        largest = torch.maximum(tokens.amax(1, keepdim=True), -tokens.amin(1, keepdim=True)).clamp_min_(1e-12)
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


def quantize_linears(model: nn.Module) -> int:
    """Replace wide linear layers by 8-bit ones, in place; returns how many.

    The classification head stays in float32: it is small, and the scores are its direct output.
    """
    linears = [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]
    count = 0
    for path, linear in linears[:-1]:
        if min(linear.in_features, linear.out_features) < MIN_QUANTIZED_FEATURES:
            continue
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, QuantizedLinear(linear))
        count += 1
    return count
