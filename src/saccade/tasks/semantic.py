"""One class per pixel: IoU, boundaries, the pictures that went worst, in the middle and best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saccade.metrics.semantic import SemanticMeter
from saccade.tasks.base import LEVEL, EvaluateConfig, Evaluation, Facts, Table, Tally, Task, known, percent
from saccade.types import IGNORE, MapTarget, Prediction, Segmentation, Target, TaskName


@dataclass(frozen=True)
class RegionFigures:
    """One class of pixels; a figure is None where nothing can be said.

    Attributes:
        name: of the class.
        iou: intersection over union.
        dice: F1 of the pixels.
        precision: right among the pixels given this class.
        recall: found among the pixels of this class.
        boundary_f: F-score of its boundary.
        share: of the labelled pixels.
        images: in which it occurs.
    """

    name: str
    iou: float | None
    dice: float | None
    precision: float | None
    recall: float | None
    boundary_f: float | None
    share: float | None
    images: int


@dataclass(frozen=True)
class Shown:
    """One picture of the gallery.

    Attributes:
        index: place in the data set.
        source: path or ``file#index``.
        miou: mean IoU over the classes that are in its truth or its prediction.
    """

    index: int
    source: str
    miou: float


@dataclass(frozen=True, kw_only=True)
class SemanticEvaluation(Evaluation):
    """How well pixels are labelled; ``confusion`` counts pixels.

    Attributes:
        per_class: one row per class of the model.
        worst: pictures with the lowest mean IoU, lowest first.
        median: pictures from the middle.
        best: pictures with the highest mean IoU, highest first.
    """

    kind: ClassVar[TaskName] = "semantic"

    per_class: tuple[RegionFigures, ...]
    worst: tuple[Shown, ...]
    median: tuple[Shown, ...]
    best: tuple[Shown, ...]

    def table(self) -> Table:
        """IoU, Dice, precision, recall, boundary score and extent of each class."""
        rows = [
            (
                row.name,
                *map(percent, (row.iou, row.dice, row.precision, row.recall, row.boundary_f, row.share)),
                f"{row.images:,}",
            )
            for row in self.per_class
        ]
        return Table(("class", "IoU", "Dice", "precision", "recall", "boundary F", "of pixels", "images"), rows)

    def remarks(self) -> list[str]:
        """The pictures with the lowest mean IoU."""
        return [f"{shown.source}: mean IoU {percent(shown.miou)}" for shown in self.worst]


class SemanticTally(Tally):
    """Counts label maps."""

    def __init__(self, classes: tuple[str, ...], relabel: Tensor, config: EvaluateConfig) -> None:
        self.classes, self.relabel, self.config = classes, relabel, config
        self.meter = SemanticMeter(
            len(classes),
            boundary_tolerance=config.boundary_tolerance or None,
            resamples=config.resamples,
            seed=config.seed,
            kept=config.num_shown,
        )

    def add(
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        indices: Sequence[int],
        sources: Sequence[str],
    ) -> None:
        """Count one batch of label maps, each in the pixels of its own picture."""
        for prediction, target, index, source in zip(predictions, targets, indices, sources, strict=True):
            assert isinstance(prediction, Segmentation)
            assert isinstance(target, MapTarget)
            labels = relabelled(target.labels.cpu(), self.relabel)
            self.meter.update(prediction.labels.cpu(), labels, index=index, source=source)

    def compute(self) -> dict[str, float]:
        """miou, pixel_accuracy, mean_accuracy, dice, boundary_f."""
        return self.meter.compute()

    def evaluation(self, facts: Facts) -> SemanticEvaluation:
        """Everything that was counted."""
        figures = self.meter.per_class()
        low, high = self.meter.interval(LEVEL)
        gallery = self.meter.gallery()
        worst, median, best = (
            tuple(Shown(one.index, one.source, one.score) for one in part)
            for part in (gallery.worst, gallery.median, gallery.best)
        )
        names, pictures = self.classes, figures.pictures.tolist()
        return SemanticEvaluation(
            task="semantic",
            headline=SemanticTask.headline,
            metrics={name: known(value) for name, value in self.compute().items()},
            interval=(known(low), known(high)),
            classes=names,
            per_class=tuple(
                RegionFigures(
                    name, known(iou), known(dice), known(precision), known(recall), known(edge), known(share), count
                )
                for name, iou, dice, precision, recall, edge, share, count in zip(
                    names, *(column.tolist() for column in figures), strict=True
                )
            ),
            confusion=tuple(tuple(row) for row in self.meter.confusion.tolist()),
            worst=worst,
            median=median,
            best=best,
            num_images=self.meter.num_pictures,
            missing_classes=tuple(name for name, count in zip(names, pictures, strict=True) if not count),
            skipped=facts.skipped,
            settings=facts.settings,
            seconds=facts.seconds,
            images_per_second=self.meter.num_pictures / facts.seconds,
        )


class SemanticTask(Task):
    """One class per pixel."""

    name = "semantic"
    headline = "miou"

    def tally(self, classes: tuple[str, ...], relabel: Tensor, config: EvaluateConfig) -> SemanticTally:
        """A new tally."""
        return SemanticTally(classes, relabel, config)

    def quality(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The mean IoU, and the pixel accuracy where that ties."""
        return metrics["miou"], metrics["pixel_accuracy"]

    def agreement(self, predictions: Sequence[Prediction], reference: Sequence[Prediction]) -> tuple[float, float]:
        """Share of equal pixels, and the mean difference of their probabilities: single pixels always differ."""
        same, apart, pixels = 0, 0.0, 0
        for ours, theirs in zip(predictions, reference, strict=True):
            assert isinstance(ours, Segmentation)
            assert isinstance(theirs, Segmentation)
            same += int((ours.labels == theirs.labels).sum())
            apart += float((ours.confidence.float() - theirs.confidence.float()).abs().sum())
            pixels += ours.labels.numel()
        return same / pixels, apart / pixels

    def record(self, prediction: Prediction, top: int) -> dict[str, Any]:
        """The classes that cover most, with their share of the picture and the mean probability of their pixels."""
        assert isinstance(prediction, Segmentation)
        classes = []
        for name, share in list(prediction.areas().items())[:top]:
            is_here = prediction.labels == prediction.classes.id(name)
            confidence = float(prediction.confidence[is_here].float().mean())
            classes.append({"class": name, "share": share, "confidence": confidence})
        return {"size": list(prediction.labels.shape), "classes": classes}


def relabelled(labels: Tensor, relabel: Tensor) -> Tensor:
    """A label map ``[h, w]`` uint8 in the model's labels; ``IGNORE`` stays.

    Args:
        labels: in the labels of the data set.
        relabel: ``[K_data]`` int64, the model's label for each of them.
    """
    if torch.equal(relabel, torch.arange(len(relabel))):
        return labels
    table = torch.full((256,), IGNORE, dtype=torch.uint8)
    table[: len(relabel)] = relabel.to(torch.uint8)
    return table.to(labels.device)[labels.int()]
