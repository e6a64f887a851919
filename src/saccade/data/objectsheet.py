"""Pictures of a data set with their boxes and masks, in one picture with a legend: what was read, for eyes to check.

h, w size · K classes
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saccade.data.dataset import Dataset
from saccade.errors import DataError
from saccade.ops.palette import class_colours
from saccade.types import BoxTarget, Sample

_MARGIN, _BAND = 6, 18
_ENTRY = 150
"""Width of one class of the legend in pixels."""

_TINT = 0.45


def object_sheet(dataset: Dataset, *, columns: int, cell: int, rows: int) -> Image.Image:
    """Pictures at equal distances with boxes and masks in the colours of their classes; crowds are grey.

    Args:
        dataset: what to show; its targets are boxes.
        columns: pictures in a row.
        cell: side of a picture in pixels.
        rows: most rows.
    """
    count = min(columns * rows, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist() if count else []
    colours = [(int(r), int(g), int(b)) for r, g, b in class_colours(len(dataset.classes)).tolist()]
    width = _MARGIN + columns * (cell + _MARGIN)
    stride = cell + _BAND + _MARGIN
    start = _MARGIN + -(-count // columns) * stride
    font = ImageFont.load_default(12)
    drawn: list[Image.Image] = []
    names: list[str] = []
    there: set[int] = set()
    for index in chosen:
        try:
            sample = dataset[index]
        except DataError as error:
            names.append((error.where or "").replace("\\", "/").rpartition("/")[2])
            drawn.append(Image.new("RGB", (cell, cell), "red"))
            continue
        assert isinstance(sample.target, BoxTarget)  # the caller shows objects only
        names.append(f"{sample.source.replace(chr(92), '/').rpartition('/')[2][:24]}  ({len(sample.target)})")
        there |= set(sample.target.labels.tolist())
        drawn.append(_thumbnail(sample, sample.target, colours, cell))
    per_line = max(width // _ENTRY, 1)
    sheet = Image.new("RGB", (width, start + _MARGIN + _BAND * -(-len(there) // per_line)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (name, picture) in enumerate(zip(names, drawn, strict=True)):
        left, top = _MARGIN + place % columns * (cell + _MARGIN), _MARGIN + place // columns * stride
        pen.text((left, top), name, fill="black", font=font)
        sheet.paste(picture, (left, top + _BAND))
    for place, label in enumerate(sorted(there)):
        left, top = _MARGIN + place % per_line * _ENTRY, start + place // per_line * _BAND
        pen.rectangle((left, top + 2, left + 12, top + 14), fill=colours[label], outline="black")
        pen.text((left + 18, top), dataset.classes[label][:18], fill="black", font=font)
    return sheet


def _thumbnail(sample: Sample, target: BoxTarget, colours: list[tuple[int, int, int]], cell: int) -> Image.Image:
    pixels = sample.image.permute(1, 2, 0).numpy().astype(np.float32)
    labels, crowd = target.labels.tolist(), target.crowd.tolist()
    for index in range(len(target)) if target.masks is not None else ():
        assert target.masks is not None
        top, left = target.masks.corners[index].tolist()
        crop = target.masks.crops[index].numpy()
        window = pixels[top : top + crop.shape[0], left : left + crop.shape[1]]
        window[crop] += _TINT * (np.array(colours[labels[index]], dtype=np.float32) - window[crop])
    picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    ratio = cell / max(picture.size)
    size = max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1)
    picture = picture.resize(size, Image.Resampling.NEAREST if ratio > 1 else Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    for box, label, is_crowd in zip(target.boxes.tolist(), labels, crowd, strict=True):
        edges = [edge * ratio for edge in box]
        corners = (edges[0], edges[1], max(edges[2] - 1, edges[0]), max(edges[3] - 1, edges[1]))
        pen.rectangle(corners, outline=(160, 160, 160) if is_crowd else colours[label], width=1 if is_crowd else 2)
    return picture
