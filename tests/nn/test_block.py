from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saccade.nn.block import Block, DropPath, LayerScale


class Constant(nn.Module):
    """A branch that adds one value whatever it sees."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.seen: list[Tensor] = []

    def forward(self, tokens: Tensor, rotation: object = None) -> Tensor:
        self.seen.append(tokens)
        return torch.full_like(tokens, self.value)


class Double(nn.Module):
    """Stands for a norm, to see where it is applied."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 2 * tokens


@pytest.mark.parametrize(("is_pre_norm", "expected"), [(True, 1 + 3 + 5), (False, ((1 + 3) * 2 + 5) * 2)])
def test_where_the_norms_stand(is_pre_norm: bool, expected: float) -> None:
    attention, mlp = Constant(3), Constant(5)
    block = Block(attention, mlp, (Double(), Double()), width=4, is_pre_norm=is_pre_norm)
    tokens, decision = block(torch.ones(1, 2, 4), None)
    torch.testing.assert_close(tokens, torch.full((1, 2, 4), float(expected)))
    assert decision is None
    torch.testing.assert_close(attention.seen[0], torch.full((1, 2, 4), 2.0 if is_pre_norm else 1.0))


def test_layer_scale_starts_near_the_identity() -> None:
    block = Block(Constant(3), Constant(5), (Double(), Double()), width=4, layer_scale=1e-3)
    torch.testing.assert_close(block(torch.ones(1, 2, 4), None)[0], torch.full((1, 2, 4), 1.008))
    assert LayerScale(4, 0.5)(torch.ones(4)).tolist() == [0.5] * 4


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_drop_path_keeps_the_mean_and_drops_whole_pictures(rate: float) -> None:
    torch.manual_seed(0)
    dropped = DropPath(rate).train()(torch.ones(20_000, 2, 3))
    per_picture = dropped.flatten(1)
    assert torch.equal(per_picture.amin(1), per_picture.amax(1))
    assert float((per_picture[:, 0] == 0).float().mean()) == pytest.approx(rate, abs=0.02)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)


def test_drop_path_is_off_in_evaluation_and_at_rate_zero() -> None:
    branch = torch.ones(8, 2)
    assert DropPath(0.9).eval()(branch) is branch
    assert DropPath(0.0).train()(branch) is branch
