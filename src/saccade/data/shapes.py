"""The vocabulary of synthetic scenes: shapes, colours and textures as functions of coordinates.

A shape is decided at pixel centres and never blended with what is behind it, so its mask is exact.

h, w size of the picture
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Grid = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 70),
    "blue": (45, 90, 220),
    "yellow": (240, 205, 40),
    "purple": (145, 60, 180),
    "orange": (245, 130, 30),
    "cyan": (40, 190, 200),
    "pink": (245, 120, 170),
}
"""Saturated colours of objects; backgrounds are dull, so colour tells an object from its background."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "grey": (120, 120, 120),
    "brown": (120, 100, 80),
    "slate": (90, 105, 120),
    "sand": (170, 160, 135),
}
"""Dull colours of backgrounds."""


def _circle(right: Grid, down: Grid) -> Mask:
    return right**2 + down**2 < 1


def _square(right: Grid, down: Grid) -> Mask:
    return (abs(right) < 0.8) & (abs(down) < 0.8)


def _triangle(right: Grid, down: Grid) -> Mask:
    # Equilateral, in the unit circle, one corner up.
    return (down < 0.5) & (math.sqrt(3) * abs(right) - down < 1)


def _star(right: Grid, down: Grid) -> Mask:
    # Five points: the radius falls in a straight line from each tip (1) to the notch beside it (0.45).
    turn = np.mod(np.arctan2(right, -down) + math.pi / 5, 2 * math.pi / 5) - math.pi / 5
    away = np.hypot(right, down)
    along, across = away * np.cos(turn), away * abs(np.sin(turn))
    notch = 0.45 * math.cos(math.pi / 5), 0.45 * math.sin(math.pi / 5)
    is_inside: Mask = across * (1 - notch[0]) < notch[1] * (1 - along)
    return is_inside


def _cross(right: Grid, down: Grid) -> Mask:
    upright = (abs(right) < 0.3) & (abs(down) < 0.95)
    return upright | ((abs(down) < 0.3) & (abs(right) < 0.95))


def _ring(right: Grid, down: Grid) -> Mask:
    away = np.hypot(right, down)
    return (away < 1) & (away > 0.55)


SHAPES: dict[str, Callable[[Grid, Grid], Mask]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
"""Name -> whether a point (right, down) of the unit circle belongs to the shape."""


def _plain(right: Grid, down: Grid, generator: np.random.Generator) -> Grid:
    return np.zeros_like(right)


def _stripes(right: Grid, down: Grid, generator: np.random.Generator) -> Grid:
    angle = generator.random() * math.pi
    return (np.mod(right * math.cos(angle) + down * math.sin(angle) + generator.random(), 1) < 0.5).astype(float)


def _dots(right: Grid, down: Grid, generator: np.random.Generator) -> Grid:
    beside, below = np.mod(right + generator.random(), 1) - 0.5, np.mod(down + generator.random(), 1) - 0.5
    return (np.hypot(beside, below) < 0.32).astype(float)


def _checker(right: Grid, down: Grid, generator: np.random.Generator) -> Grid:
    shift = generator.random(2)
    parity: Grid = np.mod(np.floor(right * 1.6 + shift[0]) + np.floor(down * 1.6 + shift[1]), 2)
    return parity


def _noise(right: Grid, down: Grid, generator: np.random.Generator) -> Grid:
    grain: Grid = np.asarray(generator.random(right.shape))
    return grain


TEXTURES: dict[str, Callable[[Grid, Grid, np.random.Generator], Grid]] = {
    "plain": _plain,
    "striped": _stripes,
    "dotted": _dots,
    "checked": _checker,
    "grainy": _noise,
}
"""Name -> how dark a point is, in [0, 1]; coordinates count periods of the pattern."""


def inside(shape: str, size: tuple[int, int], centre: tuple[float, float], radius: float, angle: float) -> Mask:
    """The pixels ``[h, w]`` whose centres lie in a shape.

    Args:
        shape: its name.
        size: height and width of the picture.
        centre: y and x in pixels.
        radius: of the circle around the shape, in pixels.
        angle: by which it is turned clockwise, in radians.
    """
    down, right = _centres(size)
    down, right = (down - centre[0]) / radius, (right - centre[1]) / radius
    turned_right = right * math.cos(angle) + down * math.sin(angle)
    turned_down = down * math.cos(angle) - right * math.sin(angle)
    return SHAPES[shape](turned_right, turned_down)


def paint(
    colour: tuple[int, int, int], texture: str, size: tuple[int, int], period: float, generator: np.random.Generator
) -> Grid:
    """A picture ``[h, w, 3]`` filled with a textured colour; the dark parts are half as bright.

    Args:
        colour: RGB bytes.
        texture: its name.
        size: height and width.
        period: of the pattern, in pixels.
        generator: decides where the pattern begins and how it is turned.
    """
    down, right = _centres(size)
    dark = TEXTURES[texture](right / period, down / period, generator)
    shade: Grid = np.asarray(colour, dtype=np.float64) * (1 - 0.5 * dark[:, :, None])
    return shade


def _centres(size: tuple[int, int]) -> tuple[Grid, Grid]:
    down, right = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5, indexing="ij")
    return down, right
