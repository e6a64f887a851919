"""DETR: object queries ask a transformer's memory of the picture, and each answers with one object or with none.

Carion et al. 2020, arXiv 2005.12872. Four parts:

1. Forward: a convolutional backbone, a projection to tokens with sine-cosine places, an encoder in which tokens look at
   each other, a decoder in which learned queries look at each other and at the tokens; per query a class and a box.
2. Matching: every object takes the query that fits it best, all others learn "no object" (``matching.hungarian``).
3. Loss: class and box of the matched queries, for every layer of the decoder (``models.set_loss``).
4. Post-processing: a threshold. No anchors, no suppression.

Differs from the paper: batch norms of the backbone are frozen only where a variant says so; padding of the canvas is
known from the sizes of the pictures. The same weights give what transformers' ``DetrForObjectDetection`` gives.

Boxes inside of the model are centre x, centre y, width, height as shares of the picture's own extent on the canvas.

B batch · T tokens · Q queries · C width · L layers of the decoder · K classes · h, w grid of tokens · H, W canvas
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.base import Routing
from saccade.backbones.timm import TimmConfig
from saccade.errors import ConfigError
from saccade.matching.hungarian import Objects
from saccade.models.detector import Candidates, Detector, DetectorConfig, Origin, Selection, learnable, letterbox
from saccade.models.set_loss import SetLossConfig
from saccade.nn.decoder import DecoderLayer, EncoderLayer
from saccade.nn.embed import Grid, window_sincos
from saccade.nn.mlp import ExactLayers
from saccade.ops.boxes import from_centres
from saccade.ops.image import Preprocess
from saccade.registry import register
from saccade.types import AttentionSite, BoxTarget, ExplainSpec, GridLayer, ImageBatch, Losses, QueryLayer, QueryLooks

ALL_KEPT = Selection(nms_iou=1.0)
"""Queries are told apart in training, so nothing has to be suppressed."""


@dataclass(frozen=True, kw_only=True)
class SetDetectorConfig(DetectorConfig):
    """What detectors that ask with learned queries have in common."""

    num_heads: int = 8
    """Attention heads of all layers."""
    hidden: int = 2048
    """Width inside of the feed-forward layers."""
    decoder_layers: int = 6
    """Layers L of the decoder."""
    queries: int = 100
    """Q: no picture can have more objects."""
    has_content: bool = False
    """Whether queries begin with learned content. Published ones begin empty, and their first look at each other is
    without effect."""
    dropout: float = 0.1
    """Of all branches."""
    norm_position: Literal["pre", "post"] = "post"
    """Norm before each branch, or after each sum, as published."""
    loss: SetLossConfig = field(default_factory=SetLossConfig)
    """What is learned."""
    selection: Selection = field(default_factory=lambda: ALL_KEPT)
    """Which queries become detections."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.num_heads, self.hidden, self.decoder_layers, self.queries) < 1 or not 0 <= self.dropout < 1:
            raise ConfigError("num_heads, hidden, decoder_layers, queries or dropout is out of range")

    def check_width(self, width: int, name: str) -> None:
        """Refuse a width of tokens that heads or places do not divide."""
        if width < 4 or width % 4 or width % self.num_heads:
            expected = f"a multiple of 4 and of num_heads {self.num_heads}"
            raise ConfigError(f"{name} is {width}", where=name, expected=expected)


