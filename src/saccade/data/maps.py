"""Pictures with a label map each: how a mask on disk becomes ``[h, w]`` uint8 labels, and the data set of them.

A mask is a grid of *values*: the index of a palette or grey PNG, the number of a 16-bit PNG, the colour of an RGB PNG
(as ``r << 16 | g << 8 | b``). A ``Coding`` says which label each value stands for. A value that it does not know is an
error that names file, values and pixels; nothing is dropped in silence.

A mask is held to be drawn on the picture as it is shown, after the EXIF orientation of the picture. The orientation
noted in the mask itself, if there is one, is applied to the mask; that of the picture never is.

h, w size · K classes
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from saccade.data.decode import DAMAGE, read_image, silence_pillow
from saccade.data.splits import as_bytes, check_two_classes
from saccade.errors import DataError, ImageError
from saccade.types import Classes, MapTarget, Sample, TaskName

MAX_CLASSES = 255
"""Label 255 is for pixels that nobody labelled."""

PHOTO_VALUES = 200
"""A mask with more values than this that no table knows looks like a photograph."""

LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
"""Endings of files whose values are not those that were written."""

UNKNOWN = -1
"""What ``Coding.lookup`` gives for a value without a label."""

_SHOWN = 4
"""How many values a sentence names."""


def colour_value(red: int, green: int, blue: int) -> int:
    """The value that a colour of an RGB mask is read as."""
    return red << 16 | green << 8 | blue


@dataclass(frozen=True)
class Coding:
    """Which label each value of a mask stands for.

    Attributes:
        values: value -> label, ``IGNORE`` for pixels that count nowhere.
        instances: label of every other value above 0, where the values number the objects of one class.
        is_colour: whether the values are colours, ``r << 16 | g << 8 | b``.
    """

    values: Mapping[int, int]
    instances: int | None = None
    is_colour: bool = False
    _keys: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _labels: NDArray[np.int16] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        keys = np.array(sorted(self.values), dtype=np.int64)
        object.__setattr__(self, "_keys", keys)
        object.__setattr__(self, "_labels", np.array([self.values[int(key)] for key in keys], dtype=np.int16))

    def lookup(self, values: NDArray[Any]) -> NDArray[np.int16]:
        """The label of each value, same shape, ``UNKNOWN`` where there is none."""
        if not len(self._keys):
            labels = np.full(values.shape, UNKNOWN, dtype=np.int16)
        else:
            places = np.searchsorted(self._keys, values).clip(max=len(self._keys) - 1)
            labels = np.where(self._keys[places] == values, self._labels[places], UNKNOWN).astype(np.int16)
        if self.instances is not None:
            labels[(labels == UNKNOWN) & (values > 0)] = self.instances
        return labels

    def labels(self, values: NDArray[Any], where: str) -> NDArray[np.uint8]:
        """The label map ``[h, w]`` of a grid of values.

        Raises:
            DataError: naming the values without a label and how many pixels have them.
        """
        # A mask has few values: mapping 65,536 of them and indexing beats searching for every pixel.
        if values.dtype in (np.uint8, np.uint16):
            table = self.lookup(np.arange(int(values.max(initial=0)) + 1))
            if not (table == UNKNOWN).any():
                quick: NDArray[np.uint8] = table.astype(np.uint8).take(values)
                return quick
            labels = table.take(values)
        else:
            labels = self.lookup(values)
        strange = labels == UNKNOWN
        if strange.any():
            found, counts = np.unique(values[strange], return_counts=True)
            raise self.unknown(dict(zip(found.tolist(), counts.tolist(), strict=True)), where)
        small: NDArray[np.uint8] = labels.astype(np.uint8)
        return small

    def unknown(self, counts: Mapping[int, int], where: str) -> DataError:
        """The error about values without a label: value -> pixels."""
        if len(counts) > PHOTO_VALUES:
            return looks_like_a_photo(len(counts), where, is_colour=self.is_colour)
        ordered = sorted(counts, key=lambda value: (-counts[value], value))
        shown = [f"{self.told(value)} ({_pixels(counts[value])})" for value in ordered[:_SHOWN]]
        more = f" and {len(ordered) - _SHOWN} more values" if len(ordered) > _SHOWN else ""
        noun = "the value" if len(ordered) == 1 else "the values"
        remedy = 'list them in classes.json ({"NAME": VALUE}), as "ignore" where they should not count'
        if Path(where).suffix.lower() in LOSSY:
            remedy = "save masks as PNG: JPEG changes the values"
        known = [self.told(value) for value in sorted(self.values)]
        listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        return DataError(
            f"the mask has {noun} {', '.join(shown)}{more}, which stand for no class",
            where=where,
            expected=f"one of {listed}",
            remedy=remedy,
        )

    def told(self, value: int) -> str:
        """A value in words: its number, or its colour as ``rgb(r, g, b)``."""
        return f"rgb({value >> 16}, {value >> 8 & 255}, {value & 255})" if self.is_colour else str(value)


def _pixels(count: int) -> str:
    return "1 pixel" if count == 1 else f"{count:,} pixels"


def looks_like_a_photo(num_values: int, where: str, *, is_colour: bool) -> DataError:
    """The error about a mask with far too many values."""
    kind = "colours" if is_colour else "grey levels"
    return DataError(
        f"the mask has {num_values:,} different {kind}: it looks like a photograph, or a mask saved as JPEG",
        where=where,
        expected=f"one value per class, at most {MAX_CLASSES}, in a PNG",
        remedy="check that images and masks are not mixed up, and save masks without loss",
    )


def read_values(path: Path, *, is_colour: bool) -> NDArray[Any]:
    """The values of a mask file ``[h, w]``: unsigned integers, or int64 where they are colours.

    Args:
        path: PNG, BMP, TIFF: palette (the index counts, whatever its colours), grey of 1, 8, 16 or 32 bits, or RGB(A).
        is_colour: read colours, also of a palette or grey picture; otherwise an RGB picture must be grey.

    Raises:
        ImageError: a file that is missing, damaged, or no picture.
        DataError: a coloured mask where numbers are wanted, or fractions.
    """
    if not path.is_file():
        raise ImageError("there is no such mask", where=str(path), remedy="check the path")
    silence_pillow()
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as mask:
            mask.load()
            upright = ImageOps.exif_transpose(mask)
            if is_colour:
                return _colours(np.asarray(upright.convert("RGB")))
            return _numbers(upright, path)
    except Image.DecompressionBombError:
        raise ImageError("the mask has far more pixels than can be decoded", where=str(path)) from None
    except DAMAGE as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        remedy = "write or copy it again"
        raise ImageError(f"the mask is damaged or no picture ({reason})", where=str(path), remedy=remedy) from error


def _colours(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    wide: NDArray[np.int64] = pixels.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _numbers(mask: Image.Image, path: Path) -> NDArray[Any]:
    if mask.mode == "F":
        raise DataError("the mask holds fractions", where=str(path), expected="whole numbers, one per class")
    if mask.mode in {"1", "L", "P"} or mask.mode.startswith("I"):
        values: NDArray[Any] = np.array(mask)
        if values.dtype == np.bool_:
            return values.astype(np.uint8)
        if values.dtype.itemsize > 2 or values.dtype.kind == "i":
            if values.size and values.min() < 0:
                low = int(values.min())
                raise DataError(f"the mask has the value {low}", where=str(path), expected="numbers from 0")
            values = values.astype(np.uint16 if values.max(initial=0) < 1 << 16 else np.int64)
        elif values.dtype.byteorder == ">":
            values = values.astype(np.uint16)
        return values
    pixels = np.asarray(mask.convert("RGB"))
    if not ((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()):
        raise DataError(
            "the mask is coloured, but its classes are numbers",
            where=str(path),
            expected="a grey or palette PNG",
            remedy='list the colours in classes.json: {"NAME": [RED, GREEN, BLUE]}',
        )
    return np.ascontiguousarray(pixels[..., 0])


class LabelMap(Protocol):
    """Where the label map of one picture comes from."""

    def read(self) -> NDArray[np.uint8]:
        """The labels ``[h, w]``.

        Raises:
            DataError: values without a label.
            ImageError: a mask that cannot be read.
        """
        ...

    def identity(self, root: Path) -> str:
        """What the fingerprint of a data set takes in: names relative to ``root``, sizes, meaning of the values."""
        ...

    def __str__(self) -> str:
        """What it is called in messages."""
        ...


@dataclass(frozen=True)
class MaskFile:
    """A label map in a picture file.

    Attributes:
        path: the file.
        coding: what its values mean.
    """

    path: Path
    coding: Coding

    def read(self) -> NDArray[np.uint8]:
        """The labels ``[h, w]``.

        Raises:
            DataError: values without a label.
            ImageError: a mask that cannot be read.
        """
        return self.coding.labels(read_values(self.path, is_colour=self.coding.is_colour), str(self.path))

    def identity(self, root: Path) -> str:
        """Name, size in bytes, and what each value means."""
        meaning = hashlib.sha256(repr((sorted(self.coding.values.items()), self.coding.instances)).encode()).hexdigest()
        return f"{identity_of(self.path, root)}\0{meaning}"

    def __str__(self) -> str:
        return str(self.path)


def identity_of(path: Path, root: Path) -> str:
    """Name relative to ``root`` and size in bytes of a file, for fingerprints."""
    size = path.stat().st_size if path.exists() else -1
    name = path.relative_to(root) if path.is_relative_to(root) else path
    return f"{name.as_posix()}\0{size}"


@dataclass(frozen=True)
class MapItem:
    """One picture file with its label map.

    Attributes:
        image: the picture.
        map: its labels.
        source: what the picture is called in messages and reports; its path by default.
    """

    image: Path
    map: LabelMap
    source: str = ""

    def __str__(self) -> str:
        return self.source or str(self.image)


class MapDataset:
    """Pictures in files with a label map each, decoded when asked for.

    Attributes:
        items: picture and label map of each sample.
        classes: names of the classes; the background is one of them.
        root: the folder that names in the fingerprint are relative to.
        licence: what the data may be used for.
    """

    task: ClassVar[TaskName] = "semantic"

    def __init__(self, items: Sequence[MapItem], classes: Classes, root: Path, licence: str | None = None) -> None:
        check_classes(classes, str(root))
        self.items = tuple(items)
        self.classes = classes
        self.root = root
        self.licence = licence

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        image = read_image(item.image, where=str(item))
        labels = item.map.read()
        size = int(image.shape[1]), int(image.shape[2])
        if labels.shape != size:
            raise size_error(item, size, (labels.shape[0], labels.shape[1]))
        return Sample(image, MapTarget(torch.from_numpy(labels)), str(item))

    def select(self, indices: Sequence[int]) -> MapDataset:
        """Some of the samples, as a data set of the same kind."""
        return MapDataset([self.items[index] for index in indices], self.classes, self.root, self.licence)

    def fingerprint(self) -> str:
        """A SHA-256 over class names and the names and sizes in bytes of all files, with the meaning of the masks."""
        digest = hashlib.sha256(as_bytes("\0".join(self.classes)))
        for item in self.items:
            digest.update(as_bytes(f"{identity_of(item.image, self.root)}\0{item.map.identity(self.root)}\n"))
        return digest.hexdigest()


def size_error(item: MapItem, image_size: tuple[int, int], map_size: tuple[int, int]) -> DataError:
    """The error about a picture and a label map of different size, both ``(h, w)``."""
    is_turned = image_size == map_size[::-1]
    remedy = (
        "turn the mask as the picture is shown: it may have been drawn before the EXIF orientation was applied"
        if is_turned
        else "check that they belong together, and scale the mask to the picture (nearest neighbour)"
    )
    return DataError(
        f"the picture has {image_size[1]}x{image_size[0]} pixels but its mask {item.map} {map_size[1]}x{map_size[0]}",
        where=str(item),
        expected="a mask of the size of the picture (width x height, as shown)",
        remedy=remedy,
    )


def check_classes(classes: Classes, where: str) -> None:
    """Refuse class tables that label maps cannot hold.

    Raises:
        DataError: fewer than two classes, or more than ``MAX_CLASSES``.
    """
    if len(classes) == 1:
        raise DataError(
            f"there is only one class, {classes[0]!r}",
            where=where,
            expected="at least two: a background is a class of its own",
            remedy='list it in classes.json, as in ["background", "NAME"]',
        )
    check_two_classes(classes, where)
    if len(classes) > MAX_CLASSES:
        remedy = "merge rare ones in classes.json: several values may have one name"
        raise DataError(f"there are {len(classes)} classes", where=where, expected="at most 255", remedy=remedy)


def coding_of(values: Iterable[int]) -> Coding:
    """The coding that gives the values, in ascending order, the labels 0, 1, ..."""
    return Coding({value: label for label, value in enumerate(sorted(values))})
