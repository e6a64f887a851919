"""What kind of mistake each wrong detection and each missed object is, and what AP50 would gain without it.

Bolya et al. 2020, "TIDE: a general toolbox for identifying object detection errors", arXiv 2008.08115: overlap 0.5 is
right, up to 0.1 is background. Differs from it: most detections are counted per class and picture, as in COCO; overlaps
of the own class are looked at before those of others, so every mistake is of one kind.

N detections · G true objects
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from saccade.metrics.detection import HALF, THRESHOLDS, Picture
from saccade.metrics.detection_matches import FREE, IGNORED, Matches, average_precision
from saccade.metrics.overlap import Flags, Labels

ErrorKind = Literal["class", "localisation", "both", "duplicate", "background", "missed"]
"""Six kinds: right place and wrong class; right class and not quite the place; neither; found twice; nothing there; an
object that no detection of right or wrong class or place is about."""

BACKGROUND = 0.1
"""Overlap below which a detection has nothing to do with an object."""

_CODES: dict[str, int] = {kind: code for code, kind in enumerate(get_args(ErrorKind)[:5])}
_NONE = -1


class ErrorShare(NamedTuple):
    """One kind of mistake.

    Attributes:
        number: how many there are.
        gain: what AP50 gains where all of this kind are mended; NaN without an object.
    """

    number: int
    gain: float


@dataclass(frozen=True, eq=False)
class Errors:
    """The kind of every mistake.

    Attributes:
        kind: ``[N]``, place of each detection in the kinds, -1 where it is right or ignored.
        about: ``[N]``, number of the object that a mistake of class or place is about, -1 for others.
        is_missed: ``[G]``, objects that were not found and that no mistake of class or place is about.
    """

    kind: Labels
    about: Labels
    is_missed: Flags


def find_errors(matches: Matches, pictures: Sequence[Picture]) -> Errors:
    """The kind of every wrong detection and which objects nobody saw.

    Args:
        matches: of all pictures.
        pictures: the same that were matched.
    """
    chosen = matches.matched[:, HALF]
    kind = np.full(len(chosen), _NONE, dtype=np.int64)
    about = np.full(len(chosen), _NONE, dtype=np.int64)
    # Detections stand picture by picture.
    edges = np.searchsorted(matches.picture, np.arange(len(pictures) + 1))
    for place, picture in enumerate(pictures):
        numbers = np.arange(edges[place], edges[place + 1])
        numbers = numbers[chosen[numbers] == FREE]
        if len(numbers):
            kinds, columns = _sort_out(picture, matches.row[numbers])
            kind[numbers] = kinds
            about[numbers] = np.where(columns == _NONE, _NONE, matches.first_true[place] + columns)
    is_missed = ~matches.crowd
    is_missed[chosen[chosen >= 0]] = False
    is_missed[about[about != _NONE]] = False
    return Errors(kind, about, is_missed)


def _sort_out(picture: Picture, rows: Labels) -> tuple[Labels, Labels]:
    """Kind and column of the object (-1: none) of some wrong detections of one picture."""
    objects = np.flatnonzero(~picture.crowd)
    nothing = np.full(len(rows), _NONE, dtype=np.int64)
    if not len(objects):
        return np.full(len(rows), _CODES["background"], dtype=np.int64), nothing
    matrix = picture.overlaps[rows[:, None], objects]
    is_own = picture.true_labels[objects][None] == picture.labels[rows][:, None]
    own, other = np.where(is_own, matrix, -1.0), np.where(is_own, -1.0, matrix)
    near, far = own.max(1), other.max(1)
    right = float(THRESHOLDS[HALF])
    cases = [near >= right, near >= BACKGROUND, far >= right, far >= BACKGROUND]
    codes = [_CODES[name] for name in ("duplicate", "localisation", "class", "both")]
    kinds = np.select(cases, codes, default=_CODES["background"])
    columns = np.select(
        [kinds == _CODES["localisation"], kinds == _CODES["class"]],
        [objects[own.argmax(1)], objects[other.argmax(1)]],
        default=_NONE,
    )
    return kinds.astype(np.int64), columns


def error_shares(matches: Matches, errors: Errors) -> dict[ErrorKind, ErrorShare]:
    """Count and gain of each kind of mistake.

    A wrong class or place is mended by giving the detection that of its object; where the object then has several
    detections only the likeliest stays. The three others are taken away; missed objects are no longer asked for.
    """
    before = _ap50(matches, matches.labels, matches.matched[:, HALF])
    shares: dict[ErrorKind, ErrorShare] = {}
    for name in get_args(ErrorKind):
        if name == "missed":
            after = _ap50(matches, matches.labels, matches.matched[:, HALF], leave_out=errors.is_missed)
            count = int(errors.is_missed.sum())
        else:
            is_kind = errors.kind == _CODES[name]
            after, count = _ap50(matches, *_mended(matches, errors, is_kind)), int(is_kind.sum())
        shares[name] = ErrorShare(count, after - before)
    return shares


def _mended(matches: Matches, errors: Errors, is_kind: Flags) -> tuple[Labels, Labels]:
    """Labels and matches ``[N]`` with mistakes mended; a detection is taken away by ignoring it."""
    chosen, labels = matches.matched[:, HALF].copy(), matches.labels.copy()
    chosen[is_kind] = errors.about[is_kind]
    chosen[is_kind & (errors.about == _NONE)] = IGNORED
    is_mended = is_kind & (errors.about != _NONE)
    labels[is_mended] = matches.true_labels[errors.about[is_mended]]
    claims = np.flatnonzero(chosen >= 0)
    claims = claims[np.argsort(-matches.scores[claims], kind="stable")]
    _, likeliest = np.unique(chosen[claims], return_index=True)
    chosen[np.delete(claims, likeliest)] = IGNORED
    return labels, chosen


def _ap50(matches: Matches, labels: Labels, chosen: Labels, leave_out: Flags | None = None) -> float:
    """Mean over the classes, as COCO's; 1 where nothing is asked for any more, NaN where nothing ever was."""
    is_asked = ~matches.crowd if leave_out is None else ~matches.crowd & ~leave_out
    figures: list[float] = []
    order = np.argsort(-matches.scores, kind="stable")
    order = order[chosen[order] != IGNORED]
    for label in matches.occurring():
        num_objects = int((is_asked & (matches.true_labels == label)).sum())
        ranked = order[labels[order] == label]
        if num_objects:
            figures.append(average_precision(chosen[ranked] >= 0, num_objects))
        elif len(ranked):  # only false alarms are left
            figures.append(0.0)
    if figures:
        return float(np.mean(figures))
    return 1.0 if matches.occurring() else math.nan


def mean_ap50(matches: Matches) -> float:
    """AP50 of the matches as they are; NaN without an object."""
    return _ap50(matches, matches.labels, matches.matched[:, HALF])
