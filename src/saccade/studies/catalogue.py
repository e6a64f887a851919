"""The studies by name, in the order of the notes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from saccade.errors import UnknownNameError
from saccade.studies.base import Study

MODULES: Mapping[str, str] = MappingProxyType(
    {
        name: name.replace("-", "_")
        for name in (
            "token",
            "norm-position",
            "norm-type",
            "swiglu",
            "moe",
            "patch-vs-fcn",
            "down-up",
            "upsampling",
            "skips",
            "rcnn-ladder",
            "proposals",
            "one-pass",
            "queries",
            "zero-shot",
            "cam-family",
            "saliency",
            "explanations",
        )
    }
)
"""The module of each study."""

ALL, LADDER = "all", "ladder"
"""Words that stand for every study, and for the comparison on a user's own data."""


def names() -> tuple[str, ...]:
    """Names of the studies."""
    return tuple(MODULES)


def find(name: str) -> Study:
    """The study of that name.

    Raises:
        UnknownNameError: with the nearest name.
    """
    if name not in MODULES:
        raise UnknownNameError("study", name, [*MODULES, LADDER, ALL])
    study: Study = importlib.import_module(f"saccade.studies.{MODULES[name]}").STUDY
    return study
