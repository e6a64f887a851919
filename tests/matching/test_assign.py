from __future__ import annotations

import pytest
import torch

from saccade.errors import ConfigError
from saccade.matching.assign import BACKGROUND, IGNORED, IoUAssigner
from saccade.types import BoxTarget

OBJECTS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
TARGET = BoxTarget.of(OBJECTS, torch.tensor([3, 1]))
BOXES = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],  # the first object
        [20.0, 0.0, 30.0, 8.0],  # 0.8 of the second
        [0.0, 0.0, 10.0, 5.0],  # half of the first
        [20.0, 0.0, 30.0, 2.0],  # a fifth of the second
        [50.0, 50.0, 60.0, 60.0],  # nothing
    ]
)


def test_two_thresholds() -> None:
    found = IoUAssigner(positive=0.7, negative=0.3)(BOXES, TARGET)
    assert found.matched.tolist() == [0, 1, IGNORED, BACKGROUND, BACKGROUND]
    torch.testing.assert_close(found.iou, torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]))
    one = IoUAssigner(positive=0.5, negative=0.5)(BOXES, TARGET)
    assert one.matched.tolist() == [0, 1, 0, BACKGROUND, BACKGROUND]


def test_no_object_is_left_without_a_box() -> None:
    kept = IoUAssigner(positive=0.7, negative=0.3, keep_best=True)(BOXES[2:], TARGET)
    assert kept.matched.tolist() == [0, 1, BACKGROUND]
    # Where no box touches an object, none becomes it.
    far = IoUAssigner(positive=0.7, negative=0.3, keep_best=True)(BOXES[4:], TARGET)
    assert far.matched.tolist() == [BACKGROUND]


def test_equally_good_boxes_are_all_kept() -> None:
    twins = torch.tensor([[0.0, 0.0, 10.0, 2.0], [0.0, 8.0, 10.0, 10.0]])
    found = IoUAssigner(positive=0.7, negative=0.3, keep_best=True)(twins, TARGET)
    assert found.matched.tolist() == [0, 0]


def test_boxes_on_crowds_are_ignored_and_crowds_are_never_matched() -> None:
    target = BoxTarget(OBJECTS, torch.tensor([3, 1]), torch.tensor([True, False]))
    boxes = torch.cat([BOXES, torch.tensor([[5.0, 5.0, 25.0, 10.0]])])  # a quarter on the crowd
    found = IoUAssigner()(boxes, target)
    assert found.matched.tolist() == [IGNORED, 1, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]
    assert found.iou[0] == 0


def test_a_box_that_is_an_object_and_lies_on_a_crowd_is_the_object() -> None:
    crowd = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    target = BoxTarget(torch.cat([crowd, OBJECTS]), torch.tensor([0, 3, 1]), torch.tensor([True, False, False]))
    assert IoUAssigner()(BOXES, target).matched.tolist() == [1, 2, 1, IGNORED, IGNORED]


def test_nothing_to_match() -> None:
    none = BoxTarget.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert IoUAssigner(keep_best=True)(BOXES, none).matched.tolist() == [BACKGROUND] * 5
    assert IoUAssigner()(torch.zeros(0, 4), TARGET).matched.shape == (0,)


def test_thresholds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ConfigError, match="negative <= positive"):
        IoUAssigner(positive=0.3, negative=0.5)
