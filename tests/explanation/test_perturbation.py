"""Occlusion and RISE on models whose contributions are known by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError
from saccade.explanation import perturbation, rounded
from saccade.explanation.perturbation import (
    RISE,
    Occlusion,
    baseline_pixels,
    draw_masks,
    masks_at_once,
    rise_values,
    standard_error,
)
from saccade.explanation.rounded import quick_copy
from saccade.explanation.scores import class_score
from saccade.models.build import create
from saccade.ops.image import Preprocess
from saccade.types import ExplainSpec, Geometry, GridLayer, ImageBatch

SPEC = ExplainSpec({"final": GridLayer("", lambda activation, canvas: activation)})


class Linear(nn.Module):
    """Scores ``[B, 2]``: a known weight for every pixel, plus 5."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        weights = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
        self.weights = nn.Parameter(weights)

    def forward(self, images: ImageBatch) -> Tensor:
        return torch.einsum("bchw,kchw->bk", images.pixels, self.weights) + 5


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def second(outputs: Tensor) -> Tensor:
    return outputs[:, 1]


def picture(*shape: int, seed: int = 0) -> ImageBatch:
    return ImageBatch.of(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def test_occlusion_of_single_pixels_is_the_exact_contribution() -> None:
    model, images = Linear(5, 6), picture(2, 3, 5, 6)
    found = Occlusion(patch=1, stride=1, batch=7)(model, images, [first, second], SPEC)
    expected = torch.einsum("bchw,kchw->kbhw", images.pixels, model.weights.detach())
    torch.testing.assert_close(found.values, expected, atol=1e-4, rtol=1e-4)


def test_occlusion_with_windows_is_the_mean_drop_per_pixel() -> None:
    model, images = Linear(6, 6), picture(1, 3, 6, 6)
    found = Occlusion(patch=2, stride=2, batch=1)(model, images, [first], SPEC).values[0, 0]
    contribution = (images.pixels[0] * model.weights[0]).sum(0).detach()
    expected = F.avg_pool2d(contribution[None], 2)[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_occlusion_covers_every_pixel_when_the_windows_do_not_fit() -> None:
    model, images = Linear(7, 7), picture(1, 3, 7, 7)
    found = Occlusion(patch=3, stride=3)(model, images, [first], SPEC).values
    assert found.shape == (1, 1, 7, 7)
    assert (found != 0).all()


def test_padding_is_never_hidden_and_gets_no_evidence() -> None:
    model = Linear(6, 6)
    pixels = picture(1, 3, 6, 6).pixels
    images = ImageBatch(pixels, ((4, 6),), (Geometry((4, 6)),))
    found = Occlusion(patch=2, stride=1)(model, images, [first], SPEC).values[0, 0]
    assert found[4:].eq(0).all()
    assert (found[:4] != 0).all()
    changed = ImageBatch(pixels.index_fill(2, torch.tensor([4, 5]), 9.0), images.sizes, images.geometries)
    torch.testing.assert_close(
        Occlusion(patch=2, stride=1)(model, changed, [first], SPEC).values[0, 0], found, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("explainer", [Occlusion(), RISE(num_masks=32)])
def test_a_score_that_ignores_the_image_gets_a_blank_map(explainer: Occlusion | RISE) -> None:
    images = picture(2, 3, 14, 14)
    found = explainer(Linear(14, 14), images, [lambda outputs: outputs[:, 0] * 0 + 3], SPEC)
    assert found.values.abs().max() < 1e-6
    assert found.error is None or not found.error.isfinite().any(), "nothing over nothing is not known"


def test_each_image_is_explained_for_itself() -> None:
    model, images = Linear(9, 9), picture(3, 3, 9, 9)
    for explainer in (Occlusion(), RISE(num_masks=20)):
        together = explainer(model, images, [first, second], SPEC).values
        alone = torch.cat([explainer(model, images[i], [first, second], SPEC).values for i in range(3)], dim=1)
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_all_ones_masks_give_a_constant() -> None:
    seen = torch.full((1, 1, 6), 4.0)
    assert rise_values(torch.ones(6, 5, 5), seen, is_centred=False).eq(4).all()
    assert rise_values(torch.ones(6, 5, 5), seen).eq(0).all()


def test_single_cell_masks_give_the_score_of_revealing_each_cell() -> None:
    model, images = Linear(4, 4), picture(1, 3, 4, 4)
    masks = torch.eye(16).view(16, 4, 4)
    seen = torch.stack([first(model(ImageBatch.of(images.pixels * mask))) for mask in masks]).detach().view(1, 1, 16)
    expected = (images.pixels[0] * model.weights[0]).sum(0).detach() + 5
    torch.testing.assert_close(rise_values(masks, seen, is_centred=False)[0, 0], expected)
    torch.testing.assert_close(rise_values(masks, seen)[0, 0], expected - expected.mean())


def closed_form(weights: Tensor, grid: int, keep: float) -> Tensor:
    """Expectation of the centred map of a linear model: sum over pixels of weight x covariance of the masks / keep.

    The covariance comes from the enlarged grid of one-hot cells, averaged over all shifts: no random number is drawn.
    """
    side = weights.shape[-1]
    cell = -(-side // grid)
    cells = torch.eye((grid + 1) ** 2).view(-1, 1, grid + 1, grid + 1)
    share = F.interpolate(cells, scale_factor=float(cell), mode="bilinear")[:, 0]
    total = torch.zeros(side * side)
    for top in range(cell):
        for left in range(cell):
            part = share[:, top : top + side, left : left + side].flatten(1)  # [cells, pixels]
            total += keep * (1 - keep) * part.T @ (part @ weights.flatten())
    return (total / cell**2 / keep).view(side, side)


def test_rise_on_a_linear_model_tends_to_the_closed_form_as_one_over_root_n() -> None:
    model, images = Linear(8, 8), picture(1, 3, 8, 8)
    expected = closed_form((images.pixels[0] * model.weights[0]).sum(0).detach(), grid=2, keep=0.5)

    def distance(num_masks: int) -> float:
        squared = [
            (RISE(num_masks=num_masks, grid=2, seed=seed, batch=512)(model, images, [first], SPEC).values - expected)
            .square()
            .mean()
            for seed in range(12)
        ]
        return float(torch.stack(squared).mean().sqrt())

    few, many = distance(128), distance(128 * 16)
    assert few / many == pytest.approx(4, rel=0.25)
    assert many < 0.12 * float(expected.square().mean().sqrt())


def test_the_reported_error_is_the_real_one() -> None:
    model, images = Linear(8, 8), picture(1, 3, 8, 8)
    expected = closed_form((images.pixels[0] * model.weights[0]).sum(0).detach(), grid=2, keep=0.5)
    runs = [RISE(num_masks=1500, grid=2, seed=seed, batch=500)(model, images, [first], SPEC) for seed in range(16)]
    real = torch.stack([(run.values - expected).square().mean() for run in runs]).mean().sqrt()
    told = torch.stack([run.error for run in runs if run.error is not None]).mean()
    assert float(told) == pytest.approx(float(real / expected.square().mean().sqrt()), rel=0.2)


def test_standard_error_halves_with_four_times_the_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = draw_masks(4000, 4, 0.5, generator).enlarged(0, 4000, (8, 8))
    seen = (masks * torch.randn(8, 8, generator=generator)).sum((1, 2)).view(1, 1, -1)
    ratio = standard_error(masks[:1000], seen[..., :1000]) / standard_error(masks, seen)
    assert float(ratio) == pytest.approx(2, rel=0.15)


def test_the_error_of_a_small_map_is_that_of_a_large_one_and_none_of_a_flat_one() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = draw_masks(500, 4, 0.5, generator).enlarged(0, 500, (8, 8))
    seen = (masks * torch.randn(8, 8, generator=generator)).sum((1, 2)).view(1, 1, -1)
    expected = standard_error(masks, seen)
    torch.testing.assert_close(standard_error(masks, seen.double() * 1e-15), expected, rtol=1e-5, atol=0)
    flat = standard_error(masks, torch.full_like(seen, 20.0))
    assert float(flat) != 0, "an error that nobody measured is not 0"
    assert not flat.isfinite().any()
    assert not standard_error(masks, torch.zeros_like(seen)).isfinite().any()


def test_masks_show_every_pixel_equally_often() -> None:
    masks = draw_masks(6000, 3, 0.3, torch.Generator().manual_seed(0)).enlarged(0, 6000, (9, 11))
    assert masks.shape == (6000, 9, 11)
    assert masks.min() >= 0
    assert masks.max() <= 1
    torch.testing.assert_close(masks.mean(0), torch.full((9, 11), 0.3), atol=0.03, rtol=0)


def test_rise_is_seeded_and_leaves_the_global_generator_alone() -> None:
    model, images = Linear(8, 8), picture(1, 3, 8, 8)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = RISE(num_masks=40, seed=1)(model, images, [first], SPEC)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    again = RISE(num_masks=40, seed=1)(model, images, [first], SPEC)
    other = RISE(num_masks=40, seed=2)(model, images, [first], SPEC)
    assert torch.equal(one.values, again.values)
    assert not torch.equal(one.values, other.values)


def test_rise_stops_early_once_the_error_is_small_enough() -> None:
    model, images = Linear(8, 8), picture(1, 3, 8, 8)
    found = RISE(num_masks=20_000, grid=2, tolerance=0.2, batch=50)(model, images, [first], SPEC)
    assert found.error is not None
    assert float(found.error.max()) <= 0.2
    used = int(found.notes[0].split()[0])
    assert 500 <= used < 20_000


def test_modes_gradients_and_parameters_are_left_alone() -> None:
    model, images = Linear(8, 8), picture(1, 3, 8, 8)
    model.train()
    before = model.weights.detach().clone()
    for explainer in (Occlusion(), RISE(num_masks=10)):
        found = explainer(model, images, [first], SPEC)
        assert not found.values.requires_grad
    assert model.training
    assert model.weights.grad is None
    assert torch.equal(model.weights, before)


def test_baselines() -> None:
    model = Linear(16, 16)
    pixels = picture(1, 3, 16, 16).pixels
    images = ImageBatch(pixels, ((12, 16),), (Geometry((12, 16)),))
    assert baseline_pixels(model, images, "mean")[:, :, :12].eq(0).all()
    assert torch.equal(baseline_pixels(model, images, "mean")[:, :, 12:], pixels[:, :, 12:])
    blurred = baseline_pixels(model, images, "blur")[:, :, :12]
    assert blurred.var() < 0.3 * pixels.var()
    constant = ImageBatch.of(torch.full((1, 3, 16, 16), 0.7))
    torch.testing.assert_close(baseline_pixels(model, constant, "blur"), constant.pixels)
    with pytest.raises(ExplainError, match="black is unknown"):
        baseline_pixels(model, images, "black")
    model.preprocess = Preprocess(size=(16, 16))
    black = baseline_pixels(model, ImageBatch.of(pixels), "black")
    assert Preprocess().denormalise(black).abs().max() < 1e-6
    with pytest.raises(ConfigError, match="unknown baseline"):
        baseline_pixels(model, images, "pink")  # type: ignore[arg-type]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="never be hidden"):
        Occlusion(patch=2, stride=3)
    with pytest.raises(ConfigError, match="at least 1"):
        Occlusion(patch=0)
    with pytest.raises(ConfigError, match="keep between 0 and 1"):
        RISE(keep=1.0)


def test_masks_do_not_depend_on_how_many_are_used_together() -> None:
    draws = draw_masks(10, 4, 0.5, torch.Generator().manual_seed(0))
    parts = [draws.enlarged(start, count, (12, 9)) for start, count in ((0, 3), (3, 4), (7, 3))]
    assert torch.equal(torch.cat(parts), draws.enlarged(0, 10, (12, 9)))


def test_few_photographs_and_many_icons_go_together_on_a_processor() -> None:
    photographs = ImageBatch.of(torch.zeros(2, 3, 224, 224))
    assert masks_at_once(photographs, 64) == 3
    assert masks_at_once(ImageBatch.of(torch.zeros(1, 3, 28, 28)), 64) == 64
    assert masks_at_once(ImageBatch.of(torch.zeros(5, 3, 2000, 2000)), 64) == 1


def test_random_masks_are_asked_of_a_quick_copy_only_where_its_scores_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = create("resnet_test", num_classes=4).eval()
    images = ImageBatch.of(torch.randn(1, 3, *model.preprocess.size))
    exact = RISE(num_masks=40, precision="float32")(model, images, [class_score(1)], model.explain_spec())
    monkeypatch.setattr(perturbation, "can_round", lambda model, device: True)
    monkeypatch.setattr(rounded, "MAX_DEVIATION", 0.3)  # scores of random weights hardly vary
    copies: list[torch.nn.Module] = []
    monkeypatch.setattr(perturbation, "quick_copy", lambda model: copies.append(quick_copy(model)) or copies[-1])
    found = RISE(num_masks=40)(model, images, [class_score(1)], model.explain_spec())
    assert found.notes == ("40 random masks, in bfloat16",)
    assert len(copies) == 1
    assert not any(isinstance(part, torch.nn.BatchNorm2d) and part.training for part in copies[0].modules())
    assert torch.corrcoef(torch.stack([found.values.flatten(), exact.values.flatten()]))[0, 1] > 0.95
    # A copy that says something else is not used.
    monkeypatch.setattr(perturbation, "quick_copy", lambda model: create("resnet_test", num_classes=4).eval())
    refused = RISE(num_masks=40)(model, images, [class_score(1)], model.explain_spec())
    assert torch.equal(refused.values, exact.values)


def test_a_quick_copy_has_no_norms_and_says_the_same() -> None:
    torch.manual_seed(0)
    model = create("resnet_test", num_classes=4).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean)
            torch.nn.init.uniform_(part.running_var, 0.5, 2)
    images = ImageBatch.of(torch.randn(2, 3, *model.preprocess.size))
    copied = quick_copy(model)
    norms, left = (sum(isinstance(part, torch.nn.BatchNorm2d) for part in one.modules()) for one in (model, copied))
    assert left < norms
    with torch.no_grad():
        torch.testing.assert_close(copied(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)
    assert quick_copy(plain := torch.nn.Linear(2, 2)) is plain
    norm = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    assert quick_copy(compiled := torch.compile(norm)) is compiled
