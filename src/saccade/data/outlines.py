"""Pixels as polygons along their edges, and several polygons as one: for formats that say one outline per object.

The corners lie between pixels, so COCO's way of filling gives back exactly the pixels. Parts of one object are joined
by bridges without width, which are walked there and back and so cover nothing.

h, w picture
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.data.cocofile import Polygons

_Corner = tuple[int, int]


class Traced(NamedTuple):
    """The outlines of a mask.

    Attributes:
        parts: one polygon around each connected part.
        num_holes: how many holes were left aside.
    """

    parts: Polygons
    num_holes: int


def trace(mask: NDArray[np.bool_]) -> Traced:
    """The outlines of pixels ``[h, w]``; parts that touch at a corner only are two parts."""
    parts: Polygons = []
    num_holes = 0
    for loop in _loops(mask):
        across, down = np.array(loop, dtype=np.float64).T
        area = float(np.sum(across * np.roll(down, -1) - np.roll(across, -1) * down)) / 2
        if area > 0:
            parts.append([float(value) for corner in loop for value in corner])
        else:
            num_holes += 1
    return Traced(parts, num_holes)


def _loops(mask: NDArray[np.bool_]) -> list[list[_Corner]]:
    """Closed walks ``[(x, y), ...]`` along the edges with covered pixels on the right hand (y points down)."""
    following = _edges(mask)
    loops = []
    while following:
        start = here = next(iter(following))
        there = following[here][0]
        step = (0, 0)
        loop: list[_Corner] = []
        while True:
            following[here].remove(there)
            if not following[here]:
                del following[here]
            move = (there[0] - here[0], there[1] - here[1])
            if move != step:  # straight on, the corner between says nothing
                loop.append(here)
            here, step = there, move
            # Where two edges leave a corner, the one that turns right stays with the same part.
            right = (here[0] - step[1], here[1] + step[0])
            choices = following.get(here, [])
            if here == start and right not in choices:
                break
            there = right if right in choices else choices[0]
        loops.append(_without_first(loop))
    return loops


def _edges(mask: NDArray[np.bool_]) -> dict[_Corner, list[_Corner]]:
    """Corner -> the corners that the edges from there lead to."""
    inner = np.pad(mask, 1)
    core = inner[1:-1, 1:-1]
    sides = (
        (core & ~inner[:-2, 1:-1], (0, 0), (1, 0)),  # upper edges, walked to the right
        (core & ~inner[1:-1, 2:], (1, 0), (1, 1)),
        (core & ~inner[2:, 1:-1], (1, 1), (0, 1)),
        (core & ~inner[1:-1, :-2], (0, 1), (0, 0)),
    )
    following: dict[_Corner, list[_Corner]] = {}
    for is_edge, start, end in sides:
        for row, column in np.argwhere(is_edge).tolist():
            tail = (column + start[0], row + start[1])
            following.setdefault(tail, []).append((column + end[0], row + end[1]))
    return following


def _without_first(loop: list[_Corner]) -> list[_Corner]:
    """The walk without its first corner where that lies on a straight edge."""
    if len(loop) > 2:
        (before_x, before_y), (x, y), (after_x, after_y) = loop[-1], loop[0], loop[1]
        if (x - before_x) * (after_y - y) == (y - before_y) * (after_x - x):
            return loop[1:]
    return loop


def join_parts(parts: Sequence[Sequence[float]]) -> list[float]:
    """One polygon that covers what the parts cover, as long as they do not overlap."""
    first = parts[0]
    joined = list(first)
    for part in parts[1:]:
        joined += [*first[:2], *part, *part[:2]]
    # The last bridge is closed by the polygon itself; between others the walk returns to the first corner.
    return joined
