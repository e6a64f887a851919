"""Deformable attention against a loop over points, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from saccade.nn.deformable import DeformableAttention


def made(width: int = 8, heads: int = 2, levels: int = 2, points: int = 3) -> DeformableAttention:
    torch.manual_seed(0)
    attention = DeformableAttention(width, heads, levels, points)
    with torch.no_grad():  # at the start all queries look at the same points
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention.eval()


def given(attention: DeformableAttention, queries: int = 5) -> tuple[Tensor, Tensor, list[Tensor]]:
    dice = torch.Generator().manual_seed(1)
    width = attention.project.in_features
    maps = [torch.randn(2, width, 6 // 2**level, 8 // 2**level, generator=dice) for level in range(attention.shape[1])]
    boxes = 0.2 + 0.6 * torch.rand(2, queries, 4, generator=dice)
    return torch.randn(2, queries, width, generator=dice), boxes, maps


def read(plane: Tensor, x: float, y: float) -> Tensor:
    """The value ``[D]`` of a map ``[D, h, w]`` at shares x and y of it: bilinear, zero outside."""
    height, width = plane.shape[-2:]
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros(plane.shape[0])
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < height and 0 <= c < width:
                total += (1 - abs(row - r)) * (1 - abs(column - c)) * plane[:, r, c]
    return total


@torch.no_grad()
def test_it_is_the_loop_over_points() -> None:
    attention = made()
    queries, boxes, maps = given(attention)
    heads, levels, points = attention.shape
    values = [attention.value(level.movedim(1, -1)).movedim(-1, 1).unflatten(1, (heads, -1)) for level in maps]
    offsets = attention.offset(queries).unflatten(-1, (heads, levels, points, 2))
    weights = attention.weight(queries).unflatten(-1, (heads, -1)).softmax(-1).unflatten(-1, (levels, points))
    gathered = torch.zeros(2, 5, heads, 4)
    for b in range(2):
        for q in range(5):
            x, y, width, height = boxes[b, q].tolist()
            for n in range(heads):
                for level in range(levels):
                    for p in range(points):
                        dx, dy = offsets[b, q, n, level, p].tolist()
                        place = (x + dx / points * width / 2, y + dy / points * height / 2)
                        gathered[b, q, n] += weights[b, q, n, level, p] * read(values[level][b, n], *place)
    expected = attention.project(gathered.flatten(2))
    torch.testing.assert_close(attention(queries, boxes, maps), expected, rtol=1e-4, atol=1e-5)


def test_a_ramp_is_read_where_the_box_is() -> None:
    attention = DeformableAttention(4, 1, 1, 1)
    with torch.no_grad():
        attention.offset.bias.zero_()
        for matrix in (attention.value, attention.project):
            nn.init.eye_(matrix.weight)
    columns = (torch.arange(8) + 0.5) / 8
    ramp = columns.expand(1, 4, 6, 8).contiguous()
    boxes = torch.tensor([[[0.4, 0.5, 0.3, 0.3], [0.71, 0.2, 0.1, 0.1]]])
    found = attention(torch.zeros(1, 2, 4), boxes, [ramp])
    torch.testing.assert_close(found[0, :, 0], torch.tensor([0.4, 0.71]))


def test_points_start_inside_of_the_box_in_all_directions() -> None:
    attention = DeformableAttention(8, 4, 1, 4)
    seen: list[Tensor] = []
    attention.points.register_forward_hook(lambda _module, _given, points: seen.append(points))
    box = torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
    attention(torch.randn(1, 1, 8), box, [torch.randn(1, 8, 4, 4)])
    points = seen[0][0, 0, :, 0]  # [N, P, 2]
    low, high = torch.tensor([0.4, 0.3]), torch.tensor([0.6, 0.7])
    assert bool(((points >= low - 1e-6) & (points <= high + 1e-6)).all())
    torch.testing.assert_close(points[:, -1], torch.tensor([[0.6, 0.5], [0.5, 0.7], [0.4, 0.5], [0.5, 0.3]]))


def test_the_weights_of_points_can_be_watched() -> None:
    attention = made()
    arguments = given(attention)
    expected = attention(*arguments)
    seen: list[Tensor] = []
    attention.probabilities.register_forward_hook(lambda _module, _given, weights: seen.append(weights))
    assert torch.equal(attention(*arguments), expected)
    assert seen[0].shape == (2, 2, 5, 6)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 2, 5))


def test_gradients_reach_everything() -> None:
    attention = made()
    queries, boxes, maps = given(attention)
    leaves = [queries.requires_grad_(), boxes.requires_grad_(), *(level.requires_grad_() for level in maps)]
    attention(queries, boxes, maps).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in [*leaves, *attention.parameters()])


def test_half_precision_looks_at_the_same_points() -> None:
    attention = made()
    queries, boxes, maps = given(attention)
    expected = attention(queries, boxes, maps)
    half = attention.bfloat16()(queries.bfloat16(), boxes, [level.bfloat16() for level in maps])
    assert half.dtype == torch.bfloat16
    assert float((half.float() - expected).detach().abs().max()) < 0.05 * float(expected.detach().abs().max()) + 0.02


@pytest.mark.parametrize("levels", [1, 3])
def test_exports(levels: int) -> None:
    attention = made(levels=levels)
    arguments = given(attention)
    exported = torch.export.export(attention, arguments)
    torch.testing.assert_close(exported.module()(*arguments), attention(*arguments))
