"""Batches: order, decoding, augmentation, and what happens to pictures that cannot be read.

A batch is a function of (seed, epoch, place in the epoch) alone. So a run that resumes in the middle of an epoch sees
the very pictures it would have seen, and the number of workers changes nothing but speed.

B pictures · H, W canvas
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from saccade.config import Config
from saccade.data.captions import chosen_captions
from saccade.data.dataset import Captioned, Dataset, InMemory
from saccade.data.joint import check_joint, vary_pair
from saccade.data.joint_boxes import vary_objects
from saccade.data.mosaic import Mosaic, compose
from saccade.data.transforms import Augment, Key, Mix
from saccade.errors import ConfigError, DataError, ImageError, SaccadeError
from saccade.ops.image import Preprocess
from saccade.types import BoxTarget, Caption, ClassTarget, Geometry, ImageBatch, MapTarget, Sample, Target

MAX_REPLACEMENTS = 16
"""How many neighbours training tries in place of a picture that cannot be decoded."""

_FEW = 256
"""Data sets below this size are decoded in this process: starting workers would take longer."""


_MEMORY = 1 << 28
"""Bytes of decoded pictures that are kept where mosaics read each of them four times in every epoch."""

_LOOSE = (BoxTarget, Caption)
"""Targets that are no tensors of one shape."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(Config):
    """How batches are made."""

    batch_size: int = 32
    """Pictures per batch and process."""
    workers: int | None = None
    """Processes that decode; by default none for pictures in memory, else one per core, at most 8."""
    strict: bool = False
    """Fail at the first picture that cannot be decoded, instead of skipping it."""
    drop_last: bool = False
    """Leave out the last batch where it is smaller."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}", where="loader", expected="at least 1")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers is {self.workers}", where="loader", expected="0 or more")


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures with their ground truth.

    Attributes:
        images: normalised pictures.
        targets: ground truth of each.
        sources: path or ``file#index`` of each.
        indices: place of each in the data set.
        problems: one sentence for each picture that was skipped or replaced.
    """

    images: ImageBatch
    targets: tuple[Target, ...]
    sources: tuple[str, ...]
    indices: tuple[int, ...]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """Targets of classes ``[B]`` int64, or ``[B, K]`` float32 where mixing blended them; label maps ``[B, H, W]``.

        Raises:
            DataError: for targets of boxes and texts, which are not stacked.
        """
        labels = [
            t.label if isinstance(t, ClassTarget) else t.labels for t in self.targets if not isinstance(t, _LOOSE)
        ]
        if len(labels) < len(self.targets):
            raise DataError("the targets of boxes and texts are no single tensor", remedy="use batch.targets")
        return torch.stack(labels)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(self, images=self.images.to(device), targets=tuple(target.to(device) for target in self.targets))


def as_targets(labels: Tensor) -> tuple[ClassTarget, ...]:
    """The targets behind labels ``[B]`` or ``[B, K]``."""
    return tuple(ClassTarget(label) for label in labels.unbind())


class _Fetched(NamedTuple):
    """A batch before normalisation: what travels from the workers (bytes, a quarter of the size of floats)."""

    canvases: Tensor  # [B, 3, H, W] uint8
    sizes: tuple[tuple[int, int], ...]
    geometries: tuple[Geometry, ...]
    targets: tuple[Target, ...]
    sources: tuple[str, ...]
    indices: tuple[int, ...]
    problems: tuple[str, ...]
    error: SaccadeError | None = None


class _Request(NamedTuple):
    """Which pictures one batch wants."""

    epoch: int
    indices: tuple[int, ...]


class _Memory:
    """Decoded samples, as many as fit; those that come first stay."""

    def __init__(self, dataset: Dataset, room: int) -> None:
        self.dataset, self.room = dataset, room
        self._samples: dict[int, Any] = {}

    def __getitem__(self, index: int) -> Any:
        """The sample, decoded at most once where it fits."""
        if index in self._samples:
            return self._samples[index]
        sample = self.dataset[index]
        if sample.image.nbytes <= self.room:
            self.room -= sample.image.nbytes
            self._samples[index] = sample
        return sample


