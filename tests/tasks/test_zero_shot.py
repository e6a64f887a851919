"""What counts as found, and what an evaluation of embeddings tells."""

from __future__ import annotations

import json

import pytest
import torch

from saccade.tasks import TASKS, EvaluateConfig, Evaluation, Facts
from saccade.tasks.zero_shot import ZeroShotEvaluation, ZeroShotTally
from saccade.types import Caption, Embedding

FACTS = Facts((), {"batch_size": 2}, 2.0)


def tally_of(
    images: torch.Tensor, texts: list[list[tuple[str, torch.Tensor]]], names: tuple[str, ...] = ()
) -> ZeroShotTally:
    tally = TASKS["zero_shot"].tally(names, torch.arange(len(names)), EvaluateConfig(resamples=200))
    assert isinstance(tally, ZeroShotTally)
    predictions = [
        Embedding(image, torch.stack([vector for _, vector in said])) for image, said in zip(images, texts, strict=True)
    ]
    captions = [Caption(tuple(text for text, _ in said)) for said in texts]
    half = len(images) // 2
    for part in (slice(0, half), slice(half, None)):
        places = list(range(len(images)))[part]
        tally.add(predictions[part], captions[part], places, [f"{place}.png" for place in places])
    return tally


def test_texts_find_their_pictures_and_equal_texts_are_right_for_each_other() -> None:
    axes = torch.eye(4)
    # The text of picture 1 points at picture 2, which has the same words; that of picture 3 points at picture 0.
    texts = [[("zero", axes[0])], [("twin", axes[2])], [("twin", axes[2])], [("three", axes[0])]]
    tally = tally_of(axes, texts)
    figures = tally.compute()
    assert figures["text_to_image_1"] == pytest.approx(3 / 4)
    # Picture 1 scores 0 with every text: two of the four are right for it, so the first of a random order is in 2 of 4.
    # Picture 3 scores 0 with every text as well, and one of four is right.
    assert figures["image_to_text_1"] == pytest.approx((1 / 2 + 2 / 4 + 1 + 1 / 4) / 4)
    assert figures["text_to_image_5"] == 1.0
    evaluation = tally.evaluation(FACTS)
    assert evaluation.directions[0].chance[0] == pytest.approx((1 + 2 + 2 + 1) / 4 / 4)
    assert [miss.text for miss in evaluation.mistakes] == ["three"]
    assert evaluation.mistakes[0].found_source == "0.png"
    assert evaluation.mistakes[0].place == pytest.approx(3.0)  # behind picture 0, at one of the places 2 to 4
    assert "'three': 3.png is at place 3, first is 0.png" in evaluation.remarks()


def test_several_texts_are_several_queries_and_any_of_them_answers() -> None:
    axes = torch.eye(3)
    texts = [[("a", axes[0]), ("b", axes[1])], [("c", axes[1])], [("d", axes[2]), ("e", axes[2])]]
    evaluation = tally_of(axes, texts).evaluation(FACTS)
    there, back = evaluation.directions
    assert (there.queries, there.candidates, back.queries, back.candidates) == (5, 3, 3, 5)
    assert there.recall[0] == pytest.approx(4 / 5)
    assert back.recall[0] == pytest.approx((1 + 1 / 2 + 1) / 3)  # picture 1: its own "c" ties with the foreign "b"


def test_categories_by_name_with_chance_and_interval() -> None:
    axes = torch.eye(3)
    texts = [[(str(place), axes[place])] for place in range(3)]
    tally = tally_of(axes, texts, ("x", "y", "z"))
    tally.know_categories(axes, torch.tensor([0, 1, 1]))
    evaluation = tally.evaluation(FACTS)
    assert evaluation.metrics["category"] == pytest.approx(2 / 3)
    assert evaluation.confusion == ((1, 0, 0), (0, 1, 1), (0, 0, 0))
    (told,) = evaluation.conditions()
    assert "among 3 names, 2 of which occur here; chance 33.3 %" in told
    low, high = evaluation.category_interval
    assert low is not None
    assert high is not None
    assert low <= 2 / 3 <= high
    assert [row[0] for row in evaluation.category_table().rows] == ["x", "y"]
    read = Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict())))
    assert isinstance(read, ZeroShotEvaluation)
    assert read == evaluation


def test_a_blind_model_reaches_chance() -> None:
    same = torch.eye(8)[:1].expand(12, 8)
    evaluation = tally_of(same, [[(str(place), same[0])] for place in range(12)]).evaluation(FACTS)
    for way in evaluation.directions:
        assert way.recall == pytest.approx(way.chance)
        assert way.median_place == pytest.approx(6.5)


def test_better_epochs_have_more_recall() -> None:
    task = TASKS["zero_shot"]
    base = {f"{way}_{k}": 0.5 for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}
    assert task.quality(base | {"text_to_image_1": 0.6}) > task.quality(base)
    assert task.quality(base | {"category": 0.6}) > task.quality(base | {"category": 0.5})
