"""8-bit layers: exact where nothing has to be rounded, close where it has, and blind to the pictures beside."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.engine.quantize import (
    QuantizedConv2d,
    QuantizedLinear,
    has_eight_bit_kernel,
    quantize_convolutions,
    round_pictures,
)

needs_kernel = pytest.mark.skipif(not has_eight_bit_kernel(), reason="this processor has no 8-bit multiplication")

KINDS = {
    "1x1": {"kernel_size": 1},
    "1x1, stride 2": {"kernel_size": 1, "stride": 2},
    "1x1, padded": {"kernel_size": 1, "padding": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3, stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "3x3, dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "2x3, uneven": {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 1)},
}


def random_pictures(count: int, low: int, high: int) -> Tensor:
    """Whole numbers ``[count, 32, 9, 11]`` from low to high, both of which every picture has."""
    pictures = torch.randint(low, high + 1, (count, 32, 9, 11)).float()
    pictures[:, 0, 0, 0], pictures[:, 0, 0, 2] = low, high
    return pictures.contiguous(memory_format=torch.channels_last)


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("low", [0, -126])
@pytest.mark.parametrize("count", [1, 3])
def test_bytes_are_multiplied_exactly(kind: str, low: int, count: int) -> None:
    """Weights and pictures that are bytes already lose nothing; sums stay below 2^24, so float32 is exact too."""
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 48, **KINDS[kind])
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-127, 128, conv.weight.shape))
        conv.weight[:, 0, 0, 0] = 127
        conv.bias.copy_(torch.randint(-99, 100, conv.bias.shape))
        pictures = random_pictures(count, low, 254 if low == 0 else 126)
        expected = conv(pictures)
        found = QuantizedConv2d(conv)(pictures)
    assert torch.equal(found, expected)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kind", ["1x1, stride 2", "3x3"])
def test_a_convolution_equals_that_of_rounded_numbers(
    kind: str, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 48, **KINDS[kind])
    pictures = torch.randn(2, 32, 9, 11).contiguous(memory_format=layout).to(dtype)
    seen = pictures[:, :, ::2, ::2] if kind == "1x1, stride 2" else pictures
    with torch.no_grad():
        found = QuantizedConv2d(conv)(pictures)
        step = conv.weight.abs().amax((1, 2, 3), keepdim=True) / 127
        weight = (conv.weight / step).round() * step
        factor = 126 / seen.abs().amax((1, 2, 3), keepdim=True)
        rounded = (seen * factor).round().float() / factor.float()
        expected = F.conv2d(rounded, weight, conv.bias, padding=conv.padding)
        plain = conv(pictures.float())
    assert found.dtype == dtype
    loose = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.float(), expected, atol=loose, rtol=loose)
    assert 0 < (found - plain).norm() / plain.norm() < 0.03, "rounding to 8 bits costs something, but not much"


@needs_kernel
@pytest.mark.parametrize("kind", ["1x1", "3x3"])
def test_pictures_beside_do_not_matter(kind: str) -> None:
    torch.manual_seed(0)
    layer = QuantizedConv2d(nn.Conv2d(32, 48, **KINDS[kind]))
    dark, bright = torch.rand(1, 32, 9, 11) / 100, torch.rand(1, 32, 9, 11) * 100
    signed, empty = torch.randn(1, 32, 9, 11), torch.zeros(1, 32, 9, 11)
    for together in ([dark, bright, empty], [signed, -signed], [dark, signed, bright]):
        found = layer(torch.cat(together))
        for one, picture in zip(found, together, strict=True):
            torch.testing.assert_close(one, layer(picture)[0], atol=1e-5, rtol=1e-5)


@needs_kernel
def test_a_picture_that_is_not_finite_stays_so_alone() -> None:
    layer = QuantizedConv2d(nn.Conv2d(32, 48, 3))
    pictures = torch.rand(2, 32, 9, 11)
    pictures[0, 3, 4, 5] = torch.nan
    found = layer(pictures)
    assert found[0].isnan().any()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_pictures_use_their_bytes_and_never_leave_them(dtype: torch.dtype) -> None:
    """In bfloat16 the factor and the products are rounded, upwards too: none may pass the end of a byte."""
    sizes = torch.linspace(0.9, 1.9, 500).view(-1, 1, 1, 1)
    shares = torch.linspace(0, 1, 64).view(1, 64, 1, 1)
    pictures = (sizes * shares).to(dtype)
    rounded, factor, zero_point = round_pictures(pictures, is_signed=False)
    assert (rounded.dtype, zero_point) == (torch.uint8, 0)
    assert (rounded.flatten(1).diff(dim=1).int() >= 0).all()
    assert rounded[:, -1].min() >= 253
    torch.testing.assert_close(rounded / factor.float(), pictures.float(), atol=0.006, rtol=0.005)
    rounded, factor, zero_point = round_pictures(torch.cat([-pictures, pictures], dim=1), is_signed=True)
    assert zero_point == 128
    signed = rounded.int() - 128
    assert torch.equal(signed[:, :64], -signed[:, 64:])
    assert int(signed[:, -1].min()) >= 125
    torch.testing.assert_close(signed[:, 64:] / factor.float(), pictures.float(), atol=0.012, rtol=0.005)


@needs_kernel
def test_a_zero_with_a_sign_is_not_below_zero() -> None:
    layer = QuantizedConv2d(nn.Conv2d(32, 48, 1))
    picture = torch.rand(1, 32, 9, 11)
    picture[0, 0, 0, 0] = 0.0
    signed = picture.clone()
    signed[0, 0, 0, 0] = -0.0
    assert torch.equal(layer(signed), layer(picture))


@needs_kernel
def test_only_convolutions_that_gain_are_replaced() -> None:
    first, last = nn.Conv2d(3, 64, 7), nn.Conv2d(64, 64, 1)
    wide, narrow = nn.Conv2d(64, 256, 3), nn.Conv2d(256, 128, 1)
    grouped, reflecting = nn.Conv2d(128, 128, 3, groups=2), nn.Conv2d(128, 128, 3, padding_mode="reflect")
    scores = nn.Conv2d(128, 64, 3)
    model = nn.Sequential(first, wide, narrow, grouped, reflecting, scores, last)
    assert quantize_convolutions(model) == 1
    assert isinstance(model[1], QuantizedConv2d)
    assert all(kept is now for kept, now in zip((narrow, grouped, reflecting, scores, last), model[2:], strict=True))


@needs_kernel
def test_before_a_linear_head_the_last_convolution_is_replaced_too() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    assert quantize_convolutions(model) == 1
    assert isinstance(model[0], QuantizedConv2d)


@needs_kernel
def test_linear_layers_multiply_bytes_exactly() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 64)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-127, 128, linear.weight.shape))
        linear.weight[:, 0] = 127
        linear.bias.copy_(torch.randint(-99, 100, linear.bias.shape))
        tokens = torch.randint(-127, 128, (2, 5, 128)).float()
        tokens[..., 3] = -127
        assert torch.equal(QuantizedLinear(linear)(tokens), linear(tokens))
