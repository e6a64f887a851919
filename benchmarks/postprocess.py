"""From raw outputs to detections: ours against a pipeline of torchvision's functions, and no network on either side.

8,400 points of a canvas of 640x640, 80 classes, as ``yolo_n`` says them. The outputs are drawn: some dozens of points
around each of 20 objects are sure of its class, and all the rest is unsure. Both sides decode boxes, threshold,
suppress or take the best, and cut at the border; the detections are compared before anything is timed. Three
thresholds, because the number of candidates that pass decides what suppression costs.

* ours: ``postprocess`` of the model, from its outputs to ``Detections`` in the pixels of the picture;
* theirs: sigmoid and decoding of all points, threshold, clipping, ``batched_nms`` (or a sort), the first 100.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from measure import Row, compare, parser, report
from saccade.models.build import create
from saccade.types import Detections, ImageBatch

SIDE = 640
CLASSES = 80
OBJECTS = 20
MOST = 100
Found = tuple[Tensor, Tensor, Tensor]


def model_of(answers: str, lowest: float) -> Any:
    """The detector whose post-processing is measured."""
    suppression = 0.6 if answers == "one_to_many" else 1.0
    overrides = {
        "answers": answers,
        "preprocess.size": [SIDE, SIDE],
        "selection.nms_iou": suppression,
        "selection.min_score": lowest,
        "selection.max_detections": MOST,
    }
    return create("yolo_n", num_classes=CLASSES, overrides=overrides).eval()


def drawn(model: Any, images: ImageBatch, *, around: int) -> Any:
    """Outputs of a network that never was.

    Args:
        model: whose shapes they have.
        images: an empty canvas.
        around: points that see each object.
    """
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = model(images)
    name = "one" if model.config.answers == "one_to_one" else "many"
    codes = getattr(outputs, f"{name}_codes")
    points = outputs.points
    logits = -7 + 1.3 * torch.randn(1, len(points), CLASSES, generator=dice)
    codes = torch.randn(codes.shape, generator=dice)
    for _ in range(OBJECTS):
        middle = torch.rand(2, generator=dice) * SIDE
        near = (points[:, :2] - middle).square().sum(1).topk(around, largest=False).indices
        label = int(torch.randint(CLASSES, (1,), generator=dice))
        logits[0, near, label] = 1 + torch.randn(around, generator=dice)
    return outputs._replace(**{f"{name}_logits": logits, f"{name}_codes": codes})


def theirs(model: Any, outputs: Any) -> Found:
    """What a script does with torchvision."""
    logits, codes = model._answering(outputs)
    scores = logits[0].sigmoid()
    boxes = model.decode(codes[0], outputs.points)
    source, labels = torch.nonzero(scores >= model.config.selection.min_score, as_tuple=True)
    values = scores[source, labels]
    boxes = clip_boxes_to_image(boxes[source], (SIDE, SIDE))
    if model.config.selection.nms_iou < 1:
        order = batched_nms(boxes, values, labels, model.config.selection.nms_iou)[:MOST]
    else:
        order = values.sort(descending=True, stable=True).indices[:MOST]
    return boxes[order], values[order], labels[order]


def measure(answers: str, lowest: float, around: int, repeats: int) -> Row:
    """One kind of ending at one threshold."""
    model = model_of(answers, lowest)
    images = model.preprocess([torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)])
    outputs = drawn(model, images, around=around)
    with torch.inference_mode():
        passing = int((model._answering(outputs)[0].sigmoid() >= lowest).sum())
        found: Detections = model.postprocess(outputs, images)[0]
        boxes, scores, labels = theirs(model, outputs)
        assert torch.equal(found.labels, labels)
        torch.testing.assert_close(found.boxes, boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, scores)
        ways = {
            "ours": lambda: model.postprocess(outputs, images),
            "torchvision": lambda: theirs(model, outputs),
        }
        times = compare(ways, repeats, warmup=5)
    ending = "suppression" if answers == "one_to_many" else "the best, no suppression"
    return {
        "what": f"{len(outputs.points):,} points, {CLASSES} classes, score from {lowest}: {ending}",
        "candidates": passing,
        "detections": len(found),
        "ours_ms": 1000 * times["ours"],
        "torchvision_ms": 1000 * times["torchvision"],
        "ratio": times["ratio"],
        "reach": "<= 1",
    }


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    options.set_defaults(repeats=41)
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows = [
        measure(answers, lowest, around, given.repeats)
        for answers, around in (("one_to_many", 30), ("one_to_one", 1))
        for lowest in (0.25, 0.05, 0.001)
    ]
    report(rows, given.json)
    return rows


if __name__ == "__main__":
    main()
