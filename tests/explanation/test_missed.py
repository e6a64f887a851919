"""Why an object was missed: every way from a raw candidate to no detection, by hand."""

from __future__ import annotations

import pytest
import torch

from saccade.explanation.missed import Missed, diagnose, why_missed
from saccade.models.build import create
from saccade.models.detector import Candidates, Selection
from saccade.types import BoxTarget, Classes

CLASSES = Classes(("cell", "grain"))
SIZE = (100, 100)
OBJECT = (10.0, 10.0, 50.0, 50.0)


def candidates(*rows: tuple[tuple[float, float, float, float], tuple[float, float]]) -> Candidates:
    boxes = torch.tensor([box for box, _ in rows]).reshape(-1, 1, 4)
    scores = torch.tensor([scores for _, scores in rows]).reshape(-1, 2)
    return Candidates(boxes, scores, torch.logit(scores.clamp(1e-3, 1 - 1e-3)))


def told(given: Candidates, selection: Selection | None = None, label: int = 0) -> Missed:
    return diagnose(given, SIZE, selection or Selection(), torch.tensor([OBJECT]), [label], CLASSES)[0]


def test_what_was_found_is_told_with_its_place() -> None:
    other = (60.0, 60.0, 90.0, 90.0)
    missed = told(candidates((OBJECT, (0.6, 0.1)), (other, (0.9, 0.0))))
    assert (missed.cause, missed.source, missed.by) == ("found", 0, 1)
    assert missed.iou == pytest.approx(1)
    assert missed.sentence == "cell: it was found: box 1, score 0.60, overlaps it by 1.00"


def test_no_candidate_overlaps_by_half() -> None:
    beside = (10.0, 10.0, 50.0, 26.0)  # 40 x 16 of 40 x 40
    missed = told(candidates((beside, (0.9, 0.1)), ((60.0, 60.0, 90.0, 90.0), (0.9, 0.1))))
    assert (missed.cause, missed.source) == ("no candidate", 0)
    assert missed.iou == pytest.approx(0.4)
    assert "overlaps it by 0.40" in missed.sentence
    assert told(candidates(((60.0, 60.0, 90.0, 90.0), (0.9, 0.1)))).sentence.endswith("overlaps it at all")
    assert told(candidates()).source is None


def test_a_score_below_the_least_is_told_with_both() -> None:
    missed = told(candidates((OBJECT, (0.031, 0.02)), ((12.0, 12.0, 50.0, 50.0), (0.012, 0.04))))
    assert (missed.cause, missed.source, missed.score) == ("low score", 0, pytest.approx(0.031))
    assert missed.sentence == "cell: its best candidate has score 0.031, below the least that counts, 0.05"


def test_what_was_seen_as_another_class_says_so() -> None:
    missed = told(candidates((OBJECT, (0.01, 0.85))))
    assert (missed.cause, missed.seen_as, missed.seen_score) == ("another class", "grain", pytest.approx(0.85))
    assert missed.sentence == "cell: its best candidate is seen as grain (0.85), as cell only 0.01"


def test_the_detection_that_suppressed_it_is_named() -> None:
    neighbour = (10.0, 10.0, 92.0, 50.0)
    between = (10.0, 10.0, 64.0, 50.0)
    given = candidates(((60.0, 60.0, 90.0, 90.0), (0.95, 0.0)), (neighbour, (0.9, 0.0)), (between, (0.8, 0.0)))
    missed = told(given)
    assert (missed.cause, missed.source, missed.by) == ("suppressed", 2, 1)
    assert "by box 1 (score 0.90), which overlaps that candidate by 0.66 and the object only by 0.49" in missed.sentence
    assert told(given, Selection(nms_iou=0.7)).cause == "found"


def test_a_full_list_leaves_the_least_likely_out() -> None:
    given = candidates(((60.0, 60.0, 90.0, 90.0), (0.95, 0.0)), (OBJECT, (0.7, 0.0)))
    missed = told(given, Selection(max_detections=1))
    assert (missed.cause, missed.source, missed.by) == ("crowded out", 1, None)
    assert missed.sentence == "cell: its candidate has score 0.70, but 1 likelier ones fill the list of 1"


def test_sides_below_the_shortest_are_told() -> None:
    missed = told(candidates((OBJECT, (0.7, 0.0))), Selection(min_side=60))
    assert (missed.cause, missed.sentence) == ("too small", "cell: its candidate has a side below 60 pixels")


def test_each_class_has_its_own_box_where_the_model_gives_one() -> None:
    boxes = torch.tensor([[[60.0, 60, 90, 90], list(OBJECT)]])
    given = Candidates(boxes, torch.tensor([[0.6, 0.7]]), torch.zeros(1, 2))
    assert told(given, label=0).cause == "no candidate"
    assert told(given, label=1).cause == "found"


@pytest.mark.parametrize("name", ["faster_rcnn_test", "mask_rcnn_test", "yolo_v1_test"])
def test_every_object_of_a_picture_gets_an_answer(name: str) -> None:
    torch.manual_seed(0)
    model = create(name)
    model.train()
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    target = BoxTarget.of(torch.tensor([[5.0, 5, 60, 60], [30, 2, 88, 40]]), torch.tensor([0, 1]))
    answers = why_missed(model, image, target)
    assert len(answers) == 2
    assert model.training
    strict = why_missed(model, image, target, min_score=1.0)
    assert {one.cause for one in strict} <= {"no candidate", "low score"}
    assert all(one.sentence.startswith(f"{one.name}: ") and 0 <= one.iou <= 1 for one in answers)
