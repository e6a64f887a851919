"""Random pictures with true and found objects, for tests of the figures of detection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from saccade.types import BoxTarget, Classes, Detections, Masks

CLASSES = Classes(("a", "b", "c"))
SIDE = 64


def _scene(
    generator: np.random.Generator, *, crowds: float = 0.0, is_tied: float = False, most: float = 7
) -> tuple[Detections, BoxTarget]:
    """Some objects, detections around most of them (some of another class), and some on nothing; ellipses as masks."""
    count = int(generator.integers(0, int(most)))
    true = np.concatenate([generator.uniform(0, 40, (count, 2)), generator.uniform(4, 24, (count, 2))], axis=1)
    labels = generator.integers(0, len(CLASSES), count)
    found, found_labels = [], []
    for box, label in zip(true, labels, strict=True):
        for _ in range(generator.integers(0, 4)):
            found.append(box + generator.normal(0, 1.5, 4))
            found_labels.append(label if generator.random() < 0.8 else generator.integers(0, len(CLASSES)))
    for _ in range(generator.integers(0, 4)):
        found.append(np.concatenate([generator.uniform(0, 40, 2), generator.uniform(4, 24, 2)]))
        found_labels.append(generator.integers(0, len(CLASSES)))
    scores = generator.random(len(found))
    scores = scores.round(1) if is_tied else scores
    order = np.argsort(-scores, kind="stable")
    boxes = _corners(np.array(found).reshape(-1, 4)[order])
    target = BoxTarget(
        _corners(true),
        torch.from_numpy(labels).long(),
        torch.from_numpy(generator.random(count) < crowds),
        _ellipses(_corners(true)),
    )
    chosen = torch.tensor([int(found_labels[place]) for place in order], dtype=torch.int64)
    masks = _ellipses(boxes)
    detections = Detections(boxes, torch.from_numpy(scores[order]).float(), chosen, chosen, CLASSES, masks)
    return detections, target


def _corners(boxes: np.ndarray) -> torch.Tensor:
    sides = np.maximum(boxes[:, 2:], 2.0)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + sides], axis=1).clip(0, SIDE)
    return torch.from_numpy(corners).float().reshape(-1, 4)


def _ellipses(boxes: torch.Tensor) -> Masks:
    """The ellipse in each box ``[N, 4]``."""
    steps = torch.arange(SIDE) + 0.5
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp_min(1.0)
    right = ((steps[None] - middle[:, :1]) / half[:, :1]) ** 2
    down = ((steps[None] - middle[:, 1:]) / half[:, 1:]) ** 2
    return Masks.of(right[:, None, :] + down[:, :, None] < 1)


@pytest.fixture
def random_scenes() -> Callable[..., list[tuple[Detections, BoxTarget]]]:
    """``random_scenes(count, seed)`` -> detections and objects of so many pictures of 64x64, classes a, b and c."""

    def make(count: int, seed: int = 0, **options: float) -> list[tuple[Detections, BoxTarget]]:
        generator = np.random.default_rng(seed)
        return [_scene(generator, **options) for _ in range(count)]

    return make
