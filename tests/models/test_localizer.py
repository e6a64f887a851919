from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError
from saccade.models.build import create
from saccade.models.localizer import BoxLoss, Localizer, LocalizerConfig, LocalizerOutputs
from saccade.types import BoxTarget, Geometry, ImageBatch


def make(box_loss: BoxLoss = "l1", weight: float = 2.0) -> Localizer:
    torch.manual_seed(0)
    overrides = {"box_loss": box_loss, "box_weight": weight}
    model = create("localizer_test", overrides=overrides)
    assert isinstance(model, Localizer)
    return model.eval()


def outputs_of(shares: list[list[float]], logits: Tensor | None = None) -> LocalizerOutputs:
    """Outputs on a canvas of 100 x 200 pixels; sure of class 0 unless told otherwise."""
    if logits is None:
        logits = torch.tensor([[30.0, 0.0, 0.0]] * len(shares))
    return LocalizerOutputs(logits, torch.tensor(shares), torch.tensor([100, 200]))


def target(*boxes: list[float], labels: list[int] | None = None, crowd: list[bool] | None = None) -> BoxTarget:
    count = len(boxes)
    return BoxTarget(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels or [0] * count, dtype=torch.int64),
        torch.tensor(crowd or [False] * count, dtype=torch.bool),
    )


# The box is [40, 20, 120, 60] on a canvas of 200 x 100: shares 0.4, 0.4, 0.4, 0.4. The guess is off by 0.1 and 0.2.
GUESS, TRUTH = [0.5, 0.4, 0.4, 0.6], [40.0, 20.0, 120.0, 60.0]


@pytest.mark.parametrize(
    ("box_loss", "expected"),
    [
        ("l1", 0.1 + 0.2),
        ("l2", 0.1**2 + 0.2**2),
        # [60, 10, 140, 70] and [40, 20, 120, 60]: 2400 shared, 5600 of the union, in a hull of 6000.
        ("giou", 1 - (2400 / 5600 - 400 / 6000)),
    ],
)
def test_loss_of_the_box(box_loss: BoxLoss, expected: float) -> None:
    losses = make(box_loss, weight=2.0).loss(outputs_of([GUESS]), [target(TRUTH)])
    assert float(losses.terms["boxes"]) == pytest.approx(2 * expected, rel=1e-5)
    assert float(losses.terms["class"]) == pytest.approx(0, abs=1e-6)
    assert float(losses.logs["iou"]) == pytest.approx(2400 / 5600, rel=1e-5)


def test_loss_of_the_class_is_the_softmax_loss() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    losses = make().loss(outputs_of([GUESS, GUESS], logits), [target(TRUTH, labels=[2]), target(TRUTH, labels=[0])])
    expected = -(logits.log_softmax(1)[0, 2] + logits.log_softmax(1)[1, 0]) / 2
    torch.testing.assert_close(losses.terms["class"], expected)


def test_learns_from_the_largest_object_that_is_no_crowd() -> None:
    small, crowd = [0.0, 0.0, 50.0, 50.0], [0.0, 0.0, 200.0, 100.0]
    many = target(small, TRUTH, crowd, labels=[1, 0, 2], crowd=[False, False, True])
    one, other = (make().loss(outputs_of([GUESS]), [given]) for given in (many, target(TRUTH)))
    assert float(one.total) == float(other.total)


def test_pictures_without_objects_take_no_part() -> None:
    shares, logits = [[0.1, 0.9, 0.3, 0.3], GUESS], torch.tensor([[0.0, 9.0, 0.0], [1.0, 0.0, 2.0]])
    both = make().loss(outputs_of(shares, logits), [target(), target(TRUTH)])
    alone = make().loss(outputs_of(shares[1:], logits[1:]), [target(TRUTH)])
    torch.testing.assert_close(both.total, alone.total)


def test_a_batch_without_objects_has_no_loss_but_a_gradient() -> None:
    model = make().train()
    losses = model.loss(model(ImageBatch.of(torch.randn(2, 3, 64, 64))), [target(), target()])
    losses.total.backward()
    assert float(losses.total.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_finds_one_box_in_the_pixels_of_the_original() -> None:
    images = ImageBatch(torch.zeros(1, 3, 100, 200), ((100, 200),), (Geometry((50, 100), (2.0, 2.0)),))
    (found,) = make().postprocess(outputs_of([[0.4, 0.4, 0.4, 0.4]], torch.tensor([[0.0, 2.0, 1.0]])), images)
    assert found.boxes.tolist() == [pytest.approx([20, 10, 60, 30])]
    assert (found.labels.tolist(), found.source.tolist()) == ([1], [0])
    assert float(found.scores) == pytest.approx(float(torch.tensor([0.0, 2.0, 1.0]).softmax(0)[1]))


def test_finds_a_box_however_unsure_it_is() -> None:
    model = create("localizer_test", num_classes=80).eval()
    images = ImageBatch.of(torch.zeros(1, 3, 64, 64))
    (found,) = model.postprocess(model(images), images)
    assert len(found) == 1
    assert float(found.scores) < 0.05


def test_one_cell_is_a_global_pool() -> None:
    model = create("localizer_test", overrides={"grid": 1}).eval()
    pixels = torch.randn(1, 3, 64, 64)
    maps = model.backbone(pixels).maps[-1]
    outputs = model(ImageBatch.of(pixels))
    torch.testing.assert_close(outputs.shares, model.box(maps.mean(dim=(2, 3))).sigmoid())


def test_learns_to_point_at_a_square() -> None:
    model = make().train()
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(4, 36, (8, 2), generator=generator)
    pixels = torch.zeros(8, 3, 64, 64)
    targets = []
    for index, (left, top) in enumerate(corners.tolist()):
        pixels[index, index % 3, top : top + 24, left : left + 24] = 2.0
        targets.append(target([float(left), float(top), left + 24.0, top + 24.0], labels=[index % 3]))
    images = ImageBatch.of(pixels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        losses = model.loss(model(images), targets)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert float(losses.logs["iou"]) > 0.7
    assert float(losses.terms["class"].detach()) < 0.1


@pytest.mark.parametrize("wrong", [{"grid": 0}, {"box_weight": -1.0}])
def test_refuses_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="grid or box_weight"):
        LocalizerConfig(**wrong)  # type: ignore[arg-type]
