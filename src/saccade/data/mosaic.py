"""Four pictures in one: detectors see more objects, smaller ones, and each beside things it never stood beside.

Mosaic: Bochkovskiy et al. 2020, arXiv 2004.10934. Mixup of pictures with boxes, and closing both for the last epochs,
so that the end of the training sees pictures as they are: Ge et al. 2021 (YOLOX), arXiv 2107.08430. Differs from the
papers: the four parts meet on the canvas itself, at a place that is drawn, instead of on one of twice the size that is
cut afterwards; each part is a random window of its picture at about the scale it has by itself; the four get their
colours together, as one picture does.

Which pictures meet, and where, is a function of (seed, epoch, index) alone, as everything in the loader is.

N objects · h, w picture · H, W canvas
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from saccade.config import Config
from saccade.data.joint_boxes import vary_objects
from saccade.data.transforms import NUM_DRAWS, Augment, Key
from saccade.errors import ConfigError
from saccade.ops.image import Preprocess
from saccade.types import BoxTarget, Masks, Sample

_NUM_OWN_DRAWS = 8
_MARGIN = 0.25
"""The four parts meet no nearer to the border than this, as a share of the side."""


@dataclass(frozen=True, kw_only=True)
class Mosaic(Config):
    """How pictures with objects are put together for training."""

    use: Literal["auto", "on", "off"] = "auto"
    """``auto`` does what the model is known to learn best with: on for the one-stage detectors, else off."""
    probability: float = 1.0
    """Share of the pictures that become one of four."""
    zoom: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest magnification of each of the four, relative to a picture alone; takes the place of
    ``augment.zoom`` and ``augment.scale``."""
    mixup: float = 0.0
    """Share of these pictures that are blended, half and half, with one more; for large models."""
    closed: float = 0.2
    """Share of the epochs, the last ones, that see pictures as they are."""

    def __post_init__(self) -> None:
        for name in ("probability", "mixup", "closed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="mosaic", expected="in [0, 1]")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ConfigError(f"zoom is {self.zoom}", where="mosaic", expected="0 < smallest <= largest")

    def open_epochs(self, epochs: int) -> int:
        """How many of the epochs, the first ones, have mosaics."""
        return math.ceil(epochs * (1 - self.closed) - 1e-9)

    def partners(self, count: int, key: Key) -> list[int]:
        """The pictures that one picture is put together with.

        Args:
            count: pictures in the data set.
            key: seed, epoch and the index of this one picture.

        Returns:
            No indices where the picture stays by itself, three for a mosaic, four where it is blended as well.
        """
        draws = _draws(key)
        if draws[0] >= self.probability:
            return []
        others = [int(draw * count) for draw in draws[1:5]]
        return others if draws[7] < self.mixup else others[:3]


def compose(
    samples: Sequence[Sample], mosaic: Mosaic, augment: Augment, preprocess: Preprocess, key: Key
) -> tuple[Tensor, BoxTarget]:
    """One picture of four, or of four and one that is blended over them.

    Args:
        samples: the picture itself and its ``Mosaic.partners``.
        mosaic: how much they are magnified.
        augment: how each of them is moved, as if it were alone, and how the four together get other colours.
        preprocess: of the model; the canvas has its ``size``.
        key: seed, epoch and the index of the picture itself.

    Returns:
        The picture ``[3, H, W]`` uint8 and the objects of all on the canvas.
    """
    draws = _draws(key)
    height, width = preprocess.size
    down, right = (
        min(max(round((_MARGIN + (1 - 2 * _MARGIN) * draw) * side), 1), max(side - 1, 1))
        for draw, side in zip(draws[5:7], preprocess.size, strict=True)
    )
    canvas = torch.zeros(3, height, width, dtype=torch.uint8)
    moved = replace(augment, scale=None, zoom=mosaic.zoom, colour=0.0, rand_augment=0, erase=0.0)
    parts = []
    for place, sample in enumerate(samples[:4]):
        is_below, is_right = divmod(place, 2)
        frame = (height - down if is_below else down), (width - right if is_right else right)
        content, target = vary_objects(
            sample.image, _objects(sample), moved, preprocess, _key_of(key, place), frame=frame
        )
        tall, wide = int(content.shape[1]), int(content.shape[2])
        # A part that does not fill its place touches the point where all four meet.
        top, left = (down if is_below else down - tall), (right if is_right else right - wide)
        canvas[:, top : top + tall, left : left + wide] = content
        parts.append(_placed(target, (top, left), preprocess.size))
    canvas = augment.recolour(canvas[None], preprocess, key)[0]
    if len(samples) > 4:
        content, target = vary_objects(samples[4].image, _objects(samples[4]), augment, preprocess, _key_of(key, 4))
        over = torch.zeros_like(canvas)
        over[:, : content.shape[1], : content.shape[2]] = content
        canvas = ((canvas.short() + over.short() + 1) // 2).to(torch.uint8)
        parts.append(_placed(target, (0, 0), preprocess.size))
    return canvas, _joined(parts, preprocess.size)


def _draws(key: Key) -> list[float]:
    """Whether, four partners, the place down and across, whether to blend."""
    drawn: list[float] = key.uniform(NUM_DRAWS + _NUM_OWN_DRAWS)[0, NUM_DRAWS:].tolist()
    return drawn


def _key_of(key: Key, place: int) -> Key:
    """Of one part: a picture that comes twice is not varied alike."""
    return Key(int(key.seeds()[0]), key.epoch, [place])


def _objects(sample: Sample) -> BoxTarget:
    assert isinstance(sample.target, BoxTarget)
    return sample.target


def _placed(target: BoxTarget, corner: tuple[int, int], size: tuple[int, int]) -> BoxTarget:
    """The objects of a part whose top left is at ``corner`` of a canvas ``(H, W)``."""
    top, left = corner
    masks = target.masks
    if masks is not None:
        is_empty = torch.tensor([not crop.numel() for crop in masks.crops], dtype=torch.bool)
        corners = torch.where(is_empty[:, None], masks.corners, masks.corners + torch.tensor([top, left]))
        masks = Masks(size, corners, masks.crops)
    boxes = target.boxes + target.boxes.new_tensor([left, top, left, top])
    return BoxTarget(boxes, target.labels, target.crowd, masks)


def _joined(parts: Sequence[BoxTarget], size: tuple[int, int]) -> BoxTarget:
    """All objects together; with masks where all parts have them."""
    masks = [part.masks for part in parts if part.masks is not None]
    joined = None
    if len(masks) == len(parts):
        crops = tuple(crop for part in masks for crop in part.crops)
        joined = Masks(size, torch.cat([part.corners for part in masks]), crops)
    boxes, labels, crowd = (torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "labels", "crowd"))
    return BoxTarget(boxes, labels, crowd, joined)
