"""Masks that number the objects of their picture, as DSB2018 has them: every number above 0 is one object.

The pictures, layouts and class tables are those of ``saccade.data.pairs``: 16-bit masks that count from 1, or a class
that ``classes.json`` calls ``"instances"``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from saccade.data.dataset import Opened
from saccade.data.decode import read_size
from saccade.data.maps import MapDataset, MapItem, MaskFile
from saccade.data.objects import AnnotatedImage, ObjectDataset, numbered_objects
from saccade.data.pairs import open_pairs
from saccade.errors import DataError, ImageError
from saccade.types import Classes, TaskName


def open_numbered(source: Path, task: TaskName | None = None, *, strict: bool = False) -> Opened:
    """The splits of a folder, or of a CSV table, of pictures with a mask each that numbers the objects.

    Args:
        source: the folder or table.
        task: ``instance`` for masks and the boxes around them, ``detection`` for the boxes alone.
        strict: fail on pictures without a mask and masks without a picture.

    Raises:
        DataError: masks whose values are classes, and whatever ``open_pairs`` refuses.
    """
    opened = open_pairs(source, strict=strict)
    splits: dict[str, ObjectDataset] = {}
    name = ""
    notes = [note for note in opened.notes if "number the objects" not in note]
    for split, data in opened.splits.items():
        assert isinstance(data, MapDataset)  # open_pairs gives nothing else
        name = _object_name(data, str(source))
        images, unreadable = _images(data.items, name)
        notes += [f"{item} and its mask cannot both be read: left out" for item in unreadable]
        classes = Classes((name,))
        splits[split] = ObjectDataset(images, classes, data.root, data.licence, task=task or "instance")
    notes.append(f"the values of the masks number the objects of each picture: each is one {name}")
    return Opened(opened.format.replace("pictures with masks", "pictures with masks of objects"), splits, notes)


def _object_name(data: MapDataset, where: str) -> str:
    """What the numbered objects are called."""
    for item in data.items:
        if isinstance(item.map, MaskFile) and item.map.coding.instances is not None:
            return data.classes[item.map.coding.instances]
    raise DataError(
        "the masks say the class of every pixel, not which object it belongs to",
        where=where,
        expected="16-bit masks that number the objects of each picture from 1",
        remedy='read the data for the task semantic, or list {"NAME": "instances"} in classes.json',
    )


def _images(items: Sequence[MapItem], name: str) -> tuple[list[AnnotatedImage], list[MapItem]]:
    """The pictures with their objects, and those that cannot be read."""

    def read(item: MapItem) -> AnnotatedImage | None:
        assert isinstance(item.map, MaskFile)
        try:
            size = read_size(item.image)[0]
            others = set(item.map.coding.values) | {0}
            objects = numbered_objects(item.map.path, size, name, others)
        except ImageError:
            return None
        return AnnotatedImage(item.image, size, objects, source=item.source)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        found = list(pool.map(read, items))
    images = [image for image in found if image is not None]
    return images, [item for item, image in zip(items, found, strict=True) if image is None]
