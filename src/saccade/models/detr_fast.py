"""A DETR that learns from hundreds of pictures: the published remedies together, small enough for a CPU.

What plain DETR (Carion et al. 2020, arXiv 2005.12872) needs hundreds of epochs for is taken from it:

* Where to look: queries attend to a few points of several maps (Zhu et al. 2020, arXiv 2010.04159).
* Where to begin: queries start as the most promising cells of the maps instead of as learned vectors (the same paper's
  two stages; Zhao et al. 2023, RT-DETR, arXiv 2304.08069, whose encoder this one resembles: attention on the coarsest
  map alone, convolutions between the maps).
* What to refine: each layer corrects the box of the one before (the same papers), through which gradients pass once
  more (Zhang et al. 2022, DINO, arXiv 2203.03605).
* What to learn from: the cells learn one object by many of them (Zong et al. 2022, Co-DETR, arXiv 2211.12860), as
  task-aligned assignment chooses them; denoising queries have a known answer (``models.denoise``).

One thing is ours: a query's content is that of its cell plus a mixture of learned vectors of the classes, as likely as
the cell holds them it; denoising queries are the pure vectors. So both kinds of queries speak one language.

Boxes inside of the model are centre x, centre y, width, height as shares of the canvas.

B batch · L layers of the decoder · Q queries · D denoising queries · T cells of all maps · C width · K classes · H, W
canvas
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saccade.backbones.timm import TimmConfig
from saccade.errors import ConfigError
from saccade.matching.hungarian import Objects
from saccade.models.denoise import DenoiseConfig
from saccade.models.detector import Candidates, Detector, DetectorConfig, Origin, Selection, learnable, letterbox
from saccade.models.detr_fast_loss import Answers, FastLossConfig, FastOutputs
from saccade.nn.csp import TwoWayPyramid
from saccade.nn.decoder import EncoderLayer, QueryAttention
from saccade.nn.deformable import DeformableAttention
from saccade.nn.embed import window_sincos
from saccade.nn.mlp import MLP, ExactLayers
from saccade.ops.boxes import from_centres
from saccade.ops.image import Preprocess
from saccade.registry import register
from saccade.types import BoxTarget, ExplainSpec, GridLayer, ImageBatch, Losses, QueryLayer, QueryLooks

PRIOR = 0.01
"""Score that everything starts with: most cells and queries are nothing."""


TRAINING: Mapping[str, Any] = {
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup": 0.05,
    "ema_decay": 0.998,
    "augment": {"flip": 0.5, "colour": 0.3, "zoom": [0.7, 1.4]},
}
"""What it is trained with where nothing else is set: as the one-stage detectors, at half their rate. Not tuned yet."""


@dataclass(frozen=True, kw_only=True)
class DetrFastConfig(DetectorConfig):
    """What sees, how wide and deep the rest is, how many queries there are."""

    kind: Literal["detr_fast"] = "detr_fast"
    backbone: TimmConfig = field(default_factory=TimmConfig)
    """What turns pixels into maps."""
    strides: tuple[int, ...] = (8, 16, 32)
    """The backbone's maps that are read."""
    width: int = 256
    """C of maps and queries."""
    num_heads: int = 8
    """Attention heads of all layers."""
    hidden: int = 1024
    """Width inside of the feed-forward layers."""
    encoder_layers: int = 1
    """Layers of attention on the coarsest map."""
    pyramid_depth: int = 1
    """Residual steps of each block between the maps."""
    decoder_layers: int = 3
    """Layers L of the decoder."""
    points: int = 4
    """Points per head and map that a query looks at."""
    queries: int = 100
    """Q: no picture can have more objects."""
    dropout: float = 0.0
    """Of all branches of encoder and decoder."""
    anchor: float = 4.0
    """Side of the box that a cell starts from, in cells."""
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)
    """Denoising queries, in training."""
    loss: FastLossConfig = field(default_factory=FastLossConfig)
    """What is learned."""
    preprocess: Preprocess = field(default_factory=lambda: letterbox(320))
    """How pictures become pixels."""
    selection: Selection = field(default_factory=lambda: Selection(nms_iou=1.0))
    """Which queries become detections; nothing has to be suppressed."""

    def train_settings(self, taken: Collection[str]) -> Mapping[str, Any]:
        """The same, whatever weights it starts from."""
        return TRAINING

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = (self.num_heads, self.hidden, self.pyramid_depth, self.decoder_layers, self.points, self.queries)
        if min(counts) < 1 or self.encoder_layers < 0 or not 0 <= self.dropout < 1 or self.anchor <= 0:
            raise ConfigError("a number of layers, heads, points or queries, dropout or anchor is out of range")
        if self.width < 4 or self.width % 4 or self.width % self.num_heads:
            expected = f"a multiple of 4 and of num_heads {self.num_heads}"
            raise ConfigError(f"width is {self.width}", where="width", expected=expected)
        if not self.strides or list(self.strides) != sorted(set(self.strides)):
            raise ConfigError(f"strides are {self.strides}", where="strides", expected="rising")
        if self.decoder_layers > 1 and not self.loss.auxiliary:
            raise ConfigError(
                "the scores of the earlier layers of the decoder would never learn",
                where="loss.auxiliary",
                expected="above 0, or a decoder of one layer",
                remedy="set loss.auxiliary to 1 or decoder_layers to 1",
            )

    def build(self) -> DetrFast:
        """The detector, with random weights."""
        return DetrFast(self)


