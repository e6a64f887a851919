"""Pictures with their objects, whatever file format they come from: boxes, outlines, names of classes.

An object has the name of its class, never a number: numbers are made once, from the ``Classes`` of the whole data set,
so no file format can shift them. Boxes are xyxy by edges in the pixels of the picture as shown (EXIF orientation
applied): pixel ``i`` covers ``[i, i + 1)``.

N objects · h, w picture · bh, bw rectangle of one object
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.data.cocofile import Polygons, run_lengths, shape_mask
from saccade.data.decode import read_image
from saccade.data.maps import identity_of, read_values
from saccade.data.splits import as_bytes
from saccade.errors import DataError
from saccade.types import BoxTarget, Classes, Masks, Sample, TaskName

Box = tuple[float, float, float, float]
"""``(x1, y1, x2, y2)``, the edges in pixels."""


@dataclass(frozen=True)
class NumberedPixels:
    """The pixels of a mask file that have one value.

    Attributes:
        path: the mask, whose values number the objects of a picture.
        value: the number of this object.
    """

    path: Path
    value: int


Shape = Polygons | Mapping[str, Any] | NumberedPixels
"""Polygons, COCO's run lengths (``{"size": [h, w], "counts": ...}``), or the pixels of a mask file."""


@dataclass(frozen=True)
class ObjectAnnotation:
    """One object.

    Attributes:
        name: its class.
        box: xyxy in pixels.
        shape: which pixels it covers; None where nobody said.
        is_crowd: a group that nobody took apart, or an object marked as difficult.
        extra: what else the file says of it; kept when the data is converted.
    """

    name: str
    box: Box
    shape: Shape | None = None
    is_crowd: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnnotatedImage:
    """One picture file with its objects; none is a picture of background.

    Attributes:
        path: the picture.
        size: ``(h, w)`` as shown.
        objects: what is in it.
        id: its number in files that number pictures.
        source: what it is called in messages and reports; its path by default.
        extra: what else the file says of it.
    """

    path: Path
    size: tuple[int, int]
    objects: tuple[ObjectAnnotation, ...] = ()
    id: int | None = None
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.source or str(self.path)


