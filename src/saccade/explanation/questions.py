"""What can be asked of a prediction, and the score that each question stands for.

Of a classifier: a class. Of a segmenter: a region of the picture and the class that it got - one pixel, one connected
part, or all pixels of a class. Of a detector: an object (``boxquestions``).

H, W canvas
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.explanation.attribution import ScoreFn
from saccade.explanation.boxscores import SIDES
from saccade.explanation.scores import (
    class_score,
    contrast_score,
    logits_of,
    map_logits_of,
    region_of,
    region_score,
)
from saccade.ops.masks import Component, connected_components
from saccade.types import Classes, Classification, Detections, ImageBatch

Question = str | int | tuple[int, int] | tuple[Detections, int] | Tensor | Classification | ScoreFn | None
"""What to explain.

Of a classifier: a class by name or label, a prediction's likeliest class, or (None) the predicted class. Of a
segmenter: all pixels of a class by name or label, the pixel ``(left, top)`` or ``"120,84"``, the connected part
``"component:3"`` (1 is the largest), the pixels of a mask ``[h, w]`` bool, or (None) the class that covers most beside
a background. Of a detector: an object by its place in the predictions, ``"box:3"`` or 3, counted from 0, or as
``(detections, 3)``; one of its sides, ``"box:3/left"``; its mask, ``"mask:3"``; the likeliest object of a class by
name, or (None) of all.

Of any model: a function of its raw outputs for B pictures to one number each, ``[B]``, differentiable; what is drawn is
then why that number is what it is.
"""

_PIXEL = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*")
_COMPONENT = re.compile(r"component\s*[:#]?\s*(\d+)", re.IGNORECASE)
BOX = re.compile(r"(box|mask)\s*[:#]?\s*(\d+)(?:\s*/\s*(\w+))?", re.IGNORECASE)
"""An object, one of its sides, or its mask, such as ``box:3/left``."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One question about one picture.

    Attributes:
        key: equal for questions that mean the same of every picture.
        score: what is explained.
        words: the question for people.
        region: ``[H, W]`` bool on the canvas; None where the whole picture is meant.
    """

    key: Any
    score: ScoreFn
    words: str
    region: Tensor | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Asked) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def plain(question: Question) -> Question:
    """A question as it is, but whole numbers of other libraries (``np.int64``, a tensor of one) as Python's own."""
    if (
        isinstance(question, str | int | tuple)
        or callable(question)
        or (isinstance(question, Tensor) and question.ndim)
    ):
        return question
    try:
        return operator.index(question)  # type: ignore[arg-type]
    except TypeError:
        return question


def described(score: ScoreFn) -> str:
    """A score for a manifest: functions by their name, as their addresses mean nothing to anyone else."""
    name = getattr(score, "__qualname__", None)
    return repr(score) if name is None else f"{getattr(score, '__module__', '?')}.{name}"


def own_score(score: ScoreFn) -> Asked:
    """The question that a caller's own score function is; its ``__name__`` tells it in words."""
    name = getattr(score, "__name__", None)
    words = repr(score) if name is None else "the score that was given" if name == "<lambda>" else name
    return Asked(("own", id(score)), score, words, region_of(score))


class ClassQuestions:
    """Questions to a classifier about the pictures of one batch.

    Args:
        outputs: raw outputs.
        classes: of the model.
        against: class that the explained one is contrasted with, by name or label.
    """

    def __init__(self, outputs: Any, classes: Classes, against: str | int | None) -> None:
        self.logits, self.classes = logits_of(outputs).float(), classes
        self.against = None if against is None else label_of(against, classes)

    def ask(self, question: Question, index: int) -> Asked:
        """One question about the picture at ``index``.

        Raises:
            InputError: where the class does not exist, or is contrasted with itself.
        """
        label = self._label(question, index)
        if self.against is None:
            return Asked((label, None), class_score(label), self.classes[label])
        if label == self.against:
            raise itself(self.classes[label])
        words = f"{self.classes[label]} rather than {self.classes[self.against]}"
        return Asked((label, self.against), contrast_score(label, self.against), words)

    def _label(self, question: Question, index: int) -> int:
        if question is None:
            return int(self.logits[index].argmax())
        if isinstance(question, Classification):
            # Joined by name: the prediction may come from a model with another order of classes.
            return self.classes.id(question.name)
        if isinstance(question, str | int):
            return label_of(question, self.classes)
        expected = "the name or label of a class"
        raise InputError("a classifier has no regions to ask about", where="of", expected=expected)


