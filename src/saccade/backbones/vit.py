"""Vision Transformer, every switch a config value.

Dosovitskiy et al. 2020, arXiv 2010.11929; small and tiny widths from Touvron et al. 2020, arXiv 2012.12877; registers
from Darcet et al. 2023, arXiv 2309.16588. The parts cite their own papers (``saccade.nn``).
Differs from the paper: the class token has no row in the position table (it would only be added to the token); the
canvas may have any size that the patches tile.

B batch · T tokens (P prefix: class token, registers; then h * w patches) · C width · M layers with experts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from saccade.backbones.base import Backbone, BackboneConfig, Features, Routing
from saccade.errors import ConfigError
from saccade.losses import load_balance, router_z
from saccade.nn.attention import Attention
from saccade.nn.block import Block
from saccade.nn.embed import Grid, LearnedPositions, PatchEmbed, RotaryPositions, SinCosPositions
from saccade.nn.mlp import Activation, MLPKind, build_mlp
from saccade.nn.moe import Decision, MixtureOfExperts, MoEConfig
from saccade.nn.norm import NormKind, build_norm
from saccade.types import AttentionSite, ExplainSpec, GridLayer


@dataclass(frozen=True, kw_only=True)
class ViTConfig(BackboneConfig):
    """A Vision Transformer; all combinations of the switches are valid."""

    kind: Literal["vit"] = "vit"
    image_size: tuple[int, int] = (224, 224)
    """Canvas the positions are made for; other canvases resample them."""
    patch_size: int = 16
    """Pixels per side of a patch."""
    embed_dim: int = 384
    """Width C of a token."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 6
    """Attention heads; divides ``embed_dim``."""
    positions: Literal["learned", "sincos", "rotary"] = "learned"
    """How a patch knows its place."""
    has_class_token: bool = True
    """Whether a learned token is put before the patches."""
    num_registers: int = 0
    """Learned tokens that belong to no patch."""
    norm: NormKind = "layer"
    """LayerNorm or RMSNorm."""
    norm_eps: float = 1e-6
    """Epsilon of every norm."""
    norm_position: Literal["pre", "post"] = "pre"
    """Norm before each branch, or after each sum."""
    stem_norm: bool = False
    """Norm of all tokens before the first block, as CLIP has it."""
    final_norm: bool = True
    """Norm of all tokens after the last block, before pooling. Post-norm blocks end with one already."""
    mlp: MLPKind = "mlp"
    """Two matrices, or SwiGLU's three of the same size in all."""
    mlp_ratio: float = 4.0
    """Hidden width of the two-matrix form over ``embed_dim``."""
    activation: Activation = "gelu"
    """Activation of the two-matrix form."""
    moe: MoEConfig = field(default_factory=MoEConfig)
    """Experts in the place of feed-forward layers."""
    qkv_bias: bool = True
    """Bias of queries, keys and values."""
    qk_norm: bool = False
    """Normalise queries and keys per head."""
    layer_scale: float = 0.0
    """Initial factor of each branch; 0 leaves layer scale out."""
    drop_path: float = 0.0
    """Drop-path rate of the last block; rises linearly from 0 at the first."""
    dropout: float = 0.0
    """Dropout of tokens and of both branches."""
    attention_dropout: float = 0.0
    """Dropout of attention probabilities."""

    def __post_init__(self) -> None:
        self._check(min(self.patch_size, self.embed_dim, self.depth, self.num_heads) >= 1, "a size", "at least 1")
        self._check(self.embed_dim % self.num_heads == 0, "num_heads", f"a divisor of embed_dim {self.embed_dim}")
        is_tiled = all(side >= 1 and side % self.patch_size == 0 for side in self.image_size)
        self._check(is_tiled, "image_size", f"multiples of patch_size {self.patch_size}")
        if self.positions == "sincos":
            self._check(self.embed_dim % 4 == 0, "embed_dim", "a multiple of 4 for sincos positions")
        if self.positions == "rotary":
            self._check(self.embed_dim // self.num_heads % 4 == 0, "embed_dim", "4n per head for rotary positions")
        for name in ("drop_path", "dropout", "attention_dropout"):
            self._check(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        self._check(self.num_registers >= 0 and self.layer_scale >= 0, "num_registers or layer_scale", "at least 0")
        self._check(self.norm_eps > 0 and self.mlp_ratio > 0, "norm_eps or mlp_ratio", "above 0")

    def _check(self, is_right: bool, name: str, expected: str) -> None:
        if not is_right:
            value = f" ({getattr(self, name)})" if hasattr(self, name) else ""
            raise ConfigError(f"{name}{value} does not fit", where="backbone", expected=expected)

    def build(self) -> ViT:
        """The backbone, with random weights."""
        return ViT(self)


def check_fit(backbone: BackboneConfig, pool: str, canvas: tuple[int, int]) -> None:
    """Refuse what does not go together in a model that pools one vector of a picture.

    Args:
        backbone: of any kind.
        pool: ``token`` reads a class token.
        canvas: height and width of its pictures.

    Raises:
        ConfigError: where there is no class token to read, or the patches do not tile the canvas.
    """
    if pool == "token" and not (isinstance(backbone, ViTConfig) and backbone.has_class_token):
        raise ConfigError(
            "the backbone has no class token to read",
            where="pool",
            expected="'average' or 'attention'",
            remedy="or set backbone.has_class_token=true on a ViT",
        )
    if isinstance(backbone, ViTConfig) and any(side % backbone.patch_size for side in canvas):
        patch = backbone.patch_size
        near = [max(round(side / patch), 1) * patch for side in canvas]
        raise ConfigError(
            f"patches of {patch} do not tile a canvas of {canvas[0]}x{canvas[1]}",
            where="preprocess.size",
            expected=f"multiples of {patch}, such as {near[0]}x{near[1]}",
        )


class ViT(Backbone):
    """Patches, prefix tokens, blocks, final norm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, heads = config.embed_dim, config.num_heads
        self.config = config
        self.channels, self.strides = (width,), (config.patch_size,)
        self.num_prefix = int(config.has_class_token) + config.num_registers
        self.embed = PatchEmbed(config.patch_size, width)
        grid = self.embed.grid(config.image_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, width)) if config.has_class_token else None
        self.registers = nn.Parameter(torch.empty(1, config.num_registers, width)) if config.num_registers else None
        self.positions: nn.Module
        if config.positions == "learned":
            self.positions = LearnedPositions(grid, width)
        elif config.positions == "sincos":
            self.positions = SinCosPositions(grid, width)
        else:
            self.positions = RotaryPositions(grid, width // heads)
        self.dropout = nn.Dropout(config.dropout)
        self.stem_norm = build_norm(config.norm, width, config.norm_eps) if config.stem_norm else nn.Identity()
        self.blocks = nn.ModuleList(_build_block(config, index) for index in range(config.depth))
        self.norm = build_norm(config.norm, width, config.norm_eps) if config.final_norm else nn.Identity()
        self._initialise()

    def forward(self, pixels: Tensor) -> Features:
        """Normalised pixels ``[B, 3, H, W]`` to one map ``[B, C, H / p, W / p]``.

        Raises:
            InputError: where the patches do not tile the canvas.
        """
        tokens, rotation, grid = self._begin(pixels)
        decisions = []
        for block in self.blocks:
            tokens, decision = block(tokens, rotation)
            if decision is not None:
                decisions.append(decision)
        tokens = self.norm(tokens)
        patches = tokens[:, self.num_prefix :].transpose(1, 2).unflatten(2, grid)
        return Features((patches,), tokens[:, : self.num_prefix], self._routing(pixels, decisions))

    def values(self, pixels: Tensor) -> Tensor:
        """The map ``[B, C, H / p, W / p]`` of patches that in the last block look at themselves alone.

        A class token gathers what patches have to say there; so this is what each of them would have told it.
        """
        tokens, rotation, grid = self._begin(pixels)
        for block in self.blocks[:-1]:
            tokens, _ = block(tokens, rotation)
        last: Block = self.blocks[-1]  # type: ignore[assignment]
        valued: Tensor = self.norm(last.values(tokens))
        return torch.unflatten(valued[:, self.num_prefix :].transpose(1, 2), 2, grid)

    def _begin(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Grid]:
        """Tokens before the first block, the rotation where positions are one, and the grid of the patches."""
        grid = self.embed.grid((int(pixels.shape[-2]), int(pixels.shape[-1])))
        tokens = self.embed(pixels)
        rotation = self.positions(grid) if self.config.positions == "rotary" else None
        if rotation is None:
            tokens = tokens + self.positions(grid)
        prefix = [
            token.expand(len(pixels), -1, -1) for token in (self.class_token, self.registers) if token is not None
        ]
        return self.stem_norm(self.dropout(torch.cat([*prefix, tokens], dim=1))), rotation, grid

    def _routing(self, pixels: Tensor, decisions: Sequence[Decision]) -> Routing:
        if not decisions:
            return Routing.none(pixels)
        count = self.config.moe.num_experts
        loads = [nn.functional.one_hot(d.experts, count).float().mean(dim=(0, 1)) for d in decisions]
        return Routing(
            balance=torch.stack(
                [load_balance(d.logits.softmax(-1), load) for d, load in zip(decisions, loads, strict=True)]
            ),
            z=torch.stack([router_z(d.logits) for d in decisions]),
            load=torch.stack(loads),
            dropped=torch.stack([d.dropped for d in decisions]),
            experts=torch.stack(
                [torch.unflatten(d.experts, 0, (len(pixels), -1))[:, self.num_prefix :] for d in decisions]
            ),
        )

    def explain_spec(self, reads_prefix: bool = False) -> ExplainSpec:
        """The blocks' outputs as ``block0`` ..., and ``final``.

        A head on the map sees the patches after the last norm. A head on the class token does not: behind the last
        attention no patch can reach it any more, so ``final`` is what that attention reads, and the last block's
        output, where every gradient is zero, is left out.
        """
        last = self.config.depth - 1
        layers = {f"block{i}": self._layer(f"blocks.{i}.output") for i in range(last + (not reads_prefix))}
        if not reads_prefix:
            layers["final"] = self._layer("norm")
        elif self.config.norm_position == "pre":
            layers["final"] = self._layer(f"blocks.{last}.norm1")
        else:
            layers["final"] = self._layer(f"blocks.{last - 1}.output" if last else "stem_norm")
        sites = [
            AttentionSite(f"blocks.{i}.attention.probabilities", self.num_prefix, self._grid) for i in range(last + 1)
        ]
        return ExplainSpec(layers, sites, has_class_token=reads_prefix)

    def _grid(self, size: tuple[int, int]) -> Grid:
        return self.embed.grid(size)

    def _layer(self, path: str) -> GridLayer:
        return GridLayer(path, _token_grid(self.num_prefix, self._grid))

    def no_decay(self) -> set[str]:
        """Tokens and positions."""
        spared = ("class_token", "registers", "table")
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in spared}

    def _initialise(self) -> None:
        """Glorot for the blocks, as the paper's own code has it; small numbers for tokens and routers."""
        for token in (self.class_token, self.registers):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.blocks.modules():
            if isinstance(module, MixtureOfExperts):
                nn.init.trunc_normal_(module.router.weight, std=0.02)
            elif isinstance(module, Attention):
                for matrix in module.qkv.weight.chunk(3):  # three square matrices that only share their storage
                    nn.init.xavier_uniform_(matrix)


def _token_grid(
    num_prefix: int, grid: Callable[[tuple[int, int]], Grid]
) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    def to_grid(tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return tokens[:, num_prefix:].transpose(1, 2).reshape(len(tokens), -1, *grid(size))

    return to_grid


def _build_block(config: ViTConfig, index: int) -> Block:
    width = config.embed_dim
    attention = Attention(
        width,
        config.num_heads,
        qkv_bias=config.qkv_bias,
        qk_norm=config.norm if config.qk_norm else None,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )
    shape = (config.mlp, config.mlp_ratio, config.activation, config.dropout)
    has_experts = config.moe.stands_in(index, config.depth)
    return Block(
        attention,
        MixtureOfExperts(config.moe, width, *shape) if has_experts else build_mlp(config.mlp, width, *shape[1:]),
        (build_norm(config.norm, width, config.norm_eps), build_norm(config.norm, width, config.norm_eps)),
        width=width,
        is_pre_norm=config.norm_position == "pre",
        layer_scale=config.layer_scale,
        drop_path=config.drop_path * index / max(config.depth - 1, 1),
    )
