"""Prediction, and the faster copies it may use."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image
from torch import nn

from saccade.engine import predict as predict_module
from saccade.engine.fast import (
    Candidate,
    candidates,
    has_eight_bit_kernel,
    quantize_linears,
)
from saccade.engine.predict import NUM_CHECKED, PredictConfig, Predictor
from saccade.errors import ConfigError, ImageError
from saccade.models.build import create
from saccade.nn.fuse import fuse_batch_norms
from saccade.types import Detections


@pytest.fixture
def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, 40, 50), generator=generator, dtype=torch.uint8) for _ in range(20)]


def vit() -> nn.Module:
    torch.manual_seed(0)
    return create("vit_micro_p4_28").eval()


def test_a_model_in_training_stays_in_training(pictures: list[torch.Tensor]) -> None:
    model = create("timm/resnet18", num_classes=5)
    model.train()
    stream = Predictor(model, PredictConfig(batch_size=2)).stream(pictures[:4])
    before = copy.deepcopy(model.state_dict())
    first = next(stream)
    assert all(module.training for module in model.modules())
    rest = list(stream)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before)
    expected = Predictor(model.eval(), PredictConfig(batch_size=2, speed="exact"))(pictures[:4])
    for one, other in zip([first, *rest], expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores)


def test_predictions_come_in_order_and_do_not_depend_on_the_batch(pictures: list[torch.Tensor]) -> None:
    model = vit()
    together = Predictor(model, PredictConfig(batch_size=7, speed="exact"))(pictures)
    alone = [Predictor(model, PredictConfig(speed="exact"))([picture])[0] for picture in pictures[:3]]
    assert len(together) == 20
    for one, other in zip(alone, together, strict=False):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)


def test_paths_and_arrays_give_the_same(tmp_path, pictures: list[torch.Tensor]) -> None:
    path = tmp_path / "picture.png"
    array = pictures[0].permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path)
    predictor = Predictor(vit())
    first, second, third = predictor([path, array, Image.open(path)])
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.scores, third.scores)


def test_an_unreadable_picture_is_named(tmp_path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        Predictor(vit())([path])


def test_batch_size_is_checked() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        PredictConfig(batch_size=0)


def test_fusing_keeps_the_outputs() -> None:
    torch.manual_seed(0)
    model = create("timm/resnet18", num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    pixels = torch.randn(2, 3, 64, 64)
    fused = copy.deepcopy(model)
    assert fuse_batch_norms(fused) == 20
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    with torch.no_grad():
        maps, fused_maps = model.backbone(pixels).maps[-1], fused.backbone(pixels).maps[-1]
    torch.testing.assert_close(fused_maps, maps, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not has_eight_bit_kernel(), reason="this processor has no 8-bit multiplication")
def test_eight_bit_layers_are_close_and_leave_the_head_alone() -> None:
    model = vit()
    small = copy.deepcopy(model)
    count = quantize_linears(small)
    assert count == 4 * 6
    assert isinstance(small.head, nn.Linear)
    pixels = torch.randn(1, 128, 128)
    linear = nn.Linear(128, 256)
    holder = nn.Sequential(linear, nn.Linear(256, 2))
    quantize_linears(holder)
    error = (holder[0](pixels) - linear(pixels)).abs().max()
    assert 0 < error < 0.05, "rounding to 8 bits costs something, but not much"
    torch.testing.assert_close(holder[0](pixels[:, 5:6]), holder[0](pixels)[:, 5:6], atol=1e-5, rtol=0)


def test_a_copy_that_disagrees_is_never_used(monkeypatch, pictures: list[torch.Tensor]) -> None:
    model = vit()
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.head.weight.neg_()
        wrong.head.weight.mul_(50)
    monkeypatch.setattr(predict_module, "candidates", lambda model, device: iter([Candidate("wrong", wrong)]))
    monkeypatch.setattr(predict_module, "_seconds", lambda candidate, *rest: 0.1 if candidate.name == "wrong" else 1.0)
    predictor = Predictor(model)
    exact = Predictor(model, PredictConfig(speed="exact"))(pictures)
    for one, other in zip(predictor(pictures), exact, strict=True):
        torch.testing.assert_close(one.scores, other.scores)
    assert predictor.plan is not None
    assert predictor.plan.speedup == 1.0
    assert "of the answers are the same" in predictor.plan.rejected[0]


def test_a_faster_copy_that_agrees_is_used(monkeypatch, pictures: list[torch.Tensor]) -> None:
    model = vit()
    twin = Candidate("twin", copy.deepcopy(model))
    monkeypatch.setattr(predict_module, "candidates", lambda model, device: iter([twin]))
    monkeypatch.setattr(predict_module, "_seconds", lambda candidate, *rest: 0.1 if candidate is twin else 1.0)
    predictor = Predictor(model)
    assert len(predictor(pictures)) == 20
    assert predictor.plan is not None
    assert predictor.plan.name == "twin"
    assert predictor.plan.speedup == pytest.approx(10)


def test_a_short_list_is_run_as_written(pictures: list[torch.Tensor]) -> None:
    predictor = Predictor(vit())
    predictor(pictures[: NUM_CHECKED - 1])
    assert predictor.plan is None


def test_the_model_is_left_as_it_was(pictures: list[torch.Tensor]) -> None:
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Predictor(model)(pictures)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_candidates_of_a_transformer_on_a_processor() -> None:
    names = [candidate.name for candidate in candidates(vit(), torch.device("cpu"))]
    assert "batch norms" not in " ".join(names)


def test_a_copy_that_rounds_more_has_to_be_clearly_faster(monkeypatch, pictures: list[torch.Tensor]) -> None:
    model = vit()
    seconds = {"first": 0.5, "barely faster": 0.48, "faster": 0.3}
    copies = [Candidate(name, copy.deepcopy(model)) for name in seconds]
    monkeypatch.setattr(predict_module, "candidates", lambda model, device: iter(copies))
    monkeypatch.setattr(predict_module, "_seconds", lambda candidate, *rest: seconds.get(candidate.name, 1.0))
    predictor = Predictor(model)
    predictor(pictures)
    assert predictor.plan is not None
    assert predictor.plan.name == "faster"
    assert predictor.plan.rejected == ("barely faster: only 2.08 times as fast",)


def test_the_rest_of_the_first_list_is_left_to_the_copy(monkeypatch, pictures: list[torch.Tensor]) -> None:
    model = vit()
    marked = copy.deepcopy(model)
    with torch.no_grad():
        marked.head.bias.add_(1e-3 * torch.arange(len(marked.head.bias)))
    monkeypatch.setattr(predict_module, "candidates", lambda model, device: iter([Candidate("marked", marked)]))
    monkeypatch.setattr(predict_module, "_seconds", lambda candidate, *rest: 0.1 if candidate.name == "marked" else 1.0)
    found = Predictor(model)(pictures)
    exact = Predictor(model, PredictConfig(speed="exact"))(pictures)
    gaps = [float((one.scores - other.scores).abs().max()) for one, other in zip(found, exact, strict=True)]
    assert max(gaps[:NUM_CHECKED]) < 1e-6
    assert min(gaps[NUM_CHECKED:]) > 1e-5


@pytest.mark.parametrize(("clear", "is_taken"), [(100, True), (30, False)])
def test_each_task_says_how_much_agreement_is_enough(monkeypatch, clear: int, is_taken: bool) -> None:
    """Two clear objects of a hundred may be lost, two of thirty may not."""
    model = create("faster_rcnn_test").eval()
    places = torch.arange(clear) * 3.0
    boxes = torch.stack([places, places, places + 2, places + 2], dim=1)
    scores, labels = torch.full((clear,), 0.9), torch.zeros(clear, dtype=torch.int64)

    def found(count: int) -> Detections:
        return Detections(boxes[:count], scores[:count], labels[:count], torch.arange(count), model.classes)

    def answer(candidate: Candidate, *rest: object) -> list[Detections]:
        return [found(clear - 2 if candidate.name == "other" else clear)] * 4

    monkeypatch.setattr(predict_module, "candidates", lambda model, device: iter([Candidate("other", model)]))
    monkeypatch.setattr(predict_module, "_seconds", lambda candidate, *rest: 0.1 if candidate.name == "other" else 1.0)
    monkeypatch.setattr(predict_module, "run", answer)
    predictor = Predictor(model)
    predictor([torch.zeros(3, 16, 16, dtype=torch.uint8)] * 4)
    assert predictor.plan is not None
    assert (predictor.plan.name == "other") is is_taken
