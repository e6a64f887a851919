"""Training: it learns, it obeys its config, and it refuses what it cannot do."""

import json
import math

import pytest
import torch

from saccade.data.dataset import ArrayDataset
from saccade.data.source import DataSource
from saccade.data.transforms import Augment
from saccade.engine.checkpoint import load_model, load_state, read_header
from saccade.engine.evaluate import evaluate
from saccade.engine.failure import replay
from saccade.engine.feed import training_splits
from saccade.engine.machine import MIN_BFLOAT16_WIDTH, choose_precision, matrix_width
from saccade.engine.optim import schedule
from saccade.engine.plan import TrainConfig
from saccade.engine.session import dead_experts
from saccade.engine.train import train
from saccade.errors import ConfigError, DataError, ImageError, RunError, TrainingError, UnknownNameError
from saccade.types import Classes, Losses


def run(model, source, out, **settings):
    # Figures are held against each other to the last digits, on machines with bfloat16 hardware too.
    defaults = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "ema_decay": 0.0, "precision": "32"}
    return list(train(model, source, TrainConfig(**{**defaults, **settings}), out=out))


def test_it_learns_and_the_best_file_holds_what_was_measured(tmp_path, model, source):
    records = run(model, source, tmp_path / "run", epochs=5, ema_decay=0.8)
    steps = [record for record in records if record.kind == "step"]
    epochs = [record for record in records if record.kind == "epoch"]
    assert steps[-1].total < 0.5 * steps[0].total
    assert len(steps) == 25
    assert [record.epoch for record in epochs] == [1, 2, 3, 4, 5]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["metrics"]["top1"] == max(record.metrics["top1"] for record in epochs) == 1.0
    best = load_model(tmp_path / "run" / "best.safetensors")
    assert best.classes == source.classes
    evaluation = evaluate(best, source.splits["val"])
    assert evaluation.metrics["nll"] == pytest.approx(metrics["metrics"]["nll"], rel=1e-5)
    assert read_header(tmp_path / "run" / "best.safetensors").licences == {"data": "CC0"}


def test_records_tell_progress_rate_and_time(tmp_path, model, source):
    records = run(model, source, tmp_path / "run", warmup=0.2, floor=0.1)
    steps = [record for record in records if record.kind == "step"]
    for place, record in enumerate(steps):
        assert record.learning_rate == pytest.approx(3e-3 * schedule((place + 0.5) / 10, 0.2, 0.1))
        assert record.progress == (place + 1) / 10
        assert record.grad_norm > 0
    assert steps[3].images_per_second > 0
    assert steps[3].seconds_left > 0
    assert records[-1].seconds_left == 0
    assert any(note.startswith("precision: ") for note in records[0].notes)
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["total"] for line in lines] == [record.total for record in records]
    assert lines[-1]["metrics"] == dict(records[-1].metrics)


def test_run_folder_describes_model_data_and_machine(tmp_path, model, source):
    run(model, source, tmp_path / "run", epochs=1)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["model"]["architecture"] == "ClassifierConfig"
    assert settings["model"]["classes"] == list(source.classes)
    assert settings["train"]["batch_size"] == 8
    assert settings["data"]["fingerprint"] == source.fingerprint()
    machine = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert machine["packages"]["torch"] == torch.__version__.partition("+")[0] or machine["packages"]["torch"]
    assert machine["seed"] == 0
    assert not list((tmp_path / "run").glob(".*"))


def test_two_batches_of_four_are_one_batch_of_eight(tmp_path, new_model, source):
    run(whole := new_model(), source, tmp_path / "whole", epochs=1, optimizer="sgd", learning_rate=0.1)
    halves = new_model()
    run(halves, source, tmp_path / "halves", epochs=1, optimizer="sgd", learning_rate=0.1, batch_size=4, accumulate=2)
    moved = max(
        float((a - b).abs().max().detach()) for a, b in zip(whole.parameters(), new_model().parameters(), strict=True)
    )
    assert moved > 1e-2
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)


