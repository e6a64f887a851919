"""Found pictures on one sheet, each with its score, beside what was looked for.

h, w picture
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from saccade.render.page import Panel, side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 5


def found_sheet(
    pictures: Sequence[Tensor],
    scores: Sequence[float],
    names: Sequence[str],
    *,
    title: str,
    query: Tensor | None = None,
) -> Figure:
    """A sheet of found pictures, most similar first.

    Args:
        pictures: each ``[3, h, w]`` uint8.
        scores: of each.
        names: of each, for the caption.
        title: what was looked for.
        query: the picture that was looked for, ``[3, h, w]`` uint8; it comes first.

    Raises:
        InputError: where there is nothing to show.
    """
    panels = [
        Panel(image=picture, title=f"{place}  {score:.3f}", caption=_short(name))
        for place, (picture, score, name) in enumerate(zip(pictures, scores, names, strict=True), 1)
    ]
    if query is not None:
        panels.insert(0, Panel(image=query, title="looked for"))
    rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    return side_by_side(rows, size=1.7, title=title)


def _short(name: str, most: int = 26) -> str:
    """Without its middle where it is too long: sentences tell by their beginning, files by their end."""
    ahead = most // 2
    return name if len(name) <= most else f"{name[:ahead]}…{name[ahead + 1 - most :]}"
