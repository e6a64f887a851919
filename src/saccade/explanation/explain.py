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
from saccade.explanation.adapt import adapt, model_device
from saccade.explanation.attribution import Attribution, Explainer
from saccade.explanation.heatmap import Heatmap, to_original
from saccade.explanation.methods import default_method
from saccade.explanation.methods import method as named_method
from saccade.explanation.record import undisturbed, unwrap
from saccade.explanation.scores import class_score, contrast_score, logits_of
from saccade.explanation.verdict import Judge, Verdict
from saccade.types import Classes, Classification, ExplainSpec, ImageBatch

Question = str | int | Classification | None
"""What to explain: a class by name or label, a prediction's likeliest class, or (None) the predicted class."""


@dataclass(frozen=True)
class ExplainOptions:
    """How to explain.

    Attributes:
        method: name of a method, an explainer, or ``auto``.
        layer: declared layer for the methods that read one.
        against: class that the explained one is contrasted with, by name or label.
        verdict: whether to measure how far each map can be trusted.
        batch_size: pictures explained together.
    """

    method: str | Explainer = "auto"
    layer: str = "final"
    against: str | int | None = None
    verdict: bool = True
    batch_size: int = 8


@dataclass(frozen=True)
class _Asked:
    """One question about one picture: why ``label`` (and not ``against``)?"""

    label: int
    against: int | None

    def score(self) -> Any:
        return class_score(self.label) if self.against is None else contrast_score(self.label, self.against)

    def words(self, classes: Classes) -> str:
        rather = "" if self.against is None else f" rather than {classes[self.against]}"
        return classes[self.label] + rather


class Subject:
    """A model ready to be explained many times: a foreign one is adapted once, shuffled copies are made once.

    Args:
        model: one of ours, or any ``torch.nn.Module`` classifier that ``adapt`` can read; its weights must not change
            while this is in use.
    """

    def __init__(self, model: nn.Module) -> None:
        module = unwrap(model)
        if not (hasattr(module, "explain_spec") and hasattr(module, "preprocess")):
            module = adapt(module)
        ready: Any = module
        self.model: nn.Module = module
        self.spec: ExplainSpec = ready.explain_spec()
        self.classes: Classes = ready.classes

    @cached_property
    def judge(self) -> Judge:
        """Judges the maps of this model."""
        return Judge(self.model, self.spec)


@dataclass(frozen=True, eq=False)
class _Subject:
    """The model in the form that explainers want."""

    model: nn.Module
    spec: ExplainSpec
    classes: Classes
    explainer: Explainer
    judge: Judge | None


def explain(
    model: nn.Module,
    image: Any,
    *,
    of: Question = None,
    against: str | int | None = None,
    method: str | Explainer = "auto",
    layer: str = "final",
    verdict: bool = True,
) -> Heatmap:
    """Why the model gives one picture one class.

    Args:
        model: one of ours, or any ``torch.nn.Module`` classifier that ``adapt`` can read.
        image: path, bytes, PIL picture, uint8 array or tensor.
        of: class name, label, or a prediction (its likeliest class); the predicted class where it is None.
        against: a second class: why the first and not this one.
        method: name of a method, an explainer object, or ``auto``.
        layer: declared layer for the methods that read one.
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
    """Explain several classes on several pictures; the forward passes are shared.

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
    subject = _subject(model, options)
    heatmaps = []
    for start in range(0, len(images), options.batch_size):
        pictures = [read_image(image) for image in images[start : start + options.batch_size]]
        heatmaps += _explain_pictures(subject, pictures, of, options)
    return heatmaps


def _subject(model: nn.Module | Subject, options: ExplainOptions) -> _Subject:
    ready = model if isinstance(model, Subject) else Subject(model)
    asked = options.method
    explainer = (
        asked if not isinstance(asked, str) else default_method(ready.spec) if asked == "auto" else named_method(asked)
    )
    if options.layer != "final":
        if asked == "auto":
            explainer = named_method("hirescam")
        if not hasattr(explainer, "layer"):
            raise ConfigError(
                f"method {explainer.name!r} reads no layer",
                where="layer",
                remedy="leave layer out, or choose method 'hirescam'",
            )
        explainer = replace(explainer, layer=options.layer)  # type: ignore[type-var]
    return _Subject(ready.model, ready.spec, ready.classes, explainer, ready.judge if options.verdict else None)


def _explain_pictures(
    subject: _Subject, pictures: list[Tensor], of: Sequence[Question], options: ExplainOptions
) -> list[list[Heatmap]]:
    model: Any = subject.model
    device, dtype = model_device(model)
    images: ImageBatch = model.preprocess(pictures).to(device, dtype).channels_last()
    with undisturbed(model), torch.no_grad():
        outputs = model(images)
        logits = logits_of(outputs).float()
    if not logits.isfinite().all():
        raise ExplainError("the scores of the model are not finite", remedy="check its weights and its precision")
    against = None if options.against is None else _label(options.against, subject.classes)
    asked = [[_Asked(_resolve(q, row, subject.classes), against) for q in of] for row in logits]
    if any(question.label == against for row in asked for question in row):
        name = subject.classes[against or 0]
        remedy = "say with `of` which class to explain, or choose another `against`"
        raise InputError(f"class {name!r} is contrasted with itself", where="against", remedy=remedy)
    found = _attribute(subject, images, asked)
    verdicts = _verdicts(subject, images, asked, found)
    return [
        [
            _heatmap(subject, images[index], picture, question, attribution, logits[index], verdict)
            for question, attribution, verdict in zip(asked[index], found[index], verdicts[index], strict=True)
        ]
        for index, picture in enumerate(pictures)
    ]