class MapEncoder(nn.Module):
    """Maps of a backbone to maps of one width: attention on the coarsest, convolutions down and up again.

    Args:
        channels: of the maps, finest first.
        config: of the detector.
    """

    def __init__(self, channels: Sequence[int], config: DetrFastConfig) -> None:
        super().__init__()
        width = config.width
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(num_in, width, 1, bias=False), nn.BatchNorm2d(width)) for num_in in channels
        )
        self.layers = nn.ModuleList(
            EncoderLayer(width, config.num_heads, config.hidden, config.dropout) for _ in range(config.encoder_layers)
        )
        self.pyramid = TwoWayPyramid([width] * len(channels), config.pyramid_depth)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``[B, C_l, h_l, w_l]`` to ``[B, C, h_l, w_l]``."""
        levels = [lateral(level) for lateral, level in zip(self.lateral, maps, strict=True)]
        grid = (int(levels[-1].shape[-2]), int(levels[-1].shape[-1]))
        tokens = levels[-1].flatten(2).transpose(1, 2)
        places = window_sincos([grid], grid, int(tokens.shape[-1])).to(tokens)
        for layer in self.layers:
            tokens = layer(tokens, places)
        levels[-1] = tokens.transpose(1, 2).reshape(levels[-1].shape)
        found: list[Tensor] = self.pyramid(levels)
        return found


class DeformableLayer(nn.Module):
    """Queries look at each other, at a few points of the maps, and think; post-norm."""

    def __init__(self, config: DetrFastConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = QueryAttention(width, config.num_heads)
        self.cross = DeformableAttention(width, config.num_heads, len(config.strides), config.points)
        self.mlp = MLP(width, config.hidden, "relu", config.dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, queries: Tensor, places: Tensor, boxes: Tensor, maps: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        """Queries ``[B, Q, C]`` with boxes ``[B, Q, 4]`` and their codes ``places``, to queries."""
        placed = queries + places
        queries = self.norm1(queries + self.dropout(self.attention(placed, placed, queries, mask)))
        queries = self.norm2(queries + self.dropout(self.cross(queries + places, boxes, maps)))
        thought: Tensor = self.norm3(queries + self.mlp(queries))
        return thought


class ClassHead(nn.Module):
    """All that depends on the classes.

    Attributes:
        dense: scores of the cells.
        layers: scores of the queries, one per layer of the decoder.
        labels: ``[K, C]`` a vector of each class.
    """

    def __init__(self, width: int, num_classes: int, layers: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, num_classes)
        self.layers = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(layers))
        self.labels = nn.Parameter(torch.empty(num_classes, width))
        nn.init.normal_(self.labels)
        for scores in (self.dense, *self.layers):
            nn.init.xavier_uniform_(scores.weight)
            nn.init.constant_(scores.bias, -math.log(1 / PRIOR - 1))


class DetrFast(Detector[FastOutputs]):
    """Backbone, encoder of maps, cells that become queries, decoder.

    Raises:
        ConfigError: where the backbone has no map of a stride, or its coarsest map is not among them.

    Attributes:
        backbone: pixels to one map per stage.
        encoder: some of these maps to levels of one width.
        levels: the levels pass here, finest first, for explanation to record.
        layers: of the decoder.
        head: all that depends on the classes.
    """

    config: DetrFastConfig

    def __init__(self, config: DetrFastConfig) -> None:
        super().__init__(config)
        width = config.width
        self.backbone = config.backbone.build_pyramid()
        self._stages = self.backbone.stages_of(config.strides, needs_coarsest=True)
        self.encoder = MapEncoder([self.backbone.channels[stage] for stage in self._stages], config)
        self.levels = nn.ModuleList(nn.Identity() for _ in config.strides)
        self.cell = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.cell_box = _box_layers(width)
        self.place = nn.Sequential(nn.Linear(4, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.layers = nn.ModuleList(DeformableLayer(config) for _ in range(config.decoder_layers))
        self.boxes = nn.ModuleList(_box_layers(width) for _ in range(config.decoder_layers))
        self.head = ClassHead(width, config.num_classes, config.decoder_layers)

    def forward(self, images: ImageBatch, targets: Sequence[BoxTarget] | None = None) -> FastOutputs:
        """What queries and cells say; in training targets make denoising queries, which change nothing else."""
        features = self.backbone(images.pixels).maps
        maps = self.encoder([features[stage] for stage in self._stages])
        maps = [pass_on(level) for pass_on, level in zip(self.levels, maps, strict=True)]
        canvas = torch.tensor(images.pixels.shape[-2:], device=images.pixels.device)
        anchors = _anchors(maps, self.config.anchor)
        cells = self.cell(torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1))
        dense_logits = self.head.dense(cells)
        dense_boxes = self.cell_box(cells) + torch.logit(anchors, eps=1e-3)
        count = min(self.config.queries, cells.shape[1])
        chosen = dense_logits.detach().amax(-1).topk(count, dim=1).indices
        references = _take(dense_boxes, chosen).detach()
        likely = _take(dense_logits, chosen).detach().sigmoid()
        queries = _take(cells, chosen) + likely @ self.head.labels
        denoised, mask = chosen[:, :0], None
        if self.training and targets is not None:
            objects = Objects.of(learnable(targets), canvas.expand(len(images), 2))
            noisy = self.config.denoise(objects, self.config.num_classes, count)
            denoised, mask = noisy.object, noisy.mask
            queries = torch.cat([self.head.labels[noisy.labels].to(queries), queries], dim=1)
            references = torch.cat([torch.logit(noisy.boxes, eps=1e-3), references], dim=1)
        said = self._decode(queries, references, maps, mask)
        split = denoised.shape[1]
        logits, boxes = said.logits[:, :, split:], said.boxes[:, :, split:]
        return FastOutputs(
            logits[-1],
            boxes[-1],
            Answers(logits[:-1], boxes[:-1]),
            dense_logits,
            dense_boxes.sigmoid(),
            anchors[:, :2] * canvas.flip(0),
            chosen,
            Answers(said.logits[:, :, :split], said.boxes[:, :, :split]),
            denoised,
            canvas,
        )

    def _decode(self, queries: Tensor, references: Tensor, maps: Sequence[Tensor], mask: Tensor | None) -> Answers:
        """Layer by layer; in evaluation only the last layer answers. ``references`` are logits of boxes."""
        logits, boxes = [], []
        for index, (layer, correct, score) in enumerate(zip(self.layers, self.boxes, self.head.layers, strict=True)):
            around = references.detach().sigmoid()
            queries = layer(queries, self.place(around.to(queries.dtype)), around, maps, mask)
            shift = correct(queries)
            if self.training or index + 1 == len(self.layers):
                logits.append(score(queries))
                boxes.append((references + shift).sigmoid())
            # The next layer corrects this box; its error reaches this layer, and no layer before.
            references = references.detach() + shift
        return Answers(torch.stack(logits), torch.stack(boxes))

    def loss(self, outputs: FastOutputs, targets: Sequence[BoxTarget]) -> Losses:
        """``class``, ``boxes``, ``giou`` of the last layer; with ``aux_``, ``dense_``, ``denoise_`` of all others."""
        height, width = outputs.canvas.tolist()
        finest = math.prod(self._grids((height, width))[0])
        return Losses(self.config.loss(outputs, learnable(targets), finest))

    def candidates(self, outputs: FastOutputs, images: ImageBatch) -> list[Candidates]:
        """The queries of each picture, each as an object of every class."""
        boxes = (from_centres(outputs.boxes.float()) * outputs.canvas.flip(0).repeat(2))[:, :, None]
        logits = outputs.logits.float()
        return [Candidates(*parts) for parts in zip(boxes, logits.sigmoid(), logits, strict=True)]

    def origin(self, outputs: FastOutputs, image: int, source: int) -> Origin:
        """The query, and the cell that it started from."""
        cell = int(outputs.cells[image, source])
        height, width = outputs.canvas.tolist()
        level, grids = 0, self._grids((height, width))
        while cell >= math.prod(grids[level]):
            cell -= math.prod(grids[level])
            level += 1
        (rows, columns), stride = grids[level], self.config.strides[level]
        row, column = divmod(cell, columns)
        sides = torch.tensor([width / columns, height / rows] * 2)
        box = torch.tensor([column, row, column + 1, row + 1]) * sides
        return Origin(f"query {source}, from row {row}, column {column} of the map of stride {stride}", box)

    def explain_spec(self) -> ExplainSpec:
        """The backbone's stages, ``bottleneck`` its last map, the levels (``p5`` ...), and ``final``, the finest.

        No attention is listed: queries look at points and not at tokens; ``queries`` says which modules these pass.
        """
        layers = dict(self.backbone.explain_spec().under("backbone").layers)
        layers["bottleneck"] = layers.pop("final")
        for index in reversed(range(len(self.levels))):
            layers[f"p{self.config.strides[index].bit_length() - 1}"] = GridLayer(f"levels.{index}")
        layers["final"] = GridLayer("levels.0")
        paths = [f"layers.{index}" for index in range(len(self.layers))]
        looks = [
            QueryLayer(f"{path}.attention.probabilities", f"{path}.cross.probabilities", f"{path}.cross.points")
            for path in paths
        ]
        return ExplainSpec(layers, queries=QueryLooks(looks, self._grids))

    def _grids(self, canvas: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of the levels, finest first."""
        return [(-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in self.config.strides]

    def no_decay(self) -> set[str]:
        """The vectors of the classes."""
        return {"head.labels"}


def _take(values: Tensor, chosen: Tensor) -> Tensor:
    """Of values ``[B, T, n]`` those of cells ``[B, Q]``: ``[B, Q, n]``."""
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))


