"""Objects with boxes and masks: what is refused, what is kept."""

from __future__ import annotations

import pytest
import torch

from saccade.errors import InputError
from saccade.types import BoxTarget, Classes, Detections, Masks

CLASSES = Classes(("ape", "bee", "cat"))


def dense() -> torch.Tensor:
    maps = torch.zeros(3, 6, 8, dtype=torch.bool)
    maps[0, 1:4, 2:5] = True
    maps[0, 2, 3] = False  # a hole
    maps[2, 5, 7] = True
    return maps


def test_masks_keep_every_pixel_and_only_their_rectangles() -> None:
    masks = Masks.of(dense())
    assert torch.equal(masks.dense(), dense())
    assert [tuple(crop.shape) for crop in masks.crops] == [(3, 3), (0, 0), (1, 1)]
    assert masks.areas().tolist() == [8, 0, 1]
    assert masks.boxes().tolist() == [[2, 1, 5, 4], [0, 0, 0, 0], [7, 5, 8, 6]]
    assert torch.equal(masks[-1], dense()[2])
    assert torch.equal(masks.select([2, 0]).dense(), dense()[[2, 0]])
    assert Masks.none((6, 8)).dense().shape == (0, 6, 8)


@pytest.mark.parametrize(
    ("corners", "crop", "complaint"),
    [
        (torch.tensor([[0, 0], [1, 1]]), torch.ones(2, 2, dtype=torch.bool), "corners are"),
        (torch.tensor([[0, 0]]), torch.ones(2, 2), r"masks\[0\].*\[bh, bw\] bool"),
        (torch.tensor([[5, 0]]), torch.ones(2, 2, dtype=torch.bool), "does not fit"),
        (torch.tensor([[0, -1]]), torch.ones(2, 2, dtype=torch.bool), "does not fit"),
    ],
)
def test_masks_outside_of_the_picture_are_refused(corners: torch.Tensor, crop: torch.Tensor, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Masks((6, 8), corners, (crop,))


def test_targets_are_chosen_with_their_masks() -> None:
    crowd = torch.tensor([False, True, False])
    target = BoxTarget(torch.arange(12.0).reshape(3, 4), torch.tensor([2, 0, 1]), crowd, Masks.of(dense()))
    known = target.without_crowds()
    assert len(known) == 2
    assert known.labels.tolist() == [2, 1]
    assert known.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert known.masks is not None
    assert torch.equal(known.masks.dense(), dense()[[0, 2]])
    assert known.without_crowds() is known


@pytest.mark.parametrize(
    ("boxes", "labels", "complaint"),
    [
        (torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "float64"),
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), "for 2 labels"),
        (torch.zeros(2, 4), torch.zeros(2), "int64"),
    ],
)
def test_targets_of_other_shapes_are_refused(boxes: torch.Tensor, labels: torch.Tensor, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        BoxTarget.of(boxes, labels)


def test_every_object_of_a_target_has_its_mask() -> None:
    with pytest.raises(InputError, match="3 masks for 2 boxes"):
        BoxTarget.of(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), Masks.of(dense()))


def test_detections_keep_their_source_when_chosen() -> None:
    scores, labels, source = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([2, 0, 2]), torch.tensor([17, 4, 9])
    found = Detections(torch.arange(12.0).reshape(3, 4), scores, labels, source, CLASSES, Masks.of(dense()))
    sure = found.above(0.5)
    assert sure.source.tolist() == [17, 4]
    assert [sure.name(index) for index in range(2)] == ["cat", "ape"]
    assert sure.masks is not None
    assert len(sure.masks) == 2
    assert len(found.above(0.95)) == 0
    with pytest.raises(InputError, match="3 scores"):
        Detections(torch.zeros(2, 4), scores, labels, source, CLASSES)
