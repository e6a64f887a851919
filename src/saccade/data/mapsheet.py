"""Pictures of a data set beside their label maps, in one picture with a legend: what was read, for eyes to check.

h, w size · K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from saccade.data.dataset import Dataset
from saccade.errors import DataError
from saccade.ops.palette import class_colours
from saccade.types import IGNORE, Classes, MapTarget

_TINT = 0.55
_IGNORED = (255, 255, 255)
_MARGIN, _BAND = 6, 18
_ENTRY = 150
"""Width of one class of the legend in pixels."""


class _Thumbnail(NamedTuple):
    """One sample made small: its name, and picture and labels of one size; None where it cannot be read."""

    name: str
    picture: NDArray[np.uint8] | None = None
    labels: NDArray[np.uint8] | None = None


def map_sheet(dataset: Dataset, *, columns: int, cell: int, rows: int) -> Image.Image:
    """Pictures at equal distances, each with its label map tinted over it; ignored pixels white, background untinted.

    The legend names the classes that are in the pictures shown.

    Args:
        dataset: what to show; its targets are label maps.
        columns: pairs in a row.
        cell: side of a picture in pixels.
        rows: most rows.
    """
    count = min(columns * rows, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist() if count else []
    shown = [_thumbnail(dataset, index, cell) for index in chosen]
    table = _tints(dataset.classes)
    legend = _legend(shown, dataset.classes)
    stride = 2 * cell + 3 * _MARGIN
    width = _MARGIN + columns * stride
    per_line = max(width // _ENTRY, 1)
    start = _MARGIN + -(-count // columns) * (cell + _BAND + _MARGIN)
    sheet = Image.new("RGB", (width, start + _MARGIN + _BAND * -(-len(legend) // per_line)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, thumbnail in enumerate(shown):
        left, top = _MARGIN + place % columns * stride, _MARGIN + place // columns * (cell + _BAND + _MARGIN)
        pen.text((left, top), thumbnail.name[:32], fill="black", font=font)
        box = (left, top + _BAND, left + cell - 1, top + _BAND + cell - 1)
        if thumbnail.picture is None or thumbnail.labels is None:
            pen.rectangle(box, outline="red")
            pen.line(box, fill="red")
            continue
        sheet.paste(Image.fromarray(thumbnail.picture), box[:2])
        tinted = _tinted(thumbnail.picture, thumbnail.labels, table)
        sheet.paste(Image.fromarray(tinted), (left + cell + _MARGIN, top + _BAND))
    for place, (label, name) in enumerate(legend):
        left, top = _MARGIN + place % per_line * _ENTRY, start + place // per_line * _BAND
        if table[label, 3]:
            red, green, blue = (int(value) for value in table[label, :3])
            pen.rectangle((left, top + 2, left + 12, top + 14), fill=(red, green, blue), outline="black")
        pen.text((left + 18, top), name if table[label, 3] else f"{name} (no tint)", fill="black", font=font)
    return sheet


def _legend(shown: Sequence[_Thumbnail], classes: Classes) -> list[tuple[int, str]]:
    """The labels that are there, with their names."""
    there = set().union(*(np.unique(one.labels).tolist() for one in shown if one.labels is not None))
    return [(label, classes[label][:18] if label < len(classes) else "ignored") for label in sorted(there)]


def _tints(classes: Classes) -> NDArray[np.float64]:
    """Colour and opacity of every label, ``[256, 4]``."""
    table = np.zeros((IGNORE + 1, 4))
    table[: len(classes), :3] = class_colours(len(classes)).numpy()
    table[: len(classes), 3] = [0.0 if label in classes.backgrounds else _TINT for label in range(len(classes))]
    table[IGNORE] = (*_IGNORED, 1.0)
    return table


def _thumbnail(dataset: Dataset, index: int, cell: int) -> _Thumbnail:
    try:
        sample = dataset[index]
    except DataError as error:
        return _Thumbnail((error.where or "").replace("\\", "/").rpartition("/")[2])
    assert isinstance(sample.target, MapTarget)  # the caller shows label maps only
    picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    ratio = cell / max(picture.size)
    size = max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1)
    kernel = Image.Resampling.NEAREST if ratio > 1 else Image.Resampling.LANCZOS
    labels = Image.fromarray(sample.target.labels.numpy()).resize(size, Image.Resampling.NEAREST)
    name = sample.source.replace("\\", "/").rpartition("/")[2]
    return _Thumbnail(name, np.asarray(picture.resize(size, kernel)), np.asarray(labels))


def _tinted(picture: NDArray[np.uint8], labels: NDArray[np.uint8], table: NDArray[np.float64]) -> NDArray[np.uint8]:
    drawn = table[labels]
    tinted: NDArray[np.uint8] = (picture + drawn[..., 3:] * (drawn[..., :3] - picture)).round().astype(np.uint8)
    return tinted
