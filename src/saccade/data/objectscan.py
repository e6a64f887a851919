"""What is wrong with annotated pictures, found when they are opened: each fault with its count, first file and index.

A fault that makes all of the data doubtful is an error: sizes that differ, boxes in another form. A fault of one
object is told and mended, or, with ``strict``, an error: an object without area or outside of its picture is left out,
one that reaches out is cut, one that is there twice counts once.

N objects · h, w picture
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.data.cocofile import shape_mask
from saccade.data.decode import read_size
from saccade.data.mapscan import MAX_SCANNED, SAMPLED
from saccade.data.objects import AnnotatedImage, Box, ObjectAnnotation, Shape, polygon_box, size_error
from saccade.data.splits import counted
from saccade.errors import DataError, ImageError

Form = Literal["xyxy", "xywh", "cxcywh"]
"""Corners; a corner with width and height; the centre with width and height."""

SUSPECT = 0.2
"""Share of impossible boxes above which another form is considered."""

PLAUSIBLE = 0.95
"""Share of boxes that must be possible in the other form."""

_FORMS: dict[Form, str] = {
    "xyxy": "corners (x1, y1, x2, y2)",
    "xywh": "x, y, width, height",
    "cxcywh": "centre x, centre y, width, height",
}
_SLACK = 1.0
"""A box may reach so many pixels out of its picture: annotators round."""


class Drafted(NamedTuple):
    """An object as a file says it, not yet trusted.

    Attributes:
        thing: the object; its ``box`` holds the four numbers in the form of the file, in pixels.
        where: file and index, for messages.
        has_box: whether the file says a box; otherwise it is the one around the outline.
    """

    thing: ObjectAnnotation
    where: str
    has_box: bool = True


class Draft(NamedTuple):
    """A picture as a file says it; ``image.size`` is ``(0, 0)`` where the file says none."""

    image: AnnotatedImage
    objects: list[Drafted]


@dataclass
class _Faults:
    """Where each fault was found."""

    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, where: str) -> None:
        self.places.setdefault(what, []).append(where)

    def told(self) -> list[str]:
        return [f"{_counted(what, places)}: {shown(places)}" for what, places in self.places.items()]


def _counted(what: str, places: Sequence[str]) -> str:
    noun, rest = what.split(" ", 1)
    return f"{counted(len(places), noun)} {rest}"


def shown(places: Sequence[str], most: int = 3) -> str:
    """The first few places."""
    return ", ".join(places[:most]) + (", ..." if len(places) > most else "")


def check(drafts: Sequence[Draft], form: Form, where: str, strict: bool) -> tuple[list[AnnotatedImage], list[str]]:
    """Pictures with sound objects whose boxes are xyxy, in the order given, and notes about what was mended.

    Args:
        drafts: the pictures as read.
        form: how the file writes boxes.
        where: the data set, for messages.
        strict: make an error of what would be mended.

    Raises:
        DataError: sizes that differ from the pictures', boxes that look like another form, run lengths of another size;
            with ``strict`` every other fault too.
    """
    faults = _Faults()
    sized, sampled = _sized(drafts, faults)
    _check_form(sized, form, where)
    _check_run_lengths(sized)
    images = [_checked(draft, form, faults) for draft in sized]
    notes = faults.told()
    if notes and strict:
        raise DataError("; ".join(notes), where=where, remedy="mend the annotations, or leave out --strict")
    return images, [*sampled, *notes]


def _sized(drafts: Sequence[Draft], faults: _Faults) -> tuple[list[Draft], list[str]]:
    """The pictures with their sizes, compared with the files, and a note where not all were."""
    notes = []
    told = [index for index, draft in enumerate(drafts) if draft.image.size != (0, 0)]
    if len(told) > MAX_SCANNED:
        notes.append(f"the sizes of {SAMPLED} of {len(told):,} pictures were checked; the others will be when read")
        told = [told[place] for place in np.linspace(0, len(told) - 1, SAMPLED).round().astype(int).tolist()]
    wanted = sorted({*told, *(index for index, draft in enumerate(drafts) if draft.image.size == (0, 0))})

    def look(index: int) -> tuple[int, int] | None:
        try:
            return read_size(drafts[index].image.path)[0]
        except ImageError:
            return None

    # Pillow reads headers outside the interpreter's lock.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        sizes = dict(zip(wanted, pool.map(look, wanted), strict=True))
    wrong = [index for index, size in sizes.items() if size and drafts[index].image.size not in {(0, 0), size}]
    if wrong:
        first, found = drafts[wrong[0]].image, sizes[wrong[0]]
        assert found is not None  # mypy cannot see the filter above
        error = size_error(str(first), first.size, found)
        error.what += f" (and {counted(len(wrong) - 1, 'other picture')} like it)" if len(wrong) > 1 else ""
        raise error
    sized = []
    for index, draft in enumerate(drafts):
        size = draft.image.size if draft.image.size != (0, 0) else sizes[index]
        if size is None:
            faults.add("picture that cannot be read, without a size in the annotations: left out", str(draft.image))
        else:
            sized.append(Draft(replace(draft.image, size=size), draft.objects))
    return sized, notes


def _check_form(drafts: Sequence[Draft], form: Form, where: str) -> None:
    """Refuse boxes that are impossible in the form of the file but possible in another."""
    rows = [(*thing.box, *draft.image.size) for draft in drafts for thing, _, has_box in draft.objects if has_box]
    if len(rows) < 3:
        return
    numbers = np.array(rows, dtype=np.float64)
    is_possible = _possible(numbers, form)
    if (~is_possible).mean() <= SUSPECT:
        return
    for other in _FORMS:
        if other != form and _possible(numbers, other).mean() >= PLAUSIBLE:
            bad = int((~is_possible).sum())
            first = int(np.argmin(is_possible))
            places = [place for draft in drafts for _, place, has_box in draft.objects if has_box]
            reason = "x2 < x1 or y2 < y1" if form == "xyxy" else "an edge outside of their picture"
            told = f"{bad} of {len(rows)} boxes have {reason} if read as {_FORMS[form]}"
            good = int(_possible(numbers, other).sum())
            raise DataError(
                f"{told}; read as {_FORMS[other]} {good} of {len(rows)} fit, the first is {rows[first][:4]}",
                where=places[first],
                expected=_FORMS[form],
                remedy=f"convert the boxes from {_FORMS[other]} first; nothing is guessed",
            )


def _possible(numbers: NDArray[np.float64], form: Form) -> NDArray[np.bool_]:
    """Whether each row (four numbers, h, w) is a box inside of its picture, ``[N, 6] -> [N]``."""
    boxes = corners(numbers[:, :4], form)
    height, width = numbers[:, 4], numbers[:, 5]
    # A box without area is a fault of its own and says nothing about the form.
    is_ordered = (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
    slack = 2 * _SLACK
    is_inside = (boxes[:, 0] >= -slack) & (boxes[:, 1] >= -slack)
    is_inside &= (boxes[:, 2] <= width + slack) & (boxes[:, 3] <= height + slack)
    return is_ordered & is_inside


def corners(boxes: NDArray[np.float64], form: Form) -> NDArray[np.float64]:
    """Boxes ``[N, 4]`` of a file as xyxy."""
    if form == "xyxy":
        return boxes
    sides = boxes[:, 2:]
    low = boxes[:, :2] if form == "xywh" else boxes[:, :2] - sides / 2
    return np.concatenate([low, low + sides], axis=1)


def _xyxy(box: Box, form: Form) -> Box:
    first, second, third, fourth = box
    if form == "xyxy":
        return box
    if form == "xywh":
        return first, second, first + third, second + fourth
    return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2


def _check_run_lengths(drafts: Sequence[Draft]) -> None:
    """Refuse run lengths of another size than their picture, or, where they are plain, of another sum."""
    wrong: list[tuple[str, str, tuple[int, int]]] = []
    for draft in drafts:
        size = draft.image.size
        for thing, place, _ in draft.objects:
            if not isinstance(thing.shape, Mapping):
                continue
            told, counts = thing.shape["size"], thing.shape["counts"]
            if list(told) != list(size):
                wrong.append((place, f"the run lengths are of {told[1]}x{told[0]} pixels", size))
            elif isinstance(counts, list) and sum(counts) != size[0] * size[1]:
                wrong.append((place, f"the run lengths add up to {sum(counts):,} pixels", size))
    if wrong:
        place, what, size = wrong[0]
        more = f" (and {counted(len(wrong) - 1, 'other object')} like it)" if len(wrong) > 1 else ""
        expected = f"{size[1]}x{size[0]} as the picture has, {size[0] * size[1]:,} in all"
        raise DataError(what + more, where=place, expected=expected, remedy="export the masks again")


def _checked(draft: Draft, form: Form, faults: _Faults) -> AnnotatedImage:
    """One picture with the objects that are sound."""
    found: list[ObjectAnnotation] = []
    seen: dict[tuple[str, Box], list[Shape | None]] = {}
    for drafted in draft.objects:
        thing = _sound(drafted, form, draft.image.size, faults)
        if thing is None:
            continue
        others = seen.setdefault((thing.name, thing.box), [])
        if thing.shape in others:
            faults.add("object that is there twice, of the same class, box and outline: left out", drafted.where)
            continue
        others.append(thing.shape)
        found.append(thing)
    return replace(draft.image, objects=tuple(found))


def _sound(drafted: Drafted, form: Form, size: tuple[int, int], faults: _Faults) -> ObjectAnnotation | None:
    """The object with its box as xyxy, cut at the border of the picture ``(h, w)``; None where it is no object."""
    thing, where, has_box = drafted
    if isinstance(thing.shape, list):
        parts = [part for part in thing.shape if len(part) >= 6]
        if len(parts) < len(thing.shape):
            faults.add("object with a polygon of fewer than three points: the polygon is left out", where)
            thing = replace(thing, shape=parts or None)
    if has_box:
        box = _xyxy(thing.box, form)
    else:
        outline = polygon_box(thing.shape) if isinstance(thing.shape, list) else _mask_box(thing)
        if outline is None:
            faults.add("object without a box and without an outline: left out", where)
            return None
        box = outline
    if box[2] <= box[0] or box[3] <= box[1]:
        faults.add(f"box without area (as in {_told(box)}): left out", where)
        return None
    height, width = size
    if box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height:
        faults.add("box outside of its picture: left out", where)
        return None
    if min(box[:2]) < -_SLACK or box[2] > width + _SLACK or box[3] > height + _SLACK:
        faults.add("box that reaches out of its picture: cut at the border", where)
        box = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    return replace(thing, box=box)


def _told(box: Box) -> str:
    return "(" + ", ".join(f"{edge:g}" for edge in box) + ")"


def _mask_box(thing: ObjectAnnotation) -> Box | None:
    """The box around run lengths; None where they cover nothing, or there are none."""
    if not isinstance(thing.shape, Mapping):
        return None
    height, width = thing.shape["size"]
    mask = shape_mask(thing.shape, (height, width), "run lengths")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
