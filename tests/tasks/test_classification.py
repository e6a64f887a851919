"""What the task of naming pictures counts, compares and tells; the figures have their own tests."""

from __future__ import annotations

import json

import pytest
import torch

from saccade.errors import ConfigError, UnknownNameError
from saccade.tasks import TASKS, EvaluateConfig, Evaluation, Facts
from saccade.tasks.classification import ClassificationEvaluation
from saccade.types import Classes, Classification, ClassTarget

TASK = TASKS["classification"]
NAMES = ("cat", "dog")
SCORES = [[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8]]
TRUTH = [0, 1, 1, 0]
"""Two right, two wrong; the last is the worst mistake."""


def said(rows: list[list[float]]) -> list[Classification]:
    return [Classification(torch.tensor(row), Classes(NAMES)) for row in rows]


def told(relabel: list[int], truth: list[int]) -> Evaluation:
    tally = TASK.tally(NAMES, torch.tensor(relabel), EvaluateConfig(resamples=20))
    targets = [ClassTarget(torch.tensor(label)) for label in truth]
    for part in (slice(0, 3), slice(3, 4)):
        indices = range(4)[part]
        tally.add(said(SCORES[part]), targets[part], indices, [f"{index}.png" for index in indices])
    return tally.evaluation(Facts((), {}, 0.5))


def test_figures_by_hand() -> None:
    evaluation = told([0, 1], TRUTH)
    assert isinstance(evaluation, ClassificationEvaluation)
    assert evaluation.metrics["top1"] == 0.5
    assert evaluation.confusion == ((1, 1), (1, 1))
    assert evaluation.images_per_second == pytest.approx(8)
    assert [(m.source, m.true, m.predicted) for m in evaluation.mistakes] == [
        ("3.png", "cat", "dog"), ("2.png", "dog", "cat")
    ]  # fmt: skip
    assert evaluation.remarks()[0] == "3.png: dog 80.0 %, is cat"
    assert evaluation.table().rows[0] == ("cat", "50.0 %", "50.0 %", "50.0 %", "2")


def test_truth_is_relabelled_by_name() -> None:
    straight, other = told([0, 1], TRUTH), told([1, 0], [1 - label for label in TRUTH])
    assert other == straight


def test_it_survives_json_as_what_it_is_and_other_tasks_are_refused() -> None:
    evaluation = told([0, 1], TRUTH)
    content = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    again = Evaluation.from_dict(content)
    assert isinstance(again, ClassificationEvaluation)
    assert again == evaluation
    with pytest.raises(UnknownNameError, match=r"clasification.*'classification'"):
        Evaluation.from_dict({**content, "task": "clasification"})
    with pytest.raises(UnknownNameError, match="task"):
        Evaluation.from_dict({})


def test_quality_is_the_accuracy_and_then_the_likelihood() -> None:
    def quality(top1: float, nll: float) -> tuple[float, ...]:
        return TASK.quality({"top1": top1, "nll": nll})

    assert quality(0.5, 2.0) > quality(0.4, 0.1)
    assert quality(0.5, 0.1) > quality(0.5, 2.0)


def test_agreement_is_the_share_of_equal_classes_and_the_largest_difference() -> None:
    ours, theirs = said([[0.6, 0.4], [0.2, 0.8]]), said([[0.4, 0.6], [0.2, 0.8]])
    assert TASK.agreement(ours, theirs) == (0.5, pytest.approx(0.2))
    assert TASK.agreement(ours, ours) == (1.0, 0.0)
    # One that gives no numbers agrees with nothing.
    assert not TASK.agreement(said([[float("nan")] * 2] * 2), theirs)[1] <= 0.02


def test_a_record_tells_the_likeliest_classes() -> None:
    record = TASK.record(said([[0.25, 0.75]])[0], 1)
    assert record == {"top": [{"class": "dog", "score": 0.75}]}


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"resamples": 0}, {"top_k": 0}, {"boundary_tolerance": -0.1}])
def test_wrong_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EvaluateConfig(**wrong)  # type: ignore[arg-type]
