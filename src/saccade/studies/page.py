"""The page of the studies: contents with verdicts, and of each study its claim, findings, figures, plots, pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.console import clock
from saccade.render.intervals import Spread, bands, dots
from saccade.report.page import Part, Picture, Section, figure, write_page
from saccade.studies.base import Column, Outcome, Plot, Report, Results
from saccade.studies.intervals import (
    Interval,
    hit_interval,
    interval,
    picture_interval,
    positive_interval,
    share_interval,
    told_interval,
)
from saccade.tasks import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = {"holds": "●", "does not hold here": "○", "undecided": "◐"}
"""A shape beside the words, so that a verdict is never told by colour alone."""

_UNITS = {"images": "pictures", "seconds": "seconds", "flops": "operations"}


def write_studies(path: Path, reports: Sequence[Report]) -> Path:
    """Write one page over all reports.

    Raises:
        RunError: where it cannot be written.
    """
    lead = (
        "Claims about vision models, each measured under equal conditions with several seeds. A claim holds where the "
        "95 % intervals of all of its parts say so; where an interval reaches across the line, it is undecided."
    )
    title = f"The study {reports[0].study.name}" if len(reports) == 1 else "Studies"
    if len(reports) == 1:
        lead = _lead(reports[0])
    return write_page(path, title, lead, [part(report) for report in reports])


def part(report: Report) -> Part:
    """What the page says of one study."""
    study, results = report.study, report.results
    plots = [figure(drawn, title) for title, drawn in charts(report).items()]
    sections = [
        Section("What was found", study.method, table=findings_table(report)),
        Section("Figures", _conditions(report), table=figures_table(report), plots=plots),
    ]
    if report.advice:
        sections.insert(1, Section("What to choose", " ".join(report.advice)))
    sections += [
        Section(arm, "Means over pictures with their 95 % intervals.", table=details_table(report, arm))
        for arm in results.arms()
        if results.measured_on(arm)
    ]
    if shots := [(o.arm, shot) for o in results.outcomes for shot in o.measured.shots]:
        shown = [Picture(_uri(shot.png), f"{arm}: {shot.caption}") for arm, shot in shots]
        note = "; ".join(dict.fromkeys(f"{arm}: {shot.caption}" for arm, shot in shots))
        sections.append(Section("Pictures", note, plots=shown))
    sections.append(Section("Repeat it", command(report)))
    seeds = len(results.of(results.arms()[0]))
    figures = [
        (f"{MARKS[report.status]} {report.status}", "verdict"),
        (str(seeds), "seeds per arm"),
        (str(len(results.arms())), "arms" if len(results.arms()) > 1 else "arm"),
        (clock(report.seconds), f"minutes of work, {report.budget.scale} budget"),
    ]
    summary = f"{MARKS[report.status]} {report.status}"
    return Part(study.name, _lead(report), figures, sections, anchor=study.name, summary=summary)


def command(report: Report) -> str:
    """What repeats the study."""
    budget = report.budget
    words = ["saccade study", report.study.command or report.study.name]
    words += ["--quick"] if budget.scale == "quick" else []
    return " ".join(words)


def findings_table(report: Report) -> Table:
    """The parts of the claim with what the figures say."""
    rows = [(f.what, f"{MARKS[f.status]} {f.status}", f.told) for f in report.findings]
    return Table(("part of the claim", "verdict", "figures, 95 % interval"), rows)


def figures_table(report: Report) -> Table:
    """Every column of every arm as mean with interval, and what its training spent."""
    columns, results = report.study.columns, report.results
    head = ("arm", *(column.heading for column in columns), *(["training"] if report.study.spend else []))
    rows = []
    for arm in results.arms():
        told = [
            told_interval(column_interval(column, results.values(arm, column.key)), column.form) for column in columns
        ]
        rows.append((arm, *told, *([_spent(results.of(arm))] if report.study.spend else [])))
    return Table(head, rows)


def column_interval(column: Column, values: Sequence[float]) -> Interval:
    """The interval over seeds that suits a column."""
    if column.form == "time":
        return positive_interval(values)
    return share_interval(values) if column.form == "percent" else interval(values)


def detail_interval(column: Column, values: Sequence[float]) -> Interval:
    """The interval over pictures that suits a column."""
    return hit_interval(values) if column.is_hit else picture_interval(values)


def details_table(report: Report, arm: str) -> Table:
    """What was measured on single pictures of an arm: one line per thing, intervals over pictures."""
    columns, results = report.study.details, report.results
    rows = []
    for thing in results.measured_on(arm):
        values = [results.pictures(arm, thing, column.key) for column in columns]
        count = max((len(found) for found in values), default=0)
        told = [
            told_interval(detail_interval(column, found), column.form)
            for column, found in zip(columns, values, strict=True)
        ]
        rows.append((thing, *told, str(count)))
    return Table(("", *(column.heading for column in columns), "pictures"), rows)


def _lead(report: Report) -> str:
    return f"“{report.study.claim}” ({report.study.place})"


def _conditions(report: Report) -> str:
    study, scale = report.study, report.budget.scale
    words = [report.data] if report.data else []
    if study.spend is not None:
        amount = study.spend.amount(scale)
        told = f"{amount:,.3g}" if study.spend.unit != "images" else f"{amount:,.0f}"
        words.append(f"every training gets {told} {_UNITS[study.spend.unit]}")
    words.append("means over the seeds with the 95 % interval of the mean")
    return "; ".join(words).capitalize() + "."


def _spent(outcomes: Sequence[Outcome]) -> str:
    count = max(len(outcomes), 1)
    images = sum(o.spent.get("images", 0.0) for o in outcomes) / count
    seconds = sum(o.spent.get("seconds", 0.0) for o in outcomes) / count
    return f"{images:,.0f} pictures, {seconds:.1f} s"


def charts(report: Report) -> dict[str, Figure]:
    """Everything of a study that is drawn: the figures of its arms, and its lines; by title."""
    results = report.results
    drawn = {column.heading: _dots(column, results) for column in report.study.columns if column.is_drawn}
    lines = {plot.title: _bands(plot, results) for plot in report.study.plots}
    return {**drawn, **{title: found for title, found in lines.items() if found is not None}}


def _spread(values: Sequence[float], found: Interval) -> Spread:
    return Spread(values, found.mean, found.low, found.high)


def _dots(column: Column, results: Results) -> Figure:
    values = {arm: results.values(arm, column.key) for arm in results.arms()}
    rows = {arm: _spread(found, column_interval(column, found)) for arm, found in values.items()}
    return dots(rows, title=column.heading, in_percent=column.form == "percent")


def _bands(plot: Plot, results: Results) -> Figure | None:
    lines = {}
    for arm in results.arms():
        found = [o.measured.series[plot.series] for o in results.of(arm) if plot.series in o.measured.series]
        if not found:
            continue
        # Trainings that broke off have shorter lines; the places that all seeds reached are compared.
        length = min(len(places) for places, _ in found)
        if length:
            columns = [[values[place] for _, values in found] for place in range(length)]
            spreads = [_spread(values, interval(values)) for values in columns]
            lines[arm] = (list(found[0][0])[:length], spreads)
    if not lines:
        return None
    return bands(lines, title=plot.title, across=plot.across, up=plot.up)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
