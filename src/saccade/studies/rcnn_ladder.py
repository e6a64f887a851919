"""From sliding windows to region proposals that are learned: boxes examined, time by part, AP after equal training.

B pictures · R regions
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from saccade.models.faster_rcnn import FasterRCNN
from saccade.models.regionwise import RegionDetector
from saccade.studies.base import Arm, Column, Measured, Results, Spend, Study
from saccade.studies.intervals import Finding, more, times
from saccade.studies.setups import few_objects
from saccade.studies.trial import AnyModel, Trial
from saccade.types import ImageBatch

RUNGS = {
    "sliding window": "sliding_window_small",
    "R-CNN": "rcnn_small",
    "Fast R-CNN": "fast_rcnn_small",
    "Faster R-CNN": "faster_rcnn_small",
}


def measure(trial: Trial) -> Measured:
    """Time by part on pictures that were never seen, then AP after equal seconds of training."""
    model = trial.build()
    held = trial.data.split("val")
    canvas = [model.preprocess([held[index].image]) for index in range(trial.pick(2, 3, 20))]
    figures = _times(model, canvas)
    _search_once(model, trial)
    trial.train(model)
    metrics = trial.evaluate(model).metrics
    figures |= {"ap50": metrics["ap50"] or 0.0, "ap": metrics["ap"] or 0.0, "images": trial.spent["images"]}
    return Measured(figures=figures)


def _search_once(model: AnyModel, trial: Trial) -> None:
    """Selective search looks at every picture once and is remembered; its time is told by part, not trained with."""
    if isinstance(model, RegionDetector):
        training = trial.data.split("train")
        with torch.no_grad():
            for index in range(len(training)):
                model.propose(model.preprocess([training[index].image]))


def _times(model: AnyModel, canvas: list[ImageBatch]) -> dict[str, float]:
    """Milliseconds per picture for finding regions and for looking at them, and how many there are."""
    model.eval()
    with torch.no_grad():
        model(ImageBatch.of(torch.zeros(1, 3, *model.preprocess.size)))  # the first pass of a network sets it up
        parts = [_region_times(model, one) if isinstance(model, RegionDetector) else _own(model, one) for one in canvas]
    # Medians: another program may take the machine for the time of a picture.
    regions, propose, look = (statistics.median(column) for column in zip(*parts, strict=True))
    return {
        "regions": regions,
        "propose": 1000 * propose,
        "look": 1000 * look,
        "ms": 1000 * (propose + look),
        "us_per_region": 1e6 * look / regions,
    }


def _region_times(model: RegionDetector, images: ImageBatch) -> tuple[float, float, float]:
    start = time.perf_counter()
    boxes = model.propose(images)
    middle = time.perf_counter()
    model.look(images, boxes)
    return float(sum(map(len, boxes))), middle - start, time.perf_counter() - middle


def _own(model: AnyModel, images: ImageBatch) -> tuple[float, float, float]:
    """Of a detector whose regions come from its own maps: everything before the head counts as finding them."""
    assert isinstance(model, FasterRCNN)
    marks: list[float] = []
    head: nn.Module = model.heads[0]
    handle = head.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter()))
    start = time.perf_counter()
    outputs = model(images)
    end = time.perf_counter()
    handle.remove()
    return float(len(outputs.heads[0].regions.boxes)), marks[0] - start, end - marks[0]


def judge(results: Results) -> list[Finding]:
    """Every rung is faster than the one below, for the reason that is given."""

    def of(arm: str, key: str) -> list[float]:
        return results.values(arm, key)

    windows, rcnn, fast, faster = RUNGS
    return [
        more(
            "a sliding window examines more boxes than R-CNN",
            of(windows, "regions"),
            of(rcnn, "regions"),
            form="number",
        ),
        times("a picture takes longer with a sliding window than with R-CNN", of(windows, "ms"), of(rcnn, "ms")),
        times("looking at the regions takes R-CNN longer than Fast R-CNN", of(rcnn, "look"), of(fast, "look")),
        times("a picture takes R-CNN longer than Fast R-CNN", of(rcnn, "ms"), of(fast, "ms")),
        times("learned proposals are found faster than searched ones", of(fast, "propose"), of(faster, "propose")),
        times("a picture takes Fast R-CNN longer than Faster R-CNN", of(fast, "ms"), of(faster, "ms")),
    ]


STUDY = Study(
    name="rcnn-ladder",
    claim="Sliding window (inefficient) ... R-CNN is very slow because a full CNN has to be run independently for each "
    "region proposal ... Fast R-CNN avoids redundant computation, making it much faster ... RPNs integrate this step",
    place="Instance segmentation, Region proposal network",
    method="Four detectors with the same narrow backbone on scenes of several shapes. Time is measured in parts, on "
    "pictures that were not seen before, one at a time. Refuted where a rung is not faster than the one below it. AP "
    "after equal seconds of training is told beside it; selective search in the training pictures is done beforehand.",
    arms={
        name: Arm(
            model=model,
            overrides={"preprocess.size": [128, 128]},
            # Turned pictures would have to be searched again.
            train={"batch_size": 4, "learning_rate": 2e-3, "augment": {}},
        )
        for name, model in RUNGS.items()
    },
    spend=Spend(unit="seconds", smoke=0.2, quick=2, full=20),
    data=few_objects,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="regions", heading="boxes examined", form="count"),
        Column(key="propose", heading="ms to find them", form="time"),
        Column(key="look", heading="ms to look at them", form="time"),
        Column(key="ms", heading="ms per picture", form="time", is_drawn=True),
        Column(key="us_per_region", heading="µs per box", form="time"),
        Column(key="ap50", heading="AP50", form="percent", is_drawn=True),
        Column(key="ap", heading="AP", form="percent"),
    ),
    seeds=3,
    source=__file__,
)
