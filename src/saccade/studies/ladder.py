"""The ladder of a user's own data: every method that fits its task, trained for equal time, compared, and one chosen.

T task
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from saccade import render
from saccade.config import to_dict
from saccade.data.dataset import Dataset, subset
from saccade.data.source import DataSource, open_data
from saccade.engine.feed import training_splits
from saccade.engine.plan import TrainConfig
from saccade.errors import DataError, SaccadeError
from saccade.explanation.explain import ExplainOptions, explain_batch
from saccade.studies.base import Arm, Column, Measured, Results, Scale, Shot, Spend, Study
from saccade.studies.harness import FEWEST_PICTURES, check_size
from saccade.studies.intervals import Finding, interval, more
from saccade.studies.one_answer import of_commonest, of_same_boxes
from saccade.studies.setups import CLOTHES, NUCLEI, OBJECTS
from saccade.studies.trial import AnyModel, Trial, count_flops, count_parameters, held_out, seconds_per_picture
from saccade.types import TaskName


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """The methods of a task, the oldest first.

    Attributes:
        models: registry names.
        headline: figure they are compared by.
        told: that figure, in words.
        train: fields of ``TrainConfig``.
    """

    models: Sequence[str]
    headline: str
    told: str
    train: Mapping[str, Any]


_DETECTORS = (
    "sliding_window_small",
    "rcnn_small",
    "fast_rcnn_small",
    "faster_rcnn_small",
    "yolo_v1_small",
    "yolo_small",
    "detr_small",
    "detr_fast_small",
)
RUNGS: Mapping[str, Rungs] = MappingProxyType(
    {
        "classification": Rungs(
            models=("resnet_test", "vit_pico_p4_28", "vit_pico_p4_28_moe4", "vit_nano_p8_64", "mobilenetv2_100"),
            headline="top1",
            told="accuracy",
            train=CLOTHES,
        ),
        "semantic": Rungs(
            models=("patch_cnn", "fcn8s_small", "segnet_small", "segnet_small_transposed", "unet_nano", "unet_small"),
            headline="miou",
            told="mean IoU",
            train=NUCLEI,
        ),
        "detection": Rungs(models=_DETECTORS, headline="ap50", told="AP50", train=OBJECTS),
        "instance": Rungs(
            models=("mask_rcnn_small", "yolo_mask_small"), headline="mask_ap50", told="mask AP50", train=OBJECTS
        ),
    }
)
"""What is compared for each task."""

NEAR = 0.9
"""Share of the best figure below which no method is called as good."""

LEARNED = 0.05
"""How far above the same answer for everything the best method has to lie before any is advised."""

MOST_HELD_OUT = MappingProxyType({"smoke": 4, "quick": 16, "full": 200})
"""Pictures that a trial is measured on."""


def ladder(data: str | Path | DataSource, *, task: TaskName | None = None, command: str = "") -> Study:
    """The study of a user's own data.

    Args:
        data: anything ``open_data`` knows.
        task: what it is read for; None: what is recognised.
        command: words that repeat it.

    Raises:
        DataError: where the data is too small to be split, or is for a task that no ladder serves.
    """
    source = open_ladder(data, task)
    rungs = RUNGS[source.task]
    arms = {name: Arm(model=name, overrides=sizes_of(name, source), train=rungs.train) for name in rungs.models}
    count = len(arms)

    @cache  # it looks at all pictures, and is the same for every method
    def chance_of_boxes(scale: Scale) -> float:
        data = _shortened(source, scale)
        return of_same_boxes(data.split("train"), data.split(held_out(data)))

    def measure(trial: Trial) -> Measured:
        return _measure(trial, rungs, chance_of_boxes)

    def judge(results: Results) -> list[Finding]:
        return _judge(results, rungs)

    def advise(results: Results) -> list[str]:
        return advice(results, rungs.told)

    return Study(
        name=f"ladder-{source.task}",
        claim="The newest of the methods that fit your data is the best of them",
        place=f"every method for {source.task}, on {source.name}",
        method="Every method is trained for equal time from random weights and measured on held-out pictures. "
        "Refuted if an older method lies above the newest.",
        arms=arms,
        spend=Spend(unit="seconds", smoke=0.1, quick=round(150 / (3 * count), 1), full=round(900 / (3 * count), 1)),
        data=lambda scale: _shortened(source, scale),
        measure=measure,
        judge=judge,
        advice=advise,
        columns=(
            Column(key="quality", heading=rungs.told, form="percent", is_drawn=True),
            Column(key="chance", heading="one answer for all", form="percent"),
            Column(key="parameters", heading="parameters", form="count"),
            Column(key="flops", heading="million operations", form="count"),
            Column(key="ms", heading="ms per picture", form="time", is_drawn=True),
            Column(key="images", heading="pictures seen", form="count"),
        ),
        seeds=3,
        source=__file__,
        command=command or f"ladder {source.name}",
    )


def open_ladder(data: str | Path | DataSource, task: TaskName | None = None) -> DataSource:
    """The data with a training and a held-out split.

    Raises:
        DataError: where a split is too small, or no ladder serves the task.
    """
    source = open_data(data, task=task)
    if source.task not in RUNGS:
        remedy = f"a ladder exists for {', '.join(RUNGS)}"
        raise DataError(f"there is no ladder for {source.task}", where=source.name, remedy=remedy)
    check_size(len(source.split("train")), "train", source.name)
    if len(source.splits) == 1:
        train, held, _ = training_splits(source, TrainConfig(validation_share=0.25))
        source = replace(source, splits={"train": train, "val": held})
    check_size(len(source.split("train")), "train", source.name)
    check_size(len(source.split(held_out(source))), "held out", source.name)
    return source


def _shortened(source: DataSource, scale: Scale) -> DataSource:
    """A choice of the held-out pictures, evenly spread, so that slow methods can be measured in the time there is."""
    name = held_out(source)
    held: Dataset = source.split(name)
    most = max(MOST_HELD_OUT[scale], FEWEST_PICTURES["held out"])
    if source.task == "classification":
        most *= 10
    if most < len(held):
        held = subset(held, torch.linspace(0, len(held) - 1, most).round().long().tolist())
    return replace(source, splits={"train": source.split("train"), name: held})


def sizes_of(name: str, source: DataSource) -> dict[str, Any]:
    """The canvas for small pictures: a network for photographs need not enlarge icons sevenfold."""
    from saccade.models.build import find_config

    height, width = source.split("train")[0].image.shape[-2:]
    side, config = max(height, width), find_config(name)
    if source.task in {"detection", "instance"} or "patch_size" in to_dict(config).get("backbone", {}):
        return {}
    step = 32
    own = min(max(math.ceil(side / step) * step, step), max(config.preprocess.size))
    return {"preprocess.size": [own, own]}


def _measure(trial: Trial, rungs: Rungs, chance_of_boxes: Callable[[Scale], float]) -> Measured:
    model = trial.build()
    parameters, flops = count_parameters(model), count_flops(model)
    ms = 1000 * seconds_per_picture(model, repeats=trial.pick(1, 3, 7))
    trial.train(model)
    evaluation = trial.evaluate(model)
    quality = evaluation.metrics.get(rungs.headline)
    has_boxes = evaluation.task in {"detection", "instance"}
    figures = {
        "quality": math.nan if quality is None else quality,
        "chance": chance_of_boxes(trial.scale) if has_boxes else of_commonest(evaluation),
        "parameters": parameters,
        "flops": flops / 1e6,
        "ms": ms,
        "images": trial.spent["images"],
    }
    return Measured(figures=figures, shots=_explained(model, trial) if trial.draws else ())


def _explained(model: AnyModel, trial: Trial) -> list[Shot]:
    """The same pictures explained for every method."""
    held = trial.data.split(held_out(trial.data))
    panels = []
    for index in range(trial.pick(1, 2, 3)):
        image = held[index].image
        try:
            heat = explain_batch(model, [image], options=ExplainOptions(verdict=trial.scale == "full"))[0][0]
        except SaccadeError as error:  # a detector that found nothing has nothing to explain
            caption = textwrap.shorten(error.what, 28, placeholder=" ...")
            panels.append(render.Panel(image=image, title=trial.name, caption=caption))
            continue
        status = heat.verdict.status if heat.verdict else None
        panels.append(
            render.Panel(image=heat.outlined, heat=heat.map, is_signed=heat.is_signed, title=trial.name, status=status)
        )
    return [Shot(png=render.to_png(render.side_by_side([panels], size=1.8), dpi=80), caption="why")]


def _judge(results: Results, rungs: Rungs) -> list[Finding]:
    *older, newest = rungs.models
    return [
        more(f"{newest} lies above {name}", results.values(newest, "quality"), results.values(name, "quality"))
        for name in older
    ]


def advice(results: Results, told: str) -> list[str]:
    """The best method, and the fastest that is not clearly worse; none where none has learned anything yet.

    Args:
        results: of all methods.
        told: the figure they are compared by, in words.
    """
    found = {arm: interval(results.values(arm, "quality")) for arm in results.arms()}
    known = {arm: one for arm, one in found.items() if one.count}
    if not known:
        return ["No method gave a figure to compare."]
    best = max(known, key=lambda arm: known[arm].mean)
    words = [f"Highest {told}: {best} with {100 * known[best].mean:.1f} %."]
    chance = interval(results.values(best, "chance")).mean
    if known[best].mean < chance + LEARNED:
        words.append(
            f"The same answer for everything would give {100 * chance:.1f} %: no method has learned enough to be "
            "chosen. Give them more time (leave --quick out), or look at the data first: saccade data inspect DATA."
        )
        return words
    speed = {arm: interval(results.values(arm, "ms")).mean for arm in known}

    def is_as_good(arm: str) -> bool:
        # Few seeds tell little apart: what is far below the best is not as good, however wide the interval.
        gap = more("", results.values(best, "quality"), results.values(arm, "quality"))
        is_near = known[arm].mean >= NEAR * known[best].mean
        return arm == best or (is_near and gap.status != "holds")

    fastest = min((arm for arm in known if is_as_good(arm)), key=lambda arm: speed[arm])
    if fastest == best:
        words.append("Nothing faster is as good, as far as these seeds can tell: choose it.")
    else:
        words.append(
            f"{fastest} is not clearly worse and takes {speed[fastest]:.1f} ms per picture instead of "
            f"{speed[best]:.1f}: choose it where time matters."
        )
    words.append(f"To train it longer: saccade train {fastest} DATA.")
    return words
