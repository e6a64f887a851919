"""A plain Vision Transformer that labels pixels: its one map is enlarged step by step, each step convolved.

Progressive upsampling: Zheng et al. 2020 (SETR), arXiv 2012.15840; that the last map of a plain transformer is enough:
Li et al. 2022, arXiv 2203.16527. Differs from SETR: a 3x3 convolution stands before each doubling, where it costs a
quarter, and the last step to the canvas is taken by the scores; no auxiliary heads.

B batch · K classes · C width of a token · p patch size · w_i width of the decoder's step i · H, W canvas
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from saccade.backbones.vit import ViTConfig
from saccade.errors import ConfigError
from saccade.models.segmenter import Segmenter, SegmenterConfig, SegmenterOutputs, native
from saccade.nn.conv import ConvNorm
from saccade.nn.moe import MoEConfig
from saccade.nn.resample import Interpolate
from saccade.registry import register
from saccade.types import ExplainSpec, GridLayer, Losses, MapTarget


@dataclass(frozen=True, kw_only=True)
class VitSegConfig(SegmenterConfig):
    """A Vision Transformer and the steps that bring its map back to the size of the picture."""

    kind: Literal["vit_seg"] = "vit_seg"
    backbone: ViTConfig = field(default_factory=ViTConfig)
    """What turns pixels into one map of stride ``backbone.patch_size``."""
    widths: tuple[int, ...] = (256, 128, 64)
    """Channels w_i of the decoder's convolutions; the map doubles between two of them."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss, summed over layers with experts."""
    router_z_weight: float = 0.001
    """Weight of the router-z loss, summed over layers with experts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths are {self.widths}", where="widths", expected="one or more, at least 1")
        if self.backbone.patch_size % 2 ** (len(self.widths) - 1):
            raise ConfigError(
                f"{len(self.widths)} widths double the map {len(self.widths) - 1} times",
                where="widths",
                expected=f"no more doublings than fit into patches of {self.backbone.patch_size} pixels",
            )

    def build(self) -> VitSeg:
        """The segmenter, with random weights."""
        return VitSeg(self)


class VitSeg(Segmenter):
    """Transformer, steps of convolution and doubling, scores, one bilinear step.

    Attributes:
        backbone: pixels to one map.
        decoder: the convolutions and doublings.
        head: a 1x1 convolution; the only part that depends on the classes.
    """

    config: VitSegConfig
    sees_all = True

    def __init__(self, config: VitSegConfig) -> None:
        super().__init__(config)
        self.backbone = config.backbone.build()
        self.stride = config.backbone.patch_size
        width = self.backbone.channels[-1]
        self.bottleneck = nn.Identity()  # the map passes here, for explanation to record
        self.decoder = nn.ModuleList(ConvNorm(a, b) for a, b in itertools.pairwise((width, *config.widths)))
        self.upsample = Interpolate("bilinear", 2)
        self.final = nn.Identity()  # what the head reads passes here, for explanation to record
        self.head = nn.Conv2d(config.widths[-1], config.num_classes, 1)
        rest = config.backbone.patch_size // 2 ** (len(config.widths) - 1)
        self.enlarge = Interpolate("bilinear", rest) if rest > 1 else nn.Identity()
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def segment(self, pixels: Tensor) -> SegmenterOutputs:
        """Pixels ``[B, 3, H, W]`` to logits ``[B, K, H, W]``; H and W multiples of the patch size."""
        features = self.backbone(pixels)
        maps = self.bottleneck(features.maps[-1])
        for index, step in enumerate(self.decoder):
            maps = step(self.upsample(maps) if index else maps)
        logits = self.enlarge(self.head(self.final(maps)))
        return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), features.routing)

    def loss(self, outputs: SegmenterOutputs, targets: Sequence[MapTarget]) -> Losses:
        """The terms of every segmenter; with experts, the balance and router-z terms as well.

        Raises:
            InputError: where a target is not of the canvas's size, or has a label that is no class.
        """
        losses, config = super().loss(outputs, targets), self.config
        return outputs.routing.added_to(
            losses, balance_weight=config.balance_weight, router_z_weight=config.router_z_weight
        )

    def explain_spec(self) -> ExplainSpec:
        """The transformer's blocks and attention, ``bottleneck``, the decoder's steps, and ``final``."""
        spec = self.backbone.explain_spec().under("backbone")
        layers = {name: layer for name, layer in spec.layers.items() if name != "final"}
        layers["bottleneck"] = GridLayer("bottleneck")
        layers |= {f"decoder{i}": GridLayer(f"decoder.{i}") for i in range(len(self.decoder) - 1)}
        layers["final"] = GridLayer("final")
        return replace(spec, layers=layers, usual_layer="bottleneck")

    def no_decay(self) -> set[str]:
        """Tokens and positions."""
        return {f"backbone.{name}" for name in self.backbone.no_decay()}


def _config(shape: tuple[int, int, int], patch_size: int, side: int, widths: tuple[int, ...]) -> VitSegConfig:
    embed_dim, depth, num_heads = shape
    backbone = ViTConfig(
        image_size=(side, side), patch_size=patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads
    )
    return VitSegConfig(backbone=backbone, widths=widths, preprocess=native(side))


def _small(shape: tuple[int, int, int], patch_size: int, side: int, widths: tuple[int, ...]) -> VitSegConfig:
    """As for the small classifiers: fixed positions are noticed from the first step on."""
    config = _config(shape, patch_size, side, widths)
    return replace(config, backbone=replace(config.backbone, has_class_token=False, positions="sincos"))


def _with_experts(config: VitSegConfig, experts: MoEConfig) -> VitSegConfig:
    return replace(config, backbone=replace(config.backbone, moe=experts))


def _sizes() -> dict[str, VitSegConfig]:
    micro = (128, 6, 4)
    micro_p4, micro_p8 = _small(micro, 4, 64, (64, 32)), _small(micro, 8, 128, (64, 32, 16))
    return {
        "vit_seg_s16": _config((384, 12, 6), 16, 512, (256, 128, 64)),
        "vit_seg_b16": _config((768, 12, 12), 16, 512, (256, 128, 64)),
        "vit_seg_micro_p4": micro_p4,
        "vit_seg_micro_p8": micro_p8,
        "vit_seg_moe_micro_p8": _with_experts(micro_p8, MoEConfig(num_experts=4)),
    }


def _tests() -> dict[str, VitSegConfig]:
    """Under 100k parameters each."""
    tiny = replace(_config((32, 2, 4), 8, 32, (16, 12)), num_classes=5)
    experts = MoEConfig(num_experts=4, active=2, has_shared_expert=True)
    free = replace(tiny, backbone=replace(tiny.backbone, has_class_token=False))
    return {"vit_seg_test": tiny, "vit_seg_moe_test": _with_experts(free, experts)}


register({**_sizes(), **_tests()})
