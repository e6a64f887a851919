"""Layers at full resolution against downsampling and upsampling: what they cost, and what they learn in equal time."""

from __future__ import annotations

import torch

from saccade.studies.base import Arm, Column, Measured, Results, Spend, Study
from saccade.studies.intervals import Finding, more, times
from saccade.studies.setups import NUCLEI, nuclei
from saccade.studies.trial import Trial, count_activations, count_flops, count_parameters, seconds_per_picture
from saccade.types import ImageBatch

FULL, DOWN = "full resolution", "down and up"


def measure(trial: Trial) -> Measured:
    """Mean IoU after equal time, and the cost of one picture."""
    model = trial.build()
    memory = count_activations(model, ImageBatch.of(torch.zeros(2, 3, *model.preprocess.size))) / 2
    ms = 1000 * seconds_per_picture(model, repeats=trial.pick(1, 3, 7))
    trial.train(model)
    return Measured(
        figures={
            "miou": trial.evaluate(model).metrics["miou"] or 0.0,
            "parameters": count_parameters(model),
            "flops": count_flops(model) / 1e6,
            "memory": memory / 2**20,
            "ms": ms,
            "images": trial.spent["images"],
        }
    )


def judge(results: Results) -> list[Finding]:
    """More parameters, operations, memory and time at full resolution, and less learned in equal time."""

    def of(arm: str, key: str) -> list[float]:
        return results.values(arm, key)

    told = {"parameters": "parameters", "flops": "operations", "memory": "memory of a step", "ms": "time per picture"}
    found = [times(f"full resolution needs more {name}", of(FULL, key), of(DOWN, key)) for key, name in told.items()]
    return [*found, more("down and up learns more in equal time", of(DOWN, "miou"), of(FULL, "miou"))]


STUDY = Study(
    name="down-up",
    claim="Keeping layers large to match image dimensions results in a huge number of parameters, making training "
    "computationally expensive",
    place="Semantic or image segmentation",
    method="A fully convolutional network that keeps the picture's resolution in every layer (dilated, 33x33 pixels "
    "seen) against a small U-Net, trained for equal time on nuclei. Each part of the claim can fail alone: parameters, "
    "operations, memory of a training step, time, and mean IoU.",
    arms={
        FULL: Arm(model="patch_cnn", overrides={"preprocess.size": [128, 128]}, train=NUCLEI),
        DOWN: Arm(model="unet_nano", train=NUCLEI),
    },
    spend=Spend(unit="seconds", smoke=0.2, quick=6, full=30),
    data=nuclei,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="miou", heading="mean IoU", form="percent", is_drawn=True),
        Column(key="parameters", heading="parameters", form="count"),
        Column(key="flops", heading="million operations", form="count"),
        Column(key="memory", heading="MB kept per picture of a step"),
        Column(key="ms", heading="ms per picture", form="time"),
        Column(key="images", heading="pictures seen", form="count"),
    ),
    source=__file__,
)
