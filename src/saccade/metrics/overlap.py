"""How much the objects found in one picture overlap the true ones, boxes or masks, as COCO measures it.

Everything is float64 and boxes are (x, y, width, height), as in COCO's files: an overlap that decides at a threshold
must come out to the last bit as other programs compute it. Over a crowd the overlap is the share of the found object
that lies on it (Lin et al. 2014, arXiv 1405.0312, and its program).

D found · G true objects · h, w picture
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saccade.errors import InputError
from saccade.types import BoxTarget, Detections, Masks

Kind = Literal["boxes", "masks"]
"""What is compared."""

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]
RunLengths = Mapping[str, Any]
"""``{"size": [h, w], "counts": "..."}``, compressed."""
Shapes = Masks | Sequence[RunLengths]


class Found(NamedTuple):
    """Objects that were found in one picture, in any order.

    Attributes:
        boxes: ``[D, 4]`` x, y, width, height.
        labels: ``[D]``.
        scores: ``[D]``.
        areas: ``[D]``; decide which are small, medium or large.
        shapes: the masks, where masks are compared.
    """

    boxes: Floats
    labels: Labels
    scores: Floats
    areas: Floats
    shapes: Shapes | None = None

    @classmethod
    def of(cls, detections: Detections, kind: Kind) -> Found:
        """What is needed of the detections in one picture.

        Raises:
            InputError: masks are to be compared and there are none.
        """
        boxes = _sides(detections.boxes)
        labels, scores = detections.labels.cpu().numpy(), detections.scores.cpu().double().numpy()
        if kind == "boxes":
            return cls(boxes, labels, scores, boxes[:, 2] * boxes[:, 3])
        masks = _masks(detections.masks, "the detections")
        return cls(boxes, labels, scores, masks.areas().double().numpy(), masks)


class Truth(NamedTuple):
    """The true objects of one picture.

    Attributes:
        boxes: ``[G, 4]`` x, y, width, height.
        labels: ``[G]``.
        crowd: ``[G]``, what counts neither as right nor as wrong.
        areas: ``[G]``; decide which are small, medium or large.
        shapes: the masks, where masks are compared.
    """

    boxes: Floats
    labels: Labels
    crowd: Flags
    areas: Floats
    shapes: Shapes | None = None

    @classmethod
    def of(cls, target: BoxTarget, kind: Kind) -> Truth:
        """What is needed of the true objects of one picture; areas are of the masks where there are any, as in COCO.

        Raises:
            InputError: masks are to be compared and there are none.
        """
        boxes = _sides(target.boxes)
        labels, crowd = target.labels.cpu().numpy(), target.crowd.cpu().numpy()
        if target.masks is None and kind == "boxes":
            return cls(boxes, labels, crowd, boxes[:, 2] * boxes[:, 3])
        masks = _masks(target.masks, "the ground truth")
        return cls(boxes, labels, crowd, masks.areas().double().numpy(), masks)


def _sides(boxes: Tensor) -> Floats:
    corners: Floats = boxes.detach().cpu().double().numpy()
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _masks(masks: Masks | None, of: str) -> Masks:
    if masks is None:
        raise InputError(f"{of} have no masks", expected="a mask of every object")
    return masks.to("cpu")


def overlaps(found: Found, truth: Truth, kind: Kind) -> Floats:
    """Overlap of every found with every true object, whatever their classes.

    Returns:
        ``[D, G]``: intersection over union; over a crowd, intersection over the found object.

    Raises:
        InputError: masks are of pictures of different sizes.
    """
    from faster_coco_eval.core import mask  # loads a library that only evaluations need

    if not len(found.labels) or not len(truth.labels):
        return np.zeros((len(found.labels), len(truth.labels)))
    crowd = truth.crowd.astype(int).tolist()
    if kind == "boxes":
        return np.asarray(mask.iou(found.boxes, truth.boxes, crowd))
    ours, theirs = found.shapes, truth.shapes
    if isinstance(ours, Masks) and isinstance(theirs, Masks):
        return _mask_overlaps(ours, theirs, truth.crowd)
    return np.asarray(mask.iou(run_lengths(ours), run_lengths(theirs), crowd))


def run_lengths(shapes: Shapes | None) -> list[dict[str, Any]]:
    """Compressed run lengths of each mask; only one whole map is in memory at a time."""
    from faster_coco_eval.core import mask

    if not isinstance(shapes, Masks):
        return [dict(one) for one in shapes or ()]
    return [mask.encode(np.asfortranarray(shapes[index].cpu().numpy(), dtype=np.uint8)) for index in range(len(shapes))]


def _mask_overlaps(ours: Masks, theirs: Masks, crowd: Flags) -> Floats:
    """Only where rectangles meet are pixels compared, and only those of the shared rectangle."""
    if ours.size != theirs.size:
        raise InputError(f"masks are of {ours.size} pixels", expected=f"{theirs.size}, as the ground truth")
    (mine, low, high), (yours, your_low, your_high) = _rectangles(ours), _rectangles(theirs)
    start = np.maximum(low[:, None], your_low[None])  # [D, G, 2]
    stop = np.minimum(high[:, None], your_high[None])
    areas, your_areas = (np.array([crop.sum() for crop in crops], dtype=np.float64) for crops in (mine, yours))
    result = np.zeros((len(ours), len(theirs)))
    for i, j in np.argwhere((stop > start).all(-1)).tolist():
        (top, left), (bottom, right) = start[i, j], stop[i, j]
        (y, x), (v, u) = low[i], your_low[j]
        shared = np.count_nonzero(
            mine[i][top - y : bottom - y, left - x : right - x] & yours[j][top - v : bottom - v, left - u : right - u]
        )
        if shared:
            result[i, j] = shared / (areas[i] if crowd[j] else areas[i] + your_areas[j] - shared)
    return result


def _rectangles(masks: Masks) -> tuple[list[Flags], Labels, Labels]:
    """Pixels, upper left and lower right corner (y, x) of each."""
    crops: list[Flags] = [crop.numpy() for crop in masks.crops]
    low: Labels = masks.corners.numpy()
    return crops, low, low + np.array([crop.shape for crop in crops], dtype=np.int64).reshape(-1, 2)
