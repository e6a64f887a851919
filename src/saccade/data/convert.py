"""Annotated pictures from one file format to another, with the proof that nothing was lost.

The new folder is written under a temporary name, read back as anyone would read it, and compared with the source
object by object: class, crowd, box, and every pixel of every mask. Only then does it get its name. What a format cannot
hold is refused with a count; ``lossy`` lets it go and tells it.

h, w picture
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from saccade.data.convertplan import Losses, fitted
from saccade.data.objects import AnnotatedImage, ObjectDataset, object_mask
from saccade.data.objectscan import shown
from saccade.data.objectwrite import FORMATS, Format, Named
from saccade.data.source import DataSource, open_data
from saccade.data.splits import counted
from saccade.data.write import new_folder
from saccade.errors import DataError, UnknownNameError
from saccade.types import TaskName

EXACT = 1e-3
"""Largest difference of an edge in pixels that still counts as the same box."""

_PAPERS = ("LICENSE*", "LICENCE*", "ATTRIBUTION*", "COPYRIGHT*", "NOTICE*", "SOURCE*")
"""Files about rights and origin, which go with the pictures."""


@dataclass(frozen=True)
class Conversion:
    """What was converted and what the comparison found.

    Attributes:
        source: what was read.
        format: what it was recognised as.
        destination: the new folder.
        to: its format, in words.
        pictures: pictures per split.
        objects: objects per class, per split.
        largest_deviation: largest difference of an edge between what was written and what comes back, in pixels.
        num_masks: masks that were compared pixel by pixel.
        num_linked: pictures that are hard links; the others are copies.
        lost: what the format could not hold, one sentence each.
        notes: what was told when the source was read.
    """

    source: str
    format: str
    destination: str
    to: str
    pictures: dict[str, int]
    objects: dict[str, dict[str, int]]
    largest_deviation: float
    num_masks: int
    num_linked: int
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same in lines for people."""
        lines = [f"{self.source} ({self.format}) -> {self.destination} ({self.to})"]
        for split, count in self.pictures.items():
            there = [f"{name} {number:,}" for name, number in self.objects[split].items() if number]
            objects = counted(sum(self.objects[split].values()), "object")
            lines.append(
                f"{split}: {counted(count, 'picture')}, {objects}" + (f": {shown(there, 12)}" if there else "")
            )
        proof = f"read back and compared: largest difference of an edge {self.largest_deviation:.2g} pixels"
        masks = f", {counted(self.num_masks, 'mask')} equal in every pixel" if self.num_masks else ""
        copies = sum(self.pictures.values()) - self.num_linked
        lines += [proof + masks, f"pictures: {self.num_linked} linked, {copies} copied"]
        return [*lines, *self.lost, *(f"note: {note}" for note in self.notes)]


