"""Classes described by attributes: ``attributes.csv`` beside class folders, and scenes to try it on.

The first column names the class, every other one an attribute; a cell says how far the class has it: 0 or 1, yes or no,
or a number between. Classes without pictures stand in the table like all others: they are what is to be recognised
without having been shown.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from saccade.data.shapes import COLOURS, SHAPES
from saccade.errors import ConfigError, DataError, nearest
from saccade.types.attributes import AttributeTable

FILE = "attributes.csv"
_WORDS = {"yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}


def read_attributes(root: Path) -> AttributeTable | None:
    """The table beside class folders; None where there is none.

    Raises:
        DataError: a cell that is no share, a row that is too short, a class or attribute twice, classes that nothing
            tells apart.
    """
    path = root / FILE
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if len(rows) < 3 or len(rows[0]) < 2:
        expected = "a first row with the names of the attributes, then a row for each of at least two classes"
        raise DataError("the table describes nothing", where=str(path), expected=expected)
    head, *body = rows
    for number, row in enumerate(body, 2):
        if len(row) != len(head):
            where = f"{path}, row {number}"
            raise DataError(f"the row has {len(row)} cells", where=where, expected=f"{len(head)}, as the first row")
    values = tuple(tuple(_share(cell, f"{path}, class {row[0]!r}") for cell in row[1:]) for row in body)
    try:
        return AttributeTable(classes=tuple(row[0] for row in body), attributes=tuple(head[1:]), values=values)
    except ConfigError as error:
        raise DataError(error.what, where=str(path), expected=error.expected, remedy=error.remedy) from None


def _share(cell: str, where: str) -> float:
    if cell.casefold() in _WORDS:
        return _WORDS[cell.casefold()]
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise DataError(f"{cell!r} does not say how far the class has it", where=where, expected="a number in [0, 1]")
    return value


def check_described(table: AttributeTable, folders: Mapping[str, Collection[str]], root: Path) -> AttributeTable:
    """The table with the classes that training shows.

    Args:
        table: as read.
        folders: the classes with pictures, by split.
        root: for messages.

    Raises:
        DataError: a class folder that the table does not describe.
    """
    for split, names in folders.items():
        for name in sorted(names):
            if name not in table.classes:
                near = nearest(name, table.classes)
                remedy = f"did you mean {near!r}?" if near else f"add a row for it to {FILE}"
                raise DataError(
                    f"{split} has a class {name!r} that {FILE} does not describe", where=str(root), remedy=remedy
                )
    return table.shown(folders.get("train", ()))


def told_attributes(table: AttributeTable) -> list[str]:
    """What there is, in sentences: of classes without pictures it matters whether that is meant."""
    unseen = table.unseen
    shown = ", ".join(repr(name) for name in unseen[:8]) + (", ..." if len(unseen) > 8 else "")
    note = f"{FILE} describes {len(table.classes)} classes by {len(table.attributes)} attributes"
    notes = [f"{note}; training shows {len(table.seen)} of them" + (f", not {shown}" if unseen else "")]
    seen = [table.values[table.classes.index(name)] for name in table.seen]
    flat = [
        name for name, column in zip(table.attributes, zip(*seen, strict=True), strict=True) if len(set(column)) < 2
    ]
    if flat:
        words = ", ".join(repr(name) for name in flat[:8])
        notes.append(f"no two classes of the training differ in {words}, so these attributes cannot be learned")
    return notes


def write_table(path: Path, table: AttributeTable) -> Path:
    """Write a table as ``read_attributes`` reads it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *table.attributes])
        writer.writerows(
            [name, *(f"{v:g}" for v in row)] for name, row in zip(table.classes, table.values, strict=True)
        )
    return path


def is_held_out(colour: str, shape: str) -> bool:
    """Whether a combination of the synthetic scenes is kept from training: 8 of 48, each colour and shape is shown."""
    return (list(COLOURS).index(colour) + list(SHAPES).index(shape)) % len(SHAPES) == 0


def scene_table(colours: Sequence[str] = tuple(COLOURS), shapes: Sequence[str] = tuple(SHAPES)) -> AttributeTable:
    """Every colour of every shape as a class: ``red circle`` ..., described by its colour and its shape."""
    names = (*colours, *shapes)
    pairs = [(colour, shape) for colour in colours for shape in shapes]
    values = tuple(tuple(float(name in pair) for name in names) for pair in pairs)
    return AttributeTable(classes=tuple(" ".join(pair) for pair in pairs), attributes=names, values=values)
