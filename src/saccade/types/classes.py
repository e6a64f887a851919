"""Names of classes, and of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from saccade.errors import InputError, UnknownNameError

_BACKGROUNDS = frozenset({"background", "unlabeled", "unlabelled", "other"})

TaskName = Literal["classification", "semantic", "detection", "instance", "zero_shot"]

TASK_SYNONYMS: dict[str, TaskName] = {"segmentation": "semantic", "captions": "zero_shot"}
"""What people call tasks -> what they are called here."""


@dataclass(frozen=True)
class Classes:
    """Names of the foreground classes; the id of a class is its place in ``names``.

    Names and ids are this one object in data sets, models, files and predictions, so an id can never drift from
    its name.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise InputError(f"class names repeat: {', '.join(repeated)}", expected="every class name once")

    @classmethod
    def numbered(cls, num_classes: int) -> Classes:
        """Stand-in names ``class_0`` ... for a model that was never told any."""
        return cls(tuple(f"class_{index}" for index in range(num_classes)))

    @property
    def backgrounds(self) -> frozenset[int]:
        """Labels of the classes that stand for everything else: background, unlabeled, other."""
        return frozenset(label for label, name in enumerate(self.names) if name.casefold() in _BACKGROUNDS)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, label: int) -> str:
        return self.names[label]

    def id(self, name: str) -> int:
        """The label of a class name; the nearest name is offered where it does not exist."""
        if name in self.names:
            return self.names.index(name)
        folded = [known.casefold() for known in self.names]
        if folded.count(name.casefold()) == 1:
            return folded.index(name.casefold())
        raise UnknownNameError("class", name, self.names)
