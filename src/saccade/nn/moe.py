"""Mixture of experts: many feed-forward layers, of which each token visits the few that a learned router chooses.

Top-1 routing and capacity: Fedus et al. 2021 (Switch), arXiv 2101.03961. Top-k with gates that sum to one: Lepikhin et
al. 2020 (GShard), arXiv 2006.16668. Shared expert: Dai et al. 2024, arXiv 2401.06066.
Differs from them: no expert has padding, since tokens are sorted by expert and every expert multiplies its own slice;
and in evaluation no token is ever dropped, so that a picture's result does not depend on its neighbours in the batch.

S tokens of the whole batch · C width · D hidden width · E experts · A active experts per token
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.nn.mlp import ACTIVATIONS, Activation, MLPKind, build_mlp, hidden_width


@dataclass(frozen=True, kw_only=True)
class MoEConfig(Config):
    """How many experts stand in for the feed-forward layer of a block, and how tokens find them."""

    num_experts: int = 0
    """Experts per layer; 0 keeps every block dense."""
    active: int = 1
    """Experts each token visits (top-k)."""
    capacity_factor: float = 1.25
    """In training an expert takes at most this multiple of its even share and drops the rest; 0 is no limit."""
    every: int = 2
    """Every how many blocks experts stand in, the last block included; 1 is all blocks."""
    has_shared_expert: bool = False
    """Whether one more expert sees every token."""

    def __post_init__(self) -> None:
        if self.num_experts < 0 or self.num_experts == 1:
            raise ConfigError(f"num_experts is {self.num_experts}", where="moe", expected="0 (dense) or at least 2")
        if self.num_experts and not 1 <= self.active <= self.num_experts:
            raise ConfigError(f"active is {self.active}", where="moe", expected=f"1 to {self.num_experts}")
        if self.every < 1 or self.capacity_factor < 0:
            raise ConfigError("every or capacity_factor is too small", where="moe", expected="every >= 1, factor >= 0")

    def stands_in(self, block: int, depth: int) -> bool:
        """Whether block ``block`` of ``depth`` has experts."""
        return self.num_experts > 0 and (depth - 1 - block) % self.every == 0


class Decision(NamedTuple):
    """What one router decided.

    Attributes:
        logits: ``[S, E]`` float32.
        experts: ``[S, A]`` int64, likeliest first.
        dropped: ``[]`` share of assignments beyond the capacity.
    """

    logits: Tensor
    experts: Tensor
    dropped: Tensor


class Experts(nn.Module):
    """E feed-forward layers of the same shape, their matrices stacked.

    Attributes:
        widen, widen_bias: ``[E, D, C]``, ``[E, D]``; twice D with SwiGLU (gate and value).
        narrow, narrow_bias: ``[E, C, D]``, ``[E, C]``.
    """

    def __init__(self, count: int, width: int, kind: MLPKind, ratio: float, activation: Activation) -> None:
        super().__init__()
        hidden = hidden_width(kind, width, ratio)
        self.is_gated = kind == "swiglu"
        self.activation = ACTIVATIONS[activation]
        rows = 2 * hidden if self.is_gated else hidden
        self.widen = nn.Parameter(torch.empty(count, rows, width))
        self.widen_bias = nn.Parameter(torch.zeros(count, rows))
        self.narrow = nn.Parameter(torch.empty(count, width, hidden))
        self.narrow_bias = nn.Parameter(torch.zeros(count, width))
        for expert in range(count):
            nn.init.xavier_uniform_(self.widen[expert])
            nn.init.xavier_uniform_(self.narrow[expert])

    def forward(self, tokens: Tensor, counts: list[int]) -> Tensor:
        """Tokens ``[R, C]`` sorted by expert, ``counts[e]`` of them for expert e, to ``[R, C]``."""
        results = [
            self._one(rows, *matrices)
            # unbind, not indexing: its backward stacks once instead of adding E full-sized gradients.
            for rows, *matrices in zip(
                torch.split(tokens, counts),
                self.widen.unbind(),
                self.widen_bias.unbind(),
                self.narrow.unbind(),
                self.narrow_bias.unbind(),
                strict=True,
            )
        ]
        return torch.cat(results)

    def every(self, tokens: Tensor) -> Tensor:
        """All experts on all tokens: ``[S, C]`` to ``[E, S, C]``."""
        wide = torch.einsum("sc,edc->esd", tokens, self.widen) + self.widen_bias[:, None]
        return torch.einsum("esd,ecd->esc", self._activate(wide), self.narrow) + self.narrow_bias[:, None]

    def _one(self, rows: Tensor, widen: Tensor, widen_bias: Tensor, narrow: Tensor, narrow_bias: Tensor) -> Tensor:
        return F.linear(self._activate(F.linear(rows, widen, widen_bias)), narrow, narrow_bias)

    def _activate(self, wide: Tensor) -> Tensor:
        if not self.is_gated:
            return self.activation(wide)
        gate, value = wide.chunk(2, dim=-1)
        return F.silu(gate) * value


class MixtureOfExperts(nn.Module):
    """Router, experts and, where asked, a shared expert; stands in for the feed-forward layer of a block."""

    def __init__(
        self, config: MoEConfig, width: int, kind: MLPKind, ratio: float, activation: Activation, dropout: float
    ) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(width, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, width, kind, ratio, activation)
        self.shared = build_mlp(kind, width, ratio, activation, dropout) if config.has_shared_expert else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Decision]:
        """Tokens ``[B, T, C]`` to tokens ``[B, T, C]`` and what the router decided."""
        flat = tokens.flatten(0, 1)
        # The router works in float32 always: rounded logits send tokens to the wrong expert (Switch, section 2.4).
        with torch.autocast(device_type=tokens.device.type, enabled=False):
            logits = F.linear(flat.float(), self.router.weight.float())
        gates, experts = logits.softmax(dim=-1).topk(self.config.active, dim=-1)
        if self.config.active > 1:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        if torch.compiler.is_exporting():
            mixed, dropped = self._dense(flat, gates, experts), logits.new_zeros(())
        else:
            mixed, dropped = self._sorted(flat, gates, experts)
        if self.shared is not None:
            mixed = mixed + self.shared(flat)
        return self.dropout(mixed).view_as(tokens), Decision(logits, experts, dropped)

    def _sorted(self, flat: Tensor, gates: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Sort by expert, multiply slice by slice, sort back."""
        count, active = experts.shape
        # First choices before second ones: where capacity runs out, the least wanted assignment is dropped first.
        chosen = experts.t().reshape(-1)
        order = chosen.argsort(stable=True)
        # Both index_selects are permutations, so that their gradients never collide and are deterministic everywhere.
        rows = flat.repeat(active, 1).index_select(0, order)
        counts: list[int] = torch.bincount(chosen, minlength=self.config.num_experts).tolist()
        capacity = self._capacity(count * active)
        kept = [min(number, capacity) for number in counts]
        if kept == counts:
            results = self.experts(rows, counts)
        else:
            slices = [part[:number] for part, number in zip(torch.split(rows, counts), kept, strict=True)]
            parts = torch.split(self.experts(torch.cat(slices), kept), kept)
            padded = [F.pad(p, (0, 0, 0, n - k)) for p, n, k in zip(parts, counts, kept, strict=True)]
            results = torch.cat(padded)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        results = results.index_select(0, inverse).view(active, count, -1)
        mixed = (results * gates.t()[:, :, None].to(results.dtype)).sum(dim=0)
        dropped = gates.new_tensor(1 - sum(kept) / max(count * active, 1))
        return mixed, dropped

    def _dense(self, flat: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        """The same mixture with all experts on all tokens: E times the work, but free of data-dependent shapes."""
        weights = torch.zeros(flat.shape[0], self.config.num_experts, dtype=gates.dtype, device=gates.device).scatter(
            1, experts, gates
        )
        results = self.experts.every(flat)
        return torch.einsum("esc,se->sc", results, weights.to(results.dtype))

    def _capacity(self, assignments: int) -> int:
        factor = self.config.capacity_factor
        if not self.training or factor == 0:
            return assignments
        return math.ceil(factor * assignments / self.config.num_experts)
