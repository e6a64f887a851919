"""Models made ready for a verb: loaded from where they are, and given classes in words where they know none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.data.source import DataSource, open_data
from saccade.errors import ConfigError, WeightsError
from saccade.models.base import VisionModel

if TYPE_CHECKING:
    import torch

    from saccade.engine.open_vocabulary import PromptDetector, PromptSegmenter
    from saccade.explanation.questions import Question

AnyModel = VisionModel[Any, Any, Any]


def load(source: str | Path, *, device: str | torch.device = "auto") -> AnyModel:
    """A model with weights: a Saccade file, a run folder, or a published source.

    Args:
        source: ``best.safetensors``, the run folder that holds it, the ONNX file of a YOLOX, or ``timm/...``,
            ``torchvision/...``, ``transformers/...``, ``open_clip/...`` (downloaded by those libraries, only because
            you asked).
        device: where it shall compute: ``cpu``, ``cuda``, ``cuda:1``; ``auto`` is a CUDA GPU where there is one. The
            verbs take their pictures there, and give their answers on the CPU.

    Raises:
        WeightsError: where the file is missing, damaged, foreign, or the source cannot be reached.
        ConfigError: where there is no such device.

    Example:
        >>> model = saccade.load("runs/shoes")
        >>> model = saccade.load("runs/shoes", device="cpu")
    """
    from saccade.engine.checkpoint import load_model
    from saccade.engine.machine import find_device
    from saccade.models.build import from_source, is_published
    from saccade.registry import names

    place = find_device(device)  # first, so that a wrong word costs no time
    path = Path(source)
    if path.is_dir():
        return load_model(path / "best.safetensors", place)
    text = str(source)
    if is_published(text) or (path.suffix == ".onnx" and path.exists()):
        return from_source(text).to(place)
    if path.exists():
        return load_model(path, place)
    if text in names():
        remedy = f"train it first (saccade train {text} DATA) and give the run folder"
        raise WeightsError("this is an architecture without weights", where=text, remedy=remedy)
    expected = "a .safetensors file, a run folder, or a source such as timm/NAME"
    raise WeightsError("there is no such file", where=text, expected=expected)


def as_model(model: str | Path | AnyModel, device: str | torch.device = "auto") -> AnyModel:
    """The model itself, where it is, or the one loaded onto ``device`` from where ``model`` points to."""
    return load(model, device=device) if isinstance(model, str | Path) else model


def with_classes(
    model: str | Path | AnyModel,
    classes: Sequence[str] | None,
    templates: str | Sequence[str] | None = None,
    *,
    device: str = "auto",
) -> AnyModel:
    """A model that is ready to predict: one for zero_shot becomes a classifier by the names of classes.

    Args:
        model: a model, file, run folder or published source; the embedded names are kept beside a file of ours.
        classes: the names; only for models for zero_shot, which need them.
        templates: what each name is put into: a named set, or texts with one ``{}`` each; default the model's own.
        device: where a model that is loaded shall live; one that is given stays where it is.

    Raises:
        InputError: a zero-shot model without classes, names that are empty or repeat.
        ConfigError: classes for a model that has its own.
    """
    ready = as_model(model, device)
    if ready.task == "zero_shot":
        from saccade.engine.text_cache import classifier_of

        file = Path(model) if isinstance(model, str | Path) else None
        return classifier_of(ready, classes, templates, file / "best.safetensors" if file and file.is_dir() else file)
    if classes is not None:
        told = f"the model is for {ready.task} and has classes of its own"
        raise ConfigError(told, where="classes", remedy="leave them out, or give a model for zero_shot")
    return ready


def open_for(
    model: str | Path | AnyModel,
    data: str | Path | object,
    *,
    classes: Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    strict: bool = False,
    device: str = "auto",
) -> tuple[AnyModel, DataSource]:
    """A model and data that it can be scored on.

    A model for zero_shot takes captions as it is, and becomes a classifier by the names of the classes where pictures
    have classes instead.

    Args:
        model: a model, file, run folder or published source.
        data: anything ``open_data`` knows.
        classes: names that such a classifier tells apart, where they shall be more than those of the data.
        templates: what names are put into, for such a classifier.
        strict: as for ``open_data``.
        device: as for ``with_classes``.
    """
    ready = as_model(model, device)
    if ready.task != "zero_shot":
        return with_classes(ready, classes, templates), open_data(data, task=ready.task, strict=strict)
    found = open_data(data, task="classification" if classes is not None else None, strict=strict)
    if found.task != "classification":
        return ready, open_data(data, task="zero_shot", strict=strict)
    return with_classes(model, classes or found.classes.names, templates, device=device), found


def with_prompts(
    model: Any,
    of: Sequence[Question],
    against: str | int | None,
    classes: Sequence[str] | None,
    templates: str | Sequence[str] | None = None,
    *,
    device: str = "auto",
) -> Any:
    """A model that is ready to be explained: of one for zero_shot, what is asked in words are its classes.

    Args:
        model: as for ``explain``.
        of: what is asked.
        against: what it is contrasted with.
        classes: names, where the model shall tell apart more than what is asked.
        templates: what names are put into; questions in words stand for themselves.
        device: as for ``with_classes``.
    """
    from saccade.explanation.prompts import prompts_of

    if classes is not None:
        return with_classes(model, classes, templates, device=device)
    ready = as_model(model, device) if isinstance(model, str | Path) else model
    if getattr(ready, "task", None) != "zero_shot":
        return ready
    return with_classes(ready, prompts_of(of, against), templates or ("{}",))


def prompter_of(
    model: AnyModel, *, maps: bool = False, boxes: str | Path | AnyModel | None = None
) -> PromptSegmenter | PromptDetector | None:
    """What applies prompts to pixels or boxes, where either is wanted.

    Args:
        model: ready to predict.
        maps: a class for every pixel.
        boxes: classes for the boxes of this detector.

    Raises:
        ConfigError: both at once, or models that cannot do it.
    """
    from saccade.engine.open_vocabulary import PromptDetector, PromptSegmenter

    if maps and boxes is not None:
        raise ConfigError("a label map and boxes are two predictions", where="boxes", remedy="ask for one at a time")
    if boxes is not None:
        return PromptDetector(model, as_model(boxes, next(model.parameters()).device))
    return PromptSegmenter(model) if maps else None
