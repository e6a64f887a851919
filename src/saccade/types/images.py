"""Pictures on a canvas, and the way back to their own pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saccade.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """Where the original picture lies on the canvas: ``canvas = original * scale + offset``, per axis (y, x).

    Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)`` and its centre is ``i + 0.5``, so resizing,
    letterboxing, cropping (a negative offset) and padding are all undone exactly.
    """

    original_size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def to_canvas(self, points: Tensor) -> Tensor:
        """Points (y, x) ``[..., 2]`` of the original picture, on the canvas."""
        return points * points.new_tensor(self.scale) + points.new_tensor(self.offset)

    def to_original(self, points: Tensor) -> Tensor:
        """Points (y, x) ``[..., 2]`` of the canvas, in the original picture (may lie outside of it)."""
        return (points - points.new_tensor(self.offset)) / points.new_tensor(self.scale)


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Normalised, padded pictures, ready for a model.

    Attributes:
        pixels: ``[B, 3, H, W]`` normalised, padded at the right and bottom.
        sizes: true ``(h, w)`` of each image on the canvas, without padding.
        geometries: the map back to the original pixels of each image.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    geometries: tuple[Geometry, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            shape = tuple(self.pixels.shape)
            raise InputError(f"pixels have shape {shape}", expected="[B, 3, H, W]", remedy="pass images to predict()")

    @classmethod
    def of(cls, pixels: Tensor) -> ImageBatch:
        """A batch whose canvas is the original picture: no padding, no resizing."""
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        count = int(pixels.shape[0])
        return cls(pixels, (size,) * count, (Geometry(size),) * count)

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def __getitem__(self, index: int) -> ImageBatch:
        """The batch of the one image at ``index``."""
        index = range(len(self))[index]
        return ImageBatch(self.pixels[index : index + 1], (self.sizes[index],), (self.geometries[index],))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ImageBatch:
        """The same batch with its pixels on another device or of another type."""
        return replace(self, pixels=self.pixels.to(device=device, dtype=dtype, non_blocking=True))

    def channels_last(self) -> ImageBatch:
        """The same pictures laid out channels last: convolutions run up to twice as fast, and no model slower."""
        return replace(self, pixels=self.pixels.contiguous(memory_format=torch.channels_last))

    def with_pixels(self, pixels: Tensor) -> ImageBatch:
        """The same geometry with other pixels ``[R * B, 3, H, W]``: B images repeated R times, image by image."""
        if pixels.shape[0] == len(self):
            return replace(self, pixels=pixels)
        repeats, rest = divmod(int(pixels.shape[0]), max(len(self), 1))
        if rest:
            raise InputError(f"{pixels.shape[0]} pictures for {len(self)} geometries", expected="a multiple")
        sizes = tuple(size for size in self.sizes for _ in range(repeats))
        return ImageBatch(pixels, sizes, tuple(g for g in self.geometries for _ in range(repeats)))
