"""Folders and files of pictures with captions -> splits: what belongs together is joined, what is missing is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saccade.data.caption_files import JSONS, SHARD, TABLES, CaptionRow, is_caption_file, read_rows, split_of
from saccade.data.captions import CaptionItem, caption_dataset
from saccade.data.dataset import Opened
from saccade.data.decode import SUFFIXES
from saccade.data.folder import read_licence
from saccade.data.shards import ShardMember
from saccade.data.splits import BY_HASH, counted, split_by_hash
from saccade.data.walk import name_below
from saccade.errors import DataError
from saccade.types import Classes

_FOLDERS = ("", "images", "imgs", "pictures", "photos", "Images")
"""Where pictures lie, relative to the folder of the table."""

_TOLD = {".csv": "CSV", ".tsv": "TSV", ".txt": "CSV", ".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines"}


def is_caption_folder(root: Path) -> bool:
    """Whether the folder holds captions: a table, JSON or tar shards with a text for each picture."""
    return bool(_files(root))


def _files(root: Path) -> dict[Path, str | None]:
    """The files with captions -> the split that their name says; of several kinds of file the first that is there."""
    inner = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    for suffixes, places in (
        (TABLES | {".txt"}, [root]),
        (JSONS, [root, root / "annotations"]),
        (frozenset({SHARD}), [root]),
        (frozenset({SHARD}), inner),
    ):
        named: dict[Path, str | None] = {}
        for path in (path for place in places if place.is_dir() for path in sorted(place.iterdir())):
            if path.suffix.lower() in suffixes and path.is_file() and path.stat().st_size and is_caption_file(path):
                named[path] = split_of(path.stem) or (split_of(path.parent.name) if path.parent in inner else None)
        # A file of everything may lie beside one for each split: these are the same pictures again.
        with_split: dict[Path, str | None] = {path: split for path, split in named.items() if split}
        if "train" in with_split.values():
            return with_split
        if named:
            return named if SHARD in suffixes else dict(list(named.items())[:1])
    return {}


@dataclass
class _Found:
    """Pictures with what all rows say of each, and what was left out."""

    rows: dict[Path | ShardMember, list[CaptionRow]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    empty: int = 0
    total: int = 0


def open_captions(source: Path, *, strict: bool = False) -> Opened:
    """The splits of a file with captions, or of a folder of them.

    Args:
        source: a CSV, JSON, JSON-lines, COCO-captions or tar file, or a folder that holds them beside its pictures.
        strict: fail where a picture has no caption, a caption no picture, or a caption is empty.

    Raises:
        DataError: no captions, a damaged file, a split for some rows only; with ``strict`` whatever does not agree.
    """
    files = {source: None} if source.is_file() else _files(source)
    root = source.parent if source.is_file() else source
    if root.name == "annotations":
        root = root.parent
    found = _Found()
    for path, split in files.items():
        _collect(found, path, read_rows(path, split), (root, path.parent))
    for picture in [picture for picture, told in found.rows.items() if not any(row.texts for row in told)]:
        found.bare.append(str(picture))
        del found.rows[picture]
    notes = _faults(found, root)
    if strict and notes:
        raise DataError("; ".join(notes), where=str(source), remedy="mend it, or leave out --strict")
    if not found.rows:
        found_instead = ": " + "; ".join(notes) if notes else ""
        raise DataError(
            f"there are no pictures with captions{found_instead}",
            where=str(source),
            expected="rows of a picture that exists and its caption",
        )
    classes, told = _categories(found)
    notes += told
    items = {picture: _item(picture, rows, classes) for picture, rows in found.rows.items()}
    splits, told = _splits(found, items, root, str(source))
    licence = read_licence(root)
    datasets = {split: caption_dataset(chosen, classes, root, licence) for split, chosen in splits.items()}
    first = next(iter(files))
    kind = "tar shards" if first.suffix.lower() == SHARD else _TOLD.get(first.suffix.lower(), "a file")
    named = f", {len(classes)} categories" if classes.names else ""
    return Opened(f"pictures with captions ({kind}{named})", datasets, [*notes, *told])


def _collect(found: _Found, path: Path, rows: Iterable[CaptionRow], roots: Sequence[Path]) -> None:
    """Add the rows of one file whose picture exists and which say something."""
    suffix = path.stem.rpartition("_")[2]  # "train2017" of captions_train2017: COCO calls its folders so
    places = [root / folder / inner for root in dict.fromkeys(roots) for folder in _FOLDERS for inner in ("", suffix)]
    for row in rows:
        found.total += 1
        picture = row.picture if isinstance(row.picture, ShardMember) else _find(row, places)
        if picture is None:
            found.missing.append(f"{row.picture} ({row.where})")
            continue
        found.empty += row.is_empty
        told = found.rows.setdefault(picture, [])
        told.append(row)


def _find(row: CaptionRow, places: Sequence[Path]) -> Path | None:
    assert isinstance(row.picture, str)
    inner = [place / row.split for place in places] if row.split else []
    return next((path for place in (*places, *inner) if (path := place / row.picture).is_file()), None)


def _faults(found: _Found, root: Path) -> list[str]:
    """What does not agree, one sentence each."""
    notes = []
    if found.missing:
        notes.append(f"{_some(found.missing, 'caption')} whose picture does not exist: left out")
    if found.empty:
        notes.append(f"{counted(found.empty, 'row')} with an empty caption")
    listed = {picture for picture in found.rows if isinstance(picture, Path)}
    folders = {picture.parent for picture in listed}
    known = listed | {Path(name) for name in found.bare}
    inside = [
        path for folder in sorted(folders) for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES
    ]
    bare = [*found.bare, *(str(path) for path in inside if path not in known)]
    if bare:
        notes.append(f"{_some(bare, 'picture')} without a caption: left out")
    return notes


def _some(names: Sequence[str], noun: str) -> str:
    return f"there {'is' if len(names) == 1 else 'are'} {counted(len(names), noun)} (the first: {names[0]})"


def _categories(found: _Found) -> tuple[Classes, list[str]]:
    """The categories, where every picture has one and there are at least two."""
    names = {
        picture: next((row.category for row in rows if row.category), None) for picture, rows in found.rows.items()
    }
    named = Counter(name for name in names.values() if name is not None)
    if len(named) < 2:
        return Classes(()), []
    lacking = sum(1 for name in names.values() if name is None)
    if lacking:
        told = f"{lacking} of {len(names)} pictures have no category: the categories are left aside"
        return Classes(()), [told]
    return Classes(tuple(sorted(named))), []


def _item(picture: Path | ShardMember, rows: Sequence[CaptionRow], classes: Classes) -> CaptionItem:
    """One picture: each caption with the other words and the category behind it; each of these alone is an alternative.

    The name of a category is a text like the others, or else no model could know what is meant by it.
    """
    captions = list(dict.fromkeys(text for row in rows for text in row.texts))
    words = list(dict.fromkeys(word for row in rows for word in row.words))
    category = next((row.category for row in rows if row.category), None)
    named = category if category is not None and classes.names else None
    texts, alternatives = [], []
    for caption in captions:
        others = [word for word in words if word.lower() not in caption.lower()]
        said = [caption, *others]
        if named is not None and named.lower() not in {word.lower() for word in said}:
            said.append(named)
        texts.append(", ".join(said))
        alternatives += [*said, *([", ".join(others)] if len(others) > 1 else [])]
    label = -1 if named is None else classes.id(named)
    is_alone = not words and named is None
    return CaptionItem(picture, tuple(texts), () if is_alone else tuple(alternatives), label)


def _splits(
    found: _Found, items: dict[Path | ShardMember, CaptionItem], root: Path, where: str
) -> tuple[dict[str, list[CaptionItem]], list[str]]:
    """Items by split: as the files say, or by a hash of the names where nobody says."""
    said = {picture: next((row.split for row in rows if row.split), None) for picture, rows in found.rows.items()}
    splits: dict[str, list[CaptionItem]] = {}
    if any(said.values()):
        for picture, split in said.items():
            if split is None:
                row = found.rows[picture][0]
                raise DataError("the split is empty", where=row.where, expected="train, val or test")
            splits.setdefault(split, []).append(items[picture])
        return splits, []
    keys = [_key(picture, root) for picture in items]
    # Of each category a share; all pictures are of one kind where there are no categories.
    labelled = [(item, f"{item.label:06d}") for item in items.values()]
    splits = {name: [item for item, _ in part] for name, part in split_by_hash(labelled, keys).items()}
    held_out = f"{len(splits['val'])} of {len(items)} pictures, {BY_HASH}, are held out as val"
    return {name: part for name, part in splits.items() if part}, [f"no split is named: {held_out}"]


def _key(picture: Path | ShardMember, root: Path) -> str:
    if isinstance(picture, ShardMember):
        return picture.name
    return name_below(picture, root)
