"""What a picture costs on every rung of the ladder of detectors: sliding window, R-CNN, Fast R-CNN, Faster R-CNN.

The same backbone, canvas and picture on all rungs; random weights, for time does not depend on them, but for one thing:
with so few classes as here every candidate passes the threshold, so post-processing is as dear as it ever gets. Parts:

* proposals: making the windows; selective search, not remembered; of Faster R-CNN its proposal network and the choice;
* network: warping and classifying each region; of the later rungs one pass over the picture and the head;
* after: candidates, threshold, non-maximum suppression, back to the original picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from measure import Row, compare, parser, report
from saccade.data.synthetic import synthetic_objects
from saccade.models.build import create
from saccade.models.fast_rcnn import FastRCNN
from saccade.models.faster_rcnn import FasterRCNN, TwoStageOutputs
from saccade.models.localizer import Localizer
from saccade.models.rcnn import RCNN
from saccade.models.regionwise import RegionDetector
from saccade.models.roi_heads import Regions
from saccade.ops.regions import RegionMemory
from saccade.types import ImageBatch

SETTINGS = {
    "resnet18": (320, ("localizer_r18", "sliding_window_r18", "rcnn_r18", "fast_rcnn_r18_fpn", "faster_rcnn_r18")),
    "resnet18 / 4": (
        128,
        ("localizer_small", "sliding_window_small", "rcnn_small", "fast_rcnn_small_fpn", "faster_rcnn_small"),
    ),
}
"""Backbone to side of the canvas and names of the rungs; the second is a quarter as wide."""
CLASSES = 6

Part = Callable[[], Any]


class Rung:
    """One detector and the parts of its work on a batch of one.

    Attributes:
        parts: what is timed.
        boxes: how many boxes are examined.
        megapixels: what goes through the backbone.
    """

    def __init__(self, name: str, side: int, images: ImageBatch) -> None:
        overrides = {"preprocess.size": [side, side], "preprocess.policy": "letterbox"}
        model = create(name, num_classes=CLASSES, overrides=overrides).eval()
        self.name = name
        self.parts: dict[str, Part] = {}
        seen = [0]
        backbone = model.get_submodule("network.backbone" if hasattr(model, "network") else "backbone")
        handle = backbone.register_forward_pre_hook(lambda _, given: seen.__setitem__(0, seen[0] + _area(given[0])))
        if isinstance(model, RegionDetector):
            self._by_regions(model, images)
        elif isinstance(model, FasterRCNN):
            self._two_stages(model, images)
        else:
            assert isinstance(model, Localizer)
            outputs, self.boxes = model(images), 1
            self.parts = {
                "proposals": lambda: None,
                "network": lambda: model(images),
                "after": lambda: model.postprocess(outputs, images),
            }
        self.megapixels = seen[0] / 1e6  # making it ran the network once
        handle.remove()

    def _by_regions(self, model: RegionDetector, images: ImageBatch) -> None:
        if isinstance(model, RCNN | FastRCNN):
            model.memory = RegionMemory(model.config.search, 0)
        boxes = model.propose(images)
        outputs = model.look(images, boxes)
        self.boxes = len(boxes[0])
        self.parts = {
            "proposals": lambda: model.propose(images),
            "network": lambda: model.look(images, boxes),
            "after": lambda: model.postprocess(outputs, images),
        }

    def _two_stages(self, model: FasterRCNN, images: ImageBatch) -> None:
        canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))

        def levels() -> list[Tensor]:
            maps = model.backbone(images.pixels).maps
            return model.pyramid([maps[stage] for stage in model._stages])  # type: ignore[no-any-return]

        given = levels()
        anchors = model.rpn(given, canvas)
        regions = Regions.of(model.rpn.propose(anchors, given, images.sizes))
        outputs = TwoStageOutputs(anchors, (model.box(given, regions),))
        self.boxes = len(regions.boxes)
        self.parts = {
            "proposals": lambda: model.rpn.propose(model.rpn(given, canvas), given, images.sizes),
            "network": lambda: model.box(levels(), regions),
            "after": lambda: model.postprocess(outputs, images),
        }


def _area(pixels: Tensor) -> int:
    return int(pixels.shape[0] * pixels.shape[2] * pixels.shape[3])


def measure(backbone: str, side: int, names: tuple[str, ...], repeats: int) -> list[Row]:
    """One row per rung; the parts of all rungs are timed in turn."""
    dataset = synthetic_objects(1, side, seed=1, objects=(4, 6), task="detection")
    config = create(names[0], overrides={"preprocess.size": [side, side]}).preprocess
    images = config([dataset[0].image]).channels_last()
    rungs = [Rung(name, side, images) for name in names]
    ways = {f"{rung.name} {part}": run for rung in rungs for part, run in rung.parts.items()}
    times = compare(ways, repeats, warmup=0)  # making the rungs ran all parts but the last
    rows: list[Row] = []
    for rung in rungs:
        parts = {part: times[f"{rung.name} {part}"] for part in rung.parts}
        facts = {"backbone": backbone, "canvas": side, "rung": rung.name, "boxes": rung.boxes}
        seconds = {f"{part}_s": value for part, value in parts.items()}
        rows.append({**facts, **seconds, "total_s": sum(parts.values()), "network_megapixels": rung.megapixels})
    last = rows[-1]["total_s"]
    return [{**row, "times the last": row["total_s"] / last} for row in rows]


def main() -> None:
    """As asked on the command line."""
    options = parser(__doc__ or "")
    options.add_argument("--backbones", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    arguments = options.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    with torch.no_grad():
        for backbone in arguments.backbones:
            side, names = SETTINGS[backbone]
            rows += measure(backbone, side, names, arguments.repeats)
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
