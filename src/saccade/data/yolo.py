"""YOLO text: one file per picture, a line ``class cx cy w h`` or ``class x1 y1 x2 y2 x3 y3 ...`` per object.

The numbers are shares of width and height. Classes and splits are those of ``data.yaml``; without one, the classes of
``classes.txt`` or ``*.names`` and the folders ``images/SPLIT`` and ``labels/SPLIT``, ``SPLIT/images`` and
``SPLIT/labels``, ``images`` and ``labels``, or text beside the pictures. A picture without a text file is one of
background, as is the custom. A line says one outline at most, and no crowd.

h, w picture
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from saccade.data.dataset import Opened
from saccade.data.decode import SUFFIXES, read_size
from saccade.data.objectjoin import Found, class_list, join
from saccade.data.objects import AnnotatedImage, ObjectAnnotation, polygon_box
from saccade.data.objectscan import Draft, Drafted, shown
from saccade.data.splits import SPLIT_NAMES, counted
from saccade.data.walk import pictures_in
from saccade.errors import DataError, ImageError
from saccade.types import Classes, TaskName

_NAME_FILES = ("classes.txt", "obj.names", "classes.names", "names.txt", "labels.txt")
_NOT_LABELS = frozenset({*_NAME_FILES, "readme.txt", "train.txt", "val.txt", "test.txt", "requirements.txt"})
_LOOKED_AT = 20
"""How many texts of a folder are looked at to recognise it."""

_FAR = 2.0
"""A share of a side above this is a number of pixels."""


class _Listed(NamedTuple):
    """What a folder says of itself.

    Attributes:
        splits: split (None: nobody said) -> pictures.
        classes: the classes, where they are listed.
        told: where that is from, in words.
        roots: the folders that the pictures are named from.
    """

    splits: dict[str | None, list[Path]]
    classes: Classes | None
    told: str
    roots: tuple[Path, ...]


def is_yolo_folder(root: Path) -> bool:
    """Whether the folder holds YOLO text: a ``data.yaml`` with names, or text files of numbers for pictures."""
    if _yaml_file(root) is not None:
        return True
    splits = [path for path in root.iterdir() if path.is_dir() and path.name.lower() in SPLIT_NAMES]
    places = [root, root / "labels", *(root / "labels" / path.name for path in splits), *splits]
    places += [path / "labels" for path in splits]
    if (root / "images").is_dir() and (root / "labels").is_dir():
        places += [root / "labels" / path.name for path in (root / "images").iterdir() if path.is_dir()]
    return any(_holds_labels(folder) for folder in places if folder.is_dir())


def _holds_labels(folder: Path) -> bool:
    """Whether the first texts of a folder are lines of numbers; empty ones are passed over."""
    texts = (path for path in folder.glob("*.txt") if path.name.lower() not in _NOT_LABELS and path.stat().st_size)
    return any(_is_label(path) for path in islice(texts, _LOOKED_AT))


def open_yolo(source: Path, task: TaskName | None = None, *, strict: bool = False) -> Opened:
    """The splits of a folder with YOLO text, or of its ``data.yaml``.

    Raises:
        DataError: lines that are no numbers, numbers that are no shares, classes that are not listed, key points, no
            pictures, no text for any of them, faults of the objects that cannot be mended; with ``strict`` everything
            that would be told.
    """
    yaml_file = source if source.is_file() else _yaml_file(source)
    root = source.parent if source.is_file() else source
    listed = _read_yaml(yaml_file) if yaml_file else _Listed(_folders(root), _read_names(root), "", (root,))
    if not any(listed.splits.values()):
        where = str(yaml_file or root)
        raise DataError("there are no pictures where the data should be", where=where, expected="images/ and labels/")
    named = [split for split in listed.splits if split]
    told = f"YOLO text{listed.told}" + (f" with splits {', '.join(named)}" if named else " without splits")
    found = Found(told, "cxcywh", classes=listed.classes)
    texts = {path: label_file(path, listed.roots) for paths in listed.splits.values() for path in paths}
    bare = [path.name for path, text in texts.items() if not text.is_file()]
    if len(bare) == len(texts):
        picture, text = next(iter(texts.items()))
        told = f"none of the {counted(len(texts), 'picture')} has a text file"
        raise DataError(told, where=str(yaml_file or root), expected=f"{text} for {picture}")
    lines = {path: _lines(text) for path, text in texts.items()}
    _check_lines(lines, listed.classes, str(root))
    if listed.classes is None:
        highest = max((line.label for found in lines.values() for line in found), default=-1)
        found.classes = Classes.numbered(highest + 1)
        found.notes.append("no list of classes: they are called class_0, class_1, ...; name them in classes.txt")
    assert found.classes is not None  # mypy does not follow the branch above
    sizes = _sizes(list(lines))
    for split, paths in listed.splits.items():
        found.splits[split] = [_draft(path, lines[path], sizes[path], found.classes) for path in paths]
    if bare:
        found.notes.append(f"{counted(len(bare), 'picture')} without a text file: background only: {shown(bare)}")
    return join(found, root, str(source), task, strict)


# --- where things are


def label_file(picture: Path, roots: Sequence[Path]) -> Path:
    """The text of a picture: in ``labels`` where the picture is in ``images``, else beside it.

    Args:
        picture: its path.
        roots: the folders that the pictures of the data set are named from. What lies above them is the user's affair
            and may well be called ``images``; of a picture that lies in none of them every folder counts.
    """
    # Made absolute without following links, which may lead out of the data.
    whole = Path(os.path.normpath(picture.absolute())).parts
    tops = [Path(os.path.normpath(root.absolute())).parts for root in roots]
    below = max((len(whole) - len(top) for top in tops if whole[: len(top)] == top), default=len(picture.parts))
    parts = list(picture.parts)
    for place in range(len(parts) - 2, max(len(parts) - below, 0) - 1, -1):
        if parts[place].lower() == "images":
            parts[place] = "labels"
            return Path(*parts).with_suffix(".txt")
    return picture.with_suffix(".txt")


def _yaml_file(root: Path) -> Path | None:
    for name in ("data.yaml", "data.yml", "dataset.yaml", f"{root.name}.yaml"):
        path = root / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if "names:" in text and any(f"{word}:" in text for word in ("train", "val", "test")):
                return path
    return None


def _folders(root: Path) -> dict[str | None, list[Path]]:
    """The pictures by split, from the names of folders; nothing where no text belongs to them."""
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    splits: dict[str | None, list[Path]] = {}
    for base in (folders.get("images"), root):
        if base is None:
            continue
        for path in sorted(base.iterdir()):
            split = SPLIT_NAMES.get(path.name.lower())
            if path.is_dir() and split:
                inside = path / "images"
                splits.setdefault(split, []).extend(pictures_in(inside if inside.is_dir() else path))
        if splits:
            return splits
    home = folders.get("images", root)
    pictures = pictures_in(home) if home != root else sorted(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES)
    return {None: pictures} if pictures else {}


def _is_label(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as stream:
        fields = stream.readline().split()
    return len(fields) >= 5 and all(_number(field) is not None for field in fields)


def _read_names(root: Path) -> Classes | None:
    for folder in (root, root / "labels"):
        for name in _NAME_FILES:
            path = folder / name
            if path.is_file():
                lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
                return class_list([line.strip() for line in lines if line.strip()], path)
    return None


def _read_yaml(path: Path) -> _Listed:
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"this is not YAML ({reason})", where=str(path), remedy="export it again") from error
    if not isinstance(content, dict) or "names" not in content:
        raise DataError("there are no names of classes", where=str(path), expected="names: [cat, dog]")
    if content.get("kpt_shape"):
        remedy = "remove kpt_shape and the key points to read the boxes"
        raise DataError("the data has key points, which are not read", where=str(path), remedy=remedy)
    base = path.parent / str(content.get("path") or "")
    splits: dict[str | None, list[Path]] = {}
    for word, split in SPLIT_NAMES.items():
        if content.get(word):
            splits.setdefault(split, []).extend(_yaml_pictures(content[word], base, path))
    return _Listed(splits, class_list(_yaml_names(content["names"], path), path), f", {path.name}", (base, path.parent))


def _yaml_names(names: Any, path: Path) -> list[str]:
    if isinstance(names, dict):
        keys = sorted(names)
        if keys != list(range(len(keys))):
            told = f"the ids of the classes are {', '.join(map(str, keys[:8]))}"
            raise DataError(told, where=str(path), expected=f"0 to {len(keys) - 1} without a gap")
        return [str(names[key]) for key in keys]
    if isinstance(names, list):
        return [str(name) for name in names]
    raise DataError(f"names is {names!r}", where=str(path), expected="a list, or numbers with names")


def _yaml_pictures(said: Any, base: Path, path: Path) -> list[Path]:
    """The pictures of a split: of a folder, of a text file that lists them, or of several of those."""
    pictures: list[Path] = []
    for entry in said if isinstance(said, list) else [said]:
        name = PurePosixPath(str(entry))
        # Exports are often written for another folder: ../train/images stands beside data.yaml.
        inner = PurePosixPath(*[part for part in name.parts if part not in {"..", "/"}])
        choices = [base / name, path.parent / name, path.parent / inner]
        place = next((choice for choice in choices if choice.exists()), None)
        if place is None:
            expected = "a folder of pictures beside data.yaml"
            raise DataError(f"there is no {entry}", where=str(path), expected=expected, remedy="correct the path")
        if place.is_file():
            lines = place.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            pictures += [place.parent / line.strip() for line in lines if line.strip()]
        else:
            pictures += pictures_in(place)
    return pictures


# --- lines


class _Line(NamedTuple):
    """One object: its class, its numbers as shares, and where it stands."""

    label: int
    numbers: tuple[float, ...]
    where: str


def _lines(path: Path) -> list[_Line]:
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("the text is not UTF-8", where=str(path), remedy="export it again") from error
    found = []
    for index, fields in enumerate(line.split() for line in text.splitlines()):
        if not fields:
            continue
        where = f"{path}:{index + 1}"
        numbers = [_number(field) for field in fields]
        values = [value for value in numbers if value is not None]
        if len(values) < len(fields) or values[0] != int(values[0]) or values[0] < 0:
            raise DataError(f"the line is {' '.join(fields)[:60]!r}", where=where, expected="class cx cy w h")
        if len(values) == 6:
            remedy = "remove the sixth number, the score of a prediction"
            raise DataError("the line has 6 numbers", where=where, expected="class cx cy w h", remedy=remedy)
        if len(values) < 5 or len(values) % 2 == 0:
            expected = "class cx cy w h, or a class and pairs of numbers"
            raise DataError(f"the line has {len(values)} numbers", where=where, expected=expected)
        found.append(_Line(int(values[0]), tuple(values[1:]), where))
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check_lines(lines: Mapping[Path, Sequence[_Line]], classes: Classes | None, where: str) -> None:
    """Refuse classes that are not listed and numbers that are no shares."""
    everything = [line for found in lines.values() for line in found]
    if classes is not None:
        strange = [line for line in everything if line.label >= len(classes)]
        if strange:
            noun = "object has" if len(strange) == 1 else "objects have"
            raise DataError(
                f"{len(strange)} {noun} a class that is not listed, the first is {strange[0].label}",
                where=strange[0].where,
                expected=f"0 to {len(classes) - 1}, as {len(classes)} are listed",
                remedy="correct the labels or the list of classes (labels start at 0)",
            )
    pixels = [line for line in everything if max(line.numbers) > _FAR]
    if pixels:
        told = f"{len(pixels)} of {counted(len(everything), 'line')} have numbers of pixels"
        expected = "shares of the width and height, from 0 to 1"
        remedy = "divide x and width by the width of the picture, y and height by its height"
        raise DataError(told, where=pixels[0].where, expected=expected, remedy=remedy)


def _sizes(pictures: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """The size of every picture as shown; ``(0, 0)`` where it cannot be read."""

    def look(path: Path) -> tuple[int, int]:
        try:
            return read_size(path)[0]
        except ImageError:
            return 0, 0

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return dict(zip(pictures, pool.map(look, pictures), strict=True))


def _draft(path: Path, lines: Sequence[_Line], size: tuple[int, int], classes: Classes) -> Draft:
    height, width = size
    objects = []
    for line in lines if size != (0, 0) else []:
        scaled = [value * side for value, side in zip(line.numbers, (width, height) * len(line.numbers), strict=False)]
        if len(scaled) == 4:
            box = scaled[0], scaled[1], scaled[2], scaled[3]
            objects.append(Drafted(ObjectAnnotation(classes[line.label], box), line.where))
            continue
        left, top, right, bottom = polygon_box([scaled]) or (0.0, 0.0, 0.0, 0.0)
        box = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        objects.append(Drafted(ObjectAnnotation(classes[line.label], box, [scaled]), line.where, has_box=False))
    return Draft(AnnotatedImage(path, size), objects)
