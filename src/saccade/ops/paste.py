"""Masks of fixed size laid back over the boxes that they were read from.

He et al. 2017, arXiv 1703.06870. One cell of nothing is put around each mask, and the widened box is rounded to whole
pixels, as published networks are evaluated.

N objects · S side of a mask · h, w picture
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.types import Masks


@torch.no_grad()
def paste(scores: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Masks:
    """Probabilities of cells to pixels of a picture, bilinear between the cells' centres.

    Args:
        scores: ``[N, S, S]`` how likely each cell of each box is covered.
        boxes: ``[N, 4]`` xyxy in the picture.
        size: ``(h, w)`` of the picture; what lies beyond it is cut.
        threshold: pixels above it are covered.
    """
    if not len(scores):
        return Masks.none(size)
    side = int(scores.shape[-1])
    padded = F.pad(scores.float(), (1, 1, 1, 1))[:, None]
    middle = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    reach = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
    frames = torch.cat([middle - reach, middle + reach], dim=1).to(torch.int64).tolist()
    corners, crops = [], []
    for mask, (left, top, right, bottom) in zip(padded, frames, strict=True):
        shape = (max(bottom - top + 1, 1), max(right - left + 1, 1))
        laid = F.interpolate(mask[None], size=shape, mode="bilinear", align_corners=False)[0, 0]
        first_row, first_column = max(-top, 0), max(-left, 0)
        rows, columns = max(min(shape[0], size[0] - top), 0), max(min(shape[1], size[1] - left), 0)
        crops.append(laid[first_row:rows, first_column:columns] > threshold)
        corners.append((min(max(top, 0), size[0]), min(max(left, 0), size[1])))
    return Masks(size, torch.tensor(corners, dtype=torch.int64), tuple(crops))
