"""What the studies of norms share: trainings without warm-up over depth and learning rate, and what breaks in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from saccade.data.loader import Loader, LoaderConfig
from saccade.models.base import VisionModel
from saccade.studies.base import Arm, Measured, Results
from saccade.studies.trial import AnyModel, Training, Trial, seconds_of

DEPTHS = (3, 12)
RATES = (1e-3, 4e-3, 1.6e-2)


def arms(kinds: dict[str, dict[str, object]]) -> dict[str, Arm]:
    """Every kind of norm at every depth and learning rate."""
    return {
        label(kind, depth, rate): Arm(
            model="vit_pico_p4_28",
            overrides={
                "backbone.embed_dim": 32,
                "backbone.num_heads": 2,
                "backbone.patch_size": 7,
                "backbone.depth": depth,
                **overrides,
            },
            # Clipping the gradient would hide what is to be seen.
            train={"batch_size": 25, "learning_rate": rate, "warmup": 0.0, "clip_norm": 0.0, "precision": "32"},
        )
        for kind, overrides in kinds.items()
        for depth in DEPTHS
        for rate in RATES
    }


def label(kind: str, depth: int, rate: float) -> str:
    """Name of an arm."""
    return f"{kind}, {depth} blocks, rate {rate:g}"


def grid(kind: str, depths: Sequence[int] = DEPTHS) -> list[str]:
    """The arms of one kind."""
    return [label(kind, depth, rate) for depth in depths for rate in RATES]


def measure(trial: Trial) -> Measured:
    """Whether a training without warm-up breaks or stalls, its last losses, the gradient of each block at the start."""
    model = trial.build()
    norms = gradient_norms(model, trial)
    step = step_seconds(model, trial)
    training = trial.train(model)
    last = last_loss(training)
    figures = {
        "failed": float(has_failed(training, len(model.classes))),
        "loss": last,
        "imbalance": abs(math.log(norms[-1] / norms[0])),
        "step": 1000 * step,
        "accuracy": math.nan if training.is_broken else trial.evaluate(model).metrics["top1"] or 0.0,
    }
    series = {
        "gradient": (range(1, len(norms) + 1), norms),
        "loss": (range(1, len(training.losses) + 1), _smooth(training.losses)),
    }
    return Measured(figures=figures, series=series)


def has_failed(training: Training, num_classes: int) -> bool:
    """Whether a training broke off, or ended where it knows hardly more than that there are K classes."""
    return training.is_broken or not last_loss(training) < 0.9 * math.log(num_classes)


def last_loss(training: Training) -> float:
    """Mean loss of the last tenth of the steps; NaN where it broke off."""
    if training.is_broken or not training.losses:
        return math.nan
    tail = training.losses[-max(len(training.losses) // 10, 1) :]
    return sum(tail) / len(tail)


def gradient_norms(model: AnyModel, trial: Trial) -> list[float]:
    """Norm of the gradient of every block's parameters in the first step."""
    _step(model, trial)
    blocks = model.get_submodule("backbone.blocks")
    norms = []
    for block in blocks.children():
        squares = [parameter.grad.square().sum() for parameter in block.parameters() if parameter.grad is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))
    model.zero_grad(set_to_none=True)
    return norms


def step_seconds(model: AnyModel, trial: Trial) -> float:
    """Time of a forward and a backward pass."""
    seconds = seconds_of(lambda: _step(model, trial), trial.pick(1, 3, 7))
    model.zero_grad(set_to_none=True)
    return seconds


def _step(model: VisionModel, trial: Trial) -> None:  # type: ignore[type-arg]
    loader = Loader(trial.data.split("train"), model.preprocess, LoaderConfig(batch_size=50, workers=0))
    batch = next(iter(loader.epoch(0)))
    model.train()
    model.loss(model(batch.images, batch.targets), batch.targets).total.backward()  # type: ignore[no-untyped-call]


def failures(results: Results, kind: str, depths: Sequence[int] = DEPTHS) -> list[float]:
    """Share of the runs of a kind that broke or stalled, by seed."""
    return results.mean(grid(kind, depths), "failed")


def _smooth(losses: Sequence[float], points: int = 40) -> list[float]:
    return list(losses[:: max(len(losses) // points, 1)])
