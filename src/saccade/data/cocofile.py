"""A file of COCO JSON, parsed, validated and typed: pictures, categories, annotations by picture; masks on demand.

Nothing here knows a task: label maps, boxes and instance masks are made from this. Optional fields may be missing;
what is damaged is an error that names the annotation, what is merely useless is told in ``notes``.

h, w size of a picture
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.data.splits import counted
from saccade.data.tables import with_slashes
from saccade.errors import DataError

Polygons = list[list[float]]
"""Each ``[x0, y0, x1, y1, ...]`` in pixels; the parts of one object."""

_FARTHEST = 1e6
"""Largest coordinate in pixels; a polygon that runs farther would be drawn for minutes."""

_HEAD_BYTES = 65536
_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:')


class CocoImage(NamedTuple):
    """A picture.

    Attributes:
        id: its number.
        file_name: as the JSON says it.
        size: ``(h, w)``, or None where the JSON does not say.
        extra: what else the JSON says of it.
    """

    id: int
    file_name: str
    size: tuple[int, int] | None
    extra: Mapping[str, Any] = {}


class CocoCategory(NamedTuple):
    """A class, with the id that annotations use, and what else the JSON says of it."""

    id: int
    name: str
    extra: Mapping[str, Any] = {}


class CocoAnnotation(NamedTuple):
    """An object.

    Attributes:
        id: its number; -1 where it has none.
        category_id: its class.
        segmentation: polygons, run lengths (``{"size": [h, w], "counts": ...}``), or None.
        box: ``(x, y, width, height)`` in pixels, or None.
        is_crowd: whether it is a group that nobody took apart.
        extra: what else the JSON says of it.
    """

    id: int
    category_id: int
    segmentation: Polygons | Mapping[str, Any] | None
    box: tuple[float, float, float, float] | None
    is_crowd: bool
    extra: Mapping[str, Any] = {}


class PanopticMask(NamedTuple):
    """The mask file of a picture whose pixels number its segments.

    Attributes:
        file_name: the PNG.
        segments: segment id -> category id.
    """

    file_name: str
    segments: dict[int, int]


@dataclass(frozen=True)
class CocoFile:
    """What one COCO JSON file says.

    Attributes:
        path: the file.
        images: by id, in the order of the file.
        categories: by ascending id.
        annotations: of each picture, in the order of the file; pictures without any are not there.
        panoptic: the mask of each picture, where the file is of the panoptic kind; else empty.
        notes: what was left out, one sentence each.
        about: what the JSON says of the whole: ``info``, ``licenses`` and the like.
    """

    path: Path
    images: dict[int, CocoImage]
    categories: tuple[CocoCategory, ...]
    annotations: dict[int, list[CocoAnnotation]]
    panoptic: dict[int, PanopticMask]
    notes: list[str]
    about: Mapping[str, Any] = field(default_factory=dict)


def is_coco_file(path: Path) -> bool:
    """Whether a JSON file begins like COCO: an object with images, annotations or categories."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and _KEYS.search(head) is not None


def read_coco(path: Path) -> CocoFile:
    """Parse one file.

    Raises:
        DataError: no JSON, no COCO, ids given twice, annotations of categories that are not listed, segmentations that
            are neither polygons nor run lengths.
    """
    content = _load(path)
    images = {image.id: image for image in (_image(entry, i, path) for i, entry in enumerate(content["images"]))}
    if len(images) < len(content["images"]):
        repeated = [key for key, count in Counter(entry["id"] for entry in content["images"]).items() if count > 1]
        raise DataError(f"the image id {repeated[0]} is given twice", where=str(path), expected="every id once")
    categories = [_category(entry, i, path) for i, entry in enumerate(content["categories"])]
    categories.sort(key=lambda category: category.id)
    known = Counter(category.id for category in categories)
    if len(known) < len(categories):
        repeated_id = known.most_common(1)[0][0]
        raise DataError(f"the category id {repeated_id} is given twice", where=str(path), expected="every id once")
    annotations: dict[int, list[CocoAnnotation]] = {}
    panoptic: dict[int, PanopticMask] = {}
    lost: list[int] = []
    for place, entry in enumerate(content["annotations"]):
        where = f"{path} annotations[{place}]"
        image_id = _integer(entry, "image_id", where)
        if image_id not in images:
            lost.append(image_id)
        elif "segments_info" in entry:
            panoptic[image_id] = _panoptic(entry, known, where)
        else:
            annotations.setdefault(image_id, []).append(_annotation(entry, known, where))
    notes = []
    if lost:
        verb = "is" if len(lost) == 1 else "are"
        told = f"{counted(len(lost), 'annotation')} of {path.name} {verb} of pictures that it does not list"
        notes.append(f"{told} (image id {lost[0]}): left out")
    about = _extra(content, ("images", "annotations", "categories"))
    return CocoFile(path, images, tuple(categories), annotations, panoptic, notes, about)


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not JSON ({error})", where=str(path), remedy="download or export it again") from error
    if isinstance(content, list):
        remedy = "pass the file of the ground truth"
        raise DataError("this is a list, as of detections", where=str(path), expected="COCO JSON", remedy=remedy)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"this is no COCO JSON: it has no list {key!r}", where=str(path))
        if not all(isinstance(entry, dict) for entry in content[key]):
            raise DataError(f"an entry of {key} is no object", where=str(path))
    parsed: dict[str, list[Any]] = content
    return parsed


def _extra(entry: Mapping[str, Any], known: tuple[str, ...]) -> Mapping[str, Any]:
    return {key: value for key, value in entry.items() if key not in known}