class RegionQuestions:
    """Questions to a segmenter about one picture.

    Args:
        outputs: raw outputs for this one picture.
        images: the picture.
        classes: of the model.
        against: class that the explained one is contrasted with, by name or label.
    """

    def __init__(self, outputs: Any, images: ImageBatch, classes: Classes, against: str | int | None) -> None:
        height, width = images.sizes[0]
        self.labels = map_logits_of(outputs)[0].argmax(dim=0).cpu()
        self.is_content = torch.zeros(self.labels.shape, dtype=torch.bool)
        self.is_content[:height, :width] = True
        self.images, self.classes = images, classes
        self.against = None if against is None else label_of(against, classes)

    @cached_property
    def components(self) -> list[Component]:
        """The connected parts of the predicted map on the canvas, backgrounds left out, largest first."""
        size = self.images.sizes[0]
        return connected_components(self.labels[: size[0], : size[1]], self.classes.backgrounds)

    def ask(self, question: Question) -> Asked:
        """One question.

        Raises:
            InputError: where no pixel got the class, or the pixel or part does not exist.
        """
        if isinstance(question, str) and question not in self.classes.names:
            parsed = _parsed(question)
            if isinstance(parsed, re.Match):
                return self._component(int(parsed[1]))
            question = parsed
        if isinstance(question, tuple) and not isinstance(question[0], Detections):
            return self._pixel(question[0], question[1])
        if isinstance(question, Tensor):
            return self._mask(question)
        if isinstance(question, str | int):
            return self._class(label_of(question, self.classes))
        if question is None:
            return self._class(self._main())
        kind = type(question).__name__
        raise InputError(f"a {kind} is no question to a segmenter", where="of", expected="a class, pixel or component")

    def _main(self) -> int:
        counts = torch.bincount(self.labels[self.is_content], minlength=len(self.classes))
        for label in self.classes.backgrounds:
            if int(counts.sum()) > int(counts[label]):
                counts[label] = 0
        return int(counts.argmax())

    def _class(self, label: int) -> Asked:
        region = (self.labels == label) & self.is_content
        if not bool(region.any()):
            found = torch.unique(self.labels[self.is_content]).tolist()
            raise InputError(
                f"no pixel was given the class {self.classes[label]!r}",
                where="of",
                expected=f"a class that is there: {', '.join(self.classes[k] for k in found)}",
                remedy="ask for one pixel, such as --of 120,84, to see why it got another class",
            )
        return self._asked(label, region, self.classes[label])

    def _pixel(self, left: int, top: int) -> Asked:
        height, width = self.images.geometries[0].original_size
        if not (0 <= left < width and 0 <= top < height):
            raise InputError(
                f"pixel {left},{top} lies outside of the picture",
                where="of",
                expected=f"at most {width - 1},{height - 1}",
            )
        centre = self.images.geometries[0].to_canvas(torch.tensor([top + 0.5, left + 0.5]))
        row, column = (
            min(max(int(place), 0), size - 1) for place, size in zip(centre, self.images.sizes[0], strict=True)
        )
        region = torch.zeros_like(self.is_content)
        region[row, column] = True
        label = int(self.labels[row, column])
        return self._asked(label, region, f"{self.classes[label]} at {left},{top}")

    def _component(self, number: int) -> Asked:
        if not 1 <= number <= len(self.components):
            there = (
                f"1 to {len(self.components)}" if self.components else "a class beside a background, which no pixel got"
            )
            raise InputError(f"component {number} does not exist", where="of", expected=there)
        part = self.components[number - 1]
        region = torch.zeros_like(self.is_content)
        size = self.images.sizes[0]
        region[: size[0], : size[1]] = part.mask(size)
        return self._asked(part.label, region, f"{self.classes[part.label]} component {number}")

    def _mask(self, mask: Tensor) -> Asked:
        original = self.images.geometries[0].original_size
        if tuple(mask.shape) != original or mask.dtype != torch.bool:
            got = f"the mask is {tuple(mask.shape)} {mask.dtype}"
            raise InputError(got, where="of", expected=f"{original} bool, as the picture")
        rows, columns = torch.meshgrid(*(torch.arange(side) + 0.5 for side in self.labels.shape), indexing="ij")
        places = self.images.geometries[0].to_original(torch.stack([rows, columns], -1)).floor().long()
        inside = (places >= 0).all(-1) & (places < torch.tensor(original)).all(-1) & self.is_content
        region = torch.zeros_like(self.is_content)
        region[inside] = mask.cpu()[places[inside][:, 0], places[inside][:, 1]]
        if not bool(region.any()):
            raise InputError("the mask is empty", where="of", expected="at least one pixel of the picture")
        label = int(torch.mode(self.labels[region]).values)
        return self._asked(label, region, f"{self.classes[label]} in a mask")

    def _asked(self, label: int, region: Tensor, words: str) -> Asked:
        if label == self.against:
            raise itself(self.classes[label])
        rather = "" if self.against is None else f" rather than {self.classes[self.against]}"
        score = region_score(label, region, self.against)
        # Two masks have the same words.
        return Asked((words, rather, np.packbits(region.numpy()).tobytes()), score, words + rather, region)


def check_question(question: str, classes: Classes, *, has_regions: bool, has_boxes: bool = False) -> None:
    """Refuse a question that no picture could answer, before any picture is looked at.

    Args:
        question: as it was written.
        classes: of the model.
        has_regions: whether the model labels pixels.
        has_boxes: whether it finds objects.

    Raises:
        UnknownNameError: naming the nearest class.
    """
    if question in classes.names or (has_regions and not isinstance(_parsed(question), str)):
        return
    box = BOX.fullmatch(question.strip()) if has_boxes else None
    if box is not None and (box[3] is None or box[3].lower() in SIDES):
        return
    classes.id(question)


def pixel_of(question: Question) -> tuple[int, int] | None:
    """The pixel that a question is about, ``(left, top)``; None where it is about something else."""
    parsed = _parsed(question) if isinstance(question, str) else question
    return (parsed[0], parsed[1]) if isinstance(parsed, tuple) and not isinstance(parsed[0], Detections) else None


def label_of(question: str | int, classes: Classes) -> int:
    """The label of a class given by name or label.

    Raises:
        UnknownNameError: with the nearest name.
        InputError: where there is no such label.
    """
    if isinstance(question, str):
        return classes.id(question)
    if not 0 <= question < len(classes):
        raise InputError(f"class {question} does not exist", where="of", expected=f"0 to {len(classes) - 1}")
    return int(question)


def _parsed(text: str) -> str | tuple[int, int] | re.Match[str]:
    """A pixel, a component, or the text itself."""
    if pixel := _PIXEL.fullmatch(text):
        return int(pixel[1]), int(pixel[2])
    return _COMPONENT.fullmatch(text) or text


def itself(name: str) -> InputError:
    """What to say where a class is contrasted with itself."""
    remedy = "say with `of` which class to explain, or choose another `against`"
    return InputError(f"class {name!r} is contrasted with itself", where="against", remedy=remedy)
