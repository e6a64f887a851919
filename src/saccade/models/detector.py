"""Objects with boxes: the config, the raw candidates and the selection that all detectors share; each has its own file.

Every detector turns pictures into raw candidates (proposals, windows, grid cells, queries). ``select`` makes detections
of them: threshold, non-maximum suppression per class, the best of the picture. ``Detections.source`` says which
candidate each box was.

B batch · R raw candidates of one picture · N objects kept · K classes · H, W canvas
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.models.base import ModelConfig, OutputsT, VisionModel
from saccade.ops.boxes import batched_nms, clip, is_large, map_to_original
from saccade.ops.image import Preprocess
from saccade.types import BoxTarget, Detections, ImageBatch, TaskName

FIRST_LOOK = 10
"""Candidates that are looked at first, for each detection that may be kept."""
FURTHER_LOOK = 4
"""How many times as many are looked at where those were too few."""


def letterbox(side: int) -> Preprocess:
    """Pictures on a square canvas of ``side`` pixels, aspect ratio kept."""
    return Preprocess(size=(side, side), policy="letterbox")


def fitted(side: int) -> Preprocess:
    """Pictures whose longer side is ``side`` pixels, on a canvas no larger than they need; for models of any canvas."""
    return Preprocess(size=(side, side), policy="shorter")


@dataclass(frozen=True, kw_only=True)
class Selection(Config):
    """Which raw candidates become detections."""

    min_score: float = 0.05
    """Lowest score of a detection."""
    nms_iou: float = 0.5
    """Of two boxes of one class that overlap more than this, the likelier stays; 1 keeps all."""
    max_detections: int = 100
    """Most detections of one picture."""
    min_side: float = 0.0
    """Shortest side of a box, in pixels of the canvas."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1 or not 0 < self.nms_iou <= 1:
            raise ConfigError("min_score or nms_iou is out of range", where="selection", expected="in [0, 1]")
        if self.max_detections < 1 or self.min_side < 0:
            raise ConfigError("max_detections or min_side is out of range", where="selection")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(ModelConfig):
    """Base of the detectors' configs."""

    task: ClassVar[TaskName] = "detection"
    wants_mosaic: ClassVar[bool] = False
    """Whether the detector is known to learn best from four pictures in one."""
    num_classes: int = 80
    """Number of foreground classes; background is never one of them."""
    preprocess: Preprocess = field(default_factory=lambda: letterbox(320))
    """How pictures become pixels."""
    selection: Selection = field(default_factory=Selection)
    """Which raw candidates become detections."""


class Candidates(NamedTuple):
    """The raw candidates of one picture.

    Attributes:
        boxes: ``[R, K, 4]`` xyxy on the canvas, the box of each candidate as an object of each class; ``[R, 1, 4]``
            where all classes share one.
        scores: ``[R, K]`` in [0, 1].
        logits: ``[R, K]`` what the scores come from, for explanation: higher is likelier, differentiable.
    """

    boxes: Tensor
    scores: Tensor
    logits: Tensor


class MaskEvidence(NamedTuple):
    """The raw masks of one picture.

    Attributes:
        boxes: ``[N, 4]`` xyxy on the canvas, over which each mask is laid.
        labels: ``[N]`` int64.
        source: ``[N]`` int64, which candidate each belongs to.
        logits: ``[N, S, S]``, differentiable.
    """

    boxes: Tensor
    labels: Tensor
    source: Tensor
    logits: Tensor


class Origin(NamedTuple):
    """Where in the model a raw candidate comes from, for explanation.

    Attributes:
        words: the same for people.
        box: ``[4]`` xyxy on the canvas: the cell, or the proposal; None where it has no place.
        layer: the one layer of ``explain_spec`` that it reads; None where it may read all of them.
        reach: ``[4]`` xyxy on the canvas: it reads nothing of that layer outside of it, and no other candidate changes
            what it says; None where that does not hold.
    """

    words: str
    box: Tensor | None = None
    layer: str | None = None
    reach: Tensor | None = None


