"""Runs a study: every arm with every seed, under equal budgets, from the cache where it was done before."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path

import torch

from saccade.data.source import DataSource
from saccade.errors import DataError, RunError
from saccade.studies.base import Budget, Outcome, Report, Results, Study
from saccade.studies.cache import Cache
from saccade.studies.intervals import Finding
from saccade.studies.processes import new_context
from saccade.studies.trial import Allowance, Trial, held_out

FEWEST_PICTURES = {"train": 8, "held out": 4}
"""A study on fewer would measure chance."""

UNEVEN = 1.35
"""Where one arm was given so many times the seconds of another, nothing is decided."""


@dataclass(frozen=True)
class Progress:
    """Where a study stands.

    Attributes:
        share: of its trials that is done, 0 to 1.
        words: what it does now.
        seconds_left: estimate; None before the first trial is done.
    """

    share: float
    words: str
    seconds_left: float | None


Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Workers:
    """Processes that carry out trials beside each other.

    Attributes:
        count: how many.
        study: gives the study once more, in another process; has to be picklable.
    """

    count: int
    study: Callable[[], Study]


def run_study(
    study: Study, budget: Budget, folder: Path, watch: Watch | None = None, workers: Workers | None = None
) -> Report:
    """Run a study to its end and judge it.

    Args:
        study: what to run.
        budget: at which scale.
        folder: of all studies; finished trials are kept below it.
        watch: told where it stands.
        workers: None: one trial after the other, in this process.

    Raises:
        DataError: where the data has too few pictures.
        RunError: where a trial did not spend what it should, or the folder cannot be written.
    """
    bench = _Bench(study, budget, folder)
    plan = [(name, seed) for seed in range(study.num_seeds(budget)) for name in study.arms]
    kept = {trial: found for trial in plan if (found := bench.kept(*trial)) is not None}
    missing = [trial for trial in plan if trial not in kept]
    tell = _Teller(watch, len(plan), len(kept))
    if workers is not None and min(workers.count, len(missing)) > 1:
        _share_out(workers, bench, missing, tell)
        kept |= {trial: found for trial in missing if (found := bench.kept(*trial)) is not None}
    outcomes = []
    for trial in plan:
        name, seed = trial
        if trial not in kept:
            progress = tell.within(len(kept), f"{study.name}: {name}, seed {seed}")
            kept[trial] = bench.carry_out(name, seed, progress)
        outcomes.append(kept[trial])
    results = Results(tuple(outcomes))
    findings = [*study.judge(results), *unevenness(results, bench.allowance)]
    advice = tuple(study.advice(results)) if study.advice else ()
    seconds = sum(outcome.seconds for outcome in outcomes)
    told = "; ".join(dict.fromkeys(_told(source) for source in bench.sources.values() if source is not None))
    return Report(
        study=study, budget=budget, results=results, findings=findings, seconds=seconds, data=told, advice=advice
    )


class _Bench:
    """A study with everything that its trials need.

    Args:
        study: what is run.
        budget: at which scale.
        folder: of all studies.

    Attributes:
        sources: data of each arm.
        allowance: what each training may spend.

    Raises:
        DataError: where the data has too few pictures.
    """

    def __init__(self, study: Study, budget: Budget, folder: Path) -> None:
        self.study, self.budget, self.folder = study, budget, folder
        self.sources = _sources(study, budget)
        for source in filter(None, self.sources.values()):
            for told, split in (("train", "train"), ("held out", held_out(source))):
                check_size(len(source.split(split)), told, source.name)
        prints = {name: source.fingerprint() if source else {} for name, source in self.sources.items()}
        self._cache = Cache(folder, study, budget, prints)
        unit, amount = (study.spend.unit, study.spend.amount(budget.scale)) if study.spend else (None, 0.0)
        self.allowance = Allowance(unit=unit, amount=amount)

    def kept(self, name: str, seed: int) -> Outcome | None:
        """A trial that was finished earlier."""
        return self._cache.read(name, self.study.arms[name], seed)

    def carry_out(self, name: str, seed: int, progress: Callable[[float], None] | None = None) -> Outcome:
        """Measure an arm with a seed, and keep it."""
        arm = self.study.arms[name]
        trial = Trial(
            name,
            arm,
            seed,
            scale=self.budget.scale,
            allowance=self.allowance,
            source=self.sources[name],
            progress=progress,
        )
        if progress is not None:
            progress(0.0)
        start = time.perf_counter()
        measured = self.study.measure(trial)
        check_spent(trial)
        seconds = time.perf_counter() - start
        outcome = Outcome(arm=name, seed=seed, measured=measured, spent=trial.spent, seconds=seconds)
        self._cache.write(outcome, arm)
        return outcome


def _share_out(workers: Workers, bench: _Bench, missing: Sequence[tuple[str, int]], tell: _Teller) -> None:
    """Let processes of one share of the threads each carry out trials; what they find is kept on disk."""
    count = min(workers.count, len(missing))
    threads = max(torch.get_num_threads() // count, 1)
    words = f"{bench.study.name}: {count} trials at a time"
    tell.within(tell.cached, words)(0.0)
    with ProcessPoolExecutor(count, new_context(), _begin, (threads,)) as pool:
        futures = [pool.submit(_work, workers.study, bench.budget, bench.folder, *trial) for trial in missing]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                tell.within(tell.cached + done, words)(0.0)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                remedy = "try again with --workers 1, which needs less memory"
                raise RunError("a process was ended from outside", where=bench.study.name, remedy=remedy) from None
            raise


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    torch.set_num_threads(threads)


def _work(study: Callable[[], Study], budget: Budget, folder: Path, name: str, seed: int) -> None:
    if not _benches:
        _benches.append(_Bench(study(), budget, folder))
    _benches[0].carry_out(name, seed)


_benches: list[_Bench] = []
"""Of a worker: what it works at, from its first trial on."""


def _sources(study: Study, budget: Budget) -> dict[str, DataSource | None]:
    """What each arm is trained and measured on; the same data is opened once."""
    shared = study.data(budget.scale) if study.data else None
    opened = {arm.data: arm.data(budget.scale) for arm in study.arms.values() if arm.data is not None}
    return {name: shared if arm.data is None else opened[arm.data] for name, arm in study.arms.items()}


def _told(source: DataSource) -> str:
    counts = ", ".join(f"{len(dataset)} pictures for {split}" for split, dataset in source.splits.items())
    return f"{source.name}, {counts}"


def check_size(count: int, told: str, where: str) -> None:
    """Refuse data that is too small for its splits.

    Raises:
        DataError: with the number that is needed.
    """
    least = FEWEST_PICTURES[told]
    if count < least:
        words = "to train on" if told == "train" else "held out to measure on"
        raise DataError(f"only {count} pictures {words}", where=where, expected=f"at least {least}")


def check_spent(trial: Trial) -> None:
    """Refuse a trial that did not train with what every other one gets.

    Raises:
        RunError: with both amounts; a budget in seconds is bounded by the training itself and told on the page.
    """
    unit, amount = trial.allowance.unit, trial.allowance.amount
    if unit is None:
        return
    if not trial.spent:
        raise RunError("the trial trained nothing, so it has no equal budget", where=trial.name)
    spent = trial.spent[unit]
    # At least one step is always taken, and no step is divided.
    tolerance = max(0.05 * amount, spent / trial.spent["steps"])
    if unit != "seconds" and not trial.spent["broken"] and abs(spent - amount) > tolerance:
        raise RunError(f"the trial spent {spent:,.0f} {unit}, every other one {amount:,.0f}", where=trial.name)


def unevenness(results: Results, allowance: Allowance) -> list[Finding]:
    """A finding that decides nothing, where trainings did not last as long as each other."""
    if allowance.unit != "seconds":
        return []
    means = {arm: _mean([o.spent.get("seconds", 0.0) for o in results.of(arm)]) for arm in results.arms()}
    low, high = min(means.values()), max(means.values())
    if low > 0 and high / low <= UNEVEN:
        return []
    told = ", ".join(f"{arm} {seconds:.1f} s" for arm, seconds in means.items())
    return [Finding("all arms were trained equally long", "undecided", told)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class _Teller:
    """Says how much is done and how much time is left."""

    def __init__(self, watch: Watch | None, count: int, cached: int) -> None:
        self.watch, self.count, self.cached = watch, count, cached
        self.began = time.monotonic()

    def within(self, place: int, words: str) -> Callable[[float], None]:
        """What a trial calls with the share of its training that is done."""

        def tell(share: float) -> None:
            if self.watch is None:
                return
            fresh, elapsed = place - self.cached + share, time.monotonic() - self.began
            left = elapsed * (self.count - place - share) / fresh if fresh > 0.05 else None
            self.watch(Progress((place + share) / self.count, words, left))

        return tell
