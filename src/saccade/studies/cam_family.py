"""CAM and Grad-CAM: where they must be equal, where they point in earlier layers, what the rectification does.

B pictures · h, w grid
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade import render
from saccade.data.synthetic import SyntheticClassification
from saccade.errors import ExplainError
from saccade.explanation.attribution import Explainer
from saccade.explanation.cam import CAM, GradCAM, HiResCAM
from saccade.explanation.faithfulness import energy_inside
from saccade.explanation.scores import class_score
from saccade.studies.base import Arm, Column, Measured, Plot, Results, Shot, Spend, Study
from saccade.studies.intervals import Finding, above, exact, more
from saccade.studies.setups import CNN, SCENES, scenes
from saccade.studies.trial import AnyModel, Trial

LAYERS = ("layer1", "layer2", "layer3", "final")


def measure(trial: Trial) -> Measured:
    """Equality at the last layer; evidence on the object by layer, rectified and not."""
    model = trial.build()
    trial.train(model)
    held = trial.data.split("test")
    assert isinstance(held, SyntheticClassification)
    count = trial.pick(4, 32, 128)
    pictures = [held[index].image for index in range(count)]
    labels = held.labels()[:count]
    cam = maps(model, CAM(), pictures, labels)
    grad, hires = (maps(model, kind(layer="final"), pictures, labels) for kind in (GradCAM, HiResCAM))
    cells = cam.shape[-1] * cam.shape[-2]
    objects = torch.stack([scene.objects[0].mask for scene in held.scenes[:count]])
    by_layer = {name: maps(model, GradCAM(layer=name), pictures, labels) for name in LAYERS}
    inside = [_energy(found, objects) for found in by_layer.values()]
    figures = {
        "accuracy": trial.evaluate(model).metrics["top1"] or 0.0,
        "gap_gradcam": _gap(grad, cam.clamp_min(0) / cells),
        "gap_hirescam": _gap(hires, cam / cells),
        "refused": float(_is_refused(model, pictures[:1], labels[:1])),
        "rectified": _energy(cam.clamp_min(0), objects),
        "unrectified": _energy(cam.abs(), objects),
        "area": float(objects.double().mean()),
        **{f"inside_{name}": value for name, value in zip(LAYERS, inside, strict=True)},
    }
    shots = _shots(pictures[:3], by_layer) if trial.draws else ()
    return Measured(figures=figures, series={"inside": (range(1, len(LAYERS) + 1), inside)}, shots=shots)


def maps(model: AnyModel, explainer: Explainer, pictures: list[Tensor], labels: Tensor) -> Tensor:
    """The map of the true class of each picture ``[B, h, w]``."""
    scores = [class_score(label) for label in range(len(model.classes))]
    values = explainer(model.eval(), model.preprocess(pictures), scores, model.explain_spec()).values
    return values[labels, torch.arange(len(pictures))]


def _is_refused(model: AnyModel, pictures: list[Tensor], labels: Tensor) -> bool:
    """Whether CAM refuses a model whose class is not a weighted sum of pooled maps."""
    other = type(model)(model.config.__class__(**{**vars(model.config), "head": (16,)}))
    try:
        maps(other, CAM(), pictures, labels)
    except ExplainError:
        return True
    return False


def _gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max().clamp_min(1e-12))


def _energy(found: Tensor, objects: Tensor) -> float:
    """Mean share of the evidence on the object."""
    full = F.interpolate(found[:, None].float(), objects.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return sum(energy_inside(*pair)[0] for pair in zip(full, objects, strict=True)) / len(objects)


def _shots(pictures: list[Tensor], by_layer: dict[str, Tensor]) -> list[Shot]:
    rows = [
        [render.Panel(image=image, heat=found[index], title=name) for name, found in by_layer.items()]
        for index, image in enumerate(pictures)
    ]
    return [Shot(png=render.to_png(render.side_by_side(rows, size=1.5), dpi=80), caption="Grad-CAM by layer")]


def judge(results: Results) -> list[Finding]:
    """Equal where they must be, useful in earlier layers, better when rectified."""
    (arm,) = results.arms()

    def of(key: str) -> list[float]:
        return results.values(arm, key)

    earlier = [a - b for a, b in zip(of("inside_layer3"), of("area"), strict=True)]
    return [
        exact("at the last layer Grad-CAM is the positive part of CAM", of("gap_gradcam"), 1e-3),
        exact("and HiResCAM is CAM itself", of("gap_hirescam"), 1e-3),
        exact("CAM refuses a network with a layer between pooling and classes", [1 - v for v in of("refused")], 0.0),
        above("Grad-CAM in an earlier layer points to the object more than chance does", earlier, 0.0, form="points"),
        more("rectified evidence lies on the object more than unrectified", of("rectified"), of("unrectified")),
    ]


STUDY = Study(
    name="cam-family",
    claim="The original CAM could only be applied to the last convolutional layer ... Grad-CAM overcomes this by using "
    "gradients ... ReLU is crucial because it only keeps the positive influences",
    place="Class Activation Mapping, Grad CAM",
    method="A small convolutional network is trained on scenes of one shape whose pixels are known. Refuted if the "
    "maps differ where theory makes them equal, if Grad-CAM of an earlier layer points to the object no better than "
    "its share of the area, or if dropping negative evidence does not bring more of it onto the object.",
    arms={"cnn": Arm(model="resnet_test", overrides={**CNN, "preprocess.size": [64, 64]}, train=SCENES)},
    spend=Spend(unit="images", smoke=64, quick=4000, full=40_000),
    data=scenes,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="accuracy", heading="accuracy", form="percent"),
        *(Column(key=f"inside_{name}", heading=f"on the object, {name}", form="percent") for name in LAYERS),
        Column(key="rectified", heading="CAM rectified", form="percent"),
        Column(key="unrectified", heading="CAM, both signs", form="percent"),
        Column(key="area", heading="object's area", form="percent"),
    ),
    plots=(Plot(series="inside", title="Grad-CAM on the object", across="layer", up="share of the evidence"),),
    source=__file__,
)
