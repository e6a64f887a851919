"""Intervals and verdicts on numbers made up for them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from saccade.studies.intervals import (
    above,
    exact,
    hit_interval,
    interval,
    more,
    overall,
    picture_interval,
    positive_interval,
    same,
    share_interval,
    times,
    told_interval,
)

NAN = math.nan


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.low == pytest.approx(4 - found.high)


def test_undefined_values_are_left_out_and_one_value_says_nothing() -> None:
    assert interval([NAN, 1.0, 1.0, math.inf]).count == 2
    assert interval([5.0]).low == -math.inf
    assert interval([]).count == 0


@pytest.mark.parametrize("values", [[0.0, 0.02, 0.3], [1.0, 0.98, 0.7], [0.0, 0.5, 1.0], [0.0, 0.0, 0.1]])
def test_the_interval_of_a_share_stays_between_0_and_1(values: list[float]) -> None:
    found = share_interval(values)
    assert interval(values).low < 0 or interval(values).high > 1
    assert 0 <= found.low < found.mean < found.high <= 1


def test_shares_far_from_the_ends_have_students_interval_nearly() -> None:
    values = [0.48, 0.5, 0.53, 0.5]
    student, found = interval(values), share_interval(values)
    assert found.low == pytest.approx(student.low, abs=1e-3)
    assert found.high == pytest.approx(student.high, abs=1e-3)
    assert share_interval([1.5, 2.0]) == interval([1.5, 2.0])  # no shares
    assert share_interval([0.5]).low == -math.inf


def test_the_interval_of_a_share_covers_it_as_often_as_it_says() -> None:
    """Mean accuracies of three seeds, each of 40 pictures that are right with probability 0.95."""
    draws = np.random.default_rng(0).binomial(40, 0.95, size=(2000, 3)) / 40
    covered = [share_interval(row.tolist()) for row in draws]
    share = sum(found.low <= 0.95 <= found.high for found in covered) / len(covered)
    assert 0.92 <= share <= 0.99


def test_hits_have_wilsons_interval() -> None:
    found = hit_interval([1.0] * 8 + [0.0] * 2)
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert hit_interval([1.0] * 5).high == 1
    assert 0.4 < hit_interval([1.0] * 5).low < 0.6
    assert hit_interval([0.0] * 5).low == 0
    assert hit_interval([NAN]).count == 0


def test_figures_of_pictures_have_an_interval_within_their_range() -> None:
    values = [0.0] * 9 + [1.0]
    found = picture_interval(values)
    assert 0 <= found.low < 0.1 < found.high < 0.5
    assert picture_interval(values) == found
    assert picture_interval([0.5, NAN]).low == -math.inf


def test_a_difference_of_shares_is_at_most_all_of_them() -> None:
    assert more("", [1.0, 0.0, 0.9], [0.0, 0.8, 0.1]).told.endswith("(-100.0 % to +100.0 %)")
    gains, others = [1.0, -0.9, 0.9], [-1.0, 0.8, 0.1]
    assert more("", gains, others, form="points").told.endswith("(-200.0 % to +200.0 %)")
    assert above("", [0.9, -0.8, 0.4], 0.0, form="points").told.startswith("16.7 % (-100.0 % to 100.0 %)")


@pytest.mark.parametrize(
    ("higher", "lower", "status"),
    [
        ([0.9, 0.91, 0.92], [0.5, 0.52, 0.51], "holds"),
        ([0.5, 0.52, 0.51], [0.9, 0.91, 0.92], "does not hold here"),
        ([0.9, 0.3, 0.6], [0.5, 0.52, 0.51], "undecided"),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "does not hold here"),
        ([0.9, 0.9], [0.5, 0.5], "undecided"),
        ([0.9, 0.9, NAN], [0.5, 0.5, 0.5], "undecided"),
    ],
)
def test_more_goes_by_the_interval_of_pairs(higher: list[float], lower: list[float], status: str) -> None:
    assert more("a above b", higher, lower).status == status


def test_pairing_by_seed_sees_what_means_hide() -> None:
    """Seeds differ far more than arms, yet every seed says the same."""
    first, second = [0.2, 0.5, 0.8], [0.18, 0.47, 0.78]
    assert more("first above second", first, second).status == "holds"
    assert more("first above second", first, second[::-1]).status == "undecided"


def test_a_margin_moves_the_line() -> None:
    first, second = [0.60, 0.61, 0.60], [0.50, 0.51, 0.50]
    assert more("by a tenth and a half", first, second, by=0.15).status == "does not hold here"
    assert more("no less", second, first, by=-0.2).status == "holds"


def test_same_holds_only_where_the_whole_interval_is_inside() -> None:
    base = [0.50, 0.51, 0.52]
    assert same("equal", [0.501, 0.511, 0.521], base, within=0.03).status == "holds"
    assert same("equal", [0.60, 0.61, 0.62], base, within=0.03).status == "does not hold here"
    assert same("equal", [0.40, 0.41, 0.42], base, within=0.03).status == "does not hold here"
    assert same("equal", [0.45, 0.51, 0.57], base, within=0.03).status == "undecided"


def test_times_compares_logarithms() -> None:
    found = times("twice", [2.0, 4.0, 8.0], [1.0, 2.0, 4.0], at_least=1.5)
    assert found.status == "holds"
    assert found.told.startswith("2 times (2 to 2)")
    assert times("thrice", [2.0, 4.0, 8.0], [1.0, 2.0, 4.0], at_least=3).status == "does not hold here"
    assert times("no time at all", [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]).status == "undecided"


def test_above_and_exact() -> None:
    assert above("over half", [0.7, 0.71, 0.72], 0.5).status == "holds"
    assert above("over half", [0.3, 0.31, 0.32], 0.5).status == "does not hold here"
    assert exact("equal", [1e-7, 2e-6], 1e-5).status == "holds"
    assert exact("equal", [1e-7, 1e-3], 1e-5).status == "does not hold here"
    assert exact("equal", [1e-7, NAN], 1e-5).status == "does not hold here"
    assert exact("equal", [NAN], 1e-5).status == "undecided"


def test_one_part_that_fails_decides_and_one_that_is_open_keeps_it_open() -> None:
    holds = above("", [1.0, 1.0, 1.0], 0.5)
    fails = above("", [0.0, 0.0, 0.0], 0.5)
    opened = above("", [0.0, 1.0, 0.5], 0.5)
    assert overall([holds, holds]) == "holds"
    assert overall([holds, opened]) == "undecided"
    assert overall([holds, opened, fails]) == "does not hold here"
    assert overall([]) == "undecided"


def test_figures_are_told_with_their_interval() -> None:
    assert told_interval(interval([0.5, 0.5, 0.5]), "percent") == "50.0 %"
    assert told_interval(interval([1.0, 2.0, 3.0]), "number") == "2 (-0.484 to 4.48)"
    assert told_interval(interval([1000.0, 1000.0]), "count") == "1,000"
    assert told_interval(interval([0.5]), "percent") == "50.0 % (one value)"
    assert told_interval(interval([]), "percent") == "–"


def test_the_interval_of_times_stays_above_zero() -> None:
    values = [1.0, 1.1, 9.0]  # one of them was disturbed
    assert interval(values).low < 0
    found = positive_interval(values)
    logs = interval([math.log(value) for value in values])
    assert found.mean == pytest.approx((1.0 * 1.1 * 9.0) ** (1 / 3))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)))
    assert positive_interval([2.0, 0.0]) == interval([2.0, 0.0])
    assert told_interval(positive_interval([4.0]), "time") == "4 (one value)"
