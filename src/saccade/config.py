"""Configs: frozen dataclasses, read strictly from plain data and written back to it.

A config is a value beside the class it builds. Unknown keys, wrong types and values outside a ``Literal`` are refused
with the path of the key and the nearest name. A union of configs (``ViTConfig | TimmConfig``) is told apart by its
``kind`` field.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from saccade.errors import ConfigError, nearest

ConfigT = TypeVar("ConfigT", bound="Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every config: a frozen, keyword-only dataclass whose unknown keys are errors."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain data (dicts, lists, numbers, strings) that JSON can hold."""
    data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return data


def from_dict(kind: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """Read a config of type ``kind`` from plain data.

    Raises:
        ConfigError: naming the path of the first key at fault and the nearest name of an unknown key.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(data))
    except ValidationError as error:
        raise _explain(kind, error) from None


def override(config: ConfigT, assignments: Sequence[str] | Mapping[str, Any]) -> ConfigT:
    """A copy of ``config`` with dotted fields replaced.

    Args:
        config: the config to start from; it stays as it is.
        assignments: ``["backbone.depth=6", "pool=average"]``, values read as JSON where they parse and as text where
            not; or the mapping ``{"backbone.depth": 6}``.
    """
    data = to_dict(config)
    for path, value in _pairs(assignments):
        *parents, leaf = path.split(".")
        place: Any = data
        for depth, key in enumerate([*parents, leaf]):
            if not isinstance(place, dict) or key not in place:
                _refuse_key(".".join(path.split(".")[: depth + 1]), key, place)
            if depth < len(parents):
                place = place[key]
        place[leaf] = value
    return from_dict(type(config), data)


def _pairs(assignments: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(assignments, Mapping):
        return list(assignments.items())
    pairs = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"override {assignment!r} has no value", expected="path.to.field=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        pairs.append((path.strip(), value))
    return pairs


def _refuse_key(path: str, key: str, place: object) -> None:
    if not isinstance(place, dict):
        raise ConfigError("this field holds a plain value and has no fields of its own", where=path.rpartition(".")[0])
    near = nearest(key, place)
    raise ConfigError(
        f"unknown config key {key!r}",
        where=path,
        expected=None if near else "one of: " + ", ".join(place),
        remedy=f"did you mean {near!r}?" if near else None,
    )


def _explain(kind: type[Config], error: ValidationError) -> ConfigError:
    """The first complaint of pydantic in our own words."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    known = _field_names(kind)
    # Inside a union pydantic also names the member ("backbone.vit.depth"), which is no part of the path.
    keys = [str(key) for key in first["loc"][:-1] if isinstance(key, int) or key in known]
    keys += [str(key) for key in first["loc"][-1:]]
    where = ".".join(keys) or kind.__name__
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        near = nearest(keys[-1], sorted(known))
        remedy = f"did you mean {near!r}?" if near else None
        return ConfigError(f"unknown config key {keys[-1]!r}", where=where, remedy=remedy)
    message = first["msg"][:1].lower() + first["msg"][1:]
    return ConfigError(f"{message} (got {first.get('input')!r})", where=where)


def _field_names(kind: type) -> set[str]:
    """Names of all fields of a config and of the configs inside it."""
    names: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        if name == "__pydantic_config__":
            continue
        names.add(name)
        for member in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(member) and isinstance(member, type):
                names |= _field_names(member)
    return names
