"""``open_data``: one entry for every source; the format is recognised, and told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.data import embedded
from saccade.data.dataset import Dataset, Opened
from saccade.data.decode import SUFFIXES
from saccade.data.folder import open_folder
from saccade.data.idx import find_idx, open_idx
from saccade.data.table import is_table_folder, open_table
from saccade.data.wrap import open_object
from saccade.errors import DataError, nearest
from saccade.types import Classes


@dataclass(frozen=True)
class DataSource:
    """Data with its splits.

    Attributes:
        splits: ``"train"``, ``"val"``, ``"test"``, those that exist.
        classes: the classes of all splits.
        format: what was recognised, in words.
        notes: what the user should know: splits that do not agree, pictures left out, a split made by us.
        name: the path or name the data was opened by.
    """

    splits: Mapping[str, Dataset]
    classes: Classes
    format: str
    name: str
    notes: list[str] = field(default_factory=list)

    def split(self, name: str) -> Dataset:
        """One split.

        Raises:
            DataError: naming the splits there are.
        """
        if name not in self.splits:
            there = ", ".join(self.splits)
            raise DataError(f"there is no split {name!r}", where=self.name, expected=f"one of: {there}")
        return self.splits[name]

    @property
    def held_out(self) -> str:
        """The split to evaluate on: ``val`` where there is one, else ``test``, else the only one there is."""
        return next((name for name in ("val", "test") if name in self.splits), next(iter(self.splits)))

    def fingerprint(self) -> dict[str, str]:
        """The SHA-256 of each split (names, sizes, labels)."""
        return {name: dataset.fingerprint() for name, dataset in self.splits.items()}


def open_data(source: Any, *, strict: bool = False) -> DataSource:
    """Open data of any known format.

    Args:
        source: a folder (class folders, idx files, a folder with CSV tables), a CSV file, the name of an embedded data
            set, a torchvision or Hugging Face data set object, one of our own data sets, or a mapping of split names to
            such objects.
        strict: fail where splits do not agree, instead of reporting it in ``notes``.

    Raises:
        DataError: nothing there, nothing recognised, no pictures, fewer than two classes, labels outside the classes.
    """
    if isinstance(source, DataSource):
        return source
    if not isinstance(source, str | Path):
        return _source(open_object(source, strict=strict), type(source).__name__)
    path = Path(source).expanduser()
    if not str(source).strip() or not path.exists():
        if str(source) in embedded.names():
            return _source(embedded.open_embedded(str(source)), str(source))
        raise _missing(str(source))
    if path.is_file():
        if path.suffix.lower() not in {".csv", ".tsv"}:
            raise _wrong_file(path)
        return _source(open_table(path, strict=strict), str(path))
    return _source(_open_folder(path, strict), str(path))


def _open_folder(path: Path, strict: bool) -> Opened:
    idx_files = find_idx(path)
    if idx_files:
        return open_idx(path, idx_files)
    if is_table_folder(path):
        return open_table(path, strict=strict)
    return open_folder(path, strict=strict)


def _source(opened: Opened, name: str) -> DataSource:
    ordered = {split: opened.splits[split] for split in ("train", "val", "test") if split in opened.splits}
    splits = ordered | dict(opened.splits)
    classes = next(iter(splits.values())).classes
    return DataSource(splits, classes, opened.format, name, list(opened.notes))


def _missing(name: str) -> DataError:
    near = nearest(name, embedded.names())
    remedy = f"did you mean {near!r}?" if near else f"check the path; embedded: {', '.join(embedded.names())}"
    return DataError("there is no such folder or file", where=name, remedy=remedy)


def _wrong_file(path: Path) -> DataError:
    if path.suffix.lower() in SUFFIXES:
        return DataError("this is one picture, not a data set", where=str(path), expected="a folder or a CSV file")
    if "ubyte" in path.name:
        remedy = "pass the folder that holds images and labels"
        return DataError("this is one file of a data set", where=str(path), remedy=remedy)
    return DataError("this file is no data set", where=str(path), expected="a folder, or a CSV of path,label")
