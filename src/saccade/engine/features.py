"""Features computed once, for a frozen backbone whose pictures are not varied: only the head sees each epoch.

B batch · N pictures · C width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from saccade.backbones.base import Routing
from saccade.data.loader import Batch, Loader
from saccade.engine.modes import evaluating
from saccade.models.base import VisionModel
from saccade.types import ClassTarget, ExplainSpec, Geometry, ImageBatch, Losses, Prediction, Target

MAX_BYTES = 2 << 30
"""Largest cache."""


@runtime_checkable
class Embeds(Protocol):
    """A model that splits into a part that sees and a part that decides."""

    def embed(self, images: ImageBatch) -> tuple[Tensor, Routing]:
        """Pooled vectors ``[B, C]`` and what the routers did."""
        ...

    def classify(self, pooled: Tensor, routing: Routing) -> Any:
        """The model's outputs from its pooled vectors."""
        ...


@dataclass(frozen=True, eq=False)
class PooledBatch(ImageBatch):
    """Vectors in the place of pictures: ``pixels`` holds what ``embed`` gave, ``[B, C]``."""

    def __post_init__(self) -> None:
        """Nothing to check: these are no pictures."""

    def channels_last(self) -> PooledBatch:
        """As it is: vectors have one layout."""
        return self


class HeadView(VisionModel[Any, Any, Any]):
    """A model behind its frozen part: takes ``PooledBatch`` for pictures, and is the same model in everything else."""

    def __init__(self, model: VisionModel[Any, Any, Any]) -> None:
        super().__init__(model.config)
        self.classes = model.classes
        self.model = model

    def forward(self, images: ImageBatch, targets: Sequence[Target] | None = None) -> Any:
        """The model's outputs from the cached vectors."""
        model: Any = self.model
        return model.classify(images.pixels, Routing.none(images.pixels))

    def loss(self, outputs: Any, targets: Sequence[Target]) -> Losses:
        """As the model."""
        return self.model.loss(outputs, targets)

    def postprocess(self, outputs: Any, images: ImageBatch) -> list[Prediction]:
        """As the model."""
        return self.model.postprocess(outputs, images)

    def explain_spec(self) -> ExplainSpec:
        """As the model."""
        return self.model.explain_spec()


class FeatureLoader:
    """Batches of cached vectors, in the order that a loader of pictures would have.

    Args:
        loader: reads every picture once, in its own order.
        model: whose ``embed`` is applied, in evaluation mode and without a graph.
        device: where the model is.
        batch_size: vectors per batch.
        seed: of the order; None keeps the order of the data set.
    """

    def __init__(
        self,
        loader: Loader,
        model: VisionModel[Any, Any, Any],
        device: torch.device,
        *,
        batch_size: int,
        seed: int | None,
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        embeds: Any = model
        pooled, labels = [], []
        self.sources: list[str] = []
        self.indices: list[int] = []
        with evaluating(model), torch.no_grad():
            for batch in loader.epoch(0):
                pooled.append(embeds.embed(batch.images.to(device).channels_last())[0].float().cpu())
                labels.append(batch.labels)
                self.sources += batch.sources
                self.indices += batch.indices
        self.pooled, self.labels = torch.cat(pooled), torch.cat(labels)
        self.dataset, self.skipped = loader.dataset, loader.skipped

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.labels) // self.batch_size)

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from ``start_batch`` on; their order depends on seed and epoch alone."""
        order = np.arange(len(self.labels))
        if self.seed is not None:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        for start in range(start_batch * self.batch_size, len(order), self.batch_size):
            chosen = torch.from_numpy(order[start : start + self.batch_size])
            places = chosen.tolist()
            nowhere = ((1, 1),) * len(places), (Geometry((1, 1)),) * len(places)
            yield Batch(
                PooledBatch(self.pooled[chosen], *nowhere),
                tuple(ClassTarget(label) for label in self.labels[chosen]),
                tuple(self.sources[place] for place in places),
                tuple(self.indices[place] for place in places),
            )


def fixed_width(model: VisionModel[Any, Any, Any], frozen: Sequence[str]) -> int | None:
    """Width C of what ``embed`` gives, where everything in front of it is frozen; None where it can change."""
    backbone: Any = getattr(model, "backbone", None)
    if not isinstance(model, Embeds) or backbone is None or "backbone" not in frozen:
        return None
    pool: Any = getattr(model, "pool", None)
    if pool is not None and "pool" not in frozen:
        return None
    return int(backbone.channels[-1])
