"""Gradients at the pixels: what the closed forms of test_golden.py leave open."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError
from saccade.explanation import gradients
from saccade.explanation.scores import class_score, probability_score
from saccade.ops.image import Preprocess
from saccade.types import ExplainSpec, GridLayer, ImageBatch

SPEC = ExplainSpec({"final": GridLayer("", lambda activation, canvas: activation)})
SCORES = [class_score(0), class_score(1)]


class Linear(nn.Module):
    """Two scores, linear in the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)))
        self.preprocess = Preprocess(size=(5, 7), mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1))

    def forward(self, images: ImageBatch) -> Tensor:
        return torch.einsum("bchw,kchw->bk", images.pixels, self.weight) + 1


def pictures(batch: int = 2) -> ImageBatch:
    return ImageBatch.of(torch.randn(batch, 3, 5, 7, generator=torch.Generator().manual_seed(7)))


def test_the_gradient_is_the_largest_of_the_channels():
    model = Linear()
    found = gradients.Gradient()(model, pictures(), SCORES, SPEC)
    torch.testing.assert_close(found.values, model.weight.detach().abs().amax(1)[:, None].expand(-1, 2, -1, -1))
    assert found.layer is None


def test_input_times_gradient_is_the_contribution_on_a_linear_model():
    model, images = Linear(), pictures()
    found = gradients.InputGradient()(model, images, SCORES, SPEC)
    expected = torch.einsum("bchw,kchw->kbhw", images.pixels, model.weight.detach())
    torch.testing.assert_close(found.values, expected)
    by_hand = expected.clamp_max(0).sum((2, 3)) / -expected.abs().sum((2, 3)) * -1
    torch.testing.assert_close(found.negative, by_hand.abs())


def test_black_is_black_in_the_units_of_the_model():
    model, images = Linear(), pictures()
    found = gradients.IntegratedGradients(baseline="black", steps=2)(model, images, SCORES, SPEC)
    black = -torch.tensor([0.5 / 0.5, 0.4 / 0.2, 0.3 / 0.1]).view(3, 1, 1)
    expected = torch.einsum("bchw,kchw->kbhw", images.pixels - black, model.weight.detach())
    torch.testing.assert_close(found.values, expected)
    del model.preprocess
    with pytest.raises(ExplainError, match="adapt"):
        gradients.IntegratedGradients(baseline="black")(model, images, SCORES, SPEC)


def test_the_completeness_gap_is_told_where_it_is_wide():
    class Step(Linear):
        def forward(self, images):
            return (super().forward(images) * 50).tanh()  # all change happens between two points of the rule

    assert gradients.IntegratedGradients(steps=2)(Step(), pictures(), SCORES, SPEC).error.max() > 0.5
    assert gradients.IntegratedGradients(steps=2)(Linear(), pictures(), SCORES, SPEC).error.max() < 1e-4


def test_chunks_change_nothing():
    class Curved(Linear):
        def forward(self, images):
            return super().forward(images).sin()

    for one, other in (
        (gradients.SmoothGrad(samples=7, chunk=2), gradients.SmoothGrad(samples=7, chunk=64)),
        (gradients.IntegratedGradients(steps=7, chunk=2), gradients.IntegratedGradients(steps=7, chunk=64)),
    ):
        first, second = (method(Curved(), pictures(), SCORES, SPEC) for method in (one, other))
        torch.testing.assert_close(first.values, second.values)
        torch.testing.assert_close(first.error, second.error, rtol=1e-2, atol=1e-4)


def test_smoothgrad_is_seeded_and_its_error_falls_with_the_root_of_the_samples():
    class Curved(Linear):
        def forward(self, images):
            return super().forward(images).sin()

    def smooth(samples: int, seed: int = 0):
        return gradients.SmoothGrad(samples=samples, seed=seed, sigma=0.1)(Curved(), pictures(), SCORES, SPEC)

    assert torch.equal(smooth(8).values, smooth(8).values)
    assert not torch.equal(smooth(8).values, smooth(8, seed=1).values)

    def spread(samples: int) -> Tensor:
        maps = torch.stack([smooth(samples, seed).values for seed in range(12)])
        return maps.std(dim=0).mean()

    assert 1.3 < spread(8) / spread(32) < 3.1  # 2 in the limit


def test_probabilities_lose_their_gradient_where_they_come_close_to_one():
    model = Linear()
    images = ImageBatch.of(model.weight.detach()[:1] * 3)
    logit, probability = gradients.Gradient()(model, images, [class_score(0), probability_score(0)], SPEC).values
    assert probability.max() < 1e-3 * logit.max()


def test_guided_backprop_refuses_models_without_relu():
    with pytest.raises(ExplainError, match="ReLU"):
        gradients.GuidedBackprop()(Linear(), pictures(), SCORES, SPEC)


def test_guided_backprop_says_that_it_is_a_negative_control():
    class Rectified(Linear):
        def forward(self, images):
            return super().forward(images).relu()

    found = gradients.GuidedBackprop()(Rectified(), pictures(), SCORES, SPEC)
    assert "negative control" in found.notes[0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (gradients.SmoothGrad, {"samples": 0}),
        (gradients.SmoothGrad, {"sigma": -1.0}),
        (gradients.IntegratedGradients, {"steps": 0}),
        (gradients.IntegratedGradients, {"baseline": "white"}),
    ],
)
def test_senseless_options_are_refused(kind, options):
    with pytest.raises(ConfigError):
        kind(**options)


@pytest.mark.parametrize(
    "way",
    [Tensor.relu_, torch.relu_, lambda x: F.relu(x, inplace=True), lambda x: F.relu(x, True), nn.ReLU(inplace=True)],
)
def test_a_relu_called_as_a_statement_rectifies(way):
    class Rectified(Linear):
        def __init__(self, way) -> None:
            super().__init__()
            self.way = way

        def forward(self, images):
            logits = super().forward(images) * 1.0
            assert self.way(logits) is logits
            return logits

    class Returned(Linear):
        def forward(self, images):
            return super().forward(images).relu()

    images = ImageBatch.of(torch.cat([pictures().pixels, -pictures().pixels]))
    found, expected = (
        gradients.GuidedBackprop()(model, images, SCORES, SPEC).values for model in (Rectified(way), Returned())
    )
    assert torch.equal(found, expected)
    assert 0 < float((expected == 0).float().mean()) < 1


def test_the_error_of_smoothgrad_is_unbiased_and_unknown_of_one_sample():
    """Of f(x) = w x^2 / 2 the gradient is w x, so its spread over the copies is w times that of the noise."""

    class Square(Linear):
        def forward(self, images):
            return super().forward(images.with_pixels(images.pixels.square() / 2))

    images, model = pictures(), Square()
    one = gradients.SmoothGrad(samples=1)(model, images, SCORES, SPEC)
    assert one.error is None
    noise = torch.randn(3, *images.pixels.shape[1:], generator=torch.Generator().manual_seed(0))
    spread = images.pixels.amax(dim=(1, 2, 3)) - images.pixels.amin(dim=(1, 2, 3))
    copies = images.pixels[:, None] + 0.15 * spread[:, None, None, None, None] * noise  # [B, S, 3, H, W]
    weight = model.weight.detach().reshape(-1, 1, *images.pixels.shape[1:])[: len(SCORES)]
    variance = (weight.square() * copies.var(dim=1) / 3).flatten(2).sum(-1)
    expected = variance.sqrt() / (weight * copies.mean(dim=1)).flatten(2).norm(dim=2)
    torch.testing.assert_close(gradients.SmoothGrad(samples=3)(model, images, SCORES, SPEC).error, expected)
