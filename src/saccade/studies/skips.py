"""A U-Net with and without its skips: where the fine detail comes from."""

from __future__ import annotations

from saccade import render
from saccade.api import predict
from saccade.studies.base import Arm, Column, Measured, Results, Shot, Spend, Study
from saccade.studies.intervals import Finding, more
from saccade.studies.setups import NUCLEI, nuclei
from saccade.studies.trial import AnyModel, Trial, count_parameters
from saccade.types import Segmentation

WITH, WITHOUT = "with skips", "without skips"


def measure(trial: Trial) -> Measured:
    """Overlap and boundary score after equally many pictures."""
    model = trial.build()
    trial.train(model)
    metrics = trial.evaluate(model).metrics
    return Measured(
        figures={
            "miou": metrics["miou"] or 0.0,
            "boundary": metrics["boundary_f"] or 0.0,
            "parameters": count_parameters(model),
        },
        shots=_maps(model, trial) if trial.draws else (),
    )


def _maps(model: AnyModel, trial: Trial) -> list[Shot]:
    held = trial.data.split("val")
    images = [held[index].image for index in range(trial.pick(1, 3, 3))]
    panels = []
    for image, prediction in zip(images, predict(model, images), strict=True):
        assert isinstance(prediction, Segmentation)
        outlined = render.outlined(image, prediction.labels == 1)
        panels.append(render.Panel(image=outlined, title=trial.name))
    return [Shot(png=render.to_png(render.side_by_side([panels]), dpi=80), caption="outlines of what is found")]


def judge(results: Results) -> list[Finding]:
    """Skips help at boundaries, and there more than overall."""

    def of(arm: str, key: str) -> list[float]:
        return results.values(arm, key)

    gains = {key: [a - b for a, b in zip(of(WITH, key), of(WITHOUT, key), strict=True)] for key in ("boundary", "miou")}
    return [
        more("boundaries are better with skips", of(WITH, "boundary"), of(WITHOUT, "boundary")),
        more("boundaries gain more than the overlap", gains["boundary"], gains["miou"], form="points"),
    ]


STUDY = Study(
    name="skips",
    claim="This U-shaped architecture allows the network to efficiently learn both high-level contextual information "
    "from the downsampled path and fine-grained spatial details from the upsampled path",
    place="Semantic or image segmentation",
    method="A small U-Net with its skips and without them, trained on nuclei with equally many pictures. Refuted if "
    "the boundary score is not higher with skips, or gains no more than the mean IoU does.",
    arms={
        WITH: Arm(model="unet_nano", train=NUCLEI),
        WITHOUT: Arm(model="unet_nano", overrides={"has_skips": False}, train=NUCLEI),
    },
    spend=Spend(unit="images", smoke=16, quick=560, full=2400),
    data=nuclei,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="miou", heading="mean IoU", form="percent", is_drawn=True),
        Column(key="boundary", heading="boundary score", form="percent", is_drawn=True),
        Column(key="parameters", heading="parameters", form="count"),
    ),
    source=__file__,
)
