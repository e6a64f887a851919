"""All objects of one picture explained at once, for little more than the pass that finds them.

Three things make it cheap. One pass records all layers that objects are read from, so there is none per level. Objects
that look at disjoint parts of a map (``Detector.origin`` says at which) share one sweep of gradients: the gradient of
their sum falls apart into those of each. And where candidates pass row by row (``ExplainSpec.rows``), what stands
behind the rows is swept once for all of them.

N objects · C channels · h, w cells of a map · H, W canvas
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saccade.data.decode import read_image
from saccade.errors import ConfigError, ExplainError, InputError
from saccade.explanation.adapt import model_device
from saccade.explanation.attribution import ScoreFn
from saccade.explanation.boxes import Found, Watched
from saccade.explanation.boxquestions import BoxQuestions
from saccade.explanation.boxscores import SIDES, AskedBox, DetectionScore, Side, SideScore
from saccade.explanation.cam import GradCAM, HiResCAM, LayerCAM, grid_layer
from saccade.explanation.explain import Subject, blank_reason, manifest
from saccade.explanation.faithfulness import negative_shares
from saccade.explanation.fired import Fired
from saccade.explanation.heatmap import Heatmap
from saccade.explanation.methods import method as named_method
from saccade.explanation.record import Record, exact, recording
from saccade.models.detector import Detector, Origin
from saccade.ops.boxes import map_to_original
from saccade.ops.image import to_original
from saccade.types import Detections, Geometry, GridLayer, ImageBatch, Rows

ROWS = "rows"
"""Name under which the rows of all candidates are recorded, which no layer has."""

AT_ONCE = 12
"""Objects per batch of gradients where they cannot share a sweep; more only move memory."""

Method = GradCAM | HiResCAM | LayerCAM


class Window(NamedTuple):
    """Cells of a map: rows ``top`` to ``bottom`` and columns ``left`` to ``right``, the last ones not included."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True, eq=False)
class _Maps:
    """Evidence of some objects at one layer.

    Attributes:
        values: ``[n, h, w]``.
        negative: ``[n]``.
        members: which objects.
        layer: its name.
    """

    values: Tensor
    negative: Tensor
    members: list[int]
    layer: str


def explain_boxes(
    model: Detector[Any] | Subject,
    image: Any,
    of: Detections | None = None,
    *,
    side: Side | None = None,
    method: str = "auto",
    layer: str = "auto",
) -> list[Heatmap]:
    """One heat map per object of a picture, without verdicts; each equals that of ``explain`` at the same layer.

    Args:
        model: a detector, or a ``Subject`` where more calls will follow; left as it is.
        image: path, bytes, PIL picture, uint8 array or tensor.
        of: objects that the model found in this picture; None: those it finds now.
        side: explain where this side lies, and not the class.
        method: ``gradcam``, ``hirescam`` or ``layercam``; ``auto`` is LayerCAM of a class, HiResCAM of a side.
        layer: one layer for all; ``auto`` is the level that each object was read from, and ``final`` where a model has
            no such levels, even where ``explain`` would read an earlier layer, which costs far more.

    Raises:
        InputError: where an object is not found any more.
        ConfigError: for a method that this does not do.
    """
    subject = model if isinstance(model, Subject) else Subject(model)
    if not isinstance(subject.model, Watched):
        raise InputError("this model finds no objects", where="model", remedy="use saccade.explain")
    chosen = _method(method, side)
    picture = read_image(image)
    device, dtype = model_device(subject.model)
    images = subject.model.preprocess([picture]).to(device, dtype).channels_last()
    spec = subject.spec
    names = list(spec.levels) if layer == "auto" and spec.levels else ["final" if layer == "auto" else layer]
    layers = {name: grid_layer(spec, name) for name in names}
    if layer == "auto" and spec.rows:
        layers[ROWS] = GridLayer(spec.rows.path)
    with recording(subject.model, layers) as record:
        found: Found = record.run(images)
        asked = _Objects(subject.model, found, images, of, side)
        if not len(asked):
            return []
        parts = _local(record, asked, chosen, spec.rows) if len(layers) > 1 else _dense(record, asked, chosen, names[0])
    return _heatmaps(subject, images, picture, asked, chosen, parts)


def _method(name: str, side: Side | None) -> Method:
    if side is not None and side not in SIDES:
        raise InputError(f"{side!r} is no side", where="side", expected=", ".join(SIDES))
    if name == "auto":
        return LayerCAM() if side is None else HiResCAM()
    chosen = named_method(name)
    if not isinstance(chosen, GradCAM | HiResCAM | LayerCAM):
        expected = "gradcam, hirescam or layercam"
        raise ConfigError(f"{name!r} cannot be shared by objects", where="method", expected=expected)
    return chosen


