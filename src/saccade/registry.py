"""Names of models: each name is a config value, found in one table.

``register`` fills the table; the first lookup imports every module of ``saccade.models`` so that the order of imports
cannot matter. Two entries of one name are an error. Third-party code calls ``register`` itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from saccade.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from saccade.config import Config

_variants: dict[str, Config] = {}
_is_discovered = False


def register(variants: Mapping[str, Config]) -> None:
    """Add named config values to the table.

    Raises:
        ConfigError: where a name is taken by a different value.
    """
    for name, config in variants.items():
        if name in _variants and _variants[name] != config:
            raise ConfigError("two models are registered under one name", where=name, remedy="rename one of them")
        _variants[name] = config


def lookup(name: str) -> Config:
    """The config registered as ``name``.

    Raises:
        UnknownNameError: with the nearest name.
    """
    _discover()
    if name not in _variants:
        raise UnknownNameError("model", name, names())
    return _variants[name]


def names() -> tuple[str, ...]:
    """All registered names, sorted."""
    _discover()
    return tuple(sorted(_variants))


def _discover() -> None:
    global _is_discovered
    if _is_discovered:
        return
    package = importlib.import_module("saccade.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"saccade.models.{module.name}")
    _is_discovered = True
