"""Gradients as explanations: do they show the pixels that matter, and do they depend on what was learned.

B pictures · h, w picture
"""

from __future__ import annotations

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
    count = trial.pick(2, 12, 48)
    pictures = [held[index].image for index in range(count)]
    subject, options = Subject(model), ExplainOptions(method=METHODS[trial.name])
    heats = [found[0] for found in explain_batch(subject, pictures, options=options)]
    figures = [heat.verdict.figures for heat in heats if heat.verdict is not None]
    masks = [scene.objects[0].mask for scene in held.scenes[:count]]
    inside = [energy_inside(heat.map.abs(), mask) for heat, mask in zip(heats, masks, strict=True)]
    generator = torch.Generator().manual_seed(trial.seed)
    noisy = [_noisy(picture, generator) for picture in pictures]
    silent = ExplainOptions(method=METHODS[trial.name], verdict=False)
    again = [found[0] for found in explain_batch(subject, noisy, options=silent)]
    names = ("deletion", "insertion", "deletion_random", "deletion_centre", "insertion_centre", "similarity_abs")
    found = {name: _mean([f[name] for f in figures if name in f]) for name in names}
    return Measured(
        figures={
            **found,
            "accuracy": trial.evaluate(model).metrics["top1"] or 0.0,
            "inside": _mean([share for share, _ in inside]),
            "area": _mean([area for _, area in inside]),
            "noise": _mean([rank_similarity(a.map, b.map) for a, b in zip(heats, again, strict=True)]),
            "failed": _mean([float(heat.verdict.status == "failed") for heat in heats if heat.verdict is not None]),
        },
        shots=_shot(trial.name, heats[:4]) if trial.draws else (),
    )


def _noisy(picture: Tensor, generator: torch.Generator) -> Tensor:
    noise = NOISE * torch.randn(picture.shape, generator=generator)
    return (picture.float() + noise).round().clamp(0, 255).to(torch.uint8)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _shot(name: str, heats: list[Heatmap]) -> list[Shot]:
    panels = [render.Panel(image=heat.image, heat=heat.map, is_signed=heat.is_signed, title=heat.of) for heat in heats]
    return [Shot(png=render.to_png(render.side_by_side([panels], size=1.6), dpi=80), caption=name)]


def judge(results: Results) -> list[Finding]:
    """The plain gradient against chance, against a control that knows nothing, and against noise."""

    def of(key: str) -> list[float]:
        return results.values("gradient", key)

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
    arms={
        name: Arm(model="resnet_test", overrides={**CNN, "preprocess.size": [64, 64]}, train=SCENES) for name in METHODS
    },
    spend=Spend(unit="images", smoke=64, quick=2500, full=60_000),
    data=scenes,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="deletion", heading="deletion, area under the score"),
        Column(key="deletion_random", heading="random order"),
        Column(key="deletion_centre", heading="middle first"),
        Column(key="insertion", heading="insertion"),
        Column(key="inside", heading="on the object", form="percent", is_drawn=True),
        Column(key="area", heading="object's area", form="percent"),
        Column(key="similarity_abs", heading="like the map of shuffled weights"),
        Column(key="noise", heading="like itself under noise", is_drawn=True),
        Column(key="failed", heading="maps judged failed", form="percent"),
        Column(key="accuracy", heading="accuracy", form="percent"),
    ),
    source=__file__,
)
