"""The studies themselves: all of them can be built, all of them run, and what they compute is right."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from saccade.errors import UnknownNameError
from saccade.models.build import create
from saccade.studies import norms, proposals, queries, token, upsampling
from saccade.studies.base import SMOKE, Measured, Outcome, Results
from saccade.studies.catalogue import find, names
from saccade.studies.harness import check_spent
from saccade.studies.trial import Allowance, Training, Trial
from saccade.types import BoxTarget, Classes, Detections


@pytest.mark.parametrize("name", names())
def test_every_study_can_be_built(name: str) -> None:
    study = find(name)
    assert study.name == name
    assert study.claim
    assert "Refuted" in study.method or "can fail" in study.method
    assert study.seeds >= 3
    assert Path(study.source).name == f"{name.replace('-', '_')}.py"
    for arm in study.arms.values():
        create(arm.model, num_classes=3, overrides=dict(arm.overrides) or None)


@pytest.mark.parametrize("name", names())
def test_every_study_measures_what_it_tells(name: str) -> None:
    """Its last arm at the smallest budget: what the table and the plots show is there."""
    study = find(name)
    arm = list(study.arms)[-1]
    opened = study.arms[arm].data or study.data
    source = opened(SMOKE.scale) if opened else None
    allowance = Allowance(unit=None, amount=0)
    if study.spend:
        allowance = Allowance(unit=study.spend.unit, amount=study.spend.smoke)
    trial = Trial(arm, study.arms[arm], 1, scale="smoke", allowance=allowance, source=source)
    measured = study.measure(trial)
    check_spent(trial)
    assert measured.figures
    known = {column.key for column in study.columns}
    assert known & set(measured.figures)
    for figures in measured.details.values():
        assert {column.key for column in study.details} >= set(figures)
    for places, values in measured.series.values():
        assert len(places) == len(values) > 0
    if study.spend and study.spend.unit == "images":
        assert study.spend.smoke < study.spend.quick < study.spend.full


def test_an_unknown_study_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'norm-type'"):
        find("norm_typ")


def test_a_checkerboard_is_seen() -> None:
    smooth = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    noise = torch.randn(4, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    pattern = (torch.arange(32) % 2).float()
    assert upsampling.checkerboard(smooth + noise) < 2
    # The pattern adds (32 * 32 / 2)² to one of the 64 frequencies in which noise has 32 * 32 each.
    assert upsampling.checkerboard(smooth + noise + pattern) == pytest.approx(1 + 4, rel=0.15)
    assert upsampling.checkerboard(smooth + noise + pattern[:, None]) == pytest.approx(1 + 4, rel=0.15)


def test_recall_counts_objects_that_a_proposal_overlaps() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [20.0, 20, 30, 30]])
    near = torch.tensor([[0.0, 0, 10, 9], [0.0, 0, 4, 4]])
    assert proposals.recall(near, truth) == 0.5
    assert proposals.recall(near[:0], truth) == 0


def test_objects_claimed_by_two_queries_are_counted() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9], [20.0, 20, 30, 30]])
    found = Detections(
        boxes,
        torch.tensor([0.9, 0.8, 0.7]),
        torch.zeros(3, dtype=torch.int64),
        torch.arange(3),
        Classes(("shape",)),
    )
    target = BoxTarget.of(boxes[[0, 2]], torch.zeros(2, dtype=torch.int64))
    assert queries.shared([(found, target)]) == 0.5
    assert math.isnan(queries.shared([(found.above(0.95), target)]))


def test_queries_that_stay_put_have_their_own_place() -> None:
    places = torch.rand(1, 5, 2, generator=torch.Generator().manual_seed(0))
    assert queries.own_place(places.expand(7, -1, -1)) == pytest.approx(1)
    assert queries.own_place(places.transpose(0, 1).expand(-1, 7, -1)) == pytest.approx(0, abs=1e-6)


def test_attention_to_oneself_has_no_distance() -> None:
    eye = torch.eye(5)[None, None]  # a class token and 2 x 2 patches
    assert token._distance(eye, 1, (2, 2)) == 0
    even = torch.full((1, 1, 5, 5), 0.2)
    assert token._distance(even, 1, (2, 2)) == pytest.approx((0.5 + 0.5 + math.sqrt(0.5)) / 4)


def training(losses: list[float], *, is_broken: bool = False) -> Training:
    return Training(losses=tuple(losses), grad_norms=(), is_broken=is_broken, seconds=1, images=1)


def test_a_run_fails_that_breaks_or_stalls() -> None:
    assert norms.has_failed(training([2.3] * 40), 10)
    assert not norms.has_failed(training([2.3] * 36 + [1.9] * 4), 10)
    assert norms.has_failed(training([1.0], is_broken=True), 10)
    assert norms.has_failed(training([math.inf]), 10)


def test_no_study_is_decided_by_nothing() -> None:
    """Every verdict without figures is open."""
    for name in names():
        study = find(name)
        outcomes = [
            Outcome(arm=arm, seed=seed, measured=Measured(figures={}), spent={}, seconds=0.0)
            for arm in study.arms
            for seed in range(3)
        ]
        assert {finding.status for finding in study.judge(Results(outcomes))} == {"undecided"}, name
