"""Faster copies of a model for inference: fused batch norm, channels-last, bfloat16, 8-bit layers, gathered regions.

Nothing here is trusted: ``engine.predict`` runs every candidate beside the float32 original on the user's own pictures
and keeps it only where it is faster and agrees.

R regions · C width of the maps · S cells per side of a region · P samples per side of a cell, two neighbours each
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.engine.quantize import cpu_flags, has_eight_bit_kernel, quantize_convolutions, quantize_linears
from saccade.nn.fuse import fuse_batch_norms
from saccade.nn.roi import RoIExtractor

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
    num_gathered = gather_regions(fused) if device.type == "cpu" else 0
    if num_fused:
        fused = fused.to(memory_format=torch.channels_last)
        name = f"{num_fused} batch norms fused, channels last" + (", regions gathered" if num_gathered else "")
        yield Candidate(name, fused, chunk=chunk)
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


class GatheredRegions(nn.Module):
    """RoIAlign as weighted sums of rows of a table, which a processor does many times as fast as torchvision's kernel.

    A cell of a region is the mean of bilinear samples, so it is a weighted sum of the map's pixels. With channels last
    each pixel is one row of memory; ``embedding_bag`` adds rows up on all cores, in bfloat16 as well.

    Args:
        extract: what it stands for, an extractor of kind ``align`` with a fixed number of samples.
    """

    def __init__(self, extract: RoIExtractor) -> None:
        super().__init__()
        self.extract = extract

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Patches ``[R, C, S, S]``, of the maps' type and channels last; arguments as ``RoIExtractor`` has them."""
        extract, width, size = self.extract, int(maps[0].shape[1]), self.extract.size
        maps = maps[: len(extract.strides)]
        table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, width) for level in maps])
        # One row per map: height, width, and where in the table its first picture begins.
        grids = torch.tensor([[int(side) for side in level.shape[-2:]] for level in maps])
        counts = grids.prod(1)
        starts = (counts * len(maps[0])).cumsum(0) - counts * len(maps[0])
        levels = extract.levels(boxes) if len(maps) > 1 else torch.zeros_like(image)
        corners = boxes.float() / torch.tensor(extract.strides)[levels, None] - (0.5 if extract.is_aligned else 0.0)
        sides = corners[:, 2:] - corners[:, :2]
        if not extract.is_aligned:
            sides = sides.clamp_min(1)
        rows, down = _neighbours(corners[:, 1], sides[:, 1], grids[levels, 0], size, extract.sampling)
        columns, across = _neighbours(corners[:, 0], sides[:, 0], grids[levels, 1], size, extract.sampling)
        first = starts[levels] + image * counts[levels]
        begins = first[:, None, None] + rows * grids[levels, 1, None, None]  # [R, S, 2 P]
        indices = (begins[:, :, None, :, None] + columns[:, None, :, None, :]).to(torch.int32)
        weights = (down[:, :, None, :, None] * across[:, None, :, None, :]).to(table.dtype)
        bag = (2 * extract.sampling) ** 2
        sums = F.embedding_bag(indices.reshape(-1, bag), table, mode="sum", per_sample_weights=weights.reshape(-1, bag))
        return sums.reshape(-1, size, size, width).permute(0, 3, 1, 2)


def _neighbours(start: Tensor, side: Tensor, most: Tensor, size: int, sampling: int) -> tuple[Tensor, Tensor]:
    """The two pixels beside each sample along one axis, and their shares of the cell, both ``[R, S, 2 P]``.

    Args:
        start: ``[R]`` where regions begin, in pixels of their maps.
        side: ``[R]`` how long they are.
        most: ``[R]`` int64, pixels of the maps.
        size: S.
        sampling: P.
    """
    steps = (torch.arange(size * sampling) + 0.5) / (size * sampling)
    places = start[:, None] + side[:, None] * steps  # [R, S P]
    last = (most - 1)[:, None]
    # As RoIAlign has it: up to one pixel beyond the map its border counts, farther out nothing does.
    is_seen = (places >= -1) & (places <= most[:, None])
    places = torch.minimum(places.clamp_min(0), last)
    low = places.long()
    share = places - low
    pixels = torch.stack([low, torch.minimum(low + 1, last)], dim=2)
    shares = torch.stack([1 - share, share], dim=2) * is_seen[:, :, None] / sampling
    return pixels.reshape(-1, size, 2 * sampling), shares.reshape(-1, size, 2 * sampling)


def gather_regions(model: nn.Module) -> int:
    """Replace RoIAlign with a fixed number of samples by ``GatheredRegions``, in place; returns how many."""
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, RoIExtractor)]
    chosen = [(path, module) for path, module in found if module.kind == "align" and module.sampling]
    for path, module in chosen:
        model.set_submodule(path, GatheredRegions(module))
    return len(chosen)
