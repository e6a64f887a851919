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
from saccade.nn.mlp import Activation, MLPKind, build_mlp


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


class MixtureOfExperts(nn.Module):
    """Router, experts and, where asked, a shared expert; stands in for the feed-forward layer of a block."""

    def __init__(
        self, config: MoEConfig, width: int, kind: MLPKind, ratio: float, activation: Activation, dropout: float
    ) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(width, config.num_experts, bias=False)
        # One module each, not one stacked tensor: its gradient would be put together from E parts in every step.
        self.experts = nn.ModuleList(
            build_mlp(kind, width, ratio, activation, dropout) for _ in range(config.num_experts)
        )
        self.shared = build_mlp(kind, width, ratio, activation, dropout) if config.has_shared_expert else None

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
        return mixed.view_as(tokens), Decision(logits, experts, dropped)

    def _sorted(self, flat: Tensor, gates: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Sort by expert, multiply slice by slice, sort back."""
        count, active = experts.shape
        # First choices before second ones: where capacity runs out, the least wanted assignment is dropped first.
        chosen = experts.t().reshape(-1)
        order = chosen.argsort(stable=True)
        # Both index_selects are permutations, so that their gradients never collide and are deterministic everywhere.
        rows = (flat if active == 1 else flat.repeat(active, 1)).index_select(0, order)
        counts: list[int] = torch.bincount(chosen, minlength=self.config.num_experts).tolist()
        capacity = self._capacity(count * active)
        kept = [min(number, capacity) for number in counts]
        slices = torch.split(rows, counts)
        results = torch.cat([self._expert(e, part, kept[e]) for e, part in enumerate(slices)])
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        results = results.index_select(0, inverse)
        weighed = results * gates.t().reshape(-1, 1).to(results.dtype)
        mixed = weighed if active == 1 else weighed.view(active, count, -1).sum(dim=0)
        dropped = gates.new_tensor(1 - sum(kept) / max(count * active, 1))
        return mixed, dropped

    def _expert(self, index: int, rows: Tensor, kept: int) -> Tensor:
        """One expert on its slice; zeros for the rows beyond its capacity.

        An expert without tokens runs too: its gradient is then zero, and an optimizer does not mistake it for unused.
        """
        results: Tensor = self.experts[index](rows[:kept])
        return results if kept == len(rows) else F.pad(results, (0, 0, 0, len(rows) - kept))

    def _dense(self, flat: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        """The same mixture with all experts on all tokens: E times the work, but free of data-dependent shapes."""
        weights = torch.zeros(flat.shape[0], self.config.num_experts, dtype=gates.dtype, device=gates.device).scatter(
            1, experts, gates
        )
        results = torch.stack([expert(flat) for expert in self.experts])
        return torch.einsum("esc,se->sc", results, weights.to(results.dtype))

    def _capacity(self, assignments: int) -> int:
        factor = self.config.capacity_factor
        if not self.training or factor == 0:
            return assignments
        return math.ceil(factor * assignments / self.config.num_experts)
