"""What a training is fed with: the splits, classes joined by name, batches of pictures or of cached features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor

from saccade.backbones.base import Routing
from saccade.data.dataset import Dataset, subset
from saccade.data.loader import Batch, Loader, LoaderConfig
from saccade.data.source import DataSource
from saccade.engine.evaluate import join_classes
from saccade.engine.features import MAX_BYTES, FeatureLoader, HeadView, fixed_width
from saccade.engine.plan import TrainConfig
from saccade.errors import DataError
from saccade.models.base import VisionModel
from saccade.types import Classes, ClassTarget


@runtime_checkable
class Routed(Protocol):
    """Outputs of a model that may have experts."""

    routing: Routing


class BatchSource(Protocol):
    """What gives batches: the loader of pictures, or of cached features."""

    skipped: list[str]

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from ``start_batch`` on."""
        ...


class Feed:
    """The batches of a training, and how they meet the model.

    Attributes:
        train: training batches.
        val: validation batches.
        relabel: ``[K_data]`` the model's label for each label of the data.
        steps_per_epoch: optimizer steps in each epoch.
        notes: what the user should know.
        fingerprint: of the splits.
        licence: of the data.
    """

    def __init__(
        self,
        model: VisionModel[Any, Any, Any],
        data: DataSource,
        config: TrainConfig,
        train: BatchSource,
        val: BatchSource,
    ) -> None:
        self.train, self.val = train, val
        self.relabel = join_classes(model.classes, data.classes, where=data.name)
        self.num_classes = len(model.classes)
        self._is_same_order = torch.equal(self.relabel, torch.arange(self.num_classes))
        steps = math.ceil(len(train) / config.accumulate)
        self.steps_per_epoch = min(steps, config.limit_steps) if config.limit_steps else steps
        self.notes: list[str] = list(data.notes)
        self.fingerprint = data.fingerprint()
        self.licence = data.split("train").licence
        self._num_told = 0

    def view(self, model: VisionModel[Any, Any, Any]) -> VisionModel[Any, Any, Any]:
        """The part of the model that the batches go through: all of it, or its head where features are cached."""
        return HeadView(model) if isinstance(self.train, FeatureLoader) else model

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        """The batch on ``device``, with the model's labels."""
        batch = batch.to(device)
        batch = replace(batch, images=batch.images.channels_last())
        if self._is_same_order:
            return batch
        return replace(batch, targets=tuple(self._rename(target) for target in batch.targets))

    def expert_load(self, outputs: object) -> Tensor | None:
        """Share of the routed tokens ``[M, E]`` per layer and expert; None without experts."""
        if not isinstance(outputs, Routed) or not outputs.routing.load.numel():
            return None
        return outputs.routing.load.detach().cpu().double()

    def new_skipped(self) -> list[str]:
        """Pictures skipped as unreadable that have not been told yet."""
        problems = list(dict.fromkeys([*self.train.skipped, *self.val.skipped]))
        fresh, self._num_told = problems[self._num_told :], len(problems)
        return fresh

    def _rename(self, target: ClassTarget) -> ClassTarget:
        relabel = self.relabel.to(target.label.device)
        if target.label.ndim == 0:
            return ClassTarget(relabel[target.label])
        blended = target.label.new_zeros(self.num_classes)
        return ClassTarget(blended.index_copy(0, relabel, target.label))


def build_feed(model: VisionModel[Any, Any, Any], data: DataSource, config: TrainConfig, fabric: Fabric) -> Feed:
    """Loaders for the splits; the model takes over the class names where it had only stand-in ones.

    Raises:
        DataError: without a ``train`` split, or where the classes do not fit the model.
    """
    adopt_classes(model, data.classes)
    train, val, notes = training_splits(data, config)
    settings = LoaderConfig(batch_size=config.batch_size, workers=config.workers, strict=config.strict)
    val_loader = Loader(val, model.preprocess, replace(settings, batch_size=max(config.batch_size, 128)))
    width = fixed_width(model, config.freeze) if config.augment.is_off and config.mix.is_off else None
    if width and fabric.world_size == 1 and len(train) * width * 4 <= MAX_BYTES:
        model.to(fabric.device)
        loaders = (Loader(train, model.preprocess, val_loader.config), val_loader)
        cached = [
            FeatureLoader(loader, model, fabric.device, batch_size=config.batch_size, seed=seed)
            for loader, seed in zip(loaders, (config.seed, None), strict=True)
        ]
        notes.append("the backbone is frozen and pictures are not varied: its features are computed once")
        feed = Feed(model, data, config, *cached)
    else:
        # A last batch of one picture would leave batch norm nothing to normalise over.
        share = -(-len(train) // fabric.world_size)
        settings = replace(settings, drop_last=share > config.batch_size and share % config.batch_size == 1)
        train_loader = Loader(
            train,
            model.preprocess,
            settings,
            shuffle=True,
            seed=config.seed,
            augment=config.augment,
            mix=config.mix,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
        feed = Feed(model, data, config, train_loader, val_loader)
    feed.notes += notes
    return feed


def adopt_classes(model: VisionModel[Any, Any, Any], classes: Classes) -> None:
    """Give a model that was never told its classes those of the data.

    Raises:
        DataError: where their numbers differ.
    """
    if model.classes == classes or model.classes != Classes.numbered(len(model.classes)):
        return
    if len(model.classes) != len(classes):
        raise DataError(
            f"the model has {len(model.classes)} classes, the data {len(classes)}",
            remedy=f"create the model with num_classes={len(classes)}",
        )
    model.classes = classes


def training_splits(data: DataSource, config: TrainConfig) -> tuple[Dataset, Dataset, list[str]]:
    """Training and validation pictures; where the data has no ``val``, a seeded share of each class of ``train``.

    Raises:
        DataError: without a ``train`` split.
    """
    train = data.split("train")
    if "val" in data.splits:
        return train, data.splits["val"], []
    labels = train.labels()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))
    held_out: list[int] = []
    for label in sorted(set(labels.tolist())):
        members = order[labels[order] == label].tolist()
        held_out += members[: min(max(round(len(members) * config.validation_share), 1), len(members) - 1)]
    if not held_out:
        raise DataError("there are too few pictures to hold some back for validation", where=data.name)
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    is_held_out[held_out] = True
    kept = torch.nonzero(~is_held_out)[:, 0].tolist()
    note = f"{len(held_out)} of the {len(labels)} training pictures are held back for validation"
    return subset(train, kept), subset(train, sorted(held_out)), [note]
