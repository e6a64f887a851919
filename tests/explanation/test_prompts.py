"""Prompts as questions, and the sentence where a map does not depend on the one that was asked."""

from __future__ import annotations

import pytest
import torch

import saccade
from saccade.errors import InputError
from saccade.explanation.explain import ExplainOptions, explain_batch
from saccade.explanation.prompts import NEUTRAL, correlated, prompts_of
from saccade.explanation.scores import class_score
from saccade.models.zero_shot import ZeroShotClassifier
from saccade.types import Classes

PICTURE = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier() -> ZeroShotClassifier:
    torch.manual_seed(0)
    model = saccade.create("zero_shot_test", num_classes=3)
    assert isinstance(model, ZeroShotClassifier)
    model.classes = Classes(("a dog", "a hound", "no dog"))
    return model.eval()


def notes_of(model: ZeroShotClassifier, of: str, against: str | None = None, method: str = "hirescam") -> str:
    options = ExplainOptions(method=method, against=against, verdict=False)
    return " ".join(explain_batch(model, [PICTURE], [of], options)[0][0].notes)


def place(model: ZeroShotClassifier, *, cosine: float) -> None:
    """The second prompt equals the first, the third has this cosine with both."""
    first = torch.zeros(model.weight.shape[1])
    first[0] = 1
    third = torch.zeros_like(first)
    third[0], third[1] = cosine, (1 - cosine**2) ** 0.5
    model.weight.copy_(torch.stack([first, first, third]))


def test_correlation_is_pearsons() -> None:
    first = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert correlated(first, 5 + 2 * first) == pytest.approx(1.0)
    assert correlated(first, -first) == pytest.approx(-1.0)
    assert correlated(first, torch.tensor([[1.0, -1.0], [-1.0, 1.0]])) == pytest.approx(0.0, abs=1e-12)
    assert correlated(first, torch.full((2, 2), 7.0)) is None


def test_words_become_classes() -> None:
    assert prompts_of(["a dog", "a cat", "a dog"], "a cow") == ("a dog", "a cat", "a cow")
    assert prompts_of(["a dog"], None) == ("a dog", NEUTRAL)
    assert prompts_of([None], None) is None
    assert prompts_of(["a dog", 3], None) is None


def test_the_same_map_for_another_prompt_is_told(classifier: ZeroShotClassifier) -> None:
    place(classifier, cosine=1.0)
    assert "hardly depends on the prompt" in notes_of(classifier, "a dog")
    # Asked against a prompt of the same meaning, the two maps alone are compared.
    place(classifier, cosine=-1.0)
    assert "'a hound'" in notes_of(classifier, "a dog", "a hound")


def test_another_map_for_another_prompt_is_not(classifier: ZeroShotClassifier) -> None:
    place(classifier, cosine=-1.0)
    assert notes_of(classifier, "a dog") == ""
    assert notes_of(classifier, "a dog", "no dog") == ""


def test_a_word_for_the_same_thing_is_not_what_it_is_checked_with(classifier: ZeroShotClassifier) -> None:
    """Maps of two words for one thing ought to be alike, so the prompt that is least alike is taken."""
    place(classifier, cosine=-1.0)
    assert notes_of(classifier, "a hound") == ""


@pytest.mark.parametrize("method", ["rise", "relevance"])
def test_other_methods_are_checked_as_well(classifier: ZeroShotClassifier, method: str) -> None:
    place(classifier, cosine=1.0)
    assert f"correlation {1:.2f}" in notes_of(classifier, "a dog", method=method)


def test_a_plain_classifier_is_not_asked_in_words() -> None:
    model = saccade.create("vit_average_test", num_classes=3)
    assert saccade.explain(model, PICTURE, of=0, method="hirescam", verdict=False).notes == ()


def test_any_words_can_be_asked_of_a_model_of_words() -> None:
    torch.manual_seed(0)
    model = saccade.create("clip_test")
    heat = saccade.explain(model, PICTURE, of="a red square", against="a blue square", verdict=False)
    assert heat.of == "a red square rather than a blue square"
    assert heat.map.shape == (32, 32)
    texts = model.encode_text(["a red square", "a blue square"])
    images = model.preprocess([PICTURE])
    with torch.no_grad():
        cosines = model.eval().encode_images(images) @ texts.T
        expected = float((cosines[0, 0] - cosines[0, 1]) * model.scale())
    assert heat.score == pytest.approx(expected, abs=1e-4)


def test_without_words_a_model_of_words_has_nothing_to_explain() -> None:
    with pytest.raises(InputError, match="no classes of its own"):
        saccade.explain(saccade.create("clip_test"), PICTURE)


def test_a_score_of_ones_own_is_about_no_prompt(classifier: ZeroShotClassifier) -> None:
    own = saccade.explain(classifier, PICTURE, of=class_score(1), verdict=False)
    asked = saccade.explain(classifier, PICTURE, of=1, verdict=False)
    torch.testing.assert_close(own.map, asked.map)  # the last bits depend on where numbers lie in memory
    assert not own.notes
