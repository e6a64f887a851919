"""Data set objects of torchvision and Hugging Face, recognised by what they offer, without importing either."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.data.dataset import (
    ArrayDataset,
    Dataset,
    FileDataset,
    Labelled,
    LabelledFile,
    LabelledSubset,
    Opened,
    check_labels,
    subset,
)
from saccade.data.decode import read_image
from saccade.data.splits import SPLIT_NAMES, as_bytes, check_two_classes, join_by_name
from saccade.errors import DataError, ImageError, InputError, SaccadeError
from saccade.types import Classes, ClassTarget, Sample, TaskName


def open_object(source: Any, *, strict: bool = False) -> Opened:
    """The splits of a data set object, or of a mapping (``DatasetDict``) of split names to such objects.

    One object alone is the training split. Splits are joined by class name.

    Raises:
        DataError: an object that is not recognised, without class names, or with labels outside its classes.
    """
    parts: dict[str, Any] = {}
    unknown: list[str] = []
    if isinstance(source, Mapping):
        for name, part in source.items():
            split = SPLIT_NAMES.get(str(name).lower())
            if split in parts:
                raise DataError(f"there is a second {split} split, {name!r}", expected="each split once")
            if split is None:
                unknown.append(str(name))
            else:
                parts[split] = part
    else:
        parts["train"] = source
    if not parts or (unknown and strict):
        got = f"are {', '.join(unknown)}" if unknown else "are missing"
        raise DataError(f"the splits {got}", where=type(source).__name__, expected="train, val, test")
    told, wrapped = "", {}
    for split, part in parts.items():
        told, wrapped[split] = _wrap(part, split)
    opened = _join(told, wrapped, strict)
    return opened._replace(notes=[*(f"the split {name!r} is left out" for name in unknown), *opened.notes])


def _wrap(source: Any, split: str) -> tuple[str, Dataset]:
    """What the object is called, and the object as one of our data sets."""
    if isinstance(source, Dataset):
        return type(source).__name__, source
    if hasattr(source, "features") and hasattr(source, "column_names"):
        return "Hugging Face data set", _wrap_columns(source, split)
    if hasattr(source, "dataset") and hasattr(source, "indices"):
        told, whole = _wrap(source.dataset, split)
        return told, subset(whole, [int(index) for index in source.indices])
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and hasattr(source, "classes"):
        return "torchvision data set", _wrap_pairs(source, split)
    raise DataError(
        f"a {type(source).__name__} is no data set that is known here",
        expected="an object with classes that gives (image, label), or a Hugging Face data set",
        remedy="set its attribute `classes` to the list of class names, or write the pictures into class folders",
    )


def _wrap_pairs(source: Any, split: str) -> Dataset:
    """An object in the manner of torchvision: ``classes`` and (image, label) pairs."""
    classes = Classes(tuple(str(name) for name in source.classes))
    name = f"{type(source).__name__}/{split}"
    is_raw = getattr(source, "transform", None) is None and getattr(source, "target_transform", None) is None
    files = getattr(source, "samples", None)
    if is_raw and isinstance(files, Sequence) and files and isinstance(files[0], tuple) and len(files[0]) == 2:
        listed = [LabelledFile(Path(path), int(label)) for path, label in files]
        return FileDataset(listed, classes, Path(getattr(source, "root", ".")))
    images, labels = getattr(source, "data", None), getattr(source, "targets", None)
    if is_raw and isinstance(images, np.ndarray | Tensor) and labels is not None:
        array = torch.as_tensor(images)
        if array.ndim == 4 and array.shape[3] == 3:
            array = array.permute(0, 3, 1, 2)
        return ArrayDataset(array.contiguous(), torch.as_tensor(labels, dtype=torch.int64), classes, name)
    return PairDataset(source, classes, name, labels)


def _wrap_columns(source: Any, split: str) -> Dataset:
    """An object in the manner of Hugging Face: typed columns."""
    features = source.features
    image_column = next((key for key, kind in features.items() if type(kind).__name__ == "Image"), None)
    if image_column is None:
        raise DataError(
            "no column holds images", where=split, expected=f"a column of type Image; there are {', '.join(features)}"
        )
    label_column = next((key for key, kind in features.items() if hasattr(kind, "names")), None)
    if label_column is None:
        label_column = next((key for key in ("label", "labels", "class") if key in features), None)
    if label_column is None:
        raise DataError(
            "no column holds labels", where=split, expected=f"a ClassLabel; there are {', '.join(features)}"
        )
    values = list(source[label_column])
    named = getattr(features[label_column], "names", None)
    classes = Classes(tuple(named) if named else tuple(sorted({str(value) for value in values})))
    labels = values if named else [classes.names.index(str(value)) for value in values]
    licence = getattr(getattr(source, "info", None), "license", None) or None
    return ColumnDataset(source, (image_column, labels), classes, split, licence)


class ColumnDataset:
    """A Hugging Face data set.

    Attributes:
        rows: the data set itself.
        classes: names of its ClassLabel, or its label texts, sorted.
        licence: what its card says.
    """

    task: TaskName = "classification"

    def __init__(
        self, rows: Any, columns: tuple[str, Sequence[int]], classes: Classes, name: str, licence: str | None
    ) -> None:
        self.rows = rows
        self.image_column, labels = columns
        self.classes = classes
        self.licence = licence
        self.name = name
        check_labels(labels, classes, name)
        self._labels = torch.tensor(list(labels), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        where = f"{self.name}#{index}"
        picture = self.rows[index][self.image_column]
        if isinstance(picture, Mapping):  # an Image column with decode=False
            picture = picture["bytes"] if picture.get("bytes") else picture.get("path")
        return Sample(_read(picture, where), ClassTarget(self._labels[index]), where)

    def labels(self) -> Tensor:
        """The label of every sample ``[N]`` int64."""
        return self._labels

    def fingerprint(self) -> str:
        """A SHA-256 over the library's own fingerprint, the class names and the labels."""
        own = getattr(self.rows, "_fingerprint", None) or self.name
        return _digest(str(own), self.classes, self._labels)


