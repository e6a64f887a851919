"""Augmentation of pictures that have boxes and masks of objects: what moves the pixels moves the objects.

Random scale (a magnification), crop, flips and shift as in Liu et al. 2015, arXiv 1512.02325, and Ghiasi et al. 2020,
arXiv 2012.07177; colours by torchvision's transforms. Every movement is one scale and one offset per axis, so boxes are
mapped without rounding, and a mask is read once, at the pixels whose centres are nearest.

N objects · h, w picture · H, W content on the canvas
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saccade.data.transforms import NUM_DRAWS, Augment, Key
from saccade.ops.boxes import areas, clip
from saccade.ops.image import Preprocess
from saccade.types import BoxTarget, Masks

LEAST_LEFT = 0.25
"""Smallest share of an object that a crop must leave for the object to stay."""

_Draws = NDArray[np.float64]


class _Axis(NamedTuple):
    """Where the picture lies on the canvas along one axis: ``canvas = original * scale + offset``.

    A flip has a negative scale. The canvas shows the picture from ``low`` to ``high``; ``side`` pixels are content.
    """

    scale: float
    offset: float
    low: int
    high: int
    side: int

    def flipped(self) -> _Axis:
        return _Axis(-self.scale, self.side - self.offset, self.side - self.high, self.side - self.low, self.side)

    def shifted(self, by: int) -> _Axis:
        low, high = (min(max(edge + by, 0), self.side) for edge in (self.low, self.high))
        return self._replace(offset=self.offset + by, low=low, high=high)

    def sources(self) -> NDArray[np.int64]:
        """The pixel of the original that each pixel of the content shows, ``[side]``; -1 where it shows none."""
        centres = (np.arange(self.side) + 0.5 - self.offset) / self.scale
        # The small number keeps what lies on an edge between pixels from being decided by rounding.
        found: NDArray[np.int64] = np.floor(centres + 1e-6).astype(np.int64)
        found[: self.low] = -1
        found[self.high :] = -1
        return found


def vary_objects(
    image: Tensor,
    target: BoxTarget,
    augment: Augment,
    preprocess: Preprocess,
    key: Key,
    frame: tuple[int, int] | None = None,
) -> tuple[Tensor, BoxTarget]:
    """Vary one picture and its objects alike and bring both to the size they have on the canvas.

    Boxes are cut where the crop cuts them. An object of which less than a quarter is left (of its mask where it has
    one, else of its box) is dropped; a crowd stays as long as anything of it is left, because it says where not to
    look. A box without area is dropped always. Where a mask is cut, its box becomes the box of what is left.

    Args:
        image: ``[3, h, w]`` uint8.
        target: in the pixels of this picture.
        augment: how much; a zoom below 1 makes the content smaller than the canvas. Switched off, the picture is what
            ``preprocess.fit`` makes of it.
        preprocess: of the model; with ``native`` a picture larger than ``size`` is cut to it, at a random place.
        key: seed, epoch and the index of this one picture.
        frame: the part ``(h, w)`` of the canvas that the picture is cut to fill, at the scale it has on the whole.

    Returns:
        The picture ``[3, H, W]`` uint8, not padded, and its objects on the canvas.
    """
    draws = key.uniform(NUM_DRAWS)[0]
    content, down, right = _framed(image, augment, preprocess, draws, frame)
    if draws[6] < augment.flip:
        content, right = content.flip(-1), right.flipped()
    if draws[12] < augment.flip_vertical:
        content, down = content.flip(-2), down.flipped()
    if augment.shift:
        content, down, right = _shift(content, down, right, augment.shift, draws[4:6])
    content = augment.recolour(content[None], preprocess, key)[0]
    return content, _moved(target, (int(image.shape[1]), int(image.shape[2])), down, right)


def _framed(
    image: Tensor, augment: Augment, preprocess: Preprocess, draws: _Draws, frame: tuple[int, int] | None
) -> tuple[Tensor, _Axis, _Axis]:
    """The part of the picture that is kept, resized ``[3, H, W]``, and the axes from the picture to it."""
    height, width = int(image.shape[1]), int(image.shape[2])
    is_whole = preprocess.policy != "native" and augment.scale is None and augment.zoom is None and frame is None
    if is_whole:
        fitted, geometry = preprocess.fit(image[None])
        sides = (int(fitted.shape[2]), int(fitted.shape[3]))
        down, right = (
            _Axis(scale, offset, 0, side, side)
            for scale, offset, side in zip(geometry.scale, geometry.offset, sides, strict=True)
        )
        return fitted[0], down, right
    (tall, high), (wide, broad) = _window((height, width), augment, preprocess, draws, frame)
    top, left = int(draws[2] * (height - tall + 1)), int(draws[3] * (width - wide + 1))
    window = image[None, :, top : top + tall, left : left + wide]
    down = _Axis(high / tall, -top * high / tall, 0, high, high)
    right = _Axis(broad / wide, -left * broad / wide, 0, broad, broad)
    return preprocess.resize(window, (high, broad))[0], down, right


def _window(
    size: tuple[int, int], augment: Augment, preprocess: Preprocess, draws: _Draws, frame: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Per axis how many pixels of the picture are kept, and how many they become."""
    height, width = size
    canvas = preprocess.size if preprocess.policy == "native" else preprocess.content_size(height, width)
    fit = canvas[0] / height, canvas[1] / width
    canvas = frame or canvas
    if augment.scale is not None:
        low, high = augment.scale
        share = low + draws[0] * (high - low)
        ratio = math.exp(math.log(augment.ratio[0]) + draws[1] * math.log(augment.ratio[1] / augment.ratio[0]))
        ratio *= canvas[1] / canvas[0]
        tall = min(max(round(math.sqrt(share * height * width / ratio)), 1), height)
        wide = min(max(round(math.sqrt(share * height * width * ratio)), 1), width)
        return (tall, canvas[0]), (wide, canvas[1])
    zoom = 1.0
    if augment.zoom is not None:
        zoom = augment.zoom[0] * (augment.zoom[1] / augment.zoom[0]) ** float(draws[0])
    if preprocess.policy == "native":
        fit = 1.0, 1.0
    elif preprocess.policy == "crop":
        fit = (max(fit) / preprocess.crop_fraction,) * 2
    return _cut_side(height, canvas[0], zoom * fit[0]), _cut_side(width, canvas[1], zoom * fit[1])


