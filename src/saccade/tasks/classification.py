"""One class per picture: accuracy, calibration, the worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saccade.metrics.classification import (
    ClassificationMeter,
    Scored,
    bootstrap_accuracy,
    confusion_matrix,
    per_class,
    reliability,
)
from saccade.tasks.base import LEVEL, EvaluateConfig, Evaluation, Facts, Table, Tally, Task, known, percent
from saccade.types import Classification, ClassTarget, Prediction, Target, TaskName


@dataclass(frozen=True)
class ClassFigures:
    """One class: precision, recall and F1 are None where nothing can be said (no images, or never predicted)."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of the reliability table: confidences in ``(low, high]``; the means are None where it is empty."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction.

    Attributes:
        index: place in the data set.
        source: path or ``file#index``.
        true: name of the true class.
        predicted: name of the predicted class.
        score: probability of the predicted class.
        true_score: probability of the true class.
    """

    index: int
    source: str
    true: str
    predicted: str
    score: float
    true_score: float


@dataclass(frozen=True, kw_only=True)
class ClassificationEvaluation(Evaluation):
    """How well pictures are classified.

    Attributes:
        per_class: one row per class of the model.
        reliability: confidence against accuracy.
        mistakes: the wrong predictions whose true class got the least probability, worst first.
    """

    kind: ClassVar[TaskName] = "classification"

    per_class: tuple[ClassFigures, ...]
    reliability: tuple[ReliabilityBin, ...]
    mistakes: tuple[Mistake, ...]

    def table(self) -> Table:
        """Precision, recall, F1 and number of pictures of each class."""
        rows = [
            (row.name, percent(row.precision), percent(row.recall), percent(row.f1), f"{row.support:,}")
            for row in self.per_class
        ]
        return Table(("class", "precision", "recall", "F1", "images"), rows)

    def remarks(self) -> list[str]:
        """The worst mistakes."""
        return [f"{m.source}: {m.predicted} {percent(m.score)}, is {m.true}" for m in self.mistakes]


class ClassificationTally(Tally):
    """Counts classified pictures."""

    def __init__(self, classes: tuple[str, ...], relabel: Tensor, config: EvaluateConfig) -> None:
        self.classes, self.relabel, self.config = classes, relabel, config
        self.meter = ClassificationMeter(len(classes), top_k=config.top_k, num_bins=config.num_bins)
        self._sources: list[str] = []
        self._indices: list[int] = []

    def add(
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        indices: Sequence[int],
        sources: Sequence[str],
    ) -> None:
        """Count one batch of classifications."""
        scores = [prediction.scores for prediction in predictions if isinstance(prediction, Classification)]
        labels = [target.label for target in targets if isinstance(target, ClassTarget)]
        self.meter.update(torch.stack(scores).cpu(), self.relabel[torch.stack(labels).cpu()])
        self._sources += sources
        self._indices += indices

    def compute(self) -> dict[str, float]:
        """top1, top5 (with more than five classes), macro_f1, nll, ece."""
        return self.meter.compute()

    def evaluation(self, facts: Facts) -> ClassificationEvaluation:
        """Everything that was counted."""
        scored = self.meter.scored()
        figures = per_class(confusion := confusion_matrix(scored.labels, scored.predicted, len(self.classes)))
        low, high = bootstrap_accuracy(scored.is_right, self.config.resamples, self.config.seed, LEVEL)
        names = self.classes
        return ClassificationEvaluation(
            task="classification",
            headline=ClassificationTask.headline,
            metrics={name: known(value) for name, value in self.compute().items()},
            interval=(known(low), known(high)),
            classes=names,
            per_class=tuple(
                ClassFigures(name, known(p), known(r), known(f1), int(support))
                for name, p, r, f1, support in zip(names, *(column.tolist() for column in figures), strict=True)
            ),
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            reliability=_reliability_rows(scored, self.config.num_bins),
            mistakes=self._worst(scored),
            num_images=len(self._sources),
            missing_classes=tuple(n for n, count in zip(names, figures.support.tolist(), strict=True) if not count),
            skipped=facts.skipped,
            settings=facts.settings,
            seconds=facts.seconds,
            images_per_second=len(self._sources) / facts.seconds,
        )

    def _worst(self, scored: Scored) -> tuple[Mistake, ...]:
        wrong = torch.nonzero(~scored.is_right)[:, 0]
        wrong = wrong[scored.truth[wrong].argsort(stable=True)][: self.config.num_mistakes]
        return tuple(
            Mistake(
                index=self._indices[place],
                source=self._sources[place],
                true=self.classes[int(scored.labels[place])],
                predicted=self.classes[int(scored.predicted[place])],
                score=float(scored.confidence[place]),
                true_score=float(scored.truth[place]),
            )
            for place in wrong.tolist()
        )


class ClassificationTask(Task):
    """One class per picture."""

    name = "classification"
    headline = "top1"

    def tally(self, classes: tuple[str, ...], relabel: Tensor, config: EvaluateConfig) -> ClassificationTally:
        """A new tally."""
        return ClassificationTally(classes, relabel, config)

    def quality(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The accuracy, and the likelihood where that ties."""
        return metrics["top1"], -metrics["nll"]

    def agreement(self, predictions: Sequence[Prediction], reference: Sequence[Prediction]) -> tuple[float, float]:
        """Share of equal likeliest classes, and the largest difference of a probability."""
        ours, theirs = (
            torch.stack([one.scores for one in row if isinstance(one, Classification)])
            for row in (predictions, reference)
        )
        same = (ours.argmax(1) == theirs.argmax(1)).float().mean()
        return float(same), float((ours - theirs).abs().max())

    def record(self, prediction: Prediction, top: int) -> dict[str, Any]:
        """The likeliest classes, likeliest first."""
        assert isinstance(prediction, Classification)
        return {"top": [{"class": name, "score": score} for name, score in prediction.top(top)]}


def _reliability_rows(scored: Scored, num_bins: int) -> tuple[ReliabilityBin, ...]:
    table = reliability(scored.confidence, scored.is_right, num_bins)
    edges = table.edges.tolist()
    columns = (table.counts.tolist(), table.confidence.tolist(), table.accuracy.tolist())
    return tuple(
        ReliabilityBin(low, high, count, known(confidence), known(accuracy))
        for low, high, count, confidence, accuracy in zip(edges, edges[1:], *columns, strict=False)
    )
