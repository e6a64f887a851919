"""The demo: the main job on the embedded data, end to end - train, evaluate, predict, explain, report."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rich.console import Console

from saccade.api import finished, predict, start
from saccade.atomic import check_folder
from saccade.config import to_dict
from saccade.console import clock, percent, print_evaluation, show_training
from saccade.data.source import open_data
from saccade.engine.recipes import DEMO
from saccade.errors import RunError
from saccade.report import ReportConfig, evaluate_and_report

DATA = "fashion_mnist"


def run(out: Path, *, overwrite: bool, console: Console) -> Path:
    """Run the demo into the folder ``out``; returns the report.

    Raises:
        RunError: where the folder exists and may not be replaced, or is no earlier demo.
    """
    began = time.monotonic()
    check_folder(out)
    _make_room(out, overwrite=overwrite)
    source = open_data(DATA)
    counts = ", ".join(f"{len(dataset)} {name}" for name, dataset in source.splits.items())
    console.print(f"[bold]1/4 train[/bold]  {DEMO.model} on {DATA} ({source.format}: {counts} images)")
    folder, records = start(DEMO.model, source, out=out, settings=to_dict(DEMO.train))
    show_training(records, console)
    trained = finished(folder)

    console.print("\n[bold]2/4 evaluate[/bold]  on images it has never seen")
    config = ReportConfig(split="test", title=f"{DEMO.model} on {DATA}")
    evaluation = evaluate_and_report(trained.model, source, folder, config)
    print_evaluation(evaluation, console)

    console.print("\n[bold]3/4 predict[/bold]  five of them")
    held_out = source.split("test")
    samples = [held_out[index] for index in range(5)]
    for sample, prediction in zip(samples, predict(trained.model, [s.image for s in samples]), strict=True):
        true = source.classes[int(sample.target.label)]
        console.print(f"  {sample.source}: {prediction.name} {percent(prediction.score)} (is {true})")

    console.print("\n[bold]4/4 explain[/bold]  why, and how far to trust the answer")
    from saccade.api import explain

    heat = explain(trained.model, samples[0].image)
    picture = heat.save(folder / "why.png")
    if heat.verdict is not None:
        console.print(f"  {heat.of}: {heat.verdict.status} - {heat.verdict.reasons[0]}")
    console.print(
        f"\n{clock(time.monotonic() - began)} minutes in all. Open [bold]{folder / 'report.html'}[/bold], {picture}"
    )
    console.print(f"Next: saccade predict {folder} photo.jpg   saccade explain {folder} photo.jpg")
    return folder / "report.html"


def _make_room(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise RunError("the folder exists already", where=str(out), remedy="choose another --out, or add --overwrite")
    if not (out / "config.json").is_file():
        raise RunError("the folder holds something that is no run, so it is not replaced", where=str(out))
    shutil.rmtree(out)
