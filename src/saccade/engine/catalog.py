"""What exists: every registered model with its parameters and operations, counted without giving it memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.errors import UnknownNameError
from saccade.models.base import ModelConfig
from saccade.models.build import find_config
from saccade.registry import names
from saccade.types import ImageBatch


@dataclass(frozen=True)
class Entry:
    """One registered model.

    Attributes:
        name: for ``create``.
        task: what it is for.
        architecture: kind of model, and its backbone where it has one.
        parameters: how many numbers are learned, with its default number of classes.
        flops: floating-point operations of one forward pass of one picture (a multiplication and an addition are two).
        size: height and width of the picture.
    """

    name: str
    task: str
    architecture: str
    parameters: int
    flops: int
    size: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def catalog(task: str | None = None) -> list[Entry]:
    """The registered models, those for tests left out.

    Raises:
        UnknownNameError: where no model has such a task.
    """
    configs = {name: find_config(name) for name in names() if not name.endswith("_test")}
    tasks = sorted({config.task for config in configs.values()})
    if task is not None and task not in tasks:
        raise UnknownNameError("task", task, tasks)
    return [measure(name, config) for name, config in configs.items() if task in (None, config.task)]


def measure(name: str, config: ModelConfig) -> Entry:
    """Count parameters and operations of a config."""
    try:
        parameters, flops = _count(config, "meta")
    except (NotImplementedError, RuntimeError):
        # Routing depends on the numbers of the tokens, and tensors on the meta device have none.
        parameters, flops = _count(config, "cpu")
    backbone = getattr(config, "backbone", None)
    kinds = [getattr(part, "kind", "") for part in (config, backbone) if part is not None]
    return Entry(name, config.task, ", ".join(kinds), parameters, flops, config.preprocess.size)


def _count(config: ModelConfig, device: str) -> tuple[int, int]:
    with torch.device(device):
        model = config.build().eval().requires_grad_(True)
        with FlopCounterMode(display=False) as counter:
            model(ImageBatch.of(torch.zeros(1, 3, *config.preprocess.size)))
    return sum(parameter.numel() for parameter in model.parameters()), int(counter.get_total_flops())
