"""How many of a proposal network's regions are needed: recall and AP over the number that is kept.

N objects · R proposals
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from saccade.models.faster_rcnn import FasterRCNN
from saccade.studies.base import Arm, Column, Measured, Plot, Results, Spend, Study
from saccade.studies.intervals import Finding, above, more, same
from saccade.studies.setups import OBJECTS, objects
from saccade.studies.trial import Trial, seconds_of
from saccade.types import BoxTarget

KEPT = (2, 5, 10, 25, 50, 100, 200)
FEW = 25


def measure(trial: Trial) -> Measured:
    """Recall of the best proposals and of random ones, AP and time, over the number of proposals."""
    model = trial.build()
    assert isinstance(model, FasterRCNN)
    trial.train(model)
    held = trial.data.split("val")
    samples = [held[index] for index in range(min(len(held), trial.pick(4, 40, 100)))]
    images = [model.preprocess([sample.image]) for sample in samples]
    generator = torch.Generator().manual_seed(trial.seed)
    best: list[Sequence[float]] = []
    chance: list[Sequence[float]] = []
    counts = []
    with torch.no_grad():
        for one, sample in zip(images, samples, strict=True):
            found = model.eval()(one).heads[0].regions.boxes
            assert isinstance(sample.target, BoxTarget)
            # Scenes are as large as the canvas, so their boxes need no mapping.
            order = torch.randperm(len(found), generator=generator)
            best.append([recall(found[:kept], sample.target.boxes) for kept in KEPT])
            chance.append([recall(found[order[:kept]], sample.target.boxes) for kept in KEPT])
            counts.append(len(sample.target.boxes))
    recalls, random = (_weighted(rows, counts) for rows in (best, chance))
    aps, seconds = [], []
    for kept in KEPT:
        model.rpn.config = replace(model.rpn.config, after_nms=(model.rpn.config.after_nms[0], kept))
        aps.append(trial.evaluate(model).metrics["ap50"] or 0.0)
        with torch.no_grad():
            seconds.append(1000 * seconds_of(lambda: model(images[0]), trial.pick(1, 3, 7)))
    few = KEPT.index(FEW)
    return Measured(
        figures={
            "recall_few": recalls[few],
            "recall_all": recalls[-1],
            "random_few": random[few],
            "ap_few": aps[few],
            "ap_all": aps[-1],
            "ms_few": seconds[few],
            "ms_all": seconds[-1],
        },
        series={"recall": (KEPT, recalls), "random": (KEPT, random), "ap50": (KEPT, aps)},
    )


def recall(proposals: Tensor, truth: Tensor) -> float:
    """Share of the objects ``[N, 4]`` that a proposal ``[R, 4]`` overlaps by half or more."""
    if not len(proposals):
        return 0.0
    return float((box_iou(truth, proposals).max(dim=1).values >= 0.5).float().mean())


def _weighted(rows: Sequence[Sequence[float]], counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [
        sum(value * n for value, n in zip(column, counts, strict=True)) / total for column in zip(*rows, strict=True)
    ]


def judge(results: Results) -> list[Finding]:
    """The score ranks well, the proposals cover the objects, and few are as good as all."""
    (arm,) = results.arms()

    def of(key: str) -> list[float]:
        return results.values(arm, key)

    return [
        more(f"the {FEW} likeliest find more objects than {FEW} at random", of("recall_few"), of("random_few")),
        above(f"all {KEPT[-1]} proposals cover the objects", of("recall_all"), 0.9),
        same(f"AP50 with {FEW} is that with {KEPT[-1]}", of("ap_few"), of("ap_all"), within=0.02),
    ]


STUDY = Study(
    name="proposals",
    claim="Only the top-k regions with the highest objectness scores are selected as the final region proposals",
    place="Region proposal network",
    method=f"A small Faster R-CNN on scenes of several shapes, read with fewer and fewer proposals. Refuted if the "
    f"{FEW} likeliest cover no more objects than {FEW} random ones, if {KEPT[-1]} cover less than 90 %, or if AP50 "
    f"with {FEW} lies more than 2 points from that with all.",
    arms={"Faster R-CNN": Arm(model="faster_rcnn_small", overrides={"preprocess.size": [128, 128]}, train=OBJECTS)},
    spend=Spend(unit="images", smoke=8, quick=140, full=1000),
    data=objects,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="recall_few", heading=f"recall of {FEW}", form="percent"),
        Column(key="random_few", heading=f"of {FEW} at random", form="percent"),
        Column(key="recall_all", heading=f"of {KEPT[-1]}", form="percent"),
        Column(key="ap_few", heading=f"AP50 with {FEW}", form="percent"),
        Column(key="ap_all", heading=f"with {KEPT[-1]}", form="percent"),
        Column(key="ms_few", heading=f"ms with {FEW}", form="time"),
        Column(key="ms_all", heading=f"with {KEPT[-1]}", form="time"),
    ),
    plots=(
        Plot(series="recall", title="Objects covered by the likeliest", across="proposals", up="recall"),
        Plot(series="random", title="Objects covered by random ones", across="proposals", up="recall"),
        Plot(series="ap50", title="AP50", across="proposals kept", up="AP50"),
    ),
    seeds=3,
    source=__file__,
)
