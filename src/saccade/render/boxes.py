"""Objects drawn on pictures, as arrays: boxes, masks and their names, and truth beside prediction.

Lines lie where the numbers say, to a fraction of a pixel: a pixel is painted by the share of it that a line covers.
Small pictures are enlarged and very large ones reduced before anything is drawn, so that words can be read.

N objects · h, w picture · H, W the picture as drawn
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError
from saccade.ops.palette import OKABE_ITO, categorical
from saccade.render.heat import check_image
from saccade.types import BoxTarget, Classes, Detections, Masks

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

    Rectangle = tuple[float, float, float, float]

MIN_SIDE, MAX_SIDE = 400, 1600
"""Pictures with a shorter side below the first are enlarged, with a longer side above the second reduced."""

NUM_COLOURS = 2 * len(OKABE_ITO)
"""Classes further on share the colours of the first; their names are written beside them."""

Outcome = Literal["right", "missed", "false", "not counted"]
"""What became of an object: found, not found, found where there is none, or on a crowd."""

OUTCOME_COLOURS: Mapping[Outcome, str] = {
    "right": "#56B4E9",
    "missed": "#E69F00",
    "false": "#D55E00",
    "not counted": "#B5B9C0",
}
"""Apart for colour-blind eyes; those missed are only ever in the truth, those false only in the prediction."""


class Outcomes(NamedTuple):
    """What became of the objects of one picture.

    Attributes:
        truth: of each object of the truth.
        found: of each detection.
    """

    truth: Sequence[Outcome]
    found: Sequence[Outcome]


def box_overlay(
    image: Tensor,
    objects: Detections | BoxTarget,
    classes: Classes,
    *,
    colours: Sequence[str] | None = None,
    has_words: bool = True,
    alpha: float = 0.35,
) -> Tensor:
    """Objects on their picture, ``[3, H, W]`` uint8: masks tinted and outlined, boxes, crowds dashed, names.

    Where two names would cover each other only that of the first object is written: the likeliest.

    Args:
        image: ``[3, h, w]`` uint8.
        objects: in the pixels of the picture.
        classes: names of the classes.
        colours: ``#rrggbb`` of each object; by default those of the classes.
        has_words: write name and score beside each box.
        alpha: opacity of the masks' tint.

    Raises:
        InputError: where masks are of another picture, or the colours are not as many as the objects.
    """
    check_image(image)
    if objects.masks is not None and len(objects) and objects.masks.size != tuple(image.shape[1:]):
        raise InputError(f"the masks are of a picture {objects.masks.size}", expected=str(tuple(image.shape[1:])))
    if colours is not None and len(colours) != len(objects):
        raise InputError(f"{len(colours)} colours for {len(objects)} objects", expected="one for each")
    scale = drawing_scale((int(image.shape[1]), int(image.shape[2])))
    canvas = resized(image, scale)
    width = line_width(canvas)
    colours = [object_colour(label) for label in objects.labels.tolist()] if colours is None else colours
    paints = torch.tensor([rgb(colour) for colour in colours], dtype=torch.float32).reshape(-1, 3)
    crowd = objects.crowd.tolist() if isinstance(objects, BoxTarget) else [False] * len(objects)
    boxes = (objects.boxes.cpu().float() * scale).tolist()
    for index in reversed(range(len(objects))):  # the likeliest on top
        if objects.masks is not None:
            _draw_mask(canvas, objects.masks, index, paints[index], scale, alpha, width)
    for index in reversed(range(len(objects))):
        draw_box(canvas, boxes[index], paints[index], width, is_dashed=crowd[index])
    if has_words and len(objects):
        _write(canvas, boxes, _words(objects, classes), paints)
    return canvas.round().clamp(0, 255).to(torch.uint8)


def compared_boxes(
    image: Tensor, target: BoxTarget, found: Detections, classes: Classes, outcomes: Outcomes
) -> tuple[Tensor, Tensor]:
    """The picture with its truth and with what was found, each ``[3, H, W]`` uint8, coloured by what became of it.

    Args:
        image: ``[3, h, w]`` uint8.
        target: the truth, in the labels of ``classes``.
        found: the detections.
        classes: names of the classes.
        outcomes: of every object and every detection.

    Raises:
        InputError: where the outcomes are not as many as the objects.
    """
    truth, predicted = (
        box_overlay(image, objects, classes, colours=[OUTCOME_COLOURS[outcome] for outcome in part])
        for objects, part in ((target, outcomes.truth), (found, outcomes.found))
    )
    return truth, predicted


def truth_beside_prediction(
    image: Tensor, target: BoxTarget, found: Detections, classes: Classes, outcomes: Outcomes
) -> Tensor:
    """``compared_boxes`` as one picture ``[3, H', W']`` uint8: truth left, prediction right, a legend below."""
    from PIL import Image, ImageDraw

    left, right = compared_boxes(image, target, found, classes, outcomes)
    height, width = left.shape[1:]
    size = _font_size(left)
    gap, foot = max(size // 2, 4), 2 * size
    sheet = torch.full((3, height + foot, 2 * width + gap), 255, dtype=torch.uint8)
    sheet[:, :height, :width], sheet[:, :height, width + gap :] = left, right
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    brush, font = ImageDraw.Draw(picture), _font(size)
    middle = height + foot / 2
    counts = {name: (*outcomes.truth, *outcomes.found).count(name) for name in OUTCOME_COLOURS}
    counts["right"] = list(outcomes.found).count("right")
    halves: tuple[tuple[int, str, tuple[Outcome, ...]], ...] = (
        (0, "truth", ("right", "missed", "not counted")),
        (width + gap, "prediction", ("right", "false", "not counted")),
    )
    for start, head, names in halves:
        brush.text((start + size / 2, middle), head, fill="#22252B", font=font, anchor="lm")
        place = start + size + brush.textlength(head, font=font) + size
        for name in names:
            if name != "right" and not counts[name]:
                continue
            side = size * 0.75
            brush.rectangle((place, middle - side / 2, place + side, middle + side / 2), fill=OUTCOME_COLOURS[name])
            told = f"{name}" if name == "not counted" else f"{name} {counts[name]}"
            brush.text((place + size, middle), told, fill="#22252B", font=font, anchor="lm")
            place += 2 * size + brush.textlength(told, font=font)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).contiguous()


def object_colour(label: int) -> str:
    """The colour ``#rrggbb`` of the objects of a class; shared where there are many, as later ones would be pale."""
    return categorical(label % NUM_COLOURS)


