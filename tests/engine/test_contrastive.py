"""The gradient of a contrastive loss by parts is that of the whole batch, in one process and in two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from saccade.data.loader import Loader, LoaderConfig
from saccade.engine.checkpoint import load_model
from saccade.engine.contrastive import ContrastivePass, still_statistics
from saccade.engine.evaluate import evaluate
from saccade.engine.failure import seed_step
from saccade.engine.plan import TrainConfig
from saccade.engine.train import train
from saccade.errors import ConfigError

SETTINGS = {"epochs": 2, "optimizer": "sgd", "learning_rate": 0.5, "warmup": 0.0, "device": "cpu", "precision": "32"}
SETTINGS |= {"ema_decay": 0.0, "clip_norm": 0.0, "weight_decay": 0.0}


@pytest.fixture
def batch(captions, new_clip):
    loader = Loader(captions.split("train"), new_clip().preprocess, LoaderConfig(batch_size=10), shuffle=True)
    return next(loader.epoch(0))


def gradients(model, batch, chunk, seeds=(0, 0)):
    fabric = Fabric(accelerator="cpu", devices=1)
    module = fabric.setup_module(model)
    work = ContrastivePass(
        fabric,
        module,
        lambda part: model(part.images, part.targets),
        model,
        batch,
        chunk=chunk,
        seeds=seeds,
    )
    work.backward(1.0)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found, work.losses


@pytest.mark.parametrize(("name", "chunk"), [("clip_test", 0), ("clip_test", 1), ("clip_test", 4), ("siglip_test", 3)])
def test_the_gradient_by_parts_is_that_of_the_whole(new_clip, batch, name, chunk) -> None:
    model = new_clip(name)
    model.loss(model(batch.images, batch.targets), batch.targets).total.backward()
    whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    parts, losses = gradients(model, batch, chunk)
    for name, gradient in whole.items():
        # Sums in another order: rounding, as a share of the largest entry.
        close = 1e-5 * float(gradient.abs().max()) + 1e-7
        torch.testing.assert_close(
            parts[name], gradient, atol=close, rtol=1e-4, msg=lambda told, name=name: f"{name}: {told}"
        )
        assert gradient.abs().max() > 0
    assert losses.total.item() == pytest.approx(
        model.loss(model(batch.images, batch.targets), batch.targets).total.item(), rel=1e-6
    )


def test_both_passes_draw_the_same_layers_to_drop(new_clip, batch) -> None:
    model = new_clip(overrides=("backbone.drop_path=0.5",)).train()
    found, _ = gradients(model, batch, 4, seeds=(7, 3))
    outputs = []
    for number, start in enumerate(range(0, 10, 4)):
        seed_step(7, 3, number)
        images = type(batch.images)(
            batch.images.pixels[start : start + 4],
            batch.images.sizes[start : start + 4],
            batch.images.geometries[start : start + 4],
        )
        outputs.append(model(images, batch.targets[start : start + 4]))
    image, text = torch.cat([o.image for o in outputs]), torch.cat([o.text for o in outputs])
    model.loss(outputs[0]._replace(image=image, text=text), batch.targets).total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-7, rtol=1e-5, msg=name)


def test_running_statistics_move_once(new_clip, batch) -> None:
    cached, plain = new_clip("clip_cnn_test").train(), new_clip("clip_cnn_test").train()
    gradients(cached, batch, 5)
    for start in (0, 5):
        rows = slice(start, start + 5)
        images = type(batch.images)(batch.images.pixels[rows], batch.images.sizes[rows], batch.images.geometries[rows])
        plain(images, batch.targets[rows])
    theirs = plain.state_dict()
    moved = {
        name for name, value in new_clip("clip_cnn_test").state_dict().items() if not torch.equal(value, theirs[name])
    }
    assert any(name.endswith("running_mean") for name in moved)
    assert any(name.endswith("num_batches_tracked") for name in moved)
    for name, value in cached.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    momenta = [module.momentum for module in plain.modules() if hasattr(module, "momentum")]
    with pytest.raises(RuntimeError), still_statistics(cached):
        raise RuntimeError
    assert [module.momentum for module in cached.modules() if hasattr(module, "momentum")] == momenta


def test_a_training_by_parts_gives_the_same_weights(tmp_path, new_clip, captions) -> None:
    results = []
    for chunk in (0, 5):
        model = new_clip()
        for _ in train(model, captions, TrainConfig(**SETTINGS, batch_size=12, chunk=chunk), out=tmp_path / str(chunk)):
            pass
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert not torch.equal(results[0]["text.tokens.weight"], new_clip().state_dict()["text.tokens.weight"])
    metrics = json.loads((tmp_path / "5" / "metrics.json").read_text())
    assert metrics["headline"] == "text_to_image_10"


def test_parts_are_for_texts(tmp_path, new_model, source) -> None:
    with pytest.raises(ConfigError, match="chunk is for models of pictures and texts"):
        train(new_model(), source, TrainConfig(**SETTINGS, chunk=4), out=tmp_path / "run")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 2])
def test_two_processes_see_the_texts_of_both(tmp_path, new_clip, captions, chunk) -> None:
    settings = json.dumps({**SETTINGS, "batch_size": 4, "chunk": chunk})
    command = [sys.executable, str(Path(__file__).with_name("child.py")), str(tmp_path / "two"), settings, "clip_test"]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
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
    first, second = (torch.load(f"{tmp_path / 'two'}.rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())

    alone = new_clip()
    for _ in train(alone, captions, TrainConfig(**SETTINGS, batch_size=8), out=tmp_path / "one"):
        pass
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(first[key], value, atol=1e-5, rtol=1e-4, msg=key)
    lines = [(tmp_path / run / "history.jsonl").read_text().splitlines() for run in ("one", "two")]
    for one, two in zip(*lines, strict=True):
        assert json.loads(two)["total"] == pytest.approx(json.loads(one)["total"], rel=1e-3)


@pytest.mark.parametrize("chunk", [0, 5])
def test_cached_features_of_a_frozen_tower_teach_the_words(tmp_path, captions, new_clip, chunk) -> None:
    model, start = new_clip("clip_words_test"), new_clip("clip_words_test").state_dict()
    settings = {"freeze": ("backbone",), "epochs": 30, "batch_size": 12, "learning_rate": 0.02, "ema_decay": 0.0}
    config = TrainConfig(**settings, chunk=chunk, device="cpu", precision="32")
    records = list(train(model, captions, config, out=tmp_path / "run"))
    assert any("computed once" in note for note in records[0].notes)
    for name, value in model.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(value, start[name]), name
    losses = [record.total for record in records if record.kind == "epoch"]
    assert losses[-1] < 0.8 * losses[0]
    # Measured on cached vectors while training, on pictures now.
    best = load_model(tmp_path / "run" / "best.safetensors")
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    evaluation = evaluate(best, captions.splits["val"])
    assert evaluation.metrics["text_to_image_5"] == pytest.approx(measured["text_to_image_5"])
