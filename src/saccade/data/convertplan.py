"""What a file format can hold of annotated pictures, found before anything is written.

h, w picture
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from saccade.data.cocofile import shape_mask
from saccade.data.objects import AnnotatedImage, Box, ObjectAnnotation, object_mask, polygon_box, with_run_lengths
from saccade.data.objectscan import shown
from saccade.data.objectwrite import Format, as_yolo_reads
from saccade.data.outlines import join_parts, trace
from saccade.data.splits import counted


@dataclass
class Losses:
    """What cannot be held, each with the places.

    Attributes:
        refusals: objects that lose their mask, their crowd mark or themselves.
        told: keys beyond class, box and mask that are not kept, of objects, of pictures, of the whole.
        widest: largest difference of an edge in pixels where a box has to follow its outline, and where.
    """

    refusals: dict[str, list[str]] = field(default_factory=dict)
    told: dict[str, set[str]] = field(default_factory=dict)
    widest: tuple[float, str] = (0.0, "")

    def refuse(self, what: str, where: str) -> None:
        """Note an object that loses something."""
        self.refusals.setdefault(what, []).append(where)

    def refused(self) -> list[str]:
        """One sentence per kind of loss."""
        return [f"{counted(len(places), 'object')} {what}: {shown(places)}" for what, places in self.refusals.items()]

    def lines(self) -> list[str]:
        """What is told but not refused."""
        lines = [f"not kept of {of}: {shown(sorted(keys), 12)}" for of, keys in self.told.items()]
        if self.widest[0] > 1e-3:
            told = f"boxes are those around the outlines: an edge moved by up to {self.widest[0]:.2f} pixels"
            lines.append(f"{told} ({self.widest[1]})")
        return lines


def fitted(image: AnnotatedImage, to: str, form: Format, losses: Losses) -> AnnotatedImage:
    """The picture as the format can hold it; what is lost is added to ``losses``.

    Args:
        image: the picture.
        to: the name of the format.
        form: the format.
        losses: where to note what is lost.

    Raises:
        DataError: masks that do not fit their picture.
    """
    things = []
    image = with_run_lengths(image) if form.has_masks else image
    for index, thing in enumerate(image.objects):
        where = f"{image} object {index}"
        if thing.is_crowd and not form.has_crowds:
            losses.refuse("marked as a crowd", where)
            continue
        kept = thing
        if thing.shape is not None and not form.has_masks:
            losses.refuse("with a mask", where)
            kept = replace(thing, shape=None)
        elif thing.shape is not None and to in {"yolo", "labelme"}:
            kept = _outlined(thing, image.size, where, to, losses)
        _note_keys(thing.extra, "objects", form.keeps, losses)
        things.append(kept)
    _note_keys(image.extra, "pictures", form.keeps_of_picture, losses)
    return replace(image, objects=tuple(things))


def _note_keys(extra: Mapping[str, object], of: str, keeps: Callable[[str], bool], losses: Losses) -> None:
    for key in extra:
        if not keeps(key):
            losses.told.setdefault(of, set()).add(key)


def _outlined(thing: ObjectAnnotation, size: tuple[int, int], where: str, to: str, losses: Losses) -> ObjectAnnotation:
    """The object with an outline that the format can hold; without one where that cannot be."""
    mask = object_mask(thing, size, where)
    if not mask.any():
        losses.refuse("with a mask that covers nothing", where)
        return replace(thing, shape=None)
    if to == "labelme":
        return thing
    polygon = _one_polygon(thing, mask, size, where, losses)
    if polygon is None:
        return replace(thing, shape=None)
    box = _box_around(polygon, size)
    if box[2] <= box[0] or box[3] <= box[1]:
        losses.refuse("with an outline without area", where)
        return replace(thing, shape=None)
    moved = max(abs(one - other) for one, other in zip(box, thing.box, strict=True))
    losses.widest = max(losses.widest, (moved, where))
    return replace(thing, shape=[polygon], box=box)


def _box_around(polygon: list[float], size: tuple[int, int]) -> Box:
    """The box that a reader gives an object with this outline: cut where it reaches out by more than a pixel."""
    left, top, right, bottom = polygon_box([polygon]) or (0.0, 0.0, 0.0, 0.0)
    height, width = size
    if min(left, top) < -1 or right > width + 1 or bottom > height + 1:
        return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    return left, top, right, bottom


def _one_polygon(
    thing: ObjectAnnotation, mask: NDArray[np.bool_], size: tuple[int, int], where: str, losses: Losses
) -> list[float] | None:
    """One polygon that covers exactly the mask; None, and a loss, where there is none."""
    choices = [join_parts(thing.shape)] if isinstance(thing.shape, list) else []
    traced = trace(mask)
    if not traced.num_holes:
        choices.append(join_parts(traced.parts))
    for choice in choices:
        back = as_yolo_reads(choice, size)
        if len(choice) >= 6 and np.array_equal(shape_mask([back], size, where), mask):
            return back
    if traced.num_holes:
        losses.refuse("with holes in their outline, which are filled", where)
        return as_yolo_reads(join_parts(traced.parts), size)
    losses.refuse("with an outline of many parts that one polygon cannot say", where)
    return None