def drawing_scale(size: tuple[int, int]) -> float:
    """How much larger a picture ``(h, w)`` is drawn than it is: whole numbers up, any number below 1."""
    if max(size) > MAX_SIDE:
        return MAX_SIDE / max(size)
    factor = max(round(MIN_SIDE / max(min(size), 1)), 1)
    return float(min(factor, max(MAX_SIDE // max(size), 1)))


def line_width(canvas: Tensor) -> int:
    """Width of the lines on a picture ``[3, H, W]``."""
    return max(round(min(canvas.shape[1:]) / 240), 2)


def _words(objects: Detections | BoxTarget, classes: Classes) -> list[str]:
    names = [classes[label] for label in objects.labels.tolist()]
    if isinstance(objects, Detections):
        return [f"{name} {score:.2f}" for name, score in zip(names, objects.scores.tolist(), strict=True)]
    return [f"{name} (crowd)" if crowd else name for name, crowd in zip(names, objects.crowd.tolist(), strict=True)]


def resized(image: Tensor, scale: float) -> Tensor:
    """The picture as drawn, float32 on the CPU: repeated pixel by pixel, or averaged."""
    if scale >= 1:
        factor = int(scale)
        return image.cpu().float().repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[2] * scale), 1))
    return F.interpolate(image.cpu().float()[None], size, mode="bilinear", antialias=True)[0]


def _draw_mask(canvas: Tensor, masks: Masks, index: int, paint: Tensor, scale: float, alpha: float, width: int) -> None:
    """Tint the covered pixels and draw a line along their inner border."""
    crop, (top, left) = masks.crops[index].cpu(), masks.corners[index].tolist()
    if not crop.numel():
        return
    rows, columns = (
        slice(round(start * scale), round((start + length) * scale))
        for start, length in ((top, crop.shape[0]), (left, crop.shape[1]))
    )
    part = canvas[:, rows, columns]
    if not part.numel():
        return
    covered = F.interpolate(crop[None, None].float(), part.shape[1:], mode="nearest")[0, 0] > 0.5
    outside = F.pad((~covered).float(), (width,) * 4, value=1.0)
    is_border = covered & (F.max_pool2d(outside[None], 2 * width - 1, 1)[0, 1:-1, 1:-1] > 0)
    opacity = torch.where(is_border, 0.9, alpha) * covered
    part += opacity * (paint[:, None, None] - part)


