"""One trial of a study: an arm with a seed, and the only way in which it may train: with the budget it is given.

The number of steps is fixed before a training begins, so that every arm runs through its whole schedule of learning
rates. For a budget in seconds it follows from a few steps on a copy of the model, whose time is not counted; a training
that takes a quarter longer than it should is stopped.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.config import from_dict, override
from saccade.data.dataset import Dataset, subset
from saccade.data.source import DataSource
from saccade.data.synthetic import draw_all
from saccade.engine.evaluate import EvaluateConfig, evaluate
from saccade.engine.modes import evaluating
from saccade.engine.plan import StepRecord, TrainConfig
from saccade.engine.train import train
from saccade.errors import ConfigError, RunError, TrainingError
from saccade.models.base import VisionModel
from saccade.models.build import create
from saccade.studies.base import NOTHING, Arm, Scale, Unit
from saccade.tasks import Evaluation
from saccade.types import ImageBatch

AnyModel = VisionModel[Any, Any, Any]
Choice = TypeVar("Choice")
Progress = Callable[[float], None]

BACKWARD = 3
"""Operations of a training step over those of a forward pass: gradients of activations and of weights cost one each."""

_PROBES: Mapping[Scale, int] = {"smoke": 3, "quick": 3, "full": 5}
"""Steps whose time is taken; the first half are warm-up."""

_PATIENCE = 1.25
"""Share of its seconds after which a training is stopped."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What one training may spend.

    Attributes:
        unit: of what; None where the study trains nothing.
        amount: how much.
    """

    unit: Unit | None
    amount: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a training went.

    Attributes:
        losses: total loss of every step.
        grad_norms: norm of the gradient of every step, before clipping.
        is_broken: whether loss or gradient ceased to be finite, which ended it.
        seconds: of its steps.
        images: pictures seen.
    """

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    is_broken: bool
    seconds: float
    images: int


