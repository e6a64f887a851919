"""What can be asked of a detector about one picture: an object that it found, one side of its box, its mask.

Objects are numbered from 0 as the model lists them, likeliest first. A detection made earlier can be asked about too:
its candidate is looked up, and where it is not there any more, that is said instead of explaining another.

N objects · H, W canvas
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.explanation.boxes import Found, Watched
from saccade.explanation.boxscores import (
    MAX_SHIFT,
    SIDES,
    AskedBox,
    DetectionScore,
    MaskScore,
    Side,
    SideScore,
)
from saccade.explanation.questions import BOX, Asked, Question, itself, label_of
from saccade.models.detector import Candidates, MaskEvidence
from saccade.ops.boxes import clip, map_to_canvas
from saccade.types import Classes, Detections, ImageBatch

EXPECTED = "an object such as box:0, box:0/left or mask:0, or the name of a class that was found"


class _Parsed(NamedTuple):
    number: int
    side: Side | None
    is_mask: bool


class BoxQuestions:
    """Questions to a detector about one picture.

    Args:
        model: the detector.
        found: what it says of the picture.
        images: the picture.
        against: class that the explained one is contrasted with, by name or label.
    """

    def __init__(self, model: Watched, found: Found, images: ImageBatch, against: str | int | None) -> None:
        self._model, self.found, self.images = model, found, images
        self.classes: Classes = model.classes
        self.candidates: Candidates = found.candidates[0]
        self.against = None if against is None else label_of(against, self.classes)

    @cached_property
    def detections(self) -> Detections:
        """The objects of the picture, likeliest first."""
        return self._model.detections(self.found, self.images)[0]

    def ask(self, question: Question) -> Asked:
        """One question.

        Raises:
            InputError: where there is no such object, or the model does not find it any more.
        """
        if isinstance(question, tuple) and isinstance(question[0], Detections):
            return self._earlier(question[0], int(question[1]))
        if question is None:
            return self._ask(self.detections, 0, None, is_mask=False)
        if isinstance(question, int):
            return self._ask(self.detections, question, None, is_mask=False)
        if isinstance(question, str) and question not in self.classes.names:
            parsed = parsed_box(question)
            if parsed is not None:
                return self._ask(self.detections, parsed.number, parsed.side, is_mask=parsed.is_mask)
        if isinstance(question, str):
            return self._likeliest(label_of(question, self.classes))
        kind = type(question).__name__
        raise InputError(f"a {kind} is no question to a detector", where="of", expected=EXPECTED)

    def located(self, given: Detections) -> tuple[Tensor, Tensor]:
        """Boxes ``[N, 4]`` on the canvas, and the candidate ``[N]`` int64 of each of some detections.

        Raises:
            InputError: where they are of other classes, or one is not found any more.
        """
        if given.classes != self.classes:
            raise InputError("these detections are of other classes", where="of", remedy="predict with this model")
        boxes = map_to_canvas(given.boxes.cpu().float(), self.images.geometries[0])
        every = self.candidates.boxes.detach()
        columns = torch.zeros_like(given.labels) if every.shape[1] == 1 else given.labels
        sources = given.source.to(every.device).clamp(max=max(len(every) - 1, 0))
        if len(boxes) and len(every):
            own = clip(every[sources, columns.to(every.device)].float(), self.images.sizes[0])
            is_moved = (own - boxes.to(own)).abs().amax(1) > MAX_SHIFT
        else:
            is_moved = torch.ones(len(boxes), dtype=torch.bool)
        for index in torch.nonzero(is_moved)[:, 0].tolist():
            sources[index] = self._candidate(boxes[index], int(given.labels[index]), int(given.source[index]), index)
        return boxes, sources

    def _likeliest(self, label: int) -> Asked:
        places = torch.nonzero(self.detections.labels == label)[:, 0]
        if not len(places):
            there = sorted({self.detections.name(index) for index in range(len(self.detections))})
            raise InputError(
                f"no {self.classes[label]!r} was found in this picture",
                where="of",
                expected=f"a class that is there: {', '.join(there)}" if there else None,
                remedy="why_missed tells why an object was not found",
            )
        return self._ask(self.detections, int(places[0]), None, is_mask=False)

    def _earlier(self, given: Detections, index: int) -> Asked:
        if given.classes != self.classes:
            raise InputError("these detections are of other classes", where="of", remedy="predict with this model")
        _check_index(index, len(given))
        return self._ask(given, index, None, is_mask=False)

    def _ask(self, given: Detections, index: int, side: Side | None, *, is_mask: bool) -> Asked:
        _check_index(index, len(given))
        label = int(given.labels[index])
        canvas = (int(self.images.pixels.shape[-2]), int(self.images.pixels.shape[-1]))
        box = map_to_canvas(given.boxes[index].cpu().float()[None], self.images.geometries[0])[0]
        source = self._candidate(box, label, int(given.source[index]), index)
        name = f"{self.classes[label]} {float(given.scores[index]):.2f} (box {index})"
        asked = AskedBox(box, label, source, _filled(box, canvas))
        key = (tuple(box.tolist()), label, source, side, is_mask, self.against)
        if (side is not None or is_mask) and self.against is not None:
            what = "a mask" if is_mask else "a side"
            raise InputError(f"{what} has no class to be contrasted with", where="against", remedy="ask about box:N")
        if label == self.against:
            raise itself(self.classes[label])
        if is_mask:
            cells, covered = self._mask(label, source, canvas)
            asked = AskedBox(box, label, source, covered)
            return Asked(key, MaskScore(asked, cells), f"mask of {name}", covered)
        if side is not None:
            return Asked(key, SideScore(asked, side), f"{side} side of {name}", asked.mask)
        rather = "" if self.against is None else f" rather than {self.classes[self.against]}"
        return Asked(key, DetectionScore(asked, self.against), name + rather, asked.mask)

    def _candidate(self, box: Tensor, label: int, source: int, index: int) -> int:
        """The candidate whose box is the asked one: that at ``source``, or another, where a faster copy had counted.

        Raises:
            InputError: where there is none.
        """
        shared = self.candidates.boxes.shape[1] == 1
        boxes = clip(self.candidates.boxes[:, 0 if shared else label].detach().float(), self.images.sizes[0])
        apart = (boxes - box.to(boxes)).abs().amax(1)
        if source < len(apart) and float(apart[source]) <= MAX_SHIFT:
            return source
        if len(apart) and float(apart.min()) <= MAX_SHIFT:
            return int(apart.argmin())
        nearest = f"; the nearest is {float(apart.min()):.1f} pixels off" if len(apart) else ""
        raise InputError(
            f"the model has no candidate at box {index}{nearest}",
            where="of",
            expected="a box that this model found in this picture",
            remedy="predict again with this model and speed='exact'",
        )

    def _mask(self, label: int, source: int, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The cells of a detection's mask, and its pixels on the canvas."""
        from saccade.ops.paste import paste

        if self.found.masks is None:
            raise InputError("this model gives boxes only", where="of", remedy="ask about box:N")
        evidence: MaskEvidence = self.found.masks[0]
        places = torch.nonzero((evidence.source == source) & (evidence.labels == label))[:, 0]
        cells = evidence.logits[places[0]].detach() > 0 if len(places) else torch.zeros(1, dtype=torch.bool)
        if not bool(cells.any()):
            raise InputError("the mask of this object is empty", where="of", remedy="ask about its box")
        pasted = paste(evidence.logits[places[:1]].detach().sigmoid(), evidence.boxes[places[:1]], canvas)
        covered = pasted.to("cpu")[0]
        return cells.cpu(), covered if bool(covered.any()) else _filled(evidence.boxes[places[0]].cpu(), canvas)


