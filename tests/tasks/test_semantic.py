"""What the task of labelling pixels counts, compares and tells."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.tasks import TASKS, EvaluateConfig, Evaluation, Facts
from saccade.tasks.semantic import SemanticEvaluation, SemanticTally, relabelled
from saccade.types import IGNORE, Classes, MapTarget, Segmentation

TASK = TASKS["semantic"]
NAMES = ("sky", "road", "tree")
SAME = torch.arange(3)


def labels_of(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def said(labels: Tensor, confidence: float | Tensor = 0.5) -> Segmentation:
    values = confidence if isinstance(confidence, Tensor) else torch.full(labels.shape, confidence)
    return Segmentation(labels, values.half(), Classes(NAMES))


def tallied(pairs: list[tuple[Tensor, Tensor]], relabel: Tensor = SAME, **options: Any) -> SemanticTally:
    tally = TASK.tally(NAMES, relabel, EvaluateConfig(resamples=20, boundary_tolerance=0.0, **options))
    assert isinstance(tally, SemanticTally)
    for index, (predicted, truth) in enumerate(pairs):
        tally.add([said(predicted)], [MapTarget(truth)], [index], [f"{index}.png"])
    return tally


def told(tally: SemanticTally) -> SemanticEvaluation:
    return tally.evaluation(Facts(("3.png: damaged",), {"device": "cpu"}, 2.0))


TRUTH = labels_of([0, 0, 0, 1], [1, 1, IGNORE, 1])
PREDICTED = labels_of([0, 0, 1, 1], [1, 1, 2, 0])
"""Sky: 2 right, 1 missed, 1 invented: IoU 1/2. Road: 3 right, 1 missed, 1 invented: 3/5. Nobody labelled the tree."""


def test_figures_by_hand() -> None:
    evaluation = told(tallied([(PREDICTED, TRUTH)]))
    assert evaluation.metrics["miou"] == pytest.approx((1 / 2 + 3 / 5) / 2)
    assert evaluation.metrics["pixel_accuracy"] == pytest.approx(5 / 7)
    assert evaluation.confusion == ((2, 1, 0), (1, 3, 0), (0, 0, 0))
    assert evaluation.missing_classes == ("tree",)
    sky, road, tree = evaluation.per_class
    assert (sky.name, sky.iou, sky.images) == ("sky", pytest.approx(1 / 2), 1)
    assert sky.dice == pytest.approx(2 / 3)
    assert road.share == pytest.approx(4 / 7)
    assert (tree.iou, tree.recall, tree.images) == (None, None, 0)
    assert (evaluation.task, evaluation.headline, evaluation.num_images) == ("semantic", "miou", 1)
    assert evaluation.skipped == ("3.png: damaged",)
    assert evaluation.images_per_second == pytest.approx(0.5)
    assert "boundary_f" not in evaluation.metrics, "tolerance 0 leaves boundaries out"


def test_truth_is_relabelled_by_name_and_ignored_pixels_stay() -> None:
    """A data set that lists road, sky counts as one that lists them as the model does."""
    straight = told(tallied([(PREDICTED, TRUTH)]))
    swapped = TRUTH.clone()
    swapped[TRUTH == 0], swapped[TRUTH == 1] = 1, 0
    other = told(tallied([(PREDICTED, swapped)], relabel=torch.tensor([1, 0])))
    assert other.confusion == straight.confusion
    assert other.metrics == straight.metrics


@pytest.mark.parametrize(
    ("relabel", "expected"),
    [
        ([0, 1, 2], [[0, 1], [2, IGNORE]]),
        ([2, 0, 1], [[2, 0], [1, IGNORE]]),
        ([7, 254, 3], [[7, 254], [3, IGNORE]]),
    ],
)
def test_relabelling_closed_form(relabel: list[int], expected: list[list[int]]) -> None:
    labels = labels_of([0, 1], [2, IGNORE])
    found = relabelled(labels, torch.tensor(relabel))
    assert found.tolist() == expected
    assert found.dtype == torch.uint8
    assert labels.tolist() == [[0, 1], [2, IGNORE]], "the truth itself is left as it is"


def test_a_map_of_another_size_is_named() -> None:
    with pytest.raises(InputError, match=r"0\.png"):
        tallied([(PREDICTED[:1], TRUTH)])


def test_worst_and_best_pictures_are_told() -> None:
    right, half = labels_of([0, 1]), labels_of([0, 0])
    wrong = labels_of([1, 0])
    truth = labels_of([0, 1])
    evaluation = told(tallied([(half, truth), (right, truth), (wrong, truth)], num_shown=1))
    assert [shown.source for shown in (*evaluation.worst, *evaluation.median, *evaluation.best)] == [
        "2.png", "0.png", "1.png"
    ]  # fmt: skip
    # Half: sky is 1 of 2, road is 0 of 1.
    assert [shown.miou for shown in (*evaluation.worst, *evaluation.median, *evaluation.best)] == [0, 0.25, 1]
    assert evaluation.remarks() == ["2.png: mean IoU 0.0 %"]


def test_the_table_has_a_row_per_class_and_dashes_where_nothing_is_known() -> None:
    table = told(tallied([(PREDICTED, TRUTH)])).table()
    assert [row[0] for row in table.rows] == list(NAMES)
    assert {len(row) for row in table.rows} == {len(table.head)}
    cells = dict(zip(table.head, table.rows[0], strict=True))
    assert (cells["IoU"], cells["Dice"], cells["of pixels"], cells["images"]) == ("50.0 %", "66.7 %", "42.9 %", "1")
    assert dict(zip(table.head, table.rows[2], strict=True))["IoU"] == "–"


def test_it_survives_json_as_what_it_is() -> None:
    evaluation = told(tallied([(PREDICTED, TRUTH)]))
    content = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    again = Evaluation.from_dict(content)
    assert isinstance(again, SemanticEvaluation)
    assert again == evaluation


def test_nothing_labelled_gives_no_figures_rather_than_invalid_json() -> None:
    nothing = torch.full((2, 2), IGNORE, dtype=torch.uint8)
    evaluation = told(tallied([(torch.zeros_like(nothing), nothing)]))
    content = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert content["metrics"]["miou"] is None
    assert content["per_class"][0]["share"] is None
    assert Evaluation.from_dict(content) == evaluation
    assert evaluation.table().rows[0][1:-1] == ("–",) * 6


def test_quality_is_the_mean_iou_and_then_the_accuracy() -> None:
    def quality(miou: float, accuracy: float) -> tuple[float, ...]:
        return TASK.quality({"miou": miou, "pixel_accuracy": accuracy})

    assert quality(0.5, 0.1) > quality(0.4, 0.9)
    assert quality(0.5, 0.6) > quality(0.5, 0.5)


def test_agreement_counts_pixels_over_pictures_of_all_sizes() -> None:
    ours = [said(labels_of([0, 1], [1, 1]), 0.75), said(labels_of([2, 2, 2, 2, 2, 2]), 0.5)]
    theirs = [said(labels_of([0, 0], [1, 1]), 0.5), said(labels_of([2, 2, 2, 2, 2, 2]), 0.5)]
    assert TASK.agreement(ours, theirs) == (pytest.approx(9 / 10), pytest.approx(4 * 0.25 / 10))
    assert TASK.agreement(theirs, theirs) == (1.0, 0.0)


def test_a_copy_that_gives_no_numbers_differs() -> None:
    labels = labels_of([0, 0])
    _, apart = TASK.agreement([said(labels, math.nan)], [said(labels)])
    assert not apart <= 0.02


def test_a_record_tells_the_largest_classes_with_share_and_confidence() -> None:
    labels = labels_of([1, 1, 0, 1, 2, 2, 1, 1])
    confidence = torch.tensor([[0.5, 0.75, 1.0, 0.25, 0.5, 0.25, 1.0, 1.0]])
    record = TASK.record(said(labels, confidence), 2)
    assert record == {
        "size": [1, 8],
        "classes": [
            {"class": "road", "share": 5 / 8, "confidence": pytest.approx(3.5 / 5)},
            {"class": "tree", "share": 2 / 8, "confidence": pytest.approx(0.375)},
        ],
    }
    json.dumps(record, allow_nan=False, default=float)
