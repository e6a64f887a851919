"""Trainings, evaluations and predictions of detectors: the same engine, boxes and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.data.loader import Loader, LoaderConfig
from saccade.data.source import DataSource
from saccade.data.synthetic import synthetic_objects
from saccade.data.transforms import Augment
from saccade.engine.checkpoint import load_model
from saccade.engine.detect import detect_pictures
from saccade.engine.evaluate import EvaluateConfig, evaluate
from saccade.engine.failure import replay, save_failure
from saccade.engine.plan import StepRecord, TrainConfig
from saccade.engine.predict import PredictConfig, Predictor
from saccade.engine.train import resume, train
from saccade.errors import ConfigError, DataError
from saccade.models.build import create
from saccade.models.detector import Detector
from saccade.ops.image import Preprocess
from saccade.tasks.detection import DetectionEvaluation
from saccade.types import BoxTarget, Classes

SIDE = 64


def shapes(names: tuple[str, ...] | None = None, *, task: Any = "instance", **counts: int) -> DataSource:
    """Scenes with shapes of their own in every split."""
    counts = counts or {"train": 12, "val": 4}
    splits = {
        split: synthetic_objects(count, SIDE, seed, task=task) for seed, (split, count) in enumerate(counts.items())
    }
    return DataSource(splits, next(iter(splits.values())).classes, "scenes", "scenes")


def detector(name: str = "faster_rcnn_test", classes: Classes | None = None) -> Detector[Any]:
    classes = classes or shapes().classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create(name, classes=classes.names)
    assert isinstance(model, Detector)
    return model


def settings(**changed: Any) -> TrainConfig:
    usual = {"epochs": 2, "batch_size": 4, "learning_rate": 2e-3, "precision": "32", "ema_decay": 0.5, "workers": 0}
    return TrainConfig(**(usual | changed))


def taken(records: Any) -> list[StepRecord]:
    return list(records)


@pytest.mark.parametrize(
    "name", ["faster_rcnn_test", "mask_rcnn_test", "yolo_test", "yolo_mask_test", "detr_fast_test"]
)
def test_a_detector_trains_evaluates_and_predicts_through_the_same_engine(name: str, tmp_path: Path) -> None:
    data = shapes()
    model = detector(name)
    records = taken(
        train(
            model,
            data,
            settings(epochs=8, learning_rate=5e-3, validate_every=4, augment=Augment(flip=0.5)),
            out=tmp_path / "run",
        )
    )
    epochs = [record for record in records if record.kind == "epoch"]
    assert epochs[-1].total < epochs[0].total
    assert {"ap", "ap50"} <= set(epochs[-1].metrics)
    best = load_model(tmp_path / "run" / "best.safetensors")
    result = evaluate(best, data.split("val"), EvaluateConfig(detection_resamples=5))
    assert isinstance(result, DetectionEvaluation)
    assert result.headline == ("mask_ap" if "mask" in name else "ap")
    assert result.num_images == 4
    found = Predictor(best, PredictConfig(speed="exact"))([data.split("val")[0].image])[0]
    assert (found.masks is not None) == ("mask" in name)  # type: ignore[union-attr]


def test_a_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    data = shapes(train=8, val=2)
    config = settings(augment=Augment(flip=0.5), checkpoint_steps=1)
    taken(train(detector(), data, config, out=tmp_path / "whole"))
    records = train(detector(), data, config, out=tmp_path / "cut")
    for _ in range(3):
        next(records)
    records.close()
    taken(resume(tmp_path / "cut", data=data))
    whole, cut = (load_model(tmp_path / run / "best.safetensors").state_dict() for run in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_labels_of_data_in_another_order_are_the_models(tmp_path: Path) -> None:
    data = shapes()
    model = detector(classes=Classes(tuple(reversed(data.classes.names))))
    from saccade.engine.feed import build_feed
    from saccade.engine.machine import build_fabric

    feed = build_feed(model, data, settings(), build_fabric(settings(), 8)[0])
    batch = next(iter(feed.train.epoch(0)))
    prepared = feed.prepare(batch, torch.device("cpu"))
    for before, after in zip(batch.targets, prepared.targets, strict=True):
        assert isinstance(before, BoxTarget)
        assert isinstance(after, BoxTarget)
        names = [data.classes[label] for label in before.labels.tolist()]
        assert [model.classes[label] for label in after.labels.tolist()] == names


def test_loader_brings_boxes_and_masks_onto_the_canvas() -> None:
    data = shapes(train=3, val=1).split("train")
    preprocess = Preprocess(size=(96, 128), policy="letterbox")
    (batch,) = Loader(data, preprocess, LoaderConfig(batch_size=3, workers=0)).epoch()
    for index, target in enumerate(batch.targets):
        original = data[index].target
        assert isinstance(target, BoxTarget)
        assert isinstance(original, BoxTarget)
        assert torch.allclose(target.boxes, original.boxes * 1.5)
        assert target.masks is not None
        # A mask and its box agree on the canvas as well.
        assert (target.masks.boxes() - target.boxes).abs().max() <= 1.5
    with pytest.raises(DataError, match="no single tensor"):
        _ = batch.labels


def test_boxes_are_not_mixed_or_sheared() -> None:
    from saccade.data.transforms import Mix

    data = shapes().split("train")
    with pytest.raises(ConfigError, match="only classes are mixed"):
        Loader(data, Preprocess(policy="letterbox"), mix=Mix(mixup=0.2))
    with pytest.raises(ConfigError, match="RandAugment"):
        Loader(data, Preprocess(policy="letterbox"), augment=Augment(rand_augment=2))


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


@pytest.mark.parametrize("policy", ["letterbox", "shorter"])
def test_no_detection_depends_on_the_pictures_beside_it(policy: str) -> None:
    model = create(
        "faster_rcnn_test", num_classes=3, overrides={"preprocess.policy": policy, "selection.min_score": 0.0}
    ).eval()
    assert isinstance(model, Detector)
    mixed = pictures((64, 64), (64, 64), (40, 90), (90, 40))
    with torch.no_grad():
        together = detect_pictures(model, mixed)
        alone = [detect_pictures(model, [picture])[0] for picture in mixed]
    for ours, theirs in zip(together, alone, strict=True):
        assert len(ours)
        assert len(ours) == len(theirs)
        assert torch.allclose(ours.scores, theirs.scores, atol=1e-5)
        assert torch.allclose(ours.boxes, theirs.boxes, atol=1e-3)


def test_masks_serve_a_detector_of_boxes_but_boxes_no_segmenter_of_instances(tmp_path: Path) -> None:
    boxes = shapes(task="detection")
    with pytest.raises(DataError, match="the data is for detection, the model for instance"):
        train(detector("mask_rcnn_test"), boxes, settings(), out=tmp_path / "no").__next__()
    assert evaluate(detector(), shapes().split("val"), EvaluateConfig(detection_resamples=2)).task == "detection"


def test_a_failed_step_with_masks_can_be_replayed(tmp_path: Path) -> None:
    data = shapes()
    model = detector("mask_rcnn_test").train()
    (batch, *_) = Loader(data.split("train"), model.preprocess, LoaderConfig(batch_size=3, workers=0)).epoch()
    save_failure(tmp_path / "failure.safetensors", model, batch, (1, 2), {"step": 1})
    from saccade.engine.failure import seed_step

    seed_step(1, 2)
    expected = model.loss(model(batch.images, batch.targets), batch.targets)
    with torch.no_grad():
        again = replay(tmp_path / "failure.safetensors")
    for name, term in expected.terms.items():
        assert float(term.detach()) == pytest.approx(float(again.terms[name]), rel=1e-4), name
