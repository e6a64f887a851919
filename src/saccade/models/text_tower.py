"""What models that share a space between pictures and texts have in common: the tower that reads.

Radford et al. 2021 (CLIP), arXiv 2103.00020: a transformer with a causal mask (Radford et al. 2019), read at the token
that ends a text. Without the mask and read at the last place: Zhai et al. 2023 (SigLIP), arXiv 2303.15343.

N texts · L tokens · C width · D width of the shared space · V tokens of the vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.models.image_tower import Projection, build_projection
from saccade.nn.attention import Attention
from saccade.nn.block import Block
from saccade.nn.mlp import MLP, Activation
from saccade.text.tokenizer import Tokens


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """A transformer over tokens."""

    width: int = 512
    """Width C of a token."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 8
    """Attention heads; divides ``width``."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward layers over ``width``."""
    activation: Activation = "gelu"
    """Activation of the feed-forward layers."""
    norm_eps: float = 1e-5
    """Epsilon of every norm."""
    causal: bool = True
    """Whether no token looks at those behind it; then texts need no padding, and cost what they are long."""
    pool: Literal["end", "last"] = "end"
    """Read the token that ends the text, or the one in the last place of the context."""
    projection: Projection = "linear"
    """From ``width`` to the width of the shared space."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads) < 1 or self.width % self.num_heads:
            told = f"num_heads is {self.num_heads} for a width of {self.width}"
            raise ConfigError(told, where="text.num_heads", expected="a divisor of the width")
        if self.mlp_ratio <= 0 or self.norm_eps <= 0:
            raise ConfigError("mlp_ratio and norm_eps are above 0", where="text")


class TextTower(nn.Module):
    """Tokens to vectors.

    Args:
        config: what to build.
        vocab_size: V.
        context: the most tokens of a text.
        embed_dim: D.

    Attributes:
        tokens: ``[V, C]``, one vector per token.
        positions: ``[context, C]``, one vector per place.
    """

    def __init__(self, config: TextConfig, vocab_size: int, context: int, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(context, config.width))
        self.blocks = nn.ModuleList(_build_block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.project = build_projection(config.projection, config.width, embed_dim, "text.projection")
        self._initialise()

    def forward(self, tokens: Tokens) -> Tensor:
        """Texts to ``[N, D]``, of any length."""
        values = self.tokens(tokens.ids) + self.positions[: tokens.ids.shape[1]]
        for block in self.blocks:
            values, _ = block(values, None)
        if self.config.pool == "last":
            read = values[:, -1]
        else:
            read = values[torch.arange(len(values), device=values.device), tokens.ends]
        projected: Tensor = self.project(self.norm(read))
        return projected

    def _initialise(self) -> None:
        """As the paper's own code has it: the deeper the tower, the smaller what each branch adds."""
        width, depth = self.config.width, self.config.depth
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for name, module in self.blocks.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            is_last = name.endswith(("attention.project", "mlp.narrow"))
            std = (2 * width) ** -0.5 if name.endswith("mlp.widen") else width**-0.5
            nn.init.normal_(module.weight, std=std * (2 * depth) ** -0.5 if is_last else std)
            nn.init.zeros_(module.bias)


def _build_block(config: TextConfig) -> Block:
    width = config.width
    return Block(
        Attention(width, config.num_heads, is_causal=config.causal),
        MLP(width, round(width * config.mlp_ratio), config.activation),
        (nn.LayerNorm(width, eps=config.norm_eps), nn.LayerNorm(width, eps=config.norm_eps)),
        width=width,
    )