class _Objects:
    """The objects that are asked about, with their scores ``[N]`` and where they come from.

    Args:
        model: the detector.
        found: what it says of the picture.
        images: the picture.
        of: objects found earlier; None: those found now.
        side: which side is asked about; None: the class.
    """

    def __init__(
        self, model: Watched, found: Found, images: ImageBatch, of: Detections | None, side: Side | None
    ) -> None:
        questions = BoxQuestions(model, found, images, None)
        self.given = questions.detections if of is None else of
        self.boxes, self.sources = questions.located(self.given)
        self.side, self.classes = side, model.classes
        candidates = found.candidates[0]
        labels = self.given.labels.to(self.sources)
        if side is None:
            self.totals = candidates.logits[self.sources, labels].float()
        else:
            column = labels if candidates.boxes.shape[1] > 1 else torch.zeros_like(labels)
            self.totals = candidates.boxes[self.sources, column, SIDES.index(side)].float()
        self.origins: list[Origin] = [model.detector.origin(found.outputs, 0, one) for one in self.sources.tolist()]

    def __len__(self) -> int:
        return len(self.sources)

    def score(self, index: int) -> ScoreFn:
        """What is asked about an object, for the manifest, which does not need its pixels."""
        none = torch.zeros(0, 0, dtype=torch.bool)
        asked = AskedBox(self.boxes[index], int(self.given.labels[index]), int(self.sources[index]), none)
        return DetectionScore(asked) if self.side is None else SideScore(asked, self.side)

    def words(self, index: int) -> str:
        """The question about an object, as ``explain`` words it."""
        label = int(self.given.labels[index])
        name = f"{self.classes[label]} {float(self.given.scores[index]):.2f} (box {index})"
        return name if self.side is None else f"{self.side} side of {name}"


def _local(record: Record, asked: _Objects, chosen: Method, rows: Rows | None) -> list[_Maps]:
    """Evidence at the level that each object was read from; disjoint objects share a sweep."""
    seen, canvas = record.all_seen(), record.canvas
    swept = None if rows is None else _swept(record, asked, seen.pop(ROWS))
    parts = []
    for layer in dict.fromkeys(origin.layer for origin in asked.origins):
        members = [index for index, origin in enumerate(asked.origins) if origin.layer == layer]
        if layer is None:
            raise ExplainError("an object is of no level", remedy="name a layer")
        maps = record.grid(layer)[0]
        grid = (int(maps.shape[1]), int(maps.shape[2]))
        windows = {index: _window(asked.origins[index], grid, canvas) for index in members}
        values, negative = maps.new_zeros(len(members), *grid), maps.new_zeros(len(members))
        for group in _apart(windows):
            total, weights = asked.totals[group].sum(), None
            if swept is not None and rows is not None:
                total = rows.again(seen, record.outputs.outputs, asked.sources[group])
                weights = swept[group]
            with exact():
                (gradient,) = torch.autograd.grad(total, [seen[layer]], weights, retain_graph=rows is None)
            for index in group:
                place = members.index(index)
                values[place], negative[place] = _within(chosen, maps, gradient[0].float(), windows[index])
        parts.append(_Maps(values, negative, members, layer))
    return parts


def _swept(record: Record, asked: _Objects, rows: Tensor) -> Tensor:
    """The gradient of each object's score at its own row ``[R, ...]``, ``[N, ...]``."""
    swept = rows.new_zeros(len(asked), *rows.shape[1:])
    left = [*range(len(asked))]
    while left:
        # Two classes of one candidate share a row, so they take turns.
        first = {int(asked.sources[index]): index for index in reversed(left)}
        turn = sorted(first.values())
        ((gradient,),) = record.gradients_of(asked.totals[turn].sum()[None], [rows])
        swept[turn] = gradient[0, asked.sources[turn]]
        left = [index for index in left if index not in set(turn)]
    return swept


@exact()
def _within(chosen: Method, maps: Tensor, gradient: Tensor, window: Window) -> tuple[Tensor, float]:
    """The evidence ``[h, w]`` of an object whose gradient ``[C, h, w]`` is all in a window, and its negative share."""
    rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
    own = gradient[:, rows, columns]
    if isinstance(chosen, GradCAM):
        weights = own.sum(dim=(1, 2)) / (maps.shape[1] * maps.shape[2])
        values = torch.einsum("c,chw->hw", weights, maps)
        return values, float(negative_shares(values))
    values = maps.new_zeros(maps.shape[1:])
    values[rows, columns] = chosen.combine(maps[None, :, rows, columns], own[None, None])[0, 0]
    return values, float(negative_shares(values))


