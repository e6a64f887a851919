"""Self-attention that can be watched, and attention pooling.

Attention: Vaswani et al. 2017, arXiv 1706.03762. Rotary positions: Su et al. 2021, arXiv 2104.09864. Normalised queries
and keys: Dehghani et al. 2023, arXiv 2302.05442. Pooling by a learned query: Lee et al. 2018, arXiv 1810.00825.

The fused kernel never holds the softmax, so nobody could look at it. Each attention here has a submodule
``probabilities`` that does nothing; as soon as somebody puts a hook on it, the softmax is written out and passes
through it, to be read or differentiated. Both ways give the same numbers.

B batch · T tokens · C width · N heads · D = C / N
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.nn.embed import rotate
from saccade.nn.norm import NormKind, build_norm


class Watchable(nn.Identity):
    """A place to hook on: passes attention probabilities ``[B, N, queries, keys]`` through unchanged."""

    @property
    def is_watched(self) -> bool:
        """Whether anybody has hooked this module."""
        return bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    watch: Watchable,
    dropout: float,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
) -> Tensor:
    """Softmax attention ``[B, N, queries, D]`` of queries over keys, written out where ``watch`` is watched.

    ``mask`` is bool and broadcasts to ``[B, N, queries, keys]``: what is False is not looked at. ``is_causal`` stands
    for the mask under which no token looks at those behind it.
    """
    if not watch.is_watched:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
    if is_causal:
        mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=queries.device).tril()
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities: Tensor = watch(scores.softmax(dim=-1))
    return F.dropout(probabilities, dropout) @ values


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: C.
        num_heads: N; divides C.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: the normalisation of queries and keys per head, or None.
        norm_eps: its epsilon.
        dropout: of the output.
        attention_dropout: of the probabilities.
        is_causal: whether no token looks at those behind it, as texts are read.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: NormKind | None = None,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        is_causal: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.query_norm = build_norm(qk_norm, width // num_heads, norm_eps) if qk_norm else nn.Identity()
        self.key_norm = build_norm(qk_norm, width // num_heads, norm_eps) if qk_norm else nn.Identity()
        self.probabilities = Watchable()
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Tokens ``[B, T, C]`` to tokens ``[B, T, C]``.

        Args:
            tokens: prefix tokens first, then patches.
            rotation: cosines and sines ``[patches, D]`` of the rotary positions; the prefix is not rotated.
        """
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotation is not None:
            queries, keys = rotate(queries, *rotation), rotate(keys, *rotation)
        dropout = self.attention_dropout if self.training else 0.0
        attended = attend(queries, keys, values, self.probabilities, dropout, is_causal=self.is_causal)
        projected: Tensor = self.dropout(self.project(attended.transpose(1, 2).reshape(batch, count, width)))
        return projected

    def values(self, tokens: Tensor) -> Tensor:
        """What each token of ``[B, T, C]`` has to say, as if it looked at nothing but itself: ``[B, T, C]``."""
        width = tokens.shape[-1]
        bias = None if self.qkv.bias is None else self.qkv.bias[2 * width :]
        projected: Tensor = self.project(F.linear(tokens, self.qkv.weight[2 * width :], bias))
        return projected


class AttentionPool(nn.Module):
    """One learned query gathers all patches into one vector."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.keys_values = nn.Linear(width, 2 * width)
        self.probabilities = Watchable()
        self.project = nn.Linear(width, width)
        nn.init.trunc_normal_(self.query, std=0.02)

    def values(self, tokens: Tensor) -> Tensor:
        """What each token of ``[B, T, C]`` would be pooled to, were it the only one: ``[B, T, C]``."""
        projected: Tensor = self.project(self.keys_values(tokens).chunk(2, dim=-1)[1])
        return projected

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T, C]`` to ``[B, C]``."""
        batch, count, width = tokens.shape
        pairs = self.keys_values(tokens).reshape(batch, count, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        keys, values = pairs.unbind(0)
        query = self.query.reshape(1, 1, self.num_heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        gathered = attend(query, keys, values, self.probabilities, 0.0)
        pooled: Tensor = self.project(gathered.transpose(1, 2).reshape(batch, width))
        return pooled
