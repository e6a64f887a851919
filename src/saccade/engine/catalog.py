"""What exists: every registered model with its parameters and operations, counted without giving it memory.

Counting takes a forward pass of every model, so what was counted once is kept in the user's cache folder: by the whole
config, and only as long as the code that builds models is the same. A cache that cannot be read or written costs time,
and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import saccade
from saccade.atomic import write_json
from saccade.config import to_dict
from saccade.errors import SaccadeError, UnknownNameError
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
    maker = _maker()
    known = _read_counts(maker)
    before = len(known)
    entries = []
    for name, config in configs.items():
        if task in (None, config.task):
            key = _digest([type(config).__qualname__, to_dict(config)])
            if key not in known:
                entry = measure(name, config)
                known[key] = (entry.parameters, entry.flops)
            entries.append(_entry(name, config, *known[key]))
    if len(known) > before:
        with suppress(SaccadeError):
            write_json(counts_file(), {"maker": maker, "counts": known})
    return entries


def measure(name: str, config: ModelConfig) -> Entry:
    """Count parameters and operations of a config."""
    try:
        parameters, flops = _count(config, "meta")
    except (NotImplementedError, RuntimeError):
        # Routing depends on the numbers of the tokens, and tensors on the meta device have none.
        parameters, flops = _count(config, "cpu")
    return _entry(name, config, parameters, flops)


def counts_file() -> Path:
    """Where counts are kept: ``saccade/models.json`` in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "saccade" / "models.json"


def _read_counts(maker: str) -> dict[str, tuple[int, int]]:
    """Parameters and operations by config; none where there are none of this maker."""
    try:
        kept = json.loads(counts_file().read_text(encoding="utf-8"))
        counts = kept["counts"] if kept["maker"] == maker else {}
        return {str(key): (int(parameters), int(flops)) for key, (parameters, flops) in counts.items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return {}


def _maker() -> str:
    """What makes models of configs: the libraries, and the package's files as they are now."""
    files = sorted(Path(saccade.__file__).parent.rglob("*.py"))
    stamps = [(path.name, stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]]
    return _digest([importlib.metadata.version("torch"), importlib.metadata.version("timm"), stamps])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()[:16]


def _entry(name: str, config: ModelConfig, parameters: int, flops: int) -> Entry:
    backbone = getattr(config, "backbone", None)
    kinds = [getattr(part, "kind", "") for part in (config, backbone) if part is not None]
    return Entry(name, config.task, ", ".join(kinds), parameters, flops, config.preprocess.size)


def _count(config: ModelConfig, device: str) -> tuple[int, int]:
    with torch.device(device):
        model = config.build().eval().requires_grad_(True)
        with FlopCounterMode(display=False) as counter:
            model(ImageBatch.of(torch.zeros(1, 3, *config.preprocess.size)))
    return sum(parameter.numel() for parameter in model.parameters()), int(counter.get_total_flops())
