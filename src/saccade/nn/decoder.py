"""Transformer layers whose places are told again at every layer: encoders of maps, and decoders that answer queries.

Carion et al. 2020 (DETR), arXiv 2005.12872, figure 10: places are added to what asks and to what is asked, never to
what is passed on. Post-norm as published, or pre-norm.

B batch · T tokens of the picture · Q queries · C width · N heads
"""

from __future__ import annotations

from torch import Tensor, nn

from saccade.nn.attention import Watchable, attend
from saccade.nn.mlp import MLP


class QueryAttention(nn.Module):
    """Multi-head attention of some tokens over others; see ``attend`` for masks.

    Args:
        width: C.
        num_heads: N; divides C.
        dropout: of the probabilities.

    Attributes:
        probabilities: the softmax ``[B, N, queries, keys]`` passes here whenever somebody listens.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rate = dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.probabilities = Watchable()
        self.project = nn.Linear(width, width)
        for matrix in (self.query, self.key, self.value, self.project):
            nn.init.xavier_uniform_(matrix.weight)
            nn.init.zeros_(matrix.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each query ``[B, Q, C]`` gathers from values ``[B, T, C]`` whose keys ``[B, T, C]`` answer it."""
        parts = [self.query(queries), self.key(keys), self.value(values)]
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        gathered = attend(query, key, value, self.probabilities, self.rate if self.training else 0.0, mask)
        projected: Tensor = self.project(gathered.transpose(1, 2).flatten(2))
        return projected


class EncoderLayer(nn.Module):
    """Self-attention of the tokens of a picture, feed-forward layer.

    Args:
        width: C.
        num_heads: N.
        hidden: width inside of the feed-forward layer.
        dropout: of both branches and inside of the feed-forward layer.
        is_pre_norm: whether norms stand before the branches or after the sums.
    """

    def __init__(
        self, width: int, num_heads: int, hidden: int, dropout: float = 0.0, *, is_pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.is_pre_norm = is_pre_norm
        self.attention = QueryAttention(width, num_heads)
        self.mlp = _feed_forward(width, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, places: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens ``[B, T, C]`` at places ``[B or 1, T, C]`` to tokens ``[B, T, C]``."""
        source = self.norm1(tokens) if self.is_pre_norm else tokens
        placed = source + places
        tokens = tokens + self.dropout(self.attention(placed, placed, source, mask))
        if self.is_pre_norm:
            tokens = tokens + self.mlp(self.norm2(tokens))
        else:
            tokens = self.norm1(tokens)
            tokens = self.norm2(tokens + self.mlp(tokens))
        return tokens


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the picture, then think; arguments as of ``EncoderLayer``."""

    def __init__(
        self, width: int, num_heads: int, hidden: int, dropout: float = 0.0, *, is_pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.is_pre_norm = is_pre_norm
        self.attention = QueryAttention(width, num_heads)
        self.cross = QueryAttention(width, num_heads)
        self.mlp = _feed_forward(width, hidden, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, places: Tensor, keys: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Queries ``[B, Q, C]`` to queries ``[B, Q, C]``.

        Args:
            queries: what each query knows so far.
            places: ``[B or 1, Q, C]`` what tells the queries apart.
            keys: ``[B, T, C]`` the picture's tokens with their places.
            memory: ``[B, T, C]`` the same without.
            mask: ``[B, 1, 1, T]`` bool, False where the picture is padded.
        """
        if self.is_pre_norm:
            own = self.norm1(queries)
            queries = queries + self.dropout(self.attention(own + places, own + places, own))
            queries = queries + self.dropout(self.cross(self.norm2(queries) + places, keys, memory, mask))
            queries = queries + self.mlp(self.norm3(queries))
        else:
            placed = queries + places
            queries = self.norm1(queries + self.dropout(self.attention(placed, placed, queries)))
            queries = self.norm2(queries + self.dropout(self.cross(queries + places, keys, memory, mask)))
            queries = self.norm3(queries + self.mlp(queries))
        return queries


def _feed_forward(width: int, hidden: int, dropout: float) -> MLP:
    mlp = MLP(width, hidden, "relu", dropout)
    for matrix in (mlp.widen, mlp.narrow):
        nn.init.xavier_uniform_(matrix.weight)
        nn.init.zeros_(matrix.bias)
    return mlp
