"""The command line: one verb per thing to do. Results for people on the screen, the same results for machines in files.

Bad input ends with one sentence and status 2; the traceback appears with ``--debug`` only. Heavy imports stand inside
the commands, so that ``saccade --help`` answers at once.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import saccade
from saccade.allocator import keep_freed_memory
from saccade.errors import ConfigError, SaccadeError, is_out_of_memory

if TYPE_CHECKING:
    from saccade.engine.evaluate import EvaluateConfig
    from saccade.opening import AnyModel

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

_TASKS = "classification, semantic (or segmentation), detection, instance, zero_shot (or captions)"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A trained file or run folder; a published source.")]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Folder, file or embedded name; the format is recognised.")]
Images = Annotated[
    # Whether a picture can be read is told by the verb, in one sentence as for every other fault of it.
    list[Path], typer.Argument(metavar="IMAGES...", readable=False, help="Picture files, or folders of them.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Fail on a corrupt file or a class that does not match.")]
ClassNames = Annotated[
    str | None,
    typer.Option("--classes", metavar="NAMES", help='Of a zero-shot model: "a cat,a dog", or a file of names.'),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N; auto is a CUDA GPU where there is one."),
]
Templates = Annotated[
    str | None,
    typer.Option(metavar="SET", help="What these names are put into: photo, imagenet80, a file, or a text with {}."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a config field: model.backbone.depth=6, train.clip_norm=1."
    ),
]


def main() -> None:
    """Entry point: runs a command and turns every foreseen mistake into one sentence and a status."""
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        # Names of files are bytes; one that is no UTF-8 is told as well as it can be.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="saccade", standalone_mode=True)
    except SaccadeError as error:
        if debug:
            raise
        _fail(str(error))
    except SystemExit as ended:
        # typer answers Ctrl-C with a status and no word; a verb that has said how to go on raises its own Exit.
        if isinstance(ended.__context__, typer.Exit) and isinstance(ended.__context__.__cause__, KeyboardInterrupt):
            sys.stderr.write("\nstopped; the same command starts again\n")
        raise
    except (MemoryError, RuntimeError) as error:
        if debug or not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "none is left"
        _fail(f"the memory is too small ({reason}); take a smaller --batch-size, a smaller model or smaller pictures")
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


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"saccade {saccade.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Vision models on your own images, every prediction explained, every explanation measured."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("runs/demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Train, evaluate, predict and explain on real images; ends with a report. Needs no network."""
    from saccade.console import new_console
    from saccade.demo import run

    run(out, overwrite=overwrite, console=new_console())


