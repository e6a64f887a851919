"""From a name to a model: the one place where models are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saccade.backbones.timm import TimmConfig
from saccade.config import from_dict, override, to_dict
from saccade.errors import ConfigError, UnknownNameError
from saccade.models.base import ModelConfig, VisionModel
from saccade.models.classifier import ClassifierConfig
from saccade.registry import lookup
from saccade.types import Classes

AnyModel = VisionModel[Any, Any, Any]
CONFIG_KINDS: dict[str, type[ModelConfig]] = {"classifier": ClassifierConfig}
"""Every kind of model config, by its ``kind`` field."""


def create(
    name: str,
    num_classes: int | None = None,
    classes: Classes | Sequence[str] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
) -> AnyModel:
    """A model with random weights.

    Args:
        name: a registered name, or ``timm/NAME`` for any convolutional backbone of timm.
        num_classes: number of classes; the config's own where neither this nor ``classes`` is given.
        classes: names of the classes.
        overrides: dotted config fields, as ``saccade.config.override`` takes them.

    Raises:
        UnknownNameError: with the nearest name.
        ConfigError: where an override or the number of classes is wrong.
    """
    if classes is not None:
        classes = classes if isinstance(classes, Classes) else Classes(tuple(classes))
        if num_classes is not None and num_classes != len(classes):
            raise ConfigError(f"num_classes is {num_classes}, but {len(classes)} classes are named")
        num_classes = len(classes)
    config = find_config(name)
    if overrides:
        config = override(config, overrides)
    if num_classes is not None:
        config = override(config, {"num_classes": num_classes})
    return build(config, classes)


def find_config(name: str) -> ModelConfig:
    """The config behind a registered name or ``timm/NAME``."""
    source, slash, timm_name = name.partition("/")
    if slash and source == "timm":
        return ClassifierConfig(backbone=TimmConfig(name=timm_name))
    config = lookup(name)
    if not isinstance(config, ModelConfig):
        raise ConfigError(f"{name!r} is registered, but is no model", expected="a ModelConfig")
    return config


def build(config: ModelConfig, classes: Classes | None = None) -> AnyModel:
    """The model of a config, with random weights and, where given, named classes."""
    model = config.build()
    if classes is not None:
        if len(classes) != config.num_classes:
            raise ConfigError(f"{len(classes)} classes for a model of {config.num_classes}", where="num_classes")
        model.classes = classes
    return model


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """A model config from plain data, as ``to_dict`` wrote it; its ``kind`` says which.

    Raises:
        ConfigError: where the kind or a key is unknown.
    """
    kind = str(data.get("kind"))
    if kind not in CONFIG_KINDS:
        raise UnknownNameError("kind of model config", kind, CONFIG_KINDS)
    return from_dict(CONFIG_KINDS[kind], data)


__all__ = ["AnyModel", "build", "create", "find_config", "read_config", "to_dict"]
