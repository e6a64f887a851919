"""Results for people: tables, live progress, one line per fact, on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from saccade.data.captionsheet import told_captions
from saccade.tasks.base import percent

if TYPE_CHECKING:
    from saccade.data.inspect import Inspection
    from saccade.engine.train import StepRecord
    from saccade.tasks import Evaluation

MOST_FIGURES = 5
"""Figures in the line of an epoch, the first of those that are known; all of them are kept in the run's folder."""


def new_console() -> Console:
    """A console that does not colour numbers by itself, never cuts a line, and leaves square brackets as they are.

    What is printed holds names of files and classes, and ``[bold]`` may be one of them; what is to be bold is
    made so by ``bold``.
    """
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def bold(text: object) -> Text:
    """Text in bold, whatever brackets are in it."""
    return Text(str(text), style="bold")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table, first column left, the rest right."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(head):
        result.add_column(title, justify="left" if index == 0 else "right")
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return result


def clock(seconds: float | None) -> str:
    """Seconds as minutes:seconds."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


def print_evaluation(evaluation: Evaluation, console: Console, *, worst: int = 5) -> None:
    """Headline with interval, the other figures, the classes, what went worst."""
    low, high = evaluation.interval
    headline = evaluation.metrics[evaluation.headline]
    console.print(
        bold(f"{evaluation.headline} {percent(headline)}"),
        f" (95 % interval {percent(low)} to {percent(high)}) on {evaluation.num_images} images, "
        f"{evaluation.images_per_second:.0f} images/s",
    )
    others = [
        f"{name} {value:.3f}"
        for name, value in evaluation.metrics.items()
        if value is not None and name != evaluation.headline
    ]
    console.print("  ".join(others))
    console.print()
    console.print(table(*evaluation.table()))
    for line in (*evaluation.conditions(), *evaluation.settings.get("left_out", ())):
        console.print(line)
    if evaluation.missing_classes:
        console.print(f"\nno image of: {', '.join(evaluation.missing_classes)}")
    if evaluation.skipped:
        console.print(f"\nskipped as unreadable: {len(evaluation.skipped)}")
    for line in evaluation.skipped[:worst]:
        console.print(f"  {line}")
    if len(evaluation.skipped) > worst:
        console.print(f"  ... and {len(evaluation.skipped) - worst} more")
    if remarks := evaluation.remarks():
        console.print("\nworst")
    for line in remarks[:worst]:
        console.print(f"  {line}")


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Format, splits, classes per split (with the share of the pixels or the number of objects), what is wrong."""
    console.print(bold(inspection.name), f": {inspection.format}", sep="")
    splits, pixels = inspection.splits, inspection.pixels
    objects = inspection.objects
    # A picture with a label map or boxes counts for every class in it, so the classes do not add up to the pictures.
    counted = {split: inspection.pictures.get(split, sum(counts.values())) for split, counts in splits.items()}
    head = ["pictures with" if pixels or objects else "class", *splits, *(f"of {split} pixels" for split in pixels)]
    head += [f"{split} objects" for split in objects]
    rows: list[list[object]] = []
    for name in inspection.classes:
        shares = [percent(shares.get(name, 0.0)) for shares in pixels.values()]
        numbers = [counts.get(name, 0) for counts in objects.values()]
        rows.append([name, *(counts.get(name, 0) for counts in splits.values()), *shares, *numbers])
    totals = [sum(counts.values()) for counts in objects.values()]
    rows.append(["in all", *counted.values(), *("" for _ in pixels), *totals])
    console.print(table(head, rows))
    for split, facts in inspection.captions.items():
        console.print(f"captions of {split}: {told_captions(facts)}")
    console.print(f"sizes: {inspection.sizes}")
    modes = ", ".join(f"{count:,} {mode}" for mode, count in inspection.modes.items())
    console.print(f"colours: {modes}")
    problems = inspection.problems
    console.print("\n".join(f"- {line}" for line in problems) if problems else "nothing wrong was found")


def show_training(records: Iterable[StepRecord], console: Console, *, quiet: bool = False) -> None:
    """Run a training to its end and show it live: loss, learning rate, throughput, time left; one line per epoch."""
    columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %  {task.description}"))
    is_hidden = quiet or not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=is_hidden) as bar:
        work = bar.add_task("starting", total=1.0)
        for record in records:
            if quiet:
                continue
            pace = f"{record.images_per_second:.0f} images/s" if record.images_per_second > 0 else ""
            words = f"epoch {record.epoch}  loss {record.total:.3f}  lr {record.learning_rate:.1e}  {pace}"
            bar.update(work, completed=record.progress, description=f"{words}  {clock(record.seconds_left)} left")
            for note in record.notes:
                bar.console.print(f"note: {note}")
            if record.kind == "epoch":
                known = [f"{name} {value:.4f}" for name, value in record.metrics.items() if not math.isnan(value)]
                shown = known[:MOST_FIGURES]
                mark = "  best so far" if record.is_best else ""
                bar.console.print(f"epoch {record.epoch}: loss {record.total:.4f}  {'  '.join(shown)}  {pace}{mark}")
                for layer, shares in enumerate(record.expert_load):
                    loads = " ".join(f"{share:.0%}" for share in shares)
                    bar.console.print(f"  expert load, routed layer {layer}: {loads}")
