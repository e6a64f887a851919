"""Captions for people: how many there are and how long, and pictures with their captions below them.

h, w size
"""

from __future__ import annotations

import textwrap
from collections import Counter
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saccade.data.captions import CaptionDataset
from saccade.data.dataset import Dataset
from saccade.errors import DataError, ImageError
from saccade.types import Caption

_MARGIN, _LINE, _LINES = 6, 14, 4
_LETTER = 6.2
"""Width of a letter of the font in pixels, about."""

_REPEATED = 0.2
"""Data of which more than this share of the captions occur several times is pointed out."""


def caption_facts(dataset: Dataset) -> dict[str, Any]:
    """Pictures, texts, different texts, and the fewest, median and most words of a text."""
    texts = _texts(dataset)
    lengths = sorted(len(text.split()) for text in texts)
    return {
        "pictures": len(dataset),
        "texts": len(texts),
        "different": len(set(texts)),
        "words": (lengths[0], median(lengths), lengths[-1]) if lengths else (0, 0, 0),
    }


def caption_problems(dataset: Dataset, split: str) -> list[str]:
    """What deserves to be told: captions that stand under many pictures cannot find one of them."""
    counts = Counter(_texts(dataset))
    repeated = sum(count for count in counts.values() if count > 1)
    if repeated <= _REPEATED * max(counts.total(), 1):
        return []
    text, most = counts.most_common(1)[0]
    told = f"{repeated} of {counts.total()} captions of {split} stand under several pictures"
    return [f"{told}, {text!r} under {most}: each of these counts as right for it"]


def told_captions(facts: dict[str, Any]) -> str:
    """The facts in one line."""
    least, middle, most = facts["words"]
    return f"{facts['texts']} texts ({facts['different']} different), {least} to {most} words, median {middle:g}"


def caption_sheet(dataset: Dataset, *, columns: int, cell: int, rows: int) -> Image.Image:
    """Pictures at equal distances, each above its first caption.

    Args:
        dataset: what to show; its targets are captions.
        columns: pictures in a row.
        cell: side of a picture in pixels.
        rows: most rows.
    """
    count = min(columns * rows, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist() if count else []
    tall = cell + _LINES * _LINE + _MARGIN
    size = (_MARGIN + columns * (cell + _MARGIN), _MARGIN + -(-max(count, 1) // columns) * tall)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, index in enumerate(chosen):
        left, top = _MARGIN + place % columns * (cell + _MARGIN), _MARGIN + place // columns * tall
        try:
            sample = dataset[index]
        except (ImageError, DataError):
            pen.rectangle((left, top, left + cell - 1, top + cell - 1), outline="red")
            pen.line((left, top, left + cell - 1, top + cell - 1), fill="red")
            continue
        picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        ratio = cell / max(picture.size)
        picture = picture.resize((max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1)))
        sheet.paste(picture, (left, top))
        text = sample.target.texts[0] if isinstance(sample.target, Caption) else ""
        lines = textwrap.wrap(text, max(int(cell / _LETTER), 8), max_lines=_LINES - 1, placeholder=" ...")
        for number, line in enumerate(lines):
            pen.text((left, top + cell + 2 + number * _LINE), line, fill="black", font=font)
    return sheet


def _texts(dataset: Dataset) -> list[str]:
    if isinstance(dataset, CaptionDataset):
        return [text for item in dataset.items for text in item.texts]
    targets = [dataset[index].target for index in range(len(dataset))]
    return [text for target in targets if isinstance(target, Caption) for text in target.texts]
