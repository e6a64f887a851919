from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import ConfigError, InputError
from saccade.nn.resample import SubPixel, Transposed, UpsampleKind, build_upsample

SQUARE = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def enlarge(kind: UpsampleKind, indices: Tensor | None = None) -> Tensor:
    return build_upsample(kind, 1)(SQUARE[None, None], indices)[0, 0].detach()


def test_max_unpooling_puts_values_back_where_they_were_found() -> None:
    picture = torch.tensor([[0.0, 5, 1, 2], [3, 4, 8, 0], [6, 1, 0, 0], [2, 2, 1, 7]])
    values, indices = F.max_pool2d(picture[None, None], 2, return_indices=True)
    assert values.flatten().tolist() == [5, 8, 6, 7]
    expected = [[0, 1, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 4]]
    assert enlarge("max_unpool", indices).tolist() == expected


def test_bed_of_nails_uses_the_upper_left_corners() -> None:
    assert enlarge("bed_of_nails").tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]


def test_nearest_repeats() -> None:
    assert enlarge("nearest").tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_bilinear_interpolates_between_half_pixel_centres() -> None:
    # The value at (row, column) is linear: 1 + 2 * down + right, with the outer centres holding beyond them.
    steps = torch.tensor([0, 0.25, 0.75, 1])
    torch.testing.assert_close(enlarge("bilinear"), 1 + 2 * steps[:, None] + steps)


def test_transposed_starts_as_a_tent_around_each_value() -> None:
    # One axis: [a, b] becomes [3a, 3a + b, a + 3b, 3b] / 4, as nothing lies beyond the border.
    spread = torch.tensor([[3.0, 0], [3, 1], [1, 3], [0, 3]]) / 4
    torch.testing.assert_close(enlarge("transposed"), spread @ SQUARE @ spread.T)


def test_sub_pixel_starts_as_blocks_and_lays_channels_out_row_by_row() -> None:
    first = build_upsample("sub_pixel", 3)(torch.randn(1, 3, 2, 2))[0]
    assert torch.equal(first, first[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert (first[:, 0, 0] != first[:, 0, 2]).all()
    layer = SubPixel(1, 2)
    with torch.no_grad():
        layer.convolution.weight.zero_()
        layer.convolution.weight[:, 0, 1, 1] = torch.tensor([1.0, 10, 100, 1000])
    expected = [[1, 10, 2, 20], [100, 1000, 200, 2000], [3, 30, 4, 40], [300, 3000, 400, 4000]]
    assert layer(SQUARE[None, None])[0, 0].tolist() == expected


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_transposed_convolution_is_the_transposed_matrix_of_the_convolution(factor: int) -> None:
    channels, small = 2, 3
    side = small * factor
    layer = Transposed(channels, factor)
    torch.nn.init.normal_(layer.convolution.weight, generator=torch.Generator().manual_seed(0))
    units = torch.eye(channels * side * side).reshape(-1, channels, side, side)
    shrunk = F.conv2d(units, layer.convolution.weight, stride=factor, padding=layer.convolution.padding)
    matrix = shrunk.flatten(1).T  # column by column what the convolution makes of each unit image
    assert matrix.shape == (channels * small**2, channels * side**2)
    maps = torch.randn(1, channels, small, small, generator=torch.Generator().manual_seed(1))
    expected = (matrix.T @ maps.flatten()).reshape(1, channels, side, side)
    torch.testing.assert_close(layer(maps), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_transposed_starts_bilinear_away_from_the_border(factor: int) -> None:
    maps = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    inner = (..., slice(factor, -factor), slice(factor, -factor))
    bilinear = build_upsample("bilinear", 3, factor)(maps)
    torch.testing.assert_close(build_upsample("transposed", 3, factor)(maps)[inner], bilinear[inner])


@pytest.mark.parametrize("kind", ["max_unpool", "bed_of_nails", "nearest", "bilinear", "transposed", "sub_pixel"])
@pytest.mark.parametrize("factor", [2, 3])
def test_every_kind_multiplies_the_sides(kind: UpsampleKind, factor: int) -> None:
    larger = torch.randn(2, 4, 3 * factor, 5 * factor)
    maps, indices = F.max_pool2d(larger, factor, return_indices=True)
    assert build_upsample(kind, 4, factor)(maps, indices).shape == larger.shape


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match=r"no indices; expected \(1, 1, 2, 2\)"):
        enlarge("max_unpool")
    with pytest.raises(InputError, match=r"the indices are \(1, 1, 1, 1\)"):
        enlarge("max_unpool", torch.zeros(1, 1, 1, 1, dtype=torch.int64))
    with pytest.raises(ConfigError, match="the factor is 1"):
        build_upsample("nearest", 1, 1)
