"""DETR on patches: a Vision Transformer is the encoder, so no convolution sees the picture before attention does.

The picture is split into patches; tokens with positions pass the encoder (Dosovitskiy et al. 2020, arXiv 2010.11929);
learned object queries pass a decoder that looks at its output (Carion et al. 2020, arXiv 2005.12872), and a
feed-forward network gives each query's class, or none, and box. Fang et al. 2021 (YOLOS), arXiv 2106.00666, showed that
a plain transformer is enough to detect. The usual loss is the simple one: the class's cross-entropy and the squared
error of the box; ``loss.kind`` says otherwise.

Boxes inside of the model are centre x, centre y, width, height as shares of the canvas, which positions belong to.

B batch · T tokens · Q queries · C width · p patch size · K classes · h, w grid of patches · H, W canvas
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from saccade.backbones.vit import ViTConfig
from saccade.errors import ConfigError
from saccade.models.detector import letterbox
from saccade.models.detr import QueryDecoder, SetDetector, SetDetectorConfig, SetOutputs
from saccade.models.set_loss import SetLossConfig
from saccade.nn.embed import window_sincos
from saccade.registry import register
from saccade.types import AttentionSite, BoxTarget, ExplainSpec, GridLayer, ImageBatch, Losses


@dataclass(frozen=True, kw_only=True)
class DetrVitConfig(SetDetectorConfig):
    """DETR with a Vision Transformer as encoder."""

    kind: Literal["detr_vit"] = "detr_vit"
    backbone: ViTConfig = field(default_factory=lambda: ViTConfig(has_class_token=False))
    """Patches, positions, encoder."""
    loss: SetLossConfig = field(default_factory=lambda: SetLossConfig(kind="notes"))
    """What is learned."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss, summed over layers with experts."""
    router_z_weight: float = 0.001
    """Weight of the router-z loss, summed over layers with experts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_width(self.backbone.embed_dim, "backbone.embed_dim")
        if self.backbone.has_class_token:
            raise ConfigError("nothing reads a class token here", where="backbone.has_class_token", expected="False")

    def build(self) -> DetrVit:
        """The detector, with random weights."""
        return DetrVit(self)


class DetrVit(SetDetector):
    """Transformer over patches, decoder with queries.

    Attributes:
        backbone: pixels to one map of tokens.
        decoder: layers in which queries look at each other and at the tokens.
    """

    config: DetrVitConfig

    def __init__(self, config: DetrVitConfig) -> None:
        super().__init__(config)
        self.backbone = config.backbone.build()
        self.final = nn.Identity()  # what the queries look at passes here, for explanation to record
        self.decoder = QueryDecoder(config, config.backbone.embed_dim, config.num_classes)

    def forward(self, images: ImageBatch, targets: Sequence[BoxTarget] | None = None) -> SetOutputs:
        """What every query says; targets change nothing."""
        features = self.backbone(images.pixels)
        maps = self.final(features.maps[-1])
        grid = (int(maps.shape[-2]), int(maps.shape[-1]))
        places = window_sincos([grid], grid, self.config.backbone.embed_dim).to(maps)
        logits, boxes = self.decoder(maps.flatten(2).transpose(1, 2), places, None)
        canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
        extent = torch.tensor([canvas] * len(images), device=maps.device)
        return SetOutputs(logits[-1], boxes[-1], logits[:-1], boxes[:-1], extent, features.routing)

    def loss(self, outputs: SetOutputs, targets: Sequence[BoxTarget]) -> Losses:
        """``class`` and ``boxes`` of the last layer, ``aux_*`` of earlier ones; with experts, what balances them."""
        losses, config = super().loss(outputs, targets), self.config
        return outputs.routing.added_to(
            losses, balance_weight=config.balance_weight, router_z_weight=config.router_z_weight
        )

    def explain_spec(self) -> ExplainSpec:
        """The transformer's blocks, and ``final``: the map that queries look at.

        Attention is the transformer's, and last the decoder's last look; ``cross_attention`` has all looks.
        """
        spec = self.backbone.explain_spec().under("backbone")
        layers = {name: layer for name, layer in spec.layers.items() if name != "final"}
        layers["final"] = GridLayer("final")
        looks = self.decoder.looks("decoder", self.backbone.embed.grid, spec.attention)
        return replace(spec, layers=layers, attention=[*spec.attention, self.cross_attention()[-1]], queries=looks)

    def cross_attention(self) -> list[AttentionSite]:
        """Where each query looks, one site per layer of the decoder: ``[B, heads, Q, T]``."""
        return self.decoder.sites("decoder", self.backbone.embed.grid)

    def no_decay(self) -> set[str]:
        """Tokens, positions and queries."""
        return super().no_decay() | {f"backbone.{name}" for name in self.backbone.no_decay()}


def _config(shape: tuple[int, int, int], patch_size: int, side: int) -> DetrVitConfig:
    embed_dim, depth, num_heads = shape
    backbone = ViTConfig(
        image_size=(side, side),
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        has_class_token=False,
    )
    return DetrVitConfig(
        backbone=backbone,
        num_heads=num_heads,
        hidden=4 * embed_dim,
        has_content=True,
        dropout=0.0,
        preprocess=letterbox(side),
    )


def _variants() -> dict[str, DetrVitConfig]:
    micro, tiny = _config((128, 6, 4), 16, 256), _config((32, 2, 4), 8, 32)
    fixed = replace(micro.backbone, positions="sincos")
    return {
        "detr_vit_b16": _config((768, 12, 12), 16, 512),
        "detr_vit_s16": _config((384, 12, 6), 16, 512),
        "detr_vit_micro": replace(micro, backbone=fixed, hidden=256, decoder_layers=3),
        "detr_vit_test": replace(tiny, num_classes=3, hidden=48, decoder_layers=2, queries=12),
    }


register(_variants())
