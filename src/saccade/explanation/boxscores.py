"""Score functions about one object: why its class, why each side lies there, why these pixels.

A detection is one raw candidate of the model, and its score is read there: the log odds of its class, the coordinate of
a side, the logits of its mask. Where the picture is changed, proposals move and the candidate's number means another
place. So each score has a form for changed pictures, ``hidden``, that looks for the object where it was, after D-RISE
(Petsiuk et al. 2021, arXiv 2006.03204): the largest product, over all candidates, of overlap with the asked box and
score of its class. Differs from the paper: the score of the asked class, not the similarity of all class scores.

B batch · R raw candidates of one picture · K classes · N objects with masks · S cells per side of a mask · H, W canvas
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from saccade.errors import ExplainError
from saccade.explanation.attribution import ScoreFn
from saccade.explanation.boxes import Found
from saccade.models.detector import Candidates, MaskEvidence
from saccade.ops.boxes import box_iou, clip
from saccade.ops.paste import paste

Side = Literal["left", "top", "right", "bottom"]
SIDES: tuple[Side, ...] = ("left", "top", "right", "bottom")
MAX_SHIFT = 1.0
"""Pixels of the canvas that a candidate's box may be off and still be the asked one."""

LEAST_SHARE = 1e-4
"""A share below this counts as this much, so that log odds stay finite; above 1 less this likewise."""


@dataclass(frozen=True, eq=False)
class AskedBox:
    """One detection.

    Attributes:
        box: ``[4]`` xyxy on the canvas, cut at the picture's border.
        label: its class.
        source: its candidate.
        mask: ``[H, W]`` bool on the canvas, its pixels: those of its mask where that is asked about, else of its box.
    """

    box: Tensor
    label: int
    source: int
    mask: Tensor

    def __repr__(self) -> str:
        box = [round(place, 1) for place in self.box.tolist()]
        return f"label={self.label}, source={self.source}, box={box}"


@dataclass(frozen=True, eq=False, repr=False)
class DetectionScore:
    """How far the class of a detection lies above all others, at its candidate: log odds.

    On a changed picture the candidate that took its place is read: the one with the largest product of overlap and
    score.

    Attributes:
        asked: the detection.
        against: the one class that its class is contrasted with; None: all others and background.
    """

    asked: AskedBox
    against: int | None = None

    reads_candidates_only = True
    """Nothing of masks, so that they need not be computed (``boxes.enough_for``); of the other scores likewise."""

    def __repr__(self) -> str:
        return f"DetectionScore({self.asked!r}{_told(self.against)})"

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""

        def read(candidates: Candidates, size: tuple[int, int]) -> Tensor:
            place = follow(candidates, size, self.asked)
            own = _number_at(candidates.logits, self.asked.label, place)
            return own if self.against is None else own - _number_at(candidates.logits, self.against, place)

        return _each(outputs, read)

    @property
    def mask(self) -> Tensor:
        """``[H, W]`` bool, the region that is asked about."""
        return self.asked.mask

    @property
    def hidden(self) -> ScoreFn:
        """The score of changed pictures."""
        return OverlapScore(self.asked, self.against)


@dataclass(frozen=True, eq=False, repr=False)
class OverlapScore:
    """How surely an object of the class is still found at the asked box, in [0, 1]: D-RISE.

    Attributes:
        asked: the detection.
        against: class whose own overlap score is taken off.
    """

    asked: AskedBox
    against: int | None = None

    reads_candidates_only = True

    def __repr__(self) -> str:
        return f"OverlapScore({self.asked!r}{_told(self.against)})"

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""

        def read(candidates: Candidates, size: tuple[int, int]) -> Tensor:
            own = _largest(_worth(candidates, size, self.asked, self.asked.label), candidates)
            if self.against is None:
                return own
            return own - _largest(_worth(candidates, size, self.asked, self.against), candidates)

        return _each(outputs, read)

    @property
    def unbounded(self) -> ScoreFn:
        """Log odds."""
        if self.against is None:
            return LogOdds(self)
        return LogOdds(OverlapScore(self.asked), OverlapScore(replace(self.asked, label=self.against)))


@dataclass(frozen=True, eq=False, repr=False)
class LogOdds:
    """Scores in [0, 1] where they are to be exponentiated: log odds, as the logits of a classifier are.

    Attributes:
        share: a score in [0, 1].
        against: another, whose log odds are taken off.
    """

    share: ScoreFn
    against: ScoreFn | None = None

    def __repr__(self) -> str:
        rather = "" if self.against is None else f", against={self.against!r}"
        return f"LogOdds({self.share!r}{rather})"

    @property
    def reads_candidates_only(self) -> bool:
        """As the score itself does."""
        return bool(getattr(self.share, "reads_candidates_only", False))

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""
        own = torch.logit(self.share(outputs), eps=LEAST_SHARE)
        return own if self.against is None else own - torch.logit(self.against(outputs), eps=LEAST_SHARE)


