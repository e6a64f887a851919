"""What whoever gives the same answer for every picture would reach: the figure that a method has to beat.

N objects · K classes
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saccade.data.dataset import Dataset
from saccade.metrics.detection import DetectionMeter
from saccade.ops.boxes import box_iou
from saccade.tasks.base import Evaluation
from saccade.types import BoxTarget, Detections, Sample

MOST = 200
"""Training pictures that the boxes are chosen from."""

HIT = 0.5
"""Overlap from which on a box is right."""


def of_commonest(evaluation: Evaluation) -> float:
    """Of classes: the figure of whoever gives the commonest class as answer to everything."""
    counts = [sum(row) for row in evaluation.confusion]
    commonest = max(counts, default=0) / max(sum(counts), 1)
    if evaluation.task == "semantic":  # the IoU of every other class is 0
        return commonest / max(sum(count > 0 for count in counts), 1)
    return commonest


def of_same_boxes(train: Dataset, held: Dataset) -> float:
    """Of objects: AP50 of whoever finds in every picture one box of each class, that which fits most in training.

    Where every picture shows one large object in the middle that is a lot. 0 where there are no objects. Masks count
    as their boxes, so theirs would be less.

    Args:
        train: where the boxes are chosen, as shares of the sides of their pictures.
        held: where they are given as answers.
    """
    boxes, labels = _relative(train)
    meter = DetectionMeter(len(held.classes))
    known = torch.unique(labels).tolist()
    best = [boxes[labels == label][_fits(boxes[labels == label]).argmax()] for label in known]
    shares = torch.tensor([float((labels == label).float().mean()) for label in known])
    order = shares.argsort(descending=True)
    for index in range(len(held)):
        sample = held[index]
        answer = torch.stack(best) * _extent(sample) if best else torch.zeros(0, 4)
        found = Detections(answer[order], shares[order], torch.tensor(known)[order], order, held.classes)
        meter.update(found, _target(sample), index=index, source=sample.source)
    ap50 = meter.compute()["ap50"]
    return ap50 if math.isfinite(ap50) else 0.0


def _relative(train: Dataset) -> tuple[Tensor, Tensor]:
    """Boxes ``[N, 4]`` in shares of their pictures, and their labels ``[N]``."""
    boxes, labels = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
    for index in torch.linspace(0, len(train) - 1, min(len(train), MOST)).round().long().tolist():
        sample = train[index]
        target = _target(sample).without_crowds()
        boxes.append(target.boxes / _extent(sample))
        labels.append(target.labels)
    return torch.cat(boxes), torch.cat(labels)


def _fits(boxes: Tensor) -> Tensor:
    """How many of the boxes each of them overlaps well; shares of pictures overlap as their pixels do."""
    overlaps: Tensor = box_iou(boxes, boxes)
    return (overlaps >= HIT).sum(dim=1)


def _extent(sample: Sample) -> Tensor:
    height, width = sample.image.shape[-2:]
    return torch.tensor([width, height, width, height], dtype=torch.float32)


def _target(sample: Sample) -> BoxTarget:
    assert isinstance(sample.target, BoxTarget)
    return sample.target
