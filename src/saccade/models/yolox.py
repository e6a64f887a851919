"""YOLOX: an anchor-free detector with separate towers for class and box, and the first whose weights are free to use.

Ge et al. 2021, arXiv 2107.08430. Every point of three maps says whether there is an object, of which class, and where;
the score is the product of the first two. With the nano's widths it is the published network, whose weights
``weights/yolox.py`` reads; pixels are bytes as they are, on grey. Differs from the paper: points are assigned as in
``matching/aligned.py`` instead of SimOTA, and the box loss is 1 - GIoU.

Modules stand in the order in which they run: the published file has no names, but that order.

B batch · P points, finest map first · K classes · H, W canvas
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.matching.aligned import AlignedAssigner
from saccade.models.detector import Candidates, Detector, DetectorConfig, Selection, learnable
from saccade.models.yolo import STRIDES, count_finest, points_of
from saccade.nn.conv import ConvNorm
from saccade.nn.csp import PoolPyramid
from saccade.nn.norm import keep_statistics
from saccade.ops.boxes import from_centres, generalized_iou
from saccade.ops.image import Preprocess
from saccade.registry import register
from saccade.types import BoxTarget, ExplainSpec, GridLayer, ImageBatch, Losses


def on_grey(side: int) -> Preprocess:
    """Pixels as the published weights want them: bytes as they are, padded with grey."""
    byte = (1 / 255,) * 3
    return Preprocess(size=(side, side), policy="letterbox", mean=(0.0, 0.0, 0.0), std=byte, fill=114)


@dataclass(frozen=True, kw_only=True)
class YoloxConfig(DetectorConfig):
    """YOLOX: how wide, how deep."""

    wants_mosaic: ClassVar[bool] = True
    kind: Literal["yolox"] = "yolox"
    width: int = 16
    """Channels at stride 2; they double with every stage."""
    depth: int = 1
    """Residual steps of a block; three times as many in the two stages in the middle."""
    head_width: int = 64
    """Channels of the towers."""
    is_depthwise: bool = True
    """Whether 3x3 convolutions are split into one per channel and one over channels, as in the nano."""
    freeze_norms: bool = False
    """Whether batch norms keep their statistics in training. Weights whose norms were folded into the convolutions, as
    in the published file, need it: statistics of a batch would replace what there no longer is."""
    box_weight: float = 5.0
    """Of 1 - GIoU of the positive points."""
    assigner: AlignedAssigner = field(default_factory=AlignedAssigner)
    """Which points learn an object."""
    preprocess: Preprocess = field(default_factory=lambda: on_grey(416))
    """How pictures become pixels."""
    selection: Selection = field(default_factory=lambda: Selection(min_score=0.01, nms_iou=0.65))
    """Which points become detections."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.depth, self.head_width) < 1 or self.width < 2 or self.width % 2:
            raise ConfigError("width, depth or head_width is out of range", where="yolox", expected="width even")

    def build(self) -> Yolox:
        """The detector, with random weights."""
        return Yolox(self)


class YoloxOutputs(NamedTuple):
    """What every point says.

    Attributes:
        logits: ``[B, P, K]`` of the class, given that there is an object.
        objectness: ``[B, P]`` logit of there being one.
        codes: ``[B, P, 4]`` centre as seen from the cell's corner, in cells; logarithm of width and height in cells.
        points: ``[P, 3]`` x and y of the cells' centres on the canvas, stride.
    """

    logits: Tensor
    objectness: Tensor
    codes: Tensor
    points: Tensor


def _conv(num_in: int, num_out: int, *, stride: int = 1, is_depthwise: bool) -> nn.Module:
    """A 3x3 convolution, as one or as two."""
    if not is_depthwise:
        return ConvNorm(num_in, num_out, stride=stride, activation=nn.SiLU)
    alone = ConvNorm(num_in, num_in, stride=stride, groups=num_in, activation=nn.SiLU)
    return nn.Sequential(alone, ConvNorm(num_in, num_out, 1, activation=nn.SiLU))


class Step(nn.Module):
    """1x1, then 3x3 convolution, ``[B, C, h, w]`` to the same; with or without what came in added."""

    def __init__(self, width: int, *, is_residual: bool, is_depthwise: bool) -> None:
        super().__init__()
        self.narrow = ConvNorm(width, width, 1, activation=nn.SiLU)
        self.look = _conv(width, width, is_depthwise=is_depthwise)
        self.is_residual = is_residual

    def forward(self, maps: Tensor) -> Tensor:
        """The same size."""
        looked: Tensor = self.look(self.narrow(maps))
        return maps + looked if self.is_residual else looked


