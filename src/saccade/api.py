"""The verbs as Python functions: create, load, train, evaluate, predict, explain; the command line calls them too."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saccade.config import from_dict, override
from saccade.data.source import open_data
from saccade.errors import ConfigError, WeightsError
from saccade.opening import AnyModel, as_model, load, open_for, prompter_of, with_classes, with_prompts

if TYPE_CHECKING:
    from saccade.data.convert import Conversion
    from saccade.data.decode import ImageSource
    from saccade.engine.retrieval import Found
    from saccade.engine.train import StepRecord
    from saccade.explanation.heatmap import Heatmap
    from saccade.explanation.questions import Question
    from saccade.tasks import Evaluation
    from saccade.types import Prediction, TaskName
    from saccade.weights.transfer import TransferReport


def create(
    name: str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
) -> AnyModel:
    """A model from the registry, with random weights.

    Args:
        name: a registry name (``saccade models`` lists them), or ``timm/NAME`` for any convolutional timm backbone.
        num_classes: number of foreground classes; follows from ``classes`` where they are given.
        classes: names of the classes.
        overrides: config fields to replace: ``{"backbone.depth": 6}`` or ``["backbone.depth=6"]``.

    Raises:
        UnknownNameError: with the nearest name.
        ConfigError: where an override does not fit.

    Example:
        >>> model = saccade.create("vit_s16", classes=["cat", "dog"], overrides={"backbone.mlp": "swiglu"})
    """
    from saccade.models.build import create as build

    return build(name, num_classes=num_classes, classes=classes, overrides=overrides)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training.

    Attributes:
        folder: the run folder; ``best.safetensors`` and ``report.html`` are in it.
        model: the best model.
        metrics: its figures on the validation split.
    """

    folder: Path
    model: AnyModel
    metrics: Mapping[str, Any]


