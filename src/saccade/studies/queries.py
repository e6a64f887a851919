"""Object queries: at most one object each; how many are needed, where each looks, how fast plain and fast DETR learn.

B pictures · Q queries
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from saccade.engine.detect import detect_pictures
from saccade.models.detector import Detector
from saccade.models.detr import Detr
from saccade.ops.palette import OKABE_ITO
from saccade.render.figure import new_figure, plain_axes, to_png
from saccade.studies.base import Arm, Column, Measured, Plot, Results, Shot, Spend, Study
from saccade.studies.intervals import Finding, exact, more
from saccade.studies.setups import OBJECTS, objects
from saccade.studies.trial import AnyModel, Trial
from saccade.types import BoxTarget, Detections

QUERIES = (2, 10, 50)
FAST = "fast DETR"


def measure(trial: Trial) -> Measured:
    """AP and recall, objects that several queries claim, how much a query's place varies between pictures."""
    model = trial.build()
    assert isinstance(model, Detector)
    training = trial.train(model)
    metrics = trial.evaluate(model).metrics
    held = trial.data.split("val")
    samples = [held[index] for index in range(min(len(held), trial.pick(4, 40, 100)))]
    with torch.no_grad():
        found = detect_pictures(model.eval(), [sample.image for sample in samples])
    pairs = [(one, sample.target) for one, sample in zip(found, samples, strict=True)]
    targets = [(one, target) for one, target in pairs if isinstance(target, BoxTarget)]
    most = model.config.queries if isinstance(model, Detr) else model.config.selection.max_detections
    figures = {
        "ap50": metrics["ap50"] or 0.0,
        "recall": metrics.get("ar_100") or 0.0,
        "surplus": max(max(len(torch.unique(one.source)) for one in found) - most, 0),
        "shared": shared(targets),
        "loss": training.losses[-1],
    }
    losses = list(training.losses[:: max(len(training.losses) // 40, 1)])
    shots: Sequence[Shot] = ()
    if isinstance(model, Detr):
        centres = _centres(model, [sample.image for sample in samples])
        figures["own_place"] = own_place(centres)
        shots = _looks(centres, trial.name) if trial.draws else ()
    return Measured(figures=figures, series={"loss": (range(len(losses)), losses)}, shots=shots)


def shared(pairs: Sequence[tuple[Detections, BoxTarget]]) -> float:
    """Share of the found objects that more than one query claims, from a score of 0.5 on; NaN where none is found."""
    once, often = 0, 0
    for found, target in pairs:
        sure = found.above(0.5)
        if not len(sure) or not len(target.boxes):
            continue
        claims = (box_iou(target.boxes, sure.boxes) >= 0.5) & (target.labels[:, None] == sure.labels)
        number = claims.sum(dim=1)
        once, often = once + int((number > 0).sum()), often + int((number > 1).sum())
    return often / once if once else float("nan")


def own_place(centres: Tensor) -> float:
    """Share of the variance of the boxes' centres ``[B, Q, 2]`` that is between queries: 1 where each stays put."""
    total = (centres - centres.mean((0, 1))).square().sum()
    between = len(centres) * (centres.mean(0) - centres.mean((0, 1))).square().sum()
    return float(between / total.clamp_min(1e-12))


def _centres(model: AnyModel, images: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        parts = [model.eval()(model.preprocess([image])).boxes[..., :2] for image in images]
    return torch.cat(parts)


def _looks(centres: Tensor, name: str) -> list[Shot]:
    drawn = new_figure(3.2, 3.2)
    axes = drawn.add_axes((0.12, 0.1, 0.84, 0.8))
    for query in range(min(centres.shape[1], 8)):
        places = centres[:, query]
        axes.plot(places[:, 0], places[:, 1], ".", color=OKABE_ITO[query % len(OKABE_ITO)], markersize=5)
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    axes.set_title(f"{name}: centres, a colour per query", size=9, loc="left")
    plain_axes(axes)
    return [Shot(png=to_png(drawn, dpi=80), caption="where the first queries find their boxes")]


def judge(results: Results) -> list[Finding]:
    """No query gives two objects, too few queries miss objects, and no object is claimed twice."""

    def of(arm: str, key: str) -> list[float]:
        return results.values(arm, key)

    plain = [f"{number} queries" for number in QUERIES]
    surplus = [value for arm in plain for value in of(arm, "surplus")]
    alone = [1 - value for value in of(plain[1], "shared")]
    return [
        exact("a picture has no more objects than there are queries", surplus, 0.0),
        more("fewer queries than objects find fewer", of(plain[1], "ap50"), of(plain[0], "ap50")),
        more("found objects are claimed by one query", alone, [0.9] * len(alone)),
        more("fast DETR learns faster than plain DETR", of(FAST, "ap50"), of(plain[1], "ap50")),
    ]


def _detr(number: int) -> Arm:
    return Arm(model="detr_small", overrides={"preprocess.size": [128, 128], "queries": number}, train=OBJECTS)


STUDY = Study(
    name="queries",
    claim="Each query asks the model to detect an object. If you input 10 queries, you're seeking up to 10 objects",
    place="DETR - Object detection with transformers",
    method="Small DETRs with 2, 10 and 50 queries, and one of the fast kind, after equally many pictures of two to "
    "five shapes. Refuted if a picture gets more objects than there are queries, if 2 queries do as well as 10, if "
    "more than a tenth of the found objects is claimed by several queries, or if the fast kind learns no faster.",
    arms={
        **{f"{number} queries": _detr(number) for number in QUERIES},
        FAST: Arm(model="detr_fast_small", overrides={"preprocess.size": [128, 128]}, train=OBJECTS),
    },
    spend=Spend(unit="images", smoke=8, quick=88, full=1400),
    data=objects,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="ap50", heading="AP50", form="percent", is_drawn=True),
        Column(key="shared", heading="objects claimed by several", form="percent"),
        Column(key="own_place", heading="place decided by the query alone", form="percent"),
        Column(key="loss", heading="last loss"),
    ),
    plots=(Plot(series="loss", title="Course of the training", across="fortieth of the training", up="loss"),),
    seeds=3,
    source=__file__,
)
