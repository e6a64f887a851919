"""Evaluation: how good a classifier is on a data set, how sure that figure is, and where the model is most wrong.

Classes are joined by name, so a data set may lack some of the model's classes or order them otherwise. Every setting
that affects a figure is part of the result.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from saccade.config import Config, to_dict
from saccade.data.dataset import Dataset
from saccade.data.loader import Batch, Loader, LoaderConfig
from saccade.data.source import DataSource
from saccade.engine.modes import evaluating
from saccade.errors import ConfigError, DataError, nearest
from saccade.metrics.classification import (
    ClassificationMeter,
    Scored,
    bootstrap_accuracy,
    confusion_matrix,
    per_class,
    reliability,
)
from saccade.models.base import VisionModel
from saccade.types import Classes

LEVEL = 0.95
"""Level of the bootstrap interval."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """How an evaluation is made."""

    batch_size: int = 256
    """Pictures per forward pass; does not affect the figures beyond rounding."""
    workers: int | None = None
    """Processes that read pictures; by default as many as the machine has cores, none for pictures in memory."""
    strict: bool = False
    """Fail at the first unreadable picture instead of skipping it with a count."""
    top_k: int = 5
    """A picture counts as right in the top k where its class is among the k likeliest."""
    num_bins: int = 15
    """Equal-width confidence bins of the calibration error."""
    resamples: int = 2000
    """Bootstrap samples of the interval."""
    seed: int = 0
    """Of the bootstrap."""
    num_mistakes: int = 24
    """How many of the worst mistakes are kept."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "top_k", "num_bins", "resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected="at least 1")


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


@dataclass(frozen=True)
class Evaluation:
    """The result of ``evaluate``.

    Attributes:
        headline: key of the metric that a run is judged by.
        metrics: top1, top5 (with more than five classes), macro_f1, nll, ece.
        interval: 95 % bootstrap interval of the headline.
        classes: names, in the order of the model.
        per_class: one row per class of the model.
        confusion: ``[K][K]`` counts, row the true class, column the predicted one.
        reliability: confidence against accuracy.
        mistakes: the wrong predictions whose true class got the least probability, worst first.
        num_images: images that were evaluated.
        missing_classes: classes of the model without an image here; they are no part of the averages.
        skipped: unreadable images, with the reason.
        settings: everything that affects a figure.
        seconds: wall time, reading included.
        images_per_second: the same as a rate.
    """

    headline: str
    metrics: dict[str, float | None]
    interval: tuple[float | None, float | None]
    classes: tuple[str, ...]
    per_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ReliabilityBin, ...]
    mistakes: tuple[Mistake, ...]
    num_images: int
    missing_classes: tuple[str, ...]
    skipped: tuple[str, ...]
    settings: dict[str, Any]
    seconds: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an undefined figure is None."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Read what ``to_dict`` gave."""
        return TypeAdapter(cls).validate_python(data)


def evaluate(model: VisionModel[Any, Any, Any], dataset: Dataset, config: EvaluateConfig | None = None) -> Evaluation:
    """Evaluate a classifier on labelled pictures, where the model lives and in its own precision.

    Raises:
        DataError: where the data set has a class that the model does not know, or no readable picture.
        ImageError: with ``strict``, at the first unreadable picture.
    """
    config = config or EvaluateConfig()
    start = time.perf_counter()
    relabel = join_classes(model.classes, dataset.classes)
    loader = Loader(
        dataset,
        model.preprocess,
        LoaderConfig(batch_size=config.batch_size, workers=config.workers, strict=config.strict),
        shuffle=False,
    )
    meter = ClassificationMeter(len(model.classes), top_k=config.top_k, num_bins=config.num_bins)
    sources: list[str] = []
    indices: list[int] = []
    for batch in score_batches(model, loader.epoch(0), meter, relabel):
        sources += batch.sources
        indices += batch.indices
    if not sources:
        raise DataError(
            "the data set has no readable picture", remedy="see what was skipped with `saccade data inspect`"
        )
    seconds = time.perf_counter() - start
    scored = meter.scored()
    settings = {
        **to_dict(config),
        "preprocess": to_dict(model.preprocess),
        "level": LEVEL,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": str(next(model.parameters()).device),
        "data": dataset.fingerprint(),
    }
    figures = per_class(confusion := confusion_matrix(scored.labels, scored.predicted, len(model.classes)))
    low, high = bootstrap_accuracy(scored.is_right, config.resamples, config.seed, LEVEL)
    return Evaluation(
        headline="top1",
        metrics={name: _known(value) for name, value in meter.compute().items()},
        interval=(_known(low), _known(high)),
        classes=model.classes.names,
        per_class=tuple(
            ClassFigures(name, _known(p), _known(r), _known(f1), int(support))
            for name, p, r, f1, support in zip(model.classes, *(column.tolist() for column in figures), strict=True)
        ),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        reliability=_reliability_rows(scored, config.num_bins),
        mistakes=_worst(scored, model.classes, sources, indices, config.num_mistakes),
        num_images=len(sources),
        missing_classes=tuple(n for n, count in zip(model.classes, figures.support.tolist(), strict=True) if not count),
        skipped=tuple(loader.skipped),
        settings=settings,
        seconds=seconds,
        images_per_second=len(sources) / seconds,
    )


