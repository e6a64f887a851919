"""``study``: one study, all of them, or the ladder of one's own data; the page and the figures land in a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from saccade.atomic import check_folder, write_json
from saccade.console import bold, clock, new_console, table
from saccade.errors import ConfigError
from saccade.studies.base import FULL, QUICK, Budget, Report, Study
from saccade.studies.catalogue import ALL, LADDER, find, names
from saccade.studies.explanations import explanations
from saccade.studies.harness import Progress as Standing
from saccade.studies.harness import Workers, run_study
from saccade.studies.intervals import Interval, interval
from saccade.studies.ladder import ladder
from saccade.studies.page import (
    MARKS,
    column_interval,
    command,
    detail_interval,
    details_table,
    figures_table,
    write_studies,
)
from saccade.types import TaskName

OUT = Path("runs/studies")
"""Where studies land."""


def study(
    name: str,
    data: Any = None,
    *,
    task: TaskName | None = None,
    quick: bool = False,
    out: str | Path = OUT,
    budget: Budget | None = None,
    quiet: bool = True,
    workers: int = 1,
) -> list[Report]:
    """Measure a claim of the field: under equal budgets, with several seeds, judged by intervals.

    Finished trials are kept below ``out``, so that an interrupted study goes on where it stopped.

    Args:
        name: of a study, ``all``, or ``ladder``.
        data: anything ``open_data`` knows, for ``ladder`` and ``explanations``.
        task: what that data is read for; None: what is recognised.
        quick: meant for 90 seconds per study on two quiet cores, instead of 20 minutes.
        out: folder for the page, the figures and the trials.
        budget: another budget than these two.
        quiet: no live progress.
        workers: processes that carry out trials beside each other, each with its share of the threads. A script that
            asks for more than one needs the usual ``if __name__ == "__main__":``.

    Raises:
        UnknownNameError: with the nearest name.
        DataError: where the data is too small, or for a task that no ladder serves.

    Example:
        >>> report = saccade.study("skips", quick=True)[0]
        >>> report.status, [finding.told for finding in report.findings]
    """
    folder = Path(out)
    chosen = choose(name, data, task)
    check_folder(folder)
    scale = budget or (QUICK if quick else FULL)
    console = new_console()
    # Other processes can open what has a name, but not what was made here.
    is_named = data is None or isinstance(data, str | Path)
    helpers = [Workers(workers, partial(_chosen, name, data, task, place)) for place in range(len(chosen))]
    reports = run_all(chosen, scale, folder, console, helpers if is_named else (), quiet=quiet)
    page = write_results(folder, "studies" if name == ALL else chosen[0].name, reports)
    if not quiet:
        console.print(f"\nwritten: {page}")
    return reports


def choose(name: str, data: Any = None, task: TaskName | None = None) -> list[Study]:
    """The studies behind a name.

    Raises:
        ConfigError: where the ladder has no data, or a study that has its own is given some.
    """
    words = f"{name} {data}{f' --task {task}' if task else ''}" if isinstance(data, str | Path) else ""
    if name == LADDER:
        if data is None:
            raise ConfigError("the ladder needs DATA", remedy="for example: saccade study ladder data/pets")
        return [ladder(data, task=task, command=words)]
    if name == "explanations" and data is not None:
        return [explanations(data, task=task, command=words or name)]
    chosen = [find(one) for one in (names() if name == ALL else [name])]
    if data is not None:
        remedy = "saccade study ladder DATA and saccade study explanations DATA take yours"
        raise ConfigError("this study has its own data", where=name, remedy=remedy)
    return chosen


def usual_workers() -> int:
    """One process per core that may be used, at most 4, as each takes about a gigabyte; one beside an accelerator."""
    return 1 if torch.cuda.is_available() else min(torch.get_num_threads(), 4)


def _chosen(name: str, data: Any, task: TaskName | None, place: int) -> Study:
    return choose(name, data, task)[place]


def run_all(
    studies: Sequence[Study],
    budget: Budget,
    folder: Path,
    console: Console,
    helpers: Sequence[Workers] = (),
    *,
    quiet: bool = False,
) -> list[Report]:
    """Run studies one after the other, with live progress and the time that is left.

    Args:
        studies: which.
        budget: at which scale.
        folder: for all of them.
        console: where progress and reports are printed.
        helpers: who carries out the trials of each study; none: this process.
        quiet: print nothing.
    """
    columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %  {task.description}"))
    reports: list[Report] = []
    began = time.monotonic()
    is_hidden = quiet or not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=is_hidden) as bar:
        work = bar.add_task("starting", total=len(studies))
        for place, one in enumerate(studies):

            def watch(standing: Standing, place: int = place) -> None:
                left = standing.seconds_left
                rest = len(studies) - place - 1
                if left is not None and rest:
                    # Studies are made to last about equally long.
                    left += rest * (time.monotonic() - began + left) / (place + 1)
                words = f"{standing.words}  {clock(left)} left"
                bar.update(work, completed=place + standing.share, description=words)

            report = run_study(one, budget, folder, watch, helpers[place] if helpers else None)
            reports.append(report)
            if not quiet:
                print_report(report, bar.console)
    return reports


def print_report(report: Report, console: Console) -> None:
    """Verdict, findings and figures on a terminal."""
    console.print(bold(f"\n{report.study.name}"), f": {MARKS[report.status]} ", bold(report.status), sep="")
    console.print(f"  “{report.study.claim}”")
    for finding in report.findings:
        console.print(f"  {MARKS[finding.status]} {finding.what}: {finding.status} - {finding.told}")
    console.print(table(*figures_table(report)))
    for arm in report.results.arms():
        if report.results.measured_on(arm):
            console.print(f"\n  {arm}, intervals over pictures")
            console.print(table(*details_table(report, arm)))
    for line in report.advice:
        console.print(line)


def print_list(console: Console) -> None:
    """The studies with their claims."""
    rows = [(name, find(name).claim) for name in names()]
    rows.append((LADDER, "every method that fits your own data, in equal time: saccade study ladder DATA"))
    width = max(len(name) for name, _ in rows)
    for name, claim in rows:
        console.print(f"{name:<{width}}  {claim}")
    console.print("\nRun one with: saccade study NAME   all of them with: saccade study all   fast: --quick")


def write_results(folder: Path, name: str, reports: Sequence[Report]) -> Path:
    """Write ``NAME.html`` and ``NAME.json``; returns the page.

    Raises:
        RunError: where they cannot be written.
    """
    write_json(folder / f"{name}.json", [_record(report) for report in reports])
    return write_studies(folder / f"{name}.html", reports)


def _record(report: Report) -> dict[str, Any]:
    results, columns = report.results, {column.key: column for column in report.study.columns}
    arms, details = {}, {}
    for arm in results.arms():
        keys = dict.fromkeys(key for outcome in results.of(arm) for key in outcome.measured.figures)
        found = {key: results.values(arm, key) for key in keys}
        arms[arm] = {
            key: _told(column_interval(columns[key], values) if key in columns else interval(values))
            for key, values in found.items()
        }
        if things := results.measured_on(arm):
            details[arm] = {
                thing: {
                    column.key: _told(detail_interval(column, results.pictures(arm, thing, column.key)))
                    for column in report.study.details
                }
                for thing in things
            }
    return {
        "study": report.study.name,
        "claim": report.study.claim,
        "verdict": report.status,
        "findings": [{"what": f.what, "verdict": f.status, "told": f.told} for f in report.findings],
        "budget": report.budget.scale,
        "data": report.data,
        "arms": arms,
        "pictures": details,
        "advice": list(report.advice),
        "seconds": report.seconds,
        "command": command(report),
    }


def _told(found: Interval) -> dict[str, float | int | None]:
    low, high = _known(found.low), _known(found.high)
    return {"mean": _known(found.mean), "low": low, "high": high, "count": found.count}


def _known(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
