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
from saccade.data.dataset import Dataset, Labelled, subset
from saccade.data.loader import Batch, Loader, LoaderConfig
from saccade.data.mosaic import Mosaic
from saccade.data.pictures import PictureBatch, Pictures
from saccade.data.source import DataSource
from saccade.engine.evaluate import check_task, held_out_batches, labels_for
from saccade.engine.features import MAX_BYTES, FeatureLoader, HeadView, fixed_width
from saccade.engine.plan import TrainConfig
from saccade.engine.zero_shot import without_long_texts
from saccade.errors import ConfigError, DataError
from saccade.models.base import VisionModel
from saccade.models.detector import DetectorConfig
from saccade.models.segmenter import SegmenterConfig
from saccade.tasks.semantic import relabelled
from saccade.types import BoxTarget, Caption, Classes, ClassTarget, MapTarget, Target


@runtime_checkable
class Routed(Protocol):
    """Outputs of a model that may have experts."""

    routing: Routing


class BatchSource(Protocol):
    """What gives training batches: the loader of pictures, or of cached features."""

    skipped: list[str]

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from ``start_batch`` on."""
        ...


class HeldOutSource(Protocol):
    """What gives validation batches."""

    dataset: Dataset
    skipped: list[str]

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch] | Iterator[PictureBatch]:
        """The batches of one epoch."""
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
        val: HeldOutSource,
    ) -> None:
        self.train, self.val = train, val
        self.relabel = labels_for(model, data.classes, where=data.name)
        self.num_classes = len(self.relabel) if model.task == "zero_shot" else len(model.classes)
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

    def _rename(self, target: Target) -> Target:
        if isinstance(target, MapTarget):
            return MapTarget(relabelled(target.labels, self.relabel))
        if isinstance(target, Caption):
            return target
        if isinstance(target, BoxTarget):
            return replace(target, labels=self.relabel.to(target.labels.device)[target.labels])
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
    check_task(model, data.task, where=data.name)
    if config.chunk and model.task != "zero_shot":
        raise ConfigError("chunk is for models of pictures and texts", where="chunk", remedy="use accumulate instead")
    adopt_classes(model, data.classes)
    train, val, notes = training_splits(data, config)
    train, told = without_long_texts(model, train, "train")
    val, also = without_long_texts(model, val, "val")
    notes += [*told, *also]
    settings = LoaderConfig(batch_size=config.batch_size, workers=config.workers, strict=config.strict)
    val_loader = held_out_batches(val, model, replace(settings, batch_size=max(config.batch_size, 128)))
    width = fixed_width(model, config.freeze) if config.augment.is_off and config.mix.is_off else None
    if width and fabric.world_size == 1 and len(train) * width * 4 <= MAX_BYTES and isinstance(val_loader, Loader):
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
        mosaic, mosaic_epochs, told = mosaic_for(model, config)
        notes += told
        train_loader = Loader(
            train,
            model.preprocess,
            settings,
            shuffle=True,
            seed=config.seed,
            augment=config.augment,
            mix=config.mix,
            mosaic=mosaic,
            mosaic_epochs=mosaic_epochs,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
        feed = Feed(model, data, config, train_loader, val_loader)
    if announcement := model.announcement(model.preprocess.size):
        notes.append(announcement)
    if config.class_weights:
        notes.append(weigh_classes(model, train, feed.relabel))
    feed.notes += notes
    return feed


def mosaic_for(model: VisionModel[Any, Any, Any], config: TrainConfig) -> tuple[Mosaic | None, int, list[str]]:
    """How pictures are put together, in how many of the epochs, and what to tell of it.

    Raises:
        ConfigError: where it is asked for and the model learns no objects.
    """
    mosaic, settings = config.mosaic, model.config
    if not isinstance(settings, DetectorConfig):
        if mosaic.use == "on":
            raise ConfigError("mosaics are for pictures with objects", where="mosaic.use", expected="auto or off")
        return None, 0, []
    is_wanted = mosaic.use == "on" or (mosaic.use == "auto" and settings.wants_mosaic)
    count = mosaic.open_epochs(config.epochs) if is_wanted else 0
    if not count or not mosaic.probability:
        return None, 0, []
    told = f"four pictures in one (mosaic) in the first {count} of {config.epochs} epochs"
    reason = "" if mosaic.use == "on" else ", as the model learns best"
    return mosaic, count, [f"{told}{reason}; mosaic.use=off leaves them apart"]


def adopt_classes(model: VisionModel[Any, Any, Any], classes: Classes) -> None:
    """Give a model that was never told its classes those of the data.

    Raises:
        DataError: where their numbers differ.
    """
    if model.task == "zero_shot" or model.classes == classes or model.classes != Classes.numbered(len(model.classes)):
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
    # Pictures of one class are held back class by class; a label map has many classes, so any pictures will do.
    labels = train.labels() if isinstance(train, Labelled) else torch.zeros(len(train), dtype=torch.int64)
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


def weigh_classes(model: VisionModel[Any, Any, Any], dataset: Dataset, relabel: Tensor) -> str:
    """Give a segmenter's loss the weights of ``balancing_weights``, unless its config names some; returns what it did.

    Raises:
        ConfigError: where the model has no loss over label maps.
    """
    if not isinstance(model.config, SegmenterConfig):
        raise ConfigError("class_weights is for segmenters", where="class_weights", remedy="leave it out")
    loss = model.config.loss
    if not loss.class_weights:
        loss = replace(loss, class_weights=balancing_weights(dataset, relabel, len(model.classes)))
        model.config = replace(model.config, loss=loss)
    told = ", ".join(f"{name} {weight:g}" for name, weight in zip(model.classes, loss.class_weights, strict=True))
    return f"class weights: {told}"


def balancing_weights(dataset: Dataset, relabel: Tensor, num_classes: int) -> tuple[float, ...]:
    """Weight of each class that balances them: median frequency balancing, Eigen & Fergus 2014, arXiv 1411.4734.

    The frequency of a class is its share of the pixels of the pictures that it occurs in; classes that occur nowhere
    weigh nothing. Every label map is read once; pictures that cannot be read are left out.
    """
    pixels, seen = torch.zeros(num_classes, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
    for batch in Pictures(dataset).epoch():
        for target in batch.targets:
            assert isinstance(target, MapTarget)
            labels = relabelled(target.labels, relabel)
            counts = torch.bincount(labels.flatten(), minlength=256)[:num_classes].double()
            pixels += counts
            seen += (counts > 0) * counts.sum()
    frequency = pixels / seen
    weights = (frequency[seen > 0].median() / frequency).nan_to_num(0.0, 0.0, 0.0)
    return tuple(round(float(weight), 4) for weight in weights)
