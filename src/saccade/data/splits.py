"""Splits put together: joined by class name, so that a folder missing from one of them can never shift a label."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from saccade.errors import DataError, nearest
from saccade.types import Classes

ItemT = TypeVar("ItemT")

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}
"""What people call their splits -> what we call them."""

VALIDATION_SHARE = 0.2
"""Share of each class that a source without splits gives to validation."""

BY_HASH = "chosen by a hash of the file name"
"""In every note about a split that is ours and not the source's; ``DataSource.is_split_by_hash`` looks for it."""


@dataclass(frozen=True)
class Joined(Generic[ItemT]):
    """Splits that agree about their classes.

    Attributes:
        classes: the classes of all splits.
        splits: items with their labels, per split.
        notes: what did not agree, one sentence each.
    """

    classes: Classes
    splits: dict[str, list[tuple[ItemT, int]]]
    notes: list[str]


def join_by_name(
    splits: Mapping[str, Sequence[tuple[ItemT, str]]],
    where: str,
    *,
    classes: Classes | None = None,
    strict: bool = False,
) -> Joined[ItemT]:
    """Turn class names into labels, the same for every split.

    The training split decides which classes exist (the largest split where there is no training). Items of other
    classes are left out and reported, with the nearest name; classes without items are reported.

    Args:
        splits: items with the names of their classes.
        where: the source, for messages.
        classes: the classes, where the source lists them itself.
        strict: fail instead of reporting.

    Raises:
        DataError: no items, fewer than two classes, or, with ``strict``, splits that do not agree.
    """
    if not any(splits.values()):
        raise DataError("there are no labelled pictures", where=where, expected="at least two classes with pictures")
    leader = "train" if splits.get("train") else max(splits, key=lambda split: len(splits[split]))
    if classes is None:
        classes = Classes(tuple(sorted({name for _, name in splits[leader]})))
    check_two_classes(classes, where)
    ids = {name: label for label, name in enumerate(classes)}
    notes: list[str] = []
    joined: dict[str, list[tuple[ItemT, int]]] = {}
    for split, items in splits.items():
        counts = Counter(name for _, name in items)
        notes += _disagreements(split, leader, counts, classes)
        joined[split] = [(item, ids[name]) for item, name in items if name in ids]
    if notes and strict:
        raise DataError("; ".join(notes), where=where, remedy="make the splits agree, or leave out --strict")
    return Joined(classes, {split: items for split, items in joined.items() if items}, notes)


def _disagreements(split: str, leader: str, counts: Counter[str], classes: Classes) -> list[str]:
    notes = []
    absent = [name for name in classes if not counts[name]]
    for name in sorted(set(counts) - set(classes)):
        near = nearest(name, absent) or nearest(name, classes)
        hint = f" (did you mean {near!r}?)" if near else ""
        notes.append(
            f"{split} has a class {name!r} that {leader} has not{hint}: {counted(counts[name], 'picture')} left out"
        )
    if absent:
        shown = ", ".join(repr(name) for name in absent[:8]) + (", ..." if len(absent) > 8 else "")
        noun = "class" if len(absent) == 1 else "classes"
        notes.append(f"{split} has no pictures of {len(absent)} {noun}: {shown}; labels stay as they are in {leader}")
    return notes


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 picture", "2 pictures"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def check_two_classes(classes: Classes, where: str) -> None:
    """Refuse a source that leaves nothing to tell apart.

    Raises:
        DataError: for fewer than two classes.
    """
    if len(classes) < 2:
        found = f"there is only one class, {classes[0]!r}" if classes.names else "there are no classes"
        raise DataError(found, where=where, expected="at least two", remedy="add a folder or a label for another class")


def as_bytes(text: str) -> bytes:
    """Text for a digest: UTF-8, and of names of files that are none the bytes that the system gave."""
    return text.encode("utf-8", "surrogateescape")


def told_split() -> str:
    """What ``split_by_hash`` does, in words for the notes."""
    return f"{VALIDATION_SHARE:.0%} of each class, {BY_HASH}, is held out as val"


def split_by_hash(items: Sequence[tuple[ItemT, str]], keys: Sequence[str]) -> dict[str, list[tuple[ItemT, str]]]:
    """Train and validation splits of a source that has none: the same on every machine and in every order of files.

    Of each class, the share ``VALIDATION_SHARE`` whose names have the lowest SHA-256 goes to validation; at least one
    picture, as long as one remains for training.

    Args:
        items: items with the names of their classes.
        keys: a stable name for each item (its path relative to the root).
    """
    by_class: dict[str, list[tuple[str, ItemT]]] = {}
    for (item, name), key in zip(items, keys, strict=True):
        by_class.setdefault(name, []).append((key, item))
    splits: dict[str, list[tuple[ItemT, str]]] = {"train": [], "val": []}
    for name in sorted(by_class):
        members = sorted(by_class[name], key=lambda member: hashlib.sha256(as_bytes(member[0])).hexdigest())
        held_out = min(max(round(len(members) * VALIDATION_SHARE), 1), len(members) - 1)
        for split, chosen in (("val", members[:held_out]), ("train", members[held_out:])):
            splits[split] += [(item, name) for _, item in sorted(chosen, key=lambda member: member[0])]
    return splits
