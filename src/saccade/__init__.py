"""Saccade: vision models on your own images, every prediction explained, every explanation measured.

Example:
    >>> import saccade
    >>> model = saccade.load("runs/shoes/best.safetensors")
    >>> prediction = saccade.predict(model, ["photo.jpg"])[0]
    >>> saccade.explain(model, "photo.jpg", of=prediction).save("why.png")

The names below are imported when first used: ``import saccade`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saccade.api import convert, create, evaluate, explain, predict, search, train
    from saccade.errors import SaccadeError
    from saccade.opening import load
    from saccade.registry import register
    from saccade.studies.run import study

__version__ = "0.1.0"

_HOME = {
    "SaccadeError": "saccade.errors",
    "convert": "saccade.api",
    "create": "saccade.api",
    "evaluate": "saccade.api",
    "explain": "saccade.api",
    "load": "saccade.opening",
    "predict": "saccade.api",
    "register": "saccade.registry",
    "search": "saccade.api",
    "study": "saccade.studies.run",
    "train": "saccade.api",
}

__all__ = [
    "SaccadeError",
    "__version__",
    "convert",
    "create",
    "evaluate",
    "explain",
    "load",
    "predict",
    "register",
    "search",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saccade' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
