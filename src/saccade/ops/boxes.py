"""Boxes as functions: overlap, the codes that heads predict, clipping, suppression.

Everywhere in the package a box is absolute xyxy float32; other forms exist in this file and in file formats alone.

Codes of a box relative to another: Girshick et al. 2014, arXiv 1311.2524, appendix C. GIoU: Rezatofighi et al. 2019,
arXiv 1902.09630.

N, M boxes · h, w picture
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from saccade.types import Geometry

__all__ = [
    "areas",
    "batched_nms",
    "box_iou",
    "clip",
    "crowd_overlap",
    "decode",
    "encode",
    "from_centres",
    "generalized_iou",
    "is_large",
    "map_to_canvas",
    "map_to_original",
    "paired_iou",
    "to_centres",
]

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest logarithm of a predicted side over its anchor's: a wild prediction must not become infinite."""


def areas(boxes: Tensor) -> Tensor:
    """Area of each box, ``[..., 4] -> [...]``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def to_centres(boxes: Tensor) -> Tensor:
    """Corners ``[..., 4]`` to centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def from_centres(centres: Tensor) -> Tensor:
    """Centre x, centre y, width, height ``[..., 4]`` to xyxy."""
    middle, half = centres[..., :2], centres[..., 2:] / 2
    return torch.cat([middle - half, middle + half], dim=-1)


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """What a head has to predict at ``anchors`` to give ``boxes``; undone by ``decode``.

    Args:
        boxes: ``[..., 4]`` xyxy.
        anchors: ``[..., 4]`` xyxy, with positive sides.
        weights: factors of the four codes (centre x, centre y, width, height).

    Returns:
        ``[..., 4]``: the centre's offset in anchor sides, the logarithm of the sides' ratio, times ``weights``.
    """
    ours, theirs = to_centres(boxes), to_centres(anchors)
    offset = (ours[..., :2] - theirs[..., :2]) / theirs[..., 2:]
    stretch = torch.log(ours[..., 2:] / theirs[..., 2:])
    return torch.cat([offset, stretch], dim=-1) * ours.new_tensor(list(weights))


def decode(codes: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes ``[..., 4]`` xyxy of predicted codes ``[..., 4]`` at anchors ``[..., 4]``; sides grow at most 62.5-fold."""
    codes = codes / codes.new_tensor(list(weights))
    theirs = to_centres(anchors)
    middle = theirs[..., :2] + codes[..., :2] * theirs[..., 2:]
    sides = theirs[..., 2:] * torch.exp(codes[..., 2:].clamp(max=MAX_LOG_SCALE))
    return from_centres(torch.cat([middle, sides], dim=-1))


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes ``[..., 4]`` cut at the border of a picture ``(h, w)``."""
    height, width = size
    horizontal = boxes[..., 0::2].clamp(0, width)
    vertical = boxes[..., 1::2].clamp(0, height)
    return torch.stack([horizontal, vertical], dim=-1).flatten(-2)


def is_large(boxes: Tensor, side: float) -> Tensor:
    """Whether both sides of each box are at least so long, ``[..., 4] -> [...]`` bool."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union box by box, ``[..., 4]`` and ``[..., 4] -> [...]``; 0 where both are empty."""
    shared = _intersection(boxes, others)
    return shared / (areas(boxes) + areas(others) - shared).clamp_min(1e-9)


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """GIoU box by box in [-1, 1], ``[..., 4]`` and ``[..., 4] -> [...]``: IoU less the empty share of the hull."""
    shared = _intersection(boxes, others)
    union = areas(boxes) + areas(others) - shared
    low = torch.minimum(boxes[..., :2], others[..., :2])
    high = torch.maximum(boxes[..., 2:], others[..., 2:])
    hull = (high - low).clamp_min(0).prod(-1).clamp_min(1e-9)
    return shared / union.clamp_min(1e-9) - (hull - union) / hull


def crowd_overlap(boxes: Tensor, crowds: Tensor) -> Tensor:
    """Share of each of N boxes that lies inside of each of M crowds, ``[N, 4]``, ``[M, 4] -> [N, M]``."""
    shared = _intersection(boxes[:, None], crowds[None])
    return shared / areas(boxes)[:, None].clamp_min(1e-9)


def _intersection(boxes: Tensor, others: Tensor) -> Tensor:
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    return (high - low).clamp_min(0).prod(-1)


def map_to_canvas(boxes: Tensor, geometry: Geometry) -> Tensor:
    """Boxes ``[N, 4]`` of the original picture on the canvas."""
    return geometry.to_canvas(boxes.reshape(-1, 2).flip(-1)).flip(-1).reshape(-1, 4)


def map_to_original(boxes: Tensor, geometry: Geometry) -> Tensor:
    """Boxes ``[N, 4]`` of the canvas in the original picture, cut at its border."""
    original = geometry.to_original(boxes.reshape(-1, 2).flip(-1)).flip(-1).reshape(-1, 4)
    return clip(original, geometry.original_size)
