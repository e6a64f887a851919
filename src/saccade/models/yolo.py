"""A one-stage detector without anchors and without suppression: every point of three maps speaks for one object.

Points instead of anchors: Tian et al. 2019 (FCOS), arXiv 1904.01355. Separate heads for class and box: Ge et al. 2021
(YOLOX), arXiv 2107.08430. Which point learns what: ``matching/aligned.py``. Sides as distributions over distances: Li
et al. 2020 (GFL), arXiv 2006.04388. In training, one set of heads lets many points learn each object, as is good for
learning; another lets one point do so, as is good for an end without suppression (Wang et al. 2024, arXiv 2405.14458):
the second learns on what the first has formed, and is the one that answers.

Our own composition of these ideas; layers and widths are chosen for processors.

B batch · P points, finest map first · K classes · n bins of a distribution · H, W canvas
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.matching.aligned import Aligned, AlignedAssigner
from saccade.models.detector import (
    Candidates,
    Detector,
    DetectorConfig,
    Origin,
    Selection,
    fitted,
    learnable,
    select,
)
from saccade.nn.conv import ConvNorm
from saccade.nn.csp import PartialBackbone, TwoWayPyramid
from saccade.ops.boxes import generalized_iou, map_to_original
from saccade.ops.image import Preprocess
from saccade.registry import register
from saccade.types import BoxTarget, Detections, ExplainSpec, GridLayer, ImageBatch, Losses

STRIDES = (8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class PointLoss(Config):
    """Weights of the terms, for each of the two sets of heads."""

    classes: float = 1.0
    """Of the cross-entropy between scores and aimed scores."""
    boxes: float = 2.5
    """Of 1 - GIoU, weighted by the aimed score."""
    distribution: float = 0.5
    """Of the cross-entropy of the distances' distributions."""


TRAINING: Mapping[str, Any] = {
    "batch_size": 8,
    "learning_rate": 2e-3,
    "warmup": 0.05,
    "ema_decay": 0.998,
    "clip_norm": 10.0,
    "augment": {"flip": 0.5, "colour": 0.3, "zoom": [0.7, 1.4]},
}
"""What it is trained with where nothing else is set; not tuned beyond short runs on hundreds of pictures."""


@dataclass(frozen=True, kw_only=True)
class YoloConfig(DetectorConfig):
    """A one-stage detector: how wide, how deep, and how it ends."""

    wants_mosaic: ClassVar[bool] = True
    kind: Literal["yolo"] = "yolo"
    widths: tuple[int, int, int, int, int] = (16, 32, 64, 128, 192)
    """Channels at strides 2, 4, 8, 16 and 32; even numbers."""
    depths: tuple[int, int, int, int] = (1, 1, 2, 1)
    """Residual steps of the backbone's four stages."""
    neck_depth: int = 1
    """Residual steps of each block of the pyramid."""
    head_width: int = 64
    """Channels of the heads."""
    bins: int = 16
    """Bins of the distribution over each distance, in cells; 0 for one number instead."""
    answers: Literal["one_to_one", "one_to_many"] = "one_to_one"
    """Which heads answer: those that need no suppression, or those that do (set ``selection.nms_iou`` to 0.6 or so)."""
    assigner: AlignedAssigner = field(default_factory=AlignedAssigner)
    """Which points learn an object in the one-to-many heads."""
    loss: PointLoss = field(default_factory=PointLoss)
    """Weights of the loss."""
    preprocess: Preprocess = field(default_factory=lambda: fitted(640))
    """How pictures become pixels."""
    selection: Selection = field(default_factory=lambda: Selection(min_score=0.01, nms_iou=1.0))
    """Which points become detections."""

    def train_settings(self, taken: Collection[str]) -> Mapping[str, Any]:
        """The same, whatever weights it starts from."""
        return TRAINING

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(*self.widths, *self.depths, self.neck_depth, self.head_width) < 1 or any(w % 2 for w in self.widths):
            raise ConfigError("a width or depth is out of range", where="yolo", expected="positive, widths even")
        if self.bins == 1 or self.bins < 0:
            raise ConfigError(f"bins is {self.bins}", where="bins", expected="0, or at least 2")
        if self.answers == "one_to_many" and self.selection.nms_iou >= 1:
            remedy = "set selection.nms_iou to 0.6"
            raise ConfigError("many points answer for each object", where="answers", remedy=remedy)

    @property
    def num_codes(self) -> int:
        """Numbers that each point says beside its scores."""
        return 4 * max(self.bins, 1)

    def build(self) -> Yolo:
        """The detector, with random weights."""
        return Yolo(self)


