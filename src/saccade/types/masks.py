"""The pixels of the objects of one picture, each kept only inside the rectangle that holds it.

Fifty objects of a photograph would take 50 times its pixels as whole maps; cut to their boxes they take a few per cent.

N objects · h, w picture · bh, bw rectangle of one object
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.errors import InputError


@dataclass(frozen=True, eq=False)
class Masks:
    """Which pixels each of N objects covers.

    Attributes:
        size: ``(h, w)`` of the picture.
        corners: ``[N, 2]`` int64, top and left of each rectangle.
        crops: per object the pixels of its rectangle, ``[bh, bw]`` bool; what lies outside of it is not covered.
    """

    size: tuple[int, int]
    corners: Tensor
    crops: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if tuple(self.corners.shape) != (len(self.crops), 2):
            raise InputError(f"corners are {tuple(self.corners.shape)}", expected=f"[{len(self.crops)}, 2]")
        for index, (crop, (top, left)) in enumerate(zip(self.crops, self.corners.tolist(), strict=True)):
            if crop.ndim != 2 or crop.dtype != torch.bool:
                got = f"{tuple(crop.shape)} {crop.dtype}"
                raise InputError(f"the mask is {got}", where=f"masks[{index}]", expected="[bh, bw] bool")
            if min(top, left) < 0 or top + crop.shape[0] > self.size[0] or left + crop.shape[1] > self.size[1]:
                told = f"{tuple(crop.shape)} at {(top, left)} of a picture {self.size}"
                raise InputError(f"the mask does not fit: {told}", where=f"masks[{index}]", expected="inside of it")

    @classmethod
    def of(cls, dense: Tensor) -> Masks:
        """Masks of whole maps ``[N, h, w]`` (anything but zero is covered); cut to what is covered."""
        if dense.ndim != 3:
            raise InputError(f"masks have shape {tuple(dense.shape)}", expected="[N, h, w]")
        is_covered = dense != 0
        corners, crops = [], []
        for mask in is_covered:
            rows, columns = torch.nonzero(mask.any(1))[:, 0], torch.nonzero(mask.any(0))[:, 0]
            if not len(rows):
                corners.append((0, 0))
                crops.append(mask[:0, :0].clone())
                continue
            top, left = int(rows[0]), int(columns[0])
            corners.append((top, left))
            crops.append(mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1].clone())
        size = (int(dense.shape[1]), int(dense.shape[2]))
        return cls(size, torch.tensor(corners, dtype=torch.int64).reshape(-1, 2), tuple(crops))

    @classmethod
    def none(cls, size: tuple[int, int]) -> Masks:
        """No objects in a picture ``(h, w)``."""
        return cls(size, torch.zeros(0, 2, dtype=torch.int64), ())

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> Tensor:
        """The whole map ``[h, w]`` bool of one object."""
        index = range(len(self))[index]
        crop, (top, left) = self.crops[index], self.corners[index].tolist()
        whole = torch.zeros(self.size, dtype=torch.bool, device=crop.device)
        whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        return whole

    def dense(self) -> Tensor:
        """All whole maps, ``[N, h, w]`` bool."""
        if not self.crops:
            return torch.zeros(0, *self.size, dtype=torch.bool)
        return torch.stack([self[index] for index in range(len(self))])

    def areas(self) -> Tensor:
        """Covered pixels of each object, ``[N]`` int64."""
        return torch.tensor([int(crop.sum()) for crop in self.crops], dtype=torch.int64)

    def boxes(self) -> Tensor:
        """The smallest box around each object, ``[N, 4]`` float32 xyxy by edges; zeros where empty."""
        found = []
        for crop, (top, left) in zip(self.crops, self.corners.tolist(), strict=True):
            rows, columns = torch.nonzero(crop.any(1))[:, 0], torch.nonzero(crop.any(0))[:, 0]
            if not len(rows):
                found.append((0.0, 0.0, 0.0, 0.0))
                continue
            found.append(
                (
                    float(left + int(columns[0])),
                    float(top + int(rows[0])),
                    float(left + int(columns[-1]) + 1),
                    float(top + int(rows[-1]) + 1),
                )
            )
        return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)

    def select(self, indices: Sequence[int] | Tensor) -> Masks:
        """Some of the objects, in the order of ``indices`` (no boolean mask)."""
        chosen = [int(index) for index in indices]
        return Masks(self.size, self.corners[chosen], tuple(self.crops[index] for index in chosen))

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device; the corners stay where they are."""
        return Masks(self.size, self.corners, tuple(crop.to(device, non_blocking=True) for crop in self.crops))

    def __reduce__(self) -> tuple[Any, ...]:
        """As bits in one array: torch would hand every crop between processes in a shared file of its own."""
        flat = np.concatenate([np.zeros(0, dtype=bool), *(crop.cpu().numpy().ravel() for crop in self.crops)])
        shapes = [(int(crop.shape[0]), int(crop.shape[1])) for crop in self.crops]
        return _unpacked, (self.size, self.corners.cpu().numpy(), shapes, np.packbits(flat))


def _unpacked(size: tuple[int, int], corners: Any, shapes: list[tuple[int, int]], bits: Any) -> Masks:
    """The masks that ``Masks.__reduce__`` packed."""
    counts = [height * width for height, width in shapes]
    flat = torch.from_numpy(np.unpackbits(bits, count=sum(counts)).astype(bool))
    crops = tuple(part.view(shape) for part, shape in zip(torch.split(flat, counts), shapes, strict=True))
    return Masks(size, torch.from_numpy(corners), crops)