def _cut_side(side: int, canvas: int, magnification: float) -> tuple[int, int]:
    """How many of the picture's pixels fill the canvas along one axis, and how many of the canvas they fill."""
    wanted = max(round(canvas / magnification), 1)
    if wanted <= side:
        return wanted, canvas
    return side, min(max(round(side * magnification), 1), canvas)


def _shift(content: Tensor, down: _Axis, right: _Axis, share: float, draws: _Draws) -> tuple[Tensor, _Axis, _Axis]:
    height, width = down.side, right.side
    reach = round(share * height), round(share * width)
    below, beside = (int(draw * (2 * most + 1)) - most for draw, most in zip(draws, reach, strict=True))
    moved = torch.zeros_like(content)
    into = slice(max(below, 0), height + min(below, 0)), slice(max(beside, 0), width + min(beside, 0))
    taken = slice(max(-below, 0), height + min(-below, 0)), slice(max(-beside, 0), width + min(-beside, 0))
    moved[(..., *into)] = content[(..., *taken)]
    return moved, down.shifted(below), right.shifted(beside)


# --- objects


def _moved(target: BoxTarget, size: tuple[int, int], down: _Axis, right: _Axis) -> BoxTarget:
    """The objects of a picture ``(h, w)`` on the canvas; those of which too little is left are gone."""
    if not len(target):
        masks = None if target.masks is None else Masks.none((down.side, right.side))
        return BoxTarget(target.boxes, target.labels, target.crowd, masks)
    inside = clip(target.boxes.double(), size)
    whole = _mapped(inside, down, right)
    boxes = _cut(whole, down, right)
    left = areas(boxes) / areas(whole).clamp_min(1e-12)
    masks = target.masks
    if masks is not None:
        crops = _Crops(masks, down, right)
        shares = torch.tensor(crops.shares(), dtype=torch.float64)
        has_mask = ~shares.isnan()
        is_cut = has_mask & (shares < 1)
        left = torch.where(has_mask, shares, left)
        for index in torch.nonzero(is_cut & (left > 0))[:, 0].tolist():
            tight = _cut(_mapped(crops.visible_box(index), down, right), down, right)
            joint = torch.cat([torch.maximum(boxes[index, :2], tight[:2]), torch.minimum(boxes[index, 2:], tight[2:])])
            boxes[index] = joint if bool((joint[2:] > joint[:2]).all()) else tight
    is_kept = (left >= LEAST_LEFT) | (target.crowd & (left > 0))
    is_kept &= (boxes[:, 2:] > boxes[:, :2]).all(-1)
    kept = torch.nonzero(is_kept)[:, 0]
    moved = None if masks is None else crops.moved(kept.tolist())
    return BoxTarget(boxes[kept].float(), target.labels[kept], target.crowd[kept], moved)


def _mapped(boxes: Tensor, down: _Axis, right: _Axis) -> Tensor:
    """Boxes ``[..., 4]`` of the picture on the canvas, not cut."""
    scale = boxes.new_tensor([right.scale, down.scale])
    offset = boxes.new_tensor([right.offset, down.offset])
    one, other = boxes[..., :2] * scale + offset, boxes[..., 2:] * scale + offset
    return torch.cat([torch.minimum(one, other), torch.maximum(one, other)], dim=-1)


