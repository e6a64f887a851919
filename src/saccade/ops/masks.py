"""Masks and label maps as plain tensors: their connected parts, and boxes around them.

h, w picture · N parts
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Component(NamedTuple):
    """One connected part of a label map.

    Attributes:
        label: its class.
        inside: ``[bottom - top, right - left]`` bool, its pixels within the box.
        box: ``(left, top, right, bottom)`` in pixels, tight.
        area: pixels.
    """

    label: int
    inside: Tensor
    box: tuple[int, int, int, int]
    area: int

    def mask(self, size: tuple[int, int]) -> Tensor:
        """Its pixels in the whole picture, ``[h, w]`` bool."""
        whole = torch.zeros(size, dtype=torch.bool)
        left, top, right, bottom = self.box
        whole[top:bottom, left:right] = self.inside
        return whole


def connected_components(labels: Tensor, skip: frozenset[int] = frozenset(), most: int = 1000) -> list[Component]:
    """The parts of a label map in which every pixel touches another of its class by a side; largest first.

    Args:
        labels: ``[h, w]`` integers.
        skip: classes that are left out, such as a background.
        most: how many parts are returned; the smallest go first.
    """
    from scipy import ndimage  # takes a second to import

    values = labels.cpu().numpy()
    found: list[Component] = []
    for label in torch.unique(labels).tolist():
        if label in skip:
            continue
        numbered, _ = ndimage.label(values == label)
        areas = torch.bincount(torch.from_numpy(numbered).flatten().long()).tolist()
        for number, place in enumerate(ndimage.find_objects(numbered), 1):
            rows, columns = place
            box = (columns.start, rows.start, columns.stop, rows.stop)
            inside = torch.from_numpy(numbered[place] == number)
            found.append(Component(int(label), inside, box, areas[number]))
    # Equal areas in reading order, so that a number always means the same part.
    found.sort(key=lambda part: (-part.area, part.box[1], part.box[0], part.label))
    return found[:most]