def _integer(entry: Mapping[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{key} is {'missing' if value is None else repr(value)}", where=where, expected="a number")
    return value


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{key} is {'missing' if value is None else repr(value)}", where=where, expected="a text")
    return value


def _image(entry: Mapping[str, Any], place: int, path: Path) -> CocoImage:
    where = f"{path} images[{place}]"
    size = entry.get("height"), entry.get("width")
    is_told = all(isinstance(side, int) and side > 0 for side in size)
    told = (int(size[0] or 0), int(size[1] or 0)) if is_told else None
    extra = _extra(entry, ("id", "file_name", "height", "width"))
    return CocoImage(_integer(entry, "id", where), with_slashes(_text(entry, "file_name", where)), told, extra)


def _category(entry: Mapping[str, Any], place: int, path: Path) -> CocoCategory:
    where = f"{path} categories[{place}]"
    return CocoCategory(_integer(entry, "id", where), _text(entry, "name", where), _extra(entry, ("id", "name")))


def _known_category(entry: Mapping[str, Any], known: Mapping[int, int], where: str) -> int:
    category = _integer(entry, "category_id", where)
    if category not in known:
        listed = ", ".join(str(number) for number in sorted(known)[:12])
        raise DataError(f"category_id is {category}, which is not listed", where=where, expected=f"one of {listed}")
    return category


def _panoptic(entry: Mapping[str, Any], known: Mapping[int, int], where: str) -> PanopticMask:
    segments: dict[int, int] = {}
    if not isinstance(entry["segments_info"], list):
        raise DataError("segments_info is no list", where=where)
    for segment in entry["segments_info"]:
        if not isinstance(segment, dict):
            raise DataError("a segment is no object", where=where)
        segments[_integer(segment, "id", where)] = _known_category(segment, known, where)
    return PanopticMask(with_slashes(_text(entry, "file_name", where)), segments)


def _annotation(entry: Mapping[str, Any], known: Mapping[int, int], where: str) -> CocoAnnotation:
    box = entry.get("bbox")
    if box is not None and not (isinstance(box, list) and len(box) == 4 and _are_finite(box)):
        raise DataError(f"bbox is {box!r}", where=where, expected="[x, y, width, height]")
    return CocoAnnotation(
        entry["id"] if isinstance(entry.get("id"), int) else -1,
        _known_category(entry, known, where),
        _segmentation(entry.get("segmentation"), where),
        (box[0], box[1], box[2], box[3]) if box else None,
        bool(entry.get("iscrowd", 0)),
        _extra(entry, ("id", "image_id", "category_id", "segmentation", "bbox", "iscrowd")),
    )


def _segmentation(value: Any, where: str) -> Polygons | Mapping[str, Any] | None:
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        counts = value.get("counts")
        is_packed = isinstance(counts, str) and counts.isascii()
        is_plain = isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts)
        size = value.get("size")
        is_sized = (
            isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
        )
        if is_sized and (is_packed or is_plain):
            return value
        expected = '{"size": [height, width], "counts": [...] or "..."}'
        raise DataError("the run lengths are damaged", where=where, expected=expected)
    expected = "pairs of numbers, [[x0, y0, x1, y1, ...]]"
    if not isinstance(value, list):
        raise DataError("the segmentation is damaged", where=where, expected=expected)
    parts = value if all(isinstance(part, list) for part in value) else [value]  # one polygon, not put in a list
    for part in parts:
        if len(part) % 2 or not _are_finite(part):
            raise DataError("the polygon is damaged", where=where, expected=expected)
    return parts


def _are_finite(numbers: list[Any]) -> bool:
    try:
        return all(map(math.isfinite, numbers)) and max(map(abs, numbers), default=0) <= _FARTHEST
    except (TypeError, OverflowError):  # no numbers, or beyond all floats
        return False


def annotation_mask(annotation: CocoAnnotation, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The pixels ``[h, w]`` of one object: the union of its polygons, or its run lengths; none where it has neither.

    Raises:
        DataError: run lengths of another size than the picture, or that do not add up.
    """
    return shape_mask(annotation.segmentation, size, f"{where} annotation {annotation.id}")


def shape_mask(shape: Polygons | Mapping[str, Any] | None, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The pixels ``[h, w]`` of polygons (their union) or run lengths; none where there is neither.

    Polygons are drawn as COCO's own program draws them; parts with fewer than three corners cover nothing.

    Raises:
        DataError: run lengths of another size than the picture, or that do not add up.
    """
    empty: NDArray[np.bool_] = np.zeros(size, dtype=np.bool_)
    height, width = size
    coder = _coder()
    if shape is None:
        return empty
    if isinstance(shape, list):
        polygons = [part for part in shape if len(part) >= 6]
        if not polygons:
            return empty
        runs = coder.merge(coder.frPyObjects(polygons, height, width))
    else:
        if list(shape["size"]) != [height, width]:
            told = f"the run lengths are of {shape['size'][1]}x{shape['size'][0]} pixels"
            raise DataError(told, where=where, expected=f"{width}x{height}, as the picture has")
        runs = shape
    try:
        packed = coder.frPyObjects(runs, height, width) if isinstance(runs["counts"], list) else runs
        mask: NDArray[np.bool_] = np.asarray(coder.decode(packed)).astype(np.bool_)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"the run lengths are damaged ({error})", where=where, remedy="export it again") from error
    return mask


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Pixels ``[h, w]`` as packed run lengths."""
    packed = _coder().encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = packed["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": text}


@cache
def _coder() -> Any:
    """The program of COCO's run lengths; loaded when the first mask is drawn."""
    from faster_coco_eval.core import mask

    return mask
