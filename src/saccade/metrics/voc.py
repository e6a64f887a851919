"""AP50 as PASCAL VOC counts it since 2010: the whole area under the curve.

Everingham et al. 2010, "The PASCAL visual object classes challenge". Every detection looks at the one object of its
class that it overlaps most; it is right if it is the likeliest to do so and the overlap reaches 0.5. Differs from it:
boxes have no extra pixel; difficult objects are crowds here, over which an overlap is the share of the detection.

D found · G true objects · K classes
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from saccade.metrics.detection import Picture
from saccade.metrics.overlap import Flags, Floats

LEAST = 0.5
"""Overlap that is enough."""


def voc_ap50(pictures: Sequence[Picture], num_classes: int) -> Floats:
    """AP50 of each class ``[K]``; NaN for a class without an object, 0 where nothing of it was found.

    Args:
        pictures: as ``DetectionMeter.pictures`` has them.
        num_classes: K.
    """
    hits: list[list[Flags]] = [[] for _ in range(num_classes)]
    scores: list[list[Floats]] = [[] for _ in range(num_classes)]
    objects = np.zeros(num_classes, dtype=np.int64)
    for picture in pictures:
        for label, (ours, theirs) in picture.groups.items():
            crowd = picture.crowd[theirs]
            objects[label] += int((~crowd).sum())
            is_hit, is_counted = _judge(picture.overlaps[ours[:, None], theirs], crowd)
            hits[label].append(is_hit[is_counted])
            scores[label].append(picture.scores[ours][is_counted])
    figures = np.full(num_classes, math.nan)
    for label in np.flatnonzero(objects).tolist():
        order = np.argsort(-np.concatenate(scores[label]), kind="stable")
        figures[label] = area_under(np.concatenate(hits[label])[order], int(objects[label]))
    return figures


def _judge(overlaps: Floats, crowd: Flags) -> tuple[Flags, Flags]:
    """Whether each of D detections, likeliest first, is right, and whether it counts at all."""
    is_hit, is_counted = np.zeros(len(overlaps), dtype=np.bool_), np.ones(len(overlaps), dtype=np.bool_)
    if not overlaps.size:
        return is_hit, is_counted
    nearest = overlaps.argmax(1)
    is_near = overlaps.max(1) >= LEAST
    is_counted[is_near & crowd[nearest]] = False
    claims = np.flatnonzero(is_near & ~crowd[nearest])
    _, first = np.unique(nearest[claims], return_index=True)
    is_hit[claims[first]] = True
    return is_hit, is_counted


def area_under(is_hit: Flags, num_objects: int) -> float:
    """Area under precision over recall, precision made falling.

    Args:
        is_hit: of the detections that count, likeliest first.
        num_objects: that are to be found, at least one.
    """
    right = np.cumsum(is_hit)
    precision = right / np.arange(1, len(is_hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[is_hit].sum() / num_objects)
