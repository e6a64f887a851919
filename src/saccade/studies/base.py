"""What a study is: a claim, the arms that are compared, what is measured, and how a verdict follows.

A study never says how long it trains: it declares what is the same for all of its arms (pictures seen, seconds, or
floating-point operations) and how much of it there is at each scale, and the harness spends it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.studies.intervals import Finding, Status, overall

if TYPE_CHECKING:
    from saccade.data.source import DataSource
    from saccade.studies.trial import Trial

Scale = Literal["smoke", "quick", "full"]
Unit = Literal["images", "seconds", "flops"]

NOTHING: Mapping[str, Any] = MappingProxyType({})
NO_BUDGETS = frozenset({"epochs", "limit_steps", "validate_every", "patience", "seed", "validation_share"})
"""Fields of ``TrainConfig`` that only the harness sets."""


@dataclass(frozen=True, kw_only=True)
class Budget(Config):
    """How much a run of a study may spend."""

    scale: Scale = "full"
    """``full`` ends within 20 minutes on two cores, ``quick`` is meant for 90 seconds; ``smoke`` takes two steps per
    training and shows that everything runs, nothing else."""
    seeds: int = 0
    """Repetitions of every arm; 0 for those of the scale: 2 for ``smoke``, 3 for ``quick``, the study's own for
    ``full``."""

    def __post_init__(self) -> None:
        if self.seeds < 0 or (self.scale != "smoke" and 0 < self.seeds < 3):
            raise ConfigError(f"seeds is {self.seeds}", where="seeds", expected="at least 3, or no interval means much")


SMOKE, QUICK, FULL = Budget(scale="smoke"), Budget(scale="quick"), Budget(scale="full")


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What every training of a study gets, the same for all arms.

    Attributes:
        unit: what is the same: pictures seen, seconds, or floating-point operations.
        smoke: how much at the smallest scale.
        quick: how much with ``--quick``.
        full: how much otherwise.
    """

    unit: Unit
    smoke: float
    quick: float
    full: float

    def amount(self, scale: Scale) -> float:
        """How much at a scale."""
        return {"smoke": self.smoke, "quick": self.quick, "full": self.full}[scale]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things that are compared.

    Attributes:
        model: registry name; empty where the study builds something itself.
        overrides: dotted fields of the model's config.
        train: fields of ``TrainConfig``, none of which may be a budget.
        options: what else the measurement of this arm depends on.
        data: what it is trained and measured on, by scale, where arms differ in that.
    """

    model: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[Scale], DataSource] | None = None

    def __post_init__(self) -> None:
        if forbidden := sorted(NO_BUDGETS & set(self.train)):
            raise ConfigError(f"an arm sets {', '.join(forbidden)}", where="train", expected="no budgets")


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture of the page.

    Attributes:
        png: the file.
        caption: what it shows.
    """

    png: bytes
    caption: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one trial found.

    Attributes:
        figures: numbers by name; NaN where one is undefined.
        series: lines by name: places and values.
        shots: pictures.
        details: values of single pictures, by the thing that was measured on them and by figure; NaN where one is
            undefined. Their intervals are over pictures, those of ``figures`` over seeds.
    """

    figures: Mapping[str, float]
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    shots: Sequence[Shot] = ()
    details: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One trial, finished.

    Attributes:
        arm: its name.
        seed: of weights, order and augmentation.
        measured: what it found.
        spent: pictures seen, seconds and operations of its training; empty where nothing was trained.
        seconds: of the whole trial.
    """

    arm: str
    seed: int
    measured: Measured
    spent: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Results:
    """All trials of a study.

    Attributes:
        outcomes: in the order of arms and seeds.
    """

    outcomes: Sequence[Outcome]

    def arms(self) -> list[str]:
        """Names of the arms, in order."""
        return list(dict.fromkeys(outcome.arm for outcome in self.outcomes))

    def of(self, arm: str) -> list[Outcome]:
        """The trials of an arm, by seed."""
        return sorted((o for o in self.outcomes if o.arm == arm), key=lambda outcome: outcome.seed)

    def values(self, arm: str, key: str) -> list[float]:
        """A figure of an arm, one value per seed; NaN where it is undefined."""
        return [float(outcome.measured.figures.get(key, math.nan)) for outcome in self.of(arm)]

    def measured_on(self, arm: str) -> list[str]:
        """The things that were measured on single pictures in the trials of an arm, in order."""
        return list(dict.fromkeys(thing for outcome in self.of(arm) for thing in outcome.measured.details))

    def pictures(self, arm: str, thing: str, key: str) -> list[float]:
        """A figure of a thing on every picture of all seeds of an arm; NaN where it is undefined."""
        found = [outcome.measured.details.get(thing, {}).get(key, ()) for outcome in self.of(arm)]
        return [float(value) for values in found for value in values]

    def mean(self, arms: Sequence[str], key: str) -> list[float]:
        """A figure averaged over several arms, one value per seed."""
        columns = zip(*(self.values(arm, key) for arm in arms), strict=True)
        return [sum(column) / len(column) for column in columns]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of the study's table.

    Attributes:
        key: name of the figure.
        heading: of the column.
        form: what it is: a share (written as percentage), a plain number, a count, or a time, which is above 0.
        is_drawn: whether it also has a chart.
        is_hit: whether its values are 0 or 1 (or between, where a tie counts in part): hits of one try each.
    """

    key: str
    heading: str
    form: Literal["percent", "number", "count", "time"] = "number"
    is_drawn: bool = False
    is_hit: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Lines of the study's page.

    Attributes:
        series: their name in ``Measured.series``; one line per arm, the mean of all seeds with its interval.
        title: above.
        across: name of the horizontal axis.
        up: name of the vertical axis.
    """

    series: str
    title: str
    across: str
    up: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A claim and how it is checked.

    Attributes:
        name: for the command line.
        claim: in the words of the notes.
        place: the heading it stands under there.
        method: what is compared, what is measured, and what would refute the claim.
        arms: what is compared, by name.
        measure: one trial of one arm.
        judge: the findings, from the measured figures of all trials.
        columns: figures of the table.
        details: figures of single pictures; one more table per arm, of the things they were measured on.
        plots: lines of the page.
        spend: what every training gets; None where nothing is trained.
        data: what is trained and measured on, by scale.
        seeds: repetitions at full scale, at least three.
        source: file whose content the cache depends on.
        shared: files beside it that measure something for it.
        command: words after ``saccade study`` that repeat it.
        advice: what to choose, from the results; for studies of a user's own data.
    """

    name: str
    claim: str
    place: str
    method: str
    arms: Mapping[str, Arm]
    measure: Callable[[Trial], Measured]
    judge: Callable[[Results], Sequence[Finding]]
    columns: Sequence[Column]
    source: str
    shared: Sequence[str] = ()
    details: Sequence[Column] = ()
    plots: Sequence[Plot] = ()
    spend: Spend | None = None
    data: Callable[[Scale], DataSource] | None = None
    seeds: int = 5
    command: str = ""
    advice: Callable[[Results], Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if self.seeds < 3 or not self.arms:
            raise ConfigError(f"the study {self.name} has {self.seeds} seeds and {len(self.arms)} arms", where="study")

    def num_seeds(self, budget: Budget) -> int:
        """Repetitions of every arm."""
        return budget.seeds or {"smoke": 2, "quick": 3, "full": self.seeds}[budget.scale]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A study that was run.

    Attributes:
        study: what was asked.
        budget: at which scale.
        results: of all trials.
        findings: one per part of the claim.
        status: of the whole claim.
        advice: what to choose.
        seconds: spent on its trials, those that were taken from the cache included.
        data: what it ran on, in words.
    """

    study: Study
    budget: Budget
    results: Results
    findings: Sequence[Finding]
    seconds: float
    data: str = ""
    advice: Sequence[str] = field(default_factory=tuple)

    @property
    def status(self) -> Status:
        """What the findings say together."""
        return overall(self.findings)
