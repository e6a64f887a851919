"""Gradients as explanations: do they show the pixels that matter, and do they depend on what was learned.

B pictures · h, w picture
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saccade import render
from saccade.data.synthetic import SyntheticClassification
from saccade.explanation.attribution import Explainer
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.faithfulness import energy_inside, rank_similarity
from saccade.explanation.gradients import Gradient, InputGradient, IntegratedGradients, SmoothGrad
from saccade.explanation.heatmap import Heatmap
from saccade.studies.base import Arm, Column, Measured, Results, Shot, Spend, Study
from saccade.studies.intervals import Finding, above, more
from saccade.studies.setups import CNN, SCENES, scenes
from saccade.studies.trial import Trial

METHODS: dict[str, Explainer] = {
    "gradient": Gradient(),
    "input x gradient": InputGradient(),
    "smoothgrad": SmoothGrad(),
    "integrated gradients": IntegratedGradients(),
}
NOISE = 4.0
"""Standard deviation of the noise on the pixels, of 255: hardly visible."""


def measure(trial: Trial) -> Measured:
    """Deletion and insertion against controls, evidence on the object, change under noise and shuffled weights."""
    model = trial.build()
    trial.train(model)
    held = trial.data.split("test")
    assert isinstance(held, SyntheticClassification)
    count = trial.pick(2, 8, 40)
    pictures = [held[index].image for index in range(count)]
    masks = [scene.objects[0].mask for scene in held.scenes[:count]]
    generator = torch.Generator().manual_seed(trial.seed)
    noisy = [_noisy(picture, generator) for picture in pictures]
    details, shots = {}, []
    for name, method in METHODS.items():
        heats = [found[0] for found in explain_batch(Subject(model), pictures, options=ExplainOptions(method=method))]
        silent = ExplainOptions(method=method, verdict=False)
        again = [found[0] for found in explain_batch(Subject(model), noisy, options=silent)]
        details[name] = _told(heats, again, masks)
        if trial.draws:
            shots.append(_shot(name, heats[:4]))
    return Measured(
        figures={
            "accuracy": trial.evaluate(model).metrics["top1"] or 0.0,
            **{key: _mean(values) for key, values in details["gradient"].items()},
        },
        details=details,
        shots=shots,
    )


def _told(heats: list[Heatmap], again: list[Heatmap], masks: list[Tensor]) -> dict[str, list[float]]:
    """The figures of every map.

    Args:
        heats: the maps, with their verdicts.
        again: maps of the same pictures under noise.
        masks: ``[h, w]`` bool, the object of each picture.
    """
    verdicts = [heat.verdict for heat in heats]
    names = ("deletion", "insertion", "deletion_random", "deletion_centre", "similarity_abs")
    found = {
        name: [verdict.figures.get(name, math.nan) if verdict else math.nan for verdict in verdicts] for name in names
    }
    inside = [energy_inside(heat.map.abs(), mask) for heat, mask in zip(heats, masks, strict=True)]
    return {
        **found,
        "inside": [share for share, _ in inside],
        "area": [area for _, area in inside],
        "noise": [rank_similarity(a.map, b.map) for a, b in zip(heats, again, strict=True)],
        "failed": [float(verdict is not None and verdict.status == "failed") for verdict in verdicts],
    }


def _noisy(picture: Tensor, generator: torch.Generator) -> Tensor:
    noise = NOISE * torch.randn(picture.shape, generator=generator)
    return (picture.float() + noise).round().clamp(0, 255).to(torch.uint8)


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _shot(name: str, heats: list[Heatmap]) -> Shot:
    panels = [render.Panel(image=heat.image, heat=heat.map, is_signed=heat.is_signed, title=heat.of) for heat in heats]
    return Shot(png=render.to_png(render.side_by_side([panels], size=1.6), dpi=80), caption=name)


def judge(results: Results) -> list[Finding]:
    """The plain gradient against chance, against a control that knows nothing, and against noise."""
    (arm,) = results.arms()

    def of(key: str) -> list[float]:
        return results.values(arm, key)

    return [
        more(
            "hiding what the gradient shows costs more score than hiding at random",
            of("deletion_random"),
            of("deletion"),
            form="number",
        ),
        more("and more than hiding the middle first", of("deletion_centre"), of("deletion"), form="number"),
        more("it lies on the object more than chance does", of("inside"), of("area")),
        above(
            "it depends on what was learned: unlike the map of shuffled weights",
            [1 - v for v in of("similarity_abs")],
            0.5,
            form="number",
        ),
        above("noise that is hardly visible leaves it alike", of("noise"), 0.5, form="number"),
    ]


STUDY = Study(
    name="saliency",
    claim="The simplest way to calculate saliency is by taking the gradient of the class score with respect to the "
    "pixel values ... highlights the pixels that are most influential for the classification",
    place="Saliency",
    method="Maps of a small network trained on scenes of one shape. Refuted if hiding the shown pixels first costs no "
    "more than hiding random ones or the middle, if the evidence lies on the object no more than its area, if the map "
    "of shuffled weights is alike (rank correlation above 0.5), or if hardly visible noise changes it (below 0.5).",
    arms={"cnn": Arm(model="resnet_test", overrides={**CNN, "preprocess.size": [64, 64]}, train=SCENES)},
    spend=Spend(unit="images", smoke=64, quick=4000, full=40_000),
    data=scenes,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="accuracy", heading="accuracy", form="percent"),
        Column(key="deletion", heading="gradient: deletion, area under the score"),
        Column(key="deletion_random", heading="random order"),
        Column(key="deletion_centre", heading="middle first"),
        Column(key="inside", heading="on the object", form="percent", is_drawn=True),
        Column(key="noise", heading="like itself under noise", is_drawn=True),
    ),
    details=(
        Column(key="deletion", heading="deletion, area under the score"),
        Column(key="deletion_random", heading="random order"),
        Column(key="deletion_centre", heading="middle first"),
        Column(key="insertion", heading="insertion"),
        Column(key="inside", heading="on the object", form="percent"),
        Column(key="area", heading="object's area", form="percent"),
        Column(key="similarity_abs", heading="like the map of shuffled weights"),
        Column(key="noise", heading="like itself under noise"),
        Column(key="failed", heading="judged failed", form="percent", is_hit=True),
    ),
    source=__file__,
)
