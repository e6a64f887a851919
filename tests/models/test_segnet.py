from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.models.segnet import SegNet, SegNetConfig
from saccade.nn.resample import UpsampleKind
from saccade.registry import names


def test_the_encoder_has_the_weights_of_vgg16() -> None:
    with torch.device("meta"):
        model = SegNet(SegNetConfig())
    weights = [p for key, p in model.encoder.named_parameters() if p.ndim == 4]
    assert len(weights) == 13
    assert sum(weight.numel() for weight in weights) == 14_714_688 - 4_224  # VGG16's convolutions without their biases


def test_the_decoder_mirrors_the_encoder() -> None:
    model = SegNet(SegNetConfig(widths=(8, 12, 20), convs=(1, 2, 3)))
    shapes = [[tuple(p.shape[:2]) for p in stage.parameters() if p.ndim == 4] for stage in model.decoder]
    assert shapes == [[(20, 20), (20, 20), (12, 20)], [(12, 12), (8, 12)], [(8, 8)]]
    assert model.segment(torch.randn(2, 3, 16, 24)).logits.shape == (2, 21, 16, 24)


def test_every_kind_of_upsampling_has_variants() -> None:
    kinds = get_args(UpsampleKind)
    assert {f"segnet_{kind}_test" for kind in kinds} <= set(names())
    assert {"segnet_small", *(f"segnet_small_{kind}" for kind in kinds if kind != "max_unpool")} <= set(names())


def only_resampling(upsample: UpsampleKind) -> SegNet:
    """A network of two levels without its convolutions: what pooling and upsampling alone do to the pixels."""
    model = SegNet(SegNetConfig(widths=(3, 3), convs=(1, 1), upsample=upsample))
    for stages in (model.encoder, model.decoder):
        for index in range(2):
            stages[index] = nn.Identity()
    model.head = nn.Identity()  # type: ignore[assignment]
    return model


def test_each_maximum_returns_to_its_own_place() -> None:
    pixels = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)).abs()
    blocks = pixels.reshape(2, 3, 2, 4, 3, 4)
    is_largest = blocks == blocks.amax(dim=(3, 5), keepdim=True)
    expected = (blocks * is_largest).reshape_as(pixels)
    assert torch.equal(only_resampling("max_unpool").segment(pixels).logits, expected)


def test_other_kinds_leave_the_indices_alone() -> None:
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    largest = pixels.reshape(1, 3, 2, 4, 2, 4).amax(dim=(3, 5))
    expected = largest.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(only_resampling("nearest").segment(pixels).logits, expected)


class Nothing(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return torch.zeros_like(maps)


@pytest.mark.parametrize("upsample", ["max_unpool", "bilinear"])
def test_values_pass_through_the_bottleneck_alone(upsample: UpsampleKind) -> None:
    torch.manual_seed(0)
    model = SegNet(SegNetConfig(widths=(8, 8), convs=(1, 1), num_classes=3, upsample=upsample)).eval()
    one, other = torch.randn(2, 1, 3, 16, 16)
    assert not torch.allclose(model.segment(one).logits, model.segment(other).logits)
    model.bottleneck = Nothing()  # type: ignore[assignment]
    assert torch.equal(model.segment(one).logits, model.segment(other).logits)


def test_levels_without_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"convs: widths is \(8, 8\), convs \(1,\)"):
        SegNetConfig(widths=(8, 8), convs=(1,))
    with pytest.raises(ConfigError, match="at least 1 per level"):
        SegNetConfig(widths=(8, 8), convs=(1, 0))
