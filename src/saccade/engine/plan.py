"""What a training is told (``TrainConfig``) and what it tells back (``StepRecord``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from saccade.config import Config
from saccade.data.mosaic import Mosaic
from saccade.data.transforms import Augment, Mix
from saccade.engine.optim import OptimizerName
from saccade.errors import ConfigError

Precision = Literal["auto", "32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model is trained."""

    epochs: int = 20
    """Passes over the training pictures."""
    batch_size: int = 64
    """Pictures per forward pass and process."""
    accumulate: int = 1
    """Batches whose gradients make one step; 2 batches of 32 give the gradient of one batch of 64."""
    chunk: int = 0
    """Pictures per forward pass of a contrastive training, whose loss still sees the whole batch (gradient caching, one
    more forward pass); 0 for all at once."""
    limit_steps: int = 0
    """At most this many steps per epoch; 0 for all pictures."""
    optimizer: OptimizerName = "adamw"
    """``adamw``, or ``sgd`` with Nesterov momentum 0.9."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    head_multiplier: float = 1.0
    """Factor on the learning rate of the head; above 1 for a new head on a trained backbone."""
    weight_decay: float = 0.05
    """Decoupled; spares norms, biases, positions and tokens."""
    warmup: float = 0.05
    """Share of the training in which the learning rate rises."""
    floor: float = 0.01
    """Learning rate at the end, as a share of the peak."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 leaves gradients as they are."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights; 0 for none."""
    precision: Precision = "auto"
    """``auto`` takes bfloat16 where the machine has hardware for it and the model is wide enough for it to pay."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    compile: bool = False
    """Compile the model first; pays on long runs."""
    seed: int = 0
    """Of order, augmentation, drop path and the validation split."""
    freeze: tuple[str, ...] = ()
    """Submodules that stay as they are, in evaluation mode, e.g. ``backbone``."""
    augment: Augment = field(default_factory=Augment)
    """Random changes of the training pictures."""
    mix: Mix = field(default_factory=Mix)
    """Mixup, cutmix, label smoothing."""
    mosaic: Mosaic = field(default_factory=Mosaic)
    """Four pictures with objects in one, closed for the last epochs; by default where the model learns best so."""
    class_weights: bool = False
    """Weight the classes of label maps by median frequency, counted in the training data; for segmenters."""
    validation_share: float = 0.1
    """Share of each class held back from training where the data has no ``val``; ``test`` is never looked at."""
    validate_every: int = 1
    """Epochs from one validation to the next; the last epoch always has one."""
    patience: int = 0
    """Stop after this many validations without a better result; 0 never stops early."""
    workers: int | None = None
    """Processes that read pictures; by default as many as the machine has cores, none for pictures in memory."""
    strict: bool = False
    """Fail at the first unreadable picture instead of skipping it with a count."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints within an epoch; stretched where writing them would take more than 5 % of the time."""
    checkpoint_steps: int = 0
    """Steps between checkpoints, instead of a time; 0 for the time."""
    tensorboard: bool = False
    """Write TensorBoard files into the run folder."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "validate_every"):
            _check(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("chunk", "limit_steps", "weight_decay", "clip_norm", "seed", "patience", "checkpoint_steps"):
            _check(name, getattr(self, name), "at least 0", getattr(self, name) >= 0)
        for name in ("learning_rate", "head_multiplier", "checkpoint_seconds"):
            _check(name, getattr(self, name), "above 0", getattr(self, name) > 0)
        for name in ("warmup", "floor", "ema_decay"):
            _check(name, getattr(self, name), "0 up to below 1", 0 <= getattr(self, name) < 1)
        _check("validation_share", self.validation_share, "between 0 and 1", 0 < self.validation_share < 1)


def _check(name: str, value: float, expected: str, is_right: bool) -> None:
    if not is_right:
        raise ConfigError(f"{name} is {value}", where=name, expected=expected)


@dataclass(frozen=True)
class StepRecord:
    """What happened in one step (``kind`` step) or at the end of one epoch (``kind`` epoch).

    Attributes:
        kind: which of the two.
        epoch: number of the epoch, from 1.
        step: optimizer steps done so far.
        num_steps: steps of the whole training.
        losses: weighted loss terms and logs of the step; their means over the epoch in an epoch record.
        total: sum of the loss terms.
        learning_rate: of this step.
        grad_norm: norm of the gradient before clipping; NaN in an epoch record.
        metrics: validation figures of the better of raw and averaged weights; empty where there was no validation.
        evaluations: validation figures of ``raw`` and, where there is one, ``average``.
        is_best: whether this epoch is the best so far.
        expert_load: share of the routed tokens per layer and expert over the epoch; empty without experts.
        notes: what the user should know (precision and why, dead experts, skipped pictures).
        images_per_second: training throughput of late.
        seconds_left: estimate of the time to the end.
    """

    kind: Literal["step", "epoch"]
    epoch: int
    step: int
    num_steps: int
    losses: Mapping[str, float]
    total: float
    learning_rate: float
    grad_norm: float = float("nan")
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    is_best: bool = False
    expert_load: tuple[tuple[float, ...], ...] = ()
    notes: tuple[str, ...] = ()
    images_per_second: float = float("nan")
    seconds_left: float = float("nan")

    @property
    def progress(self) -> float:
        """Share of the training done, 0 to 1."""
        return self.step / self.num_steps

    def to_line(self) -> dict[str, Any]:
        """The line of ``history.jsonl``: no notes and no clock, so that equal runs give equal histories."""
        line: dict[str, Any] = {
            "kind": self.kind,
            "epoch": self.epoch,
            "step": self.step,
            "total": self.total,
            "losses": dict(self.losses),
            "learning_rate": self.learning_rate,
        }
        if self.kind == "step":
            return {**line, "grad_norm": self.grad_norm}
        line |= {"metrics": dict(self.metrics), "is_best": self.is_best}
        line["evaluations"] = {name: dict(metrics) for name, metrics in self.evaluations.items()}
        if self.expert_load:
            line["expert_load"] = [list(layer) for layer in self.expert_load]
        return line
