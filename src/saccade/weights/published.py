"""What a published source gives: weights in our names, the config that builds their model, its classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from saccade.errors import WeightsError

State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Published:
    """A published model, translated.

    Attributes:
        origin: where it came from, for messages and model cards.
        state: weights under the names of our model.
        config: plain data of our model's config, preprocessing included; its ``kind`` says which model that is.
        classes: names of the classes; None where the source does not tell.
        reference: the original, pixels ``[B, 3, H, W]`` to logits ``[B, K]``, of a segmenter ``[B, K, H, W]``, of a
            two-stage detector those of its anchors ``[B, A]``, of a model that also reads vectors ``[B, D]``, to hold
            the translation against.
        texts: of a model that reads, the original: ids ``[N, L]`` of whole contexts to vectors ``[N, D]``.
    """

    origin: str
    state: dict[str, Tensor]
    config: dict[str, Any]
    classes: tuple[str, ...] | None
    reference: Callable[[Tensor], Tensor]
    texts: Callable[[Tensor], Tensor] | None = None


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Class names with the repeated ones told apart by their id: ImageNet has two ``crane``."""
    listed = list(names)
    counts = Counter(listed)
    return tuple(name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(listed))


def first_line(error: Exception) -> str:
    """The first line of a foreign error's message, short enough to be quoted in ours."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


def rename(name: str, table: Mapping[str, str], source: str) -> str:
    """The part of a parameter's name before its last dot, translated by ``table``.

    Raises:
        WeightsError: where the table does not know it.
    """
    module, dot, leaf = name.rpartition(".")
    if module not in table:
        raise WeightsError(f"the parameter {name!r} has no place in our ViT", where=source)
    return table[module] + dot + leaf


def square(patches: int, source: str) -> tuple[int, int]:
    """The grid of a square picture cut into ``patches`` patches."""
    side = round(patches**0.5)
    if side * side != patches:
        raise WeightsError(f"{patches} positions form no square grid", where=source, remedy="say which grid it is")
    return side, side
