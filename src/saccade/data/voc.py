"""The layout of Pascal VOC: ``JPEGImages``, ``SegmentationClass`` and lists of names in ``ImageSets/Segmentation``.

The masks are palette PNG: the index counts, 255 is the border that nobody labelled. Everingham et al. 2010.
"""

from __future__ import annotations

from pathlib import Path

from saccade.data.classtable import ClassTable, read_class_table
from saccade.data.dataset import Opened
from saccade.data.decode import SUFFIXES
from saccade.data.folder import read_licence
from saccade.data.maps import Coding, MapDataset, MapItem, MaskFile
from saccade.data.mapscan import Pair, hold_out, scan
from saccade.data.splits import SPLIT_NAMES, counted
from saccade.errors import DataError
from saccade.types import IGNORE, Classes

VOC_CLASSES = Classes(
    (
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    )
)
"""The background and the 20 classes, in the order of the palette."""

_SHOWN = 3


def is_voc_folder(root: Path) -> bool:
    """Whether the folder has the pictures, masks and lists of VOC."""
    return (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir()


def open_voc(root: Path, *, strict: bool = False) -> Opened:
    """The splits that ``ImageSets/Segmentation`` lists; all masks, split by a hash, where it lists none.

    A class table in the folder stands for the 20 classes where there is one.

    Raises:
        DataError: no masks, masks that do not fit their pictures or the classes; with ``strict`` also names in a list
            without picture or mask.
    """
    pictures = {path.stem: path for path in sorted((root / "JPEGImages").iterdir()) if path.suffix.lower() in SUFFIXES}
    masks = {
        path.stem: path for path in sorted((root / "SegmentationClass").iterdir()) if path.suffix.lower() == ".png"
    }
    notes: list[str] = []
    splits: dict[str, list[Pair]] = {}
    for split, names in _lists(root).items():
        absent = [name for name in names if name not in pictures or name not in masks]
        splits[split] = [Pair(pictures[name], masks[name]) for name in names if name in pictures and name in masks]
        if absent:
            shown = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
            told = f"{split} lists {counted(len(absent), 'name')} without a picture or a mask: {shown}"
            if strict:
                raise DataError(told, where=str(root), remedy="add the files, or leave out --strict")
            notes.append(f"{told}: left out")
    if not splits:
        both = [Pair(pictures[name], masks[name]) for name in masks if name in pictures]
        splits, note = hold_out(both, [pair.image.name for pair in both])
        notes.append(f"no lists in ImageSets/Segmentation, {note}")
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    if not splits:
        remedy = "check that the lists, JPEGImages and SegmentationClass belong together"
        raise DataError("no picture has a mask", where=str(root), expected="names in both folders", remedy=remedy)
    voc = Coding({label: label for label in range(len(VOC_CLASSES))} | {IGNORE: IGNORE})
    table = read_class_table([root]) or ClassTable(VOC_CLASSES, voc, root / "JPEGImages")
    classes, coding, told_notes = scan(splits, table, "object", str(root))
    licence = read_licence(root)
    datasets = {
        split: MapDataset([MapItem(pair.image, MaskFile(pair.mask, coding)) for pair in pairs], classes, root, licence)
        for split, pairs in splits.items()
    }
    return Opened(f"VOC with splits {', '.join(splits)}", datasets, notes + told_notes)


def _lists(root: Path) -> dict[str, list[str]]:
    """Split -> names. ``trainval`` is no split of its own where its halves are there."""
    folder = root / "ImageSets" / "Segmentation"
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
        split = SPLIT_NAMES.get(path.stem.lower())
        if split:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            found[split] = [line.split()[0] for line in lines if line.strip()]
    return {split: found[split] for split in ("train", "val", "test") if split in found}
