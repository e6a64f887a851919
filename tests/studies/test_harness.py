"""The harness: what is done once, what goes on after an interruption, and that budgets are equal whatever arms try."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saccade.data.dataset import ArrayDataset, subset
from saccade.data.source import DataSource
from saccade.errors import ConfigError, DataError, RunError, UnknownNameError
from saccade.studies.base import QUICK, SMOKE, Arm, Budget, Measured, Results, Scale, Spend, Study
from saccade.studies.catalogue import find
from saccade.studies.harness import Progress, Workers, run_study, unevenness
from saccade.studies.trial import Allowance, Trial
from saccade.types import Classes

StudyMaker = Callable[..., Study]


def squares(scale: Scale) -> DataSource:
    """Dark and bright squares of 32x32 pixels: 48 to train on, 16 held out."""
    classes = Classes(("dark", "bright"))
    generator = torch.Generator().manual_seed(0)

    def part(count: int, name: str) -> ArrayDataset:
        labels = torch.arange(count) % 2
        noise = torch.randint(0, 60, (count, 32, 32), generator=generator, dtype=torch.uint8)
        return ArrayDataset(noise + (labels[:, None, None] * 150).to(torch.uint8), labels, classes, name)

    return DataSource({"train": part(48, "train"), "test": part(16, "test")}, classes, "squares", "squares")


def spending(unit: str, amount: float) -> Spend:
    """The same amount at every scale."""
    return Spend(unit=unit, smoke=amount, quick=amount, full=amount)  # type: ignore[arg-type]


def test_a_claim_is_judged_by_all_seeds(make_study: StudyMaker, tmp_path: Path) -> None:
    report = run_study(make_study(), QUICK, tmp_path)
    assert report.status == "holds"
    assert [(o.arm, o.seed) for o in report.results.of("bad")] == [("bad", 0), ("bad", 1), ("bad", 2)]
    assert report.results.values("good", "accuracy") == [0.9, 0.91, 0.92]
    assert run_study(make_study(), SMOKE, tmp_path).status == "undecided"  # two seeds decide nothing


def test_finished_trials_are_not_done_again(make_study: StudyMaker, tmp_path: Path) -> None:
    done: list[tuple[str, int]] = []
    standard = make_study().measure

    def measure(trial: Trial) -> Measured:
        done.append((trial.name, trial.seed))
        if len(done) == 4:
            raise KeyboardInterrupt
        return standard(trial)

    with pytest.raises(KeyboardInterrupt):
        run_study(make_study(measure=measure), QUICK, tmp_path)
    assert len(done) == 4
    report = run_study(make_study(measure=measure), QUICK, tmp_path)
    assert len(done) == 7  # three of six were kept
    assert done[4] == done[3]
    again = run_study(make_study(measure=measure), QUICK, tmp_path)
    assert len(done) == 7
    assert again.findings == report.findings
    # What was read back is what was measured: numbers that are undefined, lines and pictures too.
    fresh, kept = report.results.outcomes[-1].measured, again.results.outcomes[-1].measured
    assert kept.figures["accuracy"] == fresh.figures["accuracy"]
    assert math.isnan(kept.figures["undefined"])
    assert kept.series == {"loss": ([1.0, 2.0, 3.0], [3.0, 2.0, 0.5])}
    assert again.results.of("good")[0].measured.shots == report.results.of("good")[0].measured.shots


def test_another_arm_budget_or_code_is_another_trial(make_study: StudyMaker, tmp_path: Path) -> None:
    calls, standard = 0, make_study().measure

    def measure(trial: Trial) -> Measured:
        nonlocal calls
        calls += 1
        return standard(trial)

    study = make_study(measure=measure)
    run_study(study, SMOKE, tmp_path / "out")
    assert calls == 4
    changed = {**study.arms, "bad": Arm(model="vit_average_test", options={"colour": "blue"})}
    run_study(dataclasses.replace(study, arms=changed), SMOKE, tmp_path / "out")
    assert calls == 6
    code = tmp_path / "study.py"
    code.write_text("old")
    run_study(dataclasses.replace(study, source=str(code)), SMOKE, tmp_path / "out")
    code.write_text("new")
    run_study(dataclasses.replace(study, source=str(code)), SMOKE, tmp_path / "out")
    assert calls == 14
    run_study(dataclasses.replace(study, shared=(str(code),)), SMOKE, tmp_path / "out")
    assert calls == 18
    run_study(study, QUICK, tmp_path / "out")
    assert calls == 24


def test_a_damaged_file_is_measured_again(make_study: StudyMaker, tmp_path: Path) -> None:
    run_study(make_study(), SMOKE, tmp_path)
    for file in (tmp_path / "trials" / "fake").glob("good-0-*"):
        file.write_text("{")
    assert run_study(make_study(), QUICK, tmp_path).status == "holds"


def test_progress_and_time_left_are_told(make_study: StudyMaker, tmp_path: Path) -> None:
    told: list[Progress] = []
    run_study(make_study(), SMOKE, tmp_path, told.append)
    assert [round(one.share, 2) for one in told] == [0, 0.25, 0.5, 0.75]
    assert told[0].seconds_left is None
    assert all(one.seconds_left is not None for one in told[1:])
    assert told[1].words == "fake: bad, seed 0"


def train_once(trial: Trial) -> Measured:
    """One training with whatever the arm wants changed."""
    model = trial.build()
    trial.train(model, dict(trial.arm.options))
    return Measured(figures={"accuracy": trial.evaluate(model).metrics["top1"] or 0.0})


def test_equally_many_pictures_whatever_the_arm_wants(make_study: StudyMaker, tmp_path: Path) -> None:
    arms = {
        "good": Arm(model="vit_average_test", train={"batch_size": 8}),
        "bad": Arm(model="vit_average_test", train={"batch_size": 16}, options={"epochs": 5, "limit_steps": 1}),
    }
    study = make_study(arms=arms, measure=train_once, spend=spending("images", 64), data=squares)
    outcomes = run_study(study, SMOKE, tmp_path).results.outcomes
    assert {(o.arm, o.spent["images"], o.spent["steps"]) for o in outcomes} == {("good", 64, 8), ("bad", 64, 4)}


def test_equally_many_operations(make_study: StudyMaker, tmp_path: Path) -> None:
    arms = {
        "good": Arm(model="vit_average_test", train={"batch_size": 2}),
        "bad": Arm(model="vit_average_test", overrides={"backbone.depth": 4}, train={"batch_size": 2}),
    }
    study = make_study(arms=arms, measure=train_once, spend=spending("flops", 1e8), data=squares)
    results = run_study(study, SMOKE, tmp_path).results
    shallow, deep = (results.of(name)[0].spent for name in ("good", "bad"))
    assert shallow["flops"] == pytest.approx(1e8, rel=0.1)
    assert deep["flops"] == pytest.approx(1e8, rel=0.1)
    assert shallow["images"] > 1.5 * deep["images"]


def test_a_training_by_time_ends(make_study: StudyMaker, tmp_path: Path) -> None:
    study = make_study(measure=train_once, spend=spending("seconds", 0.2), data=squares)
    results = run_study(study, SMOKE, tmp_path).results
    assert all(outcome.spent["steps"] >= 1 for outcome in results.outcomes)


def test_no_arm_may_bring_its_own_budget() -> None:
    with pytest.raises(ConfigError, match="an arm sets epochs, limit_steps"):
        Arm(model="vit_average_test", train={"epochs": 3, "limit_steps": 2, "learning_rate": 1e-3})


def trains_nothing(trial: Trial) -> Measured:
    return Measured(figures={})


def trains_twice(trial: Trial) -> Measured:
    trial.train(trial.build())
    trial.train(trial.build())
    return Measured(figures={})


def cheats(trial: Trial) -> Measured:
    """Pretends a larger budget to its own trial."""
    trial.allowance = dataclasses.replace(trial.allowance, amount=640)
    trial.train(trial.build())
    trial.allowance = dataclasses.replace(trial.allowance, amount=64)
    return Measured(figures={})


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        (trains_nothing, "trained nothing"),
        (trains_twice, "has spent its budget"),
        (cheats, "spent 624 images, every other one 64"),
    ],
)
def test_unequal_budgets_are_refused(make_study: StudyMaker, tmp_path: Path, measure: object, told: str) -> None:
    study = make_study(measure=measure, spend=spending("images", 64), data=squares)
    with pytest.raises(RunError, match=told):
        run_study(study, SMOKE, tmp_path)


def test_without_a_budget_nothing_is_trained(make_study: StudyMaker, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="declares no budget"):
        run_study(make_study(measure=train_once, data=squares), SMOKE, tmp_path)


def test_a_training_that_breaks_is_a_result(make_study: StudyMaker, tmp_path: Path) -> None:
    def measure(trial: Trial) -> Measured:
        model = trial.build()
        with torch.no_grad():
            next(iter(model.parameters())).fill_(float("nan"))
        training = trial.train(model)
        return Measured(figures={"broken": float(training.is_broken)})

    study = make_study(measure=measure, spend=spending("images", 64), data=squares)
    assert run_study(study, SMOKE, tmp_path).results.values("good", "broken") == [1, 1]


def test_uneven_seconds_leave_the_claim_open(make_study: StudyMaker, tmp_path: Path) -> None:
    report = run_study(make_study(), QUICK, tmp_path)
    seconds = {"good": 3.0, "bad": 2.0}
    outcomes = [dataclasses.replace(o, spent={"seconds": seconds[o.arm]}) for o in report.results.outcomes]
    allowance = Allowance(unit="seconds", amount=2.0)
    (finding,) = unevenness(Results(outcomes), allowance)
    assert finding.status == "undecided"
    assert "good 3.0 s, bad 2.0 s" in finding.told
    even = [dataclasses.replace(o, spent={"seconds": 2.0 + 0.1 * o.seed}) for o in outcomes]
    assert not unevenness(Results(even), allowance)


def test_data_that_is_too_small_is_refused(make_study: StudyMaker, tmp_path: Path) -> None:
    def few(scale: str) -> DataSource:
        source = squares("smoke")
        return dataclasses.replace(source, splits={**source.splits, "train": subset(source.split("train"), range(3))})

    study = make_study(measure=train_once, spend=spending("images", 8), data=few)
    with pytest.raises(DataError, match="only 3 pictures to train on"):
        run_study(study, SMOKE, tmp_path)


def test_two_seeds_are_too_few_for_a_verdict() -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        Budget(scale="quick", seeds=2)


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    told: list[Progress] = []
    alone = run_study(find("patch-vs-fcn"), SMOKE, tmp_path / "alone")
    workers = Workers(2, functools.partial(find, "patch-vs-fcn"))
    together = run_study(find("patch-vs-fcn"), SMOKE, tmp_path / "together", told.append, workers)
    assert together.results.values("patch_cnn", "gap") == alone.results.values("patch_cnn", "gap")
    assert [(o.arm, o.seed) for o in together.results.outcomes] == [("patch_cnn", 0), ("patch_cnn", 1)]
    assert [one.share for one in told] == [0, 0.5, 1]
    assert told[0].words == "patch-vs-fcn: 2 trials at a time"
    # Finished trials are found again, by one process or by several.
    kept = run_study(find("patch-vs-fcn"), SMOKE, tmp_path / "together", workers=workers)
    assert kept.results.outcomes == together.results.outcomes


def test_an_error_in_another_process_arrives(tmp_path: Path) -> None:
    workers = Workers(2, functools.partial(find, "patch-vs-fnc"))
    with pytest.raises(UnknownNameError, match="did you mean 'patch-vs-fcn'"):
        run_study(find("patch-vs-fcn"), SMOKE, tmp_path, workers=workers)


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    workers = Workers(2, functools.partial(os._exit, 9))
    with pytest.raises(RunError, match="ended from outside; try again with --workers 1"):
        run_study(find("patch-vs-fcn"), SMOKE, tmp_path, workers=workers)
