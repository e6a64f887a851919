from __future__ import annotations

import math

import pytest
import torch

from saccade.errors import InputError
from saccade.models.build import create
from saccade.models.zero_shot import ZeroShotClassifier, best_factor
from saccade.types import ClassTarget, ImageBatch


def make() -> ZeroShotClassifier:
    torch.manual_seed(0)
    model = create("zero_shot_test")
    assert isinstance(model, ZeroShotClassifier)
    return model.eval()


def images(count: int = 3) -> ImageBatch:
    return ImageBatch.of(torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@torch.no_grad()
def test_logits_are_scaled_cosines() -> None:
    model = make()
    logits = model(images()).logits
    vectors = model.encode_images(images())
    for row, vector in zip(logits, vectors, strict=True):
        for logit, weight in zip(row, model.weight, strict=True):
            cosine = torch.nn.functional.cosine_similarity(vector, weight, dim=0)
            assert float(logit) == pytest.approx(10 * float(cosine), abs=1e-4)


def test_learning_moves_pictures_and_not_classes() -> None:
    model = make().train()
    before = model.weight.clone()
    losses = model.loss(model(images()), [ClassTarget(torch.tensor(index)) for index in range(3)])
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert "weight" not in dict(model.named_parameters())
    assert torch.equal(model.weight, before)


def test_the_best_temperature_is_found_in_closed_form() -> None:
    """Two classes whose logits differ by 1, right in 3 of 4 cases: the best difference is log 3."""
    logits = torch.tensor([[1.0, 0.0]] * 4)
    labels = torch.tensor([0, 0, 0, 1])
    assert best_factor(logits, labels) == pytest.approx(math.log(3), rel=1e-4)
    assert best_factor(-logits, labels) == pytest.approx(1e-3, rel=0.01)  # worse than chance: the least there is
    assert best_factor(10 * logits, labels) == pytest.approx(math.log(3) / 10, rel=1e-4)


@torch.no_grad()
def test_calibration_changes_no_answer() -> None:
    model = make()
    with torch.no_grad():
        model.logit_bias.fill_(-3.0)
    before = model(images(8)).logits
    labels = before.argmax(1).clone()
    labels[:3] = (labels[:3] + 1) % 5
    factor = model.calibrate(before, labels)
    after = model(images(8)).logits
    torch.testing.assert_close(after, factor * before)
    assert torch.equal(after.argmax(1), before.argmax(1))
    cross_entropy = torch.nn.functional.cross_entropy
    assert cross_entropy(after, labels) < cross_entropy(before, labels)
    with pytest.raises(InputError, match="no labelled pictures to calibrate on"):
        model.calibrate(before[:0], labels[:0])
