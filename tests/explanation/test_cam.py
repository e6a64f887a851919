"""Methods that read a layer: what the closed forms of test_golden.py leave open."""

import pytest
import torch
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError, UnknownNameError
from saccade.explanation import cam
from saccade.explanation.scores import class_score
from saccade.types import ExplainSpec, GridLayer, ImageBatch

SCORES = [class_score(0), class_score(1)]


def _as_is(activation: Tensor, canvas: tuple[int, int]) -> Tensor:
    return activation


class Net(nn.Module):
    """Two strided convolutions, flattened: a head that is linear, but no global average."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 2, stride=2)
        self.two = nn.Conv2d(4, 6, 2, stride=2)
        self.act = act
        self.head = nn.Linear(6 * 2 * 3, 2)

    def forward(self, images: ImageBatch) -> Tensor:
        return self.head(self.act(self.two(self.act(self.one(images.pixels)))).flatten(1))

    def explain_spec(self) -> ExplainSpec:
        return ExplainSpec({"one": GridLayer("one", _as_is), "final": GridLayer("two", _as_is)})


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net(nn.ReLU())


def pictures(batch: int = 2) -> ImageBatch:
    return ImageBatch.of(torch.randn(batch, 3, 8, 12, generator=torch.Generator().manual_seed(7)))


def test_hirescam_is_additive_for_any_linear_head(net):
    net.act = nn.Identity()
    found = cam.HiResCAM()(net, pictures(), SCORES, net.explain_spec())
    evidence = net(pictures()).detach().T - net.head.bias.detach()[:, None]
    torch.testing.assert_close(found.values.sum(dim=(2, 3)), evidence)
    assert found.layer == "final"
    assert found.values.shape == (2, 2, 2, 3)


@pytest.mark.parametrize("kind", [cam.GradCAM, cam.GradCAMPlusPlus, cam.XGradCAM, cam.HiResCAM, cam.LayerCAM])
def test_any_declared_layer_can_be_read(net, kind):
    found = kind(layer="one")(net, pictures(), SCORES, net.explain_spec())
    assert found.values.shape == (2, 2, 4, 6)
    assert found.values.any()
    assert kind.is_signed or found.values.min() >= 0
    assert found.negative.shape == (2, 2)
    assert ((found.negative >= 0) & (found.negative <= 1)).all()


def test_unknown_layers_offer_the_nearest_name(net):
    with pytest.raises(UnknownNameError, match="did you mean 'final'"):
        cam.GradCAM(layer="finla")(net, pictures(), SCORES, net.explain_spec())


def test_xgradcam_stays_finite_where_activations_cancel():
    maps = torch.tensor([[[[1.0, -1.0]], [[2.0, 1.0]]]])  # ΣA = 0 in the first channel
    gradients = torch.tensor([[[[[3.0, 1.0]], [[1.0, 2.0]]]]])
    found = cam.XGradCAM().combine(maps, gradients)
    torch.testing.assert_close(found, torch.tensor([[[[2.0 + 8 / 3, -2.0 + 4 / 3]]]]))


def test_negative_evidence_is_counted_before_it_is_cut_off(net):
    with torch.no_grad():
        net.head.weight.copy_(-net.head.weight.abs())
    layer = ExplainSpec({"final": GridLayer("act", _as_is)})
    found = cam.HiResCAM()(net, pictures(), SCORES, layer)
    assert (found.negative == 1).all()
    blank = cam.GradCAM()(net, pictures(), SCORES, layer)
    assert not blank.values.any()
    assert (blank.negative == 1).all()


def test_cam_says_what_to_use_where_it_does_not_apply(net):
    with pytest.raises(ExplainError, match="hirescam"):
        cam.CAM()(net, pictures(), SCORES, net.explain_spec())


def test_eigencam_finds_the_pattern_with_its_sign_whatever_the_score(net):
    pattern = torch.rand(2, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net.two.weight.zero_()
        net.two.bias.copy_(torch.tensor([-3.0, -2, 1, 0, -1, -4]))

    class Patterned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.times = nn.Identity()

        def forward(self, images):
            maps = self.times(self.net.two(self.net.one(images.pixels)) * pattern)
            return self.net.head(maps.flatten(1))

    spec = ExplainSpec({"final": GridLayer("times", _as_is)})
    found = cam.EigenCAM()(Patterned(), pictures(), SCORES, spec).values
    torch.testing.assert_close(found[0], found[1])
    size = torch.tensor([9.0, 4, 1, 0, 1, 16]).sum().sqrt()
    torch.testing.assert_close(found[0, 0], pattern * size, rtol=1e-4, atol=1e-4)


def test_scorecam_follows_its_stated_convention(net):
    images = pictures(1)
    found = cam.ScoreCAM(chunk=2)(net, images, SCORES, net.explain_spec())
    with torch.no_grad():
        maps = net.two(net.act(net.one(images.pixels)))[0]
        logits = []
        for channel in maps:
            mask = nn.functional.interpolate(channel[None, None], (8, 12), mode="bilinear", align_corners=False)
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            logits.append(net(ImageBatch.of(images.pixels * mask))[0])
        weights = torch.stack(logits).softmax(dim=0)  # [C, K]
    expected = torch.einsum("ck,chw->khw", weights, maps).clamp_min(0)
    torch.testing.assert_close(found.values[:, 0], expected)
    batch = cam.ScoreCAM()(net, pictures(2), SCORES, net.explain_spec()).values
    alone = cam.ScoreCAM()(net, pictures(2)[1], SCORES, net.explain_spec()).values
    torch.testing.assert_close(batch[:, 1:], alone)


def test_scorecam_gives_constant_channels_no_weight(net):
    with torch.no_grad():
        net.two.weight[1:].zero_()
    found = cam.ScoreCAM()(net, pictures(1), SCORES, net.explain_spec()).values
    with torch.no_grad():
        first = net.two(net.act(net.one(pictures(1).pixels)))[0, 0].clamp_min(0)
        net.two.weight.zero_()
    torch.testing.assert_close(found[:, 0], first.expand(2, -1, -1))
    assert not cam.ScoreCAM()(net, pictures(1), SCORES, net.explain_spec()).values.isnan().any()


def test_scorecam_keeps_the_most_varied_channels(net):
    with torch.no_grad():
        net.two.weight[2] *= 100
    found = cam.ScoreCAM(max_channels=1)(net, pictures(1), SCORES, net.explain_spec()).values
    with torch.no_grad():
        channel = net.two(net.act(net.one(pictures(1).pixels)))[0, 2].clamp_min(0)
    torch.testing.assert_close(found[0, 0], channel)


@pytest.mark.parametrize("options", [{"chunk": 0}, {"max_channels": 0}])
def test_senseless_options_are_refused(options):
    with pytest.raises(ConfigError):
        cam.ScoreCAM(**options)


def test_maps_change_when_the_weights_are_drawn_anew(net):
    before = cam.HiResCAM()(net, pictures(), SCORES, net.explain_spec()).values
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    after = cam.HiResCAM()(net, pictures(), SCORES, net.explain_spec()).values
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] < 0.9
