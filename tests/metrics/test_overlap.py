"""Overlaps of boxes and masks, however the masks are kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from saccade.metrics.overlap import Found, Truth, overlaps, run_lengths
from saccade.types import BoxTarget, Classes, Detections, Masks

Scenes = Callable[..., list[tuple[Detections, BoxTarget]]]


def test_boxes_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0]])
    label = torch.zeros(2, dtype=torch.int64)
    detections = Detections(boxes, torch.tensor([0.9, 0.8]), label, label, Classes(("a",)))
    target = BoxTarget(boxes, label, torch.tensor([False, True]))
    matrix = overlaps(Found.of(detections, "boxes"), Truth.of(target, "boxes"), "boxes")
    assert matrix == pytest.approx(np.array([[1, 1 / 2], [1 / 3, 1]]))


def test_masks_equal_whole_maps_and_run_lengths(random_scenes: Scenes) -> None:
    checked = 0
    for detections, target in random_scenes(10, seed=8, crowds=0.3):
        found, truth = Found.of(detections, "masks"), Truth.of(target, "masks")
        matrix = overlaps(found, truth, "masks")
        assert matrix.shape == (len(detections), len(target))
        if not matrix.size or detections.masks is None or target.masks is None:
            continue
        ours, theirs = detections.masks.dense().flatten(1).double(), target.masks.dense().flatten(1).double()
        shared, areas = (ours @ theirs.T).numpy(), ours.sum(1)[:, None].numpy()
        union = areas + theirs.sum(1)[None].numpy() - shared
        assert matrix == pytest.approx(np.where(truth.crowd[None], shared / areas, shared / union))
        packed = found._replace(shapes=run_lengths(found.shapes)), truth._replace(shapes=run_lengths(truth.shapes))
        assert (overlaps(*packed, "masks") == matrix).all(), "to the last bit"
        checked += int((matrix > 0).sum())
    assert checked > 20


def test_areas_of_the_truth_are_those_of_its_masks_where_there_are_any() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    mask = torch.zeros(1, 8, 8)
    mask[0, :4, :2] = 1
    with_mask = BoxTarget.of(boxes, torch.tensor([0]), Masks.of(mask))
    assert Truth.of(with_mask, "boxes").areas.tolist() == [8.0]
    assert Truth.of(BoxTarget.of(boxes, torch.tensor([0])), "boxes").areas.tolist() == [16.0]


def test_empty_masks_overlap_nothing() -> None:
    mask = torch.zeros(2, 8, 8)
    mask[1, 2:4, 2:4] = 1
    masks, label = Masks.of(mask), torch.zeros(2, dtype=torch.int64)
    detections = Detections(masks.boxes(), torch.tensor([0.9, 0.8]), label, label, Classes(("a",)), masks)
    target = BoxTarget.of(masks.boxes(), label, masks)
    matrix = overlaps(Found.of(detections, "masks"), Truth.of(target, "masks"), "masks")
    assert matrix.tolist() == [[0.0, 0.0], [0.0, 1.0]]