@dataclass(frozen=True, eq=False, repr=False)
class SideScore:
    """Where one side of a detection lies, in pixels of the canvas: evidence for it pushes the side right or down.

    Attributes:
        asked: the detection.
        side: which.
    """

    asked: AskedBox
    side: Side

    reads_candidates_only = True
    is_two_sided = True
    """What holds a side in its place pushes it either way, so the size of the evidence counts."""

    def __repr__(self) -> str:
        return f"SideScore({self.asked!r}, side={self.side!r})"

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""

        def read(candidates: Candidates, size: tuple[int, int]) -> Tensor:
            place = follow(candidates, size, self.asked)
            return _number_at(_boxes_as(candidates, self.asked.label), SIDES.index(self.side), place)

        return _each(outputs, read)

    @property
    def mask(self) -> Tensor:
        """``[H, W]`` bool, the region that is asked about."""
        return self.asked.mask

    @property
    def hidden(self) -> ScoreFn:
        """The score of changed pictures."""
        return SideKept(self.asked, self.side)


@dataclass(frozen=True, eq=False, repr=False)
class SideKept:
    """How little a side has moved, from 1 (not at all) to 0 (by the box's length, or there is no such box any more).

    Attributes:
        asked: the detection.
        side: which.
    """

    asked: AskedBox
    side: Side

    reads_candidates_only = True

    def __repr__(self) -> str:
        return f"SideKept({self.asked!r}, side={self.side!r})"

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""
        axis = SIDES.index(self.side)
        length = (self.asked.box[2 + axis % 2] - self.asked.box[axis % 2]).clamp(min=1.0)

        def read(candidates: Candidates, size: tuple[int, int]) -> Tensor:
            place = follow(candidates, size, self.asked)
            if place is None:
                return candidates.logits.sum() * 0.0
            moved = clip(_boxes_as(candidates, self.asked.label)[place].float(), size)[axis] - self.asked.box[axis]
            return (1 - moved.abs() / length).clamp(min=0)

        return _each(outputs, read)

    @property
    def unbounded(self) -> ScoreFn:
        """Log odds."""
        return LogOdds(self)


@dataclass(frozen=True, eq=False, repr=False)
class MaskScore:
    """How surely the pixels of a detection are its own: the mean logit over the cells of its predicted mask.

    Attributes:
        asked: the detection.
        cells: ``[S, S]`` bool, cells of its box that the model gave to it.
    """

    asked: AskedBox
    cells: Tensor

    def __repr__(self) -> str:
        return f"MaskScore({self.asked!r}, cells={int(self.cells.sum())})"

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""
        values = []
        for evidence in _masks(outputs):
            place = self._place(evidence)
            if place is None:
                values.append(evidence.logits.sum() * 0.0)
                continue
            own = evidence.logits[place]
            values.append(own[self.cells.to(own.device)].float().mean())
        return torch.stack(values)

    def _place(self, evidence: MaskEvidence) -> int | None:
        """The asked mask, or that of the same class that overlaps it most."""
        is_own = (evidence.labels == self.asked.label) & (evidence.source == self.asked.source)
        overlap = box_iou(self.asked.box[None].to(evidence.boxes), evidence.boxes.float())[0]
        worth = overlap * (evidence.labels == self.asked.label) * torch.where(is_own & (overlap > 0.9), 2.0, 1.0)
        return int(worth.argmax()) if len(worth) and bool(worth.max() > 0) else None

    @property
    def mask(self) -> Tensor:
        """``[H, W]`` bool, the region that is asked about."""
        return self.asked.mask

    @property
    def hidden(self) -> ScoreFn:
        """The score of changed pictures."""
        return MaskOverlap(self.asked)