def train(
    model: str | AnyModel,
    data: str | Path | object,
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train a model to the end and return the finished run.

    Args:
        model: a registry name, or a model (its classes must be those of the data).
        data: anything ``open_data`` knows: folder, CSV, idx files, embedded name, data-set objects.
        out: run folder to create; default ``runs/NAME``, numbered where that exists.
        weights: start from this file, run folder or published source; a head for other classes is made anew.
        quiet: no live progress.
        settings: fields of ``TrainConfig``: epochs, batch_size, learning_rate, freeze, seed, ...

    Raises:
        SaccadeError: where data, config, weights or folder are wrong.

    Example:
        >>> run = saccade.train("vit_nano_p4_28", "fashion_mnist", epochs=3, out="runs/first")
        >>> run.model, run.metrics["top1"]
    """
    from saccade.console import new_console, show_training

    folder, records = start(model, data, out=out, weights=weights, settings=settings)
    show_training(records, new_console(), quiet=quiet)
    return finished(folder)


def start(
    model: str | AnyModel,
    data: str | Path | object,
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    strict: bool = False,
) -> tuple[Path, Iterator[StepRecord]]:
    """Prepare a training: its run folder, and the records that run it while they are taken.

    Args:
        model: a registry name or a model.
        data: anything ``open_data`` knows.
        out: run folder to create.
        weights: file, run folder or published source to start from.
        settings: fields of ``TrainConfig``.
        assignments: dotted overrides, ``model.backbone.depth=6`` or ``train.clip_norm=1``.
        strict: fail on corrupt files and on classes that do not match between splits.
    """
    import torch

    from saccade.data.captions import training_texts
    from saccade.data.inspect import check_readable
    from saccade.engine.plan import TrainConfig
    from saccade.engine.train import train as run
    from saccade.models.build import create as build
    from saccade.models.build import find_config

    parts = _sorted_by_part(assignments)

    def planned(own: Mapping[str, Any]) -> TrainConfig:
        plain = from_dict(TrainConfig, {"strict": strict, **own, **(settings or {})})
        with _placed_in("train"):
            return override(plain, parts["train"])

    config = planned({})  # before anything is built, so that a wrong word costs no time
    # Wherever `strict` was set: a resumed run opens its data by what the config says.
    source = open_data(data, task=task_of(model), strict=config.strict)
    name = model if isinstance(model, str) else type(model).__name__.lower()
    if isinstance(model, str):
        torch.manual_seed(config.seed)
        with _placed_in("model"):
            described = find_config(model).described(source.attributes)
            described = described.fitted(lambda: training_texts(source.split("train")))
            model = build(described, classes=source.classes.names, overrides=parts["model"])
    elif parts["model"]:
        raise ConfigError("model.* overrides need a model by name", where=parts["model"][0])
    notes: list[str] = []
    taken: tuple[str, ...] = ()
    if weights is not None:
        report = _load_weights(model, weights)
        taken = report.taken
        notes.append(f"weights: {report}")
    own = model.config.train_settings(taken)
    config = planned(own)
    if unset := {key: value for key, value in own.items() if key not in _set_by(settings, parts)}:
        told = ", ".join(f"{key}={json.dumps(value)}" for key, value in unset.items())
        notes.append(f"settings of this model's own, where you set none: {told}")
    if config.strict:
        # A run that stopped at a damaged picture could not go on once that is mended: its data would be other data.
        for dataset in source.splits.values():
            check_readable(dataset)
    folder = Path(out) if out is not None else _free_folder(name)
    return folder, run(model, source, config, out=folder, name=name, notes=notes)


def resume(folder: str | Path, data: str | Path | object | None = None) -> tuple[Path, Iterator[StepRecord]]:
    """Go on with an interrupted run; the result is the same as if it had never been interrupted.

    Args:
        folder: the run folder.
        data: where the data is now, or the object that the run was started with; default where it was then.
    """
    from saccade.engine.train import resume as run

    return Path(folder), run(folder, data)


def _set_by(settings: Mapping[str, Any] | None, parts: Mapping[str, Sequence[str]]) -> set[str]:
    """Fields of the training that the user has set, wherever."""
    return {*(settings or {}), *(path.partition("=")[0].partition(".")[0] for path in parts["train"])}


def finished(folder: str | Path) -> Run:
    """The result of a run that has come to its end."""
    from saccade.engine.run import RunFolder

    run = RunFolder(folder)
    return Run(run.path, load(run.best), run.read_json("metrics.json")["metrics"])


def evaluate(
    model: str | Path | AnyModel,
    data: str | Path | object,
    *,
    split: str | None = None,
    strict: bool = False,
    templates: str | Sequence[str] | None = None,
    **settings: Any,
) -> Evaluation:
    """Score a model on labelled pictures.

    Args:
        model: a model, file, run folder or published source; one for zero_shot is scored on captions, and on pictures
            with classes by the names of these.
        data: anything ``open_data`` knows.
        templates: of a zero-shot model, what names are put into: a named set, or texts with one ``{}`` each.
        split: ``train``, ``val``, ``test``, or ``all`` for the pictures of every split; by default ``test`` where there
            is one, else the split that is held out.
        strict: fail on a corrupt file or a class that does not match, instead of reporting it.
        settings: fields of ``EvaluateConfig``: batch_size, workers, ...

    Returns:
        The figures of the model's task, the headline with its 95 % interval, figures per class, and what went worst.
    """
    from saccade.engine.evaluate import EvaluateConfig, evaluate_split
    from saccade.text.prompts import as_templates

    ready, source = open_for(model, data, templates=templates, strict=strict)
    config = from_dict(EvaluateConfig, {"strict": strict, "templates": as_templates(templates) or (), **settings})
    return evaluate_split(ready, source, split, config)[1]


def predict(
    model: str | Path | AnyModel,
    images: ImageSource | Sequence[ImageSource],
    *,
    batch_size: int = 32,
    speed: Literal["auto", "exact"] = "auto",
    classes: Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    maps: bool = False,
    boxes: str | Path | AnyModel | None = None,
) -> list[Prediction]:
    """What the model sees in pictures, one prediction each: ``Classification``, ``Segmentation`` or ``Detections``.

    Args:
        model: a model, file, run folder or published source.
        images: paths, bytes, PIL pictures, uint8 arrays or tensors; one or a list.
        batch_size: pictures per forward pass.
        speed: ``auto`` may use a faster copy of the model on long lists, after checking on your own pictures that it
            agrees with the float32 model; ``exact`` never does.
        classes: what a zero-shot model shall tell apart, in words; it was never trained on them.
        templates: what these names are put into: a named set (``photo``, ``imagenet80``), or texts with one ``{}``.
        maps: of a zero-shot model, one of the classes for every pixel: a ``Segmentation``.
        boxes: of a zero-shot model, a detector whose boxes get these classes: ``Detections``.

    Raises:
        ImageError: naming the picture that cannot be read.
        InputError: where an array is not clearly a picture, or a zero-shot model is given no classes.
    """
    from saccade.engine.predict import PredictConfig, Predictor

    several: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
    config = from_dict(PredictConfig, {"batch_size": batch_size, "speed": speed})
    ready = with_classes(model, classes, templates)
    if prompter := prompter_of(ready, maps=maps, boxes=boxes):
        return list(prompter.stream(several))
    return Predictor(ready, config)(several)


def explain(
    model: Any,
    image: ImageSource,
    *,
    of: Question = None,
    against: str | int | None = None,
    method: Any = "auto",
    layer: str = "auto",
    verdict: bool = True,
    classes: Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
) -> Heatmap:
    """Which pixels decided about a class, a region, an object or a text, and how far the answer can be trusted.

    Args:
        model: a model, file, run folder or published source; or any ``torch.nn.Module`` classifier.
        image: path, bytes, PIL picture, uint8 array or tensor.
        of: what to explain. Of a classifier: class name, label, or a prediction (its likeliest class); default the
            predicted class. Of a segmenter: a class name (all its pixels), a pixel ``(left, top)``, a connected part
            ``"component:3"`` (1 is the largest), or a mask ``[h, w]`` bool; default the class that covers most. Of a
            detector: an object by its place in the predictions, ``"box:0"``, one of its sides, ``"box:0/left"``, its
            mask, ``"mask:0"``, or a class name (its likeliest object); default the likeliest of all. Of any model: a
            function of its raw outputs for B pictures to one number each.
        against: a second class: why the first one and not this one.
        method: name of a method (``saccade explain --method``), or an explainer object; ``auto`` chooses by the
            architecture.
        layer: declared layer for methods that read one; ``auto`` is the one that the model names as usual.
        verdict: measure how far the map can be trusted: some 50 pictures go through the model and two shuffled
            copies of it, the runs of the method on these included.
        classes: what a zero-shot model shall tell apart, in words; ``of`` and ``against`` then name two of them.
            Without them ``of`` and ``against`` may be any words.
        templates: what these names are put into.

    Example:
        >>> heat = saccade.explain(model, "photo.jpg", of="sneaker", method="gradcam")
        >>> heat.verdict.status, heat.map.shape
        >>> heat.save("why.png")
    """
    from saccade.explanation.explain import explain as run

    ready = with_prompts(model, [of], against, classes, templates)
    return run(ready, image, of=of, against=against, method=method, layer=layer, verdict=verdict)


def search(
    model: str | Path | AnyModel,
    folder: str | Path,
    query: str | ImageSource,
    *,
    top: int = 10,
    dtype: Literal["float32", "float16"] = "float32",
) -> list[Found]:
    """The pictures of a folder that fit words, or that are like another picture.

    The vectors of the pictures are kept in one file in the folder, and made anew only for files that changed.

    Args:
        model: a model, file, run folder or published source; words want a model for zero_shot, pictures any classifier.
        folder: of pictures, with the folders in it.
        query: words, or a picture: path, PIL picture, array or tensor.
        top: how many.
        dtype: how vectors are kept; ``float16`` halves the file.

    Raises:
        DataError: no picture in the folder.
        ConfigError: words for a model that knows none.

    Example:
        >>> for found in saccade.search("runs/clip", "photos", "a red bicycle", top=5):
        ...     print(found.path, found.score)
    """
    from saccade.engine.retrieval import embed_query, open_index

    ready = as_model(model)
    vector = embed_query(ready, query)
    return open_index(ready, folder, dtype=dtype)[0].search(vector, top)[0]


def convert(
    source: str | Path | object,
    destination: str | Path,
    *,
    to: str,
    task: str | None = None,
    lossy: bool = False,
    copy: bool = False,
    strict: bool = False,
) -> Conversion:
    """Write boxes and masks of objects in another file format, and compare what comes back with what was read.

    Args:
        source: anything ``open_data`` reads as boxes or masks of objects.
        destination: the folder to make; it must not exist.
        to: ``coco``, ``voc``, ``yolo``, ``csv`` or ``labelme``.
        task: ``detection`` leaves masks aside, ``instance`` wants a mask for every object; default what there is.
        lossy: let go what the format cannot hold, and tell it, instead of refusing.
        copy: copy the pictures, even where a hard link would do.
        strict: fail on faults of the source that would be mended and told.

    Raises:
        DataError: a source without objects, a folder that exists, something that the format cannot hold, or a
            difference between what was written and what comes back.

    Example:
        >>> done = saccade.convert("cells", "cells_coco", to="coco")
        >>> done.objects["train"], done.largest_deviation
    """
    from saccade.data.convert import convert as run

    return run(source, destination, to=to, task=task, lossy=lossy, copy=copy, strict=strict)


def task_of(model: str | AnyModel) -> TaskName:
    """What a model, or the model of a registry name, is for."""
    from saccade.models.build import find_config

    return find_config(model).task if isinstance(model, str) else model.task


def _load_weights(model: AnyModel, weights: str | Path) -> TransferReport:
    """Start a model from a file, the best model of a run folder, or a published source; returns what was taken.

    Raises:
        WeightsError: where there is no such thing, or it is damaged, altered, or of another architecture.
    """
    from saccade.engine.checkpoint import read_header
    from saccade.models.build import is_published, load_weights
    from saccade.weights.files import read_description

    path = Path(weights)
    if path.is_dir():
        path = path / "best.safetensors"
    is_source = not path.is_file() and is_published(str(weights))
    if not path.is_file() and not is_source:
        expected = "a .safetensors or .pth file, a run folder, or a source such as timm/NAME"
        raise WeightsError("there is no such file", where=str(path), expected=expected)
    if not is_source and read_description(path):
        # A file of ours carries a digest, which the reader of files from anywhere does not look at.
        read_header(path)
    return load_weights(model, str(weights) if is_source else path)


@contextmanager
def _placed_in(part: str) -> Iterator[None]:
    """Errors about a config field name it by the whole path that ``--set`` takes."""
    try:
        yield
    except ConfigError as error:
        error.where = f"{part}.{error.where}" if error.where else None
        raise


def _sorted_by_part(assignments: Sequence[str]) -> dict[str, list[str]]:
    """Dotted overrides by what they are for, without the first word."""
    parts: dict[str, list[str]] = {"model": [], "train": []}
    for assignment in assignments:
        if "=" not in assignment:
            raise ConfigError(f"override {assignment!r} has no value", where="--set", expected="path.to.field=value")
        part, dot, rest = assignment.partition(".")
        if not dot or part not in parts:
            expected = "model.<field>=value or train.<field>=value"
            raise ConfigError(
                f"override {assignment!r} does not say what it belongs to", where="--set", expected=expected
            )
        parts[part].append(rest)
    return parts


def _free_folder(name: str) -> Path:
    """``runs/NAME``, or the first of ``runs/NAME-2`` ... that does not exist."""
    base = Path("runs") / name.replace("/", "-")
    numbered = (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))
    return base if not base.exists() else next(folder for folder in numbered if not folder.exists())
