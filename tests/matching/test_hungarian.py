"""Hungarian matching: closed forms, brute force, and nothing leaks between pictures."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError
from saccade.matching.hungarian import HungarianMatcher, Objects
from saccade.types import BoxTarget


def objects_of(*counts: int, seed: int = 0) -> Objects:
    """So many random objects per picture, of 4 classes, on a canvas of 100x200."""
    dice = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        low = torch.rand(count, 2, generator=dice) * torch.tensor([100.0, 50.0])
        boxes = torch.cat([low, low + 10 + 40 * torch.rand(count, 2, generator=dice)], dim=1)
        targets.append(BoxTarget.of(boxes, torch.randint(4, (count,), generator=dice)))
    return Objects.of(targets, torch.tensor([100, 200]).expand(len(counts), 2))


def said(batch: int, queries: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    boxes = 0.1 + 0.8 * torch.rand(batch, queries, 4, generator=dice)
    return 2 * torch.randn(batch, queries, 5, generator=dice), boxes


def test_objects_are_shares_of_their_own_extent() -> None:
    target = BoxTarget.of(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([2]))
    objects = Objects.of([target, BoxTarget.of(torch.zeros(0, 4), target.labels[:0])], torch.tensor([[80, 40], [9, 9]]))
    torch.testing.assert_close(objects.boxes[0, 0], torch.tensor([0.5, 0.5, 0.5, 0.5]))
    assert objects.is_object.tolist() == [[True], [False]]
    assert objects.labels[0].tolist() == [2]
    assert objects.repeat(3).is_object.flatten().tolist() == [True, False] * 3


def test_the_total_counts_and_not_the_nearest() -> None:
    # One dimension tells all: queries at .4 and .6, objects at .5 and .9. The first object's nearest is a tie that the
    # second object decides: .6 must go to .9, or the total is .1 + .5 instead of .1 + .3.
    boxes = torch.tensor([[[0.6, 0.5, 0.1, 0.1], [0.4, 0.5, 0.1, 0.1]]])
    objects = Objects(
        torch.zeros(1, 2, dtype=torch.int64),
        torch.tensor([[[0.5, 0.5, 0.1, 0.1], [0.9, 0.5, 0.1, 0.1]]]),
        torch.ones(1, 2, dtype=torch.bool),
    )
    matcher = HungarianMatcher(class_cost=0, giou_cost=0)
    pairs = matcher(torch.zeros(1, 2, 2), boxes, objects)
    assert pairs.query.tolist() == [0, 1]
    assert pairs.object.tolist() == [1, 0]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_no_other_pairs_are_cheaper(scores: str) -> None:
    matcher = HungarianMatcher(scores=scores)
    logits, boxes = said(2, 5)
    objects = objects_of(3, 2)
    costs, pairs = matcher.costs(logits, boxes, objects), matcher(logits, boxes, objects)
    for image, count in enumerate((3, 2)):
        mine = pairs.image == image
        assert int(mine.sum()) == count
        paid = float(costs[image, pairs.query[mine], pairs.object[mine]].sum())
        others = [
            float(sum(costs[image, query, index] for index, query in enumerate(order)))
            for order in itertools.permutations(range(5), count)
        ]
        assert paid == pytest.approx(min(others), abs=1e-5)


def test_costs_in_numbers() -> None:
    boxes, other = torch.tensor([0.5, 0.5, 0.2, 0.4]), torch.tensor([0.6, 0.5, 0.2, 0.4])
    objects = Objects(torch.tensor([[1]]), other.reshape(1, 1, 4), torch.tensor([[True]]))
    logits = torch.log(torch.tensor([0.2, 0.3, 0.5])).reshape(1, 1, 3)
    # Of sides .2 half is shared: IoU 1/3, and the hull has no empty share.
    cost = HungarianMatcher(class_cost=1, box_cost=5, giou_cost=2).costs(logits, boxes.reshape(1, 1, 4), objects)
    assert float(cost) == pytest.approx(-0.3 + 5 * 0.1 - 2 / 3)
    squared = HungarianMatcher(distance="l2", giou_cost=0).costs(logits, boxes.reshape(1, 1, 4), objects)
    assert float(squared) == pytest.approx(-0.3 + 5 * 0.01)
    logit = torch.full((1, 1, 2), math.log(3))  # a score of 3/4
    focal = HungarianMatcher(scores="sigmoid", box_cost=0, giou_cost=0).costs(logit, boxes.reshape(1, 1, 4), objects)
    expected = -0.25 * 0.25**2 * math.log(0.75) + 0.75 * 0.75**2 * math.log(0.25)
    assert float(focal) == pytest.approx(expected)


def test_pictures_know_nothing_of_each_other() -> None:
    matcher = HungarianMatcher()
    logits, boxes = said(3, 6)
    objects = objects_of(4, 0, 2)
    assert matcher.costs(logits, boxes, objects).shape == (3, 6, 4)  # and not 6 objects for everybody
    together = matcher(logits, boxes, objects)
    for image, count in enumerate((4, 0, 2)):
        alone = Objects(*(part[image : image + 1, :count] for part in objects))
        pairs = matcher(logits[image : image + 1], boxes[image : image + 1], alone)
        mine = together.image == image
        assert torch.equal(pairs.query, together.query[mine])
        assert torch.equal(pairs.object, together.object[mine])


def test_more_objects_than_queries_and_no_objects_at_all() -> None:
    matcher = HungarianMatcher()
    logits, boxes = said(2, 3)
    pairs = matcher(logits, boxes, objects_of(5, 1))
    assert (pairs.image == 0).sum() == 3
    assert len(set(pairs.object[pairs.image == 0].tolist())) == 3
    empty = matcher(logits, boxes, objects_of(0, 0))
    assert [len(part) for part in empty] == [0, 0, 0]
    assert empty.query.dtype == torch.int64


def test_wild_numbers_do_not_stop_the_solver() -> None:
    logits, boxes = said(1, 3)
    boxes[0, 1] = math.nan
    assert sorted(HungarianMatcher()(logits, boxes, objects_of(2)).query.tolist()) == [0, 2]


def test_no_gradient_is_kept() -> None:
    logits, boxes = said(1, 3)
    assert not HungarianMatcher()(logits.requires_grad_(), boxes.requires_grad_(), objects_of(2)).query.requires_grad


def test_costs_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="costs"):
        HungarianMatcher(class_cost=0, box_cost=0, giou_cost=0)
    with pytest.raises(ConfigError, match="costs"):
        HungarianMatcher(box_cost=-1)