@app.command("models")
def list_models(
    task: Annotated[str | None, typer.Option(help=f"Only models of this task: {_TASKS}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What exists, by task: names, parameters, operations per picture."""
    from saccade.console import bold, new_console, table
    from saccade.engine.catalog import catalog

    entries = catalog(task)
    if as_json:
        typer.echo(json.dumps([entry.to_dict() for entry in entries], indent=2))
        return
    rows: list[tuple[object, ...]] = []
    for name in dict.fromkeys(entry.task for entry in entries):
        rows += [("",) * 5] if rows else []
        rows.append((bold(name), *("",) * 4))
        rows += [
            (
                entry.name,
                entry.architecture,
                f"{entry.parameters / 1e6:.2f} M",
                f"{entry.flops / 1e9:.2f}",
                f"{entry.size[0]}x{entry.size[1]}",
            )
            for entry in entries
            if entry.task == name
        ]
    new_console().print(table(["model", "what it is", "parameters", "GFLOPs", "input"], rows))
    typer.echo("\nand timm/NAME for any convolutional timm backbone")


@data_app.command("inspect")
def data_inspect(
    path: Data,
    out: Annotated[Path | None, typer.Option(help="Folder for inspection.json and a contact sheet.")] = None,
    task: Annotated[
        str | None, typer.Option(help=f"Read the data for this task: {_TASKS}; default what is recognised.")
    ] = None,
    strict: Strict = False,
) -> None:
    """What is there: format, splits, classes, sizes, and what is wrong."""
    from saccade.atomic import write_json
    from saccade.console import new_console, print_inspection
    from saccade.data.inspect import contact_sheet, inspect
    from saccade.data.source import as_task, open_data

    source = open_data(path, task=as_task(task), strict=strict)
    inspection = inspect(source)
    print_inspection(inspection, new_console())
    if out is not None:
        write_json(out / "inspection.json", inspection.to_dict())
        for name, dataset in source.splits.items():
            contact_sheet(dataset, out / f"{name}.png")
        typer.echo(f"\nwritten: {out}")


@data_app.command("convert")
def data_convert(
    source: Data,
    destination: Annotated[Path, typer.Argument(metavar="DESTINATION", help="Folder to create.")],
    to: Annotated[str, typer.Option(help="coco, voc, yolo, csv or labelme.")],
    task: Annotated[str | None, typer.Option(help="detection: boxes alone; instance: a mask for every object.")] = None,
    lossy: Annotated[bool, typer.Option("--lossy", help="Let go what the format cannot hold, and tell it.")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the pictures, even where a link would do.")] = False,
    strict: Strict = False,
) -> None:
    """Write boxes and masks in another file format, and prove by reading back that nothing was lost."""
    from saccade.api import convert

    for line in convert(source, destination, to=to, task=task, lossy=lossy, copy=copy, strict=strict).lines():
        typer.echo(line)


@data_app.command("make")
def data_make(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    count: Annotated[int, typer.Option(help="Scenes in all.")] = 200,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 96,
    task: Annotated[
        str,
        typer.Option(
            help="classification, segmentation (or semantic), detection, instance, captions (or zero_shot), attributes."
        ),
    ] = "classification",
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
    weights: Annotated[str | None, typer.Option(help="Start from this file, run folder or published source.")] = None,
    freeze: Annotated[list[str] | None, typer.Option(help="Part that stays as it is: backbone.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to create; default runs/MODEL.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run; DATA only if moved.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights, order and augmentation.")] = None,
    assignments: Set = None,
    strict: Strict = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No live progress.")] = False,
) -> None:
    """Train a model on your data; the run folder holds everything needed afterwards."""
    from saccade.api import resume as resume_run
    from saccade.api import start
    from saccade.console import new_console, print_evaluation, show_training
    from saccade.report import report_run

    if resume is not None:
        if data is None:
            model, data = None, model  # the one word beside --resume is where the data lies now
        others: dict[str, object] = {"MODEL": model, "--out": out, "--weights": weights, "--seed": seed}
        others |= {"--epochs": epochs, "--batch-size": batch_size, "--lr": learning_rate, "--freeze": freeze}
        _check_nothing_beside_resume(others | {"--set": assignments})
        is_report_missing = (resume / "metrics.json").is_file() and not (resume / "report.html").is_file()
        folder, records = (resume, iter(())) if is_report_missing else resume_run(resume, data)
    else:
        if model is None or data is None:
            remedy = "for example: saccade train vit_nano_p4_28 fashion_mnist"
            raise ConfigError("train needs MODEL and DATA", remedy=remedy)
        settings = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "freeze": tuple(freeze) if freeze else None,
            "seed": seed,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        folder, records = start(
            model, data, out=out, weights=weights, settings=given, assignments=assignments or [], strict=strict
        )
    console = new_console()
    try:
        show_training(records, console, quiet=quiet)
        evaluation = report_run(folder, data, strict=strict)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nstopped; go on with: saccade train --resume {folder}\n")
        raise typer.Exit(130) from None
    print_evaluation(evaluation, console)
    typer.echo(f"\nwritten: {folder}")


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A trained file or run folder; none with --predictions.")
    ] = None,
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Folder, file or embedded name.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json and report.html; default evaluation/ beside MODEL.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all; default test where there is one, else what is held out."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per forward pass.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Score this COCO result file, made by anyone, instead.")
    ] = None,
    class_names: ClassNames = None,
    templates: Templates = None,
    device: Device = "auto",
    strict: Strict = False,
) -> None:
    """Score a model: the headline with its interval, figures per class; the worst mistakes, explained."""
    from saccade.config import from_dict
    from saccade.engine.evaluate import EvaluateConfig

    settings = {"strict": strict} | ({"batch_size": batch_size} if batch_size is not None else {})
    config = from_dict(EvaluateConfig, settings)
    if predictions is not None:
        _evaluate_predictions(predictions, [part for part in (model, data) if part], split, out, config)
        return
    if model is None or data is None:
        raise ConfigError("evaluate needs MODEL and DATA", remedy="for example: saccade evaluate runs/pets data/pets")
    _evaluate_model(model, data, split, out, config, class_names, templates, device)


