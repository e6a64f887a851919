"""What an object came from, drawn on its picture: the grid cell or proposal, and the points at which a query looked.

h, w picture · H, W the picture as drawn · N heads · L levels · P points
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saccade.ops.palette import OKABE_ITO
from saccade.render.boxes import draw_box, drawing_scale, line_width, resized, rgb
from saccade.render.heat import check_image

BOX_COLOUR, CELL_COLOUR = "#F2F2F2", "#F0E442"
LEVEL_COLOURS = tuple(OKABE_ITO[:6])
"""Of points on maps, the finest map first."""


def fired_overlay(
    image: Tensor,
    box: Tensor,
    cell: Tensor | None = None,
    points: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """An object with what it came from, ``[3, H, W]`` uint8: its box white, cell or proposal yellow, points as discs.

    The area of a disc is the weight of its point, its colour the map that the point is of.

    Args:
        image: ``[3, h, w]`` uint8.
        box: ``[4]`` xyxy in the pixels of the picture, as all that follows.
        cell: ``[4]`` xyxy.
        points: ``[N, L, P, 2]`` x and y.
        weights: ``[N, L, P]``.

    Raises:
        InputError: where the picture is none.
    """
    check_image(image)
    scale = drawing_scale((int(image.shape[1]), int(image.shape[2])))
    canvas = resized(image, scale)
    width = line_width(canvas)
    if cell is not None:
        draw_box(canvas, (cell * scale).tolist(), _paint(CELL_COLOUR), width, is_dashed=False)
    draw_box(canvas, (box * scale).tolist(), _paint(BOX_COLOUR), width, is_dashed=cell is not None)
    if points is not None and weights is not None:
        _draw_points(canvas, points * scale, weights)
    return canvas.round().clamp(0, 255).to(torch.uint8)


def _draw_points(canvas: Tensor, points: Tensor, weights: Tensor) -> None:
    """The weightiest disc covers a thousandth of the picture; the lightest are drawn first."""
    largest = math.sqrt(canvas.shape[1] * canvas.shape[2] / 1000 / math.pi)
    levels = torch.arange(points.shape[1])[None, :, None].expand(weights.shape).flatten()
    shares = (weights / weights.max().clamp_min(1e-12)).flatten()
    places = points.flatten(0, -2)
    for index in shares.argsort().tolist():
        radius = max(largest * math.sqrt(float(shares[index])), 1.0)
        paint = _paint(LEVEL_COLOURS[int(levels[index]) % len(LEVEL_COLOURS)])
        column, row = places[index].tolist()
        _fill_disc(canvas, row, column, radius + 1, torch.zeros(3), 0.5)
        _fill_disc(canvas, row, column, radius, paint, 0.9)


def _fill_disc(canvas: Tensor, row: float, column: float, radius: float, paint: Tensor, opacity: float) -> None:
    """Pixels are painted by how far within the disc their middle lies."""
    (top, bottom), (left, right) = (
        (min(max(math.floor(at - radius - 1), 0), size), min(max(math.ceil(at + radius + 1), 0), size))
        for at, size in ((row, int(canvas.shape[1])), (column, int(canvas.shape[2])))
    )
    down = torch.arange(top, bottom) + 0.5 - row
    across = torch.arange(left, right) + 0.5 - column
    distance = (down[:, None].square() + across[None].square()).sqrt()
    share = opacity * (radius + 0.5 - distance).clamp(0, 1)
    part = canvas[:, top:bottom, left:right]
    part += share * (paint[:, None, None] - part)


def _paint(colour: str) -> Tensor:
    return torch.tensor(rgb(colour), dtype=torch.float32)