def test_an_uneven_last_step_weighs_pictures_equally(tmp_path, new_model, dataset):
    source = DataSource({"train": dataset(10), "val": dataset(5, 1)}, dataset(5).classes, "colours", "colours")
    run(whole := new_model(), source, tmp_path / "whole", epochs=1, optimizer="sgd", batch_size=10)
    run(parts := new_model(), source, tmp_path / "parts", epochs=1, optimizer="sgd", batch_size=4, accumulate=3)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)


def test_clipping_bounds_the_step(tmp_path, new_model, source):
    start = [parameter.detach().clone() for parameter in new_model().parameters()]
    model = new_model()
    settings = {"epochs": 1, "limit_steps": 1, "optimizer": "sgd", "weight_decay": 0.0, "warmup": 0.0, "floor": 0.99}
    record = run(model, source, tmp_path / "run", clip_norm=0.01, learning_rate=1.0, **settings)[0]
    moved = math.sqrt(
        sum(float((a - b).detach().square().sum()) for a, b in zip(model.parameters(), start, strict=True))
    )
    assert record.grad_norm > 0.01
    # Nesterov's first step is (1 + momentum) times the clipped gradient.
    assert moved == pytest.approx(0.01 * 1.9 * record.learning_rate, rel=1e-3)


def test_early_stop(tmp_path, model, source):
    records = run(model, source, tmp_path / "run", epochs=30, patience=2, learning_rate=1e-12)
    epochs = [record for record in records if record.kind == "epoch"]
    assert len(epochs) < 30
    assert [record.is_best for record in epochs[-2:]] == [False, False]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["stopped_early"] is True


def test_a_non_finite_loss_stops_and_keeps_its_batch(tmp_path, model, source, monkeypatch):
    original, calls = model.loss, []

    def loss(outputs, targets):
        calls.append([int(target.label) for target in targets])
        losses = original(outputs, targets)
        return Losses({"broken": losses.total * (math.nan if len(calls) == 3 else 1.0)})

    monkeypatch.setattr(model, "loss", loss)
    with pytest.raises(TrainingError, match=r"loss is not finite.*step 3, epoch 1.*replay") as caught:
        run(model, source, tmp_path / "run", epochs=1)
    path = tmp_path / "run" / "failure.safetensors"
    assert str(path) in str(caught.value)
    losses = replay(path)
    # The replay has the weights and the batch of that step: without the planted NaN it is an ordinary loss.
    assert math.isfinite(float(losses.total.detach()))
    assert set(losses.terms) == {"cross_entropy"}


def test_weights_blown_up_by_the_rate_are_caught_and_replay(tmp_path, model, source):
    with pytest.raises(TrainingError, match="not finite"):
        run(model, source, tmp_path / "run", learning_rate=1e30, optimizer="sgd", clip_norm=0.0, epochs=8)
    assert not math.isfinite(float(replay(tmp_path / "run" / "failure.safetensors").total.detach()))


def test_an_existing_folder_is_refused_and_left_alone(tmp_path, model, source):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(RunError, match=r"exists already; choose another --out, or .*--resume"):
        train(model, source, TrainConfig(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_an_unwritable_folder_is_refused(tmp_path, model, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        train(model, source, TrainConfig(), out=tmp_path / "file" / "run")


def test_a_wrong_config_makes_no_folder(tmp_path, model, source):
    with pytest.raises(UnknownNameError, match="did you mean 'backbone'"):
        train(model, source, TrainConfig(freeze=("bakbone",)), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"epochs": 0}, "epochs"), ({"learning_rate": -1.0}, "learning_rate"), ({"ema_decay": 1.0}, "ema_decay")],
)
def test_values_out_of_range_are_named(settings, field):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**settings)
    assert caught.value.where == field


def test_frozen_parts_do_not_move(tmp_path, new_model, source):
    model, start = new_model("resnet_test"), new_model("resnet_test").state_dict()
    settings = {"freeze": ("backbone",), "epochs": 1, "learning_rate": 0.1}
    run(model, source, tmp_path / "run", augment=Augment(flip=0.5), **settings)
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]) == name.startswith("backbone."), name
    assert not model.backbone.training


