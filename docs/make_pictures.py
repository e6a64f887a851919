"""Draws the pictures of the documentation again, from the models that ``make demo`` trains."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from torch import Tensor

from saccade import demo, load, render
from saccade.api import predict
from saccade.data.source import open_data
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.opening import AnyModel
from saccade.report import panel
from saccade.types import Classification, Detections, Segmentation

HERE = Path(__file__).parent
RUN = HERE.parent / "runs" / "demo"
METHODS = ("relevance", "gradcam", "integrated_gradients", "occlusion", "rise", "rollout")
SHOWN = ("Sandal", "Shirt", "Bag")
REGION_METHODS = ("layercam", "hirescam", "gradcam", "gradient", "occlusion")
NUCLEI_SHOWN = (8, 9, 20)
"""Places in the held-out pictures of nuclei."""
OBJECT_PICTURES = 2
"""Pictures of which two objects each are explained."""
MOST_OBJECTS = 12
"""Objects that such a picture may have, to be readable."""
OBJECT_METHODS = (("box", "layercam"), ("box", "drise"), ("left", "hirescam"), ("mask", "layercam"))
"""What is asked of each object, and the method."""


def main() -> None:
    """Train where no demo has run yet, then draw."""
    runs = RUN / "classification", RUN / "segmentation", RUN / "instances"
    if not all((run / "best.safetensors").is_file() for run in runs):
        demo.run(RUN, overwrite=True, console=Console())
    print(draw_methods(load(runs[0])))
    print(draw_regions(load(runs[1])))
    print(draw_objects(load(runs[2])))


def draw_methods(model: AnyModel) -> Path:
    """Several methods on pictures of clothes that are named rightly."""
    subject = Subject(model)
    test = open_data("fashion_mnist").split("test")
    rows = []
    for name in SHOWN:
        samples = (test[index] for index, label in enumerate(test.labels().tolist()) if label == test.classes.id(name))
        sample = next(sample for sample in samples if _named(model, sample.image) == name)
        row = [render.Panel(image=sample.image, title=f"is {name}", caption="never seen in training")]
        for method in METHODS:
            heat = explain_batch(subject, [sample.image], [None], ExplainOptions(method=method))[0][0]
            row.append(panel(heat, title=method))
        rows.append(row)
    return render.save(render.side_by_side(rows), HERE / "pictures" / "methods.png", dpi=110)


def _named(model: AnyModel, image: Tensor) -> str:
    found = predict(model, image)[0]
    assert isinstance(found, Classification)
    return found.top(1)[0][0]


def draw_regions(model: AnyModel, path: Path = HERE / "pictures" / "semantic.png") -> Path:
    """Pictures of nuclei, their predicted maps, and why the largest part got its class."""
    subject = Subject(model)
    val = open_data("nuclei").split("val")
    rows = []
    for index in NUCLEI_SHOWN:
        image = val[index].image
        found = predict(model, image)[0]
        assert isinstance(found, Segmentation)
        drawn = render.label_overlay(image, found.labels, len(found.classes), found.classes.backgrounds)
        row = [render.Panel(image=image, title="picture"), render.Panel(image=drawn, title="predicted")]
        for method in REGION_METHODS:
            heat = explain_batch(subject, [image], ["component:1"], ExplainOptions(method=method))[0][0]
            row.append(panel(heat, title=method))
        rows.append(row)
    return render.save(render.side_by_side(rows), path, dpi=110)


def draw_objects(model: AnyModel, path: Path = HERE / "pictures" / "boxes.png") -> Path:
    """Pictures of nuclei with what was found, and two nuclei of each explained: class, left side and mask."""
    subject = Subject(model)
    rows = []
    for sample in open_data("nuclei_instances").split("val"):
        found = predict(model, sample.image)[0]
        assert isinstance(found, Detections)
        clear = found.above(0.5)
        if not 2 <= len(clear) <= MOST_OBJECTS:
            continue
        drawn = render.box_overlay(sample.image, clear, clear.classes)
        row = [render.Panel(image=drawn, title="found")]
        for index in range(2):
            for part, method in OBJECT_METHODS:
                asked = {"box": f"box:{index}", "left": f"box:{index}/left", "mask": f"mask:{index}"}[part]
                heat = explain_batch(subject, [sample.image], [asked], ExplainOptions(method=method))[0][0]
                row.append(panel(heat, title=method))
        rows.append(row)
        if len(rows) == OBJECT_PICTURES:
            break
    return render.save(render.side_by_side(rows), path, dpi=110)


if __name__ == "__main__":
    main()
