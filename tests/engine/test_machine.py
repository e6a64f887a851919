"""Where a model computes: the names of devices, and what is said of one that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import saccade
from saccade.engine.machine import find_device
from saccade.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine that says it has so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("gpus", "wanted", "found"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "auto", "cuda"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
        (2, torch.device("cuda", 1), "cuda:1"),
    ],
    indirect=["gpus"],
)
def test_a_device_is_found_by_its_name(wanted: str, found: str) -> None:
    assert find_device(wanted) == torch.device(found)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("gpus", "wanted", "told"),
    [
        (0, "cuda", "device: there is no CUDA device; use auto or cpu"),
        (0, "cuda:0", "device: there is no CUDA device"),
        (1, "cuda:1", "device: there is no device cuda:1; expected cuda:0"),
        (3, "cuda:3", "device: there is no device cuda:3; expected cuda:0 to cuda:2"),
        (1, "gpu", "device: 'gpu' is no device; expected auto, cpu, cuda or cuda:N"),
        (1, "cuda:", "device: 'cuda:' is no device"),
        (1, "cuda:-1", "device: 'cuda:-1' is no device"),
        (1, "", "device: '' is no device"),
    ],
    indirect=["gpus"],
)
def test_a_device_that_is_not_there_is_told(wanted: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}"):
        find_device(wanted)


def test_a_wrong_device_is_told_before_the_file_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'tpu' is no device"):
        saccade.load(tmp_path / "nowhere", device="tpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_verbs_compute_on_the_gpu_and_answer_on_the_cpu(trained: Path, colours: Path) -> None:
    model = saccade.load(trained)
    assert next(model.parameters()).is_cuda
    assert next(saccade.load(trained, device="cpu").parameters()).device.type == "cpu"
    picture = colours / "val" / "red" / "0.png"
    assert saccade.predict(model, picture)[0].scores.device.type == "cpu"  # type: ignore[union-attr]
    assert saccade.explain(model, picture).map.device.type == "cpu"
    assert saccade.evaluate(model, colours).settings["device"].startswith("cuda")