class YoloOutputs(NamedTuple):
    """What every point says; of heads that are not asked, there are 0 pictures instead of B.

    Attributes:
        one_logits: ``[B, P, K]`` of the one-to-one heads.
        one_codes: ``[B, P, 4 n]``, or ``[B, P, 4]`` without bins: left, top, right, bottom; then what a variant adds.
        many_logits: ``[B, P, K]`` of the one-to-many heads.
        many_codes: as ``one_codes``.
        points: ``[P, 3]`` x and y on the canvas, stride.
        prototypes: ``[B, M, h, w]`` of models that cut objects out; ``[B, 0, 0, 0]`` of others.
    """

    one_logits: Tensor
    one_codes: Tensor
    many_logits: Tensor
    many_codes: Tensor
    points: Tensor
    prototypes: Tensor


class LevelHead(nn.Module):
    """Class scores and box codes of one map; each has its own way, the one of the classes being the lighter.

    Args:
        num_in: width of the map.
        width: channels inside.
        num_classes: K.
        num_codes: numbers per box.
    """

    def __init__(self, num_in: int, width: int, num_classes: int, num_codes: int) -> None:
        super().__init__()
        self.class_tower = nn.Sequential(
            ConvNorm(num_in, num_in, groups=num_in, activation=nn.SiLU),
            ConvNorm(num_in, width, 1, activation=nn.SiLU),
            ConvNorm(width, width, groups=width, activation=nn.SiLU),
            ConvNorm(width, width, 1, activation=nn.SiLU),
        )
        self.box_tower = nn.Sequential(
            ConvNorm(num_in, width, activation=nn.SiLU), ConvNorm(width, width, activation=nn.SiLU)
        )
        self.head = nn.Conv2d(width, num_classes, 1)
        self.codes = nn.Conv2d(width, num_codes, 1)
        # Nearly all points are background: begin with a probability of 1 %.
        nn.init.constant_(self.head.bias, -math.log(99))  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, C, h, w]`` to logits ``[B, h w, K]`` and codes ``[B, h w, num_codes]``."""
        logits, codes = self.head(self.class_tower(maps)), self.codes(self.box_tower(maps))
        return logits.flatten(2).mT, codes.flatten(2).mT


class Yolo(Detector[YoloOutputs]):
    """Backbone, pyramid, and two sets of heads."""

    config: YoloConfig

    def __init__(self, config: YoloConfig) -> None:
        super().__init__(config)
        self.backbone = PartialBackbone(config.widths, config.depths)
        channels = config.widths[2:]
        self.pyramid = TwoWayPyramid(channels, config.neck_depth)
        self.levels = nn.ModuleList(nn.Identity() for _ in channels)  # the maps pass here, for explanation to record
        self.one_to_one, self.one_to_many = (
            nn.ModuleList(
                LevelHead(width, config.head_width, config.num_classes, config.num_codes) for width in channels
            )
            for _ in range(2)
        )

    def forward(self, images: ImageBatch, targets: Sequence[BoxTarget] | None = None) -> YoloOutputs:
        """One pass over a canvas of any size; targets change nothing."""
        height, width = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
        pixels = F.pad(images.pixels, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        maps = [keep(level) for keep, level in zip(self.levels, self.pyramid(self.backbone(pixels)), strict=True)]
        # The maps are formed by the heads that many points teach; the others read what is there.
        seen = [level.detach() for level in maps] if self.training else maps
        one = self._said(self.one_to_one, seen, is_asked=self.training or self.config.answers == "one_to_one")
        many = self._said(self.one_to_many, maps, is_asked=self.training or self.config.answers == "one_to_many")
        return YoloOutputs(*one, *many, points_of(maps), self.prototypes(maps))

    def prototypes(self, maps: Sequence[Tensor]) -> Tensor:
        """What masks are put together of, ``[B, M, h, w]``, from the maps, finest first; none here."""
        return maps[0].new_zeros(len(maps[0]), 0, 0, 0)

    def _said(self, heads: nn.ModuleList, maps: Sequence[Tensor], *, is_asked: bool) -> tuple[Tensor, Tensor]:
        """Logits ``[B, P, K]`` and codes ``[B, P, 4 n]`` of a set of heads; of no pictures where it is not asked."""
        if is_asked:
            logits, codes = zip(*(head(level) for head, level in zip(heads, maps, strict=True)), strict=True)
            return torch.cat(logits, dim=1), torch.cat(codes, dim=1)
        count = sum(int(level.shape[-2] * level.shape[-1]) for level in maps)
        widths = self.config.num_classes, self.config.num_codes
        return maps[0].new_zeros(0, count, widths[0]), maps[0].new_zeros(0, count, widths[1])

    def loss(self, outputs: YoloOutputs, targets: Sequence[BoxTarget]) -> Losses:
        """Class, box and distribution terms of each set of heads that was asked."""
        kept = learnable(targets)
        terms: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        one = replace(self.config.assigner, most=1)
        finest = count_finest(outputs.points)
        for name, assigner, logits, codes in (
            ("one", one, outputs.one_logits, outputs.one_codes),
            ("many", self.config.assigner, outputs.many_logits, outputs.many_codes),
        ):
            if not len(logits) and len(kept):
                continue
            logits, codes = logits.float(), codes.float()
            with torch.no_grad():
                boxes = self.decode(codes, outputs.points)
                aligned = assigner(outputs.points[:, :2], boxes, logits.sigmoid(), kept, finest=finest)
            found = self._terms(logits, codes, outputs.points, aligned)
            if outputs.prototypes.numel():
                found["mask"] = self.mask_term(name == "one", outputs, codes, aligned, kept)
            terms |= {f"{name}_{key}": value for key, value in found.items()}
            logs[f"{name}_positive"] = aligned.is_positive.sum() / max(len(kept), 1)
        return Losses(terms, logs)

    def _terms(self, logits: Tensor, codes: Tensor, points: Tensor, aligned: Aligned) -> dict[str, Tensor]:
        weights = self.config.loss
        # What is aimed at in all counts as one; a batch without objects divides by 1.
        share = 1 / aligned.scores.sum().clamp_min(1.0)
        terms = {
            "class": weights.classes
            * share
            * F.binary_cross_entropy_with_logits(logits, aligned.scores, reduction="sum")
        }
        where = aligned.is_positive
        aimed = aligned.scores[where].sum(-1)
        said, aims, places = codes[where], aligned.boxes[where], points.expand(len(logits), -1, -1)[where]
        overlap = generalized_iou(self.decode(said, places), aims)
        terms["boxes"] = weights.boxes * share * ((1 - overlap) * aimed).sum()
        if self.config.bins:
            wrong = self._distribution_loss(said, _distances(aims, places))
            terms["distribution"] = weights.distribution * share * (wrong * aimed).sum()
        return terms

    def mask_term(
        self, is_one: bool, outputs: YoloOutputs, codes: Tensor, aligned: Aligned, targets: Sequence[BoxTarget]
    ) -> Tensor:
        """Of a variant with prototypes: the loss ``[]`` of the masks of one set of heads."""
        raise NotImplementedError

    def _distribution_loss(self, codes: Tensor, distances: Tensor) -> Tensor:
        """Cross-entropy at the two bins around each true distance, ``[N, 4 n]``, ``[N, 4] -> [N]``."""
        bins = self.config.bins
        logits = codes[..., : 4 * bins].reshape(-1, 4, bins).log_softmax(-1)
        distances = distances.clamp(0, bins - 1 - 1e-3)
        low = distances.floor()
        above = distances - low
        at = low.long()[..., None]
        around = -(logits.gather(2, at)[..., 0] * (1 - above) + logits.gather(2, at + 1)[..., 0] * above)
        return around.mean(-1)

    def decode(self, codes: Tensor, points: Tensor) -> Tensor:
        """Boxes ``[..., P, 4]`` xyxy on the canvas of codes ``[..., P, 4 n]`` at points ``[P, 3]``."""
        if self.config.bins:
            bins = self.config.bins
            shares = codes[..., : 4 * bins].float().reshape(*codes.shape[:-1], 4, bins).softmax(-1)
            # Not as a product of matrices, which under autocast would round the boxes to 8 bits.
            distances = (shares * torch.arange(bins, dtype=torch.float32, device=codes.device)).sum(-1)
        else:
            distances = F.softplus(codes[..., :4].float())
        distances = distances * points[:, 2:]
        return torch.cat([points[:, :2] - distances[..., :2], points[:, :2] + distances[..., 2:]], dim=-1)

    def candidates(self, outputs: YoloOutputs, images: ImageBatch) -> list[Candidates]:
        """All points; see ``cell`` for where each is."""
        logits, codes = self._answering(outputs)
        boxes = self.decode(codes, outputs.points)[:, :, None]
        logits = logits.float()
        return [Candidates(*parts) for parts in zip(boxes, logits.sigmoid(), logits, strict=True)]

    def postprocess(self, outputs: YoloOutputs, images: ImageBatch) -> list[Detections]:
        """As every detector's, but only points that may become detections are decoded."""
        found = []
        selection = self.config.selection
        lowest = math.log(selection.min_score / (1 - selection.min_score)) if 0 < selection.min_score < 1 else -math.inf
        all_logits, all_codes = self._answering(outputs)
        for logits, codes, size, geometry in zip(all_logits, all_codes, images.sizes, images.geometries, strict=True):
            places = torch.nonzero(logits.amax(-1) >= lowest)[:, 0]
            kept_logits = logits[places].float()
            boxes = self.decode(codes[places], outputs.points[places])[:, None]
            kept = select(Candidates(boxes, kept_logits.sigmoid(), kept_logits), size, selection)
            boxes = map_to_original(kept.boxes, geometry)
            found.append(Detections(boxes, kept.scores, kept.labels, places[kept.source], self.classes))
        return found

    def origin(self, outputs: YoloOutputs, image: int, source: int) -> Origin:
        """The point, the map that it is of, and what two 3x3 convolutions of a head see of that map."""
        across, down, stride = outputs.points[source].tolist()
        row, column = int(down // stride), int(across // stride)
        around = outputs.points.new_tensor([-0.5, -0.5, 0.5, 0.5]) * stride
        box = outputs.points[source, :2].repeat(2) + around
        layer = {8: "final", 16: "p4", 32: "p5"}[int(stride)]
        words = f"the point in row {row}, column {column} of the map of stride {int(stride)}"
        return Origin(words, box, layer, box + 4 * around)

    def cell(self, source: int, canvas: tuple[int, int]) -> tuple[int, int, int]:
        """Stride, row and column of the point that a candidate came from, on a canvas ``(H, W)``."""
        height, width = (-(-side // STRIDES[-1]) * STRIDES[-1] for side in canvas)
        for stride in STRIDES:
            rows, columns = height // stride, width // stride
            if source < rows * columns:
                return stride, source // columns, source % columns
            source -= rows * columns
        raise IndexError(source)

    def explain_spec(self) -> ExplainSpec:
        """``stem``, the first map, then those of the pyramid, coarsest first: ``p5``, ``p4`` and ``final``."""
        levels = {"p5": "levels.2", "p4": "levels.1", "final": "levels.0"}
        layers = {name: GridLayer(path) for name, path in {"stem": "backbone.stem", **levels}.items()}
        return ExplainSpec(layers, early_layer="stem", levels=[*levels])

    def _answering(self, outputs: YoloOutputs) -> tuple[Tensor, Tensor]:
        """Logits and codes of the heads that answer."""
        if self.config.answers == "one_to_one":
            return outputs.one_logits, outputs.one_codes
        return outputs.many_logits, outputs.many_codes


def points_of(maps: Sequence[Tensor]) -> Tensor:
    """Centres of all cells ``[P, 3]``: x and y on the canvas, stride; float32."""
    found = []
    for level, stride in zip(maps, STRIDES, strict=True):
        height, width = int(level.shape[-2]), int(level.shape[-1])
        rows, columns = (torch.arange(side, device=level.device, dtype=torch.float32) + 0.5 for side in (height, width))
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2) * stride
        found.append(F.pad(places, (0, 1), value=float(stride)))
    return torch.cat(found)


def count_finest(points: Tensor) -> int:
    """How many of the points ``[P, 3]`` are the finest map's, which come first."""
    return int((points[:, 2] == STRIDES[0]).sum())


def _distances(boxes: Tensor, points: Tensor) -> Tensor:
    """Left, top, right, bottom of boxes ``[N, 4]`` seen from points ``[N, 3]``, in cells."""
    places, strides = points[:, :2], points[:, 2:]
    return torch.cat([places - boxes[:, :2], boxes[:, 2:] - places], dim=-1) / strides


def _variants() -> dict[str, YoloConfig]:
    nano = YoloConfig()
    return {
        "yolo_n": nano,
        "yolo_s": replace(nano, widths=(32, 64, 128, 256, 384), head_width=128),
        "yolo_m": replace(nano, widths=(48, 96, 192, 384, 512), depths=(2, 2, 4, 2), neck_depth=2, head_width=192),
        "yolo_small": replace(nano, widths=(16, 32, 64, 96, 128), preprocess=fitted(320)),
        "yolo_test": replace(
            nano,
            num_classes=5,
            widths=(8, 8, 12, 12, 16),
            depths=(1, 1, 1, 1),
            head_width=16,
            bins=8,
            preprocess=fitted(64),
        ),
        "yolo_direct_test": replace(
            nano,
            num_classes=5,
            widths=(8, 8, 12, 12, 16),
            depths=(1, 1, 1, 1),
            head_width=16,
            bins=0,
            answers="one_to_many",
            preprocess=fitted(64),
            selection=Selection(min_score=0.01, nms_iou=0.6),
        ),
    }


VARIANTS = _variants()
"""The named configs of this file."""
register(VARIANTS)
