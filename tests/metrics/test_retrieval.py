"""Ranks, recall with ties, and the interval, against counts by hand and against simulation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from saccade.metrics.retrieval import Ranks, bootstrap_ratio, chance_recall, rank, right_share


def test_rank_counts_only_wrong_candidates_above_the_best_right_one() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.7, 0.1], [0.2, 0.2, 0.2, 0.3]])
    is_right = torch.tensor([[False, True, True, False], [True, False, False, False]])
    ranks = rank(scores, is_right)
    assert ranks.above.tolist() == [1, 1]
    assert ranks.tied.tolist() == [0, 2]
    assert ranks.right.tolist() == [1, 1]
    assert ranks.place().tolist() == [2.0, 3.0]  # place 2; places 2 to 4 alike, on average 3
    assert ranks.recall(1).tolist() == [0.0, 0.0]
    assert ranks.recall(2).tolist() == pytest.approx([1.0, 1 / 3])
    assert ranks.recall(4).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("above", "tied", "right"), [(0, 3, 1), (1, 2, 2), (2, 0, 1), (0, 4, 3)])
def test_ties_are_the_mean_over_all_orders(above: int, tied: int, right: int) -> None:
    ranks = Ranks(*(torch.tensor([value]) for value in (above, tied, right)))
    places = list(itertools.permutations([True] * right + [False] * tied))
    firsts = [above + order.index(True) + 1 for order in places]
    for count in range(1, above + tied + right + 1):
        expected = sum(first <= count for first in firsts) / len(firsts)
        assert ranks.recall(count).item() == pytest.approx(expected)
    assert ranks.place().item() == pytest.approx(sum(firsts) / len(firsts))


def test_a_model_that_scores_everything_alike_gets_chance() -> None:
    is_right = torch.eye(20, dtype=torch.bool)
    ranks = rank(torch.zeros(20, 20), is_right)
    assert ranks.recall(5).mean().item() == pytest.approx(5 / 20)
    assert chance_recall(torch.ones(20, dtype=torch.int64), 20, 5) == pytest.approx(5 / 20)
    assert chance_recall(torch.full((3,), 20), 20, 1) == 1.0


def test_classes_that_tie_share() -> None:
    scores = torch.tensor([[0.3, 0.3, 0.1], [0.1, 0.5, 0.2]])
    assert right_share(scores, torch.tensor([0, 2])).tolist() == [0.5, 0.0]
    assert right_share(scores, torch.tensor([2, 1])).tolist() == [0.0, 1.0]


def test_the_interval_of_groups_is_that_of_a_binomial_where_groups_are_single() -> None:
    right = torch.tensor([1.0] * 60 + [0.0] * 40)
    low, high = bootstrap_ratio(right, torch.ones(100), resamples=4000)
    assert low == pytest.approx(0.6 - 1.96 * (0.24 / 100) ** 0.5, abs=0.012)
    assert high == pytest.approx(0.6 + 1.96 * (0.24 / 100) ** 0.5, abs=0.012)
    # Five texts of a picture that are right or wrong together say no more than one of them.
    grouped = bootstrap_ratio(5 * right, torch.full((100,), 5.0), resamples=4000)
    assert grouped == pytest.approx((low, high), abs=0.001)


def test_resamples_that_drew_nothing_say_nothing() -> None:
    # Of two groups with things, exp(-2) of the resamples draw neither: that is no figure, and not a figure of 0.
    assert bootstrap_ratio(torch.tensor([3.0, 2.0]), torch.tensor([3.0, 2.0])) == (1.0, 1.0)
    low, high = bootstrap_ratio(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))  # one group has no thing at all
    assert (low, high) == (1.0, 1.0)
    assert all(math.isnan(value) for value in bootstrap_ratio(torch.zeros(2), torch.zeros(2)))
