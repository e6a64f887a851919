"""What all segmenters share, on one that is known by hand: its logits are its pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saccade.backbones.base import Routing
from saccade.errors import ConfigError, InputError
from saccade.losses import boundary_cross_entropy, dice, focal, lovasz_softmax, pixel_cross_entropy
from saccade.models.segmenter import MapLoss, Segmenter, SegmenterConfig, SegmenterOutputs, stack_maps
from saccade.ops.image import Preprocess
from saccade.types import IGNORE, ImageBatch, MapTarget


class Channels(Segmenter):
    """The logits of the three classes are the three channels; remembers what it was given."""

    def __init__(self, config: SegmenterConfig, stride: int = 1, num_auxiliary: int = 0) -> None:
        super().__init__(config)
        self.stride, self.num_auxiliary = stride, num_auxiliary
        self.factor = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def segment(self, pixels: Tensor) -> SegmenterOutputs:
        self.seen.append(pixels)
        logits = pixels * self.factor
        return SegmenterOutputs(logits, logits.expand(self.num_auxiliary, *logits.shape), Routing.none(pixels))

    def explain_spec(self) -> Any:
        raise NotImplementedError


def channels(stride: int = 1, num_auxiliary: int = 0, policy: Any = "native", **loss: Any) -> Channels:
    preprocess = Preprocess(size=(24, 24), policy=policy, mean=(0, 0, 0), std=(1, 1, 1))
    return Channels(SegmenterConfig(num_classes=3, preprocess=preprocess, loss=MapLoss(**loss)), stride, num_auxiliary)


def targets(*maps: Tensor) -> list[MapTarget]:
    return [MapTarget(labels.to(torch.uint8)) for labels in maps]


def random_batch(height: int = 8, width: int = 10) -> tuple[ImageBatch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, height, width, generator=generator)
    labels = torch.randint(0, 3, (2, height, width), generator=generator)
    labels[0, :2] = IGNORE
    return ImageBatch.of(pixels), labels


def test_a_canvas_is_padded_by_its_border_to_the_stride_and_cut_back() -> None:
    model = channels(stride=8, num_auxiliary=2)
    images, _ = random_batch(5, 17)
    outputs = model(images)
    (seen,) = model.seen
    assert seen.shape == (2, 3, 8, 24)
    assert torch.equal(seen[:, :, :5, :17], images.pixels)
    assert torch.equal(seen[:, :, 7, :17], images.pixels[:, :, 4]), "the border is repeated"
    assert torch.equal(seen[:, :, :5, 23], images.pixels[:, :, :, 16])
    assert torch.equal(outputs.logits, images.pixels)
    assert outputs.auxiliary.shape == (2, 2, 3, 5, 17)
    fitting, _ = random_batch(16, 8)
    model(fitting)
    assert model.seen[1] is fitting.pixels


def test_terms_are_weighted_and_sum_to_the_total() -> None:
    images, labels = random_batch()
    model = channels(
        num_auxiliary=1, cross_entropy=0.5, dice=2.0, focal=3.0, focal_gamma=1.5, lovasz=0.25, boundary=4.0,
        boundary_width=1, auxiliary=0.3, class_weights=(1.0, 2.0, 0.0), label_smoothing=0.1,
    )  # fmt: skip
    losses = model.loss(model(images), targets(*labels))
    logits = images.pixels
    entropy = pixel_cross_entropy(logits, labels, weight=torch.tensor([1.0, 2.0, 0.0]), smoothing=0.1)
    expected = {
        "cross_entropy": 0.5 * entropy,
        "dice": 2 * dice(logits, labels),
        "focal": 3 * focal(logits, labels, gamma=1.5),
        "lovasz": 0.25 * lovasz_softmax(logits, labels),
        "boundary": 4 * boundary_cross_entropy(logits, labels, width=1),
        "auxiliary_0": 0.3 * entropy,
    }
    assert losses.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses.terms[name], value)
    torch.testing.assert_close(losses.total, sum(expected.values()))


def test_cross_entropy_closed_form_over_labelled_pixels_alone() -> None:
    """Two pixels that are right with odds of 2:1:1 and one that is wrong with them; the fourth nobody labelled."""
    pixels = torch.zeros(1, 3, 2, 2)
    pixels[0, 0] = math.log(2)
    labels = torch.tensor([[0, 0], [1, IGNORE]])
    outputs = channels()(ImageBatch.of(pixels))
    mean = channels().loss(outputs, targets(labels))
    assert float(mean.total.detach()) == pytest.approx((2 * math.log(2) + math.log(4)) / 3)
    assert float(mean.logs["pixel_accuracy"]) == pytest.approx(2 / 3)
    total = channels(reduction="sum").loss(outputs, targets(labels))
    assert float(total.total.detach()) == pytest.approx(2 * math.log(2) + math.log(4))
    weighted = channels(class_weights=(1.0, 4.0, 1.0)).loss(outputs, targets(labels))
    assert float(weighted.total.detach()) == pytest.approx((2 * math.log(2) + 4 * math.log(4)) / 6)


def test_nothing_labelled_is_a_finite_loss_without_a_gradient() -> None:
    images, labels = random_batch()
    model = channels(num_auxiliary=1, dice=1.0, focal=1.0, lovasz=1.0, boundary=1.0)
    losses = model.loss(model(images), targets(*torch.full_like(labels, IGNORE)))
    assert float(losses.total.detach()) == 0
    losses.total.backward()
    assert float(model.factor.grad) == 0
    assert float(losses.logs["pixel_accuracy"]) == 0


def test_maps_of_another_canvas_and_labels_of_no_class_are_refused() -> None:
    images, labels = random_batch()
    model = channels()
    with pytest.raises(InputError, match=r"targets\[1\].*\(8, 9\).*canvas \(8, 10\)"):
        model.loss(model(images), targets(labels[0], labels[1, :, :9]))
    with pytest.raises(InputError):
        model.loss(model(images), targets(labels[0], labels[1] + 3))
    assert stack_maps(targets(*labels), (8, 10)).dtype == torch.int64


@pytest.mark.parametrize("policy", ["native", "letterbox", "stretch"])
def test_predictions_lie_in_the_pixels_of_each_picture(policy: Any) -> None:
    """A red half above a green half: labels 0 and 1 with the border in the middle of every picture."""
    model = channels(policy=policy)
    images = []
    for height, width in ((40, 30), (12, 20), (24, 24)):
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        image[0, : height // 2], image[1, height // 2 :] = 255, 255
        images.append(image)
    batch = model.preprocess(images)
    predictions = model.postprocess(model(batch), batch)
    for image, prediction in zip(images, predictions, strict=True):
        assert prediction.labels.shape == image.shape[1:]
        assert prediction.labels.dtype == torch.uint8
        assert prediction.confidence.dtype == torch.float16
        assert torch.equal(prediction.labels, (image[1] > 0).to(torch.uint8))
        # exp(1) against twice exp(0), far from the border.
        assert float(prediction.confidence[0, 0]) == pytest.approx(math.e / (math.e + 2), abs=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_classes": 256}, "at most 255"),
        ({"preprocess": Preprocess(policy="crop")}, "without a label"),
        ({"num_classes": 3, "loss": MapLoss(class_weights=(1.0, 1.0))}, "2 class weights for 3 classes"),
    ],
)
def test_wrong_configs(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmenterConfig(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cross_entropy": 0.0},
        {"dice": -1.0},
        {"auxiliary": -0.1},
        {"label_smoothing": 1.0},
        {"focal_gamma": -1.0},
        {"boundary_width": 0},
    ],
)
def test_wrong_losses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="loss"):
        MapLoss(**wrong)
    assert SegmenterConfig(num_classes=255).num_classes == 255