class PairDataset:
    """An object that gives (image, label) pairs.

    Attributes:
        pairs: the object itself.
        classes: its ``classes``.
    """

    task: TaskName = "classification"
    licence: str | None = None

    def __init__(self, pairs: Any, classes: Classes, name: str, labels: Any = None) -> None:
        self.pairs = pairs
        self.classes = classes
        self.name = name
        self._labels: Tensor | None = None
        if labels is not None and len(labels) == len(pairs):
            self._labels = torch.as_tensor(labels, dtype=torch.int64)
            check_labels(self._labels.tolist(), classes, name)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        where = f"{self.name}#{index}"
        picture, label = self._pair(index, where)
        check_labels([label], self.classes, where)
        return Sample(_read(picture, where), ClassTarget(torch.tensor(label)), where)

    def _pair(self, index: int, where: str) -> tuple[Any, int]:
        try:
            picture, label = self.pairs[index]
        except SaccadeError:
            raise
        except OSError as error:
            raise ImageError(f"the picture cannot be read ({error})", where=where) from error
        if not isinstance(label, int | np.integer) and not (isinstance(label, Tensor) and label.ndim == 0):
            raise DataError(f"the label is {label!r}", where=where, expected="one integer")
        return picture, int(label)

    def labels(self) -> Tensor:
        """The label of every sample ``[N]`` int64; where the object does not list them, every sample is read once."""
        if self._labels is None:
            found = [self._pair(index, f"{self.name}#{index}")[1] for index in range(len(self))]
            check_labels(found, self.classes, self.name)
            self._labels = torch.tensor(found, dtype=torch.int64)
        return self._labels

    def fingerprint(self) -> str:
        """A SHA-256 over name, class names and labels."""
        return _digest(f"{self.name}\0{len(self)}", self.classes, self.labels())


def _read(picture: Any, where: str) -> Tensor:
    try:
        return read_image(picture, where=where)
    except InputError as error:
        if isinstance(picture, Tensor):
            raise InputError(
                error.what,
                where=where,
                expected=error.expected,
                remedy="open the data set without its transform: the model brings its own preprocessing",
            ) from error
        raise


def _digest(name: str, classes: Classes, labels: Tensor) -> str:
    digest = hashlib.sha256(as_bytes(name))
    digest.update(as_bytes("\0".join(classes)))
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def _join(told: str, splits: dict[str, Dataset], strict: bool) -> Opened:
    """The splits with labels of one common list of classes."""
    reference = next(iter(splits.values())).classes
    if all(dataset.classes == reference for dataset in splits.values()):
        check_two_classes(reference, told)
        for split, dataset in splits.items():
            if not len(dataset):
                raise DataError("the data set is empty", where=split, expected="at least one picture")
        return Opened(told, splits, [])
    labelled = {split: dataset for split, dataset in splits.items() if isinstance(dataset, Labelled)}
    if len(labelled) < len(splits):
        given = "; ".join(f"{split}: {', '.join(dataset.classes)}" for split, dataset in splits.items())
        raise DataError(f"the splits have other classes ({given})", where=told, expected="one class table for all")
    named = {
        split: [(index, dataset.classes[int(label)]) for index, label in enumerate(dataset.labels())]
        for split, dataset in labelled.items()
    }
    classes = splits["train"].classes if "train" in splits else None
    joined = join_by_name(named, told, classes=classes, strict=strict)
    relabelled = {
        split: _relabel(labelled[split], [index for index, _ in items], joined.classes)
        for split, items in joined.splits.items()
    }
    return Opened(told, relabelled, joined.notes)


def _relabel(dataset: Labelled, indices: list[int], classes: Classes) -> Dataset:
    chosen = subset(dataset, indices)
    table = torch.tensor([classes.names.index(name) if name in classes.names else -1 for name in dataset.classes])
    if isinstance(chosen, ArrayDataset):
        return replace(chosen, targets=table[chosen.targets], classes=classes)
    if isinstance(chosen, FileDataset):
        files = [LabelledFile(path, int(table[label])) for path, label in chosen.files]
        return FileDataset(files, classes, chosen.root, chosen.licence)
    assert isinstance(chosen, Labelled)  # a subset of labelled samples is labelled
    return Relabelled(chosen, classes, table)


class Relabelled(LabelledSubset):
    """A data set whose labels count in another list of classes.

    Attributes:
        table: ``[K]`` int64, own label -> label in ``classes``.
    """

    def __init__(self, dataset: Labelled, classes: Classes, table: Tensor) -> None:
        super().__init__(dataset, range(len(dataset)))
        self.classes = classes
        self.table = table

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        assert isinstance(sample.target, ClassTarget)
        return replace(sample, target=ClassTarget(self.table[sample.target.label]))

    def labels(self) -> Tensor:
        """The label of every sample ``[N]`` int64, in the new classes."""
        return self.table[super().labels()]
