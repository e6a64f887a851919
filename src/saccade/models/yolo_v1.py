"""YOLO, the first: a grid over the picture, each cell predicts boxes, their confidence, and the class of its object.

Redmon et al. 2015, arXiv 1506.02640. The picture is divided into S x S cells; the cell that holds an object's centre
answers for it. Confidence aims at the IoU of box and object, and is times the class's probability the score. One pass,
then thresholding and non-maximum suppression.

Differs from the paper: any backbone of timm under the four convolutions; the two fully connected layers of the paper
are one choice of ``head``, the other stays convolutional, as the later versions did, with a hundredth of the weights.
Batch norm takes the place of dropout in the neck. Where two objects have their centres in one cell, it answers for the
larger one.

B batch · S x S cells · n boxes per cell · K classes · H, W canvas · N objects of a batch
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.timm import TimmConfig
from saccade.config import Config
from saccade.errors import ConfigError, InputError
from saccade.models.detector import Candidates, Detector, DetectorConfig, Origin, Selection, learnable
from saccade.ops.boxes import areas, from_centres, paired_iou, to_centres
from saccade.ops.image import Preprocess
from saccade.registry import register
from saccade.types import BoxTarget, ExplainSpec, GridLayer, ImageBatch, Losses


@dataclass(frozen=True, kw_only=True)
class GridLoss(Config):
    """Weights of the sum-squared error (equation 3 of the paper)."""

    coordinates: float = 5.0
    """Of centre and sides of the responsible boxes."""
    no_object: float = 0.5
    """Of the confidence of all boxes that are responsible for nothing: there are far more of them."""


@dataclass(frozen=True, kw_only=True)
class YoloV1Config(DetectorConfig):
    """The first YOLO: what sees, how fine the grid is, how many boxes each cell may give."""

    kind: Literal["yolo_v1"] = "yolo_v1"
    num_classes: int = 20
    """Number of foreground classes."""
    backbone: TimmConfig = field(default_factory=lambda: TimmConfig(name="resnet34"))
    """What turns pixels into maps; the last one is read."""
    grid: int = 7
    """S, cells along each side: at most as many as the backbone's last map has on this canvas."""
    boxes: int = 2
    """n, boxes of each cell."""
    width: int = 1024
    """Channels of the convolutions between backbone and head."""
    head: Literal["connected", "convolutional"] = "connected"
    """Two fully connected layers over the whole grid, as published, or one convolution that each cell shares."""
    hidden: int = 4096
    """Width between the two fully connected layers."""
    loss: GridLoss = field(default_factory=GridLoss)
    """Weights of the loss."""
    preprocess: Preprocess = field(default_factory=lambda: Preprocess(size=(448, 448), policy="stretch"))
    """The whole picture fills the canvas, as published."""
    selection: Selection = field(default_factory=Selection)
    """Which boxes become detections."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.grid, self.boxes, self.width, self.hidden) < 1:
            raise ConfigError("grid, boxes, width or hidden is below 1", where="yolo_v1", expected="at least 1")
        if self.preprocess.policy not in {"stretch", "letterbox"}:
            found = f"the policy is {self.preprocess.policy!r}"
            raise ConfigError(found, where="preprocess.policy", expected="'stretch' or 'letterbox': one size for all")

    def build(self) -> YoloV1:
        """The detector, with random weights."""
        return YoloV1(self)


class YoloV1Outputs(NamedTuple):
    """What each cell says, as the last layer leaves it: linear, so nothing keeps it in [0, 1] but the loss.

    Attributes:
        centres: ``[B, S, S, n, 2]`` x and y in the cell, as shares of its sides.
        roots: ``[B, S, S, n, 2]`` square roots of width and height, as shares of the canvas.
        confidence: ``[B, S, S, n]``.
        classes: ``[B, S, S, K]`` probability of each class, given that there is an object.
        canvas: ``[2]`` int64, H and W.
    """

    centres: Tensor
    roots: Tensor
    confidence: Tensor
    classes: Tensor
    canvas: Tensor


class YoloV1(Detector[YoloV1Outputs]):
    """Backbone, four convolutions, the mean of what each cell of the grid covers, head.

    Raises:
        ConfigError: where the backbone's last map is coarser than the grid: several cells would always say the same.
    """

    config: YoloV1Config

    def __init__(self, config: YoloV1Config) -> None:
        super().__init__(config)
        self.backbone = config.backbone.build()
        stride = self.backbone.strides[-1]
        rows, columns = (math.ceil(side / stride) for side in config.preprocess.size)
        if min(rows, columns) < config.grid:
            raise ConfigError(
                f"the grid is {config.grid}x{config.grid}, the backbone's last map {rows}x{columns}",
                where="yolo_v1.grid",
                expected=f"at most {min(rows, columns)}: cells that share a place of the map say the same",
                remedy="set a smaller grid, a larger canvas or backbone.arguments.output_stride",
            )
        width = config.width
        self.neck = nn.Sequential(
            *_block(self.backbone.channels[-1], width),
            *_block(width, width),
            *_block(width, width),
            *_block(width, width),
        )
        self.final = nn.Identity()  # what the head reads passes here, for explanation to record
        self._per_cell = config.boxes * 5 + config.num_classes
        self.head: nn.Module
        if config.head == "convolutional":
            self.head = nn.Conv2d(width, self._per_cell, 1)
        else:
            cells = config.grid**2
            self.head = nn.Sequential(
                nn.Flatten(),
                nn.Linear(width * cells, config.hidden),
                nn.LeakyReLU(0.1),
                nn.Dropout(0.5),
                nn.Linear(config.hidden, cells * self._per_cell),
                nn.Unflatten(1, (self._per_cell, config.grid, config.grid)),
            )

    def forward(self, images: ImageBatch, targets: Sequence[BoxTarget] | None = None) -> YoloV1Outputs:
        """One pass; targets change nothing.

        Raises:
            InputError: where the canvas is not of the size that the grid was made for.
        """
        canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
        if canvas != self.preprocess.size:
            expected = f"{self.preprocess.size}, so that a cell keeps its size"
            raise InputError(f"the canvas is {canvas}", expected=expected, remedy="use model.preprocess")
        maps = self.neck(self.backbone(images.pixels).maps[-1])
        cells = self.head(self.final(F.adaptive_avg_pool2d(maps, self.config.grid))).permute(0, 2, 3, 1)
        size, num_boxes = self.config.grid, self.config.boxes
        parts = cells[..., : num_boxes * 5].reshape(len(cells), size, size, num_boxes, 5)
        return YoloV1Outputs(
            parts[..., 0:2],
            parts[..., 2:4],
            parts[..., 4],
            cells[..., num_boxes * 5 :],
            torch.tensor(canvas, device=cells.device),
        )

    def loss(self, outputs: YoloV1Outputs, targets: Sequence[BoxTarget]) -> Losses:
        """The sum-squared error of the paper in five terms, per picture."""
        weights, count = self.config.loss, max(len(targets), 1)
        outputs = outputs._replace(
            centres=outputs.centres.float(),
            roots=outputs.roots.float(),
            confidence=outputs.confidence.float(),
            classes=outputs.classes.float(),
        )
        found = self.boxes(outputs)
        is_responsible = torch.zeros_like(outputs.confidence, dtype=torch.bool)
        aimed = torch.zeros_like(outputs.confidence)
        zero = outputs.confidence.sum() * 0
        terms = {"centres": zero, "sides": zero, "object": zero, "class": zero}
        matched = self._assign(outputs, targets)
        if len(matched.boxes):
            cell = (matched.image, matched.row, matched.column)
            overlaps = paired_iou(found[cell].detach(), matched.boxes[:, None])  # [N, n]
            best = overlaps.argmax(1)
            slot = (*cell, best)
            is_responsible[slot] = True
            aimed[slot] = overlaps.gather(1, best[:, None])[:, 0]
            terms["centres"] = weights.coordinates * (outputs.centres[slot] - matched.centres).square().sum()
            terms["sides"] = weights.coordinates * (outputs.roots[slot] - matched.roots).square().sum()
            one_hot = F.one_hot(matched.labels, self.config.num_classes)
            terms["class"] = (outputs.classes[cell] - one_hot).square().sum()
        errors = (outputs.confidence - aimed).square()
        terms["object"] = (errors * is_responsible).sum()
        terms["no_object"] = weights.no_object * (errors * ~is_responsible).sum()
        logs = {"iou": aimed.sum().detach() / is_responsible.sum().clamp_min(1)}
        return Losses({name: term / count for name, term in terms.items()}, logs)

    def boxes(self, outputs: YoloV1Outputs) -> Tensor:
        """The boxes of all cells, ``[B, S, S, n, 4]`` xyxy on the canvas."""
        size = self.config.grid
        height, width = outputs.canvas.unbind()
        steps = torch.arange(size, device=outputs.centres.device)
        corner = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)[None, :, :, None]
        sides = torch.stack([width, height])
        middle = (outputs.centres.float() + corner) / size * sides
        return from_centres(torch.cat([middle, outputs.roots.float().square() * sides], dim=-1))

    def candidates(self, outputs: YoloV1Outputs, images: ImageBatch) -> list[Candidates]:
        """All boxes of all cells: candidate ``(row * S + column) * n + box``; see ``cell``."""
        boxes = self.boxes(outputs).flatten(1, 3)[:, :, None]
        confidence, classes = outputs.confidence.float()[..., None], outputs.classes.float()[..., None, :]
        logits = (confidence * classes).flatten(1, 3)
        # Each factor is cut on its own: two negative ones are no evidence.
        scores = (confidence.clamp(0, 1) * classes.clamp(0, 1)).flatten(1, 3)
        return [Candidates(*parts) for parts in zip(boxes, scores, logits, strict=True)]

    def origin(self, outputs: YoloV1Outputs, image: int, source: int) -> Origin:
        """The cell of the grid, and which of its boxes."""
        row, column = self.cell(source)
        height, width = outputs.canvas.tolist()
        sides = torch.tensor([width, height] * 2) / self.config.grid
        box = torch.tensor([column, row, column + 1, row + 1]) * sides
        words = f"box {source % self.config.boxes} of the cell in row {row}, column {column}"
        return Origin(words, box)

    def cell(self, source: int) -> tuple[int, int]:
        """Row and column of the grid cell that a candidate came from."""
        row, column = divmod(source // self.config.boxes, self.config.grid)
        return row, column

    def explain_spec(self) -> ExplainSpec:
        """The backbone's stages, ``backbone`` their last map, and ``final``: what the head reads of each cell."""
        layers = dict(self.backbone.explain_spec().under("backbone").layers)
        layers["backbone"] = layers.pop("final")
        return ExplainSpec({**layers, "final": GridLayer("final")}, usual_layer="backbone")

    def _assign(self, outputs: YoloV1Outputs, targets: Sequence[BoxTarget]) -> _Matched:
        """Which cell answers for which object; of several in one cell the largest."""
        size, device = self.config.grid, outputs.confidence.device
        kept = learnable(targets)
        counts = torch.tensor([len(target) for target in kept], device=device)
        image = torch.repeat_interleave(torch.arange(len(kept), device=device), counts)
        boxes = torch.cat([target.boxes for target in kept]) if kept else torch.zeros(0, 4, device=device)
        labels = torch.cat([target.labels for target in kept]) if kept else torch.zeros(0, dtype=torch.int64)
        order = areas(boxes).argsort(descending=True, stable=True)
        image, boxes, labels = image[order], boxes[order], labels[order]
        sides = outputs.canvas.flip(0).to(boxes.dtype)  # W, H
        centres = to_centres(boxes)
        places = centres[:, :2] / sides * size
        column, row = places.floor().long().clamp(0, size - 1).unbind(1)
        first = _first_of_each((image * size + row) * size + column)
        image, row, column, boxes = image[first], row[first], column[first], boxes[first]
        inside = places[first] - torch.stack([column, row], dim=1)
        roots = (centres[first, 2:] / sides).clamp_min(0).sqrt()
        return _Matched(image, row, column, boxes, labels[first], inside, roots)


