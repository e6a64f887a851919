"""Pages of explained pictures: one with its caption, many side by side. Each verdict is told by words and by shape.

h, w picture
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError
from saccade.render.figure import FAINT, INK, PAPER, new_figure, show
from saccade.render.heat import colour_table, enlarged, full_strength, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Status = Literal["supported", "weak", "failed"]
BADGES: Mapping[str, tuple[str, str, str]] = {
    "supported": ("o", "#00735C", "✓"),
    "weak": ("^", "#B26A00", "!"),
    "failed": ("X", "#B3261E", ""),
}
"""Marker, colour and sign of each verdict."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One picture of a page.

    Attributes:
        image: ``[3, h, w]`` uint8.
        heat: ``[h, w]`` evidence over it; None: the picture alone.
        is_signed: whether negative evidence is drawn.
        title: bold line above ("Grad-CAM").
        caption: lines below ("sneaker 0.98").
        status: verdict; None: none was asked for.
        scale: value of the heat at full strength; None: that beyond which a tenth of the evidence lies.
        has_bar: draw the colour bar.
    """

    image: Tensor
    heat: Tensor | None = None
    is_signed: bool = False
    title: str = ""
    caption: str = ""
    status: Status | None = None
    scale: float | None = None
    has_bar: bool = False


def explanation(panel: Panel) -> Figure:
    """One explained picture with title, caption, badge and colour bar."""
    return side_by_side([[panel]], size=4.2)


def side_by_side(rows: Sequence[Sequence[Panel]], *, size: float = 2.3, title: str = "") -> Figure:
    """A page: one row per picture, one column per method.

    Args:
        rows: panels; rows may be of different lengths.
        size: width of a panel in inches.
        title: line above the page.

    Raises:
        InputError: where there is nothing to show.
    """
    if not rows or not any(rows):
        raise InputError("there is nothing to show", where="rows", expected="at least one panel")
    columns = max(len(row) for row in rows)
    lines = max((panel.caption.count("\n") + 1 for row in rows for panel in row if panel.caption), default=0)
    foot = 0.17 * lines + (0.26 if any(p.status for row in rows for p in row) else 0.0) + 0.12
    bar = 0.34 if any(p.has_bar for row in rows for p in row) else 0.0
    heights = [max(p.image.shape[1] / p.image.shape[2] for p in row) * size if row else size for row in rows]
    head, gap = 0.3, 0.16
    total = sum(heights) + len(rows) * (head + foot + bar) + (0.4 if title else 0.0) + 0.1
    width = columns * (size + gap) + gap
    figure = new_figure(width, total)
    top = total - (0.4 if title else 0.0) - 0.05
    if title:
        figure.text(gap / width, 1 - 0.22 / total, title, size=12, weight="bold", color=INK, va="center")
    for row, height in zip(rows, heights, strict=True):
        top -= head
        for column, panel in enumerate(row):
            left = gap + column * (size + gap)
            box = (left / width, (top - height) / total, size / width, height / total)
            axes = figure.add_axes(box)
            _draw_panel(figure, axes, panel, size=size, under=bar)
        top -= height + foot + bar
    return figure


def _draw_panel(figure: Figure, axes: Axes, panel: Panel, *, size: float, under: float) -> None:
    picture = panel.image if panel.heat is None else None
    if picture is None:
        assert panel.heat is not None
        image = enlarged(panel.image)
        heat = panel.heat.detach().float().cpu()
        peak = full_strength(heat) if panel.scale is None else panel.scale
        if heat.shape != image.shape[1:]:
            # Small pictures are enlarged pixel by pixel, evidence smoothly: it has no pixels of its own.
            heat = F.interpolate(heat[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        picture = overlay(image, heat, panel.is_signed, scale=peak, is_failed=panel.status == "failed")
    show(axes, enlarged(picture))
    if panel.title:
        axes.set_title(panel.title, size=9.5, weight="bold", color=INK, loc="left", pad=4)
    box = axes.get_position()
    inch = 1 / float(figure.get_figheight())
    line = box.y0 - 0.05 * inch
    if panel.has_bar and panel.heat is not None:
        line = _draw_bar(figure, panel, (box.x0, line - 0.1 * inch, box.width, 0.08 * inch)) - 0.18 * inch
    elif under and panel.heat is not None:
        line -= under * inch
    if panel.caption:
        figure.text(box.x0, line, panel.caption, size=8.5, color=INK, va="top", linespacing=1.3)
        line -= (0.17 * (panel.caption.count("\n") + 1)) * inch
    if panel.status:
        _draw_badge(figure, panel.status, box.x0, line - 0.13 * inch, size)


def _draw_badge(figure: Figure, status: Status, left: float, middle: float, size: float) -> None:
    from matplotlib.lines import Line2D

    marker, colour, sign = BADGES[status]
    inch = 1 / float(figure.get_figwidth())
    shape = Line2D([left + 0.08 * inch], [middle], marker=marker, markersize=9, color=colour, linestyle="none")
    shape.set_transform(figure.transFigure)
    figure.add_artist(shape)
    if sign:
        figure.text(left + 0.08 * inch, middle, sign, size=6.5, weight="bold", color=PAPER, ha="center", va="center")
    words = "failed: do not read this map" if status == "failed" and size >= 2 else status
    figure.text(left + 0.2 * inch, middle, words, size=8.5, weight="bold", color=colour, va="center_baseline")


def _draw_bar(figure: Figure, panel: Panel, box: tuple[float, float, float, float]) -> float:
    """The colour bar; returns where the space below it begins."""
    assert panel.heat is not None
    axes = figure.add_axes(box)
    ramp = colour_table(panel.is_signed)[None] / 255
    axes.imshow(ramp.numpy(), aspect="auto", extent=(-1 if panel.is_signed else 0, 1, 0, 1))
    axes.set_yticks([])
    top = panel.scale if panel.scale is not None else full_strength(panel.heat)
    if panel.is_signed:
        axes.set_xticks([-1, 0, 1], [f"{-top:.2g} against", "0", f"{top:.2g} for"])
    else:
        axes.set_xticks([0, 1], ["0", f"{top:.2g}"])
    first, *_, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.tick_params(labelsize=7, length=0, pad=2, colors=FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return box[1]
