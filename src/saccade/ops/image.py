"""Pictures to pixels: size policy, value range, normalisation, and the geometry that leads back.

Every model carries one ``Preprocess``; it is the only way pixels are made, in training, evaluation, prediction and
explanation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError, InputError
from saccade.types import Geometry, ImageBatch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MULTIPLE = 32
"""Sides of a canvas of policy ``shorter`` are multiples of this, so that every level of a pyramid fits."""


@dataclass(frozen=True, kw_only=True)
class Preprocess(Config):
    """How a picture becomes pixels. Colour order is RGB, always."""

    size: tuple[int, int] = (224, 224)
    """Height and width of the canvas; with ``native`` of crops and tiles, with ``shorter`` the two sides aimed at."""
    policy: Literal["stretch", "crop", "letterbox", "shorter", "native"] = "crop"
    """``stretch`` ignores the aspect ratio; ``crop`` fits the shorter side and cuts the centre; ``letterbox`` fits the
    longer side and pads right and bottom; ``shorter`` brings the shorter side to ``size[0]``, or less where the longer
    one would exceed ``size[1]``, on a canvas as large as the largest picture of a batch, in multiples of 32, padded
    with the mean colour (as two-stage detectors are published); ``native`` leaves every pixel as it is: the canvas is
    as large as the largest picture of a batch, and ``size`` is that of training crops and of the tiles that large
    pictures are cut into."""
    crop_fraction: float = 1.0
    """With ``crop``: the share of the resized picture's shorter side that the canvas covers (torchvision: 224/256)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Resampling kernel, antialiased."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per RGB channel, for values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Per RGB channel, for values in [0, 1]."""
    fill: int = 0
    """Value of the bytes beside the picture, 0 (black) to 255; with ``shorter`` these are of the mean colour."""

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ConfigError(f"the canvas is {self.size}", where="preprocess.size", expected="at least 1x1")
        if not 0 < self.crop_fraction <= 1:
            raise ConfigError(f"crop_fraction is {self.crop_fraction}", where="preprocess", expected="in (0, 1]")
        if not 0 <= self.fill <= 255:
            raise ConfigError(f"fill is {self.fill}", where="preprocess", expected="0 to 255")
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}", where="preprocess", expected="positive numbers")

    def __call__(self, images: Sequence[Tensor] | Tensor) -> ImageBatch:
        """Pictures ``[3, h, w]`` uint8 RGB (sizes may differ), or ``[B, 3, h, w]``, to one normalised batch.

        Raises:
            InputError: where a picture is not ``[3, h, w]`` uint8; ``data.decode`` makes such pictures of others.
        """
        if len(images) == 0:
            raise InputError("there are no images", expected="at least one")
        for index, image in enumerate(images[:1] if isinstance(images, Tensor) else images):
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
                got = f"{tuple(image.shape)} {image.dtype}"
                raise InputError(f"the image is {got}", where=f"images[{index}]", expected="[3, h, w] uint8 RGB")
            if 0 in image.shape:
                shape = tuple(image.shape)
                raise InputError(f"the image {shape} has no pixels", where=f"images[{index}]", expected="[3, h, w]")
        if isinstance(images, Tensor) or len({image.shape for image in images}) == 1:
            stacked = images if isinstance(images, Tensor) else torch.stack(list(images))
            content, geometry = self.fit(stacked)
            size = (int(content.shape[-2]), int(content.shape[-1]))
            sizes = (size,) * len(images)
            pixels = self.to_pixels(self.pad(content, self.canvas([size])), sizes)
            return ImageBatch(pixels, sizes, (geometry,) * len(images))
        fitted = [self.fit(image[None]) for image in images]
        canvas = self.canvas([(int(content.shape[-2]), int(content.shape[-1])) for content, _ in fitted])
        sizes = tuple((int(content.shape[-2]), int(content.shape[-1])) for content, _ in fitted)
        pixels = self.to_pixels(torch.cat([self.pad(content, canvas) for content, _ in fitted]), sizes)
        return ImageBatch(pixels, sizes, tuple(geometry for _, geometry in fitted))

    def canvas(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Height and width of the canvas for content of these sizes ``(h, w)``."""
        if self.policy not in {"native", "shorter"}:
            return self.size
        tall, wide = max(height for height, _ in sizes), max(width for _, width in sizes)
        if self.policy == "native":
            return tall, wide
        return -(-tall // MULTIPLE) * MULTIPLE, -(-wide // MULTIPLE) * MULTIPLE

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width on the canvas of a picture of that size, without padding."""
        if self.policy == "native":
            return height, width
        if self.policy == "shorter":
            ratio = min(min(self.size) / min(height, width), max(self.size) / max(height, width))
            return max(math.floor(height * ratio), 1), max(math.floor(width * ratio), 1)
        if self.policy != "letterbox":
            return self.size
        canvas_h, canvas_w = self.size
        ratio = min(canvas_h / height, canvas_w / width)
        return min(max(round(height * ratio), 1), canvas_h), min(max(round(width * ratio), 1), canvas_w)

    def fit(self, images: Tensor) -> tuple[Tensor, Geometry]:
        """Equal-sized pictures ``[B, 3, h, w]`` uint8 resized and cut as the policy says, still uint8, not padded."""
        height, width = int(images.shape[-2]), int(images.shape[-1])
        if self.policy == "native":
            return images, Geometry((height, width))
        canvas_h, canvas_w = self.size
        resized = self.content_size(height, width)
        if self.policy == "crop":
            resized = self._around_crop(height, width)
        scale = (resized[0] / height, resized[1] / width)
        images = self.resize(images, resized)
        if self.policy in {"letterbox", "shorter"}:
            return images, Geometry((height, width), scale)
        top, left = round((resized[0] - canvas_h) / 2), round((resized[1] - canvas_w) / 2)
        images = images[..., top : top + canvas_h, left : left + canvas_w]
        return images, Geometry((height, width), scale, (-top, -left))

    def _around_crop(self, height: int, width: int) -> tuple[int, int]:
        """Size before the centre is cut out; sides are rounded as torchvision and timm do, whose weights expect it."""
        canvas_h, canvas_w = self.size
        # The small number keeps 224 / (224 / 232) from becoming 231.
        around_h, around_w = (math.floor(side / self.crop_fraction + 1e-6) for side in self.size)
        if around_h / height >= around_w / width:
            around_w = max(int(around_h * width / height), canvas_w)
        else:
            around_h = max(int(around_w * height / width), canvas_h)
        return around_h, around_w

    def resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Pictures ``[B, 3, h, w]`` uint8 at another size, antialiased."""
        if tuple(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size, mode=self.interpolation, antialias=True)

    def pad(self, content: Tensor, canvas: tuple[int, int] | None = None) -> Tensor:
        """Content ``[B, 3, h, w]`` at the top left of a canvas ``[B, 3, H, W]``; that of ``size`` by default."""
        height, width = canvas or self.size
        below, beside = height - content.shape[-2], width - content.shape[-1]
        return F.pad(content, (0, beside, 0, below), value=self.fill) if below or beside else content

    def to_pixels(self, canvases: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Padded pictures ``[B, 3, H, W]`` uint8 with content of these sizes ``(h, w)``, to normalised float32."""
        pixels = self.normalise(canvases)
        if self.policy == "shorter":  # zero is the mean colour
            for image, (height, width) in zip(pixels, sizes, strict=True):
                image[:, height:] = 0
                image[:, :, width:] = 0
        return pixels

    def normalise(self, images: Tensor) -> Tensor:
        """Bytes ``[..., 3, H, W]`` to normalised float32."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        values = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return torch.addcmul(-mean / std, values, 1 / (255 * std), out=values)

    def denormalise(self, pixels: Tensor) -> Tensor:
        """Normalised pixels ``[..., 3, H, W]`` back to [0, 1]."""
        mean = pixels.new_tensor(self.mean).view(3, 1, 1)
        std = pixels.new_tensor(self.std).view(3, 1, 1)
        return (pixels * std + mean).clamp(0, 1)


def to_original(values: Tensor, canvas: tuple[int, int], geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Values ``[..., gh, gw]`` that cover the whole canvas, laid out in the pixels of the original picture.

    Interpolation is bilinear between cell centres; where cells are smaller than pixels, all cells under a pixel count.
    A canvas that shows the picture pixel by pixel is only cut.

    Returns:
        ``[..., h, w]`` float32 and ``seen [h, w]`` bool: False (and zero) where the canvas does not show the pixel.
    """
    height, width = geometry.original_size
    is_same_scale = tuple(values.shape[-2:]) == canvas and geometry == Geometry((height, width))
    if is_same_scale and canvas[0] >= height and canvas[1] >= width:
        is_seen = torch.ones(height, width, dtype=torch.bool, device=values.device)
        return values[..., :height, :width].float(), is_seen
    vertical, seen_rows = _resampling(int(values.shape[-2]), canvas, geometry, axis=0)
    horizontal, seen_columns = _resampling(int(values.shape[-1]), canvas, geometry, axis=1)
    resampled = vertical.to(values.device) @ values.float() @ horizontal.to(values.device).mT
    return resampled, (seen_rows[:, None] & seen_columns[None, :]).to(values.device)


def _resampling(cells: int, canvas: tuple[int, int], geometry: Geometry, axis: int) -> tuple[Tensor, Tensor]:
    """The matrix ``[n, cells]`` from cells to original pixels along one axis, and which of those are seen ``[n]``."""
    cell_size = canvas[axis] / cells
    centres = torch.arange(geometry.original_size[axis], dtype=torch.float64) + 0.5
    on_canvas = centres * geometry.scale[axis] + geometry.offset[axis]
    is_seen = (on_canvas >= 0) & (on_canvas <= canvas[axis])
    # Beyond the outermost centres the outermost cell holds.
    places = (on_canvas / cell_size - 0.5).clamp(0, cells - 1)
    # A tent as wide as a cell interpolates; as wide as a pixel, where that is wider, it averages instead of skipping.
    reach = max(geometry.scale[axis] / cell_size, 1.0)
    weights = (1 - (places[:, None] - torch.arange(cells)).abs() / reach).clamp_min(0)
    weights = weights / weights.sum(dim=1, keepdim=True) * is_seen[:, None]
    return weights.float(), is_seen
