"""Which part of a detector an object came from: the cell, the proposal or the query, and where that looked.

D layers of a decoder · N heads · L levels · P points
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade.explanation.boxes import Found, Watched
from saccade.explanation.boxscores import AskedBox
from saccade.explanation.queries import Seen, seen_points
from saccade.ops.boxes import map_to_original
from saccade.types import ExplainSpec, Geometry, ImageBatch


@dataclass(frozen=True, eq=False)
class Fired:
    """What an object came from; all places are in the pixels of the original picture.

    Attributes:
        words: "query 17", "the point in row 4, column 7 of the map of stride 16".
        box: ``[4]`` xyxy of the object.
        cell: ``[4]`` xyxy of the grid cell or the proposal; None where there is no such thing.
        points: ``[D, N, L, P, 2]`` x and y of the points at which a query looked, layer by layer; None where it looked
            at all cells, or is none.
        weights: ``[D, N, L, P]`` how much each of them counted; those of one layer and head sum to 1.
    """

    words: str
    box: Tensor
    cell: Tensor | None = None
    points: Tensor | None = None
    weights: Tensor | None = None

    def drawn(self, image: Tensor) -> Tensor:
        """The picture ``[3, h, w]`` uint8 with all of it drawn, ``[3, H, W]`` uint8; small pictures are enlarged."""
        from saccade import render  # loaded only when something is drawn

        last = (None, None) if self.points is None or self.weights is None else (self.points[-1], self.weights[-1])
        return render.fired_overlay(image, self.box, self.cell, *last)

    def about(self) -> dict[str, Any]:
        """Everything but the points, as plain data for JSON."""
        return {"words": self.words, "cell": None if self.cell is None else self.cell.tolist()}

    def arrays(self) -> dict[str, Any]:
        """The points and their weights as arrays by name; none where there are none."""
        parts = {"points": self.points, "point_weights": self.weights}
        return {name: values.numpy() for name, values in parts.items() if values is not None}


def fired_parts(
    model: Watched, found: Found, images: ImageBatch, asked: Sequence[AskedBox], spec: ExplainSpec
) -> list[Fired]:
    """What each asked object of one picture came from.

    Args:
        model: the detector.
        found: what it says of the picture.
        images: the picture.
        asked: the objects.
        spec: what the model declares about itself.
    """
    geometry = images.geometries[0]
    seen: Sequence[Seen | None] = seen_points(model, images, [one.source for one in asked], spec) or [
        None for _ in asked
    ]
    canvas = torch.tensor([images.pixels.shape[-1], images.pixels.shape[-2]], dtype=torch.float32)
    parts = []
    for one, look in zip(asked, seen, strict=True):
        origin = model.detector.origin(found.outputs, 0, one.source)
        cell = None if origin.box is None else _original(origin.box.cpu().float(), geometry)
        points, weights = _points(look, canvas, geometry)
        parts.append(Fired(origin.words, _original(one.box.cpu(), geometry), cell, points, weights))
    return parts


def _points(look: Seen | None, canvas: Tensor, geometry: Geometry) -> tuple[Tensor | None, Tensor | None]:
    if look is None:
        return None, None
    places = look.points.cpu() * canvas
    return geometry.to_original(places.flip(-1)).flip(-1), look.weights.cpu()


def _original(box: Tensor, geometry: Geometry) -> Tensor:
    return map_to_original(box[None], geometry)[0]
