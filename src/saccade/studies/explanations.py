"""Every method of explanation on every task.

Do maps point to the object, do they show what decides, do they follow what was learned, and what do they cost?
What is measured of a map stands in ``map_figures.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saccade import render
from saccade.config import override
from saccade.data.captions import LabelledCaptions, training_texts
from saccade.data.source import DataSource, open_data
from saccade.data.synthetic import SyntheticClassification
from saccade.explanation.explain import Subject
from saccade.explanation.heatmap import Heatmap
from saccade.explanation.methods import METHODS
from saccade.explanation.scramble import scrambled
from saccade.models.build import build, find_config
from saccade.models.clip import Clip
from saccade.studies import map_figures
from saccade.studies.base import Arm, Column, Measured, Results, Scale, Shot, Spend, Study
from saccade.studies.intervals import Finding, above, more
from saccade.studies.ladder import RUNGS, open_ladder, sizes_of
from saccade.studies.map_figures import CONTROLS, NEGATIVE, Case, case_of, explainers_of, figures_of
from saccade.studies.setups import CNN, NUCLEI, OBJECTS, SCENES, cells, clothes, nuclei, objects, scenes, shortened
from saccade.studies.trial import AnyModel, Trial, held_out
from saccade.studies.zero_shot import STUDY as PROMPTS
from saccade.studies.zero_shot import captioned
from saccade.types import ClassTarget, TaskName

STEPS: Mapping[Scale, int] = {"smoke": 2, "quick": 3, "full": 6}
"""Steps from the whole picture to none."""

LIKE = 0.5
"""Rank correlation with the map of a network whose later half was shuffled, above which a map does not show it."""

ACROSS = 6
"""Maps beside each other in a picture of the page."""


# One trial


def measure(trial: Trial) -> Measured:
    """Every method that suits the model, on pictures of its own for every seed."""
    model = _build(trial)
    trial.train(model)
    classifier: Any = model.classifier([f"a {name}" for name in model.classes]) if isinstance(model, Clip) else model
    subject = Subject(classifier.eval())
    copy = Subject(scrambled(classifier, "all", trial.seed, is_late=True))
    explainers = explainers_of(subject, trial.scale)
    details: dict[str, dict[str, list[float]]] = {name: {} for name in (*explainers, *CONTROLS)}
    rows: list[list[render.Panel]] = []
    wanted, missing = trial.pick(1, *trial.arm.options["pictures"]), 0
    for case in _cases(trial, subject, wanted):
        if case is None:
            missing += 1
            continue
        heats, figures = figures_of(case, subject, copy, explainers, STEPS[trial.scale])
        for name, found in figures.items():
            for key, value in found.items():
                details[name].setdefault(key, []).append(value)
        if trial.draws and not rows:
            panels = [_panel(heat, name) for name, heat in heats.items()]
            rows += [panels[start : start + ACROSS] for start in range(0, len(panels), ACROSS)]
    shots = (
        [Shot(png=render.to_png(render.side_by_side(rows, size=1.6), dpi=80), caption="all methods")] if rows else []
    )
    return Measured(
        figures={
            "quality": _quality(trial, model),
            "methods": len(explainers),
            "unanswered": missing / wanted,
            **{key: _mean(values) for key, values in details[next(iter(explainers))].items()},
        },
        details=details,
        shots=shots,
    )


def _cases(trial: Trial, subject: Subject, wanted: int) -> Iterator[Case | None]:
    """The pictures of this seed with their questions; None for a picture on which there is nothing to ask about."""
    held = trial.data.split(held_out(trial.data))
    question = {"semantic": "component:1", "detection": "box:0", "instance": "mask:0"}.get(trial.data.task)
    for place in range(wanted):
        index = (trial.seed * wanted + place) % len(held)
        sample = held[index]
        truth, of = None, question
        if isinstance(sample.target, ClassTarget):
            of = subject.classes[int(sample.target.label)] if len(subject.classes) == len(held.classes) else None
            truth = _truth(trial, index)
        elif isinstance(held, LabelledCaptions):
            of = subject.classes[int(held.labels()[index])]
        yield case_of(subject, sample.image, of, truth)


def _truth(trial: Trial, index: int) -> Tensor | None:
    """The pixels of the object that decides about the class; None where the data does not tell."""
    held = trial.data.split(held_out(trial.data))
    if isinstance(held, SyntheticClassification):
        return held.scenes[index].objects[0].mask
    if trial.arm.options.get("ground") == "black":
        return held[index].image.amax(dim=0) > 0
    return None


def _build(trial: Trial) -> AnyModel:
    """The arm's model; one that reads texts gets the words of its captions."""
    config = find_config(trial.arm.model)
    data = trial.data.split("train")
    if not isinstance(data, LabelledCaptions):
        return trial.build()
    torch.manual_seed(trial.seed)
    changed: Any = override(config, {**trial.arm.overrides, "num_classes": len(data.classes)})
    return build(changed.fitted(lambda: training_texts(data)), data.classes)