def _anchors(maps: Sequence[Tensor], side: float) -> Tensor:
    """The box of every cell, ``[T, 4]`` centre x, y, width, height as shares of the canvas; ``side`` in cells."""
    found = []
    for level in maps:
        height, width = int(level.shape[-2]), int(level.shape[-1])
        rows = (torch.arange(height, device=level.device, dtype=torch.float32) + 0.5) / height
        columns = (torch.arange(width, device=level.device, dtype=torch.float32) + 0.5) / width
        centres = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], dim=-1).flatten(0, 1)
        sides = centres.new_tensor([side / width, side / height]).expand(len(centres), -1)
        found.append(torch.cat([centres, sides], dim=-1))
    return torch.cat(found)


def _box_layers(width: int) -> ExactLayers:
    """Three linear layers that begin by changing next to nothing; float32 logits of boxes."""
    last = nn.Linear(width, 4)
    nn.init.normal_(last.weight, std=1e-3)
    nn.init.zeros_(last.bias)
    return ExactLayers(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)


def _variants() -> dict[str, DetrFastConfig]:
    narrow = TimmConfig(name="resnet18", arguments={"channels": [16, 32, 64, 128]})
    tiny = TimmConfig(name="resnet18", arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]})
    small = DetrFastConfig(backbone=narrow, width=96, num_heads=4, hidden=192)
    return {
        "detr_fast_r50": DetrFastConfig(
            backbone=TimmConfig(name="resnet50"), decoder_layers=6, queries=300, preprocess=letterbox(640)
        ),
        "detr_fast_r18": DetrFastConfig(preprocess=letterbox(512)),
        "detr_fast_mobilenet": replace(small, backbone=TimmConfig(name="mobilenetv2_100")),
        "detr_fast_small": small,
        "detr_fast_test": replace(
            small,
            num_classes=3,
            backbone=tiny,
            width=16,
            num_heads=2,
            hidden=24,
            decoder_layers=2,
            queries=12,
            points=2,
            denoise=DenoiseConfig(queries=12),
            preprocess=letterbox(64),
            selection=Selection(nms_iou=1.0, min_score=PRIOR / 10),
        ),
    }


register(_variants())
