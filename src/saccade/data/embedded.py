"""Real data inside the package, so that a first run needs no network.

Origin and licence: ``assets/*/SOURCE.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from saccade.data.dataset import ArrayDataset, Opened
from saccade.data.idx import find_idx, open_idx
from saccade.errors import UnknownNameError

_NAMES = ("fashion_mnist",)


def names() -> tuple[str, ...]:
    """Names of the embedded data sets."""
    return _NAMES


@cache
def open_embedded(name: str) -> Opened:
    """The splits of an embedded data set; unpacked once per process.

    Raises:
        UnknownNameError: with the nearest name.
    """
    if name not in _NAMES:
        raise UnknownNameError("embedded data set", name, _NAMES)
    with as_file(files("saccade").joinpath("assets", name)) as folder:
        opened = open_idx(folder, find_idx(folder))
    # Sources are told by name: where the package is installed says nothing to a reader of a report.
    splits = {
        split: replace(data, name=f"{name}/{split}")
        for split, data in opened.splits.items()
        if isinstance(data, ArrayDataset)
    }
    return Opened(f"embedded data set {name}", splits, opened.notes)


@contextmanager
def photos() -> Iterator[list[Path]]:
    """The photographs that ship with the package, as files that exist inside the ``with`` block."""
    with as_file(files("saccade").joinpath("assets", "photos")) as folder:
        yield sorted(folder.glob("*.jpg"))
