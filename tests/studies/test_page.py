"""The page of the studies says everything that was found."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from saccade.errors import InputError
from saccade.render.intervals import Spread, bands, dots
from saccade.studies.base import QUICK, Study
from saccade.studies.harness import run_study
from saccade.studies.page import command, figures_table, write_studies

StudyMaker = Callable[..., Study]


def test_the_page_tells_claim_verdict_findings_figures_and_the_command(make_study: StudyMaker, tmp_path: Path) -> None:
    reports = [run_study(make_study(name=name), QUICK, tmp_path) for name in ("first", "second")]
    text = write_studies(tmp_path / "studies.html", reports).read_text(encoding="utf-8")
    for said in (
        "Good is better than bad",
        "nowhere",
        "Refuted if bad is as good",
        "● holds",
        "good is better than bad",
        "+40.0 %",
        "accuracy of it",
        "91.0 % (88.4 % to 93.3 %)",
        "saccade study first --quick",
        "saccade study second --quick",
        'href="#first"',
        'id="second"',
        "a black pixel",
        "How it went",
    ):
        assert said in text, said
    assert len(re.findall(r'<img class="plot" src="data:image/png', text)) == 2 * 4  # dots, bands, a picture per arm
    assert "http" not in re.sub(r"data:[^\"]*", "", text)


def test_a_page_of_one_study_has_no_contents(make_study: StudyMaker, tmp_path: Path) -> None:
    text = write_studies(tmp_path / "one.html", [run_study(make_study(), QUICK, tmp_path)]).read_text(encoding="utf-8")
    assert "<nav" not in text
    assert "The study fake" in text


def test_advice_is_shown(make_study: StudyMaker, tmp_path: Path) -> None:
    study = make_study(advice=lambda results: ["Choose good."])
    text = write_studies(tmp_path / "one.html", [run_study(study, QUICK, tmp_path)]).read_text(encoding="utf-8")
    assert "Choose good." in text


def test_undefined_figures_are_dashes(make_study: StudyMaker, tmp_path: Path) -> None:
    report = run_study(make_study(command="ladder my/pets"), QUICK, tmp_path)
    assert figures_table(report).rows[0][2] == "–"
    assert command(report) == "saccade study ladder my/pets --quick"


def test_charts_refuse_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        dots({})
    with pytest.raises(InputError, match="uneven"):
        bands({"a": ([1.0, 2.0], [Spread([1.0], 1.0, 0.5, 1.5)])})


def test_charts_draw_every_value() -> None:
    figure = dots({"a": Spread([1.0, 2.0, float("nan")], 1.5, 1.0, 2.0), "b": Spread([3.0], 3.0, -float("inf"), 3.0)})
    points = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in points] == [[1.0, 2.0], [3.0]]
