"""COCO's figures, by hand and against its own program."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from saccade.errors import InputError
from saccade.metrics.detection import DetectionMeter
from saccade.metrics.overlap import Kind, run_lengths
from saccade.types import BoxTarget, Classes, Detections, Masks

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")

CLASSES = Classes(("a", "b", "c"))
SIDE = 64
Scene = tuple[Detections, BoxTarget]
Scenes = Callable[..., list[Scene]]


def filled(boxes: torch.Tensor) -> Masks:
    """The pixels whose centres are in each box ``[N, 4]``."""
    steps = torch.arange(SIDE) + 0.5
    right = (steps >= boxes[:, :1]) & (steps < boxes[:, 2:3])
    down = (steps >= boxes[:, 1:2]) & (steps < boxes[:, 3:])
    return Masks.of(right[:, None, :] & down[:, :, None])


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Detections of rows x1, y1, x2, y2, score, label."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    labels = values[:, 5].long()
    return Detections(values[:, :4], values[:, 4], labels, labels, CLASSES)


def there(*rows: tuple[float, float, float, float, int]) -> BoxTarget:
    """Objects of rows x1, y1, x2, y2, label."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return BoxTarget.of(values[:, :4], values[:, 4].long())


def measured(scenes: list[Scene], kind: Kind = "boxes", **options: Any) -> DetectionMeter:
    meter = DetectionMeter(len(CLASSES), kind, **options)
    for index, (detections, target) in enumerate(scenes):
        meter.update(detections, target, index=index, source=f"{index}.png")
    return meter


def test_a_box_that_overlaps_by_three_quarters_counts_at_six_of_ten_thresholds() -> None:
    meter = measured([(found((0, 0, 10, 7.5, 0.9, 0)), there((0, 0, 10, 10, 0)))])
    figures = meter.compute()
    assert figures["ap"] == pytest.approx(0.6)
    assert (figures["ap50"], figures["ap75"]) == (1.0, 1.0)
    assert figures["ar_100"] == pytest.approx(0.6)
    assert figures["ap_small"] == pytest.approx(0.6)
    assert math.isnan(figures["ap_large"])
    assert tuple(figures) == NAMES


def test_precision_is_read_at_101_recalls() -> None:
    """Right, wrong, right: precision 1 up to recall 0.5 (51 of 101 places), then 2/3 (50 places)."""
    scene = found((0, 0, 10, 10, 0.9, 0), (40, 40, 50, 50, 0.8, 0), (20, 0, 30, 10, 0.7, 0))
    meter = measured([(scene, there((0, 0, 10, 10, 0), (20, 0, 30, 10, 0)))])
    assert meter.compute()["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    curve = meter.curves()[0]
    assert curve[:51] == pytest.approx(1.0)
    assert curve[51:] == pytest.approx(2 / 3)


def test_classes_that_are_not_there_are_no_part_of_the_mean() -> None:
    scene = found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 1))
    meter = measured([(scene, there((0, 0, 10, 10, 0)))])
    assert meter.compute()["ap"] == 1.0
    per_class = meter.per_class()
    assert per_class["ap"][0] == 1.0
    assert np.isnan(per_class["ap"][1:]).all()
    assert list(meter.curves()) == [0]


def test_nothing_there_is_undefined_and_nothing_found_is_zero() -> None:
    nothing = measured([])
    assert all(math.isnan(value) for value in nothing.compute().values())
    only_found = measured([(found((0, 0, 10, 10, 0.9, 0)), there())])
    assert math.isnan(only_found.compute()["ap"])
    only_there = measured([(found(), there((0, 0, 10, 10, 0)))])
    assert only_there.compute()["ap"] == 0.0
    assert only_there.compute()["ar_100"] == 0.0


