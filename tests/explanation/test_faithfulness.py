"""The measures against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from saccade.errors import InputError
from saccade.explanation import faithfulness as ff


def additive(*weights: float, bias: float = 0.0):
    def evaluate(masks: Tensor) -> Tensor:
        return masks.double() @ torch.tensor(weights, dtype=torch.float64) + bias

    return evaluate


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_two_pixel_curves_by_hand() -> None:
    # f = 3 a + 1 b + 0.5. Hiding a first: 4.5, 1.5, 0.5; revealing a first: 0.5, 3.5, 4.5.
    evaluate, values = additive(3, 1, bias=0.5), torch.tensor([0.9, 0.1])
    deletion = ff.deletion(evaluate, values, steps=2)
    insertion = ff.insertion(evaluate, values, steps=2)
    assert deletion.fractions.tolist() == [0.0, 0.5, 1.0]
    assert deletion.scores.tolist() == [4.5, 1.5, 0.5]
    assert insertion.scores.tolist() == [0.5, 3.5, 4.5]
    assert deletion.area == pytest.approx((4.5 + 1.5) / 4 + (1.5 + 0.5) / 4)
    assert insertion.area == pytest.approx((0.5 + 3.5) / 4 + (3.5 + 4.5) / 4)


def test_a_wrong_order_is_punished() -> None:
    evaluate = additive(3, 1)
    right, wrong = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0])
    assert ff.deletion(evaluate, right, steps=2).area < ff.deletion(evaluate, wrong, steps=2).area
    assert ff.insertion(evaluate, right, steps=2).area > ff.insertion(evaluate, wrong, steps=2).area


def test_constant_map_scores_as_random_in_both_games() -> None:
    # Both orders of two tied pixels are averaged: the middle point is (3 + 1) / 2 in both games.
    evaluate, flat = additive(3, 1, bias=0.5), torch.zeros(2)
    deletion, insertion = ff.deletion(evaluate, flat, steps=2), ff.insertion(evaluate, flat, steps=2)
    assert deletion.scores.tolist() == [4.5, 2.5, 0.5]
    assert insertion.area == pytest.approx(deletion.area)
    control = ff.random_control(evaluate, 2, steps=2, samples=2000, generator=generator())
    assert control.area == pytest.approx(deletion.area, abs=0.05)


def test_constant_map_with_sampled_ties_of_a_model_that_is_not_additive() -> None:
    def evaluate(masks: Tensor) -> Tensor:
        return (masks.double() @ torch.arange(1.0, 17.0, dtype=torch.float64)).square()

    flat = torch.full((16,), 0.3)
    deletion = ff.deletion(evaluate, flat, steps=8, samples=5)
    insertion = ff.insertion(evaluate, flat, steps=8, samples=5)
    assert insertion.area == pytest.approx(deletion.area, rel=1e-12)
    many = ff.deletion(evaluate, flat, steps=8, samples=3000)
    control = ff.random_control(evaluate, 16, steps=8, samples=3000, generator=torch.Generator().manual_seed(7))
    assert many.area == pytest.approx(control.area, rel=0.01)


def test_ties_are_broken_within_their_own_rank_only() -> None:
    values = torch.tensor([0.0, 5.0, 0.0, 0.0, 7.0])
    found = ff.orders(values, samples=40, generator=generator())
    assert found.shape == (6, 5)  # 3! ways
    assert found[:, :2].tolist() == [[4, 1]] * 6
    assert {tuple(row[2:].tolist()) for row in found} == {
        (0, 2, 3), (0, 3, 2), (2, 0, 3), (2, 3, 0), (3, 0, 2), (3, 2, 0),
    }  # fmt: skip
    mirrored = ff.mirrored_ties(found, values)
    assert mirrored[:, :2].tolist() == [[4, 1]] * 6
    assert torch.equal(mirrored[:, 2:], found[:, 2:].flip(-1))
    assert ff.orders(torch.tensor([1.0, 3.0, 2.0]), samples=40, generator=generator()).tolist() == [[1, 2, 0]]
    assert ff.orders(torch.zeros(30), samples=4, generator=generator()).shape == (4, 30)


def test_fractions_are_real_shares() -> None:
    # 5 places in 3 steps: 0, 2, 3, 5 of them; the axis must say 0.4 and 0.6, not 1/3 and 2/3.
    assert ff.counts_of(5, 3) == [0, 2, 3, 5]
    assert ff.deletion(additive(1, 1, 1, 1, 1), torch.arange(5.0), steps=3).fractions.tolist() == [0, 0.4, 0.6, 1]
    assert ff.counts_of(3, 10) == [0, 1, 2, 3]
    # An additive model with equal weights is a straight line at every resolution.
    for steps in (1, 2, 3, 4, 5):
        assert ff.deletion(additive(1, 1, 1, 1, 1), torch.arange(5.0), steps=steps).area == pytest.approx(2.5)


def test_pointing_game() -> None:
    region = torch.zeros(4, 4, dtype=torch.bool)
    region[1, 1] = True
    hit, miss = torch.zeros(4, 4), torch.zeros(4, 4)
    hit[1, 1] = 1
    miss[1, 3] = 1
    assert ff.pointing_hit(hit, region) == 1
    assert ff.pointing_hit(miss, region) == 0
    assert ff.pointing_hit(miss, region, tolerance=2) == 1
    assert ff.pointing_hit(miss, region, tolerance=1) == 0
    assert ff.pointing_hit(hit + miss, region) == 0.5
    assert ff.pointing_hit(torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.bool)) == 0
    assert ff.pointing_hit(torch.full((4, 4), 0.7), torch.ones(4, 4, dtype=torch.bool)) == 0
    with pytest.raises(InputError, match="empty"):
        ff.pointing_hit(hit, torch.zeros(4, 4, dtype=torch.bool))


def test_energy_is_told_beside_the_share_of_the_area() -> None:
    values = torch.tensor([[3.0, 1.0], [0.0, -4.0]])
    region = torch.tensor([[True, False], [False, False]])
    assert ff.energy_inside(values, region) == (0.75, 0.25)
    assert ff.energy_inside(torch.zeros(2, 2), region) == (0.0, 0.25)
    inside, area = ff.energy_inside(torch.ones(10, 10), torch.arange(100).view(10, 10) < 37)
    assert inside == pytest.approx(area)
    with pytest.raises(InputError, match="one size"):
        ff.energy_inside(values, torch.ones(3, 3, dtype=torch.bool))


def test_negative_share() -> None:
    assert ff.negative_share(torch.tensor([3.0, -1.0])) == 0.25
    assert ff.negative_share(torch.zeros(3)) == 0
    assert ff.negative_share(torch.tensor([-1.0])) == 1


def test_rank_similarity_is_spearmans() -> None:
    first, second = torch.randn(2, 9, 9, generator=generator())
    second[:3] = 0  # ties
    assert ff.rank_similarity(first, second) == pytest.approx(spearmanr(first.flatten(), second.flatten()).statistic)
    assert ff.rank_similarity(first, first.exp()) == pytest.approx(1)
    assert ff.rank_similarity(first, -first) == pytest.approx(-1)
    assert ff.rank_similarity(first, torch.ones(9, 9)) == 0


def test_structural_similarity() -> None:
    values = torch.rand(12, 12, generator=generator())
    assert ff.structural_similarity(values, values * 5) == pytest.approx(1)
    noise = torch.rand(12, 12, generator=generator().manual_seed(3))
    assert ff.structural_similarity(values, noise) < 0.5
    # Two constants a = 1 and b = -1 (after scaling): (2ab + c1) / (a^2 + b^2 + c1), the variance part is 1.
    c1 = 0.02**2
    expected = (-2 + c1) / (2 + c1)
    assert ff.structural_similarity(torch.full((8, 8), 3.0), torch.full((8, 8), -2.0)) == pytest.approx(expected)


def test_controls() -> None:
    centre = ff.centre_map((5, 7))
    assert centre.shape == (5, 7)
    assert centre.argmax() == 2 * 7 + 3
    assert centre[2, 3] == 1
    assert torch.equal(centre, centre.flip(0).flip(1))
    # One standard deviation is a quarter of the side.
    assert ff.centre_map((1, 4))[0, 0] == pytest.approx(math.exp(-(0.375**2) / (2 * 0.25**2)))
    picture = torch.zeros(3, 6, 6)
    picture[:, :, 3:] = 1
    edges = ff.edge_map(picture)
    assert edges.shape == (6, 6)
    assert edges[:, 2:4].eq(0.5).all()
    assert edges[:, :2].eq(0).all()
    assert ff.edge_map(picture.expand(2, 3, 6, 6)).shape == (2, 6, 6)


def test_what_is_not_a_number_has_no_rank() -> None:
    assert math.isnan(ff.rank_similarity(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])))
    assert math.isnan(ff.rank_similarity(torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("inf")])))
