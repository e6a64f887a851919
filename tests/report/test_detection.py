"""The report on a detector: what became of each object, and one page that tells it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from saccade.data.source import DataSource
from saccade.data.synthetic import SceneConfig, SyntheticObjects
from saccade.models.build import create
from saccade.report import ReportConfig, evaluate_and_report
from saccade.report.detection import outcomes
from saccade.tasks import EvaluateConfig
from saccade.tasks.detection import DetectionEvaluation
from saccade.types import BoxTarget, Classes, Detections, Masks

CLASSES = Classes(("cell", "grain"))


def found(*rows: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    boxes = torch.tensor([box for box, _, _ in rows]).reshape(-1, 4)
    scores, labels = (torch.tensor([row[column] for row in rows]) for column in (1, 2))
    return Detections(boxes, scores, labels.long(), torch.arange(len(rows)), CLASSES)


def test_outcomes_follow_the_rule_of_the_figures() -> None:
    box, other, crowd = (10.0, 10.0, 50.0, 50.0), (60.0, 10.0, 90.0, 40.0), (10.0, 60.0, 90.0, 95.0)
    truth = BoxTarget(
        torch.tensor([box, other, crowd]), torch.tensor([0, 1, 0]), torch.tensor([False, False, True]), None
    )
    detections = found(
        (box, 0.9, 0),
        (box, 0.8, 0),  # a second time
        (other, 0.7, 0),  # another class
        ((20.0, 65.0, 40.0, 85.0), 0.6, 0),  # on the crowd
        ((0.0, 0.0, 5.0, 5.0), 0.5, 1),
    )
    said = outcomes(detections, truth, 2, "boxes", 100)
    assert said.truth == ["right", "missed", "not counted"]
    assert said.found == ["right", "false", "false", "not counted", "false"]
    assert outcomes(detections, truth, 2, "boxes", 1).found == [
        "right",
        "not counted",
        "not counted",
        "not counted",
        "false",
    ]
    none = BoxTarget.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert outcomes(detections, none, 2, "boxes", 100).found == ["false"] * 5
    assert outcomes(found(), truth, 2, "boxes", 100) == (["missed", "missed", "not counted"], [])


def test_masks_are_compared_where_the_model_gives_masks() -> None:
    dense = torch.zeros(2, 40, 40, dtype=torch.bool)
    dense[0, 10:30, 10:30] = True
    dense[1, 10:14, 10:30] = True  # the same box, but a fifth of the pixels
    box = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    truth = BoxTarget.of(box, torch.tensor([0]), Masks.of(dense[:1]))
    one = torch.tensor([0])
    thin = Detections(box, torch.tensor([0.9]), one, one, CLASSES, Masks.of(dense[1:]))
    assert outcomes(thin, truth, 2, "boxes", 100).found == ["right"]
    assert outcomes(thin, truth, 2, "masks", 100).found == ["false"]


@pytest.mark.parametrize("name", ["faster_rcnn_test", "mask_rcnn_test"])
def test_the_page_tells_and_explains(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create(name, num_classes=2)
    config = SceneConfig(size=(64, 64), objects=(2, 3), shapes=("circle", "square"))
    data = SyntheticObjects(3, config, task=model.task)
    model.classes = data.classes
    source = DataSource({"val": data}, data.classes, "scenes", "synthetic")
    # A model that has learned nothing finds everything everywhere, a little.
    settings = EvaluateConfig(score_threshold=0.3, num_shown=1, detection_resamples=4, workers=0)
    shown = ReportConfig(split="val", evaluate=settings, compared=1, methods=("gradient",))
    evaluation, part = evaluate_and_report(model, source, tmp_path, shown)
    assert isinstance(evaluation, DetectionEvaluation)
    titles = [section.title for section in part.sections]
    expected = ["Where it is right and wrong", "Kinds of mistakes", "All figures", "Worst pictures", "From the middle"]
    assert titles[: len(expected)] == expected
    assert "Mistakes, explained" in titles
    cards = {section.title: section.cards for section in part.sections}
    (worst,) = cards["Worst pictures"]
    assert worst.source == evaluation.worst[0].source
    assert re.fullmatch(r"F1 [\d.]+ %: \d+ right, \d+ wrong, \d+ missed", worst.lines[0])
    told = [line for card in cards["Mistakes, explained"] for line in card.lines]
    assert any(line.startswith(("circle: ", "square: ")) for line in told) or any("no object" in line for line in told)
    figures = {section.title: section.table for section in part.sections}["All figures"]
    assert figures is not None
    assert figures.head == (("figure", "boxes", "masks") if model.task == "instance" else ("figure", "boxes"))
    page = (tmp_path / "report.html").read_text()
    assert "Precision over recall at an overlap of 0.5" in page
