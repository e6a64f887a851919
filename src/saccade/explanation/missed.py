"""Why an object was missed: the raw candidate that came closest to it, and what became of that candidate.

An object is found where a detection of its class overlaps it by half. Between the raw candidates and the detections
lie a threshold, suppression and a limit (``models.detector.select``), so one of a few things has happened, and which
one can be looked up.

R raw candidates of one picture · K classes · N objects
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from saccade.data.decode import read_image
from saccade.explanation.adapt import model_device
from saccade.explanation.record import undisturbed
from saccade.models.detector import Candidates, Detector, Kept, Selection, select
from saccade.ops.boxes import box_iou, clip, is_large, map_to_canvas
from saccade.types import BoxTarget, Classes

Cause = Literal["found", "no candidate", "another class", "low score", "too small", "suppressed", "crowded out"]
"""What happened: found after all; nothing there to begin with; seen as something else; seen, but too unsure; seen, but
shorter than the shortest side; seen, but another detection of the class took its place; seen, but likelier ones filled
the list."""

HALF = 0.5
"""Overlap from which a box is about an object."""


@dataclass(frozen=True)
class Missed:
    """What became of one object.

    Attributes:
        cause: what happened.
        name: class of the object.
        sentence: the same for people.
        source: the candidate that came closest: of those that overlap the object by half the one with the highest
            score of its class, else the one that overlaps it most; None where the model has no candidate at all.
        iou: overlap of that candidate with the object.
        score: its score of the object's class.
        seen_as: the class that it is likeliest of.
        seen_score: its score of that class.
        by: place in the predictions of the detection that suppressed it, or that found the object; None for others.
    """

    cause: Cause
    name: str
    sentence: str
    source: int | None = None
    iou: float = 0.0
    score: float = 0.0
    seen_as: str | None = None
    seen_score: float = 0.0
    by: int | None = None


def why_missed(model: Detector[Any], image: Any, target: BoxTarget, *, min_score: float | None = None) -> list[Missed]:
    """What became of every object of a picture.

    Args:
        model: the detector; left as it is.
        image: path, bytes, PIL picture, uint8 array or tensor.
        target: the objects, in the pixels of the picture and in the labels of the model.
        min_score: the least score that counts; None: that of the model's own selection.
    """
    device, dtype = model_device(model)
    images = model.preprocess([read_image(image)]).to(device, dtype)
    with undisturbed(model), torch.no_grad():
        candidates = model.candidates(model(images), images)[0]
    candidates = Candidates(*(part.detach().float().cpu() for part in candidates))
    boxes = map_to_canvas(target.boxes.cpu(), images.geometries[0])
    size, selection = images.sizes[0], model.config.selection
    if min_score is not None:
        selection = replace(selection, min_score=max(min_score, selection.min_score))
    return diagnose(candidates, size, selection, boxes, target.labels.tolist(), model.classes)


def diagnose(
    candidates: Candidates,
    size: tuple[int, int],
    selection: Selection,
    boxes: Tensor,
    labels: Sequence[int],
    classes: Classes,
) -> list[Missed]:
    """What became of objects ``boxes [N, 4]`` on the canvas of classes ``labels``.

    Args:
        candidates: of the picture.
        size: ``(h, w)`` of the picture on the canvas.
        selection: how the model chooses among them.
        boxes: the objects.
        labels: their classes.
        classes: names.
    """
    unlimited = select(candidates, size, replace(selection, max_detections=max(candidates.scores.numel(), 1)))
    return [
        _Case(candidates, size, selection, unlimited, box, label, classes).told()
        for box, label in zip(boxes, labels, strict=True)
    ]


class _Case:
    """One object with all that is known of it.

    Args:
        candidates: of the picture.
        size: of it on the canvas.
        selection: how the model chooses.
        kept: what it would choose without a limit, likeliest first.
        box: ``[4]`` of the object on the canvas.
        label: its class.
        classes: names.
    """

    def __init__(
        self,
        candidates: Candidates,
        size: tuple[int, int],
        selection: Selection,
        kept: Kept,
        box: Tensor,
        label: int,
        classes: Classes,
    ) -> None:
        self.selection, self.kept, self.label, self.classes = selection, kept, label, classes
        self.name = classes[label]
        self.boxes = clip(candidates.boxes[:, label if candidates.boxes.shape[1] > 1 else 0], size)
        self.scores = candidates.scores
        self.overlaps = box_iou(box[None], self.boxes)[0]
        self.kept_overlaps = box_iou(box[None], kept.boxes)[0]

    def told(self) -> Missed:
        """What happened."""
        found = torch.nonzero((self.kept.labels == self.label) & (self.kept_overlaps >= HALF))[:, 0].tolist()
        listed = [place for place in found if place < self.selection.max_detections]
        if listed:
            return self._found(listed[0])
        if found:
            return self._crowded_out(found[0])
        if not len(self.boxes):
            return Missed("no candidate", self.name, f"{self.name}: the model has no candidate anywhere")
        near = torch.nonzero(self.overlaps >= HALF)[:, 0]
        if not len(near):
            return self._nowhere(int(self.overlaps.argmax()))
        best = int(near[self.scores[near, self.label].argmax()])
        score = float(self.scores[best, self.label])
        if score < self.selection.min_score:
            return self._unlikely(best)
        if not bool(is_large(self.boxes[best], max(self.selection.min_side, 1e-3))):
            told = f"its candidate has a side below {self.selection.min_side:g} pixels"
            return self._missed("too small", best, told)
        return self._suppressed(best)

    def _found(self, place: int) -> Missed:
        overlap, score = float(self.kept_overlaps[place]), float(self.kept.scores[place])
        told = f"it was found: box {place}, score {score:.2f}, overlaps it by {overlap:.2f}"
        return self._missed("found", int(self.kept.source[place]), told, by=place)

    def _crowded_out(self, place: int) -> Missed:
        score, most = float(self.kept.scores[place]), self.selection.max_detections
        told = f"its candidate has score {score:.2f}, but {place} likelier ones fill the list of {most}"
        return self._missed("crowded out", int(self.kept.source[place]), told)

    def _nowhere(self, nearest: int) -> Missed:
        overlap = float(self.overlaps[nearest])
        told = f"no candidate overlaps it by half; the nearest overlaps it by {overlap:.2f}"
        if overlap == 0:
            told = "no candidate overlaps it at all"
        return self._missed("no candidate", nearest, told)

    def _unlikely(self, best: int) -> Missed:
        score, least = float(self.scores[best, self.label]), self.selection.min_score
        likeliest = int(self.scores[best].argmax())
        seen = float(self.scores[best, likeliest])
        if likeliest != self.label and seen >= least:
            told = (
                f"its best candidate is seen as {self.classes[likeliest]} ({seen:.2f}), as {self.name} only {score:.2f}"
            )
            return self._missed("another class", best, told)
        told = f"its best candidate has score {score:.3f}, below the least that counts, {least:g}"
        return self._missed("low score", best, told)

    def _suppressed(self, best: int) -> Missed:
        overlaps = box_iou(self.boxes[best][None], self.kept.boxes)[0]
        likelier = (self.kept.labels == self.label) & (overlaps > self.selection.nms_iou)
        places = torch.nonzero(likelier)[:, 0]
        score = float(self.scores[best, self.label])
        if not len(places):
            return self._missed("suppressed", best, f"its best candidate (score {score:.2f}) was suppressed")
        by = int(places[0])
        told = (
            f"its best candidate (score {score:.2f}) was suppressed by box {by} "
            f"(score {float(self.kept.scores[by]):.2f}), which overlaps that candidate by {float(overlaps[by]):.2f} "
            f"and the object only by {float(self.kept_overlaps[by]):.2f}"
        )
        return self._missed("suppressed", best, told, by=by)

    def _missed(self, cause: Cause, source: int, told: str, *, by: int | None = None) -> Missed:
        likeliest = int(self.scores[source].argmax())
        return Missed(
            cause,
            self.name,
            f"{self.name}: {told}",
            source,
            float(self.overlaps[source]),
            float(self.scores[source, self.label]),
            self.classes[likeliest],
            float(self.scores[source, likeliest]),
            by,
        )