@dataclass(frozen=True, kw_only=True)
class DetrConfig(SetDetectorConfig):
    """DETR: what sees, how deep and how wide the transformer is."""

    kind: Literal["detr"] = "detr"
    backbone: TimmConfig = field(default_factory=lambda: TimmConfig(name="resnet50"))
    """What turns pixels into maps; the last one is read."""
    freeze_norms: bool = False
    """Whether the backbone's batch norms stay as they are in training, as published: statistics, weights and biases."""
    width: int = 256
    """C of the tokens."""
    encoder_layers: int = 6
    """Layers of the encoder; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_width(self.width, "width")
        if self.encoder_layers < 0:
            raise ConfigError(f"encoder_layers is {self.encoder_layers}", where="encoder_layers", expected="at least 0")

    def build(self) -> Detr:
        """The detector, with random weights."""
        return Detr(self)


class SetOutputs(NamedTuple):
    """What every query says.

    Attributes:
        logits: ``[B, Q, K + 1]``, "no object" last.
        boxes: ``[B, Q, 4]`` centre x, y, width, height, as shares of the extent.
        auxiliary_logits: ``[L - 1, B, Q, K + 1]`` of the earlier layers; none in evaluation.
        auxiliary_boxes: ``[L - 1, B, Q, 4]``; none in evaluation.
        extent: ``[B, 2]`` height and width in pixels of the canvas that boxes are shares of.
        routing: what the backbone's experts did.
    """

    logits: Tensor
    boxes: Tensor
    auxiliary_logits: Tensor
    auxiliary_boxes: Tensor
    extent: Tensor
    routing: Routing


class QueryDecoder(nn.Module):
    """Learned queries and the layers that answer them.

    Args:
        config: of the detector.
        width: C.
        num_classes: K.

    Attributes:
        places: ``[Q, C]`` the learned queries: what tells them apart at every layer.
        content: ``[Q, C]`` what each begins with; None where they begin empty.
        head: a query's class; the only part that depends on the classes.
        box: a query's box, three linear layers, the last one in float32 whatever the others are in.
    """

    def __init__(self, config: SetDetectorConfig, width: int, num_classes: int) -> None:
        super().__init__()
        is_pre_norm = config.norm_position == "pre"
        self.places = nn.Parameter(torch.empty(config.queries, width))
        self.content = nn.Parameter(torch.empty(config.queries, width)) if config.has_content else None
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.num_heads, config.hidden, config.dropout, is_pre_norm=is_pre_norm)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes + 1)
        self.box = ExactLayers(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        for table in (self.places, self.content):
            if table is not None:
                nn.init.normal_(table)

    def forward(self, memory: Tensor, places: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ask the picture: logits ``[L, B, Q, K + 1]``, boxes ``[L, B, Q, 4]`` float32; in evaluation the last layer's.

        Args:
            memory: ``[B, T, C]`` its tokens.
            places: ``[B or 1, T, C]`` where they are.
            mask: ``[B, 1, 1, T]`` bool, False where there is no picture; None where there is everywhere.
        """
        keys = memory + places
        start = torch.zeros_like(self.places) if self.content is None else self.content
        queries = start.to(memory.dtype).expand(len(memory), -1, -1)
        answers = []
        for layer in self.layers:
            queries = layer(queries, self.places, keys, memory, mask)
            answers.append(queries)
        said = self.norm(torch.stack(answers if self.training else answers[-1:]))
        return self.head(said), self.box(said).sigmoid()

    def sites(self, prefix: str, grid: Callable[[tuple[int, int]], Grid]) -> list[AttentionSite]:
        """Where queries look at the picture, one site per layer: ``[B, N, Q, T]``."""
        return [AttentionSite(f"{prefix}.layers.{i}.cross.probabilities", 0, grid) for i in range(len(self.layers))]

    def looks(
        self, prefix: str, grid: Callable[[tuple[int, int]], Grid], encoder: Sequence[AttentionSite]
    ) -> QueryLooks:
        """Where queries look, layer by layer; ``encoder`` are the looks of the tokens at each other."""
        paths = [f"{prefix}.layers.{index}" for index in range(len(self.layers))]
        layers = [QueryLayer(f"{path}.attention.probabilities", f"{path}.cross.probabilities") for path in paths]
        return QueryLooks(layers, lambda canvas: [grid(canvas)], encoder)


class SetDetector(Detector[SetOutputs]):
    """Base of the detectors whose queries answer with a class, or none, and a box."""

    config: SetDetectorConfig
    decoder: QueryDecoder

    def loss(self, outputs: SetOutputs, targets: Sequence[BoxTarget]) -> Losses:
        """``class``, ``boxes``, ``giou`` of the last layer, and ``aux_*`` of the earlier ones."""
        objects = Objects.of(learnable(targets), outputs.extent)
        logits = torch.cat([outputs.auxiliary_logits, outputs.logits[None]])
        boxes = torch.cat([outputs.auxiliary_boxes, outputs.boxes[None]])
        return Losses(self.config.loss(logits, boxes, objects))

    def candidates(self, outputs: SetOutputs, images: ImageBatch) -> list[Candidates]:
        """The queries of each picture; "no object" is left out after the softmax."""
        sides = outputs.extent.float().flip(-1).repeat(1, 2)[:, None]
        boxes = (from_centres(outputs.boxes.float()) * sides)[:, :, None]
        logits = outputs.logits.float()
        parts = zip(boxes, logits.softmax(-1)[..., :-1], logits[..., :-1], strict=True)
        return [Candidates(*part) for part in parts]

    def origin(self, outputs: SetOutputs, image: int, source: int) -> Origin:
        """The query."""
        return Origin(f"query {source}")

    def no_decay(self) -> set[str]:
        """The learned queries."""
        return {"decoder.places", *(["decoder.content"] if self.decoder.content is not None else [])}


