"""Which epoch counts as the best, and what is written where a figure is not known."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.atomic import plain_json, write_json
from saccade.data.source import DataSource
from saccade.engine.checkpoint import read_container
from saccade.engine.plan import TrainConfig
from saccade.engine.run import RunFolder
from saccade.engine.session import Session
from saccade.engine.train import train
from saccade.errors import ConfigError, TrainingError


def strict_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


CONFIG = TrainConfig(epochs=3, batch_size=10, limit_steps=1, ema_decay=0.0)


Judged = Callable[[list[float]], tuple[list[bool], list[str], Path]]


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_model: Any, source: DataSource) -> Judged:
    """Which epochs of a training with these figures are the best so far, what is told, and the run folder."""

    def run(values: list[float]) -> tuple[list[bool], list[str], Path]:
        return _judged(tmp_path / "run", monkeypatch, new_model(), source, values)

    return run


def _judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: Any, source: DataSource, values: list[float]
) -> tuple[list[bool], list[str], Path]:
    waiting = iter(values)
    monkeypatch.setattr(Session, "validate", lambda self: {"raw": {"top1": (x := next(waiting)), "nll": x}})
    monkeypatch.setattr(
        "saccade.tasks.classification.ClassificationTask.quality", lambda self, metrics: (metrics["top1"],)
    )
    records = [r for r in train(model, source, CONFIG, out=folder) if r.kind == "epoch"]
    return [r.is_best for r in records], [note for r in records for note in r.notes], folder


def test_a_known_figure_is_better_than_none(judged: Judged) -> None:
    best, notes, folder = judged([math.nan, 0.25, math.nan])
    assert best == [True, True, False]
    assert any("top1 is not known on the validation pictures: the latest epoch counts" in note for note in notes)
    lines = [strict_json(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[1]["metrics"]["top1"] is None


def test_of_figures_that_nobody_knows_the_latest_epoch_counts(judged: Judged) -> None:
    best, _, folder = judged([math.nan] * 3)
    assert best == [True] * 3
    metrics = strict_json((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["epoch"], metrics["metrics"]["top1"]) == (3, None)
    header = (folder / "best.safetensors").read_bytes()[:200_000]
    assert b"NaN" not in header


def test_json_knows_no_nan(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": [math.nan, (1, math.inf)], "b": {"c": 0.5, "d": None}})
    assert strict_json(path.read_text(encoding="utf-8")) == {"a": [None, [1, None]], "b": {"c": 0.5, "d": None}}
    assert plain_json({"a": True, "b": "NaN"}) == {"a": True, "b": "NaN"}
    folder = RunFolder(tmp_path)
    folder.append_history({"grad_norm": math.nan})
    assert strict_json(folder.history.read_text(encoding="utf-8")) == {"grad_norm": None}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_batch_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_model: Any, source: DataSource, error: Exception
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Session, "_backward", full)
    with pytest.raises(TrainingError, match=r"too small for 10 pictures at once; .*smaller --batch-size \(now 10\)"):
        list(train(new_model(), source, CONFIG, out=tmp_path / "run"))


def test_a_board_that_is_not_there_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_model: Any, source: DataSource
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="TensorBoard is not installed"):
        train(new_model(), source, TrainConfig(epochs=1, tensorboard=True), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_batch_that_broke_the_gradient_is_kept_with_its_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_model: Any, source: DataSource
) -> None:
    monkeypatch.setattr("lightning_fabric.Fabric.clip_gradients", lambda *_, **__: torch.tensor(math.inf))
    config = TrainConfig(epochs=1, batch_size=5, accumulate=3)
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        list(train(new_model(), source, config, out=tmp_path / "run"))
    _, header = read_container(tmp_path / "run" / "failure.safetensors", "batch")
    assert header["seeds"] == [config.seed, 0, 2, 0], "seed, step, place of the batch in the step, process"