def _quality(trial: Trial, model: AnyModel) -> float:
    """How good the network itself is, by the figure of its task."""
    if isinstance(model, Clip):
        return math.nan
    metrics = trial.evaluate(model).metrics
    found = [metrics.get(name) for name in ("top1", "miou", "mask_ap50", "ap50")]
    return next((value for value in found if value is not None), math.nan)


def _panel(heat: Heatmap, name: str) -> render.Panel:
    return render.Panel(image=heat.outlined, heat=heat.map, is_signed=heat.is_signed, title=name)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


# What follows from it


def judge(results: Results) -> list[Finding]:
    """The usual method of every arm against chance, its place, and the negative control."""
    found = []
    for arm in results.arms():
        usual = usual_of(results, arm)

        def of(key: str, thing: str = usual, arm: str = arm) -> list[float]:
            return results.pictures(arm, thing, key)

        told = f"{arm}: {usual}"
        random = of("advantage", CONTROLS[0])
        found.append(
            more(f"{told} shows what decides more than a random order", of("advantage"), random, form="points")
        )
        if any(math.isfinite(value) for value in of("inside")):
            found.append(more(f"{told} lies on the object more than chance", of("inside"), of("area")))
    alike = _of_negative(results, NEGATIVE)
    plain = _of_negative(results, "gradient")
    found.append(above(f"{NEGATIVE} stays alike when later layers are shuffled", alike, LIKE, form="number"))
    found.append(more(f"{NEGATIVE} stays more alike than the gradient", alike, plain, form="number"))
    return found


def _of_negative(results: Results, thing: str) -> list[float]:
    """Similarity on the pictures of the arms in which the negative control was drawn, of it or of another method."""
    arms = [arm for arm in results.arms() if NEGATIVE in results.measured_on(arm)]
    return [value for arm in arms for value in results.pictures(arm, thing, "similarity")]


def usual_of(results: Results, arm: str) -> str:
    """The method that is used where none is asked for: it was measured first."""
    return next(iter(results.measured_on(arm)), "the usual method")


def advice(results: Results) -> list[str]:
    """Of every arm the method that shows best what decides, among those that follow the question and the weights."""
    words = []
    for arm in results.arms():
        figures = {
            name: [_mean(results.pictures(arm, name, key)) for key in ("advantage", "similarity")]
            for name in results.measured_on(arm)
            if name in METHODS and not METHODS[name].is_class_agnostic and name != NEGATIVE
        }
        sound = {name: gain for name, (gain, alike) in figures.items() if alike < LIKE}
        if not sound:
            words.append(f"{arm}: no method is told apart from shuffled weights.")
            continue
        best, usual = max(sound, key=lambda name: sound[name]), usual_of(results, arm)
        told = f"{arm}: {best} shows best what decides ({sound[best]:.2f} of the range)"
        beside = "" if best == usual else f", the usual {usual} {figures[usual][0]:.2f}" if usual in figures else ""
        words.append(f"{told}{beside}.")
    return words


# What is measured


def outlined_nuclei(scale: Scale) -> DataSource:
    """Nuclei with a mask each."""
    return shortened(open_data("nuclei_instances"), {"train": 8, "val": 4} if scale == "smoke" else {})


FOUND: Mapping[str, Any] = {"selection.min_score": 0.0, "selection.max_detections": 5}
"""A detector that has learned little is asked about its likeliest object, however unlikely."""

