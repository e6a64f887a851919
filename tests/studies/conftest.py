"""A study of nothing in particular, whose measurements are made up or are trainings of two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from saccade.studies.base import Arm, Column, Measured, Plot, Results, Shot, Study
from saccade.studies.intervals import Finding, more
from saccade.studies.trial import Trial

StudyMaker = Callable[..., Study]
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)
"""A PNG of one black pixel."""


def made_up(trial: Trial) -> Measured:
    """Numbers that depend on arm and seed alone."""
    base = {"good": 0.9, "bad": 0.5}[trial.name]
    return Measured(
        figures={"accuracy": base + 0.01 * trial.seed, "undefined": float("nan")},
        series={"loss": ([1, 2, 3], [3.0, 2.0, base])},
        shots=[Shot(png=PIXEL, caption="a black pixel")] if trial.draws else [],
    )


def better(results: Results) -> Sequence[Finding]:
    """Good is better than bad."""
    return [more("good is better than bad", results.values("good", "accuracy"), results.values("bad", "accuracy"))]


@pytest.fixture
def make_study() -> StudyMaker:
    """``make_study(measure=..., spend=...)`` -> a study of two arms, with other fields changed."""

    def make(**fields: Any) -> Study:
        standard: dict[str, Any] = {
            "name": "fake",
            "claim": "Good is better than bad",
            "place": "nowhere",
            "method": "Numbers are made up. Refuted if bad is as good.",
            "arms": {name: Arm(model="vit_average_test", train={"batch_size": 8}) for name in ("good", "bad")},
            "measure": made_up,
            "judge": better,
            "columns": (
                Column(key="accuracy", heading="accuracy of it", form="percent", is_drawn=True),
                Column(key="undefined", heading="nothing"),
            ),
            "plots": (Plot(series="loss", title="How it went", across="step", up="loss"),),
            "source": __file__,
        }
        return Study(**{**standard, **fields})

    return make
