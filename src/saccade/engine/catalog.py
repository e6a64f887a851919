"""What exists: every registered model with its parameters and operations, counted without giving it memory.

Counting takes a forward pass of every model, which together are minutes of work. So the counts of the models that come
with Saccade come with it too (``assets/model_counts.json``), each under the digest of its whole config; a config that
is not among them, as one that a user registered, is counted when it is asked for. Whoever changes a model writes them
anew with ``python -m saccade.engine.catalog``; a test counts again and compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.atomic import write_json
from saccade.config import to_dict
from saccade.errors import UnknownNameError
from saccade.models.base import ModelConfig
from saccade.models.build import find_config
from saccade.registry import names
from saccade.types import TASK_SYNONYMS, ImageBatch

COUNTS = Path(__file__).parents[1] / "assets" / "model_counts.json"
"""Parameters and operations by the digest of a config."""


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

    Args:
        task: only those for this task; ``segmentation`` is ``semantic``, ``captions`` are ``zero_shot``.

    Raises:
        UnknownNameError: where no model has such a task.
    """
    configs = listed()
    task = TASK_SYNONYMS.get(task, task) if task is not None else None
    tasks = sorted({config.task for config in configs.values()})
    if task is not None and task not in tasks:
        raise UnknownNameError("task", task, [*tasks, *TASK_SYNONYMS])
    known = json.loads(COUNTS.read_text(encoding="utf-8"))
    entries = []
    for name, config in configs.items():
        if task in (None, config.task):
            counts = known.get(digest(config))
            entries.append(_entry(name, config, *counts) if counts else measure(name, config))
    return entries


def listed() -> dict[str, ModelConfig]:
    """The configs of the registered models by name, those for tests left out."""
    return {name: find_config(name) for name in names() if not name.endswith("_test")}


def measure(name: str, config: ModelConfig) -> Entry:
    """Count parameters and operations of a config."""
    try:
        parameters, flops = _count(config, "meta")
    except (NotImplementedError, RuntimeError):
        # Routing depends on the numbers of the tokens, and tensors on the meta device have none.
        parameters, flops = _count(config, "cpu")
    return _entry(name, config, parameters, flops)


def digest(config: ModelConfig) -> str:
    """What a config is known by: its kind and every value in it."""
    content = json.dumps([type(config).__qualname__, to_dict(config)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]


def write_counts(configs: Mapping[str, ModelConfig], path: Path) -> None:
    """Count these models and keep the counts in a file."""
    counts = {}
    for name, config in configs.items():
        entry = measure(name, config)
        counts[digest(config)] = (entry.parameters, entry.flops)
    write_json(path, dict(sorted(counts.items())))


def _entry(name: str, config: ModelConfig, parameters: int, flops: int) -> Entry:
    backbone = getattr(config, "backbone", None)
    kinds = [getattr(part, "kind", "") for part in (config, backbone) if part is not None]
    return Entry(name, config.task, ", ".join(kinds), parameters, flops, config.preprocess.size)


def _count(config: ModelConfig, device: str) -> tuple[int, int]:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)  # which expert or region a random model chooses changes its operations
        model = config.build().eval().requires_grad_(True)
        with FlopCounterMode(display=False) as counter:
            model(ImageBatch.of(torch.zeros(1, 3, *config.preprocess.size)))
    return sum(parameter.numel() for parameter in model.parameters()), int(counter.get_total_flops())


if __name__ == "__main__":
    write_counts(listed(), COUNTS)