PROMPTED = next(iter(PROMPTS.arms.values()))
ARMS: Mapping[str, Arm] = {
    "class, scenes, CNN": Arm(
        model="resnet_test", overrides={**CNN, "preprocess.size": [64, 64]}, train=SCENES, data=scenes
    ),
    "class, scenes, ViT": Arm(model="vit_nano_p8_64", train=SCENES, data=scenes),
    "class, clothes, CNN": Arm(
        model="resnet_test",
        overrides={**CNN, "preprocess.size": [28, 28]},
        train=SCENES,
        options={"ground": "black"},
        data=clothes,
    ),
    "region, nuclei, U-Net": Arm(model="unet_nano", train=NUCLEI, data=nuclei),
    "box, blood cells, YOLO": Arm(
        model="yolo_small",
        overrides={"preprocess.size": [160, 160], **FOUND},
        train=OBJECTS,
        data=cells,
    ),
    "box, scenes, DETR": Arm(
        model="detr_small",
        overrides={"preprocess.size": [128, 128], "queries": 10, **FOUND},
        train=OBJECTS,
        data=objects,
    ),
    "mask, nuclei, Mask R-CNN": Arm(
        model="mask_rcnn_small",
        overrides={"preprocess.size": [128, 128], **FOUND, "rpn.before_nms": [200, 100], "rpn.after_nms": [100, 50]},
        train=OBJECTS,
        data=outlined_nuclei,
    ),
    "prompt, scenes, CLIP": Arm(
        model=PROMPTED.model, overrides=PROMPTED.overrides, train=PROMPTED.train, data=captioned
    ),
}
"""Every task on synthetic scenes or embedded data."""

OWN: Mapping[str, Sequence[str]] = {
    "classification": ("resnet_test", "vit_nano_p8_64"),
    "semantic": ("unet_nano",),
    "detection": ("yolo_small",),
    "instance": ("mask_rcnn_small",),
}
"""Networks for a user's own data, by task."""


def explanations(
    data: str | Path | DataSource | None = None, *, task: TaskName | None = None, command: str = "explanations"
) -> Study:
    """The study of every method, on the data of the package or on a user's own.

    Args:
        data: anything ``open_data`` knows; None: synthetic scenes and embedded data.
        task: what it is read for; None: what is recognised.
        command: words that repeat it.

    Raises:
        DataError: where the data is too small to be split, or is for a task without a small network.
    """
    arms = ARMS
    if data is not None:
        source = open_ladder(data, task)
        names = OWN[source.task]
        train = RUNGS[source.task].train
        overrides = {**FOUND} if source.task in {"detection", "instance"} else {}
        arms = {
            name: Arm(
                model=name,
                overrides={**(CNN if name == "resnet_test" else {}), **overrides, **sizes_of(name, source)},
                train=train,
                data=lambda scale: source,
            )
            for name in names
        }
    count = 3 * len(arms)
    # Fewer networks leave time for more pictures of each.
    pictures = (max(8 // len(arms), 1), max(40 // len(arms), 1))
    arms = {name: replace(arm, options={**arm.options, "pictures": pictures}) for name, arm in arms.items()}
    return Study(
        name="explanations" if data is None else f"explanations-{source.task}",
        claim="These maps ... highlights areas of the image that are most important for a given class",
        place="Class Activation Mapping",
        method="Small networks for every task are trained for equal time; every method that suits them explains the "
        "same held-out pictures. Deletion and insertion are areas under the score as 7x7 cells are hidden or shown, "
        "strongest first, in shares of the range of all scores seen on the picture. Refuted for a task if the method "
        "that is used where none is asked for shows what decides no more than a random order, or lies on the object "
        "no more than its area; and the measurement is refuted if the negative control passes: guided "
        f"backpropagation has to stay alike (rank correlation above {LIKE}) when the later half of the network is "
        "shuffled.",
        arms=arms,
        spend=Spend(unit="seconds", smoke=0.1, quick=round(24 / count, 1), full=round(360 / count, 1)),
        measure=measure,
        judge=judge,
        advice=advice,
        columns=(
            Column(key="quality", heading="quality of the network", form="percent"),
            Column(key="methods", heading="methods", form="count"),
            Column(key="unanswered", heading="pictures without an answer", form="percent"),
            Column(key="advantage", heading="usual method: insertion less deletion", is_drawn=True),
            Column(key="similarity", heading="like later half shuffled", is_drawn=True),
        ),
        details=(
            Column(key="pointing", heading="points at it", form="percent", is_hit=True),
            Column(key="inside", heading="evidence inside", form="percent"),
            Column(key="area", heading="share of the area", form="percent"),
            Column(key="deletion", heading="deletion"),
            Column(key="insertion", heading="insertion"),
            Column(key="advantage", heading="insertion less deletion"),
            Column(key="similarity", heading="like later half shuffled"),
            Column(key="seconds", heading="seconds per map"),
        ),
        seeds=3,
        source=__file__,
        shared=(map_figures.__file__,),
        command=command,
    )


STUDY = explanations()
