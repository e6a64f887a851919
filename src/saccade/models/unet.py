"""U-Net: what the encoder saw at each resolution is handed across to the decoder at the same resolution.

Ronneberger et al. 2015, arXiv 1505.04597. Differs from the paper: convolutions pad, so that the logits are as large as
the picture (the paper's lose a border at each), and a batch norm follows each, which came a month earlier and lets the
network be trained from scratch in minutes. In the place of the paper's encoder stands any convolutional network of
timm; its decoder then is the one that segmentation-models-pytorch (Iakubovskii 2019) made common - nearest neighbour
upsampling, a block without a skip at the end, a 3x3 head - and its weights give the same logits.

B batch · K classes · C_i width and s_i stride of the encoder's map i, finest first · H, W canvas
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from saccade.backbones.base import Backbone, BackboneConfig, Features, Routing
from saccade.backbones.timm import TimmConfig
from saccade.errors import ConfigError
from saccade.models.segmenter import Segmenter, SegmenterConfig, SegmenterOutputs, native
from saccade.nn.conv import double_conv
from saccade.nn.resample import build_upsample
from saccade.registry import register
from saccade.types import ExplainSpec, GridLayer

Upsampling = Literal["nearest", "bilinear", "transposed"]


@dataclass(frozen=True, kw_only=True)
class PlainEncoderConfig(BackboneConfig):
    """The encoder of the paper: two convolutions per resolution, max pooling between them."""

    kind: Literal["plain"] = "plain"
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels per resolution, finest first; the last is the bottleneck."""
    has_norm: bool = True
    """Whether a batch norm follows each convolution; False for the paper's network."""

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ConfigError(f"widths are {self.widths}", where="backbone.widths", expected="two or more, at least 1")

    def build(self) -> PlainEncoder:
        """The encoder, with random weights."""
        return PlainEncoder(self)

    def build_pyramid(self) -> PlainEncoder:
        """The same: this encoder has a map per resolution anyway."""
        return PlainEncoder(self)


class PlainEncoder(Backbone):
    """Double convolutions with max pooling between them.

    Attributes:
        stages: one double convolution per resolution.
    """

    def __init__(self, config: PlainEncoderConfig) -> None:
        super().__init__()
        self.channels = config.widths
        self.strides = tuple(2**level for level in range(len(config.widths)))
        pairs = itertools.pairwise((3, *config.widths))
        self.stages = nn.ModuleList(double_conv(a, b, has_norm=config.has_norm) for a, b in pairs)

    def forward(self, pixels: Tensor) -> Features:
        """Normalised pixels ``[B, 3, H, W]`` to maps ``[B, C_i, H / 2^i, W / 2^i]``."""
        maps = [self.stages[0](pixels)]
        for stage in self.stages[1:]:
            maps.append(stage(F.max_pool2d(maps[-1], 2)))
        return Features(tuple(maps), pixels.new_zeros(len(pixels), 0, self.channels[-1]), Routing.none(pixels))

    def explain_spec(self, reads_prefix: bool = False) -> ExplainSpec:
        """The stages as ``stage0`` ..., the deepest as ``final``."""
        last = len(self.stages) - 1
        names = [*(f"stage{level}" for level in range(last)), "final"]
        return ExplainSpec({name: GridLayer(f"stages.{level}") for level, name in enumerate(names)})


