"""From pictures and questions to what an explainer takes: the canvas, and one score for each question and picture.

B pictures · H, W canvas
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError
from saccade.explanation.adapt import AdaptedModel
from saccade.explanation.attribution import ScoreFn
from saccade.explanation.boxes import Found, Watched
from saccade.explanation.boxquestions import BoxQuestions
from saccade.explanation.boxscores import AskedBox
from saccade.explanation.questions import Asked, ClassQuestions, Question, RegionQuestions, own_score, pixel_of
from saccade.ops.image import Preprocess
from saccade.types import Classes, Geometry, ImageBatch

MAX_REGION_PIXELS = 1 << 20
"""Largest picture that a segmenter is explained on as a whole; of larger ones the surroundings of a pixel are taken."""


def on_canvas(model: nn.Module, pictures: list[Tensor], of: Sequence[Question]) -> ImageBatch:
    """Pictures as the model sees them; of one that is too large, the surroundings of the pixel that is asked about."""
    preprocess: Preprocess = model.preprocess  # type: ignore[assignment]
    height, width = int(pictures[0].shape[-2]), int(pictures[0].shape[-1])
    if preprocess.policy != "native" or height * width <= MAX_REGION_PIXELS:
        return _filled(preprocess(pictures), model)
    pixels = [pixel_of(question) for question in of]
    if len(of) != 1 or pixels[0] is None:
        raise InputError(
            f"a picture of {width}x{height} pixels is too large to be explained as a whole",
            where="of",
            expected=f"at most {MAX_REGION_PIXELS:,} pixels, or one pixel such as 120,84",
            remedy="ask for one pixel, or cut out the part that matters",
        )
    side = math.isqrt(MAX_REGION_PIXELS)
    left, top = (
        min(max(place - side // 2, 0), max(whole - side, 0))
        for place, whole in zip(pixels[0], (width, height), strict=True)
    )
    part = preprocess([pictures[0][:, top : top + side, left : left + side]])
    return _filled(replace(part, geometries=(Geometry((height, width), offset=(-top, -left)),)), model)


def _filled(images: ImageBatch, model: nn.Module) -> ImageBatch:
    """The canvas enlarged as a segmenter would enlarge it inside, so that its grids cover the canvas exactly."""
    stride: int = getattr(model, "stride", 1)
    below, beside = (-int(side) % stride for side in images.pixels.shape[-2:])
    if not below and not beside:
        return images
    return replace(images, pixels=F.pad(images.pixels, (0, beside, 0, below), mode="replicate"))


def ask(
    model: nn.Module, outputs: Any, images: ImageBatch, of: Sequence[Question], against: str | int | None
) -> list[list[Asked]]:
    """Every question about every picture, with its score."""
    functions = [callable(question) for question in of]
    if any(functions) and against is not None:
        raise InputError("a score function has no class to be contrasted with", where="against", remedy="leave it out")
    if all(functions):
        return [[_own(model, question) for question in of if callable(question)]] * len(images)
    if isinstance(model, Watched) and any(functions):
        raise InputError("objects and score functions are asked about together", where="of", remedy="ask twice")
    usual = _asker(model, outputs, images, against)
    return [[_own(model, q) if callable(q) else usual(q, index) for q in of] for index in range(len(images))]


class _OfOutputs:
    """A caller's score of the raw outputs of a detector, which ``Watched`` gives as a part of ``Found``.

    Everything else about the score, such as its name or its region, is what it was.

    Args:
        score: of the raw outputs.
    """

    def __init__(self, score: ScoreFn) -> None:
        self._score = score
        self.__module__ = getattr(score, "__module__", "?")

    def __call__(self, found: Found) -> Tensor:
        return self._score(found.outputs)

    def __getattr__(self, name: str) -> Any:
        if name == "_score":  # of a copy that is being made
            raise AttributeError(name)
        value = getattr(self._score, name)
        return _OfOutputs(value) if name == "hidden" else value

    def __repr__(self) -> str:
        return repr(self._score)


def _own(model: nn.Module, score: ScoreFn) -> Asked:
    """The question that a caller's function is, in the form that fits what the model gives here."""
    asked = own_score(score)
    # Our own scores of objects read candidates.
    is_raw = isinstance(model, Watched) and not isinstance(getattr(score, "asked", None), AskedBox)
    return replace(asked, score=_OfOutputs(score)) if is_raw else asked


def _asker(
    model: nn.Module, outputs: Any, images: ImageBatch, against: str | int | None
) -> Callable[[Question, int], Asked]:
    """What turns a question about the picture at an index into a score, for the kind of model that this is."""
    if isinstance(model, AdaptedModel) and model.score is not None:
        score = model.score

        def only(question: Question, index: int) -> Asked:
            if question is not None:
                raise InputError(
                    "this model was adapted with a score function, so it has no classes to ask about",
                    where="of",
                    remedy="leave `of` out, or give another function of its outputs",
                )
            return own_score(score)

        return only
    classes: Classes = model.classes  # type: ignore[assignment]
    if getattr(model, "task", None) == "semantic":
        regions = RegionQuestions(outputs, images, classes, against)
        return lambda question, index: regions.ask(question)
    if isinstance(model, Watched):
        boxes = BoxQuestions(model, outputs, images, against)
        return lambda question, index: boxes.ask(question)
    return ClassQuestions(outputs, classes, against).ask