class _Matched(NamedTuple):
    """Objects with the cell that answers for each."""

    image: Tensor  # [N]
    row: Tensor  # [N]
    column: Tensor  # [N]
    boxes: Tensor  # [N, 4]
    labels: Tensor  # [N]
    centres: Tensor  # [N, 2] x, y in the cell
    roots: Tensor  # [N, 2] square roots of the sides


def _first_of_each(keys: Tensor) -> Tensor:
    """Index of the first place of every distinct key, ``[N] -> [M]``."""
    if not len(keys):
        return keys
    _, inverse = torch.unique(keys, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(keys), device=keys.device)
    return first.scatter_reduce(0, inverse, torch.arange(len(keys), device=keys.device), "amin")


def _block(num_in: int, num_out: int) -> list[nn.Module]:
    """Convolution, norm and leaky ReLU, as modules in a row."""
    conv = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, a=0.1, nonlinearity="leaky_relu")
    return [conv, nn.BatchNorm2d(num_out), nn.LeakyReLU(0.1, inplace=True)]


def _variants() -> dict[str, YoloV1Config]:
    # Stride 16 gives the small canvas as many places as the published one has at 32.
    r18 = TimmConfig(name="resnet18", arguments={"output_stride": 16})
    narrow = replace(r18, arguments={"channels": [16, 32, 64, 128], **r18.arguments})
    all_boxes = Selection(min_score=0.0)  # untrained, it is sure of nothing
    tiny_arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]}
    tiny = TimmConfig(name="resnet18", arguments=tiny_arguments)
    published = YoloV1Config()
    small = replace(
        published, head="convolutional", width=128, preprocess=Preprocess(size=(224, 224), policy="stretch")
    )
    return {
        "yolo_v1": published,
        "yolo_v1_r18": replace(small, backbone=r18, width=256, grid=14),
        "yolo_v1_small": replace(small, backbone=narrow, grid=14),
        "yolo_v1_test": replace(
            small,
            num_classes=5,
            selection=all_boxes,
            backbone=replace(tiny, arguments={**tiny_arguments, **r18.arguments}),
            width=16,
            grid=4,
            preprocess=Preprocess(size=(64, 64), policy="stretch"),
        ),
        "yolo_v1_connected_test": replace(
            small,
            num_classes=5,
            selection=all_boxes,
            backbone=tiny,
            width=16,
            grid=2,
            hidden=16,
            head="connected",
            preprocess=Preprocess(size=(64, 64), policy="stretch"),
        ),
    }


register(_variants())
