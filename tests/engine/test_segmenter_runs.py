"""Trainings, evaluations and predictions of segmenters: the same engine, one label per pixel."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.data.dataset import ArrayDataset, Dataset
from saccade.data.source import DataSource, open_data
from saccade.data.transforms import Augment
from saccade.data.write import write_scenes
from saccade.engine import predict as predict_module
from saccade.engine.checkpoint import load_state
from saccade.engine.evaluate import EvaluateConfig, evaluate
from saccade.engine.failure import replay
from saccade.engine.fast import Candidate
from saccade.engine.feed import balancing_weights, training_splits
from saccade.engine.plan import StepRecord, TrainConfig
from saccade.engine.predict import PIXELS_CHECKED, PredictConfig, Predictor
from saccade.engine.segment import segment_pictures
from saccade.engine.train import resume, train
from saccade.errors import ConfigError, DataError, TrainingError
from saccade.models.build import create
from saccade.models.segmenter import Segmenter
from saccade.tasks.semantic import SemanticEvaluation
from saccade.types import IGNORE, Classes, Losses, MapTarget, Sample

NAME = "unet_plain_test"
NAMES = ("ground", "red", "blue")
COLOURS = torch.tensor([[120, 120, 120], [210, 60, 60], [60, 60, 210]])


class Blocks:
    """Coloured rectangles on grey, 24x32; the colour is the class. A stripe at the left is labelled by nobody."""

    task = "semantic"
    licence: str | None = "CC0"

    def __init__(self, count: int, seed: int = 0, names: tuple[str, ...] = NAMES) -> None:
        self.classes = Classes(names)
        self.pictures, self.maps = [], []
        generator = torch.Generator().manual_seed(seed)
        for index in range(count):
            labels = torch.zeros(24, 32, dtype=torch.int64)
            top, left = torch.randint(2, 10, (2,), generator=generator).tolist()
            labels[top : top + 10, left : left + 14] = 1 + index % 2
            noise = torch.randint(-25, 26, (3, 24, 32), generator=generator)
            self.pictures.append((COLOURS[labels].permute(2, 0, 1) + noise).clamp(0, 255).to(torch.uint8))
            labels = torch.tensor([names.index(name) for name in NAMES])[labels]
            labels[:, :2] = IGNORE
            self.maps.append(labels.to(torch.uint8))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.pictures[index], MapTarget(self.maps[index]), f"blocks#{index}")

    def fingerprint(self) -> str:
        return f"{len(self)} {self.classes.names} {sum(int(picture.sum()) for picture in self.pictures)}"


def blocks(names: tuple[str, ...] = NAMES, **counts: int) -> DataSource:
    counts = counts or {"train": 12, "val": 4}
    splits: dict[str, Dataset] = {
        split: Blocks(count, seed, names) for seed, (split, count) in enumerate(counts.items())
    }
    return DataSource(splits, Classes(names), "blocks", "blocks")


def unet(num_classes: int = 3) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create(NAME, num_classes, overrides={"preprocess.size": [16, 24]})
    assert isinstance(model, Segmenter)
    return model


SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "ema_decay": 0.8,
    "augment": Augment(zoom=(0.8, 1.25), flip=0.5, flip_vertical=0.5, colour=0.1),
    "precision": "32",
    "device": "cpu",
}


def run(model: Segmenter, source: DataSource, out: Path, **settings: Any) -> list[StepRecord]:
    return list(train(model, source, TrainConfig(**SETTINGS | settings), out=out, name=NAME))


def test_loss_falls_and_the_run_is_judged_by_the_mean_iou(tmp_path: Path) -> None:
    model = unet()
    records = run(model, blocks(), tmp_path / "run", epochs=8)
    steps = [record.total for record in records if record.kind == "step"]
    assert len(steps) == 24
    assert sum(steps[-6:]) < 0.6 * sum(steps[:6])
    epochs = [record for record in records if record.kind == "epoch"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["headline"] == "miou"
    assert metrics["metrics"]["miou"] == max(record.metrics["miou"] for record in epochs)
    assert metrics["metrics"]["miou"] > epochs[0].metrics["miou"]
    assert "boundary_f" not in metrics["metrics"], "boundaries would slow every epoch down"
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert {"cross_entropy", "pixel_accuracy"} <= lines[0]["losses"].keys()
    assert model.classes.names == NAMES, "a model without names takes over those of the data"


@pytest.mark.parametrize("stop", [1, 5])
def test_leaving_the_loop_and_resuming_changes_nothing(tmp_path: Path, stop: int) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(unet(), blocks(), straight, epochs=2, class_weights=True)
    config = TrainConfig(**SETTINGS | {"epochs": 2, "class_weights": True})
    records = train(unet(), blocks(), config, out=stopped, name=NAME)
    for record in records:
        if record.kind == "step" and record.step == stop:
            break
    records.close()
    list(resume(stopped, blocks()))
    for name in ("history.jsonl", "metrics.json", "best.safetensors"):
        assert (straight / name).read_bytes() == (stopped / name).read_bytes()
    one, other = (load_state(path / "last.ckpt")["model"] for path in (straight, stopped))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_failing_step_is_kept_with_its_label_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet()
    original, seen = model.loss, []

    def broken(outputs, targets):
        losses = original(outputs, targets)
        seen.append((losses.terms["cross_entropy"].item(), torch.stack([target.labels for target in targets])))
        return Losses({name: value * (math.nan if len(seen) == 2 else 1) for name, value in losses.terms.items()})

    monkeypatch.setattr(model, "loss", broken)
    with pytest.raises(TrainingError, match="not finite"):
        run(model, blocks(), tmp_path / "run")
    monkeypatch.undo()
    again = replay(tmp_path / "run" / "failure.safetensors")
    assert again.terms["cross_entropy"].item() == pytest.approx(seen[1][0], rel=1e-5)
    assert (seen[1][1] == IGNORE).any()


def test_crops_that_nobody_labelled_are_finite_steps(tmp_path: Path) -> None:
    source = blocks()
    for labels in source.splits["train"].maps:  # type: ignore[attr-defined]
        labels.fill_(IGNORE)
    records = run(unet(), source, tmp_path / "run", epochs=1)
    steps = [record for record in records if record.kind == "step"]
    assert [record.total for record in steps] == [0.0] * 3
    assert [record.grad_norm for record in steps] == [0.0] * 3


# --- class weights


class Maps:
    """Label maps alone."""

    task = "semantic"
    licence: str | None = None

    def __init__(self, *maps: list[list[int]], names: tuple[str, ...] = NAMES) -> None:
        self.maps, self.classes = [torch.tensor(labels, dtype=torch.uint8) for labels in maps], Classes(names)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> Sample:
        labels = self.maps[index]
        return Sample(torch.zeros(3, *labels.shape, dtype=torch.uint8), MapTarget(labels), str(index))

    def fingerprint(self) -> str:
        return str(self.maps)


def test_median_frequency_balancing_by_hand() -> None:
    """Class 0: 4 of the 4 + 4 labelled pixels; 1: 3 of the 8; 2: 1 of the 4 of the picture that it is in."""
    data = Maps([[0, 0, 1, IGNORE], [0, IGNORE, IGNORE, IGNORE]], [[0, 1, 1, 2]])
    weights = balancing_weights(data, torch.arange(3), 4)
    frequency = [4 / 8, 3 / 8, 1 / 4]
    assert weights == pytest.approx([*(frequency[1] / share for share in frequency), 0], abs=1e-4)
    # The same data with its classes in another order, for a model that has them in this one.
    swapped = Maps([[2, 2, 0, IGNORE], [2, IGNORE, IGNORE, IGNORE]], [[2, 0, 0, 1]])
    assert balancing_weights(swapped, torch.tensor([1, 2, 0]), 4) == weights


def test_class_weights_are_told_used_and_stored(tmp_path: Path) -> None:
    model, source = unet(), blocks(val=4, train=12)
    records = run(model, source, tmp_path / "run", epochs=1, class_weights=True)
    expected = balancing_weights(source.splits["train"], torch.arange(3), 3)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["train"]["class_weights"] is True
    assert json.dumps(list(expected)) in json.dumps(stored["model"])
    assert model.config.loss.class_weights == expected
    notes = " ".join(note for record in records for note in record.notes)
    assert f"class weights: ground {expected[0]:g}, red {expected[1]:g}, blue {expected[2]:g}" in notes
    # Ground covers most, so it weighs least.
    assert expected[0] < min(expected[1:])
    unweighted = run(unet(), source, tmp_path / "plain", epochs=1)
    assert records[0].total != unweighted[0].total


def test_class_weights_that_were_told_stay(tmp_path: Path) -> None:
    told = (1.0, 2.0, 3.0)
    model = create(NAME, overrides={"num_classes": 3, "preprocess.size": [16, 24], "loss.class_weights": list(told)})
    run(model, blocks(), tmp_path / "run", epochs=1, limit_steps=1, class_weights=True)
    assert model.config.loss.class_weights == told


def test_class_weights_are_not_for_classifiers(tmp_path: Path, new_model: Any, source: DataSource) -> None:
    with pytest.raises(ConfigError, match="class_weights is for segmenters"):
        train(new_model(), source, TrainConfig(class_weights=True), out=tmp_path / "run")


# --- data that differs from the model


def test_classes_are_joined_by_name(tmp_path: Path) -> None:
    """Training and evaluation give the same whatever the order in which the data lists its classes."""
    one, other = unet(), unet()
    one.classes = other.classes = Classes(NAMES)
    orders = (NAMES, ("blue", "ground", "red"))
    for order, model, name in zip(orders, (one, other), ("one", "other"), strict=True):
        run(model, blocks(order), tmp_path / name, epochs=1)
    assert (tmp_path / "one" / "history.jsonl").read_bytes() == (tmp_path / "other" / "history.jsonl").read_bytes()
    config = EvaluateConfig(resamples=10)
    figures = [evaluate(model, Blocks(4, 1, order), config) for order, model in zip(orders, (one, other), strict=True)]
    assert isinstance(figures[0], SemanticEvaluation)
    assert figures[0].confusion == figures[1].confusion
    assert figures[0].classes == NAMES
    assert sum(map(sum, figures[0].confusion)) == 4 * 24 * 30, "the stripe that nobody labelled does not count"


def test_data_for_another_task_is_refused(tmp_path: Path, new_model: Any, source: DataSource) -> None:
    with pytest.raises(DataError, match="the data is for semantic, the model for classification"):
        train(new_model(), blocks(), TrainConfig(), out=tmp_path / "run")
    with pytest.raises(DataError, match="the data is for classification, the model for semantic"):
        train(unet(5), source, TrainConfig(), out=tmp_path / "run")
    with pytest.raises(DataError, match="the data is for semantic"):
        evaluate(new_model(), Blocks(2))
    with pytest.raises(DataError, match="the model has 5 classes, the data 3"):
        train(unet(5), blocks(), TrainConfig(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_validation_split_is_made_where_there_is_none() -> None:
    source = blocks(train=20)
    kept, held_out, notes = training_splits(source, TrainConfig(validation_share=0.25))
    assert (len(kept), len(held_out)) == (15, 5)
    assert kept.task == held_out.task == "semantic"
    sources = [part[index].source for part in (kept, held_out) for index in range(len(part))]
    assert sorted(sources) == sorted(f"blocks#{index}" for index in range(20)), "every picture is in one of the two"
    assert "5 of the 20" in notes[0]
    again = training_splits(source, TrainConfig(validation_share=0.25))[1]
    assert [again[index].source for index in range(5)] == sources[15:]
    with pytest.raises(DataError, match="too few"):
        training_splits(blocks(train=1), TrainConfig())


def test_evaluation_is_the_plain_count_over_pictures_of_all_sizes() -> None:
    data = Blocks(5)
    data.pictures[1], data.maps[1] = data.pictures[1][:, :20], data.maps[1][:20]
    model = unet().train()
    model.classes = data.classes
    evaluation = evaluate(model, data, EvaluateConfig(resamples=10))
    assert model.training
    model.eval()
    counts = torch.zeros(3, 3, dtype=torch.int64)
    with torch.no_grad():
        for picture, truth in zip(data.pictures, data.maps, strict=True):
            images = model.preprocess([picture])
            predicted = model(images).logits[0].argmax(0)
            for true, guess in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
                if true != IGNORE:
                    counts[true, guess] += 1
    # Sums in another order may tip single pixels.
    assert int((torch.tensor(evaluation.confusion) - counts).abs().sum()) <= 6
    assert torch.equal(torch.tensor(evaluation.confusion).sum(1), counts.sum(1))
    assert evaluation.num_images == 5


@pytest.mark.slow
def test_written_scenes_are_learned_from_a_folder(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", count=60, size=32, task="segmentation")
    source = open_data(folder, task="semantic")
    records = run(unet(len(source.classes)), source, tmp_path / "run", epochs=2, batch_size=8)
    epochs = [record for record in records if record.kind == "epoch"]
    assert epochs[1].total < epochs[0].total
    assert epochs[1].metrics["miou"] > 0


# --- prediction


def many(count: int = 5) -> list[Tensor]:
    """Pictures that are enough to check faster copies on."""
    generator = torch.Generator().manual_seed(0)
    side = math.ceil(math.sqrt(PIXELS_CHECKED / 4))
    return [torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator) for _ in range(count)]


def fast(monkeypatch: pytest.MonkeyPatch, copied: Segmenter, model: Segmenter) -> None:
    """Make ``copied`` the only candidate, and ten times as fast as ``model``."""
    monkeypatch.setattr(predict_module, "candidates", lambda model, device: iter([Candidate("copy", copied)]))
    monkeypatch.setattr(predict_module, "_seconds", lambda candidate, *rest: 0.1 if candidate.name == "copy" else 1.0)


def with_bias(model: Segmenter, amount: float) -> Segmenter:
    """A copy that favours the first class."""
    copied = copy.deepcopy(model)
    original = copied.segment

    def segment(pixels: Tensor):
        outputs = original(pixels)
        outputs.logits[:, 0] += amount
        return outputs

    copied.segment = segment  # type: ignore[method-assign]
    return copied


@pytest.fixture
def model() -> Segmenter:
    """A segmenter that is sure enough for its labels not to hang on rounding."""
    segmenter = unet().eval()
    for parameter in segmenter.parameters():
        parameter.data.mul_(1.5)
    return segmenter


def test_a_copy_that_agrees_does_the_rest(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch, with_bias(model, 1e-4), model)
    predictor = Predictor(model, PredictConfig(batch_size=4))
    predictions = predictor(many())
    assert len(predictions) == 5
    assert predictor.plan is not None
    assert predictor.plan.name == "copy"
    assert predictor.plan.speedup == pytest.approx(10)
    assert 0.995 <= predictor.plan.agreement <= 1


def test_a_copy_that_disagrees_is_rejected_and_the_checked_pictures_are_float32(
    model: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch, with_bias(model, 100.0), model)
    predictor = Predictor(model)
    predictions = predictor(many())
    assert predictor.plan is not None
    assert predictor.plan.name.startswith("float32")
    assert "copy" in predictor.plan.rejected[0]
    with torch.inference_mode():
        expected = segment_pictures(model, many())
    assert not all((one.labels == 0).all() for one in expected)
    for one, other in zip(predictions, expected, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.confidence, other.confidence)


def test_the_checked_pictures_come_from_the_model_as_written_even_where_a_copy_wins(
    model: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch, with_bias(model, 1e-3), model)
    predictor = Predictor(model, PredictConfig(batch_size=4))
    predictions = predictor(many())
    assert predictor.plan is not None
    assert predictor.plan.name == "copy"
    with torch.inference_mode():
        expected = segment_pictures(model, many()[:4])
    for one, other in zip(predictions[:4], expected, strict=True):
        assert torch.equal(one.confidence, other.confidence)


def test_few_pixels_and_exact_never_choose(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch, with_bias(model, 1e-4), model)
    short = Predictor(model)
    short(many(3))
    assert short.plan is None, "a pixel less than four such pictures is not worth it"
    exact = Predictor(model, PredictConfig(speed="exact"))
    exact(many())
    assert exact.plan is None


def test_array_data_is_no_data_for_a_segmenter() -> None:
    images, labels = torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
    with pytest.raises(DataError, match="the data is for classification"):
        evaluate(unet(2), ArrayDataset(images, labels, Classes(("a", "b")), "digits"))
