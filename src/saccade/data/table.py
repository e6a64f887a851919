"""CSV tables of path,label: one table with an optional split column, or ``train.csv`` and ``val.csv`` in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from saccade.data.dataset import FileDataset, LabelledFile, Opened
from saccade.data.folder import read_licence
from saccade.data.idx import read_class_names
from saccade.data.splits import SPLIT_NAMES, join_by_name, split_by_hash, told_split
from saccade.data.tables import SPLIT_COLUMNS, known_split, read_header, read_table, with_slashes
from saccade.data.walk import name_below
from saccade.errors import DataError, nearest
from saccade.types import Classes

_PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
_LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")


class _Row(NamedTuple):
    """One line: where it stands, the picture, its class, its split (None: not said)."""

    where: str
    path: Path
    label: str
    split: str | None


class _Columns(NamedTuple):
    """The header as found: names of the columns."""

    path: str
    label: str
    split: str | None


def is_table_folder(root: Path) -> bool:
    """Whether the folder holds its data as tables: ``train.csv``, or one CSV with the columns of a data set."""
    return bool(_tables(root))


def _tables(root: Path) -> dict[str | None, Path]:
    """Split (None: the table says itself, or nobody does) -> table."""
    found = {path: SPLIT_NAMES.get(path.stem.lower()) for path in sorted([*root.glob("*.csv"), *root.glob("*.tsv")])}
    by_split: dict[str | None, Path] = {split: path for path, split in found.items() if split}
    if "train" in by_split:
        return by_split
    usable = [path for path in found if _columns(path) is not None]
    return {None: usable[0]} if len(usable) == 1 else {}


def open_table(source: Path, *, strict: bool = False) -> Opened:
    """The splits of a CSV file, or of a folder of them. Paths are relative to the folder of the table.

    Names of classes may be listed in ``classes.json`` or ``classes.txt`` beside the table; labels may then be their
    numbers.

    Raises:
        DataError: columns missing, a row without a label, labels outside the classes, no pictures, one class only; with
            ``strict`` also files that do not exist and splits that do not agree.
    """
    tables: dict[str | None, Path] = {None: source} if source.is_file() else _tables(source)
    root = source.parent if source.is_file() else source
    listed = read_class_names(root)
    rows = [row for split, path in tables.items() for row in _rows(path, split)]
    rows, notes = _existing(rows, str(source), strict)
    labelled = [(row, _class_name(row, listed)) for row in rows]
    if any(row.split for row in rows):
        splits: dict[str, list[tuple[_Row, str]]] = {}
        for row, name in labelled:
            if row.split is None:
                raise DataError("the split is empty", where=row.where, expected="train, val or test")
            splits.setdefault(row.split, []).append((row, name))
        told = f"CSV of path,label with splits {', '.join(splits)}"
    else:
        keys = [name_below(row.path, root) for row in rows]
        splits = split_by_hash(labelled, keys) if rows else {}
        notes.append(f"no split column: {told_split()}")
        told = "CSV of path,label without splits"
    joined = join_by_name(splits, str(source), classes=listed, strict=strict)
    licence = read_licence(root)
    datasets = {
        split: FileDataset([LabelledFile(row.path, label) for row, label in items], joined.classes, root, licence)
        for split, items in joined.splits.items()
    }
    return Opened(told, datasets, notes + joined.notes)


def _columns(path: Path) -> _Columns | None:
    folded = {name.lower(): name for name in read_header(path)}

    def first(choices: tuple[str, ...]) -> str | None:
        return next((folded[choice] for choice in choices if choice in folded), None)

    path_column, label_column = first(_PATH_COLUMNS), first(_LABEL_COLUMNS)
    if path_column is None or label_column is None:
        return None
    return _Columns(path_column, label_column, first(SPLIT_COLUMNS))


def _rows(path: Path, split: str | None) -> Iterator[_Row]:
    columns = _columns(path)
    names, rows = read_table(path)
    if columns is None:
        got = ", ".join(names) or "nothing"
        raise DataError(f"the columns are {got}", where=str(path), expected="path and label (and split, if you like)")
    for where, cells in rows:
        for column in (columns.path, columns.label):
            if not cells[column]:
                raise DataError(f"the {column} is empty", where=where, remedy="fill it in or delete the row")
        said = known_split(cells[columns.split], columns.split, where) if columns.split else None
        yield _Row(where, path.parent / with_slashes(cells[columns.path]), cells[columns.label], said or split)


def _existing(rows: list[_Row], where: str, strict: bool) -> tuple[list[_Row], list[str]]:
    """The rows whose file exists, and a note about the others."""
    there = [row for row in rows if row.path.is_file()]
    missing = [row for row in rows if not row.path.is_file()]
    if not missing:
        return there, []
    first = missing[0]
    told = f"{len(missing)} of {len(rows)} files do not exist, the first is {first.path} ({first.where})"
    if strict or not there:
        raise DataError(told, where=where, expected="paths relative to the folder of the table")
    return there, [f"{told}: left out"]


def _class_name(row: _Row, listed: Classes | None) -> str:
    """The class of a row; with a list of classes, a number is a place in that list."""
    if listed is None or row.label in listed.names:
        return row.label
    if row.label.lstrip("-").isdigit():
        if 0 <= int(row.label) < len(listed):
            return listed[int(row.label)]
        raise DataError(
            f"the label is {row.label}",
            where=row.where,
            expected=f"0 to {len(listed) - 1}, as {len(listed)} classes are listed",
            remedy="correct the label or the list of classes (labels start at 0)",
        )
    near = nearest(row.label, listed)
    raise DataError(
        f"the label {row.label!r} is not among the listed classes",
        where=row.where,
        expected=None if near else ", ".join(listed.names[:12]),
        remedy=f"did you mean {near!r}?" if near else None,
    )