class ObjectDataset:
    """Pictures in files with their objects, decoded when asked for.

    Attributes:
        images: the pictures and what is in them.
        classes: names of the classes; there is no background among them.
        root: the folder that names in the fingerprint are relative to.
        licence: what the data may be used for.
        task: ``detection`` for boxes; ``instance`` for boxes and masks.
        category_ids: name of a class -> its number in the file, for files that number classes.
        about: what the file says of the whole.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        classes: Classes,
        root: Path,
        licence: str | None = None,
        *,
        task: TaskName = "detection",
        category_ids: Mapping[str, int] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if task not in {"detection", "instance"}:
            raise DataError(f"objects are no data for the task {task}", where=str(root), expected="detection, instance")
        if not len(classes):
            remedy = "check that the annotations belong to the pictures"
            raise DataError("no picture has an object", where=str(root), expected="at least one", remedy=remedy)
        self.images = tuple(images)
        self.classes = classes
        self.root = root
        self.licence = licence
        self.task: TaskName = task
        self.category_ids = dict(category_ids or {})
        self.about = dict(about or {})
        self._ids = {name: label for label, name in enumerate(classes)}
        for image in self.images:
            for index, thing in enumerate(image.objects):
                if thing.name not in self._ids:
                    where = f"{image} object {index}"
                    raise DataError(f"{thing.name!r} is no class of the data", where=where, expected=", ".join(classes))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        pixels = read_image(image.path, where=str(image))
        size = int(pixels.shape[1]), int(pixels.shape[2])
        if size != image.size:
            raise size_error(str(image), image.size, size)
        return Sample(pixels, self.target(index), str(image))

    def target(self, index: int) -> BoxTarget:
        """The objects of a picture, without decoding the picture: boxes ``[N, 4]`` in its own pixels.

        Raises:
            DataError: run lengths or masks that do not fit the picture.
        """
        image = self.images[index]
        boxes = torch.tensor([thing.box for thing in image.objects], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([self._ids[thing.name] for thing in image.objects], dtype=torch.int64)
        crowd = torch.tensor([thing.is_crowd for thing in image.objects], dtype=torch.bool)
        return BoxTarget(boxes, labels, crowd, masks_of(image) if self.task == "instance" else None)

    def counts(self) -> dict[str, int]:
        """How many objects each class has, crowds among them."""
        found = Counter(thing.name for image in self.images for thing in image.objects)
        return {name: found[name] for name in self.classes}

    def select(self, indices: Sequence[int]) -> ObjectDataset:
        """Some of the pictures, as a data set of the same kind."""
        return self.replaced([self.images[index] for index in indices])

    def replaced(self, images: Sequence[AnnotatedImage]) -> ObjectDataset:
        """The same classes, root and licence with other pictures."""
        return ObjectDataset(
            images,
            self.classes,
            self.root,
            self.licence,
            task=self.task,
            category_ids=self.category_ids,
            about=self.about,
        )

    def fingerprint(self) -> str:
        """A SHA-256 over task, class names, names and sizes in bytes of the pictures, boxes, labels and outlines."""
        digest = hashlib.sha256(as_bytes("\0".join([self.task, *self.classes])))
        for image in self.images:
            digest.update(as_bytes(f"{identity_of(image.path, self.root)}\0{image.size}\n"))
            for thing in image.objects:
                digest.update(struct.pack("<4dq?", *thing.box, self._ids[thing.name], thing.is_crowd))
                if self.task == "instance":
                    digest.update(_shape_identity(thing.shape, self.root))
        return digest.hexdigest()


def _shape_identity(shape: Shape | None, root: Path) -> bytes:
    """Bytes that change when an outline changes; a sum stands for the numbers, of which there may be millions."""
    if shape is None:
        return b"-"
    if isinstance(shape, NumberedPixels):
        return as_bytes(f"{identity_of(shape.path, root)}\0{shape.value}")
    if isinstance(shape, list):
        numbers = [(len(part), sum(part), sum(part[::2]), part[0] if part else 0.0) for part in shape]
        return repr(numbers).encode()
    return repr((shape["size"], shape["counts"])).encode()


def size_error(where: str, told: tuple[int, int], found: tuple[int, int]) -> DataError:
    """The error about a picture whose annotations are of another size, both ``(h, w)``."""
    is_turned = told == found[::-1]
    remedy = (
        "save the picture upright: its boxes were drawn before the EXIF orientation was applied"
        if is_turned
        else "check that picture and annotations belong together; boxes do not follow when a picture is scaled"
    )
    return DataError(
        f"the annotations are for {told[1]}x{told[0]} pixels but the picture has {found[1]}x{found[0]}",
        where=where,
        expected="the size of the picture (width x height, as shown)",
        remedy=remedy,
    )


def masks_of(image: AnnotatedImage) -> Masks:
    """The pixels of all objects of a picture; an object without an outline covers its box.

    Raises:
        DataError: run lengths of another size than the picture, or damaged; a mask file of another size.
        ImageError: a mask file that cannot be read.
    """
    files: dict[Path, NDArray[Any]] = {}
    corners, crops = [], []
    for index, thing in enumerate(image.objects):
        (top, left), crop = _cut_out(thing, image.size, f"{image} object {index}", files)
        corners.append((top, left))
        crops.append(torch.from_numpy(crop))
    return Masks(image.size, torch.tensor(corners, dtype=torch.int64).reshape(-1, 2), tuple(crops))


def object_mask(thing: ObjectAnnotation, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The pixels ``[h, w]`` of one object; its box where it has no outline."""
    (top, left), crop = _cut_out(thing, size, where, {})
    whole: NDArray[np.bool_] = np.zeros(size, dtype=np.bool_)
    whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return whole