def parsed_box(text: str) -> _Parsed | None:
    """What ``box:3``, ``box:3/left`` or ``mask:3`` asks; None for another text.

    Raises:
        InputError: where the side does not exist.
    """
    match = BOX.fullmatch(text.strip())
    if match is None:
        return None
    kind, index, side = match[1].lower(), int(match[2]), match[3] and match[3].lower()
    if side is not None and (side not in SIDES or kind == "mask"):
        raise InputError(f"{text!r} asks about no side", where="of", expected=f"box:{index}/ and {', '.join(SIDES)}")
    return _Parsed(index, side, kind == "mask")


def _check_index(index: int, count: int) -> None:
    if not count:
        raise InputError(
            "the model finds nothing in this picture", where="of", remedy="why_missed tells why an object was not found"
        )
    if not 0 <= index < count:
        raise InputError(f"box {index} does not exist", where="of", expected=f"0 to {count - 1}, likeliest first")


def _filled(box: Tensor, canvas: tuple[int, int]) -> Tensor:
    """The pixels ``[H, W]`` bool that a box touches."""
    left, top, right, bottom = box.tolist()
    mask = torch.zeros(canvas, dtype=torch.bool)
    rows = slice(max(math.floor(top), 0), max(math.ceil(bottom), math.floor(top) + 1))
    columns = slice(max(math.floor(left), 0), max(math.ceil(right), math.floor(left) + 1))
    mask[rows, columns] = True
    return mask
