"""What the tasks of finding objects count, compare and tell."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coder
from torch import Tensor

from saccade.errors import ConfigError, InputError
from saccade.tasks import TASKS, EvaluateConfig, Evaluation, Facts
from saccade.tasks.detection import DetectionEvaluation, DetectionTally, InstanceEvaluation
from saccade.types import BoxTarget, Classes, Detections, Masks

NAMES = ("cell", "platelet", "dust")
SAME = torch.arange(3)


def boxes_of(*lefts: float) -> Tensor:
    """Boxes of 20x20 pixels from these left edges on."""
    left = torch.tensor(lefts, dtype=torch.float32).reshape(-1)
    return torch.stack([left, torch.zeros_like(left), left + 20, torch.full_like(left, 20.0)], 1)


def filled(boxes: Tensor) -> Masks:
    steps = torch.arange(200) + 0.5
    right = (steps >= boxes[:, :1]) & (steps < boxes[:, 2:3])
    return Masks.of(right[:, None, :] & (steps < 20)[None, :, None])


def said(boxes: Tensor, scores: list[float], labels: list[int], *, masks: Masks | None = None) -> Detections:
    source = torch.arange(len(scores)) + 5
    values = torch.tensor(labels, dtype=torch.int64)
    return Detections(boxes, torch.tensor(scores), values, source, Classes(NAMES), masks)


def true(boxes: Tensor, labels: list[int], *, masks: Masks | None = None) -> BoxTarget:
    return BoxTarget.of(boxes, torch.tensor(labels, dtype=torch.int64), masks)


Pair = tuple[Detections, BoxTarget]

PICTURES: list[Pair] = [
    # Two cells found, one platelet taken for a cell.
    (said(boxes_of(0, 40, 80), [0.9, 0.8, 0.7], [0, 0, 0]), true(boxes_of(0, 40, 80), [0, 0, 1])),
    # One cell found; a second at a score that is too low to be shown; a false alarm.
    (said(boxes_of(0, 120, 40), [0.9, 0.6, 0.4], [0, 1, 0]), true(boxes_of(0, 40), [0, 0])),
    # All found.
    (said(boxes_of(0), [0.9], [1]), true(boxes_of(0), [1])),
    # Nothing there, nothing found.
    (said(boxes_of(), [], []), true(boxes_of(), [])),
]


def tallied(pairs: list[Pair], relabel: Tensor = SAME, task: str = "detection", **options: Any) -> DetectionTally:
    tally = TASKS[task].tally(NAMES, relabel, EvaluateConfig(detection_resamples=20, **options))  # type: ignore[index]
    assert isinstance(tally, DetectionTally)
    for index, (detections, target) in enumerate(pairs):
        tally.add([detections], [target], [index], [f"{index}.png"])
    return tally


def told(tally: DetectionTally) -> DetectionEvaluation:
    return tally.evaluation(Facts(("9.png: damaged",), {"device": "cpu"}, 2.0))


def with_masks(pair: Pair) -> Pair:
    detections, target = pair
    found = said(
        detections.boxes, detections.scores.tolist(), detections.labels.tolist(), masks=filled(detections.boxes)
    )
    return found, true(target.boxes, target.labels.tolist(), masks=filled(target.boxes))


def test_figures_by_hand() -> None:
    evaluation = told(tallied(PICTURES))
    cell, platelet, dust = evaluation.per_class
    assert (cell.name, cell.objects, cell.right, cell.wrong, cell.missed) == ("cell", 4, 3, 1, 1)
    assert (platelet.objects, platelet.right, platelet.wrong, platelet.missed) == (2, 1, 1, 1)
    assert (dust.objects, dust.ap, dust.recall, dust.score) == (0, None, None, None)
    # Cells ranked: right, right, right, wrong, right.
    assert cell.ap50 == pytest.approx((76 + 25 * 4 / 5) / 101)
    assert cell.voc_ap50 == pytest.approx(3 / 4 + 4 / 5 / 4)
    assert (cell.precision, cell.recall) == (pytest.approx(4 / 5), 1.0)
    assert cell.score == pytest.approx(0.4)
    assert evaluation.metrics["ap50"] == pytest.approx((cell.ap50 + 51 / 101) / 2)
    assert evaluation.confusion == ((3, 0, 0), (1, 1, 0), (0, 0, 0))
    assert evaluation.missing_classes == ("dust",)
    assert {error.kind: error.number for error in evaluation.errors if error.number} == {"class": 1, "background": 1}
    assert (evaluation.num_images, evaluation.num_objects, evaluation.num_detections) == (4, 6, 7)
    assert evaluation.images_per_second == 2.0
    assert evaluation.interval[0] is not None


def test_the_gallery_ranks_pictures_by_f1_and_leaves_out_empty_ones() -> None:
    evaluation = told(tallied(PICTURES))
    assert [shown.source for shown in (*evaluation.worst, *evaluation.median, *evaluation.best)] == [
        "1.png",
        "0.png",
        "2.png",
    ]
    worst = evaluation.worst[0]
    assert (worst.index, worst.right, worst.wrong, worst.missed) == (1, 1, 1, 1)
    assert worst.f1 == pytest.approx(0.5)
    assert evaluation.remarks() == ["1.png: F1 50.0 % (1 right, 1 wrong, 1 missed)"]
    # From a lower score on the second cell is found too.
    assert told(tallied(PICTURES, score_threshold=0.3)).worst[0].source == "0.png"


def test_curves_are_of_the_classes_that_are_there() -> None:
    curves = told(tallied(PICTURES)).curves
    assert [(curve.name, curve.overlap) for curve in curves] == [
        ("cell", 0.5),
        ("platelet", 0.5),
        ("cell", 0.75),
        ("platelet", 0.75),
    ]
    assert curves[0].precision == (1.0,) * 76 + (0.8,) * 25


def test_truth_is_relabelled_by_name() -> None:
    swapped = [(found, BoxTarget(t.boxes, 1 - t.labels, t.crowd)) for found, t in PICTURES]
    straight, other = told(tallied(PICTURES)), told(tallied(swapped, relabel=torch.tensor([1, 0])))
    assert other == straight
    assert told(tallied(swapped)).metrics != straight.metrics


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_an_evaluation_survives_json_and_comes_back_as_its_own_kind(task: str) -> None:
    evaluation = told(tallied([with_masks(pair) for pair in PICTURES], task=task))
    read = Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict())))
    assert read == evaluation
    assert type(read) is (InstanceEvaluation if task == "instance" else DetectionEvaluation)
    assert (read.task, read.headline) == (task, TASKS[task].headline)  # type: ignore[index]


def test_instances_are_judged_by_their_masks_and_boxes_stand_beside() -> None:
    """The box is right, the mask covers its left half only."""
    boxes = boxes_of(0)
    half = Masks.of(filled(boxes).dense() & (torch.arange(200) < 10))
    pair = said(boxes, [0.9], [0], masks=half), true(boxes, [0], masks=filled(boxes))
    evaluation = told(tallied([pair], task="instance"))
    assert evaluation.metrics["ap"] == 1.0
    assert evaluation.metrics["mask_ap"] == pytest.approx(0.1)
    assert evaluation.metrics["mask_ap50"] == 1.0
    row = evaluation.per_class[0]
    assert (row.ap, row.box_ap) == (pytest.approx(0.1), 1.0)
    assert evaluation.table().head[-1] == "box AP"
    assert evaluation.table().rows[0][-1] == "100.0 %"
    with pytest.raises(InputError, match="no masks") as caught:
        tallied([(pair[0], true(boxes, [0]))], task="instance")
    assert caught.value.where == "0.png"


def test_the_table_has_a_dash_where_nothing_can_be_said() -> None:
    table = told(tallied(PICTURES)).table()
    assert len(table.head) == len(table.rows[0])
    assert table.rows[0][:2] == ("cell", "4")
    assert table.rows[2][2:8] == ("–",) * 6


def test_every_setting_that_changes_a_figure_is_told() -> None:
    settings = told(tallied(PICTURES)).settings
    assert settings["device"] == "cpu"
    assert settings["overlaps"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert {"size_limits", "areas", "match_overlap", "background_overlap"} <= set(settings)
    with pytest.raises(ConfigError, match="score_threshold"):
        EvaluateConfig(score_threshold=1.5)
    with pytest.raises(ConfigError, match="max_detections"):
        EvaluateConfig(max_detections=0)


def test_nothing_there_and_nothing_found() -> None:
    empty = told(tallied([]))
    assert (empty.metrics["ap"], empty.interval, empty.worst) == (None, (None, None), ())
    blind = told(tallied([(said(boxes_of(), [], []), true(boxes_of(0), [0]))]))
    assert blind.metrics["ap"] == 0.0
    assert blind.per_class[0].recall == 0.0
    assert blind.per_class[0].precision is None
    assert math.isnan(tallied([]).compute()["ap"])


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_quality_is_ap_then_ap50(task: str) -> None:
    better = TASKS[task]  # type: ignore[index]
    metrics = {"ap": 0.3, "ap50": 0.5, "mask_ap": 0.2, "mask_ap50": 0.4}
    assert better.quality(metrics) == ((0.2, 0.4) if task == "instance" else (0.3, 0.5))


def test_agreement_counts_clear_objects_of_both_sides() -> None:
    task = TASKS["detection"]
    reference = [said(boxes_of(0, 40, 80), [0.9, 0.8, 0.1], [0, 0, 0])]
    assert task.agreement(reference, reference) == (1.0, 0.0)
    # Moved by a pixel (19 / 21), and a score that crosses the limit: still the same objects.
    moved = [said(boxes_of(1, 40), [0.88, 0.25], [0, 0])]
    share, apart = task.agreement(moved, reference)
    assert share == 1.0
    assert apart == pytest.approx((0.02 * 2 + 0.55) / 3)
    # One of another class, one that the reference has not.
    other = [said(boxes_of(0, 40, 120), [0.9, 0.8, 0.7], [0, 1, 0])]
    assert task.agreement(other, reference)[0] == pytest.approx(2 / 5)
    assert task.agreement([said(boxes_of(3), [0.9], [0])], [said(boxes_of(0), [0.9], [0])])[0] == 0.0


def test_agreement_where_no_object_is_clear_or_there_is_none() -> None:
    task = TASKS["detection"]
    weak = [said(boxes_of(0, 40), [0.2, 0.1], [0, 0])]
    assert task.agreement([said(boxes_of(0), [0.2], [0])], weak)[0] == pytest.approx(2 / 3)
    none = [said(boxes_of(), [], [])]
    assert task.agreement(none, none) == (1.0, 0.0)
    assert task.agreement(none, weak) == (0.0, 0.0)


def test_agreement_of_instances_compares_masks() -> None:
    boxes = boxes_of(0)
    half = Masks.of(filled(boxes).dense() & (torch.arange(200) < 10))
    whole, part = said(boxes, [0.9], [0], masks=filled(boxes)), said(boxes, [0.9], [0], masks=half)
    assert TASKS["detection"].agreement([part], [whole])[0] == 1.0
    assert TASKS["instance"].agreement([part], [whole])[0] == 0.0


def test_a_record_is_plain_data() -> None:
    boxes = boxes_of(0, 40) + 0.123
    detections = said(boxes, [0.75, 0.5], [0, 2], masks=filled(boxes))
    record = json.loads(json.dumps(TASKS["instance"].record(detections, 1)))
    first, second = record["objects"]
    assert first["class"] == "cell"
    assert (first["score"], first["source"], first["box"]) == (0.75, 5, [0.12, 0.12, 20.12, 20.12])
    assert second["class"] == "dust"
    assert detections.masks is not None
    assert (coder.decode(second["mask"]) == detections.masks[1].numpy().astype(np.uint8)).all()
    assert "mask" not in TASKS["detection"].record(said(boxes, [0.75, 0.5], [0, 2]), 1)["objects"][0]
