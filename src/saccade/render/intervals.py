"""Charts of repeated measurements: every value, the mean, and where the mean lies.

Values are shown beside their interval, so that nobody takes a mean of three for more than it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from saccade.errors import InputError
from saccade.ops.palette import OKABE_ITO
from saccade.render.charts import DASHES
from saccade.render.figure import INK, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Spread(NamedTuple):
    """Values of one row, and the interval of their mean.

    Attributes:
        values: as measured; NaN where one is undefined.
        mean: of them.
        low: end of the interval; infinite where it is unknown.
        high: the other end.
    """

    values: Sequence[float]
    mean: float
    low: float
    high: float


def dots(rows: Mapping[str, Spread], *, title: str = "", across: str = "", in_percent: bool = False) -> Figure:
    """One row per arm: its values as dots, the interval of the mean as a bar.

    Args:
        rows: by name.
        title: line above.
        across: name of the axis.
        in_percent: write shares as percentages.

    Raises:
        InputError: where there is no row.
    """
    if not rows:
        raise InputError("there is nothing to draw", where="dots", expected="at least one row")
    longest = max(len(name) for name in rows) * 0.075 + 0.3
    width, height = longest + 4.4, 0.3 * len(rows) + 1.0
    figure = new_figure(width, height)
    axes = figure.add_axes((longest / width, 0.55 / height, 4.2 / width, 1 - 0.95 / height))
    for row, spread in enumerate(rows.values()):
        colour = OKABE_ITO[row % len(OKABE_ITO)]
        known = [value for value in spread.values if math.isfinite(value)]
        if math.isfinite(spread.low) and math.isfinite(spread.high):
            axes.plot([spread.low, spread.high], [row, row], color=colour, linewidth=5, alpha=0.35)
        axes.plot(known, [row] * len(known), "o", color=colour, markersize=4)
        if math.isfinite(spread.mean):
            axes.plot([spread.mean], [row], "|", color=INK, markersize=13, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), list(rows), size=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    plain_axes(axes)
    if in_percent:
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.set_xlabel(across, color=INK, size=9)
    figure.text(0.1 / width, 1 - 0.2 / height, title, size=10, weight="bold", color=INK, va="center")
    return figure


def bands(
    lines: Mapping[str, tuple[Sequence[float], Sequence[Spread]]], *, title: str = "", across: str = "", up: str = ""
) -> Figure:
    """Lines of means over a common axis, with their intervals as bands.

    Args:
        lines: name to (places, spreads at these places).
        title: line above.
        across: name of the horizontal axis.
        up: name of the vertical axis.

    Raises:
        InputError: where there is no line, or places and spreads differ in number.
    """
    if not lines or any(len(places) != len(spreads) for places, spreads in lines.values()):
        raise InputError("the lines are missing or uneven", where="bands", expected="as many spreads as places")
    beside = max(len(name) for name in lines) * 0.07 + 0.6
    width = 5.0 + beside
    figure = new_figure(width, 3.3)
    axes = figure.add_axes((0.65 / width, 0.15, 4.2 / width, 0.72))
    for index, (name, (places, spreads)) in enumerate(lines.items()):
        colour, means = OKABE_ITO[index % len(OKABE_ITO)], [spread.mean for spread in spreads]
        style = DASHES[index // len(OKABE_ITO) % len(DASHES)] if len(lines) > len(OKABE_ITO) else DASHES[index % 5]
        axes.plot(list(places), means, color=colour, linestyle=style, linewidth=2, label=name)
        if all(math.isfinite(spread.low) for spread in spreads):
            ends = [spread.low for spread in spreads], [spread.high for spread in spreads]
            reach = [min(means), max(means)]
            room = max(reach[1] - reach[0], 1e-9)
            # A band from three values can be far wider than anything it should be compared with.
            low = [max(value, reach[0] - 2 * room) for value in ends[0]]
            high = [min(value, reach[1] + 2 * room) for value in ends[1]]
            axes.fill_between(list(places), low, high, color=colour, alpha=0.15, linewidth=0)
    plain_axes(axes)
    axes.set_xlabel(across, color=INK, size=9)
    axes.set_ylabel(up, color=INK, size=9)
    axes.set_title(title, size=10.5, weight="bold", color=INK, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure
