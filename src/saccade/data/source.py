"""``open_data``: one entry for every source; the format is recognised, and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from saccade.data import embedded
from saccade.data.box_table import is_box_folder, is_box_table, open_boxes
from saccade.data.caption_files import is_caption_file
from saccade.data.caption_folder import is_caption_folder, open_captions
from saccade.data.coco import has_coco_annotations, is_coco_folder, open_coco, read_coco_source
from saccade.data.dataset import Dataset, Opened, union
from saccade.data.decode import SUFFIXES
from saccade.data.folder import open_folder
from saccade.data.idx import find_idx, open_idx
from saccade.data.labelme import is_labelme_folder, open_labelme
from saccade.data.numbered import open_numbered
from saccade.data.objects_coco import has_outlines, open_coco_objects
from saccade.data.pairs import is_mask_table, is_pair_folder, open_pairs
from saccade.data.splits import BY_HASH, counted
from saccade.data.table import is_table_folder, open_table
from saccade.data.validation import with_validation
from saccade.data.voc import is_voc_folder, open_voc
from saccade.data.voc_xml import is_voc_xml_folder, open_voc_xml
from saccade.data.wrap import open_object
from saccade.data.yolo import is_yolo_folder, open_yolo
from saccade.errors import DataError, UnknownNameError, nearest
from saccade.types import TASK_SYNONYMS, Classes, TaskName
from saccade.types.attributes import AttributeTable

ALL = "all"
"""In the place of a split: the pictures of every split."""


@dataclass(frozen=True)
class DataSource:
    """Data with its splits.

    Attributes:
        splits: ``"train"``, ``"val"``, ``"test"``, those that exist.
        classes: the classes of all splits.
        format: what was recognised, in words.
        notes: what the user should know: splits that do not agree, pictures left out, a split made by us.
        name: the path or name the data was opened by.
        attributes: what describes the classes, where the data says so.
        is_one_object: whether it is one data set object whose split nobody named, though it is called ``train`` here;
            who hands such a one to a verb means it, and not a part of it.
    """

    splits: Mapping[str, Dataset]
    classes: Classes
    format: str
    name: str
    notes: list[str] = field(default_factory=list)
    attributes: AttributeTable | None = None
    is_one_object: bool = False

    def split(self, name: str) -> Dataset:
        """One split, or with ``all`` the pictures of every split.

        Raises:
            DataError: naming the splits there are.
        """
        if name not in self.splits:
            if name == ALL:
                return union(list(self.splits.values()))
            there = ", ".join((*self.splits, ALL))
            raise DataError(f"there is no split {name!r}", where=self.name, expected=f"one of: {there}")
        return self.splits[name]

    @property
    def held_out(self) -> str:
        """The split that may choose a model: ``val`` where there is one, else ``test``, else the object handed over.

        Raises:
            DataError: where there are training pictures alone, which say nothing of other pictures.
        """
        found = next((name for name in ("val", "test") if name in self.splits), None)
        if found is None and self.is_one_object:
            return next(iter(self.splits))
        if found is None:
            raise DataError(
                "there are only training pictures, and a figure on those says nothing of others",
                where=self.name,
                expected="a split val or test",
                remedy="add pictures, or ask for the split train",
            )
        return found

    @property
    def scored(self) -> str:
        """The split that a model is scored on: ``test`` where there is one, because ``val`` has chosen the model."""
        return "test" if "test" in self.splits else self.held_out

    @property
    def is_split_by_hash(self) -> bool:
        """Whether the source had no splits, so that a part of it was held out by a hash of the names."""
        return any(BY_HASH in note for note in self.notes)

    @property
    def task(self) -> TaskName:
        """What the targets are for: a class per picture, per pixel (``semantic``), boxes, or boxes and masks."""
        return next(iter(self.splits.values())).task

    def fingerprint(self) -> dict[str, str]:
        """The SHA-256 of each split (names, sizes, labels)."""
        return {name: dataset.fingerprint() for name, dataset in self.splits.items()}


def open_data(source: Any, *, task: TaskName | None = None, strict: bool = False) -> DataSource:
    """Open data of any known format.

    Args:
        source: a folder (class folders, idx files, pictures with masks, VOC, COCO, YOLO, LabelMe, a folder with CSV
            tables), a CSV file of path,label or image,mask or boxes or captions, a COCO JSON file, a ``data.yaml``, tar
            shards, the name of an embedded data set, a torchvision or Hugging Face data set object, one of our own data
            sets, or a mapping of split names to such objects.
        task: what the data is wanted for, where it can be read in several ways; recognised where it is None (COCO JSON
            with outlines is then read as label maps).
        strict: fail where splits do not agree, a picture has no mask or a box is faulty, instead of reporting it in
            ``notes``.

    Raises:
        DataError: nothing there, nothing recognised, no pictures, fewer than two classes (one will do for objects),
            labels outside the classes, masks or boxes that do not fit their pictures, data of another task than the one
            wanted.
    """
    return _of_task(_open(source, task, strict), task)


def _open(source: Any, task: TaskName | None, strict: bool) -> DataSource:
    if isinstance(source, DataSource):
        return source
    if not isinstance(source, str | Path):
        handed = _source(open_object(source, strict=strict), type(source).__name__)
        return replace(handed, is_one_object=not isinstance(source, Mapping))
    path = Path(source).expanduser()
    if not str(source).strip() or not path.exists():
        if str(source) in embedded.names():
            return _source(embedded.open_embedded(str(source)), str(source))
        raise _missing(str(source))
    opened = _open_file(path, task, strict) if path.is_file() else _open_folder(path, task, strict)
    splits, notes = with_validation(opened.splits)
    return _source(opened._replace(splits=splits, notes=[*opened.notes, *notes]), str(path))


def _open_file(path: Path, task: TaskName | None, strict: bool) -> Opened:
    suffix = path.suffix.lower()
    if (task in {None, "zero_shot"} or suffix == ".tar") and is_caption_file(path):
        return open_captions(path, strict=strict)
    if suffix in {".csv", ".tsv"}:
        if is_mask_table(path):
            return _open_masks(path, task, strict)
        if is_box_table(path) and task not in _CLASSES:
            return open_boxes(path, task, strict=strict)
        return open_table(path, strict=strict)
    if suffix == ".json":
        return _open_coco(path, task, strict)
    if suffix in {".yaml", ".yml"}:
        return open_yolo(path, task, strict=strict)
    raise _wrong_file(path)


class _Reader(NamedTuple):
    """One way to read a folder.

    Attributes:
        told: what it is called.
        tasks: what it can be read for; the first of them where nobody says.
        fits: whether a folder is of this kind.
        open: reads it, for a task or for the likeliest.
    """

    told: str
    tasks: tuple[TaskName, ...]
    fits: Callable[[Path], bool]
    open: Callable[[Path, TaskName | None, bool], Opened]


def _open_idx(root: Path, task: TaskName | None, strict: bool) -> Opened:
    return open_idx(root, find_idx(root))


def _open_voc(root: Path, task: TaskName | None, strict: bool) -> Opened:
    return open_voc(root, strict=strict)


def _open_xml(root: Path, task: TaskName | None, strict: bool) -> Opened:
    return open_voc_xml(root, task, strict=strict)


def _open_yolo(root: Path, task: TaskName | None, strict: bool) -> Opened:
    return open_yolo(root, task, strict=strict)


def _open_labelme(root: Path, task: TaskName | None, strict: bool) -> Opened:
    return open_labelme(root, task, strict=strict)


def _open_boxes(root: Path, task: TaskName | None, strict: bool) -> Opened:
    return open_boxes(root, task, strict=strict)


def _open_captions(root: Path, task: TaskName | None, strict: bool) -> Opened:
    return open_captions(root, strict=strict)


def _open_table(root: Path, task: TaskName | None, strict: bool) -> Opened:
    return open_table(root, strict=strict)


def _open_masks(source: Path, task: TaskName | None, strict: bool) -> Opened:
    if task in _OBJECTS:
        return open_numbered(source, task, strict=strict)
    return open_pairs(source, strict=strict)


def _open_coco(source: Path, task: TaskName | None, strict: bool) -> Opened:
    """As objects, which the format is made for; as label maps where somebody wants them, or the file is panoptic."""
    read = read_coco_source(source)
    has_objects = not any(file.panoptic for _, file in read.files) and any(file.annotations for _, file in read.files)
    if task in _OBJECTS or (task is None and has_objects):
        opened = open_coco_objects(source, task, strict=strict, read=read)
        told = ["the outlines can be painted as label maps too: --task semantic"]
        return opened._replace(notes=[*opened.notes, *told]) if task is None and has_outlines(read) else opened
    return open_coco(source, strict=strict, read=read)


_CLASSES: tuple[TaskName, ...] = ("classification",)
_OBJECTS: tuple[TaskName, ...] = ("detection", "instance")
_FROM_OUTLINES: tuple[TaskName, ...] = ("semantic", "instance", "detection")

# The first that fits is taken: what is told by files of a fixed name comes before what is told by names of folders.
_READERS = (
    _Reader("idx files", _CLASSES, lambda root: bool(find_idx(root)), _open_idx),
    _Reader("a VOC folder", ("semantic",), is_voc_folder, _open_voc),
    _Reader("COCO JSON", _FROM_OUTLINES, has_coco_annotations, _open_coco),
    _Reader("pictures with masks", _FROM_OUTLINES, is_pair_folder, _open_masks),
    _Reader("Pascal VOC XML", ("detection",), is_voc_xml_folder, _open_xml),
    _Reader("YOLO text", _OBJECTS, is_yolo_folder, _open_yolo),
    _Reader("a table of boxes", ("detection",), is_box_folder, _open_boxes),
    _Reader("LabelMe JSON", _OBJECTS, is_labelme_folder, _open_labelme),
    _Reader("pictures with captions", ("zero_shot",), is_caption_folder, _open_captions),
    _Reader("a table", _CLASSES, is_table_folder, _open_table),
    _Reader("COCO JSON", _FROM_OUTLINES, is_coco_folder, _open_coco),
)


def _open_folder(path: Path, task: TaskName | None, strict: bool) -> Opened:
    fitting = [reader for reader in _READERS if reader.fits(path)]
    if task == "classification":
        # Class folders may hold captions as well.
        fitting = [reader for reader in fitting if reader.open is not _open_captions]
    wanted = [reader for reader in fitting if task is None or task in reader.tasks]
    if task in _OBJECTS:
        # Outlines made for objects come before masks whose values may number them.
        wanted.sort(key=lambda reader: reader.open is _open_masks)
    if wanted:
        opened = wanted[0].open(path, task, strict)
        found = next(iter(opened.splits.values())).task
        others = {reader.tasks[0]: reader for reader in wanted if found not in reader.tasks}
        told = [f"the folder can be read as {other.told} too, for {other.tasks[0]}" for other in others.values()]
        return opened._replace(notes=[*opened.notes, *told])
    if task in {None, "classification"} and not fitting:
        return open_folder(path, strict=strict)
    if fitting and task is not None:
        raise _other_task(str(path), fitting[0].told, fitting[0].tasks[0], task)
    raise _nothing_annotated(path, task)


def _nothing_annotated(path: Path, task: TaskName | None) -> DataError:
    count = sum(1 for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    lacking = {"detection": "boxes", "zero_shot": "captions"}.get(task or "", "masks")
    found = f"{counted(count, 'picture')} but no {lacking}" if count else "no pictures"
    expected = "images/ and masks/ with files of the same name, a VOC or COCO folder, or a CSV of image,mask"
    if task in _OBJECTS:
        expected = "COCO JSON, Pascal VOC XML, YOLO text, LabelMe JSON, a CSV of boxes, or 16-bit masks of objects"
    if task == "zero_shot":
        expected = "a CSV or JSON of file,caption, COCO captions, or WebDataset tar shards"
    return DataError(
        f"the folder holds {found}",
        where=str(path),
        expected=expected,
        remedy="for pictures sorted into class folders choose a model for classification" if count else None,
    )


def as_task(name: str | None) -> TaskName | None:
    """A task by the name that a user gave it (``segmentation`` is ``semantic``); None stays None.

    Raises:
        UnknownNameError: no data is for such a task.
    """
    for task in _TARGETS:
        if name == task or TASK_SYNONYMS.get(str(name)) == task:
            return task
    if name is None:
        return None
    raise UnknownNameError("task", name, [*_TARGETS, *TASK_SYNONYMS])


def _of_task(data: DataSource, task: TaskName | None) -> DataSource:
    """The data, if it is for the task that is wanted."""
    if task is not None and data.task != task:
        raise _other_task(data.name, data.format, data.task, task)
    return data


_TARGETS: dict[TaskName, str] = {
    "classification": "one class per picture",
    "semantic": "a class for every pixel",
    "detection": "a box for every object",
    "instance": "a box and a mask for every object",
    "zero_shot": "a caption for every picture",
}


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
    return DataSource(splits, classes, opened.format, name, list(opened.notes), opened.attributes)


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
