"""Pictures with captions: what people wrote of each picture, and perhaps a category; from files, shards or memory.

A picture may have several texts. In an evaluation it keeps all of them; in a training the loader chooses one of
``choices``, which also holds parts of a text (an alias, a tag), so that single words are learned as well.

N pictures · h, w size
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from saccade.data.dataset import ArrayBatch, Captioned, Dataset, check_labels
from saccade.data.decode import read_image
from saccade.data.maps import identity_of
from saccade.data.shards import ShardMember
from saccade.data.splits import as_bytes
from saccade.data.transforms import NUM_DRAWS, Key
from saccade.types import Caption, Classes, Sample, TaskName

WHOLE = 0.5
"""Share of the draws of a training that take a whole caption, where there are parts to take instead."""


@dataclass(frozen=True, eq=False)
class CaptionItem:
    """One picture and what is said of it.

    Attributes:
        picture: its file, its place in a shard, or itself, ``[3, h, w]`` uint8.
        texts: its captions.
        alternatives: further texts that a training may take: parts of the captions, other words for them.
        label: id of its category; -1 where the data has none.
        source: what to call it; the path where it is empty.
    """

    picture: Path | ShardMember | Tensor
    texts: tuple[str, ...]
    alternatives: tuple[str, ...] = ()
    label: int = -1
    source: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """Every different text, captions first."""
        return tuple(dict.fromkeys([*self.texts, *self.alternatives]))

    def read(self) -> Tensor:
        """The picture ``[3, h, w]`` uint8.

        Raises:
            ImageError: where it cannot be decoded.
        """
        if isinstance(self.picture, Tensor):
            return self.picture
        content = self.picture.read() if isinstance(self.picture, ShardMember) else self.picture
        return read_image(content, where=self.source or str(self.picture))

    def identity(self, root: Path) -> bytes:
        """What a fingerprint takes of it: name and size in bytes of the picture (or its pixels), texts, category."""
        said = "\0".join([*self.texts, "", *self.alternatives, str(self.label)])
        if isinstance(self.picture, Tensor):
            return self.picture.numpy().tobytes() + as_bytes(said)
        if isinstance(self.picture, ShardMember):
            file = f"{identity_of(self.picture.path, root)}\0{self.picture.name}\0{self.picture.size}"
        else:
            file = identity_of(self.picture, root)
        return as_bytes(f"{file}\0{said}\n")


class CaptionDataset:
    """Pictures with captions.

    Attributes:
        items: picture and texts of each sample.
        classes: names of the categories; none where nobody named any.
        root: the folder that names in the fingerprint are relative to.
        licence: what the data may be used for.
    """

    task: TaskName = "zero_shot"

    def __init__(self, items: Sequence[CaptionItem], classes: Classes, root: Path, licence: str | None = None) -> None:
        self.items = tuple(items)
        self.classes = classes
        self.root = root
        self.licence = licence

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        return Sample(item.read(), Caption(item.texts), self.source(index))

    def source(self, index: int) -> str:
        """Where a sample comes from."""
        item = self.items[index]
        return item.source or str(item.picture)

    def choices(self, index: int) -> tuple[str, ...]:
        """The texts that a training may take for one picture."""
        return self.items[index].choices

    def chosen(self, index: int, draw: float) -> str:
        """The text that a training takes by a number in [0, 1): a whole caption, or half of the time a part."""
        item = self.items[index]
        if not item.alternatives or draw < WHOLE:
            return item.texts[int(draw / (WHOLE if item.alternatives else 1.0) * len(item.texts))]
        return item.alternatives[int((draw - WHOLE) / (1 - WHOLE) * len(item.alternatives))]

    def select(self, indices: Sequence[int]) -> Self:
        """Some of the samples, as a data set of the same kind."""
        return self._with([self.items[index] for index in indices])

    def joined(self, others: Sequence[Dataset]) -> Self:
        """These samples and those of other data sets of this kind."""
        more = [item for one in others if isinstance(one, CaptionDataset) for item in one.items]
        return self._with([*self.items, *more])

    def keeping(self, is_usable: Callable[[str], bool]) -> Self:
        """The same without some texts, and without the pictures that keep no caption."""
        kept = []
        for item in self.items:
            texts, others = (tuple(filter(is_usable, part)) for part in (item.texts, item.alternatives))
            if texts:
                kept.append(replace(item, texts=texts, alternatives=others))
        return self._with(kept)

    def fingerprint(self) -> str:
        """A SHA-256 over the categories and name, size in bytes, texts and category of every picture."""
        digest = hashlib.sha256(as_bytes("\0".join(self.classes)))
        for item in self.items:
            digest.update(item.identity(self.root))
        return digest.hexdigest()

    def _with(self, items: Sequence[CaptionItem]) -> Self:
        return type(self)(items, self.classes, self.root, self.licence)


class LabelledCaptions(CaptionDataset):
    """Pictures with captions, each of one category."""

    def __init__(self, items: Sequence[CaptionItem], classes: Classes, root: Path, licence: str | None = None) -> None:
        super().__init__(items, classes, root, licence)
        check_labels((item.label for item in items), classes, str(root))

    def labels(self) -> Tensor:
        """The category of every sample ``[N]`` int64."""
        return torch.tensor([item.label for item in self.items], dtype=torch.int64)


class CaptionsInMemory(LabelledCaptions):
    """Decoded pictures of one size, each of one category: many are handed out at once."""

    def gather(self, indices: Tensor) -> ArrayBatch:
        """The pictures at ``indices`` with their captions."""
        items = [self.items[index] for index in indices.tolist()]
        labels = torch.tensor([item.label for item in items], dtype=torch.int64)
        return ArrayBatch(torch.stack([item.read() for item in items]), labels, tuple(item.texts for item in items))


def chosen_captions(dataset: Captioned, indices: Sequence[int], key: Key) -> tuple[Caption, ...]:
    """One text for each picture of a training batch, by a draw that no augmentation uses, and what else is true of it.

    Args:
        dataset: whose texts.
        indices: the pictures.
        key: what the draws depend on.
    """
    draws = key.uniform(NUM_DRAWS + 1)[:, NUM_DRAWS].tolist()
    return tuple(
        Caption((dataset.chosen(index, draw),), dataset.choices(index))
        for index, draw in zip(indices, draws, strict=True)
    )


def training_texts(dataset: Dataset) -> Iterator[str]:
    """Every text that a training may take, for a vocabulary; none of data without captions."""
    if isinstance(dataset, CaptionDataset):
        yield from (text for item in dataset.items for text in item.choices)


def caption_dataset(
    items: Sequence[CaptionItem], classes: Classes, root: Path, licence: str | None = None
) -> CaptionDataset:
    """The data set of some items: with labels where there are categories."""
    kind = LabelledCaptions if classes.names else CaptionDataset
    return kind(items, classes, root, licence)