def draw_box(canvas: Tensor, box: Sequence[float], paint: Tensor, width: int, *, is_dashed: bool) -> None:
    """The line around a box, with its middle on the box's border and a dark edge that shows it on any ground."""
    half = width / 2
    dash = 5.0 * width if is_dashed else math.inf
    for ink, reach, opacity in ((torch.zeros(3), half + 1, 0.45), (paint, half, 1.0)):
        for line in _lines(box, reach, dash):
            _fill(canvas, line, ink, opacity)


def _lines(box: Sequence[float], reach: float, dash: float) -> Iterator[Rectangle]:
    """The border of a box as rectangles ``reach`` to both sides of it, or as dashes with gaps of the same length."""
    left, top, right, bottom = box
    sides = (
        (left, right, top, True),
        (left, right, bottom, True),
        (top, bottom, left, False),
        (top, bottom, right, False),
    )
    for start, end, at, is_flat in sides:
        # The corners belong to the flat lines, so nothing is painted twice.
        first, last = (start - reach, end + reach) if is_flat else (start + reach, end - reach)
        step = 2 * dash if math.isfinite(dash) else max(last - first, 1.0)
        place = first
        while place < last:
            stop = min(place + dash, last)
            yield (place, at - reach, stop, at + reach) if is_flat else (at - reach, place, at + reach, stop)
            place += step


def _fill(canvas: Tensor, rectangle: Rectangle, paint: Tensor, opacity: float) -> None:
    """Paint a rectangle with sides anywhere: each pixel by the share that is covered."""
    (rows, vertical), (columns, horizontal) = (
        _coverage(rectangle[axis], rectangle[axis + 2], int(canvas.shape[2 - axis])) for axis in (1, 0)
    )
    part = canvas[:, rows, columns]
    share = opacity * vertical[:, None] * horizontal[None]
    part += share * (paint[:, None, None] - part)


def _coverage(low: float, high: float, length: int) -> tuple[slice, Tensor]:
    """The pixels of one axis that an interval touches, and the share of each that it covers."""
    first, last = min(max(math.floor(low), 0), length), min(max(math.ceil(high), 0), length)
    places = torch.arange(first, max(last, first), dtype=torch.float32)
    covered = (places + 1).clamp(max=high) - places.clamp(min=low)
    return slice(first, max(last, first)), covered.clamp(0, 1)


def _write(canvas: Tensor, boxes: Sequence[Sequence[float]], words: Sequence[str], paints: Tensor) -> None:
    """Names on plates of their object's colour, each where it covers no other."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(canvas.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    brush, font = ImageDraw.Draw(picture), _font(_font_size(canvas))
    taken: list[Rectangle] = []
    for box, text, paint in zip(boxes, words, paints, strict=True):
        plate = _free_place(brush, font, box, text, taken, (int(canvas.shape[1]), int(canvas.shape[2])))
        if plate is None:
            continue
        taken.append(plate)
        colour = tuple(int(part) for part in paint.tolist())
        is_light = float(paint @ torch.tensor([0.299, 0.587, 0.114])) > 130
        brush.rectangle(plate, fill=colour)
        middle = (plate[1] + plate[3]) / 2
        brush.text(
            (plate[0] + _margin(font), middle), text, fill="black" if is_light else "white", font=font, anchor="lm"
        )
    canvas.copy_(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))


def _free_place(
    brush: ImageDraw,
    font: FreeTypeFont,
    box: Sequence[float],
    text: str,
    taken: Sequence[Rectangle],
    size: tuple[int, int],
) -> Rectangle | None:
    """Where a name covers no other: above the box, inside of it, below it; None: nowhere."""
    wide, high = brush.textlength(text, font=font) + 2 * _margin(font), font.size * 1.25
    left = min(max(box[0], 0.0), max(size[1] - wide, 0.0))
    for top in (box[1] - high, box[1], box[3] - high, box[3]):
        plate = (left, top, left + wide, top + high)
        is_free = all(
            plate[2] <= other[0] or other[2] <= plate[0] or plate[3] <= other[1] or other[3] <= plate[1]
            for other in taken
        )
        if is_free and top >= 0 and top + high <= size[0]:
            return plate
    return None


def _font_size(canvas: Tensor) -> int:
    return max(round(min(canvas.shape[1:]) / 36), 12)


def _margin(font: FreeTypeFont) -> float:
    return float(font.size) * 0.25


@cache
def _font(size: int) -> FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows Latin, Greek and Cyrillic letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#rrggbb``."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
