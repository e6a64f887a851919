"""The idx files of MNIST, Fashion-MNIST, KMNIST: a big-endian header, then bytes (LeCun, Cortes, Burges 1998)."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from saccade.data.dataset import ArrayDataset, Opened
from saccade.data.folder import read_licence
from saccade.data.splits import SPLIT_NAMES, check_two_classes
from saccade.errors import DataError
from saccade.types import Classes

MAX_BYTES = 8 << 30
"""Largest array that is read: 8 GiB."""

_FILE = re.compile(r"(train|t10k|test|val)[-_.](images|labels)[-_.]idx([13])[-_.]ubyte(\.gz|\.xz)?", re.IGNORECASE)


def find_idx(root: Path) -> dict[str, dict[str, Path]]:
    """Split -> {"images": path, "labels": path} of the idx files in a folder, its ``raw`` folder or ``*/raw``."""
    for folder in (root, root / "raw", *sorted(root.glob("*/raw"))):
        found: dict[str, dict[str, Path]] = {}
        for path in sorted(folder.glob("*ubyte*")):
            match = _FILE.fullmatch(path.name)
            if match:
                # Sorted: of a plain and a packed copy, the plain one comes first and wins.
                found.setdefault(SPLIT_NAMES[match[1].lower()], {}).setdefault(match[2].lower(), path)
        if found:
            return {split: found[split] for split in ("train", "val", "test") if split in found}
    return {}


def open_idx(root: Path, files: dict[str, dict[str, Path]]) -> Opened:
    """The splits of a folder of idx files; ``classes.json`` beside them names the classes.

    Raises:
        DataError: a file that is missing, truncated, damaged or not idx, or labels outside the classes.
    """
    arrays = {}
    for split, pair in files.items():
        for part in ("images", "labels"):
            if part not in pair:
                raise DataError(f"the {part} of {split} are missing", where=str(root), remedy=f"add the {part} file")
        images, labels = read_idx(pair["images"]), read_idx(pair["labels"])
        if images.ndim != 3 or labels.ndim != 1:
            shapes = f"{images.ndim} and {labels.ndim} dimensions"
            raise DataError(f"images and labels have {shapes}", where=str(pair["images"]), expected="3 and 1")
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images but {len(labels)} labels", where=str(pair["images"]))
        if not len(images):
            raise DataError("the file holds no images", where=str(pair["images"]))
        arrays[split] = images, labels
    folder = next(iter(files.values()))["images"].parent
    classes, notes = _classes(folder, max(int(labels.max()) for _, labels in arrays.values()) + 1)
    check_two_classes(classes, str(root))
    licence = read_licence(folder)
    datasets = {
        split: ArrayDataset(
            torch.from_numpy(images),
            torch.from_numpy(labels.astype(np.int64)),
            classes,
            str(files[split]["images"]),
            licence,
        )
        for split, (images, labels) in arrays.items()
    }
    return Opened(f"idx files with splits {', '.join(datasets)}", datasets, notes)


def _classes(folder: Path, num_seen: int) -> tuple[Classes, list[str]]:
    named = read_class_names(folder)
    if named is not None:
        return named, []
    numbers = Classes(tuple(str(label) for label in range(num_seen)))
    return numbers, ["no classes.json beside the idx files: classes are named by their numbers"]


def read_class_names(folder: Path) -> Classes | None:
    """The classes listed in ``classes.json`` (a list of names) or ``classes.txt`` (one a line), or None.

    Raises:
        DataError: where the file holds something else.
    """
    listing = folder / "classes.json"
    if listing.is_file():
        try:
            names = json.loads(listing.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"this is not JSON ({error})", where=str(listing)) from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError("this is not a list of names", where=str(listing), expected='["cat", "dog"]')
        return _distinct(names, listing)
    lines = folder / "classes.txt"
    if lines.is_file():
        text = lines.read_text(encoding="utf-8", errors="replace")
        return _distinct([line.strip() for line in text.splitlines() if line.strip()], lines)
    return None


def _distinct(names: list[str], where: Path) -> Classes:
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"class names repeat: {', '.join(repeated)}", where=str(where), remedy="name every class once")
    return Classes(tuple(names))


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The array in one idx file of unsigned bytes, packed with gzip or xz or plain.

    Raises:
        DataError: a file that is truncated, damaged, not idx, of another type, or absurdly large.
    """
    if not path.is_file():
        raise DataError("there is no such file", where=str(path))
    try:
        with _unpacked(path) as stream:
            return _read(stream, path)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        reason = f"the packed file is damaged or cut off ({error})"
        raise DataError(reason, where=str(path), remedy="download it again") from error


def _unpacked(path: Path) -> BinaryIO | gzip.GzipFile | lzma.LZMAFile:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(path, "rb")
    return lzma.LZMAFile(path, "rb") if suffix == ".xz" else path.open("rb")


def _read(
    stream: BinaryIO | gzip.GzipFile | lzma.LZMAFile, path: Path
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or not 1 <= magic[3] <= 4:
        raise DataError("this is not an idx file", where=str(path), expected="two zero bytes, a type, a rank")
    if magic[2] != 0x08:
        raise DataError(f"its type code is 0x{magic[2]:02x}", where=str(path), expected="0x08, unsigned bytes")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise DataError("the file ends inside its header", where=str(path), remedy="download it again")
    shape: tuple[int, ...] = struct.unpack(f">{magic[3]}I", header)
    size = math.prod(shape)
    if size > MAX_BYTES:
        raise DataError(f"its header promises {size:,} bytes", where=str(path), expected=f"at most {MAX_BYTES:,}")
    data = bytearray(stream.read(size + 1))
    if len(data) != size:
        got = f"{len(data):,}" if len(data) < size else "more"
        raise DataError(
            f"the file is cut off or damaged: {got} of {size:,} bytes", where=str(path), remedy="download it again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