class Trial:
    """An arm with a seed.

    Args:
        name: of the arm.
        arm: what is built.
        seed: of weights, order and augmentation.
        scale: how large the measurement is.
        allowance: what the training may spend.
        source: the study's data, None where it has none.
        progress: told the share of the training that is done.

    Attributes:
        spent: pictures seen, seconds and operations of the trainings so far.
    """

    def __init__(
        self,
        name: str,
        arm: Arm,
        seed: int,
        *,
        scale: Scale,
        allowance: Allowance,
        source: DataSource | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.name, self.arm, self.seed, self.scale = name, arm, seed, scale
        self.allowance, self.source = allowance, source
        self.spent: dict[str, float] = {}
        self._progress = progress or (lambda share: None)
        self._pictures: Dataset | None = None

    @property
    def data(self) -> DataSource:
        """The study's data.

        Raises:
            ConfigError: where it has none.
        """
        if self.source is None:
            raise ConfigError("the study declares no data", where=self.name)
        return self.source

    @property
    def draws(self) -> bool:
        """Whether this trial should make pictures: those of one seed are enough."""
        return self.seed == 0

    def pick(self, smoke: Choice, quick: Choice, full: Choice) -> Choice:
        """The value for the scale of this run."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.scale]

    def build(self, model: str = "", overrides: Mapping[str, Any] = NOTHING) -> AnyModel:
        """The arm's model, or another one, with the initial weights of this seed."""
        torch.manual_seed(self.seed)
        classes = self.data.classes.names if self.source is not None else None
        return create(model or self.arm.model, classes=classes, overrides={**self.arm.overrides, **overrides} or None)

    def train(
        self, model: AnyModel, settings: Mapping[str, Any] = NOTHING, *, pictures: Dataset | None = None
    ) -> Training:
        """Train a model in place, with exactly what every arm of the study gets.

        Args:
            model: ends with its last weights, without average.
            settings: fields of ``TrainConfig`` beside the arm's own.
            pictures: what to train on, where arms differ in that; else the study's own training pictures.

        Raises:
            RunError: where the study declares no budget, or this trial has spent its own.
        """
        if self.allowance.unit is None:
            raise RunError("the study declares no budget, so nothing may be trained", where=self.name)
        if self.spent:
            raise RunError("this trial has spent its budget on an earlier training", where=self.name)
        self._pictures = pictures
        if self.allowance.unit == "seconds":
            draw_all(self._training())  # which is no part of a training
        config = self._config(settings)
        steps = self._num_steps(model, config)
        # The last batch of an epoch may be smaller, so it is left out: every step sees equally many pictures.
        per_epoch = max(len(self._training()) // config.batch_size, 1)
        config = self._config({**settings, **_lasting(*divided(steps, per_epoch))})
        limit = self.allowance.amount * _PATIENCE if self.allowance.unit == "seconds" else math.inf
        result = self._run(model, config, limit)
        flops = BACKWARD * count_flops(model) * result.images
        count = max(len(result.losses), 1)
        facts = (result.images, result.seconds, flops, count, result.is_broken)
        self.spent = dict(zip(("images", "seconds", "flops", "steps", "broken"), map(float, facts), strict=True))
        return result

    def evaluate(self, model: AnyModel, dataset: Dataset | None = None) -> Evaluation:
        """The figures of a model on the held-out pictures of the study, or on others."""
        chosen = dataset if dataset is not None else self.data.split(held_out(self.data))
        config = EvaluateConfig(workers=0, resamples=200, detection_resamples=1, num_mistakes=0, num_shown=0)
        return evaluate(model, chosen, config)

    def _training(self) -> Dataset:
        return self.data.split("train") if self._pictures is None else self._pictures

    def _config(self, settings: Mapping[str, Any]) -> TrainConfig:
        fields = {**_BASE, "seed": self.seed, **self.arm.train, **settings}
        return from_dict(TrainConfig, fields)

    def _num_steps(self, model: AnyModel, config: TrainConfig) -> int:
        allowance, batch = self.allowance, min(config.batch_size, len(self._training()))
        if allowance.unit == "images":
            share = allowance.amount / batch
        elif allowance.unit == "flops":
            share = allowance.amount / (BACKWARD * count_flops(model) * batch)
        else:
            share = allowance.amount / self._seconds_per_step(model, config)
        return max(round(share), 1)

    def _seconds_per_step(self, model: AnyModel, config: TrainConfig) -> float:
        """The median of a few steps on a copy of the model."""
        count = _PROBES[self.scale]
        available = math.ceil(len(self._training()) / config.batch_size)
        lasting = _lasting(math.ceil(count / available), min(count, available))
        probe = override(config, lasting)
        times = list(itertools.islice(self._timed_steps(copy.deepcopy(model), probe), count))
        return statistics.median(seconds for _, seconds in times[len(times) // 2 :])

    def _run(self, model: AnyModel, config: TrainConfig, limit: float) -> Training:
        losses: list[float] = []
        norms: list[float] = []
        seconds, is_broken = 0.0, False
        try:
            for record, took in self._timed_steps(model, config):
                losses.append(record.total)
                norms.append(record.grad_norm)
                seconds += took
                self._progress(record.progress)
                if seconds > limit:
                    break
        except TrainingError:
            is_broken = True
        # The last batch of an epoch holds what is left.
        whole, rest = divmod(len(losses), config.limit_steps)
        in_epoch = min(config.limit_steps * config.batch_size, len(self._training()))
        return Training(
            losses=tuple(losses),
            grad_norms=tuple(norms),
            is_broken=is_broken,
            seconds=seconds,
            images=whole * in_epoch + rest * config.batch_size,
        )

    def _timed_steps(self, model: AnyModel, config: TrainConfig) -> Iterator[tuple[StepRecord, float]]:
        """The step records of a training with the seconds that each took, reading of the pictures included."""
        # A run wants something to validate on; the figures of a study come from elsewhere.
        few = subset(self.data.split(held_out(self.data)), [0, 1])
        source = DataSource(
            {"train": self._training(), "val": few}, self.data.classes, self.data.format, self.data.name
        )
        with tempfile.TemporaryDirectory(prefix="saccade-study-") as folder:
            records = train(model, source, config, out=Path(folder) / "run")
            try:
                while True:
                    start = time.perf_counter()
                    record = next(records, None)
                    if record is None:
                        return
                    if record.kind == "step":
                        yield record, time.perf_counter() - start
            finally:
                if close := getattr(records, "close", None):
                    close()


_BASE = {"ema_decay": 0.0, "workers": 0, "checkpoint_seconds": 3600.0, "warmup": 0.1}


def _lasting(epochs: int, steps: int) -> dict[str, int]:
    return {"epochs": epochs, "limit_steps": steps, "validate_every": epochs}


def divided(steps: int, per_epoch: int) -> tuple[int, int]:
    """Epochs, and steps in each, that come within 3 % of a number of steps; the longest epochs that do."""

    def missed(length: int) -> int:
        return abs(max(round(steps / length), 1) * length - steps)

    lengths = range(min(steps, per_epoch), 0, -1)
    length = next(length for length in lengths if missed(length) <= 0.03 * steps)
    return max(round(steps / length), 1), length


def held_out(source: DataSource) -> str:
    """The split that figures come from: no study chooses anything by it, so ``test`` and ``val`` are as good."""
    return source.scored


def count_parameters(model: AnyModel) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: AnyModel, size: tuple[int, int] | None = None) -> int:
    """Operations of one forward pass of one empty picture; the canvas is the model's own where no size is given."""
    pixels = torch.zeros(1, 3, *(size or model.preprocess.size), device=next(model.parameters()).device)
    # The counter follows modules through the graph, so there has to be one.
    with evaluating(model), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(ImageBatch.of(pixels))
    return int(counter.get_total_flops())


def count_activations(model: AnyModel, images: ImageBatch) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = model.training
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(images)
    model.train(was_training)
    del outputs
    return sum(kept.values())


def seconds_of(work: Callable[[], object], repeats: int = 5) -> float:
    """The median time of a piece of work, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def seconds_per_picture(model: AnyModel, *, batch: int = 1, repeats: int = 5) -> float:
    """Time of a forward pass over random pixels, per picture."""
    canvas = (batch, 3, *model.preprocess.size)
    pixels = torch.randn(canvas, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).device)
    with evaluating(model), torch.no_grad():
        return seconds_of(lambda: model(ImageBatch.of(pixels)), repeats) / batch
