"""Two processes train as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saccade.engine.plan import TrainConfig
from saccade.engine.train import train

SETTINGS = {
    "epochs": 2,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "ema_decay": 0.5,
    "device": "cpu",
    "precision": "32",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_agree_and_equal_one_of_twice_the_batch(tmp_path, new_model, source):
    name, port, out = "vit_average_test", str(free_port()), tmp_path / "two"
    command = [sys.executable, str(Path(__file__).with_name("child.py")), str(out)]
    command += [json.dumps({**SETTINGS, "batch_size": 4}), name]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    children = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [child.communicate(timeout=200) for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    assert told[0][0] == told[1][0]
    first, second = (torch.load(f"{out}.rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())

    alone = new_model(name)
    for _ in train(alone, source, TrainConfig(**SETTINGS, batch_size=8), out=tmp_path / "one", name=name):
        pass
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(first[key], value, atol=1e-5, rtol=1e-4, msg=key)
    lines = [(tmp_path / run / "history.jsonl").read_text().splitlines() for run in ("one", "two")]
    assert len(lines[0]) == len(lines[1])
    for one, two in zip(*lines, strict=True):
        assert json.loads(two)["total"] == pytest.approx(json.loads(one)["total"], rel=1e-3)
