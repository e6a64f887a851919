"""What is in a data set and what is wrong with it: counts, sizes, colours, damaged files, duplicates, leakage.

h, w size
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from saccade.atomic import whole_file
from saccade.data.captionsheet import caption_facts, caption_problems, caption_sheet
from saccade.data.dataset import Dataset, InMemory, Labelled
from saccade.data.mapsheet import map_sheet
from saccade.data.objects import ObjectDataset
from saccade.data.objectsheet import object_sheet
from saccade.data.source import DataSource, open_data
from saccade.data.splits import as_bytes
from saccade.errors import DataError, ImageError
from saccade.types import IGNORE, BoxTarget, Caption, Classes, ClassTarget, MapTarget

FEW_IMAGES = 10
"""Training classes with fewer pictures are pointed out."""

IMBALANCE = 10.0
"""Training data whose largest class is more than this many times its smallest is pointed out."""

PIXEL_IMBALANCE = 100.0
"""The same for the pixels of label maps, where a background of nine tenths is no surprise."""

TINY = 8
"""Boxes with less area than a square of this side, in pixels, are pointed out."""

_OBJECTS = ("detection", "instance")

_SHOWN = 3
"""How many examples a sentence names."""


@dataclass(frozen=True)
class SizeRange:
    """Sizes of pictures, each ``(h, w)``.

    Attributes:
        smallest: fewest pixels.
        median: the middle one by pixels.
        largest: most pixels.
        num_distinct: how many sizes there are.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    num_distinct: int

    def __str__(self) -> str:
        if self.num_distinct == 1:
            return f"all {self.median[0]}x{self.median[1]}"
        shown = [f"{height}x{width}" for height, width in (self.smallest, self.median, self.largest)]
        return f"{shown[0]} to {shown[2]}, median {shown[1]}, {self.num_distinct} different"


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        name: what was opened.
        format: what was recognised.
        classes: names of the classes.
        splits: pictures per class, per split; with label maps or boxes, pictures in which the class occurs.
        sizes: sizes of the readable pictures, height by width.
        modes: how many pictures are colour or grey.
        corrupt: one sentence per picture that cannot be read.
        duplicates: groups of sources, ``split: source``, that show the same pixels.
        leaks: the groups that are in more than one split.
        conflicts: the groups whose members have different labels.
        problems: everything that deserves attention, in words.
        pictures: pictures per split.
        pixels: with label maps, the share of the labelled pixels that each class has, per split; else empty.
        objects: with boxes, the objects of each class, per split; else empty.
        captions: with captions, how many there are and how long, per split; else empty.
    """

    name: str
    format: str
    classes: tuple[str, ...]
    splits: dict[str, dict[str, int]]
    sizes: SizeRange | None
    modes: dict[str, int]
    corrupt: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    leaks: list[list[str]] = field(default_factory=list)
    conflicts: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    pictures: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, dict[str, float]] = field(default_factory=dict)
    objects: dict[str, dict[str, int]] = field(default_factory=dict)
    captions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self)


class _Look(NamedTuple):
    """One picture, decoded and forgotten."""

    split: str
    source: str
    label: int | bytes  # the class, or the digest of the label map, the objects or the captions
    size: tuple[int, int]
    is_grey: bool
    digest: bytes
    pixels: tuple[int, ...] = ()  # of each class, with label maps; objects of each class, with boxes


def inspect(source: Any) -> Inspection:
    """Read every picture, with its label map if there are any, once and say what is there and what is wrong.

    Args:
        source: anything ``open_data`` takes.

    Raises:
        DataError: where nothing can be opened at all, or masks do not fit their pictures or classes.
    """
    data = source if isinstance(source, DataSource) else open_data(source)
    looks: list[_Look] = []
    corrupt: list[str] = []
    for split, dataset in data.splits.items():
        for found in _look_at(dataset, split):
            if isinstance(found, _Look):
                looks.append(found)
            else:
                corrupt.append(found)
    groups: dict[bytes, list[_Look]] = defaultdict(list)
    for look in looks:
        groups[look.digest].append(look)
    same = [group for group in groups.values() if len(group) > 1]
    leaks = [group for group in same if len({look.split for look in group}) > 1]
    conflicts = [group for group in same if len({look.label for look in group}) > 1]
    splits = {split: _counts(dataset, split, looks) for split, dataset in data.splits.items()}
    pixels = {split: _pixels(data.classes, split, looks) for split in splits} if data.task == "semantic" else {}
    modes = Counter("grey" if look.is_grey else "colour" for look in looks)
    problems = [*data.notes, *_told("cannot be read", corrupt, [[line] for line in corrupt])]
    problems += _told("in more than one split (leakage)", leaks, [_names(group) for group in leaks])
    problems += _told("under different labels", conflicts, [_names(group) for group in conflicts])
    inner = [group for group in same if group not in leaks and group not in conflicts]
    problems += _told("there more than once", inner, [_names(group) for group in inner])
    problems += _pixel_balance(pixels) if pixels else []
    objects = {split: _objects(data.classes, split, looks) for split in splits} if data.task in _OBJECTS else {}
    problems += _object_balance(objects, data) if objects else []
    captioned = data.splits if data.task == "zero_shot" else {}
    problems += [line for split, dataset in captioned.items() for line in caption_problems(dataset, split)]
    problems += _balance(splits, is_counted_once=not pixels and not objects)
    return Inspection(
        data.name,
        data.format,
        data.classes.names,
        splits,
        _sizes([look.size for look in looks]),
        dict(modes),
        corrupt,
        [_names(group) for group in same],
        [_names(group) for group in leaks],
        [_names(group) for group in conflicts],
        problems,
        {split: len(dataset) for split, dataset in data.splits.items()},
        pixels,
        objects,
        {split: caption_facts(dataset) for split, dataset in captioned.items()},
    )


def _look_at(dataset: Dataset, split: str) -> Iterable[_Look | str]:
    def look(index: int) -> _Look | str:
        try:
            sample = dataset[index]
        except DataError as error:  # of the picture, or of its mask
            return str(error)
        image = sample.image
        is_grey = bool((image[0] == image[1]).all() and (image[1] == image[2]).all())
        size = int(image.shape[1]), int(image.shape[2])
        digest = hashlib.sha256(repr(size).encode() + image.numpy().tobytes()).digest()
        if isinstance(sample.target, MapTarget):
            labels = sample.target.labels
            pixels = torch.bincount(labels.flatten(), minlength=IGNORE + 1)[: len(dataset.classes)].tolist()
            label = hashlib.sha256(labels.numpy().tobytes()).digest()
            return _Look(split, sample.source, label, size, is_grey, digest, tuple(pixels))
        if isinstance(sample.target, BoxTarget):
            target = sample.target
            counts = torch.bincount(target.labels, minlength=len(dataset.classes)).tolist()
            told = hashlib.sha256(target.boxes.numpy().tobytes() + target.labels.numpy().tobytes()).digest()
            return _Look(split, sample.source, told, size, is_grey, digest, tuple(counts))
        if isinstance(sample.target, Caption):
            said = hashlib.sha256(as_bytes("\0".join(sample.target.texts))).digest()
            return _Look(split, sample.source, said, size, is_grey, digest)
        assert isinstance(sample.target, ClassTarget)
        return _Look(split, sample.source, int(sample.target.label), size, is_grey, digest)

    # Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(look, range(len(dataset))))


def check_readable(dataset: Dataset) -> None:
    """Read every picture once; nothing to do where they are in memory.

    Raises:
        ImageError: naming the first picture that cannot be read.
    """
    if isinstance(dataset, InMemory):
        return

    def read(index: int) -> None:
        dataset[index]

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for _ in pool.map(read, range(len(dataset))):
            pass


def _counts(dataset: Dataset, split: str, looks: list[_Look]) -> dict[str, int]:
    if isinstance(dataset, Labelled):
        counts = torch.bincount(dataset.labels(), minlength=len(dataset.classes)).tolist()
        return dict(zip(dataset.classes, counts, strict=True))
    maps = [look.pixels for look in looks if look.split == split]
    return {name: sum(1 for pixels in maps if pixels[label]) for label, name in enumerate(dataset.classes)}


def _pixels(classes: Classes, split: str, looks: list[_Look]) -> dict[str, float]:
    """The share of the labelled pixels that each class has."""
    maps = [look.pixels for look in looks if look.split == split]
    counts = [sum(pixels[label] for pixels in maps) for label in range(len(classes))]
    return {name: count / max(sum(counts), 1) for name, count in zip(classes, counts, strict=True)}


def _objects(classes: Classes, split: str, looks: list[_Look]) -> dict[str, int]:
    """The objects of each class."""
    counts = [look.pixels for look in looks if look.split == split]
    return {name: sum(found[label] for found in counts) for label, name in enumerate(classes)}


def _object_balance(objects: dict[str, dict[str, int]], data: DataSource) -> list[str]:
    """What the objects themselves deserve to be told: pictures of background, small objects, unequal classes."""
    problems = []
    for split, dataset in data.splits.items():
        if isinstance(dataset, ObjectDataset):
            bare = sum(1 for image in dataset.images if not image.objects)
            crowds = sum(1 for image in dataset.images for thing in image.objects if thing.is_crowd)
            boxes = [thing.box for image in dataset.images for thing in image.objects]
            tiny = sum(1 for left, top, right, bottom in boxes if (right - left) * (bottom - top) < TINY**2)
            if bare:
                problems.append(f"{split} has {bare} of {len(dataset)} pictures without an object: background")
            if crowds:
                problems.append(
                    f"{split} has {crowds} of {len(boxes)} objects marked as crowds: nothing is learned from them"
                )
            if tiny:
                problems.append(f"{split} has {tiny} of {len(boxes)} boxes smaller than {TINY}x{TINY} pixels")
    counts = objects.get("train") or next(iter(objects.values()))
    there = {name: count for name, count in counts.items() if count}
    if there:
        largest, smallest = max(there, key=lambda name: there[name]), min(there, key=lambda name: there[name])
        if there[largest] > IMBALANCE * there[smallest]:
            ratio = there[largest] / there[smallest]
            problems.append(f"{largest} has {ratio:.0f} times as many training objects as {smallest}")
    return problems


def _names(group: list[_Look]) -> list[str]:
    return [f"{look.split}: {look.source}" for look in group]


def _sizes(sizes: list[tuple[int, int]]) -> SizeRange | None:
    if not sizes:
        return None
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return SizeRange(ordered[0], ordered[len(ordered) // 2], ordered[-1], len(set(sizes)))


def _told(what: str, found: list[Any], names: list[list[str]]) -> list[str]:
    """A sentence with the count and the first few examples, or nothing."""
    if not found:
        return []
    shown = "; ".join(" = ".join(group[:_SHOWN]) for group in names[:_SHOWN])
    noun = "picture is" if len(found) == 1 else "pictures are"
    verb = what if what.startswith("cannot") else f"{noun.split()[1]} {what}"
    return [f"{len(found)} {noun.split()[0]} {verb}: {shown}" + ("; ..." if len(found) > _SHOWN else "")]


def _pixel_balance(pixels: dict[str, dict[str, float]]) -> list[str]:
    shares = pixels.get("train") or next(iter(pixels.values()))
    there = {name: share for name, share in shares.items() if share}
    if not there:
        return []
    largest, smallest = max(there, key=lambda name: there[name]), min(there, key=lambda name: there[name])
    ratio = there[largest] / there[smallest]
    if ratio <= PIXEL_IMBALANCE:
        return []
    told = f"{largest} has {ratio:,.0f} times as many training pixels as {smallest}"
    return [f"{told}: pixel accuracy will flatter, the IoU of each class will not"]


def _balance(splits: dict[str, dict[str, int]], *, is_counted_once: bool) -> list[str]:
    counts = splits.get("train") or next(iter(splits.values()))
    there = {name: count for name, count in counts.items() if count}
    few = [f"{name} ({count})" for name, count in there.items() if count < FEW_IMAGES]
    problems = []
    if few:
        shown = ", ".join(few[:8]) + (", ..." if len(few) > 8 else "")
        noun = "class has" if len(few) == 1 else "classes have"
        problems.append(f"{len(few)} {noun} fewer than {FEW_IMAGES} training pictures: {shown}")
    if not there or not is_counted_once:
        return problems
    largest, smallest = max(there, key=lambda name: there[name]), min(there, key=lambda name: there[name])
    if there[largest] > IMBALANCE * there[smallest]:
        ratio = there[largest] / there[smallest]
        problems.append(
            f"{largest} has {ratio:.0f} times as many training pictures as {smallest}: accuracy will flatter"
        )
    return problems


def contact_sheet(
    dataset: Dataset, path: str | Path, *, columns: int = 8, cell: int | None = None, rows: int = 40
) -> Path:
    """One row of pictures per class, with its name and count, saved as a picture; or pictures with maps or boxes.

    Args:
        dataset: what to show; the pictures of a class are taken at equal distances.
        path: where to save; the ending decides the format.
        columns: pictures in a row; with label maps, pictures and maps.
        cell: side of a picture in pixels; 96, or 176 with label maps, where it is None.
        rows: most rows; with label maps, six at the most.

    Raises:
        RunError: where nothing can be written.
    """
    if dataset.task in _OBJECTS:
        return _save(
            object_sheet(dataset, columns=max(columns // 2, 1), cell=cell or 240, rows=min(rows, 6)), Path(path)
        )
    if dataset.task == "zero_shot":
        return _save(caption_sheet(dataset, columns=columns, cell=cell or 112, rows=min(rows, 8)), Path(path))
    if not isinstance(dataset, Labelled):
        return _save(map_sheet(dataset, columns=max(columns // 2, 1), cell=cell or 176, rows=min(rows, 6)), Path(path))
    cell = cell or 96
    labels = dataset.labels()
    margin, band = 6, 18
    shown = list(enumerate(dataset.classes))[:rows]
    sheet = Image.new(
        "RGB", (margin + columns * (cell + margin), margin + len(shown) * (cell + band + margin)), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, (label, name) in enumerate(shown):
        top = margin + row * (cell + band + margin)
        members = torch.nonzero(labels == label)[:, 0].tolist()
        pen.text((margin, top), f"{name}  ({len(members)})", fill="black", font=font)
        chosen = np.linspace(0, len(members) - 1, min(columns, len(members))).round().astype(int).tolist()
        for column, place in enumerate(chosen):
            left = margin + column * (cell + margin)
            thumbnail = _thumbnail(dataset, members[place], cell)
            if thumbnail is None:
                pen.rectangle((left, top + band, left + cell - 1, top + band + cell - 1), outline="red")
                pen.line((left, top + band, left + cell - 1, top + band + cell - 1), fill="red")
            else:
                sheet.paste(thumbnail, (left, top + band))
    return _save(sheet, Path(path))


def _thumbnail(dataset: Dataset, index: int, cell: int) -> Image.Image | None:
    try:
        image: Tensor = dataset[index].image
    except ImageError:
        return None
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    ratio = cell / max(picture.size)
    size = max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1)
    # Enlarged pixels stay visible as such: a 28x28 picture should not look smoother than it is.
    kernel = Image.Resampling.NEAREST if ratio > 1 else Image.Resampling.LANCZOS
    return picture.resize(size, kernel)


def _save(sheet: Image.Image, path: Path) -> Path:
    with whole_file(path) as temporary:
        sheet.save(temporary, format=Image.registered_extensions().get(path.suffix.lower(), "PNG"))
    return path