def test_cached_features_learn_what_the_frozen_model_learns(tmp_path, new_model, source):
    model, start = new_model(), new_model().state_dict()
    settings = {"freeze": ("backbone",), "epochs": 8, "learning_rate": 0.05, "batch_size": 8}
    records = run(model, source, tmp_path / "run", ema_decay=0.8, **settings)
    assert any("computed once" in note for note in records[0].notes)
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]) == name.startswith("backbone."), name
    best = load_model(tmp_path / "run" / "best.safetensors")
    evaluation = evaluate(best, source.splits["val"])
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    # Measured on cached vectors while training, on pictures now.
    assert evaluation.metrics["nll"] == pytest.approx(measured["nll"], rel=1e-4)
    assert evaluation.metrics["top1"] >= 0.8


def test_freezing_everything_is_refused(tmp_path, model, source):
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        train(model, source, TrainConfig(freeze=("backbone", "head")), out=tmp_path / "run")


def test_validation_is_held_back_per_class(dataset):
    source = DataSource({"train": dataset(50)}, dataset(5).classes, "colours", "colours")
    train_split, val_split, notes = training_splits(source, TrainConfig(validation_share=0.2))
    assert torch.bincount(val_split.labels()).tolist() == [2] * 5
    assert torch.bincount(train_split.labels()).tolist() == [8] * 5
    assert notes == ["10 of the 50 training pictures are held back for validation"]


def test_the_test_split_is_never_looked_at(tmp_path, model, dataset):
    class Forbidden(ArrayDataset):
        def __getitem__(self, index):
            pytest.fail("the test split was looked at")

        def gather(self, indices):
            pytest.fail("the test split was looked at")

    held_out = dataset(10, 2)
    test = Forbidden(held_out.images, held_out.targets, held_out.classes, "held out")
    run(model, DataSource({"train": dataset(50), "test": test}, test.classes, "c", "c"), tmp_path / "run", epochs=1)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["split"] == "val"


def test_classes_are_joined_by_name(tmp_path, new_model, source):
    model = new_model()
    model.classes = Classes(("grey", "dark", "blue", "red", "green"))
    run(model, source, tmp_path / "run", epochs=5)
    assert model.classes.names == ("grey", "dark", "blue", "red", "green")
    assert evaluate(model, source.splits["val"]).metrics["top1"] == 1.0


def test_a_model_of_another_number_of_classes_is_refused(tmp_path, model, dataset):
    data = dataset(12, names=("red", "green"))
    source = DataSource({"train": data, "val": data}, data.classes, "colours", "colours")
    with pytest.raises(DataError, match=r"model has 5 classes, the data 2.*num_classes=2"):
        train(model, source, TrainConfig(), out=tmp_path / "run")


def test_expert_load_is_reported_and_dead_experts_are_named(tmp_path, new_model, source):
    records = run(new_model("vit_moe_test"), source, tmp_path / "run", epochs=1)
    load = torch.tensor(records[-1].expert_load)
    assert load.shape[1] == 4
    torch.testing.assert_close(load.sum(1), torch.ones(len(load)))
    assert "balance" in records[0].losses
    told = dead_experts([[0.5, 0.4999, 0.0001, 0.0], [0.25] * 4])
    assert [sentence.partition(" is dead")[0] for sentence in told] == [
        "expert 2 of routed layer 0",
        "expert 3 of routed layer 0",
    ]


def test_validation_every_other_epoch_and_after_the_last(tmp_path, model, source):
    records = run(model, source, tmp_path / "run", epochs=5, validate_every=2, patience=9)
    epochs = [record for record in records if record.kind == "epoch"]
    assert [bool(record.metrics) for record in epochs] == [False, True, False, True, True]
    assert not any(record.is_best for record in epochs if not record.metrics)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epoch"] in {2, 4, 5}


def test_best_is_the_better_of_raw_and_average(tmp_path, model, source):
    records = run(model, source, tmp_path / "run", epochs=1, ema_decay=0.999, learning_rate=1e-2)
    evaluations = records[-1].evaluations
    assert evaluations.keys() == {"raw", "average"}
    better = max(evaluations.values(), key=lambda metrics: (metrics["top1"], -metrics["nll"]))
    assert records[-1].metrics == better


