"""What every task promises: how predictions are counted, what a run is judged by, how a result is told."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pydantic import TypeAdapter
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError, UnknownNameError
from saccade.types import Prediction, Target, TaskName

LEVEL = 0.95
"""Level of the bootstrap intervals."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """How an evaluation is made."""

    batch_size: int = 256
    """Pictures per forward pass of a classifier; does not affect the figures beyond rounding. A segmenter takes as many
    as the processor's caches hold."""
    workers: int | None = None
    """Processes that read pictures; by default as many as the machine has cores, none for pictures in memory."""
    strict: bool = False
    """Fail at the first unreadable picture instead of skipping it with a count."""
    top_k: int = 5
    """A picture counts as right in the top k where its class is among the k likeliest."""
    num_bins: int = 15
    """Equal-width confidence bins of the calibration error."""
    templates: tuple[str, ...] = ()
    """What the name of a category is put into before a zero-shot model reads it; none for the model's own."""
    boundary_tolerance: float = 0.0075
    """How far apart boundaries may lie and still match, as a share of the picture's diagonal; 0 leaves them out."""
    max_detections: int = 100
    """Most objects of one class in one picture that count, the likeliest first."""
    score_threshold: float = 0.5
    """Score from which objects count as found where pictures, mistaken classes and misses are told; AP has none."""
    resamples: int = 2000
    """Bootstrap samples of the interval."""
    detection_resamples: int = 200
    """The same for the AP of objects, which costs far more per sample."""
    seed: int = 0
    """Of the bootstrap."""
    num_mistakes: int = 24
    """How many of the worst mistakes are kept."""
    num_shown: int = 4
    """How many of the worst, of the median and of the best pictures with label maps or objects are kept."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "top_k", "num_bins", "max_detections", "resamples", "detection_resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected="at least 1")
        if self.boundary_tolerance < 0:
            raise ConfigError(f"boundary_tolerance is {self.boundary_tolerance}", expected="at least 0")
        if not 0 <= self.score_threshold <= 1:
            raise ConfigError(f"score_threshold is {self.score_threshold}", expected="between 0 and 1")


class Table(NamedTuple):
    """Figures for people: a head and rows of ready texts, the first column names something."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Evaluation(abc.ABC):
    """The result of ``evaluate``; each task adds its own figures.

    Attributes:
        task: what was evaluated.
        headline: key of the metric that a run is judged by.
        metrics: figures by name; None where undefined.
        interval: 95 % bootstrap interval of the headline.
        classes: names, in the order of the model.
        confusion: ``[K][K]`` counts (pictures or pixels), row the true class, column the predicted one.
        num_images: images that were evaluated.
        missing_classes: classes of the model that do not occur here; they are no part of the averages.
        skipped: unreadable images, with the reason.
        settings: everything that affects a figure.
        seconds: wall time, reading included.
        images_per_second: the same as a rate.
    """

    task: TaskName
    headline: str
    metrics: dict[str, float | None]
    interval: tuple[float | None, float | None]
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    num_images: int
    missing_classes: tuple[str, ...]
    skipped: tuple[str, ...]
    settings: dict[str, Any]
    seconds: float
    images_per_second: float

    @abc.abstractmethod
    def table(self) -> Table:
        """The figures of each class."""

    @abc.abstractmethod
    def remarks(self) -> list[str]:
        """What went wrong most, one line each, the worst first."""

    def conditions(self) -> list[str]:
        """What the figures depend on and people should see beside them, one line each."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an undefined figure is None."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Evaluation:
        """Read what ``to_dict`` gave; its ``task`` says which kind of evaluation it is.

        Raises:
            UnknownNameError: for a task that has no evaluation.
        """
        kinds = {kind.kind: kind for kind in Evaluation.finished()}
        task = data.get("task")
        if task not in kinds:
            raise UnknownNameError("task", str(task), kinds)
        evaluation: Evaluation = TypeAdapter(kinds[task]).validate_python(data)
        return evaluation

    @classmethod
    def finished(cls) -> list[type[Evaluation]]:
        """All kinds of evaluations that say of what task they are."""
        kinds = [kind for below in cls.__subclasses__() for kind in (below, *below.finished())]
        return [kind for kind in kinds if hasattr(kind, "kind")]

    kind: ClassVar[TaskName]
    """The task that a subclass is of."""


class Facts(NamedTuple):
    """What an evaluation knows beside the figures.

    Attributes:
        skipped: unreadable images.
        settings: everything that affects a figure.
        seconds: wall time.
    """

    skipped: tuple[str, ...]
    settings: dict[str, Any]
    seconds: float


class Tally(abc.ABC):
    """Counts predictions against the truth, batch by batch."""

    @abc.abstractmethod
    def add(
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        indices: Sequence[int],
        sources: Sequence[str],
    ) -> None:
        """Count one batch.

        Args:
            predictions: of the model.
            targets: ground truth in the labels of the data set.
            indices: place of each in the data set.
            sources: path or ``file#index`` of each.
        """

    @abc.abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics so far; NaN where undefined."""

    @abc.abstractmethod
    def evaluation(self, facts: Facts) -> Evaluation:
        """Everything that was counted."""


class Task(abc.ABC):
    """What the engine asks of a task.

    Attributes:
        name: of the task.
        headline: key of the metric that a run is judged by.
        min_agreement: least share of equal answers with which a faster copy may take the place of the model.
        max_difference: how far its probabilities may be off.
    """

    name: ClassVar[TaskName]
    headline: ClassVar[str]
    min_agreement: ClassVar[float] = 0.995
    max_difference: ClassVar[float] = 0.02

    @abc.abstractmethod
    def tally(self, classes: tuple[str, ...], relabel: Tensor, config: EvaluateConfig) -> Tally:
        """A new tally.

        Args:
            classes: names, in the order of the model.
            relabel: ``[K_data]`` int64, the model's label for each label of the data set.
            config: how to evaluate.
        """

    @abc.abstractmethod
    def quality(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """What makes an epoch better; compared in order."""

    @abc.abstractmethod
    def agreement(self, predictions: Sequence[Prediction], reference: Sequence[Prediction]) -> tuple[float, float]:
        """Share of equal answers, and how far probabilities are apart, of a faster copy and the model as written."""

    @abc.abstractmethod
    def record(self, prediction: Prediction, top: int) -> dict[str, Any]:
        """A prediction as plain data for JSON.

        Args:
            prediction: of this task.
            top: how many classes to tell.
        """


def known(value: float) -> float | None:
    """The figure, or None where it is undefined."""
    return None if math.isnan(value) else value


def percent(value: float | None) -> str:
    """A share as a percentage; a dash where it is undefined."""
    return "–" if value is None else f"{100 * value:.1f} %"
