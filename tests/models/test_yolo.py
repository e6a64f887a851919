"""The one-stage detector: its codes, its points, its two sets of heads."""

from __future__ import annotations

import pytest
import torch

import saccade
from saccade.errors import ConfigError
from saccade.models.detector import Detector
from saccade.models.yolo import Yolo, YoloOutputs
from saccade.types import BoxTarget, ImageBatch


def made(name: str = "yolo_test", **overrides: object) -> Yolo:
    model = saccade.create(name, num_classes=3, overrides=overrides or None)
    assert isinstance(model, Yolo)
    return model


def one_object() -> BoxTarget:
    return BoxTarget.of(torch.tensor([[10.0, 12, 40, 50]]), torch.tensor([2]))


def test_points_and_cells_agree() -> None:
    model = made().eval()
    canvas = (64, 96)
    with torch.no_grad():
        outputs = model(ImageBatch.of(torch.zeros(1, 3, *canvas)))
    assert len(outputs.points) == 8 * 12 + 4 * 6 + 2 * 3
    for source, (column, row, stride) in enumerate(outputs.points.tolist()):
        assert model.cell(source, canvas) == (stride, row // stride, column // stride)
    with pytest.raises(IndexError):
        model.cell(len(outputs.points), canvas)


def test_a_distribution_on_two_bins_is_the_distance_between_them() -> None:
    model = made()
    codes = torch.full((1, 4, 8), -30.0)
    codes[0, 0, 2] = codes[0, 0, 3] = 0.0  # left: 2.5 cells
    codes[0, 1, 0] = 0.0  # top: 0
    codes[0, 2, 7] = 0.0  # right: 7
    codes[0, 3, 1] = 0.0  # bottom: 1
    box = model.decode(codes.flatten(1), torch.tensor([[100.0, 100.0, 8.0]]))
    assert torch.allclose(box, torch.tensor([[80.0, 100.0, 156.0, 108.0]]), atol=1e-3)


def test_distribution_loss_is_least_at_the_true_distances() -> None:
    model = made()
    distances = torch.tensor([[0.25, 1.0, 2.5, 6.9]])
    exact = torch.full((1, 4, 8), -30.0)
    for side, distance in enumerate(distances[0].tolist()):
        low = int(distance)
        exact[0, side, low] = torch.tensor(1 - (distance - low)).clamp_min(1e-9).log()
        if distance > low:
            exact[0, side, low + 1] = torch.tensor(distance - low).log()
    best = model._distribution_loss(exact.flatten(1), distances)
    entropy = sum(-(p * torch.tensor(p).log()).item() for p in (0.25, 0.75, 0.5, 0.5, 0.1, 0.9)) / 4
    assert float(best) == pytest.approx(entropy, abs=1e-3)
    for shift in (-1, 1):
        assert float(model._distribution_loss(exact.roll(shift, -1).flatten(1), distances)) > entropy + 1


def test_direct_distances_are_in_cells() -> None:
    model = made("yolo_direct_test")
    ln = torch.tensor([1.0, 2.0, 3.0, 4.0]).expm1().log()  # softplus gives 1, 2, 3, 4
    box = model.decode(ln[None], torch.tensor([[64.0, 64.0, 16.0]]))
    assert torch.allclose(box, torch.tensor([[48.0, 32.0, 112.0, 128.0]]))


@pytest.mark.parametrize("name", ["yolo_test", "yolo_direct_test"])
def test_only_the_heads_that_are_asked_speak(name: str) -> None:
    model = made(name)
    images = ImageBatch.of(torch.zeros(2, 3, 64, 64))
    both = model.train()(images)
    assert len(both.one_logits) == len(both.many_logits) == 2
    alone = model.eval()(images)
    speaks = (len(alone.one_logits), len(alone.many_logits))
    assert speaks == ((2, 0) if name == "yolo_test" else (0, 2))
    assert {name.split("_")[0] for name in model.loss(alone, [one_object()] * 2).terms} == {
        "one" if speaks[0] else "many"
    }


def test_one_to_one_heads_do_not_form_the_maps() -> None:
    model = made().train()
    losses = model.loss(model(ImageBatch.of(torch.rand(1, 3, 64, 64))), [one_object()])
    sum(value for key, value in losses.terms.items() if key.startswith("one_")).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad is not None for parameter in model.one_to_one.parameters())


def test_a_batch_without_objects_costs_false_scores_alone() -> None:
    model = made().train()
    nothing = BoxTarget.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    with torch.no_grad():
        losses = model.loss(model(ImageBatch.of(torch.rand(2, 3, 64, 64))), [nothing] * 2)
    assert float(losses.terms["one_boxes"]) == float(losses.terms["many_distribution"]) == 0
    assert float(losses.terms["one_class"]) > 0


@pytest.mark.parametrize("name", ["yolo_test", "yolo_direct_test"])
def test_lazy_decoding_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = made(name).eval()
    images = ImageBatch.of(torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        outputs: YoloOutputs = model(images)
        outputs = outputs._replace(
            one_logits=outputs.one_logits + torch.randn_like(outputs.one_logits) * 2,
            many_logits=outputs.many_logits + torch.randn_like(outputs.many_logits) * 2,
        )
        for ours, general in zip(
            model.postprocess(outputs, images), Detector.postprocess(model, outputs, images), strict=True
        ):
            assert len(ours)
            assert torch.equal(ours.source, general.source)
            assert torch.equal(ours.labels, general.labels)
            assert torch.allclose(ours.boxes, general.boxes)


def test_many_points_that_answer_need_suppression() -> None:
    with pytest.raises(ConfigError, match="nms_iou"):
        saccade.create("yolo_test", overrides={"answers": "one_to_many"})


def test_boxes_keep_their_digits_under_autocast() -> None:
    model = saccade.create("yolo_test")
    assert isinstance(model, Yolo)
    codes = torch.randn(50, 4 * model.config.bins, generator=torch.Generator().manual_seed(0)) * 3
    points = torch.tensor([[300.0, 200.0, 32.0]]).expand(50, -1)
    exact = model.decode(codes, points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = model.decode(codes, points)
    torch.testing.assert_close(lowered, exact, rtol=0, atol=0)
    # The mean of a distribution that is one bin is that bin.
    sure = torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 4]), model.config.bins).flatten() * 200.0
    expected = [300 - 32, 200 - 64, 300 + 96, 200 + 128]
    assert model.decode(sure[None], points[:1])[0].tolist() == expected
