"""COCO as label maps: objects painted over a background, or panoptic masks.

Of objects that overlap the smaller is on top, so that a cup on a table stays visible; crowds are painted like any other
object. The labels are the background and then the categories by ascending id, however sparse the ids are; a category
called background takes that place. Panoptic masks (Kirillov et al. 2018, arXiv 1801.00868) have no background: every
category, of things and of stuff, is a class, and pixels of no segment (id 0) are ignored.

Known layouts: ``annotations/instances_SPLIT.json`` or ``panoptic_SPLIT.json`` with ``images/SPLIT``, ``SPLIT`` or
``images``; ``SPLIT.json`` or one JSON file beside ``images``; ``SPLIT/*.json`` with the pictures beside it; one file.

h, w size of a picture
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.data.cocofile import CocoAnnotation, CocoFile, annotation_mask, is_coco_file, read_coco
from saccade.data.dataset import Opened
from saccade.data.decode import MAX_PIXELS, read_size
from saccade.data.folder import read_licence
from saccade.data.maps import Coding, MapDataset, MapItem, MaskFile, check_classes, colour_value, identity_of
from saccade.data.mapscan import check_items, hold_out
from saccade.data.splits import SPLIT_NAMES, counted
from saccade.errors import DataError, ImageError
from saccade.types import IGNORE, Classes

BACKGROUND = "background"

_STEM = re.compile(r"^(?:(instances|panoptic|annotations|coco)[_-])?([a-z]+)[_-]?(?:\d{4})?$")
_SHOWN = 3


@dataclass(frozen=True)
class CocoMap:
    """The label map of one picture, painted from its objects.

    Attributes:
        annotations: the objects.
        size: ``(h, w)`` of the picture.
        labels: category id -> label.
        background: label of pixels without an object.
        file: the JSON, for messages and fingerprints.
        image_id: the picture in it.
    """

    annotations: Sequence[CocoAnnotation]
    size: tuple[int, int]
    labels: Mapping[int, int]
    background: int
    file: Path
    image_id: int

    def read(self) -> NDArray[np.uint8]:
        """The labels ``[h, w]``.

        Raises:
            DataError: run lengths that do not fit the picture, a picture of more than ``MAX_PIXELS``.
        """
        height, width = self.size
        if height * width > MAX_PIXELS:
            told = f"the JSON says {width}x{height} pixels"
            raise DataError(told, where=str(self), expected=f"at most {MAX_PIXELS:,} in all")
        painted = np.full(self.size, self.background, dtype=np.uint8)
        masks = [(annotation_mask(a, self.size, str(self)), self.labels[a.category_id]) for a in self.annotations]
        for mask, label in sorted(masks, key=lambda entry: int(entry[0].sum()), reverse=True):
            painted[mask] = label
        return painted

    def identity(self, root: Path) -> str:
        """Name and size of the JSON, and the picture in it."""
        return f"{identity_of(self.file, root)}\0{self.image_id}"

    def __str__(self) -> str:
        return f"{self.file}#{self.image_id}"


class _Part(NamedTuple):
    """One JSON file and the split it is (None: nobody said)."""

    split: str | None
    file: Path


def has_coco_annotations(root: Path) -> bool:
    """Whether ``annotations/`` holds COCO JSON of objects or panoptic masks."""
    return bool(_in_annotations(root))


def is_coco_folder(root: Path) -> bool:
    """Whether the folder holds COCO JSON in one of the known layouts."""
    return bool(_parts(root))


class CocoSource(NamedTuple):
    """The COCO JSON files of a data set, read.

    Attributes:
        root: the folder that holds JSON and pictures.
        files: split (None: nobody said) and content of each.
    """

    root: Path
    files: list[tuple[str | None, CocoFile]]


def read_coco_source(source: Path) -> CocoSource:
    """All COCO JSON of a folder in one of the known layouts, or of one file.

    Raises:
        DataError: JSON that is damaged or no COCO, or none at all.
    """
    root = _root_of(source) if source.is_file() else source
    parts = [_Part(None, source)] if source.is_file() else _parts(root)
    if not parts:
        raise DataError("there is no COCO JSON", where=str(source), expected="annotations/instances_train.json")
    return CocoSource(root, [(part.split, read_coco(part.file)) for part in parts])


def open_coco(source: Path, *, strict: bool = False, read: CocoSource | None = None) -> Opened:
    """The splits of a folder with COCO JSON, or of one JSON file, as label maps.

    Args:
        source: the folder or file.
        strict: fail on pictures that are listed but not there.
        read: what ``read_coco_source`` gave, so that nothing is read twice.

    Raises:
        DataError: JSON that is damaged or no COCO, no picture of those it lists, annotations that do not fit their
            pictures, no category, more than 255; with ``strict`` also pictures that are listed but not there.
    """
    root, files = read if read is not None else read_coco_source(source)
    is_panoptic = any(file.panoptic for _, file in files)
    classes, notes = _classes([file for _, file in files], has_background=not is_panoptic)
    check_classes(classes, str(source))
    splits: dict[str, list[MapItem]] = {}
    for split, file in files:
        notes += file.notes
        items, told = _items(file, root, split, classes, strict)
        notes += told
        if split is None:
            halves, note = hold_out(items, [item.image.name for item in items])
            splits |= halves
            notes.append(note)
        else:
            splits[split] = splits.get(split, []) + items
    splits = {name: items for name, items in splits.items() if items}
    notes += check_items(splits, classes, str(source))
    licence = read_licence(root)
    datasets = {name: MapDataset(items, classes, root, licence) for name, items in splits.items()}
    kind = "COCO panoptic masks" if is_panoptic else "COCO objects painted as label maps"
    return Opened(f"{kind}, from {', '.join(file.path.name for _, file in files)}", datasets, notes)


# --- files


def _root_of(file: Path) -> Path:
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _json_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.glob("*.json") if path.is_file()) if folder.is_dir() else []
    return [path for path in files if is_coco_file(path)]


def _in_annotations(root: Path) -> list[_Part]:
    """Files of ``annotations/``: panoptic ones where their masks are there too, else those of objects."""
    kinds: dict[str, list[_Part]] = {}
    for path in _json_files(root / "annotations"):
        match = _STEM.match(path.stem.lower())
        split = SPLIT_NAMES.get(match[2]) if match else None
        if match and split:
            kinds.setdefault(match[1] or "instances", []).append(_Part(split, path))
    panoptic = [part for part in kinds.pop("panoptic", []) if _panoptic_folder(part.file, root) is not None]
    return panoptic or next(iter(kinds.values()), [])


def _parts(root: Path) -> list[_Part]:
    found = _in_annotations(root)
    if found:
        return found
    files = _json_files(root)
    matches = {path: _STEM.match(path.stem.lower()) for path in files}
    named = [_Part(SPLIT_NAMES.get(match[2]), path) for path, match in matches.items() if match]
    named = [part for part in named if part.split]
    # One file that happens to be called train is still all there is.
    if len(named) > 1 or (named and len(files) > 1):
        return named
    if files:
        return [_Part(None, files[0])] if len(files) == 1 else []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = SPLIT_NAMES.get(folder.name.lower())
        inside = _json_files(folder) if split else []
        found += [_Part(split, path) for path in inside[:1]]
    alone = _json_files(root / "annotations")
    return found or ([_Part(None, alone[0])] if len(alone) == 1 else [])


def _panoptic_folder(file: Path, root: Path) -> Path | None:
    """Where the masks of a panoptic JSON are."""
    choices = [
        file.with_suffix(""),
        root / file.stem,
        root / "masks" / file.stem,
        root / "masks",
        file.parent / "masks",
    ]
    return next((folder for folder in choices if folder.is_dir()), None)


def picture_folders(file: Path, root: Path, split: str | None) -> list[Path]:
    """Where the pictures of a JSON may be, likeliest first."""
    names = [name for name, known in SPLIT_NAMES.items() if split and known == split]
    word = re.sub(r"^(instances|panoptic)[_-]", "", file.stem)
    choices = [root / "images" / word, root / word]
    choices += [place for name in names for place in (root / "images" / name, root / name)]
    choices += [root / "images", root / "JPEGImages", file.parent / "images", file.parent, root]
    return [folder for folder in dict.fromkeys(choices) if folder.is_dir()]


# --- classes and items


def _classes(files: Sequence[CocoFile], *, has_background: bool) -> tuple[Classes, list[str]]:
    """The background and the categories of the first file; what only other files have comes after them."""
    names = [category.name for category in files[0].categories]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        told = f"two categories are called {repeated[0]!r}"
        raise DataError(told, where=str(files[0].path), expected="every name once")
    notes = []
    for file in files[1:]:
        extra = [category.name for category in file.categories if category.name not in names]
        if extra:
            names += extra
            notes.append(f"{file.path.name} has categories that {files[0].path.name} has not: {', '.join(extra[:8])}")
    if has_background:
        names = [BACKGROUND, *(name for name in names if name.casefold() != BACKGROUND)]
    return Classes(tuple(names)), notes


def _items(
    file: CocoFile, root: Path, split: str | None, classes: Classes, strict: bool
) -> tuple[list[MapItem], list[str]]:
    """The pictures of one file that are there, with their label maps."""
    folders = picture_folders(file.path, root, split)
    masks = _panoptic_folder(file.path, root) if file.panoptic else None
    if file.panoptic and masks is None:
        expected = f"a folder {file.path.stem} beside the JSON"
        raise DataError("the folder of the panoptic masks is missing", where=str(file.path), expected=expected)
    labels = {
        c.id: classes.names.index(BACKGROUND if c.name.casefold() == BACKGROUND else c.name) for c in file.categories
    }
    items: list[MapItem] = []
    absent: list[str] = []
    unlabelled = 0
    for image in file.images.values():
        path = next((p for p in (folder / image.file_name for folder in folders) if p.is_file()), None)
        if path is None:
            absent.append(image.file_name)
        elif masks is not None:
            panoptic = file.panoptic.get(image.id)
            unlabelled += panoptic is None
            if panoptic is not None:
                coding = _panoptic_coding(panoptic.segments, labels)
                items.append(MapItem(path, MaskFile(masks / panoptic.file_name, coding)))
        else:
            size = image.size or _size(path)
            if size is not None:
                objects = file.annotations.get(image.id, [])
                unlabelled += not objects
                items.append(MapItem(path, CocoMap(objects, size, labels, 0, file.path, image.id)))
    return items, _told(file, absent, unlabelled, bool(items), strict)


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return read_size(path)[0]
    except ImageError:
        return None


def _panoptic_coding(segments: Mapping[int, int], labels: Mapping[int, int]) -> Coding:
    """COCO numbers a segment ``r + 256 g + 65536 b``."""
    values = {colour_value(s & 255, s >> 8 & 255, s >> 16): labels[category] for s, category in segments.items()}
    return Coding({0: IGNORE} | values, is_colour=True)


def _told(file: CocoFile, absent: list[str], unlabelled: int, has_items: bool, strict: bool) -> list[str]:
    notes = []
    if absent:
        shown = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
        told = f"{len(absent)} of {counted(len(file.images), 'picture')} of {file.path.name} are not there: {shown}"
        if strict or not has_items:
            remedy = "put them into images/ beside the JSON" + (", or leave out --strict" if strict else "")
            raise DataError(told, where=str(file.path), remedy=remedy)
        notes.append(f"{told}: left out")
    if not has_items:
        raise DataError("the JSON lists no picture with a mask", where=str(file.path))
    if unlabelled:
        what = "left out" if file.panoptic else "background only"
        notes.append(f"{counted(unlabelled, 'picture')} of {file.path.name} without an annotation: {what}")
    return notes