def convert(
    source: Any,
    destination: str | Path,
    *,
    to: str,
    task: str | None = None,
    lossy: bool = False,
    copy: bool = False,
    strict: bool = False,
) -> Conversion:
    """Write annotated pictures in another format, into a new folder, and compare what comes back.

    Args:
        source: anything ``open_data`` reads as boxes or masks of objects.
        destination: the folder to make; it must not exist.
        to: ``coco``, ``voc``, ``yolo``, ``csv`` or ``labelme``.
        task: ``detection`` leaves masks aside, ``instance`` wants a mask for every object; where it is None, what is
            there is converted.
        lossy: let go what the format cannot hold, and tell it, instead of refusing.
        copy: copy every picture, even where a hard link would do.
        strict: fail on faults of the source that would be mended and told.

    Raises:
        UnknownNameError: a format that does not exist.
        DataError: a source without objects, a folder that exists, something that the format cannot hold, or a
            difference between what was written and what comes back.
    """
    if to not in FORMATS:
        raise UnknownNameError("format", to, FORMATS)
    if task not in {None, "detection", "instance"}:
        raise UnknownNameError("task", str(task), ("detection", "instance"), where="convert")
    if Path(destination).exists():
        raise DataError("the folder exists already", where=str(destination), remedy="choose another name or delete it")
    form = FORMATS[to]
    opened = _opened(source, task, strict)
    datasets = {split: _objects(data) for split, data in opened.splits.items()}
    losses = Losses()
    about = next(iter(datasets.values()))
    names = _names([image for data in datasets.values() for image in data.images])
    planned: dict[str, list[Named]] = {}
    for split, data in datasets.items():
        images = [_without_masks(image) if task == "detection" else image for image in data.images]
        planned[split] = [Named(fitted(image, to, form, losses), names[image.path]) for image in images]
    if to != "coco" and about.about:
        losses.told["the whole file"] = set(about.about)
    refused = losses.refused()
    if refused and not lossy:
        remedy = "pass --lossy to let them go" + ("" if form.has_masks else ", or --task detection for the boxes alone")
        raise DataError(f"{form.told} cannot hold everything: {'; '.join(refused)}", where=opened.name, remedy=remedy)
    with new_folder(Path(destination)) as folder:
        num_linked = _place_pictures(folder, planned, form, copy=copy)
        form.write(folder, planned, about)
        _place_papers(folder, about.root)
        proof = _compare(folder, planned, about.classes.names, form, exact=None if to == "yolo" else EXACT)
    changed = [f"came back otherwise: {shown(sorted(proof.changed), 12)}"] if proof.changed else []
    return Conversion(
        opened.name,
        opened.format,
        str(destination),
        form.told,
        {split: len(members) for split, members in planned.items()},
        {split: about.replaced([m.image for m in members]).counts() for split, members in planned.items()},
        proof.largest,
        proof.num_masks,
        num_linked,
        [*(f"lost: {line}" for line in refused), *losses.lines(), *changed],
        opened.notes,
    )


def _opened(source: Any, task: str | None, strict: bool) -> DataSource:
    """The source read for objects; outlines are kept with the boxes, whatever the task."""
    wanted: TaskName = "instance" if task == "instance" else "detection"
    if isinstance(source, str) and not Path(source).expanduser().exists():
        return open_data(source, strict=strict)  # an embedded name has one task
    return open_data(source, task=wanted, strict=strict)


def _objects(data: Any) -> ObjectDataset:
    if not isinstance(data, ObjectDataset):
        told = f"a {type(data).__name__} has no objects in files"
        raise DataError(told, expected="a folder of pictures with boxes", remedy="see docs/data-formats.md")
    return data


def _without_masks(image: AnnotatedImage) -> AnnotatedImage:
    return replace(image, objects=tuple(replace(thing, shape=None) for thing in image.objects))


def _names(images: Sequence[AnnotatedImage]) -> dict[Path, str]:
    """A name for the copy of every picture: its own, with its folders where another has the same."""
    stems: dict[str, set[Path]] = {}
    for image in images:
        stems.setdefault(image.path.stem.casefold(), set()).add(image.path)
    named: dict[Path, str] = {}
    taken: set[str] = set()
    for image in images:
        if image.path in named:
            continue
        path, name = image.path, image.path.name
        if len(stems[path.stem.casefold()]) > 1:
            name = f"{path.parent.name}_{path.stem}_{path.suffix[1:]}{path.suffix}"
        number = 2
        while Path(name).stem.casefold() in taken:
            name = f"{path.parent.name}_{path.stem}_{number}{path.suffix}"
            number += 1
        taken.add(Path(name).stem.casefold())
        named[path] = name
    return named


def _place_pictures(folder: Path, splits: Mapping[str, Sequence[Named]], form: Format, *, copy: bool) -> int:
    """Link or copy every picture to where the format has it; how many are links."""
    num_linked = 0
    for split, members in splits.items():
        home = folder / form.folder.format(split=split)
        home.mkdir(parents=True, exist_ok=True)
        for member in members:
            target = home / member.name
            if not copy:
                try:
                    os.link(member.image.path.resolve(), target)
                except OSError:  # another disk, or one without links
                    pass
                else:
                    num_linked += 1
                    continue
            if not target.exists():
                shutil.copy2(member.image.path, target)
    return num_linked


