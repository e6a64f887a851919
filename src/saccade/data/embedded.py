"""Real data inside the package, so that a first run needs no network.

Origin and licence: ``assets/*/SOURCE.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from saccade.data.caption_folder import open_captions
from saccade.data.captions import CaptionItem, CaptionsInMemory, LabelledCaptions
from saccade.data.cocofile import read_coco
from saccade.data.dataset import ArrayDataset, Opened
from saccade.data.decode import read_size
from saccade.data.folder import read_licence
from saccade.data.idx import find_idx, open_idx
from saccade.data.maps import MapDataset
from saccade.data.objects import AnnotatedImage, ObjectAnnotation, ObjectDataset, numbered_objects
from saccade.data.pairs import open_pairs
from saccade.data.shards import ShardMember
from saccade.data.synthetic_captions import scene_captions
from saccade.errors import UnknownNameError
from saccade.types import Classes


def names() -> tuple[str, ...]:
    """Names of the embedded data sets."""
    return tuple(_OPENERS)


@cache
def open_embedded(name: str) -> Opened:
    """The splits of an embedded data set; unpacked once per process.

    Raises:
        UnknownNameError: with the nearest name.
    """
    if name not in _OPENERS:
        raise UnknownNameError("embedded data set", name, _OPENERS)
    return _OPENERS[name]()


def _fashion_mnist() -> Opened:
    with _asset("fashion_mnist") as folder:
        opened = open_idx(folder, find_idx(folder))
    # Sources are told by name: where the package is installed says nothing to a reader of a report.
    splits = {
        split: replace(data, name=f"fashion_mnist/{split}")
        for split, data in opened.splits.items()
        if isinstance(data, ArrayDataset)
    }
    return Opened("embedded data set fashion_mnist", splits, opened.notes)


def _nuclei() -> Opened:
    with _asset("nuclei") as folder:
        opened = open_pairs(folder)
    splits: dict[str, MapDataset] = {}
    for split, data in opened.splits.items():
        assert isinstance(data, MapDataset)  # open_pairs gives nothing else
        items = [replace(item, source=f"nuclei/{split}/{item.image.name}") for item in data.items]
        splits[split] = MapDataset(items, data.classes, data.root, data.licence)
    return Opened("embedded data set nuclei", splits, opened.notes)


def _blood_cells() -> Opened:
    splits: dict[str, ObjectDataset] = {}
    with _asset("blood_cells") as folder:
        for split in ("train", "val"):
            file = read_coco(folder / "annotations" / f"instances_{split}.json")
            names = {category.id: category.name for category in file.categories}
            images = []
            for image in file.images.values():
                path = folder / "images" / split / image.file_name
                objects = []
                for annotation in file.annotations.get(image.id, []):
                    assert annotation.box is not None  # every object of this file has one
                    left, top, width, height = annotation.box
                    box = (left, top, left + width, top + height)
                    objects.append(ObjectAnnotation(names[annotation.category_id], box))
                size = image.size or read_size(path)[0]
                source = f"blood_cells/{split}/{image.file_name}"
                images.append(AnnotatedImage(path, size, tuple(objects), image.id, source))
            classes, ids = Classes(tuple(names.values())), {name: number for number, name in names.items()}
            splits[split] = ObjectDataset(images, classes, folder, read_licence(folder), category_ids=ids)
    return Opened("embedded data set blood_cells", splits, [])


def _nuclei_instances() -> Opened:
    """The pictures of ``nuclei``, whose nuclei other masks tell apart."""
    splits: dict[str, ObjectDataset] = {}
    with _asset() as root:
        folder = root / "nuclei_instances"
        for split in ("train", "val"):
            images = []
            for mask in sorted((folder / split / "masks").glob("*.png")):
                path = root / "nuclei" / split / "images" / mask.name
                size = read_size(path)[0]
                objects = numbered_objects(mask, size, "nucleus")
                images.append(AnnotatedImage(path, size, objects, source=f"nuclei_instances/{split}/{mask.name}"))
            classes = Classes(("nucleus",))
            splits[split] = ObjectDataset(images, classes, root, read_licence(folder), task="instance")
    return Opened("embedded data set nuclei_instances", splits, [])


def _emoji() -> Opened:
    """All pictures are decoded at once: they are tiny."""
    splits: dict[str, CaptionsInMemory] = {}
    with _asset("emoji") as folder:
        opened = open_captions(folder)
        for split, data in opened.splits.items():
            assert isinstance(data, LabelledCaptions)  # every picture of this shard has a category
            items = [_in_memory(item, split) for item in data.items]
            splits[split] = CaptionsInMemory(items, data.classes, folder, data.licence)
    return Opened("embedded data set emoji", splits, [])


def _in_memory(item: CaptionItem, split: str) -> CaptionItem:
    assert isinstance(item.picture, ShardMember)
    return replace(item, picture=item.read(), source=f"emoji/{split}/{item.picture.name}")


_OPENERS: dict[str, Callable[[], Opened]] = {
    "fashion_mnist": _fashion_mnist,
    "nuclei": _nuclei,
    "blood_cells": _blood_cells,
    "nuclei_instances": _nuclei_instances,
    "emoji": _emoji,
    "scene_captions": scene_captions,
}


def _asset(*names: str) -> AbstractContextManager[Path]:
    return as_file(files("saccade").joinpath("assets", *names))


@contextmanager
def photos() -> Iterator[list[Path]]:
    """The photographs that ship with the package, as files that exist inside the ``with`` block."""
    with _asset("photos") as folder:
        yield sorted(folder.glob("*.jpg"))
