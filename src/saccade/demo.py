"""The demo: the main jobs on embedded data, end to end - train, evaluate, predict, explain, report."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from saccade.api import explain, finished, predict, start, task_of
from saccade.atomic import check_folder
from saccade.config import to_dict
from saccade.console import clock, print_evaluation, show_training
from saccade.data.source import open_data
from saccade.engine.recipes import BLOOD_CELLS, CLOTHES, NUCLEI, SINGLE_NUCLEI, Recipe
from saccade.errors import RunError
from saccade.report import Part, ReportConfig, evaluate_and_report, write_page
from saccade.tasks.base import percent
from saccade.types import Classification, Embedding, Prediction, Segmentation

TASKS = (
    ("classification", CLOTHES),
    ("segmentation", NUCLEI),
    ("detection", BLOOD_CELLS),
    ("instances", SINGLE_NUCLEI),
)
"""Folder and recipe of each job."""


def run(out: Path, *, overwrite: bool, console: Console) -> Path:
    """Run the demo into the folder ``out``; returns the report.

    Raises:
        RunError: where the folder exists and may not be replaced, or is no earlier demo.
    """
    began = time.monotonic()
    check_folder(out)
    _make_room(out, overwrite=overwrite)
    parts = [_one(out / name, recipe, console) for name, recipe in TASKS]
    lead = "What `saccade demo` made of the embedded data: each part is a run of its own, in a folder beside this page."
    page = write_page(out / "report.html", "Saccade demo", lead, parts)
    console.print(f"\n{clock(time.monotonic() - began)} minutes in all. Open [bold]{page}[/bold]")
    folder = out / TASKS[-1][0]
    console.print(f"Next: saccade predict {folder} photo.png --out maps   saccade explain {folder} photo.png")
    return page


def _one(folder: Path, recipe: Recipe, console: Console) -> Part:
    """Train, evaluate, predict and explain one recipe; returns its part of the page."""
    source = open_data(recipe.data, task=task_of(recipe.model))
    counts = ", ".join(f"{len(dataset)} {name}" for name, dataset in source.splits.items())
    console.print(f"\n[bold]{folder.name}: train[/bold]  {recipe.model} on {recipe.data} ({counts} images)")
    overrides = [f"model.{override}" for override in recipe.overrides]
    _, records = start(recipe.model, source, out=folder, settings=to_dict(recipe.train), assignments=overrides)
    show_training(records, console)
    trained = finished(folder)

    split = "test" if "test" in source.splits else source.held_out
    console.print(f"\n[bold]{folder.name}: evaluate[/bold]  on the images of {split}")
    config = ReportConfig(split=split, title=f"{recipe.model} on {recipe.data}")
    evaluation, part = evaluate_and_report(trained.model, source, folder, config)
    print_evaluation(evaluation, console)

    console.print(f"\n[bold]{folder.name}: predict[/bold]  three of them")
    held_out = source.split(split)
    samples = [held_out[index] for index in range(3)]
    for sample, prediction in zip(samples, predict(trained.model, [s.image for s in samples]), strict=True):
        console.print(f"  {sample.source}: {_words(prediction)}")

    console.print(f"\n[bold]{folder.name}: explain[/bold]  why, and how far to trust the answer")
    heat = explain(trained.model, samples[0].image)
    picture = heat.save(folder / "why.png")
    if heat.verdict is not None:
        console.print(f"  {heat.of}: {heat.verdict.status} - {heat.verdict.reasons[0]} ({picture})")
    return part


def _words(prediction: Prediction) -> str:
    if isinstance(prediction, Classification):
        return f"{prediction.name} {percent(prediction.score)}"
    if isinstance(prediction, Embedding):
        return f"a vector of {len(prediction.image)} numbers"
    if not isinstance(prediction, Segmentation):
        counts = Counter(prediction.name(index) for index in range(len(prediction.above(0.5))))
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"
    return ", ".join(f"{name} {percent(share)} of the pixels" for name, share in prediction.areas().items())


def _make_room(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise RunError("the folder exists already", where=str(out), remedy="choose another --out, or add --overwrite")
    if not any((out / name / "config.json").is_file() for name, _ in TASKS):
        raise RunError("the folder holds something that is no demo, so it is not replaced", where=str(out))
    shutil.rmtree(out)