class Detr(SetDetector):
    """Backbone, projection, encoder, decoder.

    Attributes:
        backbone: pixels to one map.
        project: its channels to tokens.
        encoder: layers in which tokens look at each other.
        decoder: layers in which queries look at each other and at the tokens.
    """

    config: DetrConfig

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.backbone = config.backbone.build()
        self.project = nn.Conv2d(self.backbone.channels[-1], config.width, 1)
        self.encoder = nn.ModuleList(
            EncoderLayer(
                config.width,
                config.num_heads,
                config.hidden,
                config.dropout,
                is_pre_norm=config.norm_position == "pre",
            )
            for _ in range(config.encoder_layers)
        )
        has_last_norm = config.norm_position == "pre" and config.encoder_layers > 0
        self.norm = nn.LayerNorm(config.width) if has_last_norm else nn.Identity()
        self.final = nn.Identity()  # what the queries look at passes here, for explanation to record
        self.decoder = QueryDecoder(config, config.width, config.num_classes)
        if config.freeze_norms:
            self.backbone.freeze_norms()

    def forward(self, images: ImageBatch, targets: Sequence[BoxTarget] | None = None) -> SetOutputs:
        """What every query says; targets change nothing."""
        features = self.backbone(images.pixels)
        maps = self.project(features.maps[-1])
        canvas, grid = _shape(images.pixels), _shape(maps)
        windows = [_window(size, canvas, grid) for size in images.sizes]
        is_whole = all(window == grid for window in windows)
        places = window_sincos(windows[:1] if is_whole else windows, grid, self.config.width).to(maps)
        mask = None if is_whole else _mask(windows, grid).to(maps.device)
        tokens = F.dropout(maps.flatten(2).transpose(1, 2), self.config.dropout, self.training)
        for layer in self.encoder:
            tokens = layer(tokens, places, mask)
        logits, boxes = self.decoder(self.final(self.norm(tokens)), places, mask)
        extent = torch.tensor(images.sizes, device=maps.device)
        return SetOutputs(logits[-1], boxes[-1], logits[:-1], boxes[:-1], extent, features.routing)

    def explain_spec(self) -> ExplainSpec:
        """The backbone's stages, ``bottleneck`` its last map, ``projected``, the encoder's layers, ``final``.

        Attention is the encoder's, and last the decoder's last look at the picture; ``cross_attention`` has all looks.
        """
        layers = dict(self.backbone.explain_spec().under("backbone").layers)
        layers["bottleneck"] = layers.pop("final")
        layers["projected"] = GridLayer("project")
        layers |= {f"encoder{i}": GridLayer(f"encoder.{i}", self._to_grid) for i in range(len(self.encoder) - 1)}
        layers["final"] = GridLayer("final", self._to_grid)
        own = [AttentionSite(f"encoder.{i}.attention.probabilities", 0, self._grid) for i in range(len(self.encoder))]
        looks = self.decoder.looks("decoder", self._grid, own)
        return ExplainSpec(layers, [*own, self.cross_attention()[-1]], usual_layer="bottleneck", queries=looks)

    def cross_attention(self) -> list[AttentionSite]:
        """Where each query looks, one site per layer of the decoder: ``[B, heads, Q, T]``."""
        return self.decoder.sites("decoder", self._grid)

    def _grid(self, canvas: tuple[int, int]) -> Grid:
        stride = self.backbone.strides[-1]
        return -(-canvas[0] // stride), -(-canvas[1] // stride)

    def _to_grid(self, tokens: Tensor, canvas: tuple[int, int]) -> Tensor:
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *self._grid(canvas))


def _shape(maps: Tensor) -> tuple[int, int]:
    return int(maps.shape[-2]), int(maps.shape[-1])


def _window(size: tuple[int, int], canvas: tuple[int, int], grid: Grid) -> Grid:
    """Rows and columns of the cells whose first pixel shows the picture."""
    rows, columns = (
        sum(cell * whole // cells < own for cell in range(cells))
        for own, whole, cells in zip(size, canvas, grid, strict=True)
    )
    return rows, columns


def _mask(windows: Sequence[Grid], grid: Grid) -> Tensor:
    """``[B, 1, 1, h * w]`` bool, whether each cell shows the picture."""
    counts = torch.tensor(windows)
    is_row = torch.arange(grid[0]) < counts[:, :1]
    is_column = torch.arange(grid[1]) < counts[:, 1:]
    return (is_row[:, :, None] & is_column[:, None]).flatten(1)[:, None, None]


def _variants() -> dict[str, DetrConfig]:
    r50 = DetrConfig(freeze_norms=True, preprocess=Preprocess(size=(800, 1333), policy="shorter"))
    narrow = TimmConfig(name="resnet18", arguments={"channels": [16, 32, 64, 128], "output_stride": 16})
    small = replace(
        r50,
        backbone=narrow,
        freeze_norms=False,
        width=128,
        num_heads=4,
        hidden=256,
        encoder_layers=2,
        decoder_layers=3,
        has_content=True,
        dropout=0.0,
        preprocess=letterbox(256),
    )
    tiny = TimmConfig(name="resnet18", arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]})
    test = replace(
        small,
        backbone=tiny,
        num_classes=3,
        width=32,
        hidden=48,
        encoder_layers=1,
        decoder_layers=2,
        queries=12,
        preprocess=letterbox(64),
    )
    return {
        "detr_r50": r50,
        "detr_r18": replace(r50, backbone=TimmConfig(name="resnet18"), preprocess=letterbox(512)),
        "detr_small": small,
        "detr_test": test,
        "detr_pre_norm_test": replace(test, norm_position="pre"),
    }


register(_variants())