def test_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False})
    assert choose_precision("auto", cpu, 512) == ("32-true", "float32: this processor has no bfloat16 hardware")
    assert choose_precision("bf16", cpu, 512)[0] == "bf16-mixed"
    assert "emulates" in choose_precision("bf16", cpu, 512)[1]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert choose_precision("auto", cpu, 512)[0] == "bf16-mixed"
    assert choose_precision("32", cpu, 512)[0] == "32-true"
    precision, reason = choose_precision("auto", cpu, 64)
    assert precision == "32-true"
    assert "too narrow (64)" in reason
    assert choose_precision("bf16", cpu, 64) == ("bf16-mixed", "bfloat16 autocast, as asked")


def test_the_width_of_a_model_is_that_of_its_widest_matrix():
    assert matrix_width(torch.nn.Linear(64, 256)) == 64
    assert matrix_width(torch.nn.Sequential(torch.nn.Conv2d(3, 96, 4), torch.nn.Conv2d(96, 128, 3))) == 128
    assert matrix_width(torch.nn.LayerNorm(512)) == 0
    # Convolutions pay at any width; the patches of a narrow transformer are no convolutional network.
    assert matrix_width(torch.nn.Conv2d(8, 8, 3)) == MIN_BFLOAT16_WIDTH
    assert matrix_width(torch.nn.Sequential(torch.nn.Conv2d(3, 64, 4), torch.nn.Linear(64, 256))) == 64


def test_bfloat16_trains_too(tmp_path, model, source):
    records = run(model, source, tmp_path / "run", epochs=2, precision="bf16")
    assert all(math.isfinite(record.total) for record in records)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


def test_validation_is_in_bfloat16_only_as_far_as_the_network_goes(tmp_path, model, source, monkeypatch):
    """Boxes and masks in pixels need more than eight bits; so does what counts them."""
    seen, forward, postprocess = [], model.forward, model.postprocess

    def passing(*given):
        seen.append(("forward", torch.is_autocast_enabled("cpu")))
        return forward(*given)

    def finishing(outputs, images):
        seen.append(("postprocess", torch.is_autocast_enabled("cpu"), outputs.logits.dtype))
        return postprocess(outputs, images)

    monkeypatch.setattr(model, "forward", passing)
    monkeypatch.setattr(model, "postprocess", finishing)
    run(model, source, tmp_path / "run", epochs=1, precision="bf16")
    assert set(seen) == {("forward", True), ("postprocess", False, torch.float32)}
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_tensorboard_files_hold_the_curve(tmp_path, model, source):
    pytest.importorskip("tensorboard")
    records = run(model, source, tmp_path / "run", epochs=1, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    drawn = [event.value for event in events.Scalars("step/total")]
    assert drawn == pytest.approx([record.total for record in records if record.kind == "step"], rel=1e-6)


def test_unreadable_pictures_are_told(tmp_path, model, source):
    class Damaged(ArrayDataset):
        gather = None

        def __getitem__(self, index):
            if index == 3:
                raise ImageError("it is no picture", where="third.png")
            return super().__getitem__(index)

    whole = source.splits["train"]
    damaged = Damaged(whole.images, whole.targets, whole.classes, whole.name)
    split = DataSource({**source.splits, "train": damaged}, source.classes, "colours", "colours")
    records = run(model, split, tmp_path / "run", epochs=1)
    assert any("third.png" in note for note in records[-1].notes)
    with pytest.raises(ImageError):
        run(model, split, tmp_path / "strict", epochs=1, strict=True)


def test_the_state_is_whole_at_the_end(tmp_path, model, source):
    run(model, source, tmp_path / "run", ema_decay=0.9)
    state = load_state(tmp_path / "run" / "last.ckpt")
    assert state["epoch"] == 2
    assert state["average"]["updates"] == 10
    assert all(torch.equal(value, state["model"][key]) for key, value in model.state_dict().items())
