"""What a data set is: samples with names for their classes, a fingerprint and a licence.

B pictures · h, w size · K classes
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from saccade.data.decode import read_image
from saccade.data.splits import as_bytes
from saccade.errors import DataError
from saccade.types import Classes, ClassTarget, Sample, TaskName
from saccade.types.attributes import AttributeTable


@runtime_checkable
class Dataset(Protocol):
    """Samples with an order, named classes and a known licence."""

    @property
    def task(self) -> TaskName:
        """What the targets are for: ``classification`` for ``ClassTarget``, ``zero_shot`` for ``Caption``, ..."""
        ...

    @property
    def classes(self) -> Classes:
        """Names of the classes; a label is the place of its name."""
        ...

    @property
    def licence(self) -> str | None:
        """What the data may be used for, or None where nobody said."""
        ...

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Raises:
            ImageError: where its picture cannot be decoded.
        """
        ...

    def fingerprint(self) -> str:
        """A SHA-256 that changes when names, sizes or labels change; fast, so file contents are not read."""
        ...


@runtime_checkable
class Labelled(Dataset, Protocol):
    """A data set with one class per sample."""

    def labels(self) -> Tensor:
        """The label of every sample ``[N]`` int64, without decoding pictures."""
        ...


class ArrayBatch(NamedTuple):
    """Pictures of one size, straight from memory.

    Attributes:
        images: ``[B, 3, h, w]`` uint8 RGB.
        labels: ``[B]`` int64.
        texts: the captions of each, where the pictures have captions; else empty.
    """

    images: Tensor
    labels: Tensor
    texts: tuple[tuple[str, ...], ...] = ()


@runtime_checkable
class Captioned(Dataset, Protocol):
    """A data set with captions."""

    def choices(self, index: int) -> tuple[str, ...]:
        """The texts that a training may take for one picture; nothing is decoded."""
        ...

    def chosen(self, index: int, draw: float) -> str:
        """The text that a training takes for one picture by a random number in [0, 1)."""
        ...


@runtime_checkable
class Selectable(Protocol):
    """A data set that makes smaller ones of its own kind."""

    def select(self, indices: Sequence[int]) -> Dataset:
        """The samples at ``indices``."""
        ...


@runtime_checkable
class Joinable(Protocol):
    """A data set that takes others of its own kind in."""

    def joined(self, others: Sequence[Dataset]) -> Dataset:
        """Its own samples, then those of the others."""
        ...


@runtime_checkable
class InMemory(Protocol):
    """A data set that can hand out many pictures of one size at once, which is much faster for tiny ones."""

    def gather(self, indices: Tensor) -> ArrayBatch:
        """The pictures and labels at ``indices`` ``[B]`` int64."""
        ...

    def source(self, index: int) -> str:
        """Where a sample comes from."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Pictures held in memory.

    Attributes:
        images: ``[N, h, w]`` grey or ``[N, 3, h, w]`` RGB, uint8.
        targets: ``[N]`` int64 labels.
        classes: names of the classes.
        name: file or generator the pictures came from; sources are ``name#index``.
        licence: what the data may be used for.
    """

    images: Tensor
    targets: Tensor
    classes: Classes
    name: str
    licence: str | None = None
    task: ClassVar[TaskName] = "classification"

    def __post_init__(self) -> None:
        is_picture = self.images.ndim == 3 or (self.images.ndim == 4 and self.images.shape[1] == 3)
        if not is_picture or self.images.dtype != torch.uint8:
            got = f"{tuple(self.images.shape)} {self.images.dtype}"
            raise DataError(f"the pictures are {got}", where=self.name, expected="[N, h, w] or [N, 3, h, w] uint8")
        if len(self.images) != len(self.targets):
            raise DataError(f"{len(self.images)} pictures but {len(self.targets)} labels", where=self.name)
        check_labels(self.targets.tolist(), self.classes, self.name)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        image = self.images[index]
        if image.ndim == 2:
            image = image.expand(3, -1, -1)
        return Sample(image.contiguous(), ClassTarget(self.targets[index]), self.source(index))

    def gather(self, indices: Tensor) -> ArrayBatch:
        """The pictures and labels at ``indices``."""
        images = self.images[indices]
        if images.ndim == 3:
            images = images[:, None].expand(-1, 3, -1, -1)
        return ArrayBatch(images, self.targets[indices])

    def source(self, index: int) -> str:
        """Where a sample comes from."""
        return f"{self.name}#{index}"

    def labels(self) -> Tensor:
        """The label of every sample ``[N]`` int64."""
        return self.targets

    def fingerprint(self) -> str:
        """A SHA-256 over pictures, labels and class names (all are in memory, so the contents are cheap to read)."""
        digest = hashlib.sha256(as_bytes("\0".join(self.classes)))
        digest.update(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.numpy().tobytes())
        digest.update(self.targets.numpy().tobytes())
        return digest.hexdigest()


