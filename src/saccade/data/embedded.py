"""Real data inside the package, so that a first run needs no network.

Origin and licence: ``assets/*/SOURCE.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from saccade.data.dataset import ArrayDataset, Opened
from saccade.data.idx import find_idx, open_idx
from saccade.data.maps import MapDataset
from saccade.data.pairs import open_pairs
from saccade.errors import UnknownNameError

_NAMES = ("fashion_mnist", "nuclei")


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
    return _nuclei() if name == "nuclei" else _fashion_mnist()


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


def _asset(name: str) -> AbstractContextManager[Path]:
    return as_file(files("saccade").joinpath("assets", name))


@contextmanager
def photos() -> Iterator[list[Path]]:
    """The photographs that ship with the package, as files that exist inside the ``with`` block."""
    with _asset("photos") as folder:
        yield sorted(folder.glob("*.jpg"))