@dataclass(frozen=True, eq=False, repr=False)
class MaskOverlap:
    """The largest overlap of the asked mask with the mask of an object of its class, in [0, 1].

    Attributes:
        asked: the detection.
    """

    asked: AskedBox

    def __repr__(self) -> str:
        return f"MaskOverlap({self.asked!r})"

    def __call__(self, outputs: Any) -> Tensor:
        """``[B]``."""
        return torch.stack([self._overlap(evidence) for evidence in _masks(outputs)])

    @property
    def unbounded(self) -> ScoreFn:
        """Log odds."""
        return LogOdds(self)

    def _overlap(self, evidence: MaskEvidence) -> Tensor:
        overlap = box_iou(self.asked.box[None].to(evidence.boxes), evidence.boxes.float())[0]
        chosen = torch.nonzero((evidence.labels == self.asked.label) & (overlap > 0.1))[:, 0]
        best = 0.0
        if len(chosen):
            size = (int(self.asked.mask.shape[0]), int(self.asked.mask.shape[1]))
            masks = paste(evidence.logits[chosen].detach().sigmoid(), evidence.boxes[chosen], size)
            own = self.asked.mask.cpu()
            for mask in masks.to("cpu").dense():
                best = max(best, float((mask & own).sum()) / max(float((mask | own).sum()), 1.0))
        return torch.tensor(best, dtype=torch.float32, device=evidence.logits.device)


@torch.no_grad()
def follow(candidates: Candidates, size: tuple[int, int], asked: AskedBox) -> int | None:
    """The candidate that is the asked detection, or, on a changed picture, took its place; None where none overlaps.

    Args:
        candidates: of one picture.
        size: ``(h, w)`` of it on the canvas.
        asked: the detection.
    """
    boxes = clip(_boxes_as(candidates, asked.label).float(), size)
    if asked.source < len(boxes):
        apart = (boxes[asked.source] - asked.box.to(boxes)).abs().max()
        if float(apart) <= MAX_SHIFT:
            return asked.source
    worth = _worth(candidates, size, asked, asked.label)
    return int(worth.argmax()) if len(worth) and bool(worth.max() > 0) else None


def places_of(scores: Sequence[ScoreFn], outputs: Any) -> Tensor:
    """The candidate that each score reads in each picture, ``[T, B]`` int64; -1 where there is none.

    Raises:
        ExplainError: where a score is not about an object.
    """
    found = _found(outputs)
    rows = []
    for score in scores:
        asked = getattr(score, "asked", None)
        if not isinstance(asked, AskedBox):
            raise ExplainError(
                f"{score!r} is not about an object", expected="a question about a box", remedy="ask for box:0"
            )
        places = [follow(one, size, asked) for one, size in zip(found.candidates, found.sizes, strict=True)]
        rows.append([-1 if place is None else place for place in places])
    return torch.tensor(rows)


def _worth(candidates: Candidates, size: tuple[int, int], asked: AskedBox, label: int) -> Tensor:
    """Overlap with the asked box times score of a class, ``[R]``; gradients pass through the score."""
    boxes = clip(_boxes_as(candidates, label).detach().float(), size)
    overlap: Tensor = box_iou(asked.box[None].to(boxes), boxes)[0].nan_to_num(0.0)
    return overlap * candidates.scores[:, label].float().nan_to_num(0.0)


def _boxes_as(candidates: Candidates, label: int) -> Tensor:
    """The box of each candidate as an object of a class, ``[R, 4]``."""
    return candidates.boxes[:, label if candidates.boxes.shape[1] > 1 else 0]


def _number_at(values: Tensor, column: int, place: int | None) -> Tensor:
    """One number of one row ``[R, C]``; where there is no row the lowest of them all, from which no gradient leads."""
    if place is not None:
        return values[place, column].float()
    lowest = values[:, column].detach().float().amin() if len(values) else values.new_zeros(())
    return lowest + values.sum() * 0.0


def _largest(worth: Tensor, candidates: Candidates) -> Tensor:
    return worth.max() if len(worth) else candidates.logits.sum() * 0.0


def _each(outputs: Any, read: Callable[[Candidates, tuple[int, int]], Tensor]) -> Tensor:
    """One number per picture, ``[B]``."""
    found = _found(outputs)
    values = [read(candidates, size) for candidates, size in zip(found.candidates, found.sizes, strict=True)]
    return torch.stack([value.float() for value in values])


def _found(outputs: Any) -> Found:
    if not isinstance(outputs, Found):
        raise ExplainError(
            f"the outputs are of type {type(outputs).__name__} and hold no candidates",
            expected="a detector as explain() wraps it",
        )
    return outputs


def _masks(outputs: Any) -> list[MaskEvidence]:
    masks = outputs.masks if isinstance(outputs, Found) else None
    if masks is None:
        raise ExplainError("the model gives no masks", remedy="ask about a box, such as box:0")
    return masks


def _told(against: int | None) -> str:
    return "" if against is None else f", against={against}"
