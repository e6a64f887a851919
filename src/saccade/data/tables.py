"""CSV tables as every reader of them sees them: header, rows with their place, paths, splits."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from saccade.data.splits import SPLIT_NAMES
from saccade.errors import DataError, nearest

SPLIT_COLUMNS = ("split", "set", "subset", "fold")
"""Names of columns that may say the split."""


class TableRow(NamedTuple):
    """One row of a table.

    Attributes:
        where: ``file:line``, for messages.
        cells: column -> text without blanks around it; empty where the row is shorter than the header.
    """

    where: str
    cells: dict[str, str]


def read_header(path: Path, delimiters: str = ",;\t") -> list[str]:
    """Names of the columns, from the first line alone.

    Args:
        path: the table; one that is no UTF-8 is read as well as it can be.
        delimiters: what may stand between them; the one that occurs most is taken.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        line = stream.readline().rstrip("\r\n")
    return [name.strip() for name in next(csv.reader([line], delimiter=max(delimiters, key=line.count)), [])]


def read_table(path: Path, delimiters: str = ",;\t") -> tuple[list[str], Iterator[TableRow]]:
    """Names of the columns, and the rows that say anything. A quoted cell may hold line breaks.

    Raises:
        DataError: a table that is not UTF-8; while the rows are taken, one that is no CSV.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("the table is not UTF-8", where=str(path), remedy="save it as CSV UTF-8") from error
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(delimiters, key=header.count))
    names = [name.strip() for name in next(reader, [])]

    def rows() -> Iterator[TableRow]:
        try:
            for row in reader:
                cells = [cell.strip() for cell in row[: len(names)]]
                if any(cells):
                    cells += [""] * (len(names) - len(cells))
                    yield TableRow(f"{path}:{reader.line_num}", dict(zip(names, cells, strict=True)))
        except csv.Error as error:
            raise DataError(f"this is no CSV ({error})", where=f"{path}:{reader.line_num}") from error

    return names, rows()


def with_slashes(name: str) -> str:
    """The name of a file as every system reads it: tables made on Windows have backslashes between the folders."""
    return name.replace("\\", "/")


def known_split(word: str, column: str | None, where: str) -> str | None:
    """The split that a row is of; None where it does not say.

    A ``fold`` that is a number is a part of a cross-validation, whose role nobody has said.

    Args:
        word: what stands in the column of the split.
        column: the name of that column.
        where: the row, for messages.

    Raises:
        DataError: a word that is no split.
    """
    if not word or ((column or "").lower() == "fold" and word.lstrip("-").replace(".", "", 1).isdigit()):
        return None
    split = SPLIT_NAMES.get(word.lower())
    if split is None:
        near = nearest(word, SPLIT_NAMES)
        remedy = f"did you mean {near!r}?" if near else None
        raise DataError(f"unknown split {word!r}", where=where, expected="train, val or test", remedy=remedy)
    return split