@dataclass(frozen=True, kw_only=True)
class UNetConfig(SegmenterConfig):
    """A U-Net: what sees, and how its maps come back to the size of the picture."""

    kind: Literal["unet"] = "unet"
    backbone: Annotated[PlainEncoderConfig | TimmConfig, Field(discriminator="kind")] = field(
        default_factory=PlainEncoderConfig
    )
    """The encoder."""
    widths: tuple[int, ...] = ()
    """Channels of the decoder's blocks, coarsest first. Empty: the encoder's own for a plain one; 256, 128, 64, 32, 16
    for timm's."""
    upsampling: Upsampling = "transposed"
    """What doubles the resolution: a transposed 2x2 convolution (the paper), or a rule without parameters."""
    has_skips: bool = True
    """Whether the encoder's maps are handed across; without, all has to pass through the bottleneck."""
    has_norm: bool = True
    """Whether a batch norm follows each convolution of the decoder."""
    head_size: Literal[1, 3] = 1
    """Side of the last convolution's kernel."""
    dropout: float = 0.0
    """Dropout of whole channels of the deepest map."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1 or min(self.widths, default=1) < 1:
            found = f"dropout is {self.dropout}, widths {self.widths}"
            raise ConfigError(found, expected="dropout in [0, 1), widths of at least 1")

    def build(self) -> UNet:
        """The segmenter, with random weights."""
        return UNet(self)


class DecoderBlock(nn.Module):
    """Upsamples, puts the encoder's map of that resolution beside it, and convolves twice.

    Args:
        num_in: width of the coarser map.
        num_skip: width of the encoder's map; 0 for none.
        num_out: width of the result.
        factor: how much finer the result is; 1 for the same resolution.
        upsampling: how.
        has_norm: whether batch norms follow the convolutions.
    """

    def __init__(
        self, num_in: int, num_skip: int, num_out: int, factor: int, *, upsampling: Upsampling, has_norm: bool
    ) -> None:
        super().__init__()
        self.has_skip = num_skip > 0
        self.upsample: nn.Module = nn.Identity()
        if factor > 1 and upsampling == "transposed":
            self.upsample, num_in = nn.ConvTranspose2d(num_in, num_out, factor, factor), num_out
        elif factor > 1:
            self.upsample = build_upsample(upsampling, num_in, factor)
        self.fuse = double_conv(num_in + num_skip, num_out, has_norm=has_norm)

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        """``[B, C, h, w]`` and, where it is used, ``[B, C', f h, f w]`` to ``[B, D, f h, f w]``."""
        finer = self.upsample(maps)
        fused: Tensor = self.fuse(torch.cat([finer, skip], dim=1) if self.has_skip else finer)
        return fused


class UNet(Segmenter):
    """Encoder, decoder, one last convolution.

    Attributes:
        backbone: pixels to one map per resolution.
        decoder: one block per doubling of the resolution.
        head: the last convolution; the only part that depends on the classes.
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.backbone: Backbone = config.backbone.build_pyramid()
        self.stride = max(self.backbone.strides)
        self.dropout = nn.Dropout2d(config.dropout)
        plan = _plan(self.backbone, config)
        self.decoder = nn.ModuleList(
            DecoderBlock(*block, upsampling=config.upsampling, has_norm=config.has_norm) for block in plan
        )
        self.final = nn.Identity()  # what the head reads passes here, for explanation to record
        self.head = nn.Conv2d(plan[-1][2], config.num_classes, config.head_size, padding=config.head_size // 2)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def segment(self, pixels: Tensor) -> SegmenterOutputs:
        """Pixels ``[B, 3, H, W]`` to logits ``[B, K, H, W]``; H and W multiples of the deepest stride."""
        features = self.backbone(pixels)
        *finer, last = features.maps
        maps = self.dropout(last)
        for block in self.decoder:
            # Blocks finer than the encoder's finest map have no skip, and never look at what they are given for it.
            maps = block(maps, finer.pop() if finer else maps)
        logits = self.head(self.final(maps))
        return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), features.routing)

    def explain_spec(self) -> ExplainSpec:
        """The encoder's stages, ``bottleneck``, the decoder's blocks as ``decoder0`` ..., and ``final``.

        With skips only the first stage is on every way from the picture to the labels.
        """
        layers = dict(self.backbone.explain_spec().under("backbone").layers)
        layers["bottleneck"] = layers.pop("final")
        layers |= {f"decoder{i}": GridLayer(f"decoder.{i}.fuse") for i in range(len(self.decoder) - 1)}
        layers["final"] = GridLayer("final")
        early = next(iter(layers)) if self.config.has_skips else None
        return ExplainSpec(layers, usual_layer="bottleneck", early_layer=early)


def _plan(backbone: Backbone, config: UNetConfig) -> list[tuple[int, int, int, int]]:
    """Width in, width of the skip, width out and factor of every decoder block, coarsest first.

    Raises:
        ConfigError: where the config gives another number of widths than there are blocks.
    """
    strides, channels = backbone.strides, backbone.channels
    factors = [coarse // fine for fine, coarse in itertools.pairwise(strides)][::-1]
    skips = [width if config.has_skips else 0 for width in channels[-2::-1]]
    # The stem of most networks has halved the resolution once or twice before its first map.
    rest = (strides[0] - 1).bit_length()
    factors, skips = factors + [2] * rest, skips + [0] * rest
    widths = config.widths
    if not widths and isinstance(config.backbone, PlainEncoderConfig):
        widths = channels[-2::-1]
    elif not widths:
        widths = tuple(min(16 * 2**level, 256) for level in reversed(range(len(factors))))
    if len(widths) != len(factors):
        found = f"{len(widths)} widths for {len(factors)} decoder blocks"
        raise ConfigError(found, where="widths", expected="one width per block, coarsest first")
    return list(zip((channels[-1], *widths), skips, widths, factors, strict=False))


def _plain(*widths: int) -> UNetConfig:
    return UNetConfig(backbone=PlainEncoderConfig(widths=widths))


def _timm(name: str) -> UNetConfig:
    return UNetConfig(backbone=TimmConfig(name=name), upsampling="nearest", head_size=3, preprocess=native(512))


def _sizes() -> dict[str, UNetConfig]:
    encoders = {
        "r18": "resnet18",
        "r34": "resnet34",
        "r50": "resnet50",
        "mobilenet": "mobilenetv2_100",
        "efficientnet_b0": "efficientnet_b0",
    }
    return {
        "unet": replace(_plain(64, 128, 256, 512, 1024), preprocess=native(512)),
        "unet_small": _plain(16, 32, 64, 128),
        "unet_nano": replace(_plain(8, 16, 32, 64), preprocess=native(128)),
        **{f"unet_{short}": _timm(name) for short, name in encoders.items()},
    }


def _tests() -> dict[str, UNetConfig]:
    """Under 100k parameters each."""
    plain = replace(_plain(8, 12, 16), num_classes=5, preprocess=native(32))
    cnn = {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24]}
    encoder = replace(
        plain,
        backbone=TimmConfig(name="resnet18", arguments=cnn),
        widths=(24, 16, 12, 8, 8),
        upsampling="nearest",
        head_size=3,
        preprocess=native(64),
    )
    return {
        "unet_plain_test": plain,
        "unet_paper_test": replace(
            plain, backbone=PlainEncoderConfig(widths=(8, 12, 16), has_norm=False), has_norm=False, dropout=0.1
        ),
        "unet_resnet_test": encoder,
        "unet_no_skips_test": replace(plain, has_skips=False, upsampling="bilinear"),
    }


register({**_sizes(), **_tests()})
