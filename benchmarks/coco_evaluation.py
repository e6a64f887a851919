"""COCO evaluation: ours against pycocotools and torchmetrics on its fastest backend; memory with many masks.

Made-up detections in the measure of COCO val2017: 5,000 pictures of 640x480, 80 classes, 36,000 objects in all and as
many detections, most of them near an object. The figures of all three are compared before anything is timed.

* ours: ``DetectionMeter.update`` for every picture, from tensors, and ``compute``;
* pycocotools: ``loadRes`` of a list of results, ``evaluate``, ``accumulate``, ``summarize``; the ground truth is
  indexed already, and masks are run lengths already;
* torchmetrics: ``update`` with all pictures, from tensors, and ``compute``, backend faster_coco_eval; no masks, which
  it takes as whole maps only;
* memory: peak resident memory of a process that counts 50 objects and 50 detections with masks in each picture.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from measure import Row, compare, parser, peak_memory, report
from saccade.metrics.detection import DetectionMeter
from saccade.metrics.overlap import Kind, run_lengths
from saccade.types import BoxTarget, Classes, Detections, Masks

HEIGHT, WIDTH = 480, 640
NUM_CLASSES = 80
CLASSES = Classes.numbered(NUM_CLASSES)
PER_PICTURE = 7.2

Pair = tuple[Detections, BoxTarget]


def boxes_of(values: np.ndarray) -> Tensor:
    """Boxes ``[N, 4]`` of centres and sides, inside of the picture."""
    corners = np.concatenate([values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2], axis=1)
    limits = [WIDTH, HEIGHT, WIDTH, HEIGHT]
    return torch.from_numpy(corners.clip(0, limits)).float()


def ellipses(boxes: Tensor) -> Masks:
    """The ellipse in each box, in its rectangle."""
    corners, crops = [], []
    for left, top, right, bottom in boxes.tolist():
        x, y = int(left), int(top)
        wide, high = max(min(int(right) + 1, WIDTH) - x, 1), max(min(int(bottom) + 1, HEIGHT) - y, 1)
        across = ((torch.arange(wide) + 0.5) / wide * 2 - 1) ** 2
        down = ((torch.arange(high) + 0.5) / high * 2 - 1) ** 2
        corners.append((min(y, HEIGHT - high), min(x, WIDTH - wide)))
        crops.append(down[:, None] + across[None] < 1)
    return Masks((HEIGHT, WIDTH), torch.tensor(corners, dtype=torch.int64).reshape(-1, 2), tuple(crops))


def pictures(count: int, *, has_masks: bool, objects: int | None = None) -> Iterator[Pair]:
    """Detections and objects of so many pictures, one by one; always the same."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        number = objects if objects is not None else int(generator.poisson(PER_PICTURE))
        sides = np.exp(generator.normal(4.0, 0.8, (number, 2))).clip(6, 400)
        true = np.concatenate([generator.uniform((0, 0), (WIDTH, HEIGHT), (number, 2)), sides], axis=1)
        # A picture has a few classes, most objects of one of them.
        own = generator.integers(0, NUM_CLASSES, 4)
        labels = own[generator.choice(4, number, p=(0.6, 0.2, 0.1, 0.1))]
        found = true + true[:, [2, 3, 2, 3]] * generator.normal(0, 0.08, (number, 4))
        is_lost = generator.random(number) < 0.2
        found[is_lost, :2] = generator.uniform((0, 0), (WIDTH, HEIGHT), (int(is_lost.sum()), 2))
        guesses = np.where(generator.random(number) < 0.1, generator.integers(0, NUM_CLASSES, number), labels)
        scores = np.sort(generator.random(number))[::-1].copy()
        ours, theirs = boxes_of(found), boxes_of(true)
        values = torch.from_numpy(guesses).long()
        target = BoxTarget.of(theirs, torch.from_numpy(labels).long(), ellipses(theirs) if has_masks else None)
        masks = ellipses(ours) if has_masks else None
        yield Detections(ours, torch.from_numpy(scores).float(), values, values, CLASSES, masks), target


def counted(pairs: Sequence[Pair], kind: Kind) -> dict[str, float]:
    """Ours."""
    meter = DetectionMeter(NUM_CLASSES, kind)
    for index, (detections, target) in enumerate(pairs):
        meter.update(detections, target, index=index, source="")
    return meter.compute()


