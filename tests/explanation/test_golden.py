"""Closed forms that every method has to meet (one section per golden test; no pretrained weights).

Numbers 10 and 12 (RISE and the faithfulness metrics) are in test_perturbation.py and test_faithfulness.py.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from saccade.explanation import attention, cam, gradients
from saccade.explanation.record import recording
from saccade.explanation.scores import class_score, contrast_score
from saccade.ops.image import to_original
from saccade.types import ExplainSpec, Geometry, GridLayer, ImageBatch, LinearHead

SCORES = [class_score(0), class_score(1), class_score(2)]


def _as_is(activation: Tensor, canvas: tuple[int, int]) -> Tensor:
    return activation


class PooledNet(nn.Module):
    """Convolutions, ReLU, global average pooling, one linear layer."""

    def __init__(self, *, inplace: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=bias),
            nn.ReLU(inplace),
            nn.Conv2d(6, 8, 3, padding=1, bias=bias),
        )
        self.act = nn.ReLU(inplace)
        self.head = nn.Linear(8, 3, bias=bias)

    def forward(self, images: ImageBatch) -> Tensor:
        return self.head(self.act(self.body(images.pixels)).mean(dim=(2, 3)))

    def explain_spec(self) -> ExplainSpec:
        layers = {"early": GridLayer("body.0", _as_is), "conv": GridLayer("body.2", _as_is)}
        layers["final"] = GridLayer("act", _as_is)
        return ExplainSpec(layers, linear_head=lambda: LinearHead(self.head.weight, self.head.bias))


class LinearModel(nn.Module):
    """Scores that are linear in the pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.head = nn.Linear(3 * size[0] * size[1], 3)

    def forward(self, images: ImageBatch) -> Tensor:
        return self.head(images.pixels.flatten(1))

    def explain_spec(self) -> ExplainSpec:
        return ExplainSpec({"final": GridLayer("", _as_is)})


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pictures(batch: int = 2, size: tuple[int, int] = (10, 14)) -> ImageBatch:
    return ImageBatch.of(torch.randn(batch, 3, *size))


def pooled_maps(net: PooledNet, images: ImageBatch) -> Tensor:
    with torch.no_grad():
        return net.act(net.body(images.pixels.clone())).clone()


def explained(method: object, net: nn.Module, images: ImageBatch, scores=SCORES) -> Tensor:
    return method(net, images, scores, net.explain_spec()).values


# 1 · Grad-CAM = ReLU(CAM) / N


def test_gradcam_is_the_positive_part_of_cam_divided_by_the_places():
    net, images = PooledNet(), pictures()
    by_hand = torch.einsum("kc,bchw->kbhw", net.head.weight.detach(), pooled_maps(net, images))
    torch.testing.assert_close(explained(cam.CAM(), net, images), by_hand)
    torch.testing.assert_close(explained(cam.GradCAM(), net, images), by_hand.clamp_min(0) / 140)


# 2 · HiResCAM = CAM / N, and sums to logit - bias


def test_hirescam_sums_to_the_logit_without_its_bias():
    net, images = PooledNet(), pictures()
    values = explained(cam.HiResCAM(), net, images)
    torch.testing.assert_close(values, explained(cam.CAM(), net, images) / 140)
    evidence = net(images).detach().T - net.head.bias.detach()[:, None]
    torch.testing.assert_close(values.sum(dim=(2, 3)), evidence)


def test_cam_of_a_contrast_is_the_difference_of_two_cams():
    net, images = PooledNet(), pictures()
    both = explained(cam.CAM(), net, images)
    contrast = explained(cam.CAM(), net, images, [contrast_score(0, 2)])
    torch.testing.assert_close(contrast[0], both[0] - both[2])


# 3 · XGrad-CAM = Grad-CAM; LayerCAM = sum of ReLU(w_k) A_k / N


def test_xgradcam_equals_gradcam_where_gradients_are_constant():
    net, images = PooledNet(), pictures()
    torch.testing.assert_close(explained(cam.XGradCAM(), net, images), explained(cam.GradCAM(), net, images))


def test_layercam_counts_positive_weights_only():
    net, images = PooledNet(), pictures()
    weights = net.head.weight.detach().clamp_min(0)
    by_hand = torch.einsum("kc,bchw->kbhw", weights, pooled_maps(net, images)) / 140
    torch.testing.assert_close(explained(cam.LayerCAM(), net, images), by_hand)


# 4 · Grad-CAM++ weights


