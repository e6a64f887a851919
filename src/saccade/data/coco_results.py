"""COCO result files: detections of anyone's model, checked against the ground truth that they are about.

A list of ``{"image_id", "category_id", "score", "bbox": [x, y, width, height]}``, with run lengths as
``"segmentation"`` beside the box or instead of it. Polygons count where there is no box; beside one they are most often
its outline, which COCO's own program adds. Numbers keep the precision of the file.

N detections or objects of one picture · h, w picture
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.data.coco import read_coco_source
from saccade.data.cocofile import CocoAnnotation, CocoFile, CocoImage
from saccade.data.splits import counted
from saccade.errors import DataError

RunLengths = dict[str, Any]
"""``{"size": [h, w], "counts": "..."}``, compressed."""

_SWAPPED = 0.5
"""Share of boxes that leave their picture, but would fit as corners, from which they are taken for corners."""
_LEAST_SWAPPED = 5
"""So few of them prove nothing: models may draw boxes beyond the border."""


class Rows(NamedTuple):
    """The detections or the true objects of one picture.

    Attributes:
        boxes: ``[N, 4]`` x, y, width, height.
        category_ids: ``[N]``.
        scores: ``[N]``; of true objects 1.
        areas: ``[N]`` of the boxes; as the file says of true objects, where it does.
        crowd: ``[N]``; of detections False.
        shapes: run lengths of each, where there are masks.
    """

    boxes: NDArray[np.float64]
    category_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    shapes: list[RunLengths] | None


@dataclass(frozen=True)
class CocoResults:
    """What a result file says.

    Attributes:
        path: the file.
        rows: by image id; pictures without a detection are not there.
        has_boxes: whether every detection has a box of its own; else it is the one around the mask.
        has_masks: whether every detection has a mask.
        number: of detections.
    """

    path: Path
    rows: dict[int, Rows]
    has_boxes: bool
    has_masks: bool
    number: int


def held_out_file(data: Path, split: str | None = None) -> CocoFile:
    """The ground truth of one split of a folder with COCO JSON, or one JSON file.

    Args:
        data: the folder or file.
        split: its name; where it is None, ``test`` if there is one, else the held-out one.

    Raises:
        DataError: no COCO JSON, or no such split.
    """
    if not data.exists():
        raise DataError("there is no such file or folder", where=str(data))
    try:
        files = dict(read_coco_source(data).files)
    except DataError as error:
        if data.is_dir() and error.remedy is None:
            error.remedy = f"write it as COCO with `saccade data convert {data} DESTINATION --to coco`"
        raise
    if None in files:
        return files[None]
    chosen = split or next((name for name in ("test", "val") if name in files), next(iter(files)))
    if chosen not in files:
        told = ", ".join(str(name) for name in files)
        raise DataError(f"there is no split {chosen!r}", where=str(data), expected=f"one of: {told}")
    return files[chosen]


def read_results(path: Path, truth: CocoFile) -> CocoResults:
    """Parse a result file and hold it against the ground truth.

    Raises:
        DataError: no JSON, no list of detections, pictures or categories that the ground truth does not have, scores
            outside of 0 to 1, damaged boxes or masks, masks of another size than their picture, boxes that are corners.
    """
    entries = _load(path)
    _check_known(entries, "image_id", truth.images, "picture", path)
    _check_known(entries, "category_id", [category.id for category in truth.categories], "category", path)
    _check_scores(entries, path)
    has_boxes = bool(entries) and all(entry.get("bbox") not in (None, []) for entry in entries)
    has_masks = bool(entries) and all(_is_mask(entry.get("segmentation"), has_boxes) for entry in entries)
    if entries and not has_masks and not has_boxes:
        index = next(i for i, entry in enumerate(entries) if entry.get("bbox") in (None, []))
        told = "some detections have no box and some no mask"
        raise DataError(told, where=f"{path} [{index}]", expected='"bbox" or "segmentation" of every detection')
    if has_boxes:
        _check_boxes(entries, truth, path)
    grouped: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for index, entry in enumerate(entries):
        grouped.setdefault(entry["image_id"], []).append((index, entry))
    rows = {}
    for number, found in grouped.items():
        shapes = _shapes(found, truth.images[number], path) if has_masks else None
        boxes = _numbers([entry["bbox"] for _, entry in found]) if has_boxes else _boxes_around(shapes or [])
        ids = np.array([entry["category_id"] for _, entry in found], dtype=np.int64)
        scores = np.array([entry["score"] for _, entry in found], dtype=np.float64)
        none = np.zeros(len(found), dtype=np.bool_)
        rows[number] = Rows(boxes, ids, scores, boxes[:, 2] * boxes[:, 3], none, shapes)
    return CocoResults(path, rows, has_boxes, has_masks, len(entries))


def truth_rows(truth: CocoFile, image: CocoImage, *, has_masks: bool) -> Rows:
    """The true objects of one picture, with the areas that the file says.

    Raises:
        DataError: objects without a box and a mask, or, where masks are wanted, without a mask.
    """
    found = truth.annotations.get(image.id, [])
    shapes = [_true_shape(one, image, truth) for one in found] if has_masks else None
    boxes = [one.box or tuple(_boxes_around([_true_shape(one, image, truth)])[0].tolist()) for one in found]
    areas = []
    for one, box in zip(found, boxes, strict=True):
        told = one.extra.get("area")
        is_told = isinstance(told, int | float) and not isinstance(told, bool) and math.isfinite(told)
        areas.append(float(told) if is_told and told is not None else box[2] * box[3])
    return Rows(
        _numbers(boxes),
        np.array([one.category_id for one in found], dtype=np.int64),
        np.ones(len(found)),
        np.array(areas, dtype=np.float64),
        np.array([one.is_crowd for one in found], dtype=np.bool_),
        shapes,
    )


def _is_mask(shape: Any, has_boxes: bool) -> bool:
    return isinstance(shape, dict) or (not has_boxes and isinstance(shape, list) and bool(shape))


def _load(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise DataError("there is no such file", where=str(path))
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not JSON ({error})", where=str(path), remedy="write the results again") from error
    expected = 'a list of {"image_id", "category_id", "score", "bbox"}'
    if isinstance(content, dict) and "annotations" in content:
        raise DataError("this is a file of ground truth", where=str(path), expected=expected)
    if not isinstance(content, list):
        raise DataError(f"this is no list but a {type(content).__name__}", where=str(path), expected=expected)
    for index, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise DataError("this is no detection", where=f"{path} [{index}]", expected="an object")
        for key in ("image_id", "category_id", "score"):
            if key not in entry:
                raise DataError(f"{key} is missing", where=f"{path} [{index}]")
    return content


def _fail_first(
    wrong: Sequence[int], total: int, path: Path, told: Callable[[int], str], expected: str, remedy: str | None = None
) -> None:
    """Refuse the entries at the places ``wrong``, naming the first and how many there are."""
    if wrong:
        many = f" ({len(wrong)} of {counted(total, 'detection')} are like that)" if len(wrong) > 1 else ""
        where = f"{path} [{wrong[0]}]"
        raise DataError(f"{told(wrong[0])}{many}", where=where, expected=expected, remedy=remedy)


def _check_known(
    entries: Sequence[Mapping[str, Any]], key: str, known: Sequence[int] | Mapping[int, Any], what: str, path: Path
) -> None:
    ids = set(known)
    wrong = [i for i, one in enumerate(entries) if type(one[key]) is not int or one[key] not in ids]
    shown = ", ".join(str(number) for number in sorted(ids)[:12]) + (", ..." if len(ids) > 12 else "")
    remedy = "check that the results belong to this data"
    _fail_first(
        wrong,
        len(entries),
        path,
        lambda i: f"{key} is {entries[i][key]!r}, a {what} that the ground truth does not have",
        f"one of: {shown or '(none)'}",
        remedy,
    )


def _check_scores(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    def is_wrong(score: Any) -> bool:
        return isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1

    wrong = [index for index, entry in enumerate(entries) if is_wrong(entry["score"])]
    told = "a number from 0 to 1"
    _fail_first(wrong, len(entries), path, lambda i: f"score is {entries[i]['score']!r}", told)


def _check_boxes(entries: Sequence[Mapping[str, Any]], truth: CocoFile, path: Path) -> None:
    def is_wrong(box: Any) -> bool:
        if not isinstance(box, list) or len(box) != 4:
            return True
        if any(isinstance(side, bool) or not isinstance(side, int | float) or not math.isfinite(side) for side in box):
            return True
        return bool(box[2] < 0 or box[3] < 0)

    expected = "[x, y, width, height] in pixels"
    wrong = [index for index, entry in enumerate(entries) if is_wrong(entry["bbox"])]
    _fail_first(wrong, len(entries), path, lambda i: f"bbox is {entries[i]['bbox']!r}", expected)
    corners = []
    for index, entry in enumerate(entries):
        size = truth.images[entry["image_id"]].size
        x, y, right, bottom = entry["bbox"]
        leaves = size is not None and (x + right > size[1] + 1 or y + bottom > size[0] + 1)
        if leaves and size is not None and x <= right <= size[1] + 1 and y <= bottom <= size[0] + 1:
            corners.append(index)
    if len(corners) >= max(_SWAPPED * len(entries), _LEAST_SWAPPED):
        told = f"{len(corners)} of {len(entries)} boxes leave their picture, but fit into it as two corners"
        where = f"{path} [{corners[0]}]"
        raise DataError(told, where=where, expected=expected, remedy="subtract x and y from the last two numbers")


def _numbers(boxes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _boxes_around(shapes: Sequence[RunLengths]) -> NDArray[np.float64]:
    from faster_coco_eval.core import mask  # loads a library that only masks need

    return np.asarray(mask.toBbox(list(shapes)), dtype=np.float64).reshape(-1, 4)


def _shapes(found: Sequence[tuple[int, Mapping[str, Any]]], image: CocoImage, path: Path) -> list[RunLengths]:
    """Run lengths of the detections in one picture."""
    return [packed(entry["segmentation"], image.size, f"{path} [{index}]") for index, entry in found]


def _true_shape(annotation: CocoAnnotation, image: CocoImage, truth: CocoFile) -> RunLengths:
    where = f"{truth.path} annotation {annotation.id}"
    if annotation.segmentation is None:
        what = "no mask" if annotation.box else "no box and no mask"
        raise DataError(f"the object has {what}", where=where, remedy="evaluate boxes only")
    return packed(annotation.segmentation, image.size, where)


def packed(shape: Any, size: tuple[int, int] | None, where: str) -> RunLengths:
    """Polygons or run lengths of any kind as compressed run lengths.

    Args:
        shape: as a file of COCO JSON has it.
        size: ``(h, w)`` of the picture; None where nobody said.
        where: of the shape, for messages.

    Raises:
        DataError: neither polygons nor run lengths, damaged, or of another size than the picture.
    """
    from faster_coco_eval.core import mask

    if isinstance(shape, list):
        if size is None:
            raise DataError("polygons need the size of their picture", where=where, expected="its height and width")
        polygons = [part for part in shape if isinstance(part, list) and len(part) >= 6]
        if not polygons:
            return _empty(size)
        try:
            merged: RunLengths = mask.merge(mask.frPyObjects(polygons, *size))
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError("the polygon is damaged", where=where, expected="[[x0, y0, x1, y1, ...]]") from error
        return merged
    expected = '{"size": [height, width], "counts": [...] or "..."}'
    if not isinstance(shape, dict) or not isinstance(shape.get("size"), list) or len(shape["size"]) != 2:
        raise DataError("the mask is neither polygons nor run lengths", where=where, expected=expected)
    height, width = shape["size"]
    if size is not None and (height, width) != size:
        told = f"the run lengths are of {width}x{height} pixels"
        raise DataError(told, where=where, expected=f"{size[1]}x{size[0]}, as the picture has")
    counts = shape.get("counts")
    is_plain = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if not is_plain and not isinstance(counts, str):
        raise DataError("the run lengths are damaged", where=where, expected=expected)
    try:
        if is_plain:
            lengths, result = list(counts or ()), dict(mask.frPyObjects(dict(shape), height, width))
        else:
            lengths, result = _lengths(shape), dict(shape)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the run lengths are damaged ({error})", where=where, remedy="export them again") from error
    if sum(lengths) != height * width:
        told = f"the run lengths make {sum(lengths)} pixels"
        raise DataError(told, where=where, expected=f"{height * width}, {width}x{height}", remedy="export them again")
    return result


def _lengths(shape: Mapping[str, Any]) -> list[int]:
    from faster_coco_eval import mask_api_new_cpp

    lengths: list[int] = mask_api_new_cpp.toUncompressedRLE([dict(shape)])[0]["counts"]
    return lengths


def _empty(size: tuple[int, int]) -> RunLengths:
    from faster_coco_eval.core import mask

    none: RunLengths = mask.frPyObjects({"size": list(size), "counts": [size[0] * size[1]]}, *size)
    return none