def _evaluate_model(
    model: str,
    data: str,
    split: str | None,
    out: Path | None,
    config: EvaluateConfig,
    class_names: str | None,
    templates: str | None,
    device: str,
) -> None:
    from dataclasses import replace

    from saccade.console import new_console, print_evaluation
    from saccade.data.source import ALL
    from saccade.opening import open_for
    from saccade.report import ReportConfig, evaluate_and_report
    from saccade.text.prompts import as_templates

    folder = out or _evaluation_folder(model)
    classes = _class_names(class_names)
    loaded, source = open_for(model, data, classes=classes, templates=templates, strict=config.strict, device=device)
    _announce(loaded)
    config = replace(config, templates=as_templates(templates) or ())
    report = ReportConfig(title=f"{model} on {data}", split=split, evaluate=config)
    evaluation, _ = evaluate_and_report(loaded, source, folder, report)
    console = new_console()
    for note in source.notes:
        console.print(f"note: {note}")
    print_evaluation(evaluation, console)
    if split is None and source.is_split_by_hash:
        held, whole = len(source.split(source.scored)), len(source.split(ALL))
        told = f"scored the {held} of {whole} pictures that count as held out; --split all scores every one"
        typer.echo(f"\n{told}")
    typer.echo(f"\nwritten: {folder / 'report.html'}")


def _evaluate_predictions(
    predictions: Path, data: list[str], split: str | None, out: Path | None, config: EvaluateConfig
) -> None:
    """Score a COCO result file; nothing is written unless a folder is given."""
    from saccade.atomic import write_json
    from saccade.console import new_console, print_evaluation
    from saccade.tasks.results import score_results

    if len(data) != 1:
        remedy = "for example: saccade evaluate --predictions results.json instances_val.json"
        raise ConfigError(f"--predictions goes with one DATA, not {len(data)}", remedy=remedy)
    evaluation = score_results(predictions, data[0], split=split, config=config)
    console = new_console()
    print_evaluation(evaluation, console)
    if out is not None:
        write_json(out / "evaluation.json", evaluation.to_dict())
        typer.echo(f"\nwritten: {out / 'evaluation.json'}")


def _class_names(given: str | None) -> tuple[str, ...] | None:
    """Names between commas, or those in a file; None where none are given."""
    from saccade.text.prompts import class_names

    return None if given is None else class_names(given)


def _announce(model: AnyModel) -> None:
    """Say before a slow detector starts what it will cost."""
    if words := model.announcement(model.preprocess.size):
        typer.echo(f"note: {words}", err=True)


@app.command()
def predict(
    model: Model,
    images: Images,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions.json, label maps and drawn boxes.")] = None,
    top: Annotated[int, typer.Option(help="Classes to tell per picture.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on the screen.")] = False,
    score: Annotated[
        float, typer.Option(help="Of a detector: lowest score of an object told and drawn; files list all.")
    ] = 0.3,
    exact: Annotated[bool, typer.Option("--exact", help="The float32 model as written, no faster copy.")] = False,
    class_names: ClassNames = None,
    templates: Templates = None,
    device: Device = "auto",
    maps: Annotated[
        bool, typer.Option("--map", help="Of a zero-shot model: one of --classes for every pixel.")
    ] = False,
    boxes: Annotated[
        str | None, typer.Option(metavar="DETECTOR", help="Of a zero-shot model: --classes for this detector's boxes.")
    ] = None,
) -> None:
    """What the model sees in pictures."""
    from saccade.atomic import check_folder, write_json
    from saccade.batch import predict_files, told
    from saccade.opening import prompter_of, with_classes

    if out is not None:
        check_folder(out)
    records = []
    loaded = with_classes(model, _class_names(class_names), templates, device=device)
    _announce(loaded)
    ready = prompter_of(loaded, maps=maps, boxes=boxes) or loaded
    try:
        for record in predict_files(ready, images, top=top, exact=exact, out=out, score=score):
            records.append(record)
            typer.echo(json.dumps(record) if as_json else told(record, score), err=not as_json and "error" in record)
    finally:
        # Also after Ctrl-C and where the last picture is damaged: hours of predictions are not thrown away.
        if out is not None and any("error" not in record for record in records):
            write_json(out / "predictions.json", records)
            typer.echo(f"written: {out / 'predictions.json'}", err=as_json)


