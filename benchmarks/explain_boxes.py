"""50 objects of one picture explained at once: the whole time, from picture to maps, over one forward pass.

Three families at their published sizes with random weights; of their candidates the 50 likeliest that overlap by less
than half are explained, as a trained network finds objects apart from each other. LayerCAM of the class at the level
that each was read from (of DETR at what its queries look at). The maps are held against those of single explanations,
and the time of 50 such is told beside.
"""

from __future__ import annotations

import time

import torch

from measure import Row, compare, parser, report
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.manyboxes import explain_boxes
from saccade.models.build import create
from saccade.types import Detections

COUNT = 50
MODELS = ("faster_rcnn_r50", "yolo_n", "detr_r50")
SINGLE = 3
"""Single explanations that are timed and compared."""


def main() -> None:
    """Compare, measure, print."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="*", default=MODELS)
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    rows = [measured(name, chosen.repeats) for name in chosen.models]
    report(rows, chosen.json)


def measured(name: str, repeats: int) -> Row:
    """The row of one model."""
    torch.manual_seed(0)
    overrides = {"selection.max_detections": COUNT, "selection.nms_iou": 0.5, "selection.min_score": 0.0}
    model = create(name, overrides=overrides).eval()
    image = torch.randint(0, 256, (3, 15, 20), dtype=torch.uint8)
    image = image.repeat_interleave(32, -2).repeat_interleave(32, -1)  # 480 x 640 with something on it
    images, subject = model.preprocess([image]).channels_last(), Subject(model)

    def forward() -> object:
        with torch.no_grad():
            return model(images)

    with torch.no_grad():
        found: Detections = model.postprocess(model(images), images)[0]
    assert len(found) == COUNT, f"{name} has {len(found)} candidates"
    many = explain_boxes(subject, image, found)
    layer = "auto" if subject.spec.levels else "final"
    start = time.perf_counter()
    for index in range(SINGLE):
        settings = ExplainOptions(method="layercam", layer=layer, verdict=False)
        one = explain_batch(subject, [image], [(found, index)], settings)[0][0]
        difference = float((one.map - many[index].map).abs().max() / one.map.abs().max().clamp_min(1e-12))
        assert difference < 1e-5, f"{name}, box {index}: the maps differ by {difference:.1e} of the largest value"
    single = (time.perf_counter() - start) / SINGLE
    times = compare({"ours": lambda: explain_boxes(subject, image, found), "forward": forward}, repeats=repeats)
    return {
        "what": f"{name}: {COUNT} boxes, LayerCAM",
        "against": "our forward",
        "ours_s": times["ours"],
        "other_s": times["forward"],
        "ratio": times["ratio"],
        "reach": "<= 3",
        "50_single_s": COUNT * single,
    }


if __name__ == "__main__":
    main()