def _place_papers(folder: Path, root: Path) -> None:
    for pattern in _PAPERS:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and not (folder / path.name).exists():
                shutil.copy2(path, folder / path.name)


# --- the proof


@dataclass
class _Proof:
    """What the comparison found.

    Attributes:
        largest: largest difference of an edge in pixels.
        num_masks: masks that are equal in every pixel.
        changed: keys beyond class, box and mask whose values came back otherwise.
    """

    largest: float = 0.0
    num_masks: int = 0
    changed: set[str] = field(default_factory=set)


def _compare(
    folder: Path, planned: Mapping[str, Sequence[Named]], classes: Sequence[str], form: Format, *, exact: float | None
) -> _Proof:
    """Read the new folder and compare.

    Raises:
        DataError: naming the first difference.
    """
    back = open_data(folder, task="detection")
    if list(back.classes) != list(classes):
        raise _differs(form, "the classes", ", ".join(classes), ", ".join(back.classes))
    proof = _Proof()
    for split, members in planned.items():
        if split not in back.splits and members:
            raise _differs(form, "the splits", split, ", ".join(back.splits))
        found = {image.path.name: image for image in _objects(back.splits[split]).images} if members else {}
        if set(found) != {member.name for member in members}:
            raise _differs(form, f"the pictures of {split}", str(len(members)), str(len(found)))
        for member in members:
            _compare_picture(member, found[member.name], form, proof)
            if exact is not None and proof.largest > exact:
                raise _differs(form, f"a box of {member.name}", "the same box", f"{proof.largest:.4f} pixels away")
    return proof


def _compare_picture(member: Named, found: AnnotatedImage, form: Format, proof: _Proof) -> None:
    wanted = member.image
    if found.size != wanted.size:
        raise _differs(form, f"the size of {member.name}", str(wanted.size), str(found.size))
    if len(found.objects) != len(wanted.objects):
        counts = str(len(wanted.objects)), str(len(found.objects))
        raise _differs(form, f"the number of objects of {member.name}", *counts)
    proof.changed |= _changed(wanted.extra, found.extra, form.keeps_of_picture)
    for index, (before, after) in enumerate(zip(wanted.objects, found.objects, strict=True)):
        where = f"object {index} of {member.name}"
        if (before.name, before.is_crowd) != (after.name, after.is_crowd):
            raise _differs(form, where, f"{before.name} {before.is_crowd}", f"{after.name} {after.is_crowd}")
        moved = max(abs(one - other) for one, other in zip(before.box, after.box, strict=True))
        proof.largest = max(proof.largest, moved)
        proof.changed |= _changed(before.extra, after.extra, form.keeps)
        if (before.shape is None) != (after.shape is None):
            raise _differs(form, where, "a mask" if before.shape is not None else "no mask", "the opposite")
        if before.shape is not None and before.shape != after.shape:
            same = object_mask(before, wanted.size, where) == object_mask(after, wanted.size, where)
            if not same.all():
                raise _differs(form, where, "the same pixels", counted(int((~same).sum()), "other pixel"))
        proof.num_masks += before.shape is not None


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], keeps: Callable[[str], bool]) -> set[str]:
    """The keys that the format can hold but whose values are others now."""
    return {key for key, value in before.items() if keeps(key) and value is not None and after.get(key) != value}


def _differs(form: Format, what: str, wanted: str, got: str) -> DataError:
    return DataError(
        f"{what} did not come back from {form.told}: {got[:200]} instead of {wanted[:200]}",
        remedy="nothing was written; convert to coco, which holds most, or report this with the picture named",
    )
