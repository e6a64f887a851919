"""One object: which class, and where. The first step from classification to detection.

Class scores and four numbers for a box come of one backbone and learn together (Sermanet et al. 2013, arXiv 1312.6229,
with a softmax, and one box that all classes share). The multi-task loss is the sum of the softmax loss of the class and
a loss of the box: squared (L2) or absolute (L1) differences of centre and sides, or the generalised IoU (Rezatofighi et
al. 2019, arXiv 1902.09630).

Where a picture holds several objects it learns from the largest; a picture without objects takes no part in the loss.
The model always finds exactly one object.

B batch · K classes · C width of the last map · G cells per side that the box is read from · H, W canvas
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.timm import TimmConfig
from saccade.errors import ConfigError
from saccade.losses import cross_entropy
from saccade.models.detector import Candidates, Detector, DetectorConfig, Selection, learnable, letterbox
from saccade.nn.mlp import in_float32
from saccade.ops.boxes import areas, from_centres, generalized_iou, paired_iou, to_centres
from saccade.registry import register
from saccade.types import BoxTarget, ExplainSpec, GridLayer, ImageBatch, LinearHead, Losses

BoxLoss = Literal["l1", "l2", "giou"]


@dataclass(frozen=True, kw_only=True)
class LocalizerConfig(DetectorConfig):
    """A localiser: what sees, how the box is read, what it learns from."""

    kind: Literal["localizer"] = "localizer"
    backbone: TimmConfig = field(default_factory=TimmConfig)
    """What turns pixels into maps; the last one is read."""
    grid: int = 4
    """G: the box is read from the map averaged to so many cells per side; 1 forgets where in the map anything was."""
    box_loss: BoxLoss = "l1"
    """Of centre and sides as shares of the canvas, absolute (``l1``) or squared (``l2``) and summed; or 1 - GIoU."""
    box_weight: float = 5.0
    """Weight of the box's loss; that of the class is 1."""
    selection: Selection = field(default_factory=lambda: Selection(min_score=0.0, max_detections=1))
    """The one box, whatever its score."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid < 1 or self.box_weight < 0:
            raise ConfigError("grid or box_weight is out of range", where="localizer", expected="at least 1, 0")

    def build(self) -> Localizer:
        """The localiser, with random weights."""
        return Localizer(self)


class LocalizerOutputs(NamedTuple):
    """Raw outputs.

    Attributes:
        logits: ``[B, K]``.
        shares: ``[B, 4]`` float32, centre x, centre y, width, height as shares of the canvas, in (0, 1).
        canvas: ``[2]`` int64, H and W.
    """

    logits: Tensor
    shares: Tensor
    canvas: Tensor


class Localizer(Detector[LocalizerOutputs]):
    """Backbone, a linear layer for the class on the mean of the last map, one for the box on a few cells of it."""

    config: LocalizerConfig

    def __init__(self, config: LocalizerConfig) -> None:
        super().__init__(config)
        self.backbone = config.backbone.build()
        width = self.backbone.channels[-1]
        self.head = nn.Linear(width, config.num_classes)
        self.box = nn.Linear(width * config.grid**2, 4)

    def forward(self, images: ImageBatch, targets: Sequence[BoxTarget] | None = None) -> LocalizerOutputs:
        """One pass; targets change nothing."""
        maps = self.backbone(images.pixels).maps[-1]
        cells = F.adaptive_avg_pool2d(maps, self.config.grid).flatten(1)
        canvas = torch.tensor(images.pixels.shape[-2:], device=maps.device)
        return LocalizerOutputs(self.head(maps.mean(dim=(2, 3))), in_float32(self.box, cells).sigmoid(), canvas)

    def loss(self, outputs: LocalizerOutputs, targets: Sequence[BoxTarget]) -> Losses:
        """``class`` and ``boxes``, means over the pictures that hold an object; ``iou`` is logged."""
        objects = [_largest(target) for target in learnable(targets)]
        rows = torch.tensor([row for row, one in enumerate(objects) if len(one)], dtype=torch.int64)
        rows = rows.to(outputs.logits.device)
        if not len(rows):
            nothing = outputs.logits.float().sum() * 0.0
            return Losses({"class": nothing, "boxes": outputs.shares.float().sum() * 0.0}, {"iou": nothing.detach()})
        labels = torch.cat([one.labels for one in objects])
        truth = torch.cat([one.boxes for one in objects])
        found = self._boxes(outputs)[rows]
        differences = outputs.shares[rows].float() - to_centres(truth) / _sides(outputs)
        if self.config.box_loss == "giou":
            error = 1 - generalized_iou(found, truth)
        elif self.config.box_loss == "l1":
            error = differences.abs().sum(dim=1)
        else:
            error = differences.square().sum(dim=1)
        terms = {
            "class": cross_entropy(outputs.logits[rows], labels),
            "boxes": self.config.box_weight * error.mean(),
        }
        return Losses(terms, {"iou": paired_iou(found.detach(), truth).mean()})

    def candidates(self, outputs: LocalizerOutputs, images: ImageBatch) -> list[Candidates]:
        """The one box of each picture, of every class."""
        boxes = self._boxes(outputs)[:, None, None]
        logits = outputs.logits.float()[:, None]
        return [Candidates(*parts) for parts in zip(boxes, logits.softmax(dim=2), logits, strict=True)]

    def explain_spec(self) -> ExplainSpec:
        """The backbone's stages, and ``final``, its last map, behind whose mean the linear layer of the class is."""
        layers: dict[str, GridLayer] = dict(self.backbone.explain_spec().under("backbone").layers)
        return ExplainSpec(layers, linear_head=lambda: LinearHead(self.head.weight, self.head.bias))

    def _boxes(self, outputs: LocalizerOutputs) -> Tensor:
        """``[B, 4]`` xyxy on the canvas."""
        return from_centres(outputs.shares.float() * _sides(outputs))


def _sides(outputs: LocalizerOutputs) -> Tensor:
    """W, H, W, H."""
    return outputs.canvas.flip(0).repeat(2).float()


def _largest(target: BoxTarget) -> BoxTarget:
    """The object that covers most of the picture, alone; none where there is none."""
    if not len(target):
        return target
    return target.select(areas(target.boxes).argmax()[None])


def _variants() -> dict[str, LocalizerConfig]:
    narrow = TimmConfig(name="resnet18", arguments={"channels": [16, 32, 64, 128]})
    tiny = TimmConfig(name="resnet18", arguments={"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24]})
    r18 = LocalizerConfig(preprocess=letterbox(224))
    test = replace(r18, num_classes=3, backbone=tiny, grid=2, preprocess=letterbox(64))
    return {
        "localizer_r18": r18,
        "localizer_r50": replace(r18, backbone=TimmConfig(name="resnet50")),
        "localizer_mobilenet": replace(r18, backbone=TimmConfig(name="mobilenetv2_100")),
        "localizer_small": replace(r18, backbone=narrow, preprocess=letterbox(128)),
        "localizer_test": test,
        "localizer_giou_test": replace(test, box_loss="giou", box_weight=1.0),
    }


register(_variants())