def _attribute(subject: _Subject, images: ImageBatch, asked: list[list[_Asked]]) -> list[list[Attribution]]:
    """One attribution ``[1, 1, h, w]`` per picture and question.

    Where further scores cost almost nothing, the union of all questions is asked of the whole batch; elsewhere pictures
    with the same questions go together.
    """
    results: list[list[Attribution]] = [[] for _ in asked]
    if getattr(subject.explainer, "shares_forward", True):
        groups = [(list(dict.fromkeys(q for row in asked for q in row)), list(range(len(asked))))]
    else:
        groups = _same_questions(asked)
    for questions, members in groups:
        part = _subset(images, members)
        scores = [question.score() for question in questions]
        attribution = subject.explainer(subject.model, part, scores, subject.spec)
        for place, index in enumerate(members):
            results[index] = [_pick(attribution, questions.index(question), place) for question in asked[index]]
    return results


def _verdicts(
    subject: _Subject, images: ImageBatch, asked: list[list[_Asked]], found: list[list[Attribution]]
) -> list[list[Verdict | None]]:
    """One verdict per picture and question; pictures with the same questions are judged together."""
    results: list[list[Verdict | None]] = [[None] * len(row) for row in asked]
    if subject.judge is None:
        return results
    for questions, members in _same_questions(asked):
        columns = [[found[index][asked[index].index(question)] for index in members] for question in questions]
        scores = [question.score() for question in questions]
        verdicts = subject.judge(_subset(images, members), scores, subject.explainer, _joined(columns))
        for place, index in enumerate(members):
            results[index] = [verdicts[questions.index(question)][place] for question in asked[index]]
    return results


def _same_questions(asked: list[list[_Asked]]) -> list[tuple[list[_Asked], list[int]]]:
    """Pictures grouped by what is asked of them, each question once."""
    members: dict[tuple[_Asked, ...], list[int]] = {}
    for index, row in enumerate(asked):
        members.setdefault(tuple(dict.fromkeys(row)), []).append(index)
    return [(list(row), indices) for row, indices in members.items()]


def _subset(images: ImageBatch, members: list[int]) -> ImageBatch:
    sizes, geometries = (tuple(values[i] for i in members) for values in (images.sizes, images.geometries))
    return ImageBatch(images.pixels[members], sizes, geometries)  # type: ignore[arg-type]


def _joined(columns: list[list[Attribution]]) -> Attribution:
    """Attributions ``[1, 1, h, w]`` by question and picture, as one ``[T, B, h, w]``."""

    def join(name: str) -> Tensor | None:
        rows = [[getattr(attribution, name) for attribution in row] for row in columns]
        return None if rows[0][0] is None else torch.cat([torch.cat(row, dim=1) for row in rows])

    values = join("values")
    assert values is not None
    return replace(columns[0][0], values=values, error=join("error"), negative=join("negative"))


def _pick(attribution: Attribution, question: int, picture: int) -> Attribution:
    def one(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[question : question + 1, picture : picture + 1]

    values = attribution.values[question : question + 1, picture : picture + 1]
    return replace(attribution, values=values, error=one(attribution.error), negative=one(attribution.negative))


def _heatmap(
    subject: _Subject,
    images: ImageBatch,
    picture: Tensor,
    question: _Asked,
    attribution: Attribution,
    logits: Tensor,
    verdict: Verdict | None,
) -> Heatmap:
    values, explainer = attribution.values[0, 0], subject.explainer
    if not values.isfinite().all():
        raise ExplainError(f"method {explainer.name!r} gave values that are not finite", remedy="try float32 weights")
    canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
    original, seen = to_original(values.detach(), canvas, images.geometries[0])
    negative = _number(attribution.negative)
    score = logits[question.label] - (0 if question.against is None else logits[question.against])
    return Heatmap(
        map=original.cpu(),
        seen=seen.cpu(),
        image=picture,
        is_signed=explainer.is_signed,
        is_class_agnostic=explainer.is_class_agnostic,
        name=explainer.name,
        method=repr(explainer),
        of=question.words(subject.classes),
        score=float(score),
        layer=attribution.layer,
        error=_number(attribution.error),
        negative=negative,
        blank=_blank_reason(values, negative),
        verdict=verdict,
        manifest={
            "model": type(subject.model).__name__,
            "method": repr(explainer),
            "score": repr(question.score()),
            "layer": attribution.layer and subject.spec.layers[attribution.layer].path,
            "canvas": list(canvas),
            "seed": getattr(explainer, "seed", None),
            "saccade": version("saccade"),
            "torch": torch.__version__,
        },
        notes=attribution.notes,
    )


def _blank_reason(values: Tensor, negative: float | None) -> str | None:
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


def _resolve(question: Question, logits: Tensor, classes: Classes) -> int:
    if question is None:
        return int(logits.argmax())
    if isinstance(question, Classification):
        # Joined by name: the prediction may come from a model with another order of classes.
        return classes.id(question.name)
    return _label(question, classes)


def _label(question: str | int, classes: Classes) -> int:
    if isinstance(question, str):
        return classes.id(question)
    if not 0 <= question < len(classes):
        raise InputError(f"class {question} does not exist", where="of", expected=f"0 to {len(classes) - 1}")
    return int(question)
