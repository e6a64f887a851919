"""COCO JSON as objects: boxes, polygons and run lengths, in the layouts that ``saccade.data.coco`` knows.

Category ids may be sparse: a label is the place of the name among the categories by ascending id. Categories that only
some of the files list come after those of the first. A missing box is the one around the outline.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from saccade.data.coco import CocoSource, picture_folders, read_coco_source
from saccade.data.cocofile import CocoAnnotation, CocoFile
from saccade.data.dataset import Opened
from saccade.data.objectjoin import Found, absent, join
from saccade.data.objects import AnnotatedImage, ObjectAnnotation
from saccade.data.objectscan import Draft, Drafted, shown
from saccade.data.splits import counted
from saccade.errors import DataError
from saccade.types import Classes, TaskName


def has_outlines(source: CocoSource) -> bool:
    """Whether any object of the files has polygons or run lengths, or a file is panoptic."""
    return any(
        bool(file.panoptic) or any(a.segmentation is not None for found in file.annotations.values() for a in found)
        for _, file in source.files
    )


def open_coco_objects(
    source: Path, task: TaskName | None = None, *, strict: bool = False, read: CocoSource | None = None
) -> Opened:
    """The splits of a folder with COCO JSON, or of one JSON file, as objects.

    Args:
        source: the folder or file.
        task: ``detection`` for boxes, ``instance`` for masks too; by what there is where it is None.
        strict: fail on what would be told in the notes.
        read: what ``read_coco_source`` gave, so that nothing is read twice.

    Raises:
        DataError: JSON that is damaged or no COCO, panoptic masks, no picture of those it lists, faults of the objects
            that cannot be mended.
    """
    root, files = read if read is not None else read_coco_source(source)
    panoptic = next((file for _, file in files if file.panoptic), None)
    if panoptic is not None:
        told = "this is COCO of the panoptic kind: masks of segments, no objects"
        remedy = "read it for the task semantic, or pass instances_SPLIT.json"
        raise DataError(told, where=str(panoptic.path), remedy=remedy)
    found = Found(f"COCO JSON of objects, from {', '.join(file.path.name for _, file in files)}", "xywh")
    numbers: dict[str, int] = {}
    for split, file in files:
        found.notes += file.notes
        found.notes += _categories(file, numbers, is_first=file is files[0][1])
        found.notes += _repeated(file, strict)
        drafts, notes = _drafts(file, root, split, strict)
        found.notes += notes
        found.splits.setdefault(split, []).extend(drafts)
    extras = {c.name: dict(c.extra) for _, file in reversed(files) for c in file.categories if c.extra}
    found.classes = Classes(tuple(numbers))
    found.category_ids = numbers
    found.about = {**files[0][1].about, **({"categories": extras} if extras else {})}
    return join(found, root, str(source), task, strict)


def _categories(file: CocoFile, numbers: dict[str, int], *, is_first: bool) -> list[str]:
    """Take the categories of a file into name -> id, and tell what does not agree."""
    names = [category.name for category in file.categories]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        told = f"two categories are called {repeated[0]!r}"
        raise DataError(told, where=str(file.path), expected="every name once")
    notes = []
    extra = [category for category in file.categories if category.name not in numbers]
    moved = [c for c in file.categories if c.name in numbers and numbers[c.name] != c.id]
    if extra and not is_first:
        notes.append(f"{file.path.name} has categories that other files have not: {shown([c.name for c in extra], 8)}")
    if moved:
        first = moved[0]
        told = f"{file.path.name} has {first.name!r} under the id {first.id}, another file under {numbers[first.name]}"
        notes.append(f"{told}: joined by name ({counted(len(moved), 'category id')} of this kind)")
    for category in extra:
        numbers[category.name] = category.id
    return notes


def _repeated(file: CocoFile, strict: bool) -> list[str]:
    """A note about annotation ids that are given more than once."""
    counts = Counter(a.id for found in file.annotations.values() for a in found if a.id != -1)
    repeated = [number for number, count in counts.items() if count > 1]
    if not repeated:
        return []
    told = f"{counted(len(repeated), 'annotation id')} of {file.path.name} given twice, the first is {repeated[0]}"
    if strict:
        raise DataError(told, where=str(file.path), expected="every id once", remedy="number the annotations anew")
    return [f"{told}: the objects are kept"]


def _drafts(file: CocoFile, root: Path, split: str | None, strict: bool) -> tuple[list[Draft], list[str]]:
    """The pictures of one file that are there, with their objects."""
    folders = picture_folders(file.path, root, split)
    names = {category.id: category.name for category in file.categories}
    drafts, lost = [], []
    for image in file.images.values():
        path = next((p for p in (folder / image.file_name for folder in folders) if p.is_file()), None)
        if path is None:
            lost.append(image.file_name)
            continue
        objects = []
        for index, annotation in enumerate(file.annotations.get(image.id, [])):
            where = f"{file.path}: {image.file_name} object {index}"
            where += f" (annotation {annotation.id})" if annotation.id != -1 else ""
            objects.append(_drafted(annotation, names, where))
        annotated = AnnotatedImage(path, image.size or (0, 0), id=image.id, extra=image.extra)
        drafts.append(Draft(annotated, objects))
    verb = "is" if len(lost) == 1 else "are"
    return drafts, absent(lost, len(file.images), f"of {file.path.name} {verb}", str(file.path), strict)


def _drafted(annotation: CocoAnnotation, names: dict[int, str], where: str) -> Drafted:
    extra = dict(annotation.extra)
    if annotation.id != -1:
        extra["id"] = annotation.id
    thing = ObjectAnnotation(
        names[annotation.category_id],
        annotation.box or (0.0, 0.0, 0.0, 0.0),
        annotation.segmentation,
        annotation.is_crowd,
        extra,
    )
    return Drafted(thing, where, has_box=annotation.box is not None)
