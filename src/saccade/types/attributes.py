"""Classes described by what they have in common, so that a class without pictures can be recognised by its description.

K classes · A attributes
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AttributeTable(Config):
    """Which class has which attribute; empty where nobody described any."""

    classes: tuple[str, ...] = ()
    """Names of the K classes, with and without pictures."""
    attributes: tuple[str, ...] = ()
    """Names of the A attributes."""
    values: tuple[tuple[float, ...], ...] = ()
    """Of each class, how far it has each attribute, in [0, 1]."""
    seen: tuple[str, ...] = ()
    """The classes that training showed."""

    def __post_init__(self) -> None:
        for names, noun in ((self.classes, "class"), (self.attributes, "attribute")):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ConfigError(f"the {noun} {repeated[0]!r} is there twice", where="table", expected="each once")
        if len(self.values) != len(self.classes) or any(len(row) != len(self.attributes) for row in self.values):
            expected = f"{len(self.classes)} rows of {len(self.attributes)} values"
            raise ConfigError("the values do not fit the classes and attributes", where="table", expected=expected)
        for name, row in zip(self.classes, self.values, strict=True):
            if not all(math.isfinite(value) and 0 <= value <= 1 for value in row):
                raise ConfigError(f"a value of class {name!r} is no share", where="table", expected="numbers in [0, 1]")
        same: dict[tuple[float, ...], str] = {}
        for name, row in zip(self.classes, self.values, strict=True):
            if row in same:
                what = f"the classes {same[row]!r} and {name!r} have the same attributes, so nothing tells them apart"
                raise ConfigError(what, where="table", remedy="add an attribute that differs")
            same[row] = name
        strange = [name for name in self.seen if name not in self.classes]
        if strange:
            raise ConfigError(f"the class {strange[0]!r} is not in the table", where="table.seen")

    @property
    def unseen(self) -> tuple[str, ...]:
        """The classes that training did not show."""
        return tuple(name for name in self.classes if name not in self.seen)

    def matrix(self) -> Tensor:
        """The values, ``[K, A]`` float32."""
        return torch.tensor(self.values, dtype=torch.float32).reshape(len(self.classes), len(self.attributes))

    def shares(self) -> Tensor:
        """The mean of each attribute over the seen classes, ``[A]`` float32; one half where none is known as seen."""
        rows = [self.classes.index(name) for name in self.seen]
        return self.matrix()[rows].mean(dim=0) if rows else torch.full((len(self.attributes),), 0.5)

    def shown(self, names: Iterable[str]) -> AttributeTable:
        """The same table, where training shows these classes."""
        given = set(names)
        seen = tuple(name for name in self.classes if name in given)
        return AttributeTable(classes=self.classes, attributes=self.attributes, values=self.values, seen=seen)
