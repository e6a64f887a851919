"""Pictures that may share a forward pass: neighbours that are alike, in groups of bounded size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

Size = tuple[int, int]


def neighbours(
    pictures: Sequence[Tensor], size_of: Callable[[Tensor], Size], most: Callable[[Size], int]
) -> Iterator[list[Tensor]]:
    """Neighbours of one size, in order.

    Args:
        pictures: each ``[3, h, w]``.
        size_of: height and width that decide which are alike.
        most: how many of a size go together, at least 1.
    """
    for size, group in itertools.groupby(pictures, key=size_of):
        while part := list(itertools.islice(group, most(size))):
            yield part