def test_gradcam_plus_plus_weights_have_their_closed_form():
    net, images = PooledNet(), pictures()
    maps = pooled_maps(net, images)
    g = net.head.weight.detach() / 140  # [K, C]
    weights = 140 * g.clamp_min(0)[:, None] / (2 + g[:, None] * maps.sum(dim=(2, 3)))  # [K, B, C]
    by_hand = torch.einsum("kbc,bchw->kbhw", weights, maps).clamp_min(0)
    torch.testing.assert_close(explained(cam.GradCAMPlusPlus(), net, images), by_hand)


def test_gradcam_plus_plus_gives_no_weight_where_its_derivation_has_no_meaning():
    maps = torch.full((1, 1, 2, 2), -1.0)
    gradients_ = torch.full((1, 1, 1, 2, 2), 0.5)  # 2 + gΣA = 0
    assert cam.GradCAMPlusPlus().combine(maps, gradients_).abs().max() == 0


# 5 · in-place and out-of-place ReLU, CPU and GPU


@pytest.mark.parametrize("layer", ["early", "conv", "final"])
@pytest.mark.parametrize("method", [cam.GradCAM, cam.GradCAMPlusPlus, cam.HiResCAM, cam.LayerCAM, cam.XGradCAM])
def test_inplace_relu_changes_nothing(method, layer):
    out_of_place, inplace = PooledNet(), PooledNet(inplace=True)
    inplace.load_state_dict(out_of_place.state_dict())
    images = pictures()
    expected = explained(method(layer=layer), out_of_place, images)
    assert expected.abs().max() > 0
    assert torch.equal(explained(method(layer=layer), inplace, images), expected)


@pytest.mark.parametrize("layer", ["early", "conv"])
def test_the_recorded_activation_is_the_one_before_the_inplace_relu(layer):
    net, images = PooledNet(inplace=True), pictures()
    with recording(net, {layer: net.explain_spec().layers[layer]}) as record:
        record.run(images)
        assert record.grid(layer).min() < 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_the_accelerator_gives_the_same_maps():
    net, images = PooledNet(), pictures()
    expected = explained(cam.HiResCAM(), net, images)
    there = explained(cam.HiResCAM(), copy.deepcopy(net).cuda(), images.to("cuda"))
    torch.testing.assert_close(there.cpu(), expected, rtol=1e-3, atol=1e-5)


# 6 · the model is left as it was: test_record.py


# 7 · integrated gradients


def test_integrated_gradients_are_exact_on_a_linear_model():
    net, images = LinearModel((6, 8)), pictures(size=(6, 8))
    result = gradients.IntegratedGradients(steps=3)(net, images, SCORES, net.explain_spec())
    weights = net.head.weight.detach().view(3, 1, 3, 6, 8)
    torch.testing.assert_close(result.values, (weights * images.pixels).sum(dim=2))
    assert result.error.max() < 1e-4


