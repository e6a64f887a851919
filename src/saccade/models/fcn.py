"""Fully convolutional networks: a classifier's backbone, class scores at every place of its maps, upsampled.

Long et al. 2014, arXiv 1411.4038: scores of coarse maps are upsampled and added to those of finer ones (32s, 16s, 8s).
Differs from the paper: any backbone of timm instead of VGG with its dense layers; the scores of the coarsest map start
random, because the backbone may. As there, the step from the finest scores to the canvas is bilinear and not learned.

The dilated head is torchvision's: strides of the backbone's last stages are replaced by dilation as in Chen et al.
2017, arXiv 1706.05587, then a 3x3 convolution, scores, and one bilinear step; an auxiliary head sees the stage before
the last during training (Zhao et al. 2016, arXiv 1612.01105). The same weights give the same logits.

B batch · K classes · L maps that are scored · C_l, s_l their widths and strides, coarsest first · H, W canvas
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from saccade.backbones.timm import TimmConfig
from saccade.errors import ConfigError
from saccade.models.segmenter import Segmenter, SegmenterConfig, SegmenterOutputs, native
from saccade.nn.conv import ConvNorm
from saccade.nn.resample import Interpolate, build_upsample
from saccade.registry import register
from saccade.types import ExplainSpec, GridLayer

Upsampling = Literal["bilinear", "learned"]


@dataclass(frozen=True, kw_only=True)
class FCNConfig(SegmenterConfig):
    """A fully convolutional network: what sees, which maps are scored, how scores become finer."""

    kind: Literal["fcn"] = "fcn"
    backbone: TimmConfig = field(default_factory=TimmConfig)
    """What turns pixels into maps; ``arguments: {"output_stride": 8}`` dilates a ResNet's last stages."""
    head: Literal["skip", "dilated"] = "skip"
    """Scores of several maps are added up, or those of the last map alone behind one more convolution."""
    finest: Literal[8, 16, 32] = 8
    """Stride of the finest map that a skip head scores."""
    upsampling: Upsampling = "bilinear"
    """How scores come from one map to the next finer one: by a rule, or by transposed convolutions that start as it."""
    head_dropout: float = 0.1
    """Dropout before the scores of a dilated head."""
    has_auxiliary: bool = False
    """Whether the stage before the last is scored as well, in training; ``loss.auxiliary`` weights it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.head_dropout < 1:
            raise ConfigError(f"head_dropout is {self.head_dropout}", where="head_dropout", expected="in [0, 1)")
        if self.upsampling == "learned" and (self.head == "dilated" or self.finest == 32):
            raise ConfigError(
                "scores of one map are only enlarged to the canvas, which is never learned",
                where="upsampling",
                expected="'bilinear'",
                remedy="or a skip head with finest=16 or 8",
            )

    def build(self) -> FCN:
        """The segmenter, with random weights."""
        return FCN(self)


class ScoreFusion(nn.Module):
    """Class scores of some maps, coarsest first: upsampled, added up, and enlarged to the canvas.

    Args:
        channels: widths C_l of the maps.
        strides: their strides s_l, falling.
        num_classes: K.
        upsampling: how scores become finer.

    Attributes:
        fused: the sum passes here, ``[B, K, H / s_L, W / s_L]``, for explanation to record.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, upsampling: Upsampling
    ) -> None:
        super().__init__()
        scores = [nn.Conv2d(width, num_classes, 1) for width in channels]
        for index, score in enumerate(scores):
            nn.init.zeros_(score.bias)  # type: ignore[arg-type]
            if index:  # finer maps come in as corrections that are learned from nothing
                nn.init.zeros_(score.weight)
        self.scores = nn.ModuleList(scores)
        factors = [coarse // fine for coarse, fine in itertools.pairwise(strides)]
        self.steps = nn.ModuleList(_upsample(upsampling, num_classes, factor) for factor in factors)
        self.fused = nn.Identity()
        self.enlarge = Interpolate("bilinear", strides[-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, C_l, H / s_l, W / s_l]`` to logits ``[B, K, H, W]``."""
        total = self.scores[0](maps[0])
        for step, score, finer in zip(self.steps, self.scores[1:], maps[1:], strict=True):
            total = step(total) + score(finer)
        logits: Tensor = self.enlarge(self.fused(total))
        return logits


class AuxiliaryHead(nn.Module):
    """Scores of an inner map, which bring a gradient to the middle of the network on a short way."""

    def __init__(self, width: int, stride: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.neck = _neck(width, dropout)
        self.head = nn.Conv2d(width // 4, num_classes, 1)
        self.enlarge = Interpolate("bilinear", stride)

    def forward(self, maps: Tensor) -> Tensor:
        """``[B, C, h, w]`` to logits ``[B, K, H, W]``."""
        logits: Tensor = self.enlarge(self.head(self.neck(maps)))
        return logits


class FCN(Segmenter):
    """Backbone, in the dilated form one more convolution, scores.

    Attributes:
        backbone: pixels to one map per stage.
        neck: the 3x3 convolution of the dilated head; None with skips.
        head: scores and their upsampling; with the auxiliary head's last layer all that depends on the classes.
    """

    config: FCNConfig

    def __init__(self, config: FCNConfig) -> None:
        super().__init__(config)
        self.backbone = config.backbone.build_pyramid()
        channels, strides = self.backbone.channels, self.backbone.strides
        self.stride = max(strides)
        self.neck = _neck(channels[-1], config.head_dropout) if config.head == "dilated" else None
        self.final = nn.Identity()  # what a dilated head reads passes here, for explanation to record
        self._levels = [len(strides) - 1] if self.neck else _levels(strides, config.finest)
        widths = [channels[-1] // 4] if self.neck else [channels[level] for level in self._levels]
        scored = [strides[level] for level in self._levels]
        self.head = ScoreFusion(widths, scored, config.num_classes, config.upsampling)
        self.auxiliary = None
        if config.has_auxiliary:
            self.auxiliary = AuxiliaryHead(channels[-2], strides[-2], config.num_classes, config.head_dropout)

    def segment(self, pixels: Tensor) -> SegmenterOutputs:
        """Pixels ``[B, 3, H, W]`` to logits ``[B, K, H, W]``; H and W multiples of the deepest stride."""
        features = self.backbone(pixels)
        if self.neck is None:
            logits = self.head([features.maps[level] for level in self._levels])
        else:
            logits = self.head([self.final(self.neck(features.maps[-1]))])
        if self.auxiliary is None or not self.training:
            auxiliary = logits.new_zeros(0, *logits.shape)
        else:
            auxiliary = self.auxiliary(features.maps[-2])[None]
        return SegmenterOutputs(logits, auxiliary, features.routing)

    def explain_spec(self) -> ExplainSpec:
        """The backbone's stages, ``bottleneck``, and ``final``: with skips the fused scores, else what is scored."""
        layers = dict(self.backbone.explain_spec().under("backbone").layers)
        layers["bottleneck"] = layers.pop("final")
        layers["final"] = GridLayer("head.fused" if self.neck is None else "final")
        return ExplainSpec(layers, usual_layer="bottleneck")


def _upsample(upsampling: Upsampling, num_classes: int, factor: int) -> nn.Module:
    """Between two maps: ``[B, K, h, w]`` to ``[B, K, f h, f w]``; both ways begin alike, except at the border."""
    return build_upsample("transposed" if upsampling == "learned" else "bilinear", num_classes, factor)


def _levels(strides: Sequence[int], finest: int) -> list[int]:
    """Indices of the maps to score, coarsest first: the last one of each stride down to ``finest``.

    Raises:
        ConfigError: where no map is as coarse or none is as fine.
    """
    last = {stride: level for level, stride in enumerate(strides)}
    if finest not in last:
        raise ConfigError(
            f"no map of the backbone has stride {finest}",
            where="finest",
            expected="one of " + ", ".join(str(stride) for stride in last if stride >= 8),
        )
    return [last[stride] for stride in sorted(last, reverse=True) if stride >= finest]


def _neck(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(ConvNorm(width, width // 4), nn.Dropout(dropout))


def _sizes() -> dict[str, FCNConfig]:
    dilated = {
        f"fcn_{name}": FCNConfig(
            backbone=TimmConfig(name=name, arguments={"output_stride": 8}),
            head="dilated",
            has_auxiliary=True,
            preprocess=native(512),
        )
        for name in ("resnet50", "resnet101")
    }
    r18 = FCNConfig(backbone=TimmConfig(name="resnet18"), preprocess=native(512))
    narrow = TimmConfig(name="resnet18", arguments={"channels": [16, 32, 64, 128]})
    return {
        **dilated,
        "fcn32s_r18": replace(r18, finest=32),
        "fcn16s_r18": replace(r18, finest=16),
        "fcn8s_r18": r18,
        "fcn8s_r50": replace(r18, backbone=TimmConfig(name="resnet50")),
        "fcn8s_mobilenet": replace(r18, backbone=TimmConfig(name="mobilenetv2_100")),
        "fcn8s_small": replace(r18, backbone=narrow, preprocess=native(256)),
    }


def _tests() -> dict[str, FCNConfig]:
    """Under 100k parameters each."""
    cnn = {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24]}
    skip = FCNConfig(backbone=TimmConfig(name="resnet18", arguments=cnn), num_classes=5, preprocess=native(64))
    wider = {"channels": [8, 12, 24, 32], "output_stride": 8}  # a neck of a quarter of these has to learn something
    dilated = TimmConfig(name="resnet18", arguments={**cnn, **wider})
    return {
        "fcn32s_test": replace(skip, finest=32),
        "fcn8s_test": skip,
        "fcn8s_learned_test": replace(skip, upsampling="learned"),
        "fcn_dilated_test": replace(skip, backbone=dilated, head="dilated", has_auxiliary=True, preprocess=native(32)),
    }


register({**_sizes(), **_tests()})
