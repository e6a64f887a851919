"""What people read while a training runs."""

import io

import pytest
from rich.console import Console

from saccade.console import bold, new_console, show_training, table
from saccade.engine.plan import StepRecord


def test_the_line_of_an_epoch_names_the_first_known_figures_only() -> None:
    """COCO's twelve do not fit a line, and of sizes that no picture has there is nothing to tell."""
    figures = {"ap": 0.5, "ap50": 0.75, "ap_small": float("nan"), "a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    record = StepRecord(
        "epoch", 3, 30, 100, {}, 1.25, 1e-3, metrics=figures, is_best=True, images_per_second=12.0, seconds_left=0.0
    )
    stream = io.StringIO()
    show_training([record], Console(file=stream, width=200))
    told = stream.getvalue().split()
    assert told[:2] == ["epoch", "3:"]
    assert "0.7500" in told
    assert {"ap_small", "nan", "d"}.isdisjoint(told)
    assert "best" in told


def test_square_brackets_in_names_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    console = new_console()
    console.print(table(["class", "share"], [["dog [small]", 1], ["[/b]", 2]]))
    console.print("note: a class '[red]' :dog:")
    console.print(bold("[bold]"), ": COCO", sep="")
    told = capsys.readouterr().out
    for words in ("dog [small]", "[/b]", "'[red]' :dog:", "[bold]: COCO"):
        assert words in told
