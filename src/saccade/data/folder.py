"""Class folders: ``train/cat/1.jpg``, or ``cat/1.jpg`` without splits; ``attributes.csv`` may describe the classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from saccade.data.attributes import check_described, read_attributes, told_attributes
from saccade.data.dataset import FileDataset, LabelledFile, Opened
from saccade.data.decode import SUFFIXES
from saccade.data.splits import SPLIT_NAMES, counted, join_by_name, split_by_hash, told_split
from saccade.data.walk import files_below, subfolders
from saccade.errors import DataError
from saccade.types import Classes

_OTHER_TASKS = frozenset({"annotations", "images", "imagesets", "jpegimages", "labels", "masks"})
"""Folders of data sets with boxes, masks or captions: their names are no classes."""


class _Found(NamedTuple):
    """What a folder of class folders holds: pictures with the names of their classes, and what was left out."""

    items: list[tuple[Path, str]]
    notes: list[str]


def open_folder(root: Path, *, strict: bool = False) -> Opened:
    """The splits of a folder of class folders.

    Raises:
        DataError: no folders, no pictures, one class only, or, with ``strict``, splits that do not agree.
    """
    folders, notes = _split_folders(root)
    if folders:
        found = {split: _labelled(folder, split) for split, folder in folders.items()}
        splits = {split: part.items for split, part in found.items()}
        notes += [note for part in found.values() for note in part.notes]
        notes += [f"{split} ({folders[split].name}) has no pictures" for split, items in splits.items() if not items]
    else:
        items, notes = _labelled(root, root.name)
        splits = split_by_hash(items, [path.relative_to(root).as_posix() for path, _ in items])
    if not any(splits.values()):
        raise _no_pictures(root)
    if notes and strict:
        raise DataError("; ".join(notes), where=str(root), remedy="mend the folders, or leave out --strict")
    if not folders:
        notes.append(f"no split folders: {told_split()}")
    splits = {split: items for split, items in splits.items() if items}
    table = read_attributes(root)
    if table is None:
        joined = join_by_name(splits, str(root), strict=strict)
    else:
        # The table says which classes there are: those without pictures are meant, and no fault.
        named = {split: {label for _, label in items} for split, items in splits.items()}
        table = check_described(table, named, root)
        joined = join_by_name(splits, str(root), classes=Classes(table.classes))
        joined = replace(joined, notes=told_attributes(table))
    licence = read_licence(root)
    datasets = {
        split: FileDataset([LabelledFile(*item) for item in items], joined.classes, root, licence)
        for split, items in joined.splits.items()
    }
    name = f"class folders with splits {', '.join(splits)}" if folders else "class folders without splits"
    return Opened(name, datasets, notes + joined.notes, table)


def _split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Split name -> folder, for a folder whose sub-folders are splits, and notes about the other sub-folders."""
    found: dict[str, Path] = {}
    others: list[str] = []
    for folder in subfolders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        # A class may well be called "test"; a split holds folders of its own.
        if split is None or not subfolders(folder):
            others.append(folder.name)
        elif split in found:
            both = f"{found[split].name} and {folder.name}"
            raise DataError(f"{both} are both the {split} split", where=str(root), remedy="keep one of them")
        else:
            found[split] = folder
    if "train" in found or len(found) > 1 or (found and not others):
        notes = [f"the folder {name!r} is no split with class folders: left out" for name in others]
        return {split: found[split] for split in ("train", "val", "test") if split in found}, notes
    if len(others) > 1 and all(name.lower() in SPLIT_NAMES for name in others):
        raise DataError(
            f"{' and '.join(others)} hold no class folders",
            where=str(root),
            expected="one sub-folder per class in each split",
        )
    return {}, []


def _labelled(folder: Path, name: str) -> _Found:
    """The pictures in the class folders of a folder."""
    classes = subfolders(folder)
    if classes and {child.name.lower() for child in classes} <= _OTHER_TASKS:
        shown = ", ".join(child.name for child in classes)
        raise DataError(
            f"the folders {shown} belong to a data set with boxes, masks or captions",
            where=str(folder),
            expected="one sub-folder per class",
        )
    pictures: dict[str, list[Path]] = {}
    others: Counter[str] = Counter()
    for child in classes:
        pictures[child.name], strange = _pictures(child)
        others += strange
    items = [(path, label) for label, paths in pictures.items() for path in paths]
    loose = len([path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES])
    if loose and not items:
        raise DataError(
            f"the folder holds {counted(loose, 'picture')} but no class folders",
            where=str(folder),
            expected="one sub-folder per class",
            remedy="move the pictures of each class into a folder of its name, or list them in a CSV of path,label",
        )
    notes = [f"{name}: left out outside of the class folders: {counted(loose, 'picture')}"] if loose else []
    empty = [label for label, paths in pictures.items() if not paths]
    if empty and items:
        shown = ", ".join(repr(label) for label in empty)
        notes.append(f"{name}: no pictures in the class folder{'s' if len(empty) > 1 else ''} {shown}")
    if others:
        shown = ", ".join(sorted(others))
        notes.append(f"{name}: left out for their ending ({shown}): {counted(others.total(), 'file')}")
    return _Found(items, notes)


def _pictures(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The files below a folder whose ending is that of a picture, sorted, and the endings of the others."""
    pictures: list[Path] = []
    others: Counter[str] = Counter()
    for path in files_below(folder):
        suffix = path.suffix.lower()
        if path.name.lower() in {"thumbs.db", "desktop.ini"}:
            continue
        if suffix in SUFFIXES:
            pictures.append(path)
        else:
            others[suffix or "no ending"] += 1
    return pictures, others


def _no_pictures(root: Path) -> DataError:
    is_empty = not any(root.iterdir())
    return DataError(
        "the folder is empty" if is_empty else "the folder holds no pictures",
        where=str(root),
        expected=f"class folders with files ending in {', '.join(sorted(SUFFIXES))}",
        remedy="check the path",
    )


def read_licence(root: Path) -> str | None:
    """The first line of a LICENSE file in the folder of a data set, or None."""
    for name in ("LICENSE", "LICENCE", "LICENSE.txt", "LICENCE.txt", "LICENSE.md"):
        path = root / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip("# ").strip() for line in lines if line.strip()), None)
    return None
