"""What models that share a space between pictures and texts have in common: the tower that sees.

Radford et al. 2021 (CLIP), arXiv 2103.00020: a backbone, a pooling, a projection into the shared space, length 1.
Pooling by a learned query with a feed-forward layer: Zhai et al. 2023 (SigLIP), arXiv 2303.15343, as in Zhai et al.
2021, arXiv 2106.04560. Vectors of single patches: Zhou et al. 2021 (MaskCLIP), arXiv 2112.01071.

B batch · C width of the backbone · D width of the shared space · h, w grid
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Generic, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from saccade.backbones.timm import TimmConfig
from saccade.backbones.vit import ViT, ViTConfig, check_fit
from saccade.errors import ConfigError
from saccade.models.base import ModelConfig, OutputsT, PredictionT, TargetT, VisionModel
from saccade.nn.attention import AttentionPool
from saccade.nn.mlp import MLP, Activation
from saccade.types import ExplainSpec, ImageBatch

Projection = Literal["linear", "bias", "none"]
"""A matrix without a bias, one with it, or nothing."""


@dataclass(frozen=True, kw_only=True)
class TowerConfig(ModelConfig):
    """Base of the configs of models with an image tower."""

    backbone: Annotated[ViTConfig | TimmConfig, Field(discriminator="kind")] = field(default_factory=ViTConfig)
    """What turns pixels into features."""
    pool: Literal["token", "average", "attention"] = "average"
    """Read the class token, the mean of the map, or what a learned query gathers from the map."""
    pool_heads: int = 8
    """Heads of the pooling by attention; divides the width of the backbone."""
    pool_mlp_ratio: float = 0.0
    """Hidden width of a feed-forward layer behind the pooling by attention, over the width; 0 leaves it out."""
    pool_activation: Activation = "gelu"
    """Activation of that layer."""
    image_projection: Projection = "linear"
    """From the width of the backbone to that of the shared space."""
    image_norm: bool = False
    """Whether the pooled vector gets mean 0 and variance 1 before the projection, as features trained for something
    else need it, which may be of any size."""
    image_dropout: float = 0.0
    """Share of the pooled vector that a training sets to zero; against few pictures learned by heart."""
    embed_dim: int = 512
    """Width D of the shared space."""

    def __post_init__(self) -> None:
        super().__post_init__()
        backbone = self.backbone
        check_fit(backbone, self.pool, self.preprocess.size)
        if self.embed_dim < 1 or self.pool_heads < 1 or self.pool_mlp_ratio < 0:
            raise ConfigError("embed_dim and pool_heads are at least 1, pool_mlp_ratio at least 0", where="embed_dim")
        if not 0 <= self.image_dropout < 1:
            raise ConfigError(f"image_dropout is {self.image_dropout}", where="image_dropout", expected="in [0, 1)")
        if isinstance(backbone, ViTConfig) and backbone.moe.num_experts:
            raise ConfigError("a tower of pictures and texts has no experts", where="backbone.moe.num_experts")


class ImageTower(VisionModel[OutputsT, TargetT, PredictionT], Generic[OutputsT, TargetT, PredictionT]):
    """Base of models with an image tower.

    Args:
        config: what to build.
        shared: another model whose tower this one uses; the modules are the same, not copies.

    Attributes:
        backbone: pixels to features.
        pool: the pooling by attention, or None.
        image_projection: into the shared space.
    """

    config: TowerConfig

    def __init__(self, config: TowerConfig, shared: ImageTower[OutputsT, TargetT, PredictionT] | None = None) -> None:
        super().__init__(config)
        self.backbone: nn.Module
        self.pool: MapPool | None
        self.image_projection: nn.Module
        if shared is not None:
            self.backbone, self.pool = shared.backbone, shared.pool
            self.image_projection = shared.image_projection
            return
        backbone = config.backbone.build()
        width = backbone.channels[-1]
        self.backbone = backbone
        self.pool = MapPool(width, config) if config.pool == "attention" else None
        self.image_projection = build_projection(config.image_projection, width, config.embed_dim, "image_projection")

    def encode_images(self, images: ImageBatch) -> Tensor:
        """Where pictures lie in the shared space, ``[B, D]`` float32 of length 1."""
        return self.project_pooled(self.pooled(images))

    def project_pooled(self, pooled: Tensor) -> Tensor:
        """Pooled vectors ``[..., C]`` to the shared space, ``[..., D]`` float32 of length 1."""
        config = self.config
        if config.image_norm:
            pooled = F.layer_norm(pooled, pooled.shape[-1:])
        if config.image_dropout:
            pooled = F.dropout(pooled, config.image_dropout, self.training)
        return unit(self.image_projection(pooled))

    def pooled(self, images: ImageBatch) -> Tensor:
        """The pooled vectors ``[B, C]`` before the projection."""
        features = self.backbone(images.pixels)
        if self.config.pool == "token":
            return features.prefix[:, 0]  # type: ignore[no-any-return]
        if self.pool is None:
            return features.maps[-1].mean(dim=(2, 3))  # type: ignore[no-any-return]
        return self.pool(features.maps[-1].flatten(2).transpose(1, 2))  # type: ignore[no-any-return]

    def encode_patches(self, images: ImageBatch) -> Tensor:
        """Where single patches lie in the shared space, ``[B, D, h, w]`` float32 of length 1.

        Where a class token gathers the picture, patches look at themselves alone in the last block; where a learned
        query does, each is pooled as if it were the only one; the mean of a map needs nothing of the kind.
        """
        if self.config.pool == "token":
            backbone: ViT = self.backbone  # type: ignore[assignment]
            cells = backbone.values(images.pixels)
        else:
            cells = self.backbone(images.pixels).maps[-1]
        tokens = cells.flatten(2).transpose(1, 2)
        if self.pool is not None:
            tokens = self.pool.values(tokens)
        vectors = self.project_pooled(tokens).transpose(1, 2)
        return torch.unflatten(vectors, 2, cells.shape[2:])

    def explain_spec(self) -> ExplainSpec:
        """The backbone's layers and the attention of the pooling.

        There is no linear head: vectors of length 1 are no linear function of the map.
        """
        spec: ExplainSpec = self.backbone.explain_spec(reads_prefix=self.config.pool == "token")  # type: ignore[operator]
        spec = spec.under("backbone")
        if self.pool is not None and spec.attention:
            # The pooling query sees the patches alone, without the prefix.
            site = replace(spec.attention[0], path="pool.gather.probabilities", num_prefix=0)
            spec = replace(spec, attention=[*spec.attention, site])
        return spec

    def no_decay(self) -> set[str]:
        """Tokens, positions and the query of the pooling."""
        names = {f"backbone.{name}" for name in self.backbone.no_decay()}  # type: ignore[operator]
        return names if self.pool is None else names | {"pool.gather.query"}


class MapPool(nn.Module):
    """A learned query gathers the patches; a feed-forward layer on a residual branch may follow."""

    def __init__(self, width: int, config: TowerConfig) -> None:
        super().__init__()
        if width % config.pool_heads:
            raise ConfigError(
                f"pool_heads is {config.pool_heads}", where="pool_heads", expected=f"a divisor of {width}"
            )
        self.gather = AttentionPool(width, config.pool_heads)
        hidden = round(width * config.pool_mlp_ratio)
        self.norm = nn.LayerNorm(width, eps=1e-6) if hidden else None
        self.mlp = MLP(width, hidden, config.pool_activation) if hidden else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T, C]`` to ``[B, C]``."""
        return self._finish(self.gather(tokens))

    def values(self, tokens: Tensor) -> Tensor:
        """What each token of ``[B, T, C]`` would be pooled to, were it the only one: ``[B, T, C]``."""
        return self._finish(self.gather.values(tokens))

    def _finish(self, pooled: Tensor) -> Tensor:
        if self.mlp is None or self.norm is None:
            return pooled
        finished: Tensor = pooled + self.mlp(self.norm(pooled))
        return finished


def build_projection(kind: Projection, width: int, embed_dim: int, where: str) -> nn.Module:
    """From ``[..., width]`` to ``[..., embed_dim]``.

    Raises:
        ConfigError: where there is to be none and the widths differ.
    """
    if kind == "none":
        if width != embed_dim:
            told = f"without a projection the width {width} has to be embed_dim {embed_dim}"
            raise ConfigError(told, where=where, expected="'linear' or 'bias'")
        return nn.Identity()
    projection = nn.Linear(width, embed_dim, bias=kind == "bias")
    nn.init.normal_(projection.weight, std=width**-0.5)
    return projection


def unit(vectors: Tensor) -> Tensor:
    """Vectors ``[..., D]`` scaled to length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)