def test_a_crowd_counts_neither_way() -> None:
    target = there((0, 0, 10, 10, 0), (20, 20, 60, 60, 0))
    target = BoxTarget(target.boxes, target.labels, torch.tensor([False, True]))
    scene = found((22, 22, 30, 30, 0.9, 0), (40, 40, 50, 50, 0.8, 0), (0, 0, 10, 10, 0.7, 0))
    assert measured([(scene, target)]).compute()["ap"] == 1.0


def test_only_the_likeliest_of_a_class_count() -> None:
    scene = found((0, 0, 10, 10, 0.9, 0), (20, 0, 30, 10, 0.8, 0))
    target = there((0, 0, 10, 10, 0), (20, 0, 30, 10, 0))
    meter = measured([(scene, target)], max_detections=1)
    assert list(meter.compute())[6:7] == ["ar_1"]
    assert meter.compute()["ar_1"] == 0.5
    assert measured([(scene, target)]).compute()["ar_10"] == 1.0


def test_order_of_the_pictures_does_not_matter_and_new_ones_count(random_scenes: Scenes) -> None:
    scenes = random_scenes(12, seed=3, is_tied=True)
    meter = DetectionMeter(len(CLASSES))
    for index in np.random.default_rng(3).permutation(len(scenes)).tolist():
        meter.update(*scenes[index], index=index, source="")
    assert meter.compute() == measured(scenes).compute()
    before = meter.compute()["ap"]
    meter.update(found(), there((0, 0, 10, 10, 0)), index=99, source="")
    assert meter.compute()["ap"] < before
    meter.reset()
    assert math.isnan(meter.compute()["ap"])


def test_masks_are_kept_as_overlaps_alone(random_scenes: Scenes) -> None:
    meter = measured(random_scenes(1), "masks")
    kept = [value for value in vars(meter.pictures[0]).values() if not isinstance(value, int | str)]
    assert all(isinstance(value, np.ndarray) for value in kept)


