"""A run that is stopped, by whatever means, ends exactly where it would have ended."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saccade.config import to_dict
from saccade.data.source import open_data
from saccade.data.transforms import Augment, Mix
from saccade.engine.checkpoint import load_state
from saccade.engine.plan import TrainConfig
from saccade.engine.train import resume, train
from saccade.errors import DataError, RunError
from saccade.models.build import create

CONFIG = TrainConfig(
    epochs=3,
    batch_size=8,
    learning_rate=3e-3,
    ema_decay=0.9,
    checkpoint_steps=2,
    augment=Augment(shift=0.1, flip=0.5, erase=0.3),
    mix=Mix(mixup=0.4, label_smoothing=0.1),
)
NAME = "vit_swiglu_test"  # has drop path, so that the random state matters


def assert_same(first, second, path=""):
    if isinstance(first, Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    else:
        assert first == second, path


def assert_same_run(first: Path, second: Path):
    assert (first / "history.jsonl").read_bytes() == (second / "history.jsonl").read_bytes()
    assert_same(load_state(first / "last.ckpt"), load_state(second / "last.ckpt"))
    assert (first / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()
    assert (first / "best.safetensors").read_bytes() == (second / "best.safetensors").read_bytes()


@pytest.fixture
def straight(tmp_path, new_model, source):
    """The run that nobody stopped."""
    out = tmp_path / "straight"
    for _ in train(new_model(NAME), source, CONFIG, out=out, name=NAME):
        pass
    return out


@pytest.mark.parametrize("stop", [1, 5, 7, 13])
def test_leaving_the_loop_and_resuming_changes_nothing(tmp_path, new_model, source, straight, stop):
    out = tmp_path / "stopped"
    records = train(new_model(NAME), source, CONFIG, out=out, name=NAME)
    for record in records:
        if record.kind == "step" and record.step == stop:
            break
    records.close()
    rest = list(resume(out, source))
    assert rest[0].step == stop + 1 or rest[0].kind == "epoch"
    assert "resumed after step" in rest[0].notes[-1]
    assert_same_run(straight, out)


def test_ctrl_c_inside_a_step_waits_for_its_end(tmp_path, new_model, source, straight, monkeypatch):
    out = tmp_path / "stopped"
    model = new_model(NAME)
    original, calls = model.loss, []

    def interrupted_loss(outputs, targets):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(outputs, targets)

    monkeypatch.setattr(model, "loss", interrupted_loss)
    with pytest.raises(KeyboardInterrupt):
        for _ in train(model, source, CONFIG, out=out, name=NAME):
            pass
    assert load_state(out / "last.ckpt")["step"] == 4
    list(resume(out, source))
    assert_same_run(straight, out)


@pytest.mark.slow
def test_sigkill_at_a_random_step_changes_nothing(tmp_path, source, straight):
    out = tmp_path / "killed"
    child = [sys.executable, str(Path(__file__).with_name("child.py")), str(out), json.dumps(to_dict(CONFIG)), NAME]
    stop = int.from_bytes(os.urandom(2)) % 14 + 1
    with subprocess.Popen(child, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.split() == ["step", str(stop)]:
                process.kill()
        assert process.wait() == -signal.SIGKILL, f"stopped at {stop}"
    assert not (out / "metrics.json").exists()
    list(resume(out, source))
    assert_same_run(straight, out)


def test_same_seed_same_run_and_another_seed_another(tmp_path, new_model, source, straight):
    for _ in train(new_model(NAME), source, CONFIG, out=tmp_path / "again", name=NAME):
        pass
    assert_same_run(straight, tmp_path / "again")
    other = TrainConfig(**{**CONFIG.__dict__, "seed": 1})
    for _ in train(new_model(NAME), source, other, out=tmp_path / "other", name=NAME):
        pass
    assert (straight / "history.jsonl").read_bytes() != (tmp_path / "other" / "history.jsonl").read_bytes()


def test_resume_refuses_other_settings_other_data_and_nothing(tmp_path, new_model, source, dataset, straight):
    with pytest.raises(RunError, match="nothing to resume"):
        resume(straight, source)
    other = TrainConfig(**{**CONFIG.__dict__, "batch_size": 4})
    with pytest.raises(RunError, match="another train: batch_size was 8, is 4"):
        train(new_model(NAME), source, other, out=straight, resume=True)
    source.splits["train"].images[0] += 1
    with pytest.raises(RunError, match=r"another data: fingerprint\.train"):
        resume(straight, source)
    with pytest.raises(RunError, match="no such run folder"):
        resume(tmp_path / "nowhere", source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no run folder"):
        resume(tmp_path / "empty", source)
    (tmp_path / "empty" / "history.jsonl").touch()
    with pytest.raises(RunError, match="before its first checkpoint"):
        resume(tmp_path / "empty", source)


def test_a_shortened_history_is_told_and_stops_nothing(tmp_path, new_model, source):
    out = tmp_path / "run"
    records = train(new_model(NAME), source, CONFIG, out=out)
    for _ in range(3):
        next(records)
    records.close()
    content = (out / "history.jsonl").read_bytes()
    (out / "history.jsonl").write_bytes(content[:-9])
    first = next(iter(resume(out, source)))
    assert any("history.jsonl was shortened since the checkpoint" in note for note in first.notes)
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4], "the line that was cut is gone, the others are whole"


def test_data_that_was_moved(tmp_path, make_folders, monkeypatch):
    root = make_folders({"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2})
    monkeypatch.chdir(root.parent)
    config = TrainConfig(epochs=1, batch_size=4)
    model = create(NAME, classes=["a", "b"])
    records = train(model, open_data("data"), config, out=tmp_path / "run")
    next(records)
    records.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = resume(tmp_path / "run")
    assert "resumed after step 1 of 3" in next(again).notes
    again.close()
    root.rename(elsewhere / "moved")
    with pytest.raises(DataError, match=r"no such folder or file; .*give the DATA beside --resume"):
        resume(tmp_path / "run")
    assert [record.kind for record in resume(tmp_path / "run", "moved")] == ["step", "epoch"]
