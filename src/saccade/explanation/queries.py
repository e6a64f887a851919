"""Where the queries of a detector look, and what of it counted: cross-attention, and attention times gradient.

Relevance: Chefer et al. 2021, arXiv 2103.15679, section 3 (encoder and decoder). Differs from the paper: in its
equation 10 the relevance of queries for each other is not transposed, so that the row of a query says what this query
gathered, from other queries too. Queries that look at points instead of at all cells (Zhu et al. 2020, arXiv
2010.04159) follow the same rules: a point counts for the cells around it, as bilinear sampling takes them.

T scores · B images · N heads · Q queries · K keys: cells, or points of all levels · L levels · P points · h, w grid
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError
from saccade.explanation.attribution import Attribution, ScoreFn
from saccade.explanation.boxscores import places_of
from saccade.explanation.record import Record, exact, recording
from saccade.types import AttentionSite, ExplainSpec, GridLayer, ImageBatch, QueryLayer, QueryLooks

Grid = tuple[int, int]


@dataclass(frozen=True)
class CrossAttention:
    """Where the query of an object looked, the mean over heads; the same for its class and for its sides.

    Attributes:
        depth: layer of the decoder, counted from 0; -1 is the last.
    """

    depth: int = -1

    name: ClassVar[str] = "cross_attention"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = True
    shares_forward: ClassVar[bool] = True

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the grid that queries look at; of points, on that of the finest map.

        Raises:
            ConfigError: where the decoder has no such layer.
        """
        looks = looks_of(spec)
        count = len(looks.layers)
        if not -count <= self.depth < count:
            raise ConfigError(f"the decoder has no layer {self.depth}", where="depth", expected=f"0 to {count - 1}")
        layer = looks.layers[self.depth]
        with recording(model, _points([layer]), [_site(layer.cross)], with_gradients=False) as record:
            record.run(images)
            queries = places_of(scores, record.outputs)
            weights = record.attention()[0].float()
            rows = _started(queries, weights.shape[-2]).to(weights)
            points = _seen_points(record, layer)
        grids = looks.grids(_canvas(images))
        return Attribution(_laid(_gathered(rows, weights[None], points, grids), grids))


def query_relevance(model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec) -> Attribution:
    """What each cell of the picture gave to the query that a score reads, on the grid that queries look at."""
    looks, grids = looks_of(spec), spec_grids(spec, images)
    sites = [*looks.encoder, *(_site(layer.own) for layer in looks.layers)]
    sites += [_site(layer.cross) for layer in looks.layers]
    parts: list[Tensor] = []
    with recording(model, _points(looks.layers), sites) as record:
        record.run(images)
        queries = places_of(scores, record.outputs)
        attention = record.attention()
        points = [_seen_points(record, layer) for layer in looks.layers]
        for gradients in record.gradients(scores, attention):
            counted = [
                (a.detach().float() * g.float()).clamp_min(0) for a, g in zip(attention, gradients, strict=True)
            ]  # [t, B, N, ...]
            done = sum(map(len, parts))
            start = _started(queries[done : done + len(counted[0])], attention[-1].shape[-2]).to(counted[0])
            depth = len(looks.layers)
            own = [matrix.mean(2) for matrix in counted[-2 * depth : -depth]]
            rows = asked_rows(own, start)
            cells = sum(
                _gathered(row, weights, place, grids)
                for row, weights, place in zip(rows, counted[-depth:], points, strict=True)
            )
            assert isinstance(cells, Tensor)
            parts.append(through_encoder(cells, [matrix.mean(2) for matrix in counted[: -2 * depth]]))
    return Attribution(_laid(torch.cat(parts), grids))


@exact()
def asked_rows(own: Sequence[Tensor], start: Tensor) -> list[Tensor]:
    """How much each query counts for the asked one where it looks at the picture, ``[..., Q]``, layer by layer.

    Args:
        own: what queries gave to each other in each layer, ``[..., Q, Q]``.
        start: ``[..., Q]`` 1 at the asked query.
    """
    identity = torch.eye(start.shape[-1], device=start.device, dtype=start.dtype)
    carried = identity.expand(own[0].shape)
    before = []
    for matrix in own:
        carried = carried + matrix @ carried
        before.append(_normalised(carried, identity))
    rows, row = [], start[..., None, :]
    for matrix, mixed in zip(reversed(own), reversed(before), strict=True):
        rows.append((row @ mixed)[..., 0, :])
        row = row + row @ matrix
    return rows[::-1]


