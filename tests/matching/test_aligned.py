"""Task-aligned assignment on points that can be counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError
from saccade.matching.aligned import AlignedAssigner
from saccade.ops.boxes import box_iou
from saccade.types import BoxTarget


def objects(*boxes: tuple[float, float, float, float], labels: list[int]) -> BoxTarget:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return BoxTarget.of(corners, torch.tensor(labels, dtype=torch.int64))


POINTS = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [28.0, 4.0]])
"""Four points in a row."""


def said(*boxes: tuple[float, float, float, float], scores: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tensor(boxes, dtype=torch.float32)[None], scores[None]


def test_the_best_aligned_point_aims_at_its_iou_and_others_at_less() -> None:
    # Points 0 and 1 lie inside; the first's box is exact, the second's covers a half: IoU 0.5.
    boxes, scores = said((0, 0, 16, 8), (0, 0, 8, 8), (0, 0, 16, 8), (0, 0, 16, 8), scores=torch.full((4, 2), 0.25))
    aligned = AlignedAssigner()(POINTS, boxes, scores, [objects((0, 0, 16, 8), labels=[1])])
    assert aligned.is_positive.tolist() == [[True, True, False, False]]
    expected = torch.tensor([[[0, 1.0], [0, 0.5**6], [0, 0], [0, 0]]])
    assert torch.allclose(aligned.scores, expected)
    assert aligned.boxes[0, 0].tolist() == [0, 0, 16, 8]


def test_one_point_per_object_where_one_is_wanted() -> None:
    boxes, scores = said((0, 0, 9, 8), (0, 0, 16, 8), (0, 0, 16, 8), (0, 0, 1, 1), scores=torch.full((4, 2), 0.5))
    aligned = AlignedAssigner(most=1)(POINTS, boxes, scores, [objects((0, 0, 16, 8), labels=[0])])
    assert aligned.is_positive.tolist() == [[False, True, False, False]]


def test_a_point_of_two_objects_learns_the_one_it_overlaps_more() -> None:
    boxes, scores = said(*[(0, 0, 16, 8)] * 4, scores=torch.full((4, 2), 0.5))
    target = objects((0, 0, 16, 8), (0, 0, 32, 8), labels=[0, 1])
    aligned = AlignedAssigner()(POINTS, boxes, scores, [target])
    assert aligned.scores[0].argmax(1).tolist() == [0, 0, 1, 1]
    assert aligned.is_positive.all()
    assert torch.allclose(aligned.scores[0].amax(1), torch.tensor([1, 1, 0.5, 0.5]))


def test_the_score_decides_between_equal_boxes() -> None:
    scores = torch.tensor([[0.1], [0.9], [0.5], [0.5]])
    boxes, scores = said(*[(0, 0, 16, 8)] * 4, scores=scores)
    aligned = AlignedAssigner(most=1)(POINTS, boxes, scores, [objects((0, 0, 16, 8), labels=[0])])
    assert aligned.is_positive.tolist() == [[False, True, False, False]]


def test_where_nothing_overlaps_yet_a_point_inside_still_learns_the_object() -> None:
    boxes, scores = said(*[(60, 60, 70, 70)] * 4, scores=torch.full((4, 2), 0.01))
    aligned = AlignedAssigner(most=1)(POINTS, boxes, scores, [objects((16, 0, 24, 8), labels=[0])])
    assert aligned.is_positive.tolist() == [[False, False, True, False]]


def test_pictures_with_fewer_objects_and_with_none() -> None:
    boxes = torch.tensor([[0.0, 0, 16, 8]]).expand(3, 4, 4)
    scores = torch.full((3, 4, 2), 0.5)
    targets = [
        objects(labels=[]),
        objects((0, 0, 8, 8), labels=[1]),
        objects((0, 0, 8, 8), (16, 0, 24, 8), labels=[0, 1]),
    ]
    aligned = AlignedAssigner()(POINTS, boxes, scores, targets)
    assert aligned.is_positive.sum(1).tolist() == [0, 1, 2]
    nothing = AlignedAssigner()(POINTS, boxes[:1], scores[:1], targets[:1])
    assert not nothing.is_positive.any()
    assert nothing.scores.sum() == 0


def test_an_object_without_area_is_learned_by_no_point() -> None:
    boxes, scores = said(*[(0, 0, 16, 8)] * 4, scores=torch.full((4, 2), 0.5))
    aligned = AlignedAssigner()(POINTS, boxes, scores, [objects((4, 4, 4, 8), labels=[0])])
    assert not aligned.is_positive.any()


def test_an_object_between_the_points_is_learned_by_the_nearest_of_the_finest_map() -> None:
    # The last point belongs to a coarser map, and is the nearest of all.
    points = torch.cat([POINTS, torch.tensor([[16.0, 4.0]])])
    boxes, scores = said(*[(4, 0, 28, 8)] * 5, scores=torch.full((5, 2), 0.25))
    target = objects((15, 2, 15.9, 6), (4, 1, 12, 7), (0, 0, 8, 8), labels=[1, 0, 0])
    aligned = AlignedAssigner()(points, boxes, scores, [target], finest=4)
    # The second reaches from one point to the next and holds neither: equally far, the first, but it overlaps less
    # there than the third; so the second loses this point, as it would one inside of it.
    assert aligned.is_positive.tolist() == [[True, True, False, False, False]]
    assert aligned.owner[0, :2].tolist() == [1, 0]
    overlap = 0.9 * 4 / (24 * 8)
    assert float(aligned.scores[0, 1, 1]) == pytest.approx(overlap)
    # Without word of the maps it is the nearest of all points.
    everywhere = AlignedAssigner()(points, boxes, scores, [target])
    assert everywhere.is_positive[0].nonzero()[:, 0].tolist() == [0, 4]


@pytest.mark.parametrize("side", [1.0, 4.0, 6.0])
def test_no_object_is_left_out_however_small(side: float) -> None:
    dice = torch.Generator().manual_seed(0)
    middles = torch.arange(8) * 8.0 + 4
    points = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1).reshape(-1, 2)
    corner = torch.rand(200, 1, 2, generator=dice) * (64 - side)
    targets = [BoxTarget.of(torch.cat([one, one + side], dim=1), torch.zeros(1, dtype=torch.int64)) for one in corner]
    boxes = torch.cat([points - 4, points + 4], dim=1).expand(200, -1, -1)
    aligned = AlignedAssigner()(points, boxes, torch.full((200, 64, 1), 0.5), targets)
    assert aligned.is_positive.any(1).all()


@pytest.mark.parametrize("most", [1, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_comparing_every_point_with_every_object_gives(most: int, seed: int) -> None:
    torch.manual_seed(seed)
    side = torch.arange(10) * 8.0 + 4
    points = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)
    corners = torch.rand(9, 2) * 60
    target = BoxTarget.of(torch.cat([corners, corners + 5 + torch.rand(9, 2) * 40], 1), torch.randint(3, (9,)))
    reach = torch.rand(2, len(points), 2) * 24 + 1
    boxes, scores = torch.cat([points - reach[0], points + reach[1]], dim=1), torch.rand(len(points), 3)
    aligned = AlignedAssigner(most=most)(points, boxes[None], scores[None], [target])
    overlaps = box_iou(target.boxes, boxes)
    fits = scores.T[target.labels].sqrt() * overlaps**6
    chosen = torch.zeros_like(overlaps, dtype=torch.bool)
    for number, (left, top, right, bottom) in enumerate(target.boxes.tolist()):
        (across, down) = points.T
        inside = torch.nonzero((across > left) & (across < right) & (down > top) & (down < bottom))[:, 0].tolist()
        if not inside:
            middle = (target.boxes[number, :2] + target.boxes[number, 2:]) / 2
            inside = [int((points - middle).square().sum(1).argmin())]
        for point in sorted(inside, key=lambda point: -float(fits[number, point]))[:most]:
            chosen[number, point] = True
    assert torch.equal(aligned.is_positive[0], chosen.any(0))
    owner = torch.where(chosen, overlaps, -1.0).argmax(0)
    own = chosen & (torch.arange(9)[:, None] == owner)
    expected = torch.zeros(len(points), 3)
    for number in range(9):
        for point in torch.nonzero(own[number])[:, 0].tolist():
            share = fits[number, point] / fits[number, own[number]].max()
            expected[point, target.labels[number]] = share * overlaps[number, own[number]].max()
    assert torch.allclose(aligned.scores[0], expected, atol=1e-6)
    assert torch.equal(aligned.boxes[0][chosen.any(0)], target.boxes[owner][chosen.any(0)])


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError):
        AlignedAssigner(most=0)