class CrossStage(nn.Module):
    """Half of the channels pass the steps, the other half goes around, ``[B, C_in, h, w]`` to ``[B, C_out, h, w]``."""

    def __init__(self, num_in: int, num_out: int, depth: int, *, is_residual: bool, is_depthwise: bool) -> None:
        super().__init__()
        half = num_out // 2
        self.long = ConvNorm(num_in, half, 1, activation=nn.SiLU)
        self.short = ConvNorm(num_in, half, 1, activation=nn.SiLU)
        self.steps = nn.Sequential(
            *(Step(half, is_residual=is_residual, is_depthwise=is_depthwise) for _ in range(depth))
        )
        self.join = ConvNorm(2 * half, num_out, 1, activation=nn.SiLU)

    def forward(self, maps: Tensor) -> Tensor:
        """Both halves, joined."""
        joined: Tensor = self.join(torch.cat([self.steps(self.long(maps)), self.short(maps)], dim=1))
        return joined


class Darknet(nn.Module):
    """The picture folded to half its size, then four stages."""

    def __init__(self, width: int, depth: int, *, is_depthwise: bool) -> None:
        super().__init__()
        self.stem = ConvNorm(12, width, activation=nn.SiLU)
        stages = []
        for index, steps in enumerate((depth, 3 * depth, 3 * depth, depth)):
            num_in, num_out, is_last = width << index, width << (index + 1), index == 3
            parts: list[nn.Module] = [_conv(num_in, num_out, stride=2, is_depthwise=is_depthwise)]
            if is_last:
                parts.append(PoolPyramid(num_out))
            block = CrossStage(num_out, num_out, steps, is_residual=not is_last, is_depthwise=is_depthwise)
            stages.append(nn.Sequential(*parts, block))
        self.stages = nn.ModuleList(stages)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pixels ``[B, 3, H, W]`` to maps at strides 8, 16 and 32."""
        maps, found = self.stem(F.pixel_unshuffle(pixels, 2)), []
        for stage in self.stages:
            maps = stage(maps)
            found.append(maps)
        return found[1:]


class PathPyramid(nn.Module):
    """Coarse maps tell finer ones, then fine ones tell coarser ones, widths ``[C, 2 C, 4 C]``."""

    def __init__(self, width: int, depth: int, *, is_depthwise: bool) -> None:
        super().__init__()

        def block(num_in: int, num_out: int) -> CrossStage:
            return CrossStage(num_in, num_out, depth, is_residual=False, is_depthwise=is_depthwise)

        self.lateral = ConvNorm(4 * width, 2 * width, 1, activation=nn.SiLU)
        self.down_middle = block(4 * width, 2 * width)
        self.reduce = ConvNorm(2 * width, width, 1, activation=nn.SiLU)
        self.down_fine = block(2 * width, width)
        self.shrink_fine = _conv(width, width, stride=2, is_depthwise=is_depthwise)
        self.up_middle = block(2 * width, 2 * width)
        self.shrink_middle = _conv(2 * width, 2 * width, stride=2, is_depthwise=is_depthwise)
        self.up_coarse = block(4 * width, 4 * width)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Three maps, finest first, to three of the same shapes."""
        fine, middle, coarse = maps
        coarse = self.lateral(coarse)
        middle = self.reduce(self.down_middle(torch.cat([_enlarged(coarse), middle], dim=1)))
        fine = self.down_fine(torch.cat([_enlarged(middle), fine], dim=1))
        middle = self.up_middle(torch.cat([self.shrink_fine(fine), middle], dim=1))
        coarse = self.up_coarse(torch.cat([self.shrink_middle(middle), coarse], dim=1))
        return [fine, middle, coarse]


def _enlarged(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2.0, mode="nearest")