class Kept(NamedTuple):
    """What ``select`` keeps of one picture's candidates, likeliest first.

    Attributes:
        boxes: ``[N, 4]`` xyxy on the canvas, cut at the picture's border.
        scores: ``[N]``.
        labels: ``[N]`` int64.
        source: ``[N]`` int64, indices of the candidates.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    source: Tensor


class Detector(VisionModel[OutputsT, BoxTarget, Detections]):
    """Base of the detectors: a subclass says what its raw candidates are, and how it learns."""

    config: DetectorConfig

    @abc.abstractmethod
    def candidates(self, outputs: OutputsT, images: ImageBatch) -> list[Candidates]:
        """The raw candidates of each picture, before any threshold; gradients pass."""

    def mask_evidence(self, outputs: OutputsT, images: ImageBatch) -> list[MaskEvidence] | None:
        """The raw masks of each picture, for explanation; None of models that do not cut objects out."""
        return None

    def boxes_only(self) -> Self:
        """The same model, all weights shared, without what only masks need: it has no ``mask_evidence``."""
        return self

    def origin(self, outputs: OutputsT, image: int, source: int) -> Origin:
        """Where the candidate ``source`` of a picture of the batch comes from."""
        return Origin(f"candidate {source}")

    def postprocess(self, outputs: OutputsT, images: ImageBatch) -> list[Detections]:
        """The objects of each picture, in the pixels of the original."""
        found = []
        for candidates, size, geometry in zip(
            self.candidates(outputs, images), images.sizes, images.geometries, strict=True
        ):
            kept = select(candidates, size, self.config.selection)
            boxes = map_to_original(kept.boxes, geometry)
            found.append(Detections(boxes, kept.scores, kept.labels, kept.source, self.classes))
        return found


@torch.no_grad()
def select(candidates: Candidates, size: tuple[int, int], selection: Selection) -> Kept:
    """Threshold, suppression per class, and the best of what is left.

    Only a likelier box can suppress another, so the likeliest candidates are looked at first, and more of them only
    where too few stay: a low threshold, which hundreds of thousands pass, costs little.

    Args:
        candidates: of one picture.
        size: ``(h, w)`` of the picture on the canvas; boxes are cut there.
        selection: the thresholds.
    """
    scores = candidates.scores.float().flatten()
    passing = torch.nonzero(scores >= selection.min_score)[:, 0]
    count = FIRST_LOOK * selection.max_detections
    while True:
        places = _likeliest(scores, passing, count)
        kept = _survivors(candidates, scores, places, size, selection)
        if len(kept.scores) == selection.max_detections or len(places) == len(passing):
            return kept
        count *= FURTHER_LOOK


def _likeliest(scores: Tensor, places: Tensor, count: int) -> Tensor:
    """The places of the ``count`` highest scores and of all that equal the last of them, in their old order."""
    if len(places) <= count:
        return places
    values = scores[places]
    return places[values >= values.topk(count, sorted=False).values.min()]


def _survivors(
    candidates: Candidates, scores: Tensor, places: Tensor, size: tuple[int, int], selection: Selection
) -> Kept:
    """What stays of the candidates at ``places`` of the flat ``scores``."""
    num_classes = candidates.scores.shape[1]
    source, labels = places // num_classes, places % num_classes
    box_of = labels if candidates.boxes.shape[1] > 1 else torch.zeros_like(labels)
    boxes = clip(candidates.boxes[source, box_of].float(), size)
    values = scores[places]
    keep = torch.nonzero(is_large(boxes, max(selection.min_side, 1e-3)))[:, 0]
    boxes, values, source, labels = boxes[keep], values[keep], source[keep], labels[keep]
    if selection.nms_iou < 1:
        order = batched_nms(boxes, values, labels, selection.nms_iou)
    else:
        order = values.argsort(descending=True, stable=True)
    order = order[: selection.max_detections]
    return Kept(boxes[order], values[order], labels[order], source[order])


def learnable(targets: Sequence[BoxTarget]) -> list[BoxTarget]:
    """The targets without crowds: what a loss may look at."""
    return [target.without_crowds() for target in targets]
