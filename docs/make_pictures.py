"""Draws the pictures of the documentation again, from the model that ``make demo`` trains."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from saccade import demo, load, render
from saccade.data.source import open_data
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.report import panel

HERE = Path(__file__).parent
RUN = HERE.parent / "runs" / "demo"
METHODS = ("relevance", "gradcam", "integrated_gradients", "occlusion", "rise", "rollout")
SHOWN = ("Sandal", "Shirt", "Bag")


def main() -> None:
    """Train where no demo has run yet, then draw."""
    if not (RUN / "best.safetensors").is_file():
        demo.run(RUN, overwrite=True, console=Console())
    subject = Subject(load(RUN))
    test = open_data("fashion_mnist").split("test")
    labels = test.labels().tolist()
    rows = []
    for name in SHOWN:
        sample = test[labels.index(test.classes.id(name))]
        row = [render.Panel(image=sample.image, title=f"is {name}", caption="never seen in training")]
        for method in METHODS:
            heat = explain_batch(subject, [sample.image], [None], ExplainOptions(method=method))[0][0]
            row.append(panel(heat, title=method))
        rows.append(row)
    print(render.save(render.side_by_side(rows), HERE / "pictures" / "methods.png", dpi=110))


if __name__ == "__main__":
    main()