class TowerHead(nn.Module):
    """Class, box and objectness of one map."""

    def __init__(self, num_in: int, width: int, num_classes: int, *, is_depthwise: bool) -> None:
        super().__init__()
        self.stem = ConvNorm(num_in, width, 1, activation=nn.SiLU)
        self.class_tower = nn.Sequential(*(_conv(width, width, is_depthwise=is_depthwise) for _ in range(2)))
        self.head = nn.Conv2d(width, num_classes, 1)
        self.box_tower = nn.Sequential(*(_conv(width, width, is_depthwise=is_depthwise) for _ in range(2)))
        self.codes = nn.Conv2d(width, 4, 1)
        self.objectness = nn.Conv2d(width, 1, 1)
        for conv in (self.head, self.objectness):
            assert conv.bias is not None
            nn.init.constant_(conv.bias, -4.595)  # nearly all points are background: begin with 1 %

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, h, w]`` to logits ``[B, h w, K]``, objectness ``[B, h w]`` and codes ``[B, h w, 4]``."""
        maps = self.stem(maps)
        boxes = self.box_tower(maps)
        logits, codes = self.head(self.class_tower(maps)), self.codes(boxes)
        return logits.flatten(2).mT, self.objectness(boxes).flatten(1), codes.flatten(2).mT


class Yolox(Detector[YoloxOutputs]):
    """Backbone, pyramid, a head for each map."""

    config: YoloxConfig

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__(config)
        width, is_depthwise = config.width, config.is_depthwise
        self.backbone = Darknet(width, config.depth, is_depthwise=is_depthwise)
        self.pyramid = PathPyramid(4 * width, config.depth, is_depthwise=is_depthwise)
        self.levels = nn.ModuleList(nn.Identity() for _ in STRIDES)  # the maps pass here, for explanation to record
        self.heads = nn.ModuleList(
            TowerHead(width << index, config.head_width, config.num_classes, is_depthwise=is_depthwise)
            for index in (2, 3, 4)
        )
        self.train(self.training)  # which knows of frozen norms

    def freeze_norms(self) -> None:
        """From now on batch norms keep their statistics in training as well; weights and biases go on learning."""
        self.config = replace(self.config, freeze_norms=True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """The mode of training or of evaluation; frozen norms always evaluate."""
        super().train(mode)
        if self.config.freeze_norms:
            keep_statistics(self)
        return self

    def forward(self, images: ImageBatch, targets: Sequence[BoxTarget] | None = None) -> YoloxOutputs:
        """One pass over a canvas of any size; targets change nothing."""
        height, width = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
        pixels = F.pad(images.pixels, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        maps = [keep(level) for keep, level in zip(self.levels, self.pyramid(self.backbone(pixels)), strict=True)]
        said = [head(level) for head, level in zip(self.heads, maps, strict=True)]
        logits, objectness, codes = (torch.cat(parts, dim=1) for parts in zip(*said, strict=True))
        return YoloxOutputs(logits, objectness, codes, points_of(maps))

    def loss(self, outputs: YoloxOutputs, targets: Sequence[BoxTarget]) -> Losses:
        """``object`` over all points, ``class`` and ``boxes`` over the positive ones, each per positive point."""
        kept = learnable(targets)
        logits, objectness = outputs.logits.float(), outputs.objectness.float()
        boxes = self.decode(outputs.codes, outputs.points)
        scores = (logits.sigmoid() * objectness[..., None].sigmoid()).detach()
        finest = count_finest(outputs.points)
        aligned = self.config.assigner(outputs.points[:, :2], boxes.detach(), scores, kept, finest=finest)
        where = aligned.is_positive
        share = 1 / where.sum().clamp_min(1)
        overlap = generalized_iou(boxes[where], aligned.boxes[where])
        # A class aims at how well its point fits, as a score shall tell which of two boxes is the better one.
        aimed = aligned.scores[where]
        terms = {
            "object": F.binary_cross_entropy_with_logits(objectness, where.float(), reduction="sum") * share,
            "class": F.binary_cross_entropy_with_logits(logits[where], aimed, reduction="sum") * share,
            "boxes": self.config.box_weight * (1 - overlap).sum() * share,
        }
        return Losses(terms, {"positive": where.sum() / max(len(kept), 1)})

    def decode(self, codes: Tensor, points: Tensor) -> Tensor:
        """Boxes ``[..., P, 4]`` xyxy on the canvas of codes ``[..., P, 4]`` at points ``[P, 3]``."""
        codes, strides = codes.float(), points[:, 2:]
        middle = points[:, :2] + (codes[..., :2] - 0.5) * strides
        return from_centres(torch.cat([middle, codes[..., 2:].exp() * strides], dim=-1))

    def candidates(self, outputs: YoloxOutputs, images: ImageBatch) -> list[Candidates]:
        """All points; the logit of a class is that of the product of both probabilities."""
        boxes = self.decode(outputs.codes, outputs.points)[:, :, None]
        likely = F.logsigmoid(outputs.logits.float()) + F.logsigmoid(outputs.objectness.float())[..., None]
        scores = likely.exp()
        logits = likely - torch.log1p(-scores.clamp(max=1 - 1e-6))
        return [Candidates(*parts) for parts in zip(boxes, scores, logits, strict=True)]

    def explain_spec(self) -> ExplainSpec:
        """The pyramid's maps, coarsest first: ``p5``, ``p4`` and ``final``, the finest."""
        names = {"p5": "levels.2", "p4": "levels.1", "final": "levels.0"}
        return ExplainSpec({name: GridLayer(path) for name, path in names.items()})


def _variants() -> dict[str, YoloxConfig]:
    nano = YoloxConfig()
    return {
        "yolox_nano": nano,
        "yolox_tiny": replace(nano, width=24, head_width=96, is_depthwise=False),
        "yolox_s": replace(nano, width=32, head_width=128, is_depthwise=False, preprocess=on_grey(640)),
        "yolox_test": replace(
            nano, num_classes=5, width=4, head_width=16, preprocess=on_grey(64), selection=Selection(min_score=0.0)
        ),
    }


register(_variants())