@app.command()
def explain(
    model: Model,
    images: Images,
    of: Annotated[
        list[str] | None,
        typer.Option(
            help="Class, pixel x,y, component:N (from 1), box:N, box:N/left or mask:N (from 0); default the prediction."
        ),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Contrast: why the class and not this one.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="gradcam, relevance, rise, ..., several, or `all`; docs/explain.md tells each."),
    ] = None,
    layer: Annotated[str, typer.Option(help="Declared layer to look at; default the model's own.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for pictures, arrays and manifests.")] = Path("explanations"),
    verdict: Annotated[bool, typer.Option(help="Measure how far each map can be trusted.")] = True,
    class_names: ClassNames = None,
    templates: Templates = None,
    device: Device = "auto",
) -> None:
    """Which pixels decided, and how far to trust the answer."""
    from saccade.batch import explain_files
    from saccade.explanation.explain import ExplainOptions
    from saccade.opening import with_prompts

    options = ExplainOptions(layer=layer, against=against, verdict=verdict)
    loaded = with_prompts(model, of or [], against, _class_names(class_names), templates, device=device)
    for line in explain_files(loaded, images, of or [], options, method or ["auto"], out):
        typer.echo(line)
    typer.echo(f"written: {out}")


@app.command()
def search(
    model: Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of pictures; the index is kept in it.")],
    query: Annotated[str, typer.Argument(metavar="QUERY", help='Words such as "a red bicycle", or a picture file.')],
    top: Annotated[int, typer.Option(help="Pictures to tell.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for found.json and a sheet of the found pictures.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Keep the vectors in 16 bits: half the file.")] = False,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on the screen.")] = False,
) -> None:
    """Find pictures by words, or by another picture."""
    from saccade.batch import search_files
    from saccade.opening import load

    results = search_files(load(model, device=device), folder, query, top=top, out=out, is_half=half)
    for note in results.notes:
        typer.echo(f"note: {note}", err=True)
    for record in results.records:
        typer.echo(json.dumps(record) if as_json else f"{record['score']:.3f}  {record['image']}")
    if out is not None:
        typer.echo(f"written: {out}", err=as_json)


@app.command()
def study(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A study, `all`, or `ladder`; none lists them with claims.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="Your own data, for `ladder` and `explanations`; its task is recognised."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help=f"Read DATA for this task: {_TASKS}; default what is recognised.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Meant for 90 seconds each on two quiet cores, instead of 20 minutes.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for page, figures and finished trials.")] = Path("runs/studies"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No live progress.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that carry out trials beside each other; by default one per core, at most 4."
        ),
    ] = None,
) -> None:
    """A claim of the field, measured under equal conditions: holds, does not hold here, or undecided."""
    from saccade.studies.catalogue import ALL, LADDER, names
    from saccade.studies.processes import prepare

    if name in (*names(), ALL, LADDER) and workers != 1:
        prepare()  # it imports beside us
    from saccade.console import new_console
    from saccade.data.source import as_task
    from saccade.studies.run import print_list, usual_workers
    from saccade.studies.run import study as run

    if name is None:
        print_list(new_console())
        return
    try:
        run(name, data, task=as_task(task), quick=quick, out=out, quiet=quiet, workers=workers or usual_workers())
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on where it stopped\n")
        raise typer.Exit(130) from None


def _check_nothing_beside_resume(others: Mapping[str, object]) -> None:
    """Refuse what a resumed run would ignore."""
    given = [name for name, value in others.items() if value not in (None, [])]
    if given:
        what = f"--resume takes everything from the run, but {', '.join(given)} is given too"
        raise ConfigError(what, remedy="leave it out, or start another run")


def _evaluation_folder(model: str) -> Path:
    """Beside the model's file, or in the current folder for a published source."""
    path = Path(model)
    home = path if path.is_dir() else path.parent if path.is_file() else Path()
    return home / "evaluation"
