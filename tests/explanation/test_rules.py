"""The rules of the verdict on figures written by hand: each line is met from both sides."""

from __future__ import annotations

import pytest

from saccade.explanation.rules import Lines, has_learned, rule

LINES = Lines()
FINE = {
    "structure": 20.0,
    "response_ratio": 8.0,
    "score_range": 2.0,
    "deletion": 0.4,
    "insertion": 1.6,
    "deletion_random": 1.0,
    "advantage": 0.6,
    "advantage_chance": 0.1,
    "advantage_centre": 0.2,
    "similarity": 0.1,
    "similarity_abs": 0.2,
    "evenness": 0.0,
    "negative_share": 0.1,
}


def status(**changed: float | None) -> str:
    return ruling(**changed)[0]


def ruling(*, is_class_agnostic: bool = False, **changed: float | None) -> tuple[str, tuple[str, ...]]:
    figures = {name: value for name, value in {**FINE, **changed}.items() if value is not None}
    return rule(figures, LINES, is_class_agnostic=is_class_agnostic)


def test_good_figures_are_supported() -> None:
    found, reasons = ruling()
    assert found == "supported"
    assert reasons == ("hiding what it points at moves the score 0.60 of its range more than chance",)


@pytest.mark.parametrize(
    ("changed", "expected", "words"),
    [
        ({"structure": LINES.min_structure - 0.1}, "failed", "look like random numbers"),
        ({"structure": LINES.min_structure}, "supported", "points at"),
        # Where the weights tell, the answer does not.
        ({"structure": 0.0, "response_ratio": 50.0}, "failed", "look like random numbers"),
        ({"structure": 20.0, "response_ratio": 0.5}, "supported", "points at"),
        ({"structure": None, "response_ratio": LINES.min_response - 0.1}, "failed", "2.9 times as strongly"),
        ({"structure": None, "response_ratio": LINES.min_response}, "supported", "points at"),
        ({"structure": None, "response_ratio": None}, "supported", "points at"),
        ({"advantage": LINES.min_over_chance * 0.1 - 0.01}, "failed", "no more than hiding at random"),
        ({"advantage": LINES.min_over_chance * 0.1 + 0.01}, "weak", "only 0.06 of the range"),
        ({"advantage": LINES.weak_advantage - 0.01, "advantage_chance": 0.0}, "weak", "only 0.09 of the range"),
        ({"advantage": LINES.weak_over_chance * 0.1 - 0.01}, "weak", "random orders get 0.10 either way"),
        ({"advantage": LINES.weak_over_chance * 0.1 + 0.01}, "supported", "points at"),
        ({"advantage": 0.0, "advantage_chance": 0.0}, "failed", "no more than hiding at random"),
        ({"advantage": 0.09, "advantage_region": 0.5}, "failed", "merely pointing at the region gets 0.50"),
        ({"advantage": 0.21, "advantage_region": 0.5}, "supported", "points at"),
        ({"score_range": 0.0}, "failed", "the same whatever is hidden"),
        ({"similarity": LINES.max_similarity + 0.01}, "failed", "stays the same when the weights are shuffled"),
        ({"similarity_abs": LINES.max_similarity + 0.01}, "failed", "stays the same when the weights are shuffled"),
        ({"similarity": LINES.weak_similarity + 0.01}, "weak", "much like that of shuffled weights"),
        ({"similarity": None, "similarity_abs": None}, "supported", "points at"),
        ({"similarity_late": 0.9, "similarity_late_gradient": 0.84}, "failed", "later half of the weights"),
        # The gradient stays as alike: what the score depends on has not changed much.
        ({"similarity_late": 0.9, "similarity_late_gradient": 0.86}, "supported", "points at"),
        (
            {"similarity_late": LINES.max_late + 0.01, "similarity_late_gradient": 0.1},
            "failed",
            "of the plain gradient",
        ),
        ({"similarity_late": LINES.max_late - 0.01, "similarity_late_gradient": 0.1}, "supported", "points at"),
        ({"similarity_late": None, "similarity_late_gradient": None}, "supported", "points at"),
        ({"error": LINES.weak_error + 0.01}, "weak", "own error is 51% of the map"),
        ({"error": LINES.weak_error}, "supported", "points at"),
        ({"error": float("inf")}, "weak", "cannot tell its own error"),
        ({"advantage": float("nan")}, "failed", "not a number"),
        ({"score_range": float("nan")}, "failed", "not a number"),
        ({"deletion": float("nan")}, "failed", "not a number"),
        ({"insertion": float("inf")}, "failed", "not a number"),
        ({"similarity": float("nan"), "similarity_abs": 0.95}, "failed", "stays the same"),
        ({"advantage_centre": 0.6 + LINES.centre_margin + 0.01}, "weak", "a blob at the centre"),
    ],
)
def test_every_line_from_both_sides(changed: dict[str, float | None], expected: str, words: str) -> None:
    found, reasons = ruling(**changed)
    assert found == expected
    assert words in reasons[0]


def test_a_method_that_ignores_the_question_is_weak_at_best() -> None:
    found, reasons = ruling(is_class_agnostic=True)
    assert found == "weak"
    assert "ignores what was asked" in reasons[0]
    assert ruling(is_class_agnostic=True, structure=0.0)[0] == "failed"


def test_the_gravest_reason_comes_first_and_none_is_lost() -> None:
    found, reasons = ruling(structure=0.0, similarity=0.95, error=0.9, is_class_agnostic=True)
    assert found == "failed"
    assert [
        word in reason for word, reason in zip(("random", "shuffled", "ignores", "rank", "error"), reasons, strict=True)
    ] == [True] * 5


def test_remarks_change_no_status() -> None:
    found, reasons = ruling(evenness=0.9, advantage_region=0.7, advantage_centre=0.65)
    assert found == "supported"
    assert "almost even" in reasons[1]
    assert "pointing at the region itself" in reasons[2]
    assert "would have found it too" in reasons[3]


def test_what_was_not_measured_speaks_for_the_model() -> None:
    assert has_learned({}, LINES)
    assert not has_learned({"structure": 0.0, "response_ratio": 100.0}, LINES)
