"""VOC's AP50: the whole area under the curve, each detection at the object it overlaps most."""

from __future__ import annotations

import math

import numpy as np
import pytest

from saccade.metrics.detection import Picture
from saccade.metrics.voc import area_under, voc_ap50


def picture(overlaps: list[list[float]], scores: list[float], crowd: list[bool] | None = None) -> Picture:
    """A picture of class 0 with these overlaps ``[D, G]``."""
    matrix = np.array(overlaps, dtype=np.float64).reshape(len(scores), -1)
    columns = matrix.shape[1]
    labels, true = np.zeros(len(scores), dtype=np.int64), np.zeros(columns, dtype=np.int64)
    flags = np.array(crowd or [False] * columns, dtype=np.bool_)
    return Picture(0, "", np.array(scores), labels, np.ones(len(scores)), true, np.ones(columns), flags, matrix)


def test_the_area_is_not_read_at_101_places() -> None:
    """Right, wrong, right of three objects: 1/3 at precision 1, 1/3 at 2/3."""
    assert area_under(np.array([True, False, True]), 3) == pytest.approx(1 / 3 + 2 / 9)


def test_precision_is_made_falling() -> None:
    assert area_under(np.array([False, True, True]), 2) == pytest.approx(2 / 3)


def test_a_detection_does_not_turn_to_the_second_best_object() -> None:
    """Both overlap the first object most; COCO would give the second detection the second object."""
    found = voc_ap50([picture([[0.9, 0.6], [0.8, 0.7]], [0.9, 0.8])], 1)
    assert found[0] == pytest.approx(0.5)


def test_the_likeliest_on_an_object_is_right_and_the_others_are_wrong() -> None:
    found = voc_ap50([picture([[0.5], [1.0]], [0.9, 0.8])], 1)
    assert found[0] == 1.0
    assert voc_ap50([picture([[0.49], [1.0]], [0.9, 0.8])], 1)[0] == 0.5


def test_difficult_objects_count_neither_way() -> None:
    found = voc_ap50([picture([[0.0, 0.9], [0.0, 0.8], [0.9, 0.0]], [0.9, 0.8, 0.7], [False, True])], 1)
    assert found[0] == 1.0


def test_scores_are_ranked_through_all_pictures() -> None:
    wrong, right = picture([[0.0]], [0.9]), picture([[1.0]], [0.8])
    assert voc_ap50([right, wrong], 1)[0] == pytest.approx(1 / 2 * 1 / 2)


def test_nothing_there_is_undefined_and_nothing_found_is_zero() -> None:
    found = voc_ap50([picture([[]], [0.9])], 2)
    assert all(math.isnan(value) for value in found)
    assert math.isnan(voc_ap50([], 1)[0])
    nothing = Picture(
        0, "", np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(1, dtype=np.int64), np.ones(1),
        np.zeros(1, dtype=np.bool_), np.zeros((0, 1)),
    )  # fmt: skip
    assert voc_ap50([nothing], 1)[0] == 0.0