@pytest.mark.parametrize(
    ("detections", "target", "told"),
    [
        (found((0, 0, 10, 10, 0.5, 0)), there((0, 0, 10, 10, 7)), "label 7"),
        (found((0, 0, 10, 10, float("nan"), 0)), there((0, 0, 10, 10, 0)), "not a number"),
    ],
)
def test_what_cannot_be_counted_is_named(detections: Detections, target: BoxTarget, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        DetectionMeter(len(CLASSES)).update(detections, target, index=0, source="first.png")
    assert caught.value.where == "first.png"


def test_missing_masks_and_masks_of_another_size_are_named() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    target = BoxTarget.of(boxes, torch.tensor([0]), filled(boxes))
    meter = DetectionMeter(len(CLASSES), "masks")
    with pytest.raises(InputError, match="no masks"):
        meter.update(found((0, 0, 10, 10, 0.5, 0)), target, index=0, source="first.png")
    label = torch.tensor([0])
    small = Detections(boxes, torch.tensor([0.5]), label, label, CLASSES, Masks.of(torch.ones(1, 8, 8)))
    with pytest.raises(InputError, match="pixels"):
        meter.update(small, target, index=0, source="first.png")
    with pytest.raises(InputError, match="max_detections"):
        DetectionMeter(2, max_detections=0)


# --- against COCO's own program


def official(scenes: list[Scene], kind: Kind) -> tuple[dict[str, float], np.ndarray]:
    """The twelve figures and the AP of each class by pycocotools; NaN where it says -1."""
    coco = pytest.importorskip("pycocotools.coco", reason="the extra `parity` is not installed")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
    results = []
    for index, (detections, target) in enumerate(scenes):
        truth["images"].append({"id": index, "width": SIDE, "height": SIDE})
        assert target.masks is not None
        areas = target.masks.areas().tolist()
        for place, (box, shape) in enumerate(zip(_sides(target.boxes), run_lengths(target.masks), strict=True)):
            entry = {"id": len(truth["annotations"]) + 1, "image_id": index, "bbox": box, "segmentation": shape}
            entry |= {"category_id": int(target.labels[place]), "area": areas[place]}
            truth["annotations"].append({**entry, "iscrowd": int(target.crowd[place])})
        shapes = run_lengths(detections.masks) if detections.masks is not None else []
        for place, box in enumerate(_sides(detections.boxes)):
            result = {"image_id": index, "category_id": int(detections.labels[place])}
            result |= {"bbox": box} if kind == "boxes" else {"segmentation": shapes[place]}
            results.append({**result, "score": float(detections.scores[place])})
    with contextlib.redirect_stdout(io.StringIO()):
        ground = coco.COCO()
        ground.dataset = truth
        ground.createIndex()
        program = evaluation.COCOeval(ground, ground.loadRes(results), "bbox" if kind == "boxes" else "segm")
        program.evaluate()
        program.accumulate()
        program.summarize()
    figures = {name: math.nan if value == -1 else value for name, value in zip(NAMES, program.stats, strict=True)}
    precision = program.eval["precision"][:, :, :, 0, -1]
    means = [part[part > -1].mean() if (part > -1).any() else math.nan for part in precision.transpose(2, 0, 1)]
    return figures, np.array(means)


def _sides(boxes: torch.Tensor) -> list[list[float]]:
    corners = boxes.double()
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()


CASES: dict[str, dict[str, Any]] = {
    "random": {},
    "crowded": {"crowds": 0.4},
    "tied": {"is_tied": True},
    "many": {"most": 30, "crowds": 0.1, "is_tied": True},
}


@pytest.mark.parametrize("kind", ["boxes", "masks"])
@pytest.mark.parametrize("case", CASES)
def test_figures_equal_those_of_pycocotools(random_scenes: Scenes, case: str, kind: Kind) -> None:
    scenes = random_scenes(40, seed=len(case), **CASES[case])
    meter = measured(scenes, kind)
    theirs, per_class = official(scenes, kind)
    ours = meter.compute()
    assert 0.05 < theirs["ap"] < 0.95, "the case shows something"
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6, nan_ok=True), name
    assert meter.per_class()["ap"] == pytest.approx(per_class, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_pictures_with_nothing_equal_pycocotools(kind: Kind) -> None:
    """Pictures without objects, without detections, without both; a class that only detections have."""
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 50.0, 60.0]])
    labels = torch.tensor([0, 1])
    some = Detections(boxes, torch.tensor([0.9, 0.4]), labels, labels, CLASSES, filled(boxes))
    none = Detections(boxes[:0], torch.zeros(0), labels[:0], labels[:0], CLASSES, Masks.none((SIDE, SIDE)))
    nothing = BoxTarget.of(boxes[:0], labels[:0], Masks.none((SIDE, SIDE)))
    one = BoxTarget.of(boxes[:1], labels[:1], filled(boxes[:1]))
    scenes = [(some, nothing), (none, nothing), (none, one), (some, one)]
    theirs, _ = official(scenes, kind)
    ours = measured(scenes, kind).compute()
    assert 0 < theirs["ap"] < 1
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6, nan_ok=True), name


def test_more_than_a_hundred_of_a_class_equal_pycocotools() -> None:
    generator = np.random.default_rng(5)
    boxes = torch.from_numpy(generator.uniform(0, 30, (250, 2))).float().repeat(1, 2)
    boxes[:, 2:] += 12
    scores = torch.from_numpy(np.sort(generator.random(250))[::-1].copy()).float()
    labels = torch.zeros(250, dtype=torch.int64)
    detections = Detections(boxes, scores, labels, labels, CLASSES, filled(boxes))
    picked = torch.arange(0, 250, 9)
    target = BoxTarget.of(boxes[picked] + 0.5, labels[picked], filled(boxes[picked] + 0.5))
    theirs, _ = official([(detections, target)], "boxes")
    ours = measured([(detections, target)]).compute()
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6, nan_ok=True), name
