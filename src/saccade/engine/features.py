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
from saccade.data.captions import chosen_captions
from saccade.data.dataset import Captioned
from saccade.data.loader import Batch, Loader
from saccade.data.transforms import Key
from saccade.engine.modes import evaluating
from saccade.models.base import VisionModel
from saccade.types import Caption, ExplainSpec, Geometry, ImageBatch, Losses, Prediction, Target

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


@runtime_checkable
class Matches(Protocol):
    """A model that splits into a part that sees and a part that compares with texts."""

    def pooled(self, images: ImageBatch) -> Tensor:
        """Pooled vectors ``[B, C]``."""
        ...

    def match(self, pooled: Tensor, targets: Sequence[Caption] | None = None) -> Any:
        """The model's outputs from its pooled vectors and the texts."""
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
        if isinstance(model, Matches):
            return model.match(images.pixels, [target for target in targets or () if isinstance(target, Caption)])
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
        pooled: list[Tensor] = []
        self.targets: list[Target] = []
        self.sources: list[str] = []
        self.indices: list[int] = []
        with evaluating(model), torch.no_grad():
            for batch in loader.epoch(0):
                pooled.append(pool(model, batch.images.to(device).channels_last()).float().cpu())
                self.targets += batch.targets
                self.sources += batch.sources
                self.indices += batch.indices
        self.pooled = torch.cat(pooled)
        self.dataset, self.skipped = loader.dataset, loader.skipped

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.targets) // self.batch_size)

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from ``start_batch`` on; their order depends on seed and epoch alone."""
        order = np.arange(len(self.targets))
        if self.seed is not None:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        for start in range(start_batch * self.batch_size, len(order), self.batch_size):
            chosen = torch.from_numpy(order[start : start + self.batch_size])
            places = chosen.tolist()
            indices = tuple(self.indices[place] for place in places)
            targets = tuple(self.targets[place] for place in places)
            if self.seed is not None and isinstance(self.dataset, Captioned):
                targets = chosen_captions(self.dataset, indices, Key(self.seed, epoch, indices))
            nowhere = ((1, 1),) * len(places), (Geometry((1, 1)),) * len(places)
            yield Batch(
                PooledBatch(self.pooled[chosen], *nowhere),
                targets,
                tuple(self.sources[place] for place in places),
                indices,
            )


def pool(model: VisionModel[Any, Any, Any], images: ImageBatch) -> Tensor:
    """The pooled vectors ``[B, C]`` of a model that ``fixed_width`` knows."""
    parts: Any = model
    vectors: Tensor = parts.pooled(images) if isinstance(model, Matches) else parts.embed(images)[0]
    return vectors


def fixed_width(model: VisionModel[Any, Any, Any], frozen: Sequence[str]) -> int | None:
    """Width C of what ``embed`` gives, where everything in front of it is frozen; None where it can change."""
    backbone: Any = getattr(model, "backbone", None)
    if not isinstance(model, Embeds | Matches) or backbone is None or "backbone" not in frozen:
        return None
    pool: Any = getattr(model, "pool", None)
    if pool is not None and "pool" not in frozen:
        return None
    return int(backbone.channels[-1])
