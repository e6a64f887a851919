"""Class folders: ``train/cat/1.jpg``, or ``cat/1.jpg`` without splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from saccade.data.dataset import FileDataset, LabelledFile, Opened
from saccade.data.decode import SUFFIXES
from saccade.data.splits import SPLIT_NAMES, join_by_name, split_by_hash, told_split
from saccade.errors import DataError

LabelledPaths = list[tuple[Path, str]]


def open_folder(root: Path, *, strict: bool = False) -> Opened:
    """The splits of a folder of class folders.

    Raises:
        DataError: no folders, no pictures, one class only, or, with ``strict``, splits that do not agree.
    """
    folders = _split_folders(root)
    if folders:
        splits = {split: _labelled(folder) for split, folder in folders.items()}
        empty = [f"{split} ({folders[split].name}) has no pictures" for split, items in splits.items() if not items]
        if empty and strict:
            raise DataError("; ".join(empty), where=str(root))
        name = f"class folders with splits {', '.join(splits)}"
        notes = empty
    else:
        items = _labelled(root)
        _check_flat(root, items)
        splits = split_by_hash(items, [path.relative_to(root).as_posix() for path, _ in items])
        name = "class folders without splits"
        notes = [f"no split folders: {told_split()}"]
    if not any(splits.values()):
        raise _no_pictures(root)
    joined = join_by_name({split: items for split, items in splits.items() if items}, str(root), strict=strict)
    licence = read_licence(root)
    datasets = {
        split: FileDataset([LabelledFile(*item) for item in items], joined.classes, root, licence)
        for split, items in joined.splits.items()
    }
    return Opened(name, datasets, notes + joined.notes)


_OTHER_TASKS = frozenset({"annotations", "images", "imagesets", "jpegimages", "labels", "masks"})
"""Folders of data sets with boxes, masks or captions: their names are no classes."""


def _split_folders(root: Path) -> dict[str, Path]:
    """Split name -> folder, for a folder whose sub-folders are splits."""
    found: dict[str, Path] = {}
    for folder in _subfolders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            continue
        if split in found:
            both = f"{found[split].name} and {folder.name}"
            raise DataError(f"{both} are both the {split} split", where=str(root), remedy="keep one of them")
        found[split] = folder
    # A class may well be called "test"; a split holds folders of its own.
    found = {split: folder for split, folder in found.items() if not any(iter_pictures(folder, depth=0))}
    order = ("train", "val", "test")
    return {split: found[split] for split in order if split in found} if "train" in found or len(found) > 1 else {}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def iter_pictures(folder: Path, *, depth: int | None = None) -> Iterator[Path]:
    """Files below ``folder`` whose ending is that of a picture, sorted; hidden ones are left out.

    Args:
        folder: where to look.
        depth: how many levels of sub-folders to enter; None is all.
    """
    for place, names, files in os.walk(folder):
        here = Path(place)
        names[:] = sorted(name for name in names if not name.startswith("."))
        if depth is not None and len(here.relative_to(folder).parts) >= depth:
            names.clear()
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield here / name


def _labelled(folder: Path) -> LabelledPaths:
    names = {child.name.lower() for child in _subfolders(folder)}
    if names and names <= _OTHER_TASKS:
        raise DataError(
            f"the folders {', '.join(sorted(names))} belong to a data set with boxes, masks or captions",
            where=str(folder),
            expected="one sub-folder per class",
        )
    return [(path, child.name) for child in _subfolders(folder) for path in iter_pictures(child)]


def _check_flat(root: Path, items: LabelledPaths) -> None:
    if items:
        return
    loose = sum(1 for _ in iter_pictures(root, depth=0))
    if loose:
        raise DataError(
            f"the folder holds {loose} pictures but no class folders",
            where=str(root),
            expected="one sub-folder per class",
            remedy="move the pictures of each class into a folder of its name, or list them in a CSV of path,label",
        )
    raise _no_pictures(root)


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