def as_results(pairs: Sequence[Pair], kind: Kind) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and results as pycocotools wants them."""
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
    results: list[dict[str, Any]] = []
    for index, (detections, target) in enumerate(pairs):
        truth["images"].append({"id": index, "width": WIDTH, "height": HEIGHT})
        shapes = run_lengths(target.masks) if kind == "masks" else [None] * len(target)
        areas = target.masks.areas().tolist() if target.masks is not None else None
        for place, (x, y, right, bottom) in enumerate(target.boxes.tolist()):
            box = [x, y, right - x, bottom - y]
            area = box[2] * box[3] if areas is None else areas[place]
            entry = {"id": len(truth["annotations"]) + 1, "image_id": index, "bbox": box, "iscrowd": 0, "area": area}
            entry |= {"category_id": int(target.labels[place]), "segmentation": shapes[place]}
            truth["annotations"].append(entry)
        found = run_lengths(detections.masks) if kind == "masks" else [None] * len(detections)
        rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
        for place, ((x, y, right, bottom), score, label) in enumerate(rows):
            result: dict[str, Any] = {"image_id": index, "category_id": label, "score": score}
            box = [x, y, right - x, bottom - y]
            results.append(result | ({"segmentation": found[place]} if kind == "masks" else {"bbox": box}))
    return truth, results


class Official:
    """pycocotools with its ground truth indexed."""

    def __init__(self, pairs: Sequence[Pair], kind: Kind) -> None:
        from pycocotools.coco import COCO  # type: ignore[import-untyped]

        truth, self.results = as_results(pairs, kind)
        self.kind = "bbox" if kind == "boxes" else "segm"
        with contextlib.redirect_stdout(io.StringIO()):
            self.truth = COCO()
            self.truth.dataset = truth
            self.truth.createIndex()

    def __call__(self) -> list[float]:
        """The twelve figures."""
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

        with contextlib.redirect_stdout(io.StringIO()):
            # It writes into the results that it is given.
            program = COCOeval(self.truth, self.truth.loadRes([dict(one) for one in self.results]), self.kind)
            program.evaluate()
            program.accumulate()
            program.summarize()
        return [float(value) for value in program.stats]


class Metric:
    """torchmetrics from tensors."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.found = [{"boxes": d.boxes, "scores": d.scores, "labels": d.labels} for d, _ in pairs]
        self.true = [{"boxes": t.boxes, "labels": t.labels} for _, t in pairs]

    def __call__(self) -> float:
        """AP."""
        from torchmetrics.detection import MeanAveragePrecision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric = MeanAveragePrecision(backend="faster_coco_eval")
            metric.update(self.found, self.true)
            return float(metric.compute()["map"])


def timed(count: int, kind: Kind, repeats: int) -> Iterator[Row]:
    """Rows against each of the others."""
    pairs = list(pictures(count, has_masks=kind == "masks"))
    objects, found = sum(len(target) for _, target in pairs), sum(len(detections) for detections, _ in pairs)
    official = Official(pairs, kind)
    ours, theirs = counted(pairs, kind), official()
    apart = max(abs(a - b) for a, b in zip(ours.values(), theirs, strict=True))
    assert apart < 1e-6, f"the figures are {apart} apart"
    what = f"{kind}, {count:,} pictures, {objects:,} objects, {found:,} detections"
    ways: dict[str, Callable[[], object]] = {"pycocotools": official, "ours": lambda: counted(pairs, kind)}
    seconds = compare(ways, repeats)
    told = f"AP {ours['ap']:.3f}, largest difference of the twelve figures {apart:.1g}"
    yield _row(what, "pycocotools", seconds, ">= 5" if kind == "boxes" else "printed", told)
    if kind == "boxes":
        metric = Metric(pairs)
        gap = abs(metric() - ours["ap"])
        seconds = compare({"torchmetrics": metric, "ours": ways["ours"]}, repeats)
        yield _row(what, "torchmetrics", seconds, ">= 1.2", f"backend faster_coco_eval, AP differs by {gap:.1g}")


def _row(what: str, against: str, seconds: dict[str, float], reach: str, told: str) -> Row:
    figures = {"ours_s": seconds["ours"], "other_s": seconds[against], "ratio": seconds["ratio"]}
    return {"what": what, "against": against, **figures, "ratio of": "other / ours", "reach": reach, "note": told}


def memory(count: int, objects: int) -> Row:
    """Peak memory of a process of its own; ``ours_s`` is its time, making the masks included."""
    words = [sys.executable, __file__, "--count-masks", str(count), "--objects", str(objects)]
    said = subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ}).stdout.split()
    seconds, mebibytes, before = (float(word) for word in said[-3:])
    what = f"peak memory, {count:,} pictures with {objects} masks and {objects} found ones each"
    told = f"{mebibytes:.0f} MiB, {before:.0f} before the first picture; ratio is the share of 2 GiB"
    figures = {"ours_s": seconds, "other_s": None, "ratio": mebibytes / 2048, "ratio of": "MiB / 2048"}
    return {"what": what, "against": "–", **figures, "reach": "< 1", "note": told}


def count_masks(count: int, objects: int) -> None:
    """Count pictures that are forgotten at once, and print seconds, peak memory and memory before."""
    import time

    before = peak_memory()
    start = time.perf_counter()
    kinds: tuple[Kind, ...] = ("boxes", "masks")
    meters = {kind: DetectionMeter(NUM_CLASSES, kind) for kind in kinds}
    for index, (detections, target) in enumerate(pictures(count, has_masks=True, objects=objects)):
        for meter in meters.values():
            meter.update(detections, target, index=index, source="")
    for meter in meters.values():
        meter.compute()
    peak = peak_memory()
    print(time.perf_counter() - start, peak, before)


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    parts = ("boxes", "masks", "memory")
    options.add_argument("--parts", nargs="+", default=parts, choices=parts)
    options.add_argument("--count", type=int, default=5000, help="pictures of boxes and of the memory")
    options.add_argument("--masks", type=int, default=1000, help="pictures with masks that are timed")
    options.add_argument("--objects", type=int, default=50, help="masks per picture of the memory")
    options.add_argument("--count-masks", type=int, default=0, help="only measure the memory of this very process")
    given = options.parse_args()
    if given.count_masks:
        count_masks(given.count_masks, given.objects)
        return []
    if given.threads:
        torch.set_num_threads(given.threads)
    rows: list[Row] = []
    if "boxes" in given.parts:
        rows += timed(given.count, "boxes", given.repeats)
    if "masks" in given.parts:
        rows += timed(given.masks, "masks", given.repeats)
    if "memory" in given.parts:
        rows += [memory(count, given.objects) for count in (given.count // 4, given.count)]
    report(rows, given.json)
    return rows


if __name__ == "__main__":
    main()
