"""``open_data``: one entry for every source; the format is recognised, and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from saccade.data import embedded
from saccade.data.coco import has_coco_annotations, is_coco_folder, open_coco
from saccade.data.dataset import Dataset, Opened
from saccade.data.decode import SUFFIXES
from saccade.data.folder import open_folder
from saccade.data.idx import find_idx, open_idx
from saccade.data.pairs import is_mask_table, is_pair_folder, open_pairs
from saccade.data.splits import counted
from saccade.data.table import is_table_folder, open_table
from saccade.data.voc import is_voc_folder, open_voc
from saccade.data.wrap import open_object
from saccade.errors import DataError, nearest
from saccade.types import Classes, TaskName


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

    @property
    def task(self) -> TaskName:
        """What the targets are for: one class per picture, or one per pixel (``semantic``)."""
        return next(iter(self.splits.values())).task

    def fingerprint(self) -> dict[str, str]:
        """The SHA-256 of each split (names, sizes, labels)."""
        return {name: dataset.fingerprint() for name, dataset in self.splits.items()}


def open_data(source: Any, *, task: TaskName | None = None, strict: bool = False) -> DataSource:
    """Open data of any known format.

    Args:
        source: a folder (class folders, idx files, pictures with masks, VOC, COCO, a folder with CSV tables), a CSV
            file of path,label or image,mask, a COCO JSON file, the name of an embedded data set, a torchvision or
            Hugging Face data set object, one of our own data sets, or a mapping of split names to such objects.
        task: what the data is wanted for, where it can be read in several ways; recognised where it is None.
        strict: fail where splits do not agree or a picture has no mask, instead of reporting it in ``notes``.

    Raises:
        DataError: nothing there, nothing recognised, no pictures, fewer than two classes, labels outside the classes,
            masks that do not fit their pictures, data of another task than the one wanted.
    """
    return _of_task(_open(source, task, strict), task)


def _open(source: Any, task: TaskName | None, strict: bool) -> DataSource:
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
        return _source(_open_file(path, strict), str(path))
    return _source(_open_folder(path, task, strict), str(path))


def _open_file(path: Path, strict: bool) -> Opened:
    if path.suffix.lower() in {".csv", ".tsv"}:
        return open_pairs(path, strict=strict) if is_mask_table(path) else open_table(path, strict=strict)
    if path.suffix.lower() == ".json":
        return open_coco(path, strict=strict)
    raise _wrong_file(path)


class _Reader(NamedTuple):
    """One way to read a folder."""

    told: str
    task: TaskName
    fits: Callable[[Path], bool]
    open: Callable[[Path, bool], Opened]


# The first that fits is taken: what is told by files of a fixed name comes before what is told by names of folders.
_READERS = (
    _Reader("idx files", "classification", lambda root: bool(find_idx(root)), lambda root, _: _open_idx(root)),
    _Reader("a VOC folder", "semantic", is_voc_folder, lambda root, strict: open_voc(root, strict=strict)),
    _Reader("COCO JSON", "semantic", has_coco_annotations, lambda root, strict: open_coco(root, strict=strict)),
    _Reader("pictures with masks", "semantic", is_pair_folder, lambda root, strict: open_pairs(root, strict=strict)),
    _Reader("a table", "classification", is_table_folder, lambda root, strict: open_table(root, strict=strict)),
    _Reader("COCO JSON", "semantic", is_coco_folder, lambda root, strict: open_coco(root, strict=strict)),
)


def _open_idx(root: Path) -> Opened:
    return open_idx(root, find_idx(root))


def _open_folder(path: Path, task: TaskName | None, strict: bool) -> Opened:
    fitting = [reader for reader in _READERS if reader.fits(path)]
    wanted = [reader for reader in fitting if task in {None, reader.task}]
    if wanted:
        opened = wanted[0].open(path, strict)
        others = {reader.task: reader for reader in wanted if reader.task != wanted[0].task}
        told = [f"the folder can be read as {other.told} too, for {other.task}" for other in others.values()]
        return opened._replace(notes=[*opened.notes, *told])
    if task == "classification" and fitting:
        raise _other_task(str(path), fitting[0].told, fitting[0].task, task)
    if task in {None, "classification"}:
        return open_folder(path, strict=strict)
    if fitting:
        raise _other_task(str(path), fitting[0].told, fitting[0].task, task)
    raise _no_masks(path)


def _no_masks(path: Path) -> DataError:
    count = sum(1 for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    found = f"{counted(count, 'picture')} but no masks" if count else "no pictures"
    return DataError(
        f"the folder holds {found}",
        where=str(path),
        expected="images/ and masks/ with files of the same name, a VOC or COCO folder, or a CSV of image,mask",
        remedy="for pictures sorted into class folders choose a model for classification" if count else None,
    )


def _of_task(data: DataSource, task: TaskName | None) -> DataSource:
    """The data, if it is for the task that is wanted."""
    if task is not None and data.task != task:
        raise _other_task(data.name, data.format, data.task, task)
    return data


_TARGETS: dict[TaskName, str] = {"classification": "one class per picture", "semantic": "a class for every pixel"}


def _other_task(name: str, told: str, task: TaskName, wanted: TaskName) -> DataError:
    return DataError(
        f"this is {told}: data for the task {task}",
        where=name,
        expected=_TARGETS.get(wanted, f"data for the task {wanted}"),
        remedy=f"choose a model for {task} (saccade models --task {task}), or other data",
    )


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
        return DataError(
            "this is one picture, not a data set", where=str(path), expected="a folder, a CSV or a COCO JSON file"
        )
    if "ubyte" in path.name:
        remedy = "pass the folder that holds images and labels"
        return DataError("this is one file of a data set", where=str(path), remedy=remedy)
    return DataError(
        "this file is no data set",
        where=str(path),
        expected="a folder, a CSV of path,label or image,mask, or COCO JSON",
    )