def test_integrated_gradients_of_a_bias_free_relu_net_are_input_times_gradient():
    net, images = PooledNet(bias=False), pictures()
    integrated = gradients.IntegratedGradients(steps=8)(net, images, SCORES, net.explain_spec())
    torch.testing.assert_close(
        integrated.values, explained(gradients.InputGradient(), net, images), rtol=1e-4, atol=1e-7
    )
    torch.testing.assert_close(integrated.values.sum(dim=(2, 3)), net(images).detach().T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("baseline", ["mean", "blur"])
def test_integrated_gradients_are_complete_on_a_smooth_model(baseline):
    net, images = PooledNet(), pictures()
    net.body[1], net.act = nn.GELU(), nn.GELU()
    result = gradients.IntegratedGradients(steps=24, baseline=baseline, chunk=5)(
        net, images, SCORES, net.explain_spec()
    )
    assert result.error.max() < 1e-3


# 8 · SmoothGrad and guided backpropagation


def test_smoothgrad_without_noise_is_the_gradient():
    net, images = PooledNet(), pictures()
    smooth = gradients.SmoothGrad(samples=3, sigma=0.0)(net, images, SCORES, net.explain_spec())
    torch.testing.assert_close(smooth.values, explained(gradients.Gradient(), net, images))
    assert smooth.error.max() < 1e-3


def test_smoothgrad_with_any_noise_is_the_gradient_of_a_linear_model():
    net, images = LinearModel((6, 8)), pictures(size=(6, 8))
    smooth = explained(gradients.SmoothGrad(samples=5, sigma=0.7), net, images)
    by_hand = net.head.weight.detach().view(3, 1, 3, 6, 8).abs().amax(dim=2).expand(-1, 2, -1, -1)
    torch.testing.assert_close(smooth, by_hand)


@pytest.mark.parametrize("inplace", [False, True])
def test_guided_backprop_with_weights_that_are_not_negative_is_the_gradient(inplace):
    net, images = PooledNet(inplace=inplace), pictures()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    expected = explained(gradients.Gradient(), net, images)
    torch.testing.assert_close(explained(gradients.GuidedBackprop(), net, images), expected)


def test_guided_backprop_drops_negative_gradients():
    net, images = PooledNet(), pictures()
    with torch.no_grad():
        net.head.weight.copy_(-net.head.weight.abs())
    assert explained(gradients.GuidedBackprop(), net, images).abs().max() == 0
    assert explained(gradients.Gradient(), net, images).abs().max() > 0


# 9 · rollout and relevance


def test_rollout_rows_sum_to_one():
    matrices = [torch.rand(2, 7, 7).softmax(dim=-1) for _ in range(4)]
    for has_class_token in (True, False):
        row = attention.rollout_row(matrices, num_prefix=1, has_class_token=has_class_token)
        torch.testing.assert_close(row.sum(dim=-1), torch.ones(2))


def test_rollout_is_the_row_of_the_product_of_all_matrices():
    matrices = [torch.rand(7, 7).softmax(dim=-1) for _ in range(3)]
    product = torch.eye(7)
    for matrix in matrices:
        product = (matrix + torch.eye(7)) / 2 @ product
    row = attention.rollout_row(matrices, num_prefix=2, has_class_token=True)
    torch.testing.assert_close(row, product[0])
    row = attention.rollout_row(matrices, num_prefix=2, has_class_token=False)
    torch.testing.assert_close(row, product[2:].mean(dim=0))


def test_rollout_of_uniform_attention_is_uniform_over_the_patches():
    row = attention.rollout_row([torch.full((5, 5), 0.2)] * 3, num_prefix=1, has_class_token=True)
    torch.testing.assert_close(row[1:], row[1:].mean().expand(4))
    assert row[0] > row[1]


def test_relevance_of_gradients_that_are_not_positive_is_nothing():
    row = attention.relevance_row([torch.zeros(5, 5)] * 3, num_prefix=1, has_class_token=True)
    assert row.abs().max() == 0


def test_relevance_is_the_row_of_the_published_recurrence():
    matrices = [torch.rand(7, 7) for _ in range(3)]
    relevance = torch.eye(7)
    for matrix in matrices:
        relevance = relevance + matrix @ relevance
    row = attention.relevance_row(matrices, num_prefix=1, has_class_token=True)
    torch.testing.assert_close(row[1:], relevance[0, 1:])
    pool = torch.rand(1, 7)
    row = attention.relevance_row([*matrices, pool], num_prefix=1, has_class_token=False)
    torch.testing.assert_close(row, (pool @ relevance)[0])


# 11 · registration


@pytest.mark.parametrize(
    "geometry", [Geometry((96, 120)), Geometry((48, 60), (2.0, 2.0)), Geometry((96, 60), (1, 2.0))]
)
def test_the_centre_of_mass_of_one_cell_is_the_centre_of_the_cell(geometry):
    cells, canvas = (8, 10), (96, 120)
    for row, column in [(2, 3), (4, 4), (5, 7)]:
        values = torch.zeros(cells)
        values[row, column] = 1
        enlarged, seen = to_original(values, canvas, geometry)
        assert enlarged.shape == geometry.original_size
        assert seen.all()
        mass = enlarged / enlarged.sum()
        centre_y = (mass.sum(dim=1) * (torch.arange(mass.shape[0]) + 0.5)).sum()
        centre_x = (mass.sum(dim=0) * (torch.arange(mass.shape[1]) + 0.5)).sum()
        expected = geometry.to_original(torch.tensor([(row + 0.5) * 12.0, (column + 0.5) * 12.0]))
        torch.testing.assert_close(torch.stack([centre_y, centre_x]), expected, rtol=0, atol=1e-3)


def test_enlarging_agrees_with_torch():
    values = torch.rand(2, 3, 7, 5)
    enlarged, _ = to_original(values, (63, 40), Geometry((63, 40)))
    expected = nn.functional.interpolate(values, (63, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarged, expected, rtol=1e-5, atol=1e-6)
