"""Explaining predictions: from pictures and questions to heat maps with a verdict.

T questions · B pictures
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from saccade.data.decode import read_image
from saccade.errors import ConfigError, ExplainError, InputError
from saccade.explanation.adapt import AdaptedModel, adapt, fingerprint, model_device
from saccade.explanation.asking import ask, on_canvas
from saccade.explanation.attribution import Attribution, Explainer, ScoreFn
from saccade.explanation.boxes import Watched, fired_layers
from saccade.explanation.cam import HiResCAM, LayerCAM
from saccade.explanation.fired import fired_parts
from saccade.explanation.heatmap import Heatmap
from saccade.explanation.methods import default_method
from saccade.explanation.methods import method as named_method
from saccade.explanation.prompts import beside, contrasts_of, noted
from saccade.explanation.questions import Asked, Question, described, plain
from saccade.explanation.record import exact, mixing_layer, undisturbed, unwrap
from saccade.explanation.sharing import attribute, judged
from saccade.explanation.verdict import Judge, Verdict
from saccade.ops.image import to_original
from saccade.types import Classes, ExplainSpec, ImageBatch


@dataclass(frozen=True)
class ExplainOptions:
    """How to explain.

    Attributes:
        method: name of a method, an explainer, or ``auto``.
        layer: declared layer for the methods that read one; ``auto`` is the one that the model names as usual.
        against: class that the explained one is contrasted with, by name or label.
        verdict: whether to measure how far each map can be trusted.
        batch_size: pictures explained together.
    """

    method: str | Explainer = "auto"
    layer: str = "auto"
    against: str | int | None = None
    verdict: bool = True
    batch_size: int = 8


class Subject:
    """A model ready to be explained many times: a foreign one is adapted once, shuffled copies are made once.

    Args:
        model: one of ours, or any ``torch.nn.Module`` that ``adapt`` can read; its weights must not change while this
            is in use.
        score: for a foreign model that is no classifier, what will be asked of its outputs.
        example: a picture to study a foreign model on.
    """

    def __init__(self, model: nn.Module, score: ScoreFn | None = None, example: Any = None) -> None:
        module = unwrap(model)
        if not (hasattr(module, "explain_spec") and hasattr(module, "preprocess")):
            module = adapt(module, score=score, example=example)
        ready: Any = module
        task = getattr(ready, "task", "classification")
        self.name = type(module.module if isinstance(module, AdaptedModel) else module).__name__
        self.classes: Classes = ready.classes
        self.has_regions: bool = task == "semantic"
        self.has_boxes: bool = task in {"detection", "instance"}
        self.model: nn.Module = Watched(ready) if self.has_boxes else module

    @cached_property
    def spec(self) -> ExplainSpec:
        """What the model declares about itself; asked for when needed, as some models can only be evaluated."""
        ready: Any = self.model
        spec: ExplainSpec = ready.explain_spec()
        return spec

    @cached_property
    def weights(self) -> str:
        """Tells one set of weights from another."""
        return fingerprint(self.model)

    @cached_property
    def judge(self) -> Judge:
        """Judges the maps of this model."""
        return Judge(self.model, self.spec)


@dataclass(frozen=True, eq=False)
class _Plan:
    """How a subject is explained in one call.

    Attributes:
        subject: the model.
        explainer: the method, at its layer.
        judge: of the maps; None where no verdict is asked for.
        finds_layer: whether each object is explained at the layer that it was read from.
    """

    subject: Subject
    explainer: Explainer
    judge: Judge | None
    finds_layer: bool


def explain(
    model: nn.Module,
    image: Any,
    *,
    of: Question = None,
    against: str | int | None = None,
    method: str | Explainer = "auto",
    layer: str = "auto",
    verdict: bool = True,
) -> Heatmap:
    """Why the model gives one picture, or one region of it, one class.

    Args:
        model: one of ours, or any ``torch.nn.Module`` classifier that ``adapt`` can read.
        image: path, bytes, PIL picture, uint8 array or tensor.
        of: what to explain, see ``Question``.
        against: a second class: why the first and not this one.
        method: name of a method, an explainer object, or ``auto``.
        layer: declared layer for the methods that read one; ``auto`` is the one that the model names as usual.
        verdict: measure how far the map can be trusted.

    Raises:
        UnknownNameError: for a class, method or layer that does not exist, with the nearest one.
        ExplainError: where the method cannot explain this model, naming one that can.
    """
    options = ExplainOptions(method=method, layer=layer, against=against, verdict=verdict)
    return explain_batch(model, [image], [of], options)[0][0]


def explain_batch(
    model: nn.Module | Subject,
    images: Sequence[Any],
    of: Sequence[Question] = (None,),
    options: ExplainOptions | None = None,
) -> list[list[Heatmap]]:
    """Explain several questions on several pictures; the forward passes are shared.

    Args:
        model: one of ours, or any ``torch.nn.Module`` classifier that ``adapt`` can read; a ``Subject`` where more
            calls will follow.
        images: paths, bytes, PIL pictures, uint8 arrays or tensors.
        of: what is asked of every picture.
        options: method, layer, contrast, verdict.

    Returns:
        One list per picture, with one heat map per question.
    """
    options = options or ExplainOptions()
    if not images or not of:
        raise InputError("there is nothing to explain", expected="at least one picture and one question")
    if options.batch_size < 1:
        raise ConfigError(f"batch_size is {options.batch_size}", expected="at least 1")
    of = [plain(question) for question in of]
    subject = _ready(model, images, of)
    plan = _plan(subject, options)
    heatmaps = []
    # A region or an object belongs to its own picture, so pictures of segmenters and detectors share nothing; and a
    # model that mixes the pictures of a batch would answer for all of them together.
    is_alone = subject.has_regions or subject.has_boxes or mixing_layer(subject.model) is not None
    at_once = 1 if is_alone else options.batch_size
    for start in range(0, len(images), at_once):
        pictures = [read_image(image) for image in images[start : start + at_once]]
        heatmaps += _explain_pictures(plan, pictures, of, options)
    return heatmaps


def _ready(model: nn.Module | Subject, images: Sequence[Any], of: Sequence[Question]) -> Subject:
    """The model to be explained; one that is asked with functions only need not be a classifier."""
    if isinstance(model, Subject):
        return model
    functions = [question for question in of if callable(question)]
    return Subject(model, functions[0], images[0]) if len(functions) == len(of) else Subject(model)


def _plan(ready: Subject, options: ExplainOptions) -> _Plan:
    explainer = _explainer(ready, options)
    judge = ready.judge if options.verdict else None
    # An object of a pyramid is read from one level of it, and which that is differs from object to object.
    is_open = options.layer == "auto" and isinstance(options.method, str) and hasattr(explainer, "layer")
    finds_layer = ready.has_boxes and is_open and ready.spec.usual_layer == "final"
    return _Plan(ready, explainer, judge, finds_layer)


def _explainer(ready: Subject, options: ExplainOptions) -> Explainer:
    """The method that is asked for, at the layer that is asked for."""
    asked, layer = options.method, options.layer
    if isinstance(asked, str):
        usual = default_method(ready.spec, has_regions=ready.has_regions, has_boxes=ready.has_boxes)
        explainer = usual if asked == "auto" else named_method(asked)
        if asked == "auto" and layer != "auto" and not hasattr(usual, "layer"):
            explainer = named_method("hirescam")
    else:
        explainer = asked
    if layer == "auto":
        # An explainer made by the caller names its own layer.
        if asked == "auto" and isinstance(explainer, LayerCAM):
            return explainer
        named = isinstance(asked, str) and hasattr(explainer, "layer")
        return replace(explainer, layer=ready.spec.usual_layer) if named else explainer  # type: ignore[type-var]
    if not hasattr(explainer, "layer"):
        raise ConfigError(
            f"method {explainer.name!r} reads no layer",
            where="layer",
            remedy="leave layer out, or choose method 'hirescam'",
        )
    return replace(explainer, layer=layer)  # type: ignore[type-var]


def _explain_pictures(
    plan: _Plan, pictures: list[Tensor], of: Sequence[Question], options: ExplainOptions
) -> list[list[Heatmap]]:
    subject = plan.subject
    model: Any = subject.model
    device, dtype = model_device(model)
    images = on_canvas(model, pictures, of).to(device, dtype).channels_last()
    with undisturbed(model), torch.no_grad():
        outputs = model(images)
        asked = ask(model, outputs, images, of, options.against)
        values = [[float(question.score(outputs)[index]) for question in row] for index, row in enumerate(asked)]
    if not all(math.isfinite(value) for row in values for value in row):
        raise ExplainError("the scores of the model are not finite", remedy="check its weights and its precision")
    if subject.has_boxes and not any(map(callable, of)):
        objects = [question.score.asked for question in asked[0]]  # type: ignore[attr-defined]
        fired = fired_parts(model, outputs, images, objects, subject.spec)
        heatmaps = _of_objects(plan, images, pictures, asked, values, options)
        return [[replace(heat, fired=one) for heat, one in zip(heatmaps[0], fired, strict=True)]]
    return _heatmaps(plan, images, pictures, asked, values)


def _of_objects(
    plan: _Plan,
    images: ImageBatch,
    pictures: list[Tensor],
    asked: list[list[Asked]],
    values: list[list[float]],
    options: ExplainOptions,
) -> list[list[Heatmap]]:
    """The maps of one picture, each at the layer that its object was read from, where nobody chose one."""
    if not plan.finds_layer:
        return _heatmaps(plan, images, pictures, asked, values)
    subject, scores = plan.subject, [question.score for question in asked[0]]
    levels = fired_layers(subject.model, images, scores, dict(subject.spec.layers))
    usual = [
        _at_level(plan.explainer, level, question, options, subject.spec.early_layer)
        for level, question in zip(levels, asked[0], strict=True)
    ]
    found: dict[int, Heatmap] = {}
    for explainer in dict.fromkeys(usual):
        members = [index for index, other in enumerate(usual) if other == explainer]
        part = replace(plan, explainer=explainer)
        some, seen = [asked[0][index] for index in members], [values[0][index] for index in members]
        found |= zip(members, _heatmaps(part, images, pictures, [some], [seen])[0], strict=True)
    return [[found[index] for index in range(len(usual))]]


def _at_level(
    explainer: Explainer, level: str, question: Asked, options: ExplainOptions, early: str | None
) -> Explainer:
    """The method at the level that an object was read from; ``auto`` reads the early layer, if the model names one.

    Of a side, evidence either way is what ``auto`` shows, at the level.
    """
    if options.method == "auto" and getattr(question.score, "is_two_sided", False):
        return HiResCAM(level)
    if options.method == "auto" and early is not None:
        return explainer
    return replace(explainer, layer=level)  # type: ignore[type-var]


def _heatmaps(
    plan: _Plan,
    images: ImageBatch,
    pictures: list[Tensor],
    asked: list[list[Asked]],
    values: list[list[float]],
) -> list[list[Heatmap]]:
    subject, explainer = plan.subject, plan.explainer
    contrasts = [contrasts_of(subject.model, explainer, row) for row in asked]
    # What prompts are checked with shares the forward passes of what was asked.
    everything = [list(dict.fromkeys([*row, *beside(checks)])) for row, checks in zip(asked, contrasts, strict=True)]
    maps = attribute(subject.model, subject.spec, explainer, images, everything)
    known = [dict(zip(row, some, strict=True)) for row, some in zip(everything, maps, strict=True)]
    found = [[some[question] for question in row] for row, some in zip(asked, known, strict=True)]
    verdicts = judged(plan.judge, explainer, images, asked, found)
    return [
        [
            _heatmap(plan, images[index], picture, question, noted(known[index], question, check), value, verdict)
            for question, check, value, verdict in zip(
                asked[index], contrasts[index], values[index], verdicts[index], strict=True
            )
        ]
        for index, picture in enumerate(pictures)
    ]


@exact()
def _heatmap(
    plan: _Plan,
    images: ImageBatch,
    picture: Tensor,
    question: Asked,
    attribution: Attribution,
    score: float,
    verdict: Verdict | None,
) -> Heatmap:
    values, explainer = attribution.values[0, 0], plan.explainer
    if not values.isfinite().all():
        raise ExplainError(f"method {explainer.name!r} gave values that are not finite", remedy="try float32 weights")
    canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
    original, seen = to_original(values.detach(), canvas, images.geometries[0])
    negative = _number(attribution.negative)
    region = None
    if question.region is not None:
        # Back to the original pixels; half covered counts as covered.
        region = (to_original(question.region[None].float(), canvas, images.geometries[0])[0][0] >= 0.5).cpu()
    return Heatmap(
        map=original.cpu(),
        seen=seen.cpu(),
        image=picture,
        is_signed=explainer.is_signed,
        is_class_agnostic=explainer.is_class_agnostic,
        name=explainer.name,
        method=repr(explainer),
        of=question.words,
        score=score,
        layer=attribution.layer,
        error=_number(attribution.error),
        negative=negative,
        blank=blank_reason(values, negative),
        verdict=verdict,
        region=region,
        manifest=manifest(plan.subject, explainer, images, question.score, attribution.layer),
        notes=attribution.notes,
    )


def manifest(
    subject: Subject, explainer: Explainer, images: ImageBatch, score: ScoreFn, layer: str | None
) -> dict[str, Any]:
    """How a map came about: enough to make it again.

    Args:
        subject: the model.
        explainer: the method, at its layer.
        images: what the model saw.
        score: what was asked.
        layer: declared name of the layer that was read; None: the pixels.
    """
    return {
        "model": subject.name,
        "weights": subject.weights,
        "method": repr(explainer),
        "score": described(score),
        "layer": layer and subject.spec.layers[layer].path,
        "canvas": [int(side) for side in images.pixels.shape[-2:]],
        "dtype": str(images.pixels.dtype).removeprefix("torch."),
        "device": images.pixels.device.type,
        "seed": getattr(explainer, "seed", None),
        "torch": torch.__version__,
        **{name: version(name) for name in ("saccade", "timm")},
    }


def blank_reason(values: Tensor, negative: float | None) -> str | None:
    """Why a map is empty everywhere; None where it is not."""
    if values.any():
        return None
    if negative is not None and negative > 0:
        return "all the evidence at this layer speaks against it"
    return "the score does not change with what the method reads: its gradient or attention is zero everywhere"


def _number(values: Tensor | None) -> float | None:
    if values is None:
        return None
    number = float(values.flatten()[0])
    return number if math.isfinite(number) else None
