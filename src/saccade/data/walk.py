"""Which files and folders of a data set count: one rule for every reader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from saccade.data.decode import SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is nobody's data: ``.thumbnails``, ``.DS_Store``, ``__MACOSX``."""
    return name.startswith((".", "__"))


def name_below(path: Path, root: Path) -> str:
    """The name of a file from the folder of its data on, with slashes: the same on every machine."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def files_below(folder: Path, *, is_deep: bool = True, leave_out: Path | None = None) -> Iterator[Path]:
    """The files of a folder, those of each folder by name; nothing hidden.

    Args:
        folder: where to look.
        is_deep: look into the folders in it as well; links to folders are not followed.
        leave_out: a folder below that is passed over: the one that results are written to.
    """
    passed = None if leave_out is None else os.path.realpath(leave_out)
    for place, names, files in os.walk(folder):
        below = [name for name in names if not is_hidden(name)] if is_deep else []
        names[:] = sorted(name for name in below if passed is None or os.path.realpath(Path(place, name)) != passed)
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def pictures_in(folder: Path, *, is_deep: bool = True, leave_out: Path | None = None) -> list[Path]:
    """The picture files of a folder by their ending, sorted; arguments as for ``files_below``."""
    found = files_below(folder, is_deep=is_deep, leave_out=leave_out)
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)