def _cut(boxes: Tensor, down: _Axis, right: _Axis) -> Tensor:
    low, high = boxes.new_tensor([right.low, down.low]), boxes.new_tensor([right.high, down.high])
    low, high = low.repeat(2), high.repeat(2)
    return torch.minimum(torch.maximum(boxes, low), high)


class _Crops:
    """The masks of one picture, each looked at inside of its rectangle alone."""

    def __init__(self, masks: Masks, down: _Axis, right: _Axis) -> None:
        self.axes = down, right
        self.corners: list[list[int]] = masks.corners.tolist()
        self.crops = [crop.numpy() for crop in masks.crops]
        self.tables = down.sources(), right.sources()
        # The pixels of the picture of which the canvas shows the middle, per axis from ... to.
        self.shown = tuple(_shown(axis) for axis in self.axes)

    def _visible(self, index: int) -> tuple[slice, slice]:
        """The part of the rectangle that lies on the canvas."""
        top, left = self.corners[index]
        tall, wide = self.crops[index].shape
        rows, columns = (
            slice(min(max(first - start, 0), side), min(max(last - start, 0), side))
            for (first, last), start, side in zip(self.shown, (top, left), (tall, wide), strict=True)
        )
        return rows, columns

    def shares(self) -> list[float]:
        """Share of each mask that is left; NaN where it never had a pixel."""
        found = []
        for index, crop in enumerate(self.crops):
            total = int(np.count_nonzero(crop))
            left = int(np.count_nonzero(crop[self._visible(index)]))
            found.append(left / total if total else math.nan)
        return found

    def visible_box(self, index: int) -> Tensor:
        """The box ``[4]`` float64 around what is left of a mask, in the pixels of the picture."""
        rows, columns = self._visible(index)
        part = self.crops[index][rows, columns]
        down, right = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        top, left = self.corners[index][0] + rows.start, self.corners[index][1] + columns.start
        edges = [left + right[0], top + down[0], left + right[-1] + 1, top + down[-1] + 1]
        return torch.tensor([float(edge) for edge in edges], dtype=torch.float64)

    def moved(self, indices: list[int]) -> Masks:
        """Some of the masks on the canvas."""
        corners, crops = [], []
        for index in indices:
            corner, crop = self._moved(index)
            corners.append(corner)
            crops.append(torch.from_numpy(crop))
        size = self.axes[0].side, self.axes[1].side
        return Masks(size, torch.tensor(corners, dtype=torch.int64).reshape(-1, 2), tuple(crops))

    def _moved(self, index: int) -> tuple[tuple[int, int], NDArray[np.bool_]]:
        crop = self.crops[index]
        places = []
        for table, start, side in zip(self.tables, self.corners[index], crop.shape, strict=True):
            # Neighbours on the canvas are neighbours in the picture, so what is found is one run.
            places.append(np.flatnonzero((table >= start) & (table < start + side)))
        rows, columns = places
        (top, left), moved = (0, 0), np.zeros((0, 0), dtype=np.bool_)
        if len(rows) and len(columns):
            (vertical, horizontal), (above, beside) = self.tables, self.corners[index]
            top, left = int(rows[0]), int(columns[0])
            moved = crop[np.ix_(vertical[rows] - above, horizontal[columns] - beside)]
        return ((top, left), moved) if moved.any() else self._thin(index)

    def _thin(self, index: int) -> tuple[tuple[int, int], NDArray[np.bool_]]:
        """A mask that lies between all centres: the pixels of the canvas on which its own pixels fall."""
        rows, columns = self._visible(index)
        places = np.argwhere(self.crops[index][rows, columns]) + (rows.start, columns.start) + self.corners[index]
        if not len(places):
            return (0, 0), np.zeros((0, 0), dtype=np.bool_)
        scale, offset = (np.array([getattr(axis, name) for axis in self.axes]) for name in ("scale", "offset"))
        low, high = (np.array([getattr(axis, name) for axis in self.axes]) for name in ("low", "high"))
        on_canvas = np.clip(np.floor((places + 0.5) * scale + offset).astype(np.int64), low, high - 1)
        corner = on_canvas.min(0)
        thin = np.zeros(on_canvas.max(0) - corner + 1, dtype=np.bool_)
        thin[tuple((on_canvas - corner).T)] = True
        return (int(corner[0]), int(corner[1])), thin


def _shown(axis: _Axis) -> tuple[int, int]:
    """The first pixel of the picture whose middle lies on the canvas along an axis, and the one after the last."""
    edges = sorted((edge - axis.offset) / axis.scale for edge in (axis.low, axis.high))
    first, last = (math.ceil(edge - 0.5 - 1e-6) for edge in edges)
    return max(first, 0), max(last, 0)
