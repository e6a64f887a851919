"""CSV tables with a box per row: ``path,xmin,ymin,xmax,ymax,class``, in one file or in ``train.csv`` and ``val.csv``.

The header is required and says the form: ``xmin,ymin,xmax,ymax`` (or ``x1,y1,x2,y2``, ``left,top,right,bottom``) are
edges, ``x,y,width,height`` a corner and sides. Beside edges, ``width`` and ``height`` are the size of the picture and
are compared with it. A row with an empty box and class is a picture of background. ``split`` and ``crowd`` or
``difficult`` are understood; every other column is kept as it is. ``classes.txt`` beside the table lists the classes.

h, w picture
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from saccade.data.dataset import Opened
from saccade.data.objectjoin import Found, absent, join, read_class_list
from saccade.data.objects import AnnotatedImage, ObjectAnnotation, plain_value
from saccade.data.objectscan import Draft, Drafted, Form
from saccade.data.splits import SPLIT_NAMES
from saccade.data.tables import SPLIT_COLUMNS, known_split, read_header, read_table, with_slashes
from saccade.errors import DataError
from saccade.types import TaskName

_PATH = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img", "picture", "frame")
_CLASS = ("class", "label", "class_name", "name", "category", "category_name")
_CROWD = ("crowd", "iscrowd", "is_crowd", "difficult")
_EDGES = (
    ("xmin", "x_min", "x1", "left"),
    ("ymin", "y_min", "y1", "top"),
    ("xmax", "x_max", "x2", "right"),
    ("ymax", "y_max", "y2", "bottom"),
)
_SIDES = (
    ("x", "xmin", "x_min", "x1", "left", "bbox_x"),
    ("y", "ymin", "y_min", "y1", "top", "bbox_y"),
    ("width", "w", "bbox_width", "box_width"),
    ("height", "h", "bbox_height", "box_height"),
)
_SIZE = (("height", "image_height", "img_height"), ("width", "image_width", "img_width"))
UNDERSTOOD = frozenset({*_PATH, *_CLASS, *SPLIT_COLUMNS, *_CROWD, *sum((*_EDGES, *_SIDES, *_SIZE), ())})
"""Names of columns that mean something, and so can hold nothing else."""

_EMPTY = frozenset({"", "none", "null", "nan"})


class _Columns(NamedTuple):
    """The header as understood: the names of the columns."""

    path: str
    name: str
    box: tuple[str, str, str, str]
    form: Form
    size: tuple[str, str] | None
    split: str | None
    crowd: str | None
    others: tuple[str, ...]


def is_box_table(path: Path) -> bool:
    """Whether a table has columns of pictures, of classes and of boxes."""
    return _columns(read_header(path)) is not None


def is_box_folder(root: Path) -> bool:
    """Whether the folder holds tables of boxes: ``train.csv``, or one CSV with the columns."""
    return bool(_tables(root))


def open_boxes(source: Path, task: TaskName | None = None, *, strict: bool = False) -> Opened:
    """The splits of a CSV file of boxes, or of a folder of them. Paths are relative to the folder of the table.

    Raises:
        DataError: columns missing, a box without numbers or class, splits that do not exist, no picture of those named,
            faults of the boxes that cannot be mended, masks wanted (there are none in a table).
    """
    tables: dict[str | None, Path] = {None: source} if source.is_file() else _tables(source)
    root = source.parent if source.is_file() else source
    if not tables:
        raise DataError("there is no table of boxes", where=str(source), expected="path,xmin,ymin,xmax,ymax,class")
    found = Found("", "xyxy")
    forms = set()
    for said, path in tables.items():
        columns, drafts, notes = _read(path, said, root, strict)
        forms.add(columns.form)
        found.form = columns.form
        found.notes += notes
        for split, draft in drafts:
            found.splits.setdefault(split, []).append(draft)
    if len(forms) > 1:
        raise DataError("the tables write boxes in different ways", where=str(source), expected="the same columns")
    if None in found.splits and len(found.splits) > 1:
        told = "some rows have a split and some have none"
        raise DataError(told, where=str(source), expected="train, val or test in all of them")
    found.classes = read_class_list(root)
    named = [split for split in found.splits if split]
    found.format = "CSV of boxes" + (f" with splits {', '.join(named)}" if named else " without splits")
    return join(found, root, str(source), task or "detection", strict)


def _tables(root: Path) -> dict[str | None, Path]:
    """Split (None: the table says itself, or nobody does) -> table."""
    files = [path for path in sorted([*root.glob("*.csv"), *root.glob("*.tsv")]) if path.is_file()]
    usable = [path for path in files if is_box_table(path)]
    by_split: dict[str | None, Path] = {
        SPLIT_NAMES[path.stem.lower()]: path for path in usable if path.stem.lower() in SPLIT_NAMES
    }
    if "train" in by_split:
        return by_split
    return {None: usable[0]} if len(usable) == 1 else {}


def _columns(names: list[str]) -> _Columns | None:
    folded = {name.lower().replace(" ", "_"): name for name in names}

    def first(choices: tuple[str, ...]) -> str | None:
        return next((folded[choice] for choice in choices if choice in folded), None)

    path, name = first(_PATH), first(_CLASS)
    edges = [first(choices) for choices in _EDGES]
    form: Form = "xyxy" if all(edges) else "xywh"
    box = edges if all(edges) else [first(choices) for choices in _SIDES]
    if path is None or name is None or not all(box):
        return None
    low, top, right, bottom = (column or "" for column in box)
    size = [first(choices) for choices in _SIZE] if form == "xyxy" else [None, None]
    told = (size[0], size[1]) if size[0] and size[1] else None
    split, crowd = first(SPLIT_COLUMNS), first(_CROWD)
    known = {path, name, low, top, right, bottom, split, crowd, *(told or ())}
    others = tuple(column for column in names if column not in known)
    return _Columns(path, name, (low, top, right, bottom), form, told, split, crowd, others)


def _read(
    path: Path, said: str | None, root: Path, strict: bool
) -> tuple[_Columns, list[tuple[str | None, Draft]], list[str]]:
    """The pictures of one table with the boxes of all their rows."""
    names, rows = read_table(path)
    columns = _columns(names)
    if columns is None:
        got = ", ".join(names) or "nothing"
        raise DataError(f"the columns are {got}", where=str(path), expected="path,xmin,ymin,xmax,ymax,class")
    drafts: dict[tuple[str | None, str], Draft] = {}
    lost: dict[str, None] = {}
    total: set[str] = set()
    for where, cells in rows:
        name = with_slashes(cells[columns.path])
        total.add(name)
        split = _split(cells, columns, said, where)
        key = split, name
        if key not in drafts:
            picture = _picture(path.parent, name, split)
            if picture is None:
                lost[name] = None
                continue
            drafts[key] = Draft(AnnotatedImage(picture, _size(cells, columns, where)), [])
        thing = _object(cells, columns, where)
        if thing is not None:
            drafts[key].objects.append(Drafted(thing, where))
    notes = absent(list(lost), len(total), f"of {path.name} are", str(path), strict)
    return columns, [(split, draft) for (split, _), draft in drafts.items()], notes


def _split(cells: Mapping[str, str], columns: _Columns, said: str | None, where: str) -> str | None:
    if not cells[columns.path]:
        raise DataError(f"the {columns.path} is empty", where=where, remedy="fill it in or delete the row")
    return known_split(cells.get(columns.split or "", ""), columns.split, where) or said


def _picture(folder: Path, name: str, split: str | None) -> Path | None:
    places = [folder, folder / "images"]
    places += [folder / "images" / split, folder / split] if split else []
    return next((place / name for place in places if (place / name).is_file()), None)


def _size(cells: Mapping[str, str], columns: _Columns, where: str) -> tuple[int, int]:
    if columns.size is None:
        return 0, 0
    height, width = (cells.get(column, "") for column in columns.size)
    if not (height and width):
        return 0, 0
    return int(_number(height, columns.size[0], where)), int(_number(width, columns.size[1], where))


def _object(cells: Mapping[str, str], columns: _Columns, where: str) -> ObjectAnnotation | None:
    """The object of a row; None where the row names a picture of background."""
    said = [cells.get(column, "") for column in columns.box]
    name = cells.get(columns.name, "")
    if all(cell.lower() in _EMPTY for cell in said) and name.lower() in _EMPTY:
        return None
    if not name:
        raise DataError(f"the {columns.name} is empty", where=where, remedy="fill it in or delete the row")
    numbers = [_number(cell, column, where) for cell, column in zip(said, columns.box, strict=True)]
    crowd = cells.get(columns.crowd or "", "").lower()
    extra = {column: plain_value(cells[column]) for column in columns.others if cells.get(column)}
    box = numbers[0], numbers[1], numbers[2], numbers[3]
    return ObjectAnnotation(name, box, None, crowd in {"1", "true", "yes"}, extra)


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{column} is {text!r}", where=where, expected="a number")
    return value
