"""What models that share a space between pictures and texts have in common: the tower that reads.

Radford et al. 2021 (CLIP), arXiv 2103.00020: a transformer with a causal mask (Radford et al. 2019), read at the token
that ends a text. Without the mask and read at the last place: Zhai et al. 2023 (SigLIP), arXiv 2303.15343. The mean of
the words without any transformer, for a few hundred captions: Joulin et al. 2016 (fastText), arXiv 1607.01759; words
left out while training: Iyyer et al. 2015, "Deep unordered composition rivals syntactic methods".

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
    """Number of blocks; 0 for a bag of words, whose order says nothing."""
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
    pool: Literal["end", "last", "mean"] = "end"
    """Read the token that ends the text, the one in the last place of the context, or the mean of the words."""
    projection: Projection = "linear"
    """From ``width`` to the width of the shared space."""
    token_std: float = 0.02
    """Spread of the vectors of tokens at the start."""
    token_weights: tuple[float, ...] = ()
    """Factor on the vector of each token at the start; all 1 where it is empty. A bag of words is given the rarity of
    each token in the captions it is trained on, 0 for those that no caption has."""
    word_dropout: float = 0.0
    """Share of the words that a training leaves out of the mean; at least one stays."""

    def __post_init__(self) -> None:
        if self.depth < 0 or min(self.width, self.num_heads) < 1 or self.width % self.num_heads:
            told = f"num_heads is {self.num_heads} for a width of {self.width}"
            raise ConfigError(told, where="text.num_heads", expected="a divisor of the width")
        if self.mlp_ratio <= 0 or self.norm_eps <= 0:
            raise ConfigError("mlp_ratio and norm_eps are above 0", where="text")
        if self.token_std <= 0 or not 0 <= self.word_dropout < 1:
            raise ConfigError("token_std is above 0 and word_dropout in [0, 1)", where="text")
        if self.pool != "mean" and (self.word_dropout or not self.depth):
            told = "without blocks, and where words are left out, the mean of the words is read"
            raise ConfigError(told, where="text.pool", expected="'mean'")

    @property
    def is_bag(self) -> bool:
        """Whether the order of the words says nothing."""
        return self.depth == 0


class TextTower(nn.Module):
    """Tokens to vectors.

    Args:
        config: what to build.
        vocab_size: V.
        context: the most tokens of a text.
        embed_dim: D.

    Attributes:
        tokens: ``[V, C]``, one vector per token.
        positions: ``[context, C]``, one vector per place; None for a bag of words.
    """

    def __init__(self, config: TextConfig, vocab_size: int, context: int, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(context, config.width)) if not config.is_bag else None
        self.blocks = nn.ModuleList(_build_block(config) for _ in range(config.depth))
        self.norm = nn.Identity() if config.is_bag else nn.LayerNorm(config.width, eps=config.norm_eps)
        self.project = build_projection(config.projection, config.width, embed_dim, "text.projection")
        self._initialise()

    def forward(self, tokens: Tokens) -> Tensor:
        """Texts to ``[N, D]``, of any length."""
        values = self.tokens(tokens.ids)
        if self.positions is not None:
            values = values + self.positions[: tokens.ids.shape[1]]
        for block in self.blocks:
            values, _ = block(values, None)
        if self.config.pool == "mean":
            read = self._mean(values, tokens)
        elif self.config.pool == "last":
            read = values[:, -1]
        else:
            read = values[torch.arange(len(values), device=values.device), tokens.ends]
        projected: Tensor = self.project(self.norm(read))
        return projected

    def _mean(self, values: Tensor, tokens: Tokens) -> Tensor:
        """The mean over the words of each text ``[N, C]``: without its start, its end and what fills up."""
        places = torch.arange(values.shape[1], device=values.device)
        # A text without a word keeps its end, so that there is something to read.
        words = (places > 0) & (places < tokens.ends.clamp(min=2)[:, None])
        if self.training and self.config.word_dropout:
            stays = words & (torch.rand(words.shape, device=values.device) >= self.config.word_dropout)
            words = torch.where(stays.any(dim=1, keepdim=True), stays, words)
        shares = words.to(values.dtype)
        mean: Tensor = (shares[:, None] @ values)[:, 0] / shares.sum(dim=1, keepdim=True)
        return mean

    def _initialise(self) -> None:
        """As the paper's own code has it: the deeper the tower, the smaller what each branch adds."""
        width, depth = self.config.width, self.config.depth
        nn.init.normal_(self.tokens.weight, std=self.config.token_std)
        if weights := self.config.token_weights:
            if len(weights) != len(self.tokens.weight):
                told = f"there are {len(weights)} weights for {len(self.tokens.weight)} tokens"
                raise ConfigError(told, where="text.token_weights", expected="one per token")
            with torch.no_grad():
                self.tokens.weight.mul_(torch.tensor(weights)[:, None])
        if self.positions is not None:
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
