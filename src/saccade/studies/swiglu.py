"""SwiGLU against the two-matrix feed-forward layer, with equally many parameters and operations."""

from __future__ import annotations

from saccade.studies.base import Arm, Column, Measured, Results, Spend, Study
from saccade.studies.intervals import Finding, more, same
from saccade.studies.setups import CLOTHES, clothes
from saccade.studies.trial import Trial, count_flops, count_parameters, seconds_per_picture


def measure(trial: Trial) -> Measured:
    """Accuracy after equally many pictures, sizes, time."""
    model = trial.build()
    trial.train(model)
    metrics = trial.evaluate(model).metrics
    return Measured(
        figures={
            "accuracy": metrics["top1"] or 0.0,
            "nll": metrics["nll"] or 0.0,
            "parameters": count_parameters(model),
            "flops": count_flops(model) / 1e6,
            "ms": 1000 * seconds_per_picture(model, batch=16),
        }
    )


def judge(results: Results) -> list[Finding]:
    """Better than both ordinary activations, at the same size."""
    relative = [
        [a / b for a, b in zip(results.values("swiglu", key), results.values("gelu", key), strict=True)]
        for key in ("parameters", "flops")
    ]
    ones = [1.0] * len(relative[0])
    accuracy = {arm: results.values(arm, "accuracy") for arm in results.arms()}
    return [
        same("equally many parameters", relative[0], ones, within=0.02),
        same("equally many operations", relative[1], ones, within=0.02),
        more("SwiGLU is more accurate than GELU", accuracy["swiglu"], accuracy["gelu"]),
        more("SwiGLU is more accurate than ReLU", accuracy["swiglu"], accuracy["relu"]),
    ]


def _arm(**overrides: object) -> Arm:
    given = {f"backbone.{key}": value for key, value in overrides.items()}
    return Arm(model="vit_pico_p4_28", overrides=given, train=CLOTHES)


STUDY = Study(
    name="swiglu",
    claim="A better non-linearity ... even when keeping the network size (number of parameters) similar to a classic "
    "MLP by adjusting the hidden layer dimension",
    place="Optimizations and Tweaks: SwiGLU MLP",
    method="The same transformer with two matrices and GELU or ReLU, or with SwiGLU's three matrices of two thirds of "
    "the width, so that parameters and operations agree at once. Refuted if SwiGLU is not more accurate after equally "
    "many pictures.",
    arms={
        "gelu": _arm(mlp="mlp", activation="gelu"),
        "relu": _arm(mlp="mlp", activation="relu"),
        "swiglu": _arm(mlp="swiglu"),
    },
    spend=Spend(unit="images", smoke=100, quick=4000, full=16_000),
    data=clothes,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="accuracy", heading="accuracy", form="percent", is_drawn=True),
        Column(key="nll", heading="negative log-likelihood"),
        Column(key="parameters", heading="parameters", form="count"),
        Column(key="flops", heading="million operations", form="count"),
        Column(key="ms", heading="ms per picture", form="time"),
    ),
    seeds=6,
    source=__file__,
)
