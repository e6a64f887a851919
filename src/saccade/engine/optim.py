"""Optimizer groups, the learning-rate schedule and the moving average of the weights.

AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101. Cosine schedule: arXiv 1608.03983. Average of weights: Polyak &
Juditsky 1992.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saccade.errors import UnknownNameError

OptimizerName = Literal["adamw", "sgd"]
ModelT = TypeVar("ModelT", bound=nn.Module)


def schedule(progress: float, warmup: float, floor: float = 0.0) -> float:
    """Factor on the learning rate: a linear rise over ``warmup``, then half a cosine down to ``floor``.

    Args:
        progress: share of the training done, in [0, 1].
        warmup: share of the training that warms up; 0 starts at the full rate.
        floor: factor at the end.
    """
    if progress < warmup:
        return progress / warmup
    descent = (progress - warmup) / max(1 - warmup, 1e-12)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(descent, 1.0)))


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    spared: set[str],
    head: str | None = "head",
    head_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Trainable parameters in up to four groups: decayed or spared, head or rest.

    Norm weights, biases and every other parameter of fewer than two dimensions are spared from decay, and so are the
    names in ``spared``. Each group has ``rate_multiplier``, the factor that its learning rate has over the
    schedule's.

    Args:
        model: whose parameters are trained; frozen ones are left out.
        weight_decay: of the decayed groups.
        spared: names of parameters beside the one-dimensional ones (positions, tokens).
        head: submodule that learns at another rate, None for no such group.
        head_multiplier: of the head's rate.

    Raises:
        UnknownNameError: where a spared name does not exist, which would silently decay what it meant.
    """
    named = dict(model.named_parameters())
    for name in sorted(spared):
        if name not in named:
            raise UnknownNameError("parameter", name, named, where=f"{type(model).__name__}.no_decay()")
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        is_decayed = parameter.ndim > 1 and name not in spared
        is_head = head is not None and name.startswith(f"{head}.")
        groups.setdefault((is_decayed, is_head), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if is_decayed else 0.0,
            "rate_multiplier": head_multiplier if is_head else 1.0,
        }
        for (is_decayed, is_head), parameters in sorted(groups.items())
    ]


def build_optimizer(name: OptimizerName, groups: Sequence[dict[str, Any]], learning_rate: float) -> Optimizer:
    """AdamW (betas 0.9, 0.999; decoupled decay) or SGD with Nesterov momentum 0.9."""
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)
    # The fused kernel exists for CPU and CUDA and is one pass over memory; gradients of one kind of device are all we
    # have.
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give every group its share of ``learning_rate``."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_multiplier"]


class MovingAverage(Generic[ModelT]):
    """Exponential moving average of a model's parameters and buffers, in a copy that can be evaluated.

    After update t the decay is ``min(decay, (1 + t) / (10 + t))``, so the random start is forgotten quickly. Running
    statistics are averaged like weights; integer buffers (counters) are copied.

    Args:
        model: whose weights are followed; the copy stays on its device.
        decay: in [0, 1).
    """

    def __init__(self, model: ModelT, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def weight(self) -> float:
        """Share of the old average kept by the coming update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of ``model``."""
        averages, values = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [averages[name] for name in floating], [values[name] for name in floating], 1 - self.weight()
        )
        for name, value in values.items():
            if not value.is_floating_point():
                averages[name].copy_(value)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, the counter of updates included."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