def with_run_lengths(image: AnnotatedImage) -> AnnotatedImage:
    """The same picture with the pixels of mask files as run lengths, which any format can carry.

    Raises:
        DataError: a mask of another size than the picture.
        ImageError: a mask that cannot be read.
    """
    if not any(isinstance(thing.shape, NumberedPixels) for thing in image.objects):
        return image
    masks = masks_of(image)
    things = [
        replace(thing, shape=run_lengths(masks[index].numpy())) if isinstance(thing.shape, NumberedPixels) else thing
        for index, thing in enumerate(image.objects)
    ]
    return replace(image, objects=tuple(things))


_Cut = tuple[tuple[int, int], NDArray[np.bool_]]


def _cut_out(thing: ObjectAnnotation, size: tuple[int, int], where: str, files: dict[Path, NDArray[Any]]) -> _Cut:
    """Top and left of the rectangle around an object, and its pixels ``[bh, bw]``."""
    if thing.shape is None:
        return _filled(thing.box, size)
    if isinstance(thing.shape, NumberedPixels):
        if thing.shape.path not in files:
            files[thing.shape.path] = read_numbers(thing.shape.path, size, where)
        # The box is the one around the pixels, so there is no need to search the whole mask.
        top, left, bottom, right = (int(thing.box[place]) for place in (1, 0, 3, 2))
        return (top, left), files[thing.shape.path][top:bottom, left:right] == thing.shape.value
    return _cropped(shape_mask(thing.shape, size, where))


def read_numbers(path: Path, size: tuple[int, int], where: str) -> NDArray[Any]:
    """The values ``[h, w]`` of a mask that numbers objects.

    Raises:
        DataError: a mask of another size than the picture.
        ImageError: a mask that cannot be read.
    """
    values = read_values(path, is_colour=False)
    if values.shape != size:
        told = f"the picture has {size[1]}x{size[0]} pixels but its mask {path} {values.shape[1]}x{values.shape[0]}"
        raise DataError(told, where=where, expected="a mask of the size of the picture")
    return values


def _filled(box: Box, size: tuple[int, int]) -> _Cut:
    """The pixels whose middle lies in a box; at least one."""
    spans = []
    for low, high, side in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        first = min(max(int(np.ceil(low - 0.5)), 0), side - 1)
        last = min(max(int(np.ceil(high - 0.5)), first + 1), side)
        spans.append((first, last))
    (top, bottom), (left, right) = spans
    return (top, left), np.ones((bottom - top, right - left), dtype=np.bool_)


def _cropped(mask: NDArray[np.bool_]) -> _Cut:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0, 0), np.zeros((0, 0), dtype=np.bool_)
    top, left = int(rows[0]), int(columns[0])
    return (top, left), mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1].copy()


def plain_value(text: str) -> Any:
    """What a text of a file holds: the number, list or object that is written just so, or the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if json.dumps(value) == text else text


def polygon_box(polygons: Polygons) -> Box | None:
    """The box around the corners of polygons; None where they have none."""
    across = [value for part in polygons for value in part[::2]]
    down = [value for part in polygons for value in part[1::2]]
    return (min(across), min(down), max(across), max(down)) if across else None


def numbered_objects(
    mask: Path, size: tuple[int, int], name: str, others: Collection[int] = (0,)
) -> tuple[ObjectAnnotation, ...]:
    """The objects that the values of a mask number, each called ``name``, by ascending number.

    Args:
        mask: the file.
        size: ``(h, w)`` of the picture.
        name: the class of the objects.
        others: values that number no object.

    Raises:
        DataError: a mask of another size than the picture.
        ImageError: a mask that cannot be read.
    """
    from scipy.ndimage import find_objects

    present, places = np.unique(read_numbers(mask, size, str(mask)), return_inverse=True)
    found = []
    for value, where in zip(present.tolist(), find_objects(places.reshape(size) + 1), strict=True):
        if where is not None and value not in others:
            rows, columns = where
            box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
            found.append(ObjectAnnotation(name, box, NumberedPixels(mask, value)))
    return tuple(found)
