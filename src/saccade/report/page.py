"""The page itself: pictures as data, cards, sections, parts; one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image
from torch import Tensor

import saccade
from saccade import render
from saccade.atomic import write_bytes
from saccade.explanation.heatmap import Heatmap
from saccade.tasks import Table

MARKS = {"supported": "●", "weak": "◐", "failed": "○"}
"""A shape beside the word, so that a verdict is never told by colour alone."""


@dataclass(frozen=True)
class Picture:
    """One picture of the page, as a data URI."""

    data: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """Some pictures that belong together, with words and perhaps a verdict."""

    pictures: Sequence[Picture]
    lines: Sequence[str]
    source: str
    verdict: dict[str, str] | None = None


@dataclass(frozen=True)
class Section:
    """One piece of a part.

    Attributes:
        title: heading.
        note: what the reader should know.
        legend: names with their colours, ``#rrggbb``.
        plots: pictures side by side.
        cards: pictures with words.
        table: figures.
        details: texts that open when asked.
        is_wide: whether cards hold many pictures and want a row of their own.
    """

    title: str
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()
    plots: Sequence[Picture] = ()
    cards: Sequence[Card] = ()
    table: Table | None = None
    details: Sequence[dict[str, str]] = field(default_factory=list)
    is_wide: bool = False


@dataclass(frozen=True)
class Part:
    """One evaluation on the page.

    Attributes:
        title: heading.
        lead: the sentence below it.
        figures: values with their labels, shown large.
        sections: in order.
        anchor: name for links to it; parts that have one are listed at the top of a page of several.
        summary: words beside its name in that list.
    """

    title: str
    lead: str
    figures: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    anchor: str = ""
    summary: str = ""


def write_page(path: Path, title: str, lead: str, parts: Sequence[Part]) -> Path:
    """Write the page; with one part, title and lead are that part's own.

    Raises:
        RunError: where it cannot be written.
    """
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        resources.files("saccade.assets").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(title=title, lead=lead, parts=parts, version=saccade.__version__)
    return write_bytes(path, page.encode("utf-8", "backslashreplace"))


def panel(heat: Heatmap, title: str = "") -> render.Panel:
    """A heat map as a panel of a page."""
    status = heat.verdict.status if heat.verdict else None
    caption = "whatever the class" if heat.is_class_agnostic else heat.of
    return render.Panel(
        image=heat.outlined, heat=heat.map, is_signed=heat.is_signed, title=title, caption=caption, status=status
    )


def verdict_of(heat: Heatmap) -> dict[str, str] | None:
    """The badge of a heat map: verdict, mark and first reason."""
    if heat.verdict is None:
        return None
    reason = heat.verdict.reasons[0] if heat.verdict.reasons else ""
    return {"status": heat.verdict.status, "mark": MARKS[heat.verdict.status], "reason": reason}


def overlay(heat: Heatmap, caption: str) -> Picture:
    """A heat map over its picture."""
    return picture(heat.overlay(), caption, caption)


def picture(image: Tensor, alt: str, caption: str) -> Picture:
    """A picture ``[3, h, w]`` uint8."""
    buffer = io.BytesIO()
    Image.fromarray(render.enlarged(image).permute(1, 2, 0).numpy()).save(buffer, "PNG", optimize=True)
    return Picture(_uri(buffer.getvalue()), alt, caption)


def figure(drawn: Any, alt: str) -> Picture:
    """A figure of matplotlib."""
    return Picture(_uri(render.to_png(drawn, dpi=110)), alt)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
