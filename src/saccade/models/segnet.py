"""Encoder-decoder whose decoder knows where each maximum was: SegNet, with any kind of upsampling in its place.

Badrinarayanan et al. 2015, arXiv 1511.00561. The encoder is that of VGG16 (Simonyan and Zisserman 2014, arXiv
1409.1556); each of its max poolings hands the places of its maxima to the upsampling at the same depth, and nothing
else passes from one side to the other. Differs from the paper: the decoder ends in maps of the finest width, which a
1x1 convolution classifies; the weights start random, not from ImageNet; the upsampling is a config value, so that the
ways of growing a map can be compared with everything else equal (``saccade.nn.resample``).

B batch · K classes · N levels · C_i width of level i, finest first · H, W canvas
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.base import Routing
from saccade.errors import ConfigError
from saccade.models.segmenter import Segmenter, SegmenterConfig, SegmenterOutputs, native
from saccade.nn.conv import ConvNorm
from saccade.nn.resample import UpsampleKind, build_upsample
from saccade.registry import register
from saccade.types import ExplainSpec, GridLayer


@dataclass(frozen=True, kw_only=True)
class SegNetConfig(SegmenterConfig):
    """An encoder-decoder: how wide, how deep, how it grows back."""

    kind: Literal["segnet"] = "segnet"
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    """Channels of each level, finest first; each level halves the map once."""
    convs: tuple[int, ...] = (2, 2, 3, 3, 3)
    """Convolutions of each level, in the encoder and again in the decoder."""
    upsample: UpsampleKind = "max_unpool"
    """How the decoder makes maps larger."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or len(self.widths) != len(self.convs) or min(*self.widths, *self.convs) < 1:
            found = f"widths is {self.widths}, convs {self.convs}"
            raise ConfigError(found, where="convs", expected="one number of at least 1 per level in each")

    def build(self) -> SegNet:
        """The segmenter, with random weights."""
        return SegNet(self)


class SegNet(Segmenter):
    """Encoder, decoder, one 1x1 convolution.

    Attributes:
        encoder: one stage per level, finest first, each followed by a max pooling.
        bottleneck: the coarsest map passes here, for explanation to record.
        upsample: one operator per level, coarsest first.
        decoder: one stage per level, coarsest first; the last convolution of each has the width of the next finer
            level, so that the indices of that level's pooling fit.
        head: the 1x1 convolution; the only part that depends on the classes.
    """

    config: SegNetConfig

    def __init__(self, config: SegNetConfig) -> None:
        super().__init__(config)
        widths, levels = config.widths, range(len(config.widths))
        self.stride = 2 ** len(widths)
        before, finer = (3, *widths), (widths[0], *widths)
        self.encoder = nn.ModuleList(_stage(before[i], (widths[i],) * config.convs[i]) for i in levels)
        self.bottleneck = nn.Identity()
        self.upsample = nn.ModuleList(build_upsample(config.upsample, widths[i]) for i in reversed(levels))
        self.decoder = nn.ModuleList(
            _stage(widths[i], (*(widths[i],) * (config.convs[i] - 1), finer[i])) for i in reversed(levels)
        )
        self.head = nn.Conv2d(widths[0], config.num_classes, 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def segment(self, pixels: Tensor) -> SegmenterOutputs:
        """Pixels ``[B, 3, H, W]`` to logits ``[B, K, H, W]``."""
        maps, places = pixels, []
        for stage in self.encoder:
            maps, indices = F.max_pool2d(stage(maps), 2, return_indices=True)
            places.append(indices)
        maps = self.bottleneck(maps)
        for upsample, stage, indices in zip(self.upsample, self.decoder, reversed(places), strict=True):
            maps = stage(upsample(maps, indices))
        logits = self.head(maps)
        return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), Routing.none(pixels))

    def explain_spec(self) -> ExplainSpec:
        """``encoder1`` ..., ``bottleneck``, then the decoder from coarse to fine, ``final`` being its finest stage."""
        depth = len(self.encoder)
        layers = {f"encoder{i + 1}": GridLayer(f"encoder.{i}") for i in range(depth)}
        layers["bottleneck"] = GridLayer("bottleneck")
        layers |= {f"decoder{depth - i}": GridLayer(f"decoder.{i}") for i in range(depth - 1)}
        layers["final"] = GridLayer(f"decoder.{depth - 1}")
        return ExplainSpec(layers, usual_layer="bottleneck")


def _stage(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions to these widths, each with batch norm and ReLU."""
    return nn.Sequential(*(ConvNorm(a, b) for a, b in zip((channels, *widths), widths, strict=False)))


def _variants() -> dict[str, SegNetConfig]:
    """The paper's network, and one that a laptop trains, with every upsampling.

    The small one has half a million parameters; learned upsampling adds 0.3 (transposed) or 0.6 million (sub-pixel).
    """
    small = SegNetConfig(widths=(32, 48, 64, 96), convs=(2, 2, 2, 2), num_classes=2)
    others: list[UpsampleKind] = [kind for kind in get_args(UpsampleKind) if kind != small.upsample]
    return {
        "segnet_vgg16": SegNetConfig(),
        "segnet_small": small,
        **{f"segnet_small_{kind}": replace(small, upsample=kind) for kind in others},
    }


def _tests() -> dict[str, SegNetConfig]:
    """Under 100k parameters each; their names end in ``_test`` and the contract suite runs over them."""
    canvas = native(32)
    tiny = SegNetConfig(widths=(16, 24), convs=(1, 2), num_classes=4, preprocess=canvas)
    kinds: tuple[UpsampleKind, ...] = get_args(UpsampleKind)
    return {f"segnet_{kind}_test": replace(tiny, upsample=kind) for kind in kinds}


register({**_variants(), **_tests()})
