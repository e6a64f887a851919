from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from saccade.errors import InputError
from saccade.nn.embed import (
    LearnedPositions,
    PatchEmbed,
    RotaryPositions,
    SinCosPositions,
    places,
    rotate,
    rotation,
    sincos,
    window_sincos,
)


def test_patches_are_flattened_and_multiplied() -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(4, 10)
    pixels = torch.randn(2, 3, 8, 12)
    patches = F.unfold(pixels, 4, stride=4).transpose(1, 2)
    expected = patches @ embed.project.weight.flatten(1).t() + embed.project.bias
    torch.testing.assert_close(embed(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "near"),
    [((30, 32), "28x32 or 32x32"), ((29, 31), "28x28 or 32x32"), ((3, 8), "4x8"), ((0, 4), "4x4")],
)
def test_an_untiled_size_names_the_nearest_ones(size: tuple[int, int], near: str) -> None:
    with pytest.raises(InputError, match=near):
        PatchEmbed(4, 8).grid(size)


def test_learned_positions_are_the_table_on_their_own_grid() -> None:
    positions = LearnedPositions((2, 3), 4)
    torch.testing.assert_close(positions((2, 3)), positions.table.reshape(1, 6, 4))


def test_resampling_a_linear_ramp_keeps_the_ramp() -> None:
    positions = LearnedPositions((8, 8), 2)
    rows = (torch.arange(8.0) + 0.5) / 8
    with torch.no_grad():
        positions.table[..., 0] = rows[:, None]
        positions.table[..., 1] = rows[None, :]
    finer = positions((16, 16)).reshape(16, 16, 2)
    expected = (torch.arange(16.0) + 0.5) / 16
    inner = slice(4, 12)  # a bicubic kernel sees the border within two cells of it
    torch.testing.assert_close(finer[inner, 8, 0], expected[inner], rtol=0, atol=2e-3)
    torch.testing.assert_close(finer[8, inner, 1], expected[inner], rtol=0, atol=2e-3)


def test_sincos_by_hand() -> None:
    codes = sincos(torch.tensor([[2.0, 3.0]]), 8)
    slow = 2 * 10_000.0**-1.0
    expected = [math.sin(2), math.sin(slow), math.cos(2), math.cos(slow)]
    expected += [math.sin(3), math.sin(slow * 1.5), math.cos(3), math.cos(slow * 1.5)]
    torch.testing.assert_close(codes[0], torch.tensor(expected))


def test_sincos_products_depend_on_the_distance_only() -> None:
    here, there = torch.tensor([[1.0, 2.0], [4.0, 0.0]]), torch.tensor([[3.0, 5.0], [6.0, 3.0]])
    products = (sincos(here, 32) * sincos(there, 32)).sum(-1)
    torch.testing.assert_close(products[0], products[1])


def test_places_of_a_finer_grid_lie_between_those_of_the_coarse_one() -> None:
    torch.testing.assert_close(places((4, 6), (4, 6))[7], torch.tensor([1.0, 1.0]))
    finer = places((8, 12), (4, 6))
    torch.testing.assert_close(finer[0], torch.tensor([-0.25, -0.25]))
    # The mean place of four fine cells is the place of the coarse cell that they fill.
    means = finer.view(4, 2, 6, 2, 2).mean(dim=(1, 3)).flatten(0, 1)
    torch.testing.assert_close(means, places((4, 6), (4, 6)))


def test_fixed_positions_are_evaluated_on_any_grid() -> None:
    finer = places((8, 12), (4, 6))
    fixed, rotary = SinCosPositions((4, 6), 16), RotaryPositions((4, 6), 8)
    torch.testing.assert_close(fixed((8, 12)), sincos(finer, 16)[None])
    torch.testing.assert_close(rotary((8, 12)), rotation(finer, 8))
    torch.testing.assert_close(fixed((4, 6)), sincos(places((4, 6), (4, 6)), 16)[None])
    assert not fixed.state_dict()
    assert not rotary.state_dict()


def test_rotary_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(8), torch.randn(8)
    here = torch.tensor([[1.0, 2.0], [4.0, 0.0]])
    there = here + torch.tensor([2.0, -1.0])
    queries = rotate(query.expand(1, 1, 2, 8), *rotation(here, 8))
    keys = rotate(key.expand(1, 1, 2, 8), *rotation(there, 8))
    scores = (queries * keys).sum(-1).flatten()
    torch.testing.assert_close(scores[0], scores[1])
    elsewhere = rotate(key.expand(1, 1, 2, 8), *rotation(there + torch.tensor([1.0, 0.0]), 8))
    assert not torch.allclose((queries * elsewhere).sum(-1).flatten(), scores)


def test_rotation_keeps_lengths_and_leaves_the_prefix() -> None:
    torch.manual_seed(0)
    heads = torch.randn(2, 3, 2 + 6, 8)
    turned = rotate(heads, *rotation(places((2, 3), (2, 3)), 8))
    torch.testing.assert_close(turned.norm(dim=-1), heads.norm(dim=-1))
    assert torch.equal(turned[:, :, :2], heads[:, :, :2])
    torch.testing.assert_close(turned[:, :, 2], heads[:, :, 2])  # the patch at the origin does not turn
    assert not torch.allclose(turned[:, :, 3:], heads[:, :, 3:])


def test_window_positions_turn_once_over_the_picture() -> None:
    codes = window_sincos([(2, 4), (3, 4)], (3, 4), 8).unflatten(1, (3, 4))
    assert codes.shape == (2, 3, 4, 8)
    # Channels: sin y, cos y of the fastest wave, of the next; then x. The second of two rows ends the turn.
    torch.testing.assert_close(codes[0, 0, 0, :2], torch.tensor([0.0, -1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(codes[0, 1, 0, :2], torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)
    quarter = torch.tensor([math.sin(math.pi / 2), math.cos(math.pi / 2)])
    torch.testing.assert_close(codes[0, 0, 0, 4:6], quarter, atol=1e-5, rtol=0)
    slow = 2 * math.pi / 3 / 10_000 ** (2 / 4)
    torch.testing.assert_close(codes[1, 0, 0, 2:4], torch.tensor([math.sin(slow), math.cos(slow)]))


def test_window_positions_do_not_depend_on_the_padding() -> None:
    alone = window_sincos([(2, 3)], (2, 3), 16).unflatten(1, (2, 3))
    padded = window_sincos([(2, 3)], (5, 4), 16).unflatten(1, (5, 4))
    torch.testing.assert_close(padded[:, :2, :3], alone)
