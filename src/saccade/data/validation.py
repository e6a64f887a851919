"""A validation split for files that name training pictures alone, so that nothing is ever scored on what it learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from saccade.data.captions import CaptionDataset
from saccade.data.dataset import Dataset, FileDataset, Labelled, subset
from saccade.data.maps import MapDataset
from saccade.data.objects import ObjectDataset
from saccade.data.shards import ShardMember
from saccade.data.splits import BY_HASH, VALIDATION_SHARE, counted, split_by_hash
from saccade.data.walk import name_below


def with_validation(splits: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], list[str]]:
    """The splits, with ``val`` made of a part of ``train`` where that is all there is, and the note about it.

    The part is ``VALIDATION_SHARE`` of each class (of all pictures where they have no class each), chosen by a hash of
    the names of the files: training, evaluation and report open the data on their own, and have to find the same part.

    Args:
        splits: what a reader found in files.
    """
    if set(splits) != {"train"}:
        return dict(splits), []
    train = splits["train"]
    names = [str(label) for label in train.labels().tolist()] if isinstance(train, Labelled) else [""] * len(train)
    halves = split_by_hash(list(zip(range(len(train)), names, strict=True)), _keys(train))
    held_out = [place for place, _ in halves["val"]]
    if not held_out:
        return dict(splits), []
    share = f"{VALIDATION_SHARE:.0%} of each class" if isinstance(train, Labelled) else f"{VALIDATION_SHARE:.0%}"
    note = (
        f"there is no val split: {len(held_out)} of the {counted(len(train), 'picture')} of train ({share}, "
        f"{BY_HASH}) are held out as val"
    )
    # Both keep the order of the files, whatever the order of the classes.
    kept = sorted(place for place, _ in halves["train"])
    return {"train": subset(train, kept), "val": subset(train, sorted(held_out))}, [note]


def _keys(dataset: Dataset) -> list[str]:
    """A name for every sample that is the same on every machine: its path below the data, or its number."""
    pictures: list[object]
    root: Path | None = None
    match dataset:
        case FileDataset():
            pictures, root = [file.path for file in dataset.files], dataset.root
        case MapDataset():
            pictures, root = [item.image for item in dataset.items], dataset.root
        case ObjectDataset():
            pictures, root = [image.path for image in dataset.images], dataset.root
        case CaptionDataset():
            pictures, root = [item.picture for item in dataset.items], dataset.root
        case _:
            pictures = [None] * len(dataset)
    return [_key(picture, root, index) for index, picture in enumerate(pictures)]


def _key(picture: object, root: Path | None, index: int) -> str:
    if isinstance(picture, ShardMember):
        return picture.name
    if not isinstance(picture, Path):
        return str(index)
    return picture.as_posix() if root is None else name_below(picture, root)
