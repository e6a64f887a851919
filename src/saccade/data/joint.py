"""Augmentation of pictures that have a label map: what moves the pixels of one moves those of the other.

Random scale, crop and flips as in Chen et al. 2017, arXiv 1706.05587; colours by torchvision's transforms. Labels are
read at the pixel whose centre is nearest and never blended; places that the picture does not show are ``IGNORE``.

h, w picture · H, W canvas
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.data.transforms import NUM_DRAWS, Augment, Key
from saccade.errors import ConfigError
from saccade.ops.image import Preprocess
from saccade.types import IGNORE

_Draws = np.ndarray[Any, np.dtype[np.float64]]


def check_joint(augment: Augment) -> None:
    """Refuse what would move pixels without their labels.

    Raises:
        ConfigError: for RandAugment, which turns and shears.
    """
    if augment.rand_augment:
        raise ConfigError(
            "RandAugment moves pixels, and neither label maps nor boxes can follow it",
            where="augment.rand_augment",
            expected="0",
            remedy="use zoom, scale, flip, flip_vertical, shift and colour",
        )


def vary_pair(
    image: Tensor, labels: Tensor, augment: Augment, preprocess: Preprocess, key: Key
) -> tuple[Tensor, Tensor]:
    """Vary one picture and its label map alike and bring both onto the canvas.

    Args:
        image: ``[3, h, w]`` uint8.
        labels: ``[h, w]`` uint8.
        augment: how much.
        preprocess: of the model; with ``native`` a crop of ``size`` is cut, at a random place.
        key: seed, epoch and the index of this one picture.

    Returns:
        The picture ``[3, H, W]`` and the labels ``[H, W]``, padded with black and ``IGNORE``.
    """
    draws = key.uniform(NUM_DRAWS)[0]
    window, size = _window(image, augment, preprocess, draws)
    image, labels = image[(slice(None), *window)], labels[window]
    image = preprocess.resize(image[None], size)
    labels = _resized(labels, size)
    if draws[6] < augment.flip:
        image, labels = image.flip(-1), labels.flip(-1)
    if draws[12] < augment.flip_vertical:
        image, labels = image.flip(-2), labels.flip(-2)
    if augment.shift:
        image, labels = _shift(image, labels, augment.shift, draws[4:6])
    image = augment.recolour(image, preprocess, key)
    below, beside = preprocess.size[0] - size[0], preprocess.size[1] - size[1]
    return preprocess.pad(image, preprocess.size)[0], F.pad(labels, (0, beside, 0, below), value=IGNORE)


def _window(
    image: Tensor, augment: Augment, preprocess: Preprocess, draws: _Draws
) -> tuple[tuple[slice, slice], tuple[int, int]]:
    """The part of the picture that is kept, and the size it gets."""
    height, width = int(image.shape[-2]), int(image.shape[-1])
    is_native = preprocess.policy == "native"
    size = preprocess.size if is_native else preprocess.content_size(height, width)
    if augment.scale is not None:
        low, high = augment.scale
        share = low + draws[0] * (high - low)
        ratio = math.exp(math.log(augment.ratio[0]) + draws[1] * math.log(augment.ratio[1] / augment.ratio[0]))
        ratio *= size[1] / size[0]
        tall = min(max(round(math.sqrt(share * height * width / ratio)), 1), height)
        wide = min(max(round(math.sqrt(share * height * width * ratio)), 1), width)
        return _placed(height, width, tall, wide, draws), size
    zoom = 1.0
    if augment.zoom is not None:
        zoom = augment.zoom[0] * (augment.zoom[1] / augment.zoom[0]) ** float(draws[0])
    if is_native:
        tall, high = _cut_side(height, size[0], zoom)
        wide, broad = _cut_side(width, size[1], zoom)
        size = high, broad
    else:
        tall, wide = max(round(height / max(zoom, 1.0)), 1), max(round(width / max(zoom, 1.0)), 1)
    return _placed(height, width, tall, wide, draws), size


def _cut_side(side: int, canvas: int, zoom: float) -> tuple[int, int]:
    """How many of the picture's pixels fill the canvas along one axis, and how many of the canvas they fill."""
    wanted = max(round(canvas / zoom), 1)
    if wanted <= side:
        return wanted, canvas
    # A picture smaller than the window keeps its magnification and leaves the rest of the canvas empty.
    return side, min(max(round(side * zoom), 1), canvas)


def _placed(height: int, width: int, tall: int, wide: int, draws: _Draws) -> tuple[slice, slice]:
    top, left = int(draws[2] * (height - tall + 1)), int(draws[3] * (width - wide + 1))
    return slice(top, top + tall), slice(left, left + wide)


def _resized(labels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(labels.shape) == size:
        return labels
    return F.interpolate(labels[None, None], size, mode="nearest-exact")[0, 0]


def _shift(image: Tensor, labels: Tensor, share: float, draws: _Draws) -> tuple[Tensor, Tensor]:
    height, width = int(labels.shape[-2]), int(labels.shape[-1])
    reach = round(share * height), round(share * width)
    down, right = (int(draw * (2 * most + 1)) - most for draw, most in zip(draws, reach, strict=True))
    into = (slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0)))
    taken = (slice(max(-down, 0), height + min(-down, 0)), slice(max(-right, 0), width + min(-right, 0)))
    moved, known = torch.zeros_like(image), torch.full_like(labels, IGNORE)
    moved[(..., *into)], known[into] = image[(..., *taken)], labels[taken]
    return moved, known
