"""Figures made by matplotlib's objects, without pyplot and its global state, and their files; any thread may draw."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saccade.atomic import write_bytes
from saccade.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#22252B", "#8A8F98", "#FFFFFF"
FORMATS = (".png", ".svg", ".pdf")


def to_png(figure: Figure, *, dpi: int = 144) -> bytes:
    """The figure as PNG."""
    return _rendered(figure, "png", dpi=dpi)


def to_svg(figure: Figure) -> str:
    """The figure as SVG text; the same figure gives the same text."""
    return _rendered(figure, "svg").decode()


def save(figure: Figure, path: str | Path, *, dpi: int = 144) -> Path:
    """Write the figure as .png, .svg or .pdf; the file appears whole or not at all.

    Raises:
        InputError: where the suffix is another one.
        RunError: where the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a figure cannot be saved as {path.suffix!r}", where=str(path), expected=", ".join(FORMATS))
    return write_bytes(path, _rendered(figure, path.suffix.lower()[1:], dpi=dpi))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _rendered(figure: Figure, kind: str, **options: Any) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # Without date and with fixed ids the same figure gives the same bytes.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with rc_context({"svg.hashsalt": "saccade", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()


def show(axes: Axes, image: Tensor) -> None:
    """Fill the axes with a picture ``[3, h, w]`` uint8, without ticks and frame."""
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def plain_axes(axes: Axes) -> None:
    """Only the axes that are read: no frame, faint lines."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(labelsize=8, colors=INK, color=FAINT, length=3)
    axes.grid(color="#E8EAED", linewidth=0.8)
    axes.set_axisbelow(True)
