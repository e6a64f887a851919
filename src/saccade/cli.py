"""The command line: one verb per thing to do. Results for people on the screen, the same results for machines in files.

Bad input ends with one sentence and status 2; the traceback appears with ``--debug`` only. Heavy imports stand inside
the commands, so that ``saccade --help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import saccade
from saccade.errors import ConfigError, SaccadeError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="saccade",
    help="Vision models on your own images, every prediction explained, every explanation measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at data, or draw synthetic scenes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A trained file or run folder; a published source.")]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Folder, file or embedded name; the format is recognised.")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Picture files, or folders of them.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail on a corrupt file or a class that does not match.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a config field: model.backbone.depth=6, train.clip_norm=1."
    ),
]


def main() -> None:
    """Entry point: runs a command and turns every foreseen mistake into one sentence and a status."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="saccade", standalone_mode=True)
    except SaccadeError as error:
        if debug:
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("\nstopped\n")
        sys.exit(130)
    except OSError as error:
        # Disk full, no permission, a folder where a file should be: the operating system's words are the best there
        # are.
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")


def _fail(sentence: str) -> None:
    sys.stderr.write(f"error: {sentence}\n")
    sys.exit(2)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Vision models on your own images, every prediction explained, every explanation measured."""
    if version:
        typer.echo(f"saccade {saccade.__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("runs/demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Train, evaluate, predict and explain on real images; ends with a report. Needs no network."""
    from saccade.demo import run

    run(out, overwrite=overwrite, console=_console())


@app.command("models")
def list_models(
    task: Annotated[str | None, typer.Option(help="Only models of this task.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What exists: names, parameters, operations per picture."""
    from saccade.api import describe_models

    rows = describe_models(task)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    table = Table("model", "task", "parameters", "GFLOPs", "input", "what it is", box=None, pad_edge=False)
    for row in rows:
        cells = [f"{row['parameters'] / 1e6:.2f} M", f"{row['flops'] / 1e9:.2f}", "x".join(map(str, row["size"]))]
        table.add_row(row["name"], row["task"], *cells, row["summary"])
    _console().print(table)


@data_app.command("inspect")
def data_inspect(
    path: Data,
    out: Annotated[Path | None, typer.Option(help="Folder for inspection.json and a contact sheet.")] = None,
    strict: Strict = False,
) -> None:
    """What is there: format, splits, classes, sizes, and what is wrong."""
    from saccade.report import print_inspection, save_inspection

    inspection, source = _inspect(path, strict=strict)
    print_inspection(inspection, _console())
    if out is not None:
        save_inspection(inspection, source, out)
        typer.echo(f"\nwritten: {out}")


def _inspect(path: str, *, strict: bool) -> tuple[Any, Any]:
    from saccade.data.inspect import inspect
    from saccade.data.source import open_data

    source = open_data(path, strict=strict)
    return inspect(source), source


@data_app.command("make")
def data_make(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    count: Annotated[int, typer.Option(help="Scenes in all.")] = 200,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 96,
    task: Annotated[str, typer.Option(help="classification, segmentation, detection or captions.")] = "classification",
    seed: Annotated[int, typer.Option(help="The same seed draws the same scenes.")] = 0,
) -> None:
    """Draw synthetic scenes with exact classes, boxes, masks, captions."""
    from saccade.data.write import write_scenes

    write_scenes(out, count=count, size=size, task=task, seed=seed)
    typer.echo(f"{count} scenes for {task} in {out}")


@app.command()
def train(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A registry name, see `saccade models`.")] = None,
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Folder, file or embedded name.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    weights: Annotated[str | None, typer.Option(help="Start from this file or published source.")] = None,
    freeze: Annotated[list[str] | None, typer.Option(help="Part that stays as it is: backbone.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to create; default runs/MODEL.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights, order and augmentation.")] = None,
    assignments: Set = None,
    strict: Strict = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No live progress.")] = False,
) -> None:
    """Train a model on your data; the run folder holds everything needed afterwards."""
    from saccade.api import resume_run, start_run
    from saccade.progress import follow

    console = _console()
    if resume is not None:
        if model or data:
            raise ConfigError("--resume takes model and data from the run", remedy="leave MODEL and DATA out")
        run = resume_run(resume)
    else:
        if model is None or data is None:
            raise ConfigError("train needs MODEL and DATA", remedy="for example: saccade train vit_nano fashion_mnist")
        settings = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "freeze": freeze,
            "seed": seed,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        run = start_run(
            model, data, out=out, weights=weights, settings=given, assignments=assignments or [], strict=strict
        )
    follow(run, console, quiet=quiet)


@app.command()
def evaluate(
    model: Model,
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and report.html.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test; default the one held out.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per forward pass.")] = None,
    strict: Strict = False,
) -> None:
    """Score a model: accuracy with its interval, calibration, per class; the worst mistakes, explained."""
    from saccade.api import evaluation_folder
    from saccade.report import evaluate_and_report, print_evaluation

    folder = out or evaluation_folder(model)
    evaluation = evaluate_and_report(model, data, folder, split=split, batch_size=batch_size, strict=strict)
    print_evaluation(evaluation, _console())
    typer.echo(f"\nwritten: {folder / 'report.html'}")


@app.command()
def predict(
    model: Model,
    images: Images,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions.json.")] = None,
    top: Annotated[int, typer.Option(help="Classes to tell per picture.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on the screen.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="The float32 model as written, no faster copy.")] = False,
) -> None:
    """What the model sees in pictures."""
    from saccade.api import load, predict_files, write_json

    predictor = load(model)
    records = []
    for record in predict_files(predictor, images, top=top, exact=exact):
        records.append(record)
        if as_json:
            typer.echo(json.dumps(record))
        else:
            shown = "   ".join(f"{entry['class']} {entry['score']:.1%}" for entry in record["top"])
            typer.echo(f"{record['image']}: {shown}")
    if out is not None:
        write_json(out / "predictions.json", records)
        typer.echo(f"written: {out / 'predictions.json'}", err=as_json)


@app.command()
def explain(
    model: Model,
    images: Images,
    of: Annotated[list[str] | None, typer.Option(help="Class to explain; default the predicted one.")] = None,
    against: Annotated[str | None, typer.Option(help="Contrast: why the class and not this one.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Method, several, or `all`; default chosen.")] = None,
    layer: Annotated[str, typer.Option(help="Declared layer to look at.")] = "final",
    out: Annotated[Path, typer.Option(help="Folder for pictures, arrays and manifests.")] = Path("explanations"),
    verdict: Annotated[bool, typer.Option(help="Measure how far each map can be trusted.")] = True,
) -> None:
    """Which pixels decided, and how far to trust the answer."""
    from saccade.api import explain_files

    shown: Callable[[str], None] = typer.echo
    for line in explain_files(
        model,
        images,
        of=of or [],
        against=against,
        methods=method or ["auto"],
        layer=layer,
        out=out,
        verdict=verdict,
    ):
        shown(line)
    typer.echo(f"written: {out}")