@exact()
def _dense(record: Record, asked: _Objects, chosen: Method, layer: str) -> list[_Maps]:
    """Evidence at one layer that every object may read all of."""
    maps = record.grid(layer)
    parts = []
    for (gradients,) in record.gradients_of(asked.totals, [record.all_seen()[layer]], AT_ONCE):
        parts.append(chosen.combine(maps, record.as_grid(layer, gradients))[:, 0])
    values = torch.cat(parts)
    return [_Maps(values, negative_shares(values), [*range(len(asked))], layer)]


def _window(origin: Origin, grid: tuple[int, int], canvas: tuple[int, int]) -> Window:
    """The cells that a candidate reads; all where that is not known."""
    if origin.reach is None:
        return Window(0, grid[0], 0, grid[1])
    left, top, right, bottom = origin.reach.tolist()
    (first, last), (start, end) = (
        (
            min(max(math.floor(low * cells / side), 0), cells - 1),
            min(max(math.ceil(high * cells / side), 1), cells),
        )
        for low, high, cells, side in ((top, bottom, grid[0], canvas[0]), (left, right, grid[1], canvas[1]))
    )
    return Window(first, max(last, first + 1), start, max(end, start + 1))


def _apart(windows: dict[int, Window]) -> list[list[int]]:
    """Objects in groups whose windows do not touch; the largest choose first."""
    groups: list[list[int]] = []
    for index in sorted(windows, key=lambda index: -_area(windows[index])):
        for group in groups:
            if all(_is_apart(windows[index], windows[other]) for other in group):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _area(window: Window) -> int:
    return (window.bottom - window.top) * (window.right - window.left)


def _is_apart(one: Window, other: Window) -> bool:
    return one.bottom <= other.top or other.bottom <= one.top or one.right <= other.left or other.right <= one.left


@exact()
def _heatmaps(
    subject: Subject, images: ImageBatch, picture: Tensor, asked: _Objects, chosen: Method, parts: Sequence[_Maps]
) -> list[Heatmap]:
    canvas, geometry = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1])), images.geometries[0]
    boxes = map_to_original(asked.boxes, geometry)
    regions = _regions(asked.boxes, canvas, images)
    heatmaps: dict[int, Heatmap] = {}
    for part in parts:
        values = part.values if chosen.is_signed else part.values.clamp_min(0)
        if not values.isfinite().all():
            raise ExplainError(f"method {chosen.name!r} gave values that are not finite", remedy="try float32 weights")
        original, seen = to_original(values, canvas, geometry)
        explainer = replace(chosen, layer=part.layer)
        for place, index in enumerate(part.members):
            origin = asked.origins[index]
            cell = None if origin.box is None else map_to_original(origin.box.cpu().float()[None], geometry)[0]
            heatmaps[index] = Heatmap(
                map=original[place].cpu(),
                seen=seen.cpu(),
                image=picture,
                is_signed=chosen.is_signed,
                is_class_agnostic=chosen.is_class_agnostic,
                name=chosen.name,
                method=repr(explainer),
                of=asked.words(index),
                score=float(asked.totals[index].detach()),
                layer=part.layer,
                negative=float(part.negative[place]),
                blank=blank_reason(values[place], float(part.negative[place])),
                region=regions[index],
                fired=Fired(origin.words, boxes[index], cell),
                manifest=manifest(subject, explainer, images, asked.score(index), part.layer),
            )
    return [heatmaps[index] for index in range(len(asked))]


def _regions(boxes: Tensor, canvas: tuple[int, int], images: ImageBatch) -> Tensor:
    """The pixels ``[N, h, w]`` bool of the original picture that boxes ``[N, 4]`` on the canvas touch by half."""
    left, top, right, bottom = boxes.T
    # A box is rows times columns, and so is its way back to the original pixels.
    down, across = (
        _axis_to_original(_touched(low, high, canvas[axis]), images.geometries[0], axis)
        for axis, low, high in ((0, top, bottom), (1, left, right))
    )
    # One box at a time stays in the cache; all at once are a hundred megabytes of products.
    return torch.stack([torch.outer(*pair) >= 0.5 for pair in zip(down, across, strict=True)])


def _axis_to_original(values: Tensor, geometry: Geometry, axis: int) -> Tensor:
    """Values ``[N, side]`` along one axis of the canvas, in the pixels of the original, ``[N, n]``."""
    one = Geometry(
        (geometry.original_size[axis], 1), scale=(geometry.scale[axis], 1.0), offset=(geometry.offset[axis], 0)
    )
    return to_original(values[..., None], (int(values.shape[1]), 1), one)[0][..., 0]


def _touched(low: Tensor, high: Tensor, side: int) -> Tensor:
    """``[N, side]`` 1 for the pixels of one axis that an interval touches."""
    places = torch.arange(side)
    first = low.floor().clamp_min(0)[:, None]
    last = torch.maximum(high.ceil(), low.floor() + 1).clamp_min(0)[:, None]
    return ((places >= first) & (places < last)).float()
