"""Class tables on disk: which class each value of a mask stands for.

``classes.json`` is a list of names (the value is the place in it), or an object ``{"NAME": 3}``, ``{"NAME": [128, 0,
0]}``, ``{"NAME": "instances"}`` (every value above 0 that no other class has), or ``{"3": "NAME"}``, ``{"128,0,0":
"NAME"}``, where several values may share a name. ``classes.txt`` has one name per line, ``class_dict.csv`` the columns
name, r, g, b. ``semantic_classes.json`` is ``{"3": "NAME"}`` with the ids of COCO, where 0 means that nobody said.

The label of a class is its place in the table in ascending order of the values; colours keep the order of the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.data.maps import Coding, check_classes, colour_value
from saccade.errors import DataError
from saccade.types import IGNORE, Classes

IGNORED_NAMES = frozenset({"ignore", "ignored", "void"})
"""Pixels of these names count nowhere."""

UNLABELLED_NAMES = frozenset({"unlabeled", "unlabelled"})
"""Pixels of these names count nowhere if their value is 255, or 0 with the ids of COCO."""

INSTANCES = "instances"

_FORMS = '["background", "road"] or {"background": 0, "road": 1} or {"road": [128, 64, 128]}'

Value = int | tuple[int, int, int] | None
"""A number, a colour, or None for the numbers of instances."""


@dataclass(frozen=True)
class ClassTable:
    """The classes that masks are drawn in.

    Attributes:
        classes: their names.
        coding: what the values of a mask mean.
        file: where this is written.
        is_numbered: whether the file gives names only, and the value is the place.
    """

    classes: Classes
    coding: Coding
    file: Path
    is_numbered: bool = False


def read_class_table(folders: Iterable[Path]) -> ClassTable | None:
    """The class table in the first folder that has one.

    Raises:
        DataError: a file that cannot be read as a table, values given twice, one class, more than 255.
    """
    readers = {
        "classes.json": _read_json,
        "semantic_classes.json": _read_json,
        "class_dict.csv": _read_csv,
        "classes.txt": _read_lines,
    }
    for folder in folders:
        for name, read in readers.items():
            if (folder / name).is_file():
                return read(folder / name)
    return None


def _read_lines(path: Path) -> ClassTable:
    names = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return _table(list(zip(names, range(len(names)), strict=True)), path, is_numbered=True)


def _read_json(path: Path) -> ClassTable:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"this is not JSON ({error})", where=str(path)) from error
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        repeated = sorted({name for name in content if content.count(name) > 1})
        if repeated:
            told = f"class names repeat: {', '.join(repeated)}"
            raise DataError(told, where=str(path), remedy="name every class once")
        return _table(list(zip(content, range(len(content)), strict=True)), path, is_numbered=True)
    if not isinstance(content, dict) or not content:
        raise DataError("this is no table of classes", where=str(path), expected=_FORMS)
    return _table(_entries(content, path), path)


def _entries(content: Mapping[str, Any], path: Path) -> list[tuple[str, Value]]:
    """Name and value of every line of an object, whichever way round it is written."""
    if all(isinstance(value, str) and value != INSTANCES for value in content.values()):
        return [(str(name), _value([int(part) for part in _numbers(key, path)], path)) for key, name in content.items()]
    return [(name, None if value == INSTANCES else _value(value, path)) for name, value in content.items()]


def _numbers(key: str, path: Path) -> list[str]:
    parts = [part.strip() for part in key.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise DataError(f"{key!r} is no value of a mask", where=str(path), expected=_FORMS)
    return parts


def _value(value: Any, path: Path) -> Value:
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise DataError(f"{value!r} is no value of a mask", where=str(path), expected=_FORMS)
    if len(numbers) == 1 and numbers[0] < 1 << 31:
        return int(numbers[0])
    if len(numbers) == 3 and max(numbers) <= 255:
        return int(numbers[0]), int(numbers[1]), int(numbers[2])
    raise DataError(f"{value!r} is no value of a mask", where=str(path), expected="a number, or [RED, GREEN, BLUE]")


def _read_csv(path: Path) -> ClassTable:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    lines = rows[1:] if rows and not all(cell.isdecimal() for cell in rows[0][1:]) else rows
    for row in lines:
        if len(row) < 4 or not all(cell.isdecimal() for cell in row[1:4]):
            raise DataError(f"{','.join(row)!r} is no class", where=str(path), expected="name,r,g,b")
    return _table([(row[0], _value([int(cell) for cell in row[1:4]], path)) for row in lines], path)


def _table(entries: list[tuple[str, Value]], path: Path, *, is_numbered: bool = False) -> ClassTable:
    is_colour = any(isinstance(value, tuple) for _, value in entries)
    if is_colour and not all(isinstance(value, tuple) for _, value in entries):
        raise DataError("some classes have a colour and some a number", where=str(path), expected="one of the two")
    coded = [(name, colour_value(*value) if isinstance(value, tuple) else value) for name, value in entries]
    if not is_colour:
        coded.sort(key=lambda entry: (entry[1] is None, entry[1] or 0))
    names: dict[str, int] = {}
    values: dict[int, int] = {}
    instances: int | None = None
    for name, value in coded:
        label = IGNORE if _is_ignored(name, value, path) else names.setdefault(name, len(names))
        if value is None:
            if instances is not None:
                raise DataError("two classes are instances", where=str(path), expected="one")
            instances = label
        elif value in values:
            told = Coding({}, is_colour=is_colour).told(value)
            raise DataError(f"{told} is given twice, to {name!r} too", where=str(path), expected="one class per value")
        else:
            values[value] = label
    classes = Classes(tuple(names))
    check_classes(classes, str(path))
    return ClassTable(classes, Coding(values, instances, is_colour), path, is_numbered)


def _is_ignored(name: str, value: int | None, path: Path) -> bool:
    folded = name.casefold()
    if folded in UNLABELLED_NAMES:
        return value == IGNORE or (value == 0 and path.name == "semantic_classes.json")
    return folded in IGNORED_NAMES