@exact()
def through_encoder(cells: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Relevance of encoded cells ``[..., K]`` handed on to the cells that they were made of ``[..., K]``."""
    if not matrices:
        return cells
    total = torch.ones_like(cells)
    for matrix in matrices:
        total = total + (matrix @ total[..., None])[..., 0]
    gained = total - 1
    share = torch.where(gained > 0, cells / gained, 0.0)
    row = share
    for matrix in reversed(matrices):
        row = row + (row[..., None, :] @ matrix)[..., 0, :]
    return cells + row - share


def splat(points: Tensor, weights: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Weights of points laid on the finest grid, as bilinear sampling of each level reads its cells, ``[..., h w]``.

    A cell of a coarse level is shared out among the cells of the finest that it covers. What lies outside is lost.

    Args:
        points: ``[..., M, L, P, 2]`` x and y as shares of the canvas.
        weights: ``[..., M, L, P]``.
        grids: of the levels, finest first.
    """
    lead, total = weights.shape[:-3], None
    for level, (height, width) in enumerate(grids):
        places = points[..., level, :, :].expand(*weights.shape[:-2], weights.shape[-1], 2).float()
        given = weights[..., level, :].flatten(-2)  # [..., M * P]
        across, down = (places * places.new_tensor([width, height]) - 0.5).flatten(-3, -2).unbind(-1)
        cells = given.new_zeros(*lead, height * width)
        for row in (down.floor(), down.floor() + 1):
            for column in (across.floor(), across.floor() + 1):
                share = (1 - (down - row).abs()) * (1 - (across - column).abs())
                is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                place = (row * width + column).long().masked_fill(~is_inside, 0)
                cells.scatter_add_(-1, place, given * share * is_inside)
        spread = cells if level == 0 else _spread(cells, (height, width), grids[0])
        total = spread if total is None else total + spread
    assert total is not None
    return total


class Seen(NamedTuple):
    """Where one query looked, in every layer of the decoder.

    Attributes:
        points: ``[D, N, L, P, 2]`` x and y as shares of the canvas.
        weights: ``[D, N, L, P]``; those of one layer and head sum to 1.
    """

    points: Tensor
    weights: Tensor


def seen_points(model: nn.Module, images: ImageBatch, queries: Sequence[int], spec: ExplainSpec) -> list[Seen] | None:
    """The points of one picture at which each of some queries looked; None where queries look at all cells."""
    layers = spec.queries.layers if spec.queries else ()
    if not layers or any(layer.points is None for layer in layers):
        return None
    sites = [_site(layer.cross) for layer in layers]
    with recording(model, _points(layers), sites, with_gradients=False) as record:
        record.run(images)
        points = torch.stack([_seen_points(record, layer)[0] for layer in layers])  # type: ignore[index]
        weights = torch.stack([one[0] for one in record.attention()])  # [D, N, Q, L * P]
    weights = weights.reshape(*weights.shape[:-1], *points.shape[3:5])  # [D, N, Q, L, P]
    return [Seen(points[:, query].float(), weights[:, :, query].float()) for query in queries]


def looks_of(spec: ExplainSpec) -> QueryLooks:
    """Where queries look.

    Raises:
        ExplainError: where the model has none.
    """
    if spec.queries is None:
        remedy = "use method='layercam' or 'hirescam'"
        raise ExplainError("this model has no queries that look at the picture", remedy=remedy)
    return spec.queries


def spec_grids(spec: ExplainSpec, images: ImageBatch) -> Sequence[Grid]:
    """Cells of the maps that queries look at."""
    return looks_of(spec).grids(_canvas(images))


@exact()
def _gathered(rows: Tensor, weights: Tensor, points: Tensor | None, grids: Sequence[Grid]) -> Tensor:
    """What some queries gathered, ``[t, B, cells]``.

    Args:
        rows: ``[t, B, Q]`` how much each query counts.
        weights: ``[t or 1, B, N, Q, K]`` how much each query takes from each key.
        points: ``[B, Q, N, L, P, 2]`` where the keys are; None: they are the cells.
        grids: of the maps.
    """
    if points is None:
        return (rows[..., None, :] @ weights.mean(2))[..., 0, :]
    shares = rows[:, :, None, :, None] * weights / weights.shape[2]  # [t, B, N, Q, K]
    shares = shares.transpose(2, 3)
    shares = shares.reshape(*shares.shape[:-1], *points.shape[3:5])  # [t, B, Q, N, L, P]
    return splat(points.flatten(1, 2).expand(len(shares), *(-1,) * 5), shares.flatten(2, 3), grids)


def _normalised(carried: Tensor, identity: Tensor) -> Tensor:
    """Equations 8 and 9: what was gathered is as much as what a query began with."""
    gathered = carried - identity
    total = gathered.sum(-1, keepdim=True)
    return torch.where(total > 0, gathered / total, 0.0) + identity


def _started(queries: Tensor, count: int) -> Tensor:
    """``[T, B, Q]``: 1 at each asked query, 0 all over where there is none."""
    return F.one_hot(queries.clamp_min(0), count) * (queries >= 0)[..., None]


def _spread(cells: Tensor, grid: Grid, finest: Grid) -> Tensor:
    maps = cells.reshape(-1, 1, *grid)
    share = grid[0] * grid[1] / (finest[0] * finest[1])
    return (F.interpolate(maps, finest, mode="nearest") * share).reshape(*cells.shape[:-1], -1)


def _laid(cells: Tensor, grids: Sequence[Grid]) -> Tensor:
    height, width = grids[0]
    if cells.shape[-1] != height * width:
        raise ExplainError(
            f"{cells.shape[-1]} cells do not fill a grid of {height}x{width}",
            remedy="correct queries.grids in the model's explain_spec",
        )
    return cells.reshape(*cells.shape[:-1], height, width)


def _site(path: str) -> AttentionSite:
    return AttentionSite(path, 0, lambda canvas: canvas)


def _points(layers: Sequence[QueryLayer]) -> dict[str, GridLayer]:
    return {layer.points: GridLayer(layer.points) for layer in layers if layer.points is not None}


def _seen_points(record: Record, layer: QueryLayer) -> Tensor | None:
    return None if layer.points is None else record.all_seen()[layer.points].detach()


def _canvas(images: ImageBatch) -> Grid:
    return int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
