"""A look at all masks when a data set is opened: sizes, values, and what they mean where no table says it.

Every mask is read where there are at most ``MAX_SCANNED``; otherwise ``SAMPLED`` of them, which the notes tell. Each
mask is checked again when it is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.data.classtable import ClassTable
from saccade.data.decode import read_size
from saccade.data.maps import (
    LOSSY,
    MAX_CLASSES,
    PHOTO_VALUES,
    UNKNOWN,
    Coding,
    MapItem,
    MaskFile,
    check_classes,
    coding_of,
    looks_like_a_photo,
    read_values,
    size_error,
)
from saccade.data.splits import BY_HASH, VALIDATION_SHARE, counted, split_by_hash
from saccade.errors import DataError, ImageError
from saccade.types import IGNORE, Classes

MAX_SCANNED = 2000
"""Most masks that are all read when a data set is opened."""

SAMPLED = 500
"""How many are read where there are more."""

_SHOWN = 3

ItemT = TypeVar("ItemT")


class Pair(NamedTuple):
    """A picture file and its mask file."""

    image: Path
    mask: Path


class Look(NamedTuple):
    """One pair, read and forgotten.

    Attributes:
        pair: the files.
        image_size: ``(h, w)`` of the picture as shown; None where its header cannot be read.
        map_size: ``(h, w)`` of the mask.
        counts: value -> pixels.
        is_deep: whether the mask has 16 bits or more.
    """

    pair: Pair
    image_size: tuple[int, int] | None
    map_size: tuple[int, int]
    counts: dict[int, int]
    is_deep: bool


class Meaning(NamedTuple):
    """What the values of the masks were found to mean, with what has to be told about it."""

    classes: Classes
    coding: Coding
    notes: list[str]


def scan(splits: Mapping[str, Sequence[Pair]], table: ClassTable | None, object_name: str, where: str) -> Meaning:
    """Look at the masks and say what their values mean.

    Args:
        splits: the pairs of each split.
        table: the class table, where there is one.
        object_name: what to call the objects if the values turn out to number them.
        where: the data set, for messages.

    Raises:
        DataError: a mask of another size than its picture, a mask that is a photograph, values that no class has, masks
            without a single labelled pixel, fewer than two classes.
    """
    pairs = [(split, pair) for split, members in splits.items() for pair in members]
    # Without a table the values themselves are the classes, so none may be missed.
    chosen = pairs if table is None else _sample(pairs)
    notes = [_sampled(len(pairs))] if len(chosen) < len(pairs) else []
    is_colour = table.coding.is_colour if table else _is_coloured([pair.mask for _, pair in pairs])
    looks = _look_at(chosen, is_colour)
    if not looks:
        raise DataError("no mask can be read", where=where, remedy="check that the masks are PNG files")
    _check_sizes([look for _, look in looks])
    classes, coding, told = _from_table(table, looks) if table else _from_values(looks, is_colour, object_name, where)
    check_classes(classes, where)
    notes += told
    _check_values([look for _, look in looks], coding)
    seen = [Seen(split, look.pair.mask.name, frozenset(_labels(look, coding).values())) for split, look in looks]
    notes += _ignored(seen, where)
    if len(chosen) == len(pairs):
        notes += _absent(seen, classes)
    return Meaning(classes, coding, notes)


def _look_at(pairs: Sequence[tuple[str, Pair]], is_colour: bool) -> list[tuple[str, Look]]:
    def look(pair: Pair) -> Look | None:
        try:
            image_size: tuple[int, int] | None = read_size(pair.image)[0]
        except ImageError:
            image_size = None
        try:
            values = read_values(pair.mask, is_colour=is_colour)
        except ImageError:
            return None  # told where pictures that cannot be read are told: when it is read
        size = (values.shape[0], values.shape[1])
        return Look(pair, image_size, size, _counts(values), values.dtype.itemsize > 1 and not is_colour)

    # Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        found = list(pool.map(look, (pair for _, pair in pairs)))
    return [(split, seen) for (split, _), seen in zip(pairs, found, strict=True) if seen is not None]


def _counts(values: NDArray[Any]) -> dict[int, int]:
    if values.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, number = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), number.tolist(), strict=True))


def _is_coloured(masks: Sequence[Path]) -> bool:
    """Whether the first masks are coloured RGB pictures (palettes count by their index)."""
    for path in masks[:20]:
        try:
            with Image.open(path) as mask:
                if mask.mode not in {"RGB", "RGBA", "CMYK", "YCbCr"}:
                    continue
                pixels = np.asarray(mask.convert("RGB"))
        except (OSError, ValueError, SyntaxError):
            continue
        if (pixels != pixels[..., :1]).any():
            return True
    return False


def _check_sizes(looks: Sequence[Look]) -> None:
    wrong = [look for look in looks if look.image_size is not None and look.image_size != look.map_size]
    if wrong:
        first = min(wrong, key=lambda look: look.pair.image)
        assert first.image_size is not None  # mypy cannot see the filter above
        item = MapItem(first.pair.image, MaskFile(first.pair.mask, Coding({})))
        raise _and_more(size_error(item, first.image_size, first.map_size), len(wrong) - 1)


def _and_more(error: DataError, others: int) -> DataError:
    if others:
        error.what += f" (and {counted(others, 'other mask')} like it)"
    return error


def _check_values(looks: Sequence[Look], coding: Coding) -> None:
    wrong: list[tuple[Look, dict[int, int]]] = []
    for look in looks:
        unknown = {value: look.counts[value] for value, label in _labels(look, coding).items() if label == UNKNOWN}
        if unknown:
            wrong.append((look, unknown))
    if wrong:
        look, unknown = min(wrong, key=lambda entry: entry[0].pair.mask)
        raise _and_more(coding.unknown(unknown, str(look.pair.mask)), len(wrong) - 1)


def _labels(look: Look, coding: Coding) -> dict[int, int]:
    """Value -> label of one mask."""
    values = np.array(list(look.counts), dtype=np.int64)
    return dict(zip(look.counts, coding.lookup(values).tolist(), strict=True))


def _from_table(table: ClassTable, looks: Sequence[tuple[str, Look]]) -> Meaning:
    coding = table.coding
    seen = _sum_counts(looks)
    total = max(sum(seen.values()), 1)
    listed = sum(seen[value] for value, label in coding.values.items() if label == IGNORE)
    notes = [f"{listed / total:.1%} of the pixels are ignored, as {table.file.name} says"] if listed else []
    if coding.is_colour or coding.instances is not None or IGNORE in coding.values:
        return Meaning(table.classes, coding, notes)
    if table.is_numbered and len(table.classes) == 2 and len(coding.values) == 2 and set(seen) == {0, IGNORE}:
        note = f"the masks have the values 0 and 255 only: 255 is read as {table.classes[1]!r}"
        return Meaning(table.classes, Coding({0: 0, IGNORE: 1}), [note])
    ignored = seen[IGNORE]
    if ignored:
        notes.append(f"the value 255 is in no class: ignored, as is the custom ({ignored / total:.1%} of the pixels)")
    return Meaning(table.classes, replace(coding, values={**coding.values, IGNORE: IGNORE}), notes)


def _sum_counts(looks: Sequence[tuple[str, Look]]) -> Counter[int]:
    seen: Counter[int] = Counter()
    for _, look in looks:
        seen.update(look.counts)
    return seen


def _from_values(looks: Sequence[tuple[str, Look]], is_colour: bool, object_name: str, where: str) -> Meaning:
    """What the values mean where no table says it."""
    for _, look in looks:
        is_deep_photo = look.is_deep and len(look.counts) > PHOTO_VALUES and not _is_numbering(look)
        if is_deep_photo or (not look.is_deep and len(look.counts) > PHOTO_VALUES):
            raise looks_like_a_photo(len(look.counts), str(look.pair.mask), is_colour=is_colour)
    if _are_instances([look for _, look in looks]):
        note = (
            f"no class table: the 16-bit masks number the objects of each picture from 1: read as background and "
            f'{object_name}; otherwise list the values in classes.json ({{"NAME": VALUE}})'
        )
        return Meaning(Classes(("background", object_name)), Coding({0: 0}, instances=1), [note])
    seen = _sum_counts(looks)
    lossy = next((look.pair.mask for _, look in looks if look.pair.mask.suffix.lower() in LOSSY), None)
    if lossy is not None and not set(seen) <= {0, 255}:
        remedy = "save masks as PNG"
        raise DataError("the mask is a JPEG, which changes the values", where=str(lossy), remedy=remedy)
    if not is_colour and set(seen) == {0, 255}:
        note = "no class table: the values 0 and 255 are read as background and foreground"
        return Meaning(Classes(("background", "foreground")), Coding({0: 0, 255: 1}), [note])
    values = sorted(value for value in seen if is_colour or value != IGNORE)
    if len(values) > MAX_CLASSES:
        raise DataError(
            f"the masks have {len(values):,} different values and no table says what they mean",
            where=where,
            expected=f"at most {MAX_CLASSES} classes",
            remedy='write classes.json: {"NAME": VALUE}, or {"NAME": "instances"} where values number objects',
        )
    coding = replace(coding_of(values), is_colour=is_colour)
    names = tuple(f"colour_{value:06x}" if is_colour else f"class_{value}" for value in values)
    if not is_colour:
        coding = replace(coding, values={**coding.values, IGNORE: IGNORE})
    known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    ignored = "; 255 is ignored, as is the custom" if seen[IGNORE] and not is_colour else ""
    note = f"no class table: the values in the masks are the classes {known}{ignored}; name them in classes.json"
    return Meaning(Classes(names), coding, [note])


def _is_numbering(look: Look) -> bool:
    objects = [value for value in look.counts if value > 0]
    return bool(objects) and max(objects) == len(objects)


def _are_instances(looks: Sequence[Look]) -> bool:
    """Whether the values number objects: 16 bits, 1 to n without gaps in each mask, and n is not the same in all."""
    labelled = [look for look in looks if any(value > 0 for value in look.counts)]
    if not labelled or not all(look.is_deep for look in looks):
        return False
    numbered = [look for look in labelled if _is_numbering(look)]
    is_varied = len({max(look.counts) for look in numbered}) > 1
    is_long = any(max(look.counts) > MAX_CLASSES for look in numbered)
    return len(numbered) >= 0.95 * len(labelled) and (is_varied or is_long)


def check_items(splits: Mapping[str, Sequence[MapItem]], classes: Classes, where: str) -> list[str]:
    """Look at label maps whose values have their meaning already.

    Returns:
        What has to be told: maps without a labelled pixel, classes without a pixel.

    Raises:
        DataError: a map of another size than its picture, values without a label, nothing labelled at all.
    """
    items = [(split, item) for split, members in splits.items() for item in members]
    chosen = _sample(items)

    def look(entry: tuple[str, MapItem]) -> Seen | None:
        split, item = entry
        try:
            image_size = read_size(item.image)[0]
            labels = item.map.read()
        except ImageError:
            return None  # told where pictures that cannot be read are told: when it is read
        if labels.shape != image_size:
            raise size_error(item, image_size, (labels.shape[0], labels.shape[1]))
        return Seen(split, item.image.name, frozenset(np.unique(labels).tolist()))

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        seen = [found for found in pool.map(look, chosen) if found is not None]
    if len(chosen) < len(items):
        return [_sampled(len(items)), *_ignored(seen, where)]
    return [*_ignored(seen, where), *_absent(seen, classes)]


def hold_out(items: Sequence[ItemT], keys: Sequence[str]) -> tuple[dict[str, list[ItemT]], str]:
    """Train and val of a source that has no splits, chosen by a hash of the keys, and the note about it."""
    halves = split_by_hash([(item, "") for item in items], keys)
    share = f"{VALIDATION_SHARE:.0%} of the pictures"
    note = f"no splits: {share}, {BY_HASH}, are held out as val"
    return {split: [item for item, _ in members] for split, members in halves.items() if members}, note


class Seen(NamedTuple):
    """The labels that are in one map."""

    split: str
    name: str
    labels: frozenset[int]


def _sample(items: Sequence[ItemT]) -> Sequence[ItemT]:
    if len(items) <= MAX_SCANNED:
        return items
    return [items[place] for place in np.linspace(0, len(items) - 1, SAMPLED).round().astype(int).tolist()]


def _sampled(total: int) -> str:
    return f"{SAMPLED} of {total:,} masks were checked; the others will be when they are read"


def _ignored(seen: Sequence[Seen], where: str) -> list[str]:
    """A note about maps in which nothing is labelled."""
    empty = [one.name for one in seen if one.labels <= {IGNORE}]
    if not empty:
        return []
    shown = ", ".join(empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
    if len(empty) == len(seen):
        raise DataError(
            f"all pixels of {'the only mask' if len(seen) == 1 else f'all {len(seen)} masks'} are ignored: {shown}",
            where=where,
            expected="labelled pixels",
            remedy="check the class table: which value stands for which class",
        )
    return [f"{counted(len(empty), 'mask')} with every pixel ignored: {shown}"]


def _absent(seen: Sequence[Seen], classes: Classes) -> list[str]:
    """Notes about classes without a pixel, anywhere or in training."""
    there: dict[str, set[int]] = {}
    for one in seen:
        there.setdefault(one.split, set()).update(one.labels)
    everywhere = set().union(*there.values())
    notes = []
    nowhere = [name for label, name in enumerate(classes) if label not in everywhere]
    if nowhere:
        notes.append(f"{_named(nowhere)} without a pixel in any mask")
    if "train" in there:
        only = [name for label, name in enumerate(classes) if label in everywhere - there["train"]]
        if only:
            notes.append(f"{_named(only)} without a pixel in train, but not in the other splits")
    return notes


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({shown})"