class _Fetcher:
    """Decodes and augments; lives in the worker processes."""

    def __init__(self, loader: Loader) -> None:
        self.dataset = loader.dataset
        self.samples = loader.memory or loader.dataset
        self.preprocess = loader.preprocess
        self.augment = loader.augment
        self.mosaic = loader.mosaic
        self.mosaic_epochs = loader.mosaic_epochs
        self.seed = loader.seed
        self.replaces = loader.shuffle
        self.captioned = loader.dataset if loader.shuffle and isinstance(loader.dataset, Captioned) else None
        self.strict = loader.config.strict

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, requests: list[_Request]) -> _Fetched:
        """The protocol of torch's DataLoader for whole batches; ``requests`` holds one."""
        try:
            return self.fetch(requests[0])
        except SaccadeError as error:
            # Sent as a value: DataLoader would wrap the sentence in the worker's traceback.
            return _Fetched(torch.empty(0), (), (), (), (), (), (), error)

    def fetch(self, request: _Request) -> _Fetched:
        if isinstance(self.dataset, InMemory):
            return self._gather(self.dataset, request)
        return self._decode(request)

    def _gather(self, dataset: InMemory, request: _Request) -> _Fetched:
        images, labels, texts = dataset.gather(torch.tensor(request.indices, dtype=torch.int64))
        if self.augment is None:
            content, geometry = self.preprocess.fit(images)
        else:
            content = self.augment(images, self.preprocess, Key(self.seed, request.epoch, request.indices))
            geometry = Geometry(_size(content))
        count = len(request.indices)
        sources = tuple(dataset.source(index) for index in request.indices)
        targets: tuple[Target, ...] = tuple(map(Caption, texts)) if texts else as_targets(labels)
        if self.captioned is not None:
            targets = chosen_captions(self.captioned, request.indices, Key(self.seed, request.epoch, request.indices))
        sizes, geometries = (_size(content),) * count, (geometry,) * count
        canvas = self.preprocess.pad(content, self.preprocess.canvas(sizes))
        return _Fetched(canvas, sizes, geometries, targets, sources, request.indices, ())

    def _decode(self, request: _Request) -> _Fetched:
        contents, geometries, targets, sources, indices = [], [], [], [], []
        problems: list[str] = []
        for wanted in request.indices:
            found = self._sample(wanted, problems)
            if found is None:
                continue
            index, sample = found
            key = Key(self.seed, request.epoch, [wanted])
            others = self._others(key, problems)
            content, geometry, target = self._composed([sample, *others], key) if others else self._varied(sample, key)
            contents.append(content)
            geometries.append(geometry)
            targets.append(target if self.captioned is None else chosen_captions(self.captioned, [index], key)[0])
            sources.append(sample.source)
            indices.append(index)
        sizes = tuple(_size(content) for content in contents)
        canvas = self.preprocess.canvas(sizes) if sizes else self.preprocess.size
        padded = [self.preprocess.pad(content, canvas) for content in contents]
        stacked = torch.cat(padded) if padded else torch.empty(0, 3, *canvas, dtype=torch.uint8)
        return _Fetched(
            stacked, sizes, tuple(geometries), tuple(targets), tuple(sources), tuple(indices), tuple(problems)
        )

    def _others(self, key: Key, problems: list[str]) -> list[Sample]:
        """The pictures that one picture is put together with; none where it stays alone."""
        if self.mosaic is None or key.epoch >= self.mosaic_epochs:
            return []
        found = [self._sample(index, problems) for index in self.mosaic.partners(len(self.dataset), key)]
        return [one[1] for one in found if one is not None]

    def _composed(self, samples: list[Sample], key: Key) -> tuple[Tensor, Geometry, Target]:
        """As ``_varied``, of several pictures."""
        assert self.mosaic is not None
        content, target = compose(samples, self.mosaic, self.augment or Augment(), self.preprocess, key)
        return content[None], Geometry(_size(content)), target

    def _varied(self, sample: Sample, key: Key) -> tuple[Tensor, Geometry, Target]:
        """The picture ``[1, 3, h, w]`` as the model will see it, the way back, and its target on the canvas."""
        augment, target = self.augment or Augment(), sample.target
        if isinstance(target, MapTarget):
            content, labels = vary_pair(sample.image, target.labels, augment, self.preprocess, key)
            return content[None], Geometry(_size(content)), MapTarget(labels)
        if isinstance(target, BoxTarget):
            content, moved = vary_objects(sample.image, target, augment, self.preprocess, key)
            return content[None], Geometry(_size(content)), moved
        if self.augment is None:
            content, geometry = self.preprocess.fit(sample.image[None])
        else:
            content = self.augment(sample.image[None], self.preprocess, key)
            geometry = Geometry(_size(content))
        return content, geometry, target

    def _sample(self, wanted: int, problems: list[str]) -> tuple[int, Any] | None:
        """The sample at ``wanted``; in training its next readable neighbour, so that batches keep their size."""
        for step in range(MAX_REPLACEMENTS if self.replaces else 1):
            index = (wanted + step) % len(self.dataset)
            try:
                return index, self.samples[index]
            except ImageError as error:
                if self.strict:
                    raise
                problems.append(str(error))
        if self.replaces:
            raise DataError(
                f"{MAX_REPLACEMENTS} pictures in a row cannot be decoded, the last: {problems[-1]}",
                remedy="run `saccade data inspect` on the data",
            )
        return None