class Opened(NamedTuple):
    """What the reader of one format found.

    Attributes:
        format: what the format is called, told to the user.
        splits: the data sets, by split.
        notes: what did not agree or was left out, one sentence each.
        attributes: what describes the classes, where the data says so.
    """

    format: str
    splits: Mapping[str, Dataset]
    notes: list[str]
    attributes: AttributeTable | None = None


class LabelledFile(NamedTuple):
    """One picture file of a data set.

    Attributes:
        path: the file.
        label: id of its class.
    """

    path: Path
    label: int


class FileDataset:
    """Pictures in files, decoded when asked for.

    Attributes:
        files: path and label of each sample.
        classes: names of the classes.
        root: the folder that names in the fingerprint are relative to.
        licence: what the data may be used for.
    """

    task: TaskName = "classification"

    def __init__(self, files: Sequence[LabelledFile], classes: Classes, root: Path, licence: str | None = None) -> None:
        check_labels((file.label for file in files), classes, str(root))
        self.files = tuple(files)
        self.classes = classes
        self.root = root
        self.licence = licence

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.files[index]
        return Sample(read_image(path), ClassTarget(torch.tensor(label)), str(path))

    def labels(self) -> Tensor:
        """The label of every sample ``[N]`` int64."""
        return torch.tensor([file.label for file in self.files], dtype=torch.int64)

    def fingerprint(self) -> str:
        """A SHA-256 over class names and the name, size in bytes and label of every file."""
        digest = hashlib.sha256(as_bytes("\0".join(self.classes)))
        for path, label in self.files:
            size = path.stat().st_size if path.exists() else -1
            name = path.relative_to(self.root) if path.is_relative_to(self.root) else path
            digest.update(as_bytes(f"{name.as_posix()}\0{size}\0{label}\n"))
        return digest.hexdigest()


def check_labels(labels: Iterable[int], classes: Classes, where: str) -> None:
    """Refuse labels that no class has.

    Raises:
        DataError: naming the first such label and its place.
    """
    for index, label in enumerate(labels):
        if not 0 <= label < len(classes):
            raise DataError(
                f"sample {index} has label {label}",
                where=where,
                expected=f"0 to {len(classes) - 1}, as there are {len(classes)} classes",
                remedy="correct the label or the list of classes (labels start at 0)",
            )


def subset(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """The samples of ``dataset`` at ``indices``, as a data set of the same kind where that keeps it fast."""
    if isinstance(dataset, ArrayDataset):
        chosen = torch.as_tensor(list(indices), dtype=torch.int64)
        images, targets = dataset.images[chosen], dataset.targets[chosen]
        return ArrayDataset(images, targets, dataset.classes, dataset.name, dataset.licence)
    if isinstance(dataset, FileDataset):
        files = [dataset.files[index] for index in indices]
        return FileDataset(files, dataset.classes, dataset.root, dataset.licence)
    if isinstance(dataset, Selectable):
        return dataset.select(indices)
    return LabelledSubset(dataset, indices) if isinstance(dataset, Labelled) else Subset(dataset, indices)


def union(datasets: Sequence[Dataset]) -> Dataset:
    """The samples of several data sets with the same classes, one after the other."""
    first, *others = datasets
    if not others:
        return first
    if isinstance(first, Joinable):
        return first.joined(others)
    if all(isinstance(one, Labelled) for one in datasets):
        return LabelledUnion(datasets)
    return Union(datasets)


class Union:
    """The samples of several data sets with the same classes, one after the other.

    Attributes:
        datasets: the parts.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = tuple(datasets)
        self.starts = tuple(itertools.accumulate((len(one) for one in datasets), initial=0))
        self.task: TaskName = datasets[0].task
        self.classes = datasets[0].classes
        self.licence = next((one.licence for one in datasets if one.licence), None)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        part = bisect.bisect_right(self.starts, index) - 1
        return self.datasets[part][index - self.starts[part]]

    def fingerprint(self) -> str:
        """A SHA-256 over those of the parts."""
        return hashlib.sha256("".join(one.fingerprint() for one in self.datasets).encode()).hexdigest()


class LabelledUnion(Union):
    """The samples of several data sets with one class per sample."""

    def labels(self) -> Tensor:
        """The label of every sample ``[N]`` int64."""
        return torch.cat([one.labels() for one in self.datasets if isinstance(one, Labelled)])


class Subset:
    """Some samples of another data set.

    Attributes:
        dataset: the whole.
        indices: which samples, in order.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = tuple(range(len(dataset))[index] for index in indices)
        self.task: TaskName = dataset.task
        self.classes = dataset.classes
        self.licence = dataset.licence

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]

    def fingerprint(self) -> str:
        """A SHA-256 over the whole and the choice."""
        return hashlib.sha256(f"{self.dataset.fingerprint()}{self.indices}".encode()).hexdigest()


class LabelledSubset(Subset):
    """Some samples of a data set with one class per sample."""

    def __init__(self, dataset: Labelled, indices: Sequence[int]) -> None:
        super().__init__(dataset, indices)
        self._labels = dataset.labels

    def labels(self) -> Tensor:
        """The label of every sample ``[N]`` int64."""
        return self._labels()[list(self.indices)]
