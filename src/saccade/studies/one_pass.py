"""One pass over the picture: how fast and how good over its size, and what thresholds and suppression do."""

from __future__ import annotations

from dataclasses import replace

from saccade.models.detector import Selection
from saccade.models.yolo import Yolo
from saccade.studies.base import Arm, Column, Measured, Plot, Results, Spend, Study
from saccade.studies.intervals import Finding, more, times
from saccade.studies.setups import OBJECTS, objects
from saccade.studies.trial import Trial, count_flops, seconds_per_picture

SIDES = (96, 128, 192)
THRESHOLDS = (0.01, 0.05, 0.2, 0.5, 0.8)
TWO_STAGE = "Faster R-CNN, 128 px"


def measure(trial: Trial) -> Measured:
    """AP and time; of the one-pass detector also over thresholds, and with and without suppression."""
    model = trial.build()
    trial.train(model)
    figures = {
        "ap50": trial.evaluate(model).metrics["ap50"] or 0.0,
        "ms": 1000 * seconds_per_picture(model, repeats=trial.pick(1, 7, 15)),
        "flops": count_flops(model) / 1e6,
    }
    if not isinstance(model, Yolo):
        return Measured(figures=figures)
    config = model.config
    aps = []
    for threshold in THRESHOLDS:
        model.config = replace(config, selection=replace(config.selection, min_score=threshold))
        aps.append(trial.evaluate(model).metrics["ap50"] or 0.0)
    suppressed = Selection(min_score=0.01, nms_iou=0.6)
    model.config = replace(config, answers="one_to_many", selection=suppressed)
    figures["with_nms"] = trial.evaluate(model).metrics["ap50"] or 0.0
    # As good as none: only boxes that all but coincide are suppressed.
    model.config = replace(model.config, selection=replace(suppressed, nms_iou=0.999))
    figures["without_nms"] = trial.evaluate(model).metrics["ap50"] or 0.0
    model.config = config
    return Measured(figures=figures, series={"threshold": (THRESHOLDS, aps)})


def judge(results: Results) -> list[Finding]:
    """Faster than two stages at equal size; suppression is needed where many cells answer."""
    one = "one pass, 128 px"

    def of(arm: str, key: str) -> list[float]:
        return results.values(arm, key)

    return [
        times("one pass takes less time than two stages", of(TWO_STAGE, "ms"), of(one, "ms")),
        more(
            "it is very good at detecting: no less AP50 than two stages",
            of(one, "ap50"),
            of(TWO_STAGE, "ap50"),
            by=-0.03,
        ),
        more("non-maximum suppression finds the likeliest objects", of(one, "with_nms"), of(one, "without_nms")),
    ]


STUDY = Study(
    name="one-pass",
    claim="A fast object detector and very good at detecting objects ... one single pass ... thresholding and "
    "non-maximal suppression are used to identify the most likely objects",
    place="YOLO",
    method="A small one-pass detector at three sizes of the picture against a small Faster R-CNN, after equally many "
    "pictures. Refuted if it takes as long per picture, if its AP50 is more than 3 points lower, or if its AP50 "
    "without suppression (heads where many cells answer for one object) is as high as with it.",
    arms={
        **{
            f"one pass, {side} px": Arm(model="yolo_small", overrides={"preprocess.size": [side, side]}, train=OBJECTS)
            for side in SIDES
        },
        TWO_STAGE: Arm(model="faster_rcnn_small", overrides={"preprocess.size": [128, 128]}, train=OBJECTS),
    },
    spend=Spend(unit="images", smoke=8, quick=72, full=600),
    data=objects,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="ap50", heading="AP50", form="percent", is_drawn=True),
        Column(key="ms", heading="ms per picture", form="time", is_drawn=True),
        Column(key="flops", heading="million operations", form="count"),
        Column(key="with_nms", heading="AP50, many answers, suppressed", form="percent"),
        Column(key="without_nms", heading="not suppressed", form="percent"),
    ),
    plots=(Plot(series="threshold", title="AP50 over the threshold", across="lowest score", up="AP50"),),
    seeds=3,
    source=__file__,
)