def _size(images: Tensor) -> tuple[int, int]:
    return int(images.shape[-2]), int(images.shape[-1])


class Loader:
    """Batches of a data set, epoch by epoch. Targets come on the canvas, as a loss wants them; see ``Pictures``.

    Args:
        dataset: the samples.
        preprocess: of the model.
        config: batch size, workers, strictness.
        shuffle: whether this is training: the order is drawn anew each epoch, all ranks get equally many pictures (some
            twice, where the number does not divide), and an unreadable picture is replaced by its neighbour. Otherwise
            every picture comes exactly once, in order, over all ranks together, and an unreadable one is left out.
        seed: of the run.
        augment: how pictures are varied.
        mix: how pictures of a batch are blended.
        mosaic: how pictures with objects are put together; None for each by itself.
        mosaic_epochs: in how many epochs, the first ones.
        rank: of this process.
        world_size: number of processes.

    Attributes:
        skipped: one sentence for every picture skipped so far.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        config: LoaderConfig | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augment | None = None,
        mix: Mix | None = None,
        mosaic: Mosaic | None = None,
        mosaic_epochs: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of {world_size}", where="loader", expected="0 <= rank < world_size")
        if not len(dataset):
            raise DataError("the data set is empty", expected="at least one picture")
        self.dataset = dataset
        self.preprocess = preprocess
        self.config = config or LoaderConfig()
        self.shuffle = shuffle
        self.seed = seed
        self.augment = None if augment is None or augment.is_off else augment
        self.mix = None if mix is None or mix.is_off else mix
        self.mosaic = mosaic
        self.mosaic_epochs = mosaic_epochs
        if dataset.task == "zero_shot" and self.mix is not None:
            raise ConfigError("captions are not mixed", where="mix", remedy="leave mixup, cutmix and smoothing at 0")
        if dataset.task not in {"classification", "zero_shot"}:
            check_joint(self.augment or Augment())
            if self.mix is not None:
                raise ConfigError("only classes are mixed", where="mix", remedy="leave mixup and cutmix at 0")
        elif self.augment is not None and self.augment.zoom is not None:
            raise ConfigError("zoom is for label maps and boxes", where="augment.zoom", remedy="use augment.scale")
        self.rank = rank
        self.world_size = world_size
        self.skipped: list[str] = []
        self._seen: set[str] = set()
        self._feed = _Feed()
        self._workers: DataLoader[Any] | None = None
        is_kept = mosaic is not None and not self.num_workers
        self.memory = _Memory(dataset, _MEMORY) if is_kept else None

    @property
    def num_workers(self) -> int:
        """Processes that decode."""
        if self.config.workers is not None:
            return self.config.workers
        if isinstance(self.dataset, InMemory) or len(self.dataset) < _FEW:
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, 8) if cores > 1 else 0

    def __len__(self) -> int:
        """Batches per epoch (in evaluation fewer come where all pictures of a batch are unreadable)."""
        count = len(range(self.rank, self._padded_length(), self.world_size))
        return count // self.config.batch_size if self.config.drop_last else -(-count // self.config.batch_size)

    def _padded_length(self) -> int:
        total = len(self.dataset)
        return -(-total // self.world_size) * self.world_size if self.shuffle else total

    def order(self, epoch: int) -> list[int]:
        """Indices of this rank's pictures in the order of an epoch."""
        total = len(self.dataset)
        if not self.shuffle:
            return list(range(self.rank, total, self.world_size))
        generator = torch.Generator().manual_seed(int(Key(self.seed, epoch, [0]).seeds()[0]))
        order = torch.randperm(total, generator=generator).tolist()
        order += [order[place % total] for place in range(self._padded_length() - total)]
        return order[self.rank :: self.world_size]

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            epoch: counted from 0.
            start_batch: how many batches to leave out; the others are exactly those of the whole epoch.

        Raises:
            ImageError: with ``strict``, at the first picture that cannot be decoded.
            DataError: where a worker dies.
        """
        size = self.config.batch_size
        order = self.order(epoch)
        requests = [
            _Request(epoch, tuple(order[place * size : (place + 1) * size])) for place in range(start_batch, len(self))
        ]
        fetched = self._from_workers(requests) if self.num_workers else map(_Fetcher(self).fetch, requests)
        for place, raw in enumerate(fetched, start_batch):
            if raw.error is not None:
                raise raw.error
            self._report(raw.problems)
            if raw.indices:
                yield self._finish(raw, epoch, place)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of epoch 0."""
        return self.epoch(0)

    def _finish(self, raw: _Fetched, epoch: int, place: int) -> Batch:
        images = ImageBatch(self.preprocess.to_pixels(raw.canvases, raw.sizes), raw.sizes, raw.geometries)
        targets = raw.targets
        if self.mix is not None:
            names = (self.seed % (1 << 64), epoch, place, self.rank)
            labels = torch.stack([target.label for target in targets if isinstance(target, ClassTarget)])
            images, labels = self.mix(images, labels, len(self.dataset.classes), names)
            targets = as_targets(labels)
        return Batch(images, targets, raw.sources, raw.indices, raw.problems)

    def _report(self, problems: Sequence[str]) -> None:
        for problem in problems:
            if problem not in self._seen:
                self._seen.add(problem)
                self.skipped.append(problem)

    def _from_workers(self, requests: list[_Request]) -> Iterator[_Fetched]:
        if not requests:
            return
        if self._workers is None:
            self._workers = self._start()
        self._feed.requests = requests
        batches = iter(self._workers)
        while True:
            try:
                raw = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                # torch tells of a killed worker with a RuntimeError.
                self._workers = None
                raise DataError(
                    f"a worker process ended unexpectedly ({str(error).splitlines()[0]})",
                    remedy="set workers to 0 to see why, or free some memory",
                ) from error
            yield raw

    def _start(self) -> DataLoader[Any]:
        with warnings.catch_warnings():
            # Asking for more workers than cores is the caller's decision.
            warnings.simplefilter("ignore")
            return DataLoader(
                _Fetcher(self),  # type: ignore[arg-type]
                batch_sampler=self._feed,
                num_workers=self.num_workers,
                collate_fn=_same,
                persistent_workers=True,
                # Its own generator: seeding the workers must not advance the generator that dropout draws from.
                generator=torch.Generator(),
            )


class _Feed:
    """The requests of the running epoch, in the form of a batch sampler; stays in the main process."""

    def __init__(self) -> None:
        self.requests: list[_Request] = []

    def __iter__(self) -> Iterator[list[_Request]]:
        return iter([[request] for request in self.requests])

    def __len__(self) -> int:
        return len(self.requests)


def _same(fetched: Any) -> Any:
    return fetched
