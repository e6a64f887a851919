"""The same maps as pytorch-grad-cam and captum, where definitions agree, on a network without in-place operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.explanation import cam, gradients
from saccade.explanation.attribution import Explainer
from saccade.explanation.perturbation import Occlusion
from saccade.explanation.scores import class_score
from saccade.types import ExplainSpec, GridLayer, ImageBatch

LABEL, SIZE = 2, (24, 32)
AGREEMENT = 0.999


class Bare(nn.Module):
    """Convolutions and a head that reads every place differently, so that no two of the methods are the same here."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 6 * 8, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(pixels))
        return logits


class Ours(nn.Module):
    """The same as our explainers call models."""

    def __init__(self, bare: Bare) -> None:
        super().__init__()
        self.bare = bare

    def forward(self, images: ImageBatch) -> Tensor:
        logits: Tensor = self.bare(images.pixels)
        return logits

    def explain_spec(self) -> ExplainSpec:
        return ExplainSpec({"final": GridLayer("bare.body.5", lambda activation, canvas: activation)})


@pytest.fixture(scope="module")
def bare() -> Bare:
    torch.manual_seed(0)
    net = Bare()
    with torch.no_grad():
        for _ in range(3):  # running statistics that are not zero and one
            net(torch.randn(16, 3, *SIZE) + 0.3)
    return net.eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    coarse = torch.randn(3, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, SIZE, mode="bilinear", align_corners=False)


def ours_of(explainer: Explainer, bare: Bare, pixels: Tensor) -> Tensor:
    """``[B, h, w]``."""
    model = Ours(bare)
    return explainer(model, ImageBatch.of(pixels), [class_score(LABEL)], model.explain_spec()).values[0]


def enlarged(values: Tensor) -> Tensor:
    return F.interpolate(values[:, None], SIZE, mode="bilinear", align_corners=False)[:, 0]


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's, the lowest of the pictures."""
    assert first.shape == second.shape
    pairs = zip(first.detach().double().flatten(1), second.detach().double().flatten(1), strict=True)
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)


@pytest.mark.parametrize(
    ("explainer", "peer"),
    [
        (cam.GradCAM(), "GradCAM"),
        (cam.HiResCAM(), "HiResCAM"),
        (cam.LayerCAM(), "LayerCAM"),
        (cam.XGradCAM(), "XGradCAM"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layer_methods_agree_with_pytorch_grad_cam(explainer: Explainer, peer: str, bare: Bare, pixels: Tensor) -> None:
    theirs = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with getattr(theirs, peer)(bare, [bare.body[5]]) as method:
        maps = torch.from_numpy(method(pixels, [ClassifierOutputTarget(LABEL)] * len(pixels)))
    found = enlarged(ours_of(explainer, bare, pixels).clamp_min(0))
    assert correlation(found, maps) >= AGREEMENT


Attribute = Callable[[Any, Bare, Tensor], Tensor]


def pixel_map(values: Tensor) -> Tensor:
    return values.sum(dim=1)


CAPTUM: dict[str, tuple[Explainer, Attribute]] = {
    "grad-cam": (
        cam.GradCAM(),
        lambda attr, net, x: attr.LayerGradCam(net, net.body[5]).attribute(x, LABEL, relu_attributions=True)[:, 0],
    ),
    "layer gradient x activation": (
        cam.HiResCAM(),
        lambda attr, net, x: pixel_map(attr.LayerGradientXActivation(net, net.body[5]).attribute(x, LABEL)),
    ),
    "saliency": (gradients.Gradient(), lambda attr, net, x: attr.Saliency(net).attribute(x, LABEL).amax(dim=1)),
    "input x gradient": (
        gradients.InputGradient(),
        lambda attr, net, x: pixel_map(attr.InputXGradient(net).attribute(x, LABEL)),
    ),
    "integrated gradients": (
        gradients.IntegratedGradients(steps=20),
        lambda attr, net, x: pixel_map(
            attr.IntegratedGradients(net).attribute(x, 0 * x, LABEL, n_steps=20, method="gausslegendre")
        ),
    ),
    "occlusion": (
        Occlusion(patch=8, stride=8),
        lambda attr, net, x: pixel_map(
            attr.Occlusion(net).attribute(x, (3, 8, 8), strides=(3, 8, 8), baselines=0, target=LABEL)
        ),
    ),
}


@pytest.mark.parametrize("name", CAPTUM)
def test_methods_agree_with_captum(name: str, bare: Bare, pixels: Tensor) -> None:
    theirs = pytest.importorskip("captum.attr")
    explainer, attribute = CAPTUM[name]
    leaf = pixels.clone().requires_grad_()
    assert correlation(ours_of(explainer, bare, pixels), attribute(theirs, bare, leaf)) >= AGREEMENT


def test_the_methods_differ_on_this_network(bare: Bare, pixels: Tensor) -> None:
    """Agreement means something: no two of them are the same map here."""
    maps = [
        ours_of(kind(), bare, pixels).clamp_min(0) for kind in (cam.GradCAM, cam.HiResCAM, cam.LayerCAM, cam.XGradCAM)
    ]
    for place, first in enumerate(maps):
        for second in maps[place + 1 :]:
            assert correlation(first, second) < AGREEMENT
