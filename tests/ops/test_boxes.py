from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou

from saccade.ops import boxes as ops
from saccade.types import Geometry


def test_centres_and_back() -> None:
    boxes = torch.tensor([[2.0, 4.0, 10.0, 8.0]])
    assert ops.to_centres(boxes).tolist() == [[6.0, 6.0, 8.0, 4.0]]
    assert torch.equal(ops.from_centres(ops.to_centres(boxes)), boxes)
    assert ops.areas(boxes).tolist() == [32.0]


def test_codes_of_a_box_in_closed_form() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[5.0, 0.0, 25.0, 20.0]])  # the centre one anchor's width further, twice as wide, as high
    codes = ops.encode(box, anchor, (10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(codes, torch.tensor([[10.0, 0.0, 5 * math.log(2), 0.0]]))
    torch.testing.assert_close(ops.decode(codes, anchor, (10.0, 10.0, 5.0, 5.0)), box)


def test_decoding_undoes_encoding() -> None:
    corners = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * 50
    corners[:, 2:] += 60
    anchors, boxes = corners[:25], corners[25:]
    torch.testing.assert_close(ops.decode(ops.encode(boxes, anchors), anchors), boxes, rtol=1e-4, atol=1e-3)


def test_wild_codes_give_finite_boxes() -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    box = ops.decode(torch.tensor([[0.0, 0.0, 1000.0, 1000.0]]), anchor)
    torch.testing.assert_close(box, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]))


def test_clip_and_sides() -> None:
    boxes = torch.tensor([[-3.0, 2.0, 50.0, 90.0], [30.0, 70.0, 40.0, 75.0]])
    cut = ops.clip(boxes, (60, 20))
    assert cut.tolist() == [[0.0, 2.0, 20.0, 60.0], [20.0, 60.0, 20.0, 60.0]]
    assert ops.is_large(cut, 1e-3).tolist() == [True, False]
    assert ops.is_large(torch.tensor([0.0, 0.0, 5.0, 4.0]), 5).item() is False


def test_overlaps_in_closed_form() -> None:
    one = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 3)
    other = torch.tensor([[5.0, 0.0, 15.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    torch.testing.assert_close(ops.paired_iou(one, other), torch.tensor([1 / 3, 0.0, 1.0]))
    # Disjoint by one side: a hull of 300 of which 200 are covered.
    torch.testing.assert_close(ops.generalized_iou(one, other), torch.tensor([1 / 3, -1 / 3, 1.0]))
    both = generalized_box_iou(one, other).diagonal()
    torch.testing.assert_close(ops.generalized_iou(one, other), both)
    empty = torch.zeros(1, 4)
    assert ops.paired_iou(empty, empty).item() == 0


def test_share_on_a_crowd_is_of_the_box() -> None:
    small, crowd = torch.tensor([[0.0, 0.0, 2.0, 4.0]]), torch.tensor([[1.0, 0.0, 100.0, 100.0]])
    torch.testing.assert_close(ops.crowd_overlap(small, crowd), torch.tensor([[0.5]]))


@pytest.mark.parametrize("scale", [(0.5, 0.25), (3.0, 2.0)])
def test_to_the_canvas_and_back(scale: tuple[float, float]) -> None:
    geometry = Geometry((40, 60), scale, (-2.0, 5.0))
    boxes = torch.tensor([[4.0, 8.0, 20.0, 32.0]])  # x by the second factor, y by the first
    down, right = scale
    expected = torch.tensor([[4 * right + 5, 8 * down - 2, 20 * right + 5, 32 * down - 2]])
    torch.testing.assert_close(ops.map_to_canvas(boxes, geometry), expected)
    torch.testing.assert_close(ops.map_to_original(expected, geometry), boxes)
    beyond = ops.map_to_canvas(torch.tensor([[-9.0, -9.0, 99.0, 99.0]]), geometry)
    torch.testing.assert_close(ops.map_to_original(beyond, geometry), torch.tensor([[0.0, 0.0, 60.0, 40.0]]))
    assert ops.map_to_original(torch.zeros(0, 4), geometry).shape == (0, 4)
