"""Annotated pictures as read from any format, made into the splits of one data set: classes joined by name.

The classes are those that the format lists; otherwise the names that occur, sorted. What only one split has is told,
with the nearest name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saccade.data.dataset import Opened
from saccade.data.folder import read_licence
from saccade.data.mapscan import hold_out
from saccade.data.objects import AnnotatedImage, ObjectDataset
from saccade.data.objectscan import Draft, Form, check, shown
from saccade.data.splits import counted
from saccade.data.walk import name_below
from saccade.errors import DataError, nearest
from saccade.types import Classes, TaskName


@dataclass
class Found:
    """What the reader of one format found.

    Attributes:
        format: what the format is called, told to the user.
        form: how it writes boxes.
        splits: pictures by split; under None where nobody said a split.
        notes: what was left out so far.
        classes: the classes, where the format lists them.
        category_ids: name -> number, where the format numbers classes.
        about: what the files say of the whole.
    """

    format: str
    form: Form
    splits: dict[str | None, list[Draft]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    classes: Classes | None = None
    category_ids: Mapping[str, int] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def read_class_list(root: Path) -> Classes | None:
    """The names of ``classes.txt``, one a line; classes without an object keep their place by it.

    Raises:
        DataError: names that repeat.
    """
    path = root / "classes.txt"
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return class_list([line.strip() for line in lines if line.strip()], path)


def class_list(names: Sequence[str], path: Path) -> Classes:
    """Names of a file as classes.

    Raises:
        DataError: names that repeat.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        told = f"class names repeat: {', '.join(repeated)}"
        raise DataError(told, where=str(path), expected="every name once")
    return Classes(tuple(names))


def absent(names: Sequence[str], total: int, what: str, where: str, strict: bool) -> list[str]:
    """A note about pictures that are listed but not there; nothing where all are.

    Raises:
        DataError: none of them is there; with ``strict``, one is not.
    """
    if not names:
        return []
    told = f"{len(names)} of {counted(total, 'picture')} {what} not there: {shown(names)}"
    if strict or len(names) == total:
        remedy = "put the pictures where the annotations say" + (", or leave out --strict" if strict else "")
        raise DataError(told, where=where, remedy=remedy)
    return [f"{told}: left out"]


def join(found: Found, root: Path, where: str, task: TaskName | None, strict: bool) -> Opened:
    """The splits, checked, with the same classes in all of them.

    Args:
        found: what was read.
        root: the folder of the data set.
        where: the data set, for messages.
        task: ``detection`` or ``instance``; where it is None, ``instance`` if most objects have an outline.
        strict: make an error of what would be told.

    Raises:
        DataError: nothing annotated, faults of ``check``, no outlines where masks are wanted; with ``strict`` also
            classes that only some splits have.
    """
    splits, notes = _named(found, root)
    if not any(splits.values()):
        raise DataError("there are no annotated pictures", where=where, expected=found.format)
    checked: dict[str, list[AnnotatedImage]] = {}
    for split, drafts in splits.items():
        prefix = f"{split}: " if len(splits) > 1 else ""
        images, told = check(drafts, found.form, where, strict)
        checked[split] = images
        notes += [prefix + note for note in told]
    classes, told = _classes(checked, found.classes)
    if told and strict:
        raise DataError("; ".join(told), where=where, remedy="make the splits agree, or leave out --strict")
    chosen = task or _likely_task(checked)
    if chosen == "instance":
        checked, more = _with_masks(checked, where, strict)
        told += more
    licence = read_licence(root)
    datasets = {
        split: ObjectDataset(
            images, classes, root, licence, task=chosen, category_ids=found.category_ids, about=found.about
        )
        for split, images in checked.items()
        if images
    }
    return Opened(found.format, datasets, [*found.notes, *notes, *told])


def _named(found: Found, root: Path) -> tuple[dict[str, list[Draft]], list[str]]:
    """The pictures by split, a fifth held out where nobody said a split."""
    whole = found.splits.get(None)
    if whole and len(found.splits) == 1:
        keys = [name_below(draft.image.path, root) for draft in whole]
        halves, note = hold_out(whole, keys)
        return halves, [note]
    return {split or "train": drafts for split, drafts in found.splits.items() if drafts}, []


def _classes(splits: Mapping[str, Sequence[AnnotatedImage]], listed: Classes | None) -> tuple[Classes, list[str]]:
    """The classes of all splits, and notes about those that not every split has."""
    counts = {
        split: Counter(thing.name for image in images for thing in image.objects) for split, images in splits.items()
    }
    leader = "train" if splits.get("train") else next(iter(splits))
    known = list(listed) if listed is not None else sorted(counts[leader])
    notes = []
    for split, found in counts.items():
        for name in sorted(set(found) - set(known)):
            near = nearest(name, known)
            hint = f" (did you mean {near!r}?)" if near else ""
            notes.append(f"{split} has a class {name!r} that {leader} has not{hint}: {counted(found[name], 'object')}")
            known.append(name)
    for split, found in counts.items():
        lacking = [name for name in known if not found[name] and any(counts[other][name] for other in counts)]
        if lacking and found and split != leader:
            noun = "class" if len(lacking) == 1 else "classes"
            names = shown([repr(name) for name in lacking], 8)
            notes.append(f"{split} has no object of {len(lacking)} {noun} that other splits have: {names}")
    nowhere = [name for name in known if not any(found[name] for found in counts.values())]
    if nowhere and any(counts.values()):
        noun = "class is" if len(nowhere) == 1 else "classes are"
        notes.append(f"{len(nowhere)} {noun} listed but have no object: {shown(nowhere, 8)}")
    return Classes(tuple(known)), notes


def _likely_task(splits: Mapping[str, Sequence[AnnotatedImage]]) -> TaskName:
    outlined = [t.shape is not None for images in splits.values() for image in images for t in image.objects]
    return "instance" if outlined and sum(outlined) * 2 > len(outlined) else "detection"


def _with_masks(
    splits: Mapping[str, Sequence[AnnotatedImage]], where: str, strict: bool
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """Objects known by their box alone become crowds: nothing is learned from them, nothing counts against them."""
    lacking = [
        f"{image} object {index}"
        for images in splits.values()
        for image in images
        for index, thing in enumerate(image.objects)
        if thing.shape is None
    ]
    total = sum(len(image.objects) for images in splits.values() for image in images)
    if not lacking:
        return {split: list(images) for split, images in splits.items()}, []
    told = f"{len(lacking)} of {counted(total, 'object')} known by a box but no mask: {shown(lacking)}"
    if strict or len(lacking) == total:
        remedy = "read the data for the task detection" + (", or leave out --strict" if len(lacking) < total else "")
        raise DataError(told, where=where, expected="a mask for every object", remedy=remedy)
    mended = {
        split: [
            replace(
                image, objects=tuple(t if t.shape is not None else replace(t, is_crowd=True) for t in image.objects)
            )
            for image in images
        ]
        for split, images in splits.items()
    }
    return mended, [f"{told}: their boxes count as crowds, from which nothing is learned"]