def evaluate_split(
    model: VisionModel[Any, Any, Any], source: DataSource, split: str | None, config: EvaluateConfig
) -> tuple[Dataset, Evaluation]:
    """Score a model on one split of a source; returns that split with the result.

    Args:
        model: as for ``evaluate``.
        source: the data.
        split: its name; the one that is held out where it is None.
        config: as for ``evaluate``.

    Raises:
        DataError: as ``evaluate``, naming the source.
    """
    dataset = source.split(split or source.held_out)
    try:
        return dataset, evaluate(model, dataset, config)
    except DataError as error:
        error.where = error.where or source.name
        raise


def join_classes(model_classes: Classes, data_classes: Classes, *, where: str | None = None) -> Tensor:
    """Label of the model ``[K_data]`` int64 for each label of the data set, joined by name.

    Args:
        model_classes: what the model knows.
        data_classes: what the data set has.
        where: name of the data set, for the message.

    Raises:
        DataError: where the data set has a class the model was not trained on.
    """
    ids = {name: label for label, name in enumerate(model_classes)}
    unknown = [name for name in data_classes if name not in ids]
    if unknown:
        near = nearest(unknown[0], ids)
        raise DataError(
            f"the data set has {len(unknown)} class(es) that the model does not know: {', '.join(unknown[:5])}",
            where=where,
            expected=f"some of: {', '.join(model_classes.names[:12])}" + (", ..." if len(model_classes) > 12 else ""),
            remedy=f"rename it to {near!r}" if near else "evaluate on data with the classes it was trained on",
        )
    return torch.tensor([ids[name] for name in data_classes], dtype=torch.int64)


def score_batches(
    model: VisionModel[Any, Any, Any], batches: Iterable[Batch], meter: ClassificationMeter, relabel: Tensor
) -> Iterator[Batch]:
    """Run the model over batches and add its scores to ``meter``; yields each batch when it is done.

    Args:
        model: in any mode; it is evaluated in evaluation mode and every module's mode is restored.
        batches: as a loader gives them.
        meter: takes the scores.
        relabel: ``[K_data]`` from ``join_classes``.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in batches:
            # Not inference_mode: a table that a model caches in its first forward pass must stay usable for training.
            with torch.no_grad():
                images = batch.images.to(device).channels_last()
                predictions = model.postprocess(model(images), images)
            labels = relabel[torch.stack([target.label for target in batch.targets]).cpu()]
            meter.update(torch.stack([prediction.scores for prediction in predictions]).cpu(), labels)
            yield batch


def _worst(scored: Scored, classes: Classes, sources: list[str], indices: list[int], count: int) -> tuple[Mistake, ...]:
    wrong = torch.nonzero(~scored.is_right)[:, 0]
    wrong = wrong[scored.truth[wrong].argsort(stable=True)][:count]
    return tuple(
        Mistake(
            index=indices[place],
            source=sources[place],
            true=classes[int(scored.labels[place])],
            predicted=classes[int(scored.predicted[place])],
            score=float(scored.confidence[place]),
            true_score=float(scored.truth[place]),
        )
        for place in wrong.tolist()
    )


def _reliability_rows(scored: Scored, num_bins: int) -> tuple[ReliabilityBin, ...]:
    table = reliability(scored.confidence, scored.is_right, num_bins)
    edges = table.edges.tolist()
    columns = (table.counts.tolist(), table.confidence.tolist(), table.accuracy.tolist())
    return tuple(
        ReliabilityBin(low, high, count, _known(confidence), _known(accuracy))
        for low, high, count, confidence, accuracy in zip(edges, edges[1:], *columns, strict=False)
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
