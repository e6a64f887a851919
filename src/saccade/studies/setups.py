"""What several studies stand on: embedded data and synthetic scenes at each scale, and trainings that work there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from saccade.data.dataset import Dataset, subset
from saccade.data.source import DataSource, open_data
from saccade.data.synthetic import SceneConfig, SyntheticClassification, SyntheticObjects
from saccade.data.transforms import Augment
from saccade.studies.base import Scale

CLOTHES: Mapping[str, Any] = MappingProxyType({"batch_size": 50, "learning_rate": 2e-3, "precision": "32"})
"""For small transformers on Fashion-MNIST."""

NUCLEI: Mapping[str, Any] = MappingProxyType(
    {"batch_size": 8, "learning_rate": 3e-3, "augment": Augment(flip=0.5, flip_vertical=0.5, colour=0.7)}
)
"""For small segmenters on the nuclei."""

OBJECTS: Mapping[str, Any] = MappingProxyType(
    {"batch_size": 4, "learning_rate": 2e-3, "augment": Augment(flip=0.5, flip_vertical=0.5)}
)
"""For small detectors."""

SCENES: Mapping[str, Any] = MappingProxyType({"batch_size": 32, "learning_rate": 2e-3, "precision": "32"})
"""For a small convolutional classifier of synthetic scenes."""

CNN: Mapping[str, Any] = MappingProxyType(
    {"backbone.arguments": {"layers": [1, 1, 1, 1], "channels": [16, 24, 32, 48], "output_stride": 8}}
)
"""Overrides of ``resnet_test``: a network with pooling and one linear layer that learns scenes in seconds."""


def clothes(scale: Scale) -> DataSource:
    """Fashion-MNIST; fewer pictures are held out at smaller scales."""
    source = open_data("fashion_mnist")
    train, test = {"smoke": (200, 40), "quick": (10_000, 1000), "full": (10_000, 2500)}[scale]
    return shortened(source, {"train": train, "test": test})


def nuclei(scale: Scale) -> DataSource:
    """Cell nuclei with label maps, all in memory."""
    return shortened(open_data("nuclei"), {"train": 8, "val": 4} if scale == "smoke" else {})


def cells(scale: Scale) -> DataSource:
    """Blood cells with boxes."""
    sizes = {"smoke": {"train": 8, "val": 4}, "quick": {"val": 12}, "full": {}}[scale]
    return shortened(open_data("blood_cells"), sizes)


def objects(scale: Scale) -> DataSource:
    """Synthetic scenes of two to five shapes, boxes only."""
    train, val = {"smoke": (8, 4), "quick": (200, 16), "full": (1000, 100)}[scale]
    config = SceneConfig(size=(128, 128), objects=(2, 5))
    splits = {
        "train": SyntheticObjects(train, config, task="detection"),
        "val": SyntheticObjects(val, config, start=100_000, task="detection"),
    }
    return DataSource(splits, splits["train"].classes, "synthetic scenes", "synthetic scenes of 2 to 5 shapes")


def few_objects(scale: Scale) -> DataSource:
    """Fewer of these scenes, for detectors that search every picture first."""
    return shortened(
        objects(scale), {"smoke": {}, "quick": {"train": 24, "val": 6}, "full": {"train": 120, "val": 30}}[scale]
    )


def scenes(scale: Scale) -> DataSource:
    """Synthetic scenes of one shape, whose pixels are known."""
    train, test = {"smoke": (64, 8), "quick": (600, 48), "full": (3000, 200)}[scale]
    config = SceneConfig(size=(64, 64))
    splits = {
        "train": SyntheticClassification(train, config),
        "test": SyntheticClassification(test, config, start=100_000),
    }
    return DataSource(splits, splits["train"].classes, "synthetic scenes", "synthetic scenes of one shape")


def shortened(source: DataSource, sizes: Mapping[str, int]) -> DataSource:
    """Some pictures of each split, evenly spread, so that sorted data keeps its mixture."""
    splits: dict[str, Dataset] = dict(source.splits)
    for name, size in sizes.items():
        whole = source.split(name)
        if size < len(whole):
            splits[name] = subset(whole, torch.linspace(0, len(whole) - 1, size).round().long().tolist())
    return DataSource(splits, source.classes, source.format, source.name)
