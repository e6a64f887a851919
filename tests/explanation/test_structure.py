"""Whether weights look learned: exact on hand-made matrices, by chance on random ones, clear on trained ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from saccade.explanation.scramble import scrambled
from saccade.explanation.structure import BOUNDS, row_excess, structure
from saccade.models.build import create

INITIALISERS: dict[str, Callable[[Tensor], object]] = {
    "normal": lambda weight: nn.init.normal_(weight, std=0.02),
    "uniform": lambda weight: nn.init.uniform_(weight, -0.1, 0.1),
    "kaiming": nn.init.kaiming_normal_,
    "xavier": nn.init.xavier_uniform_,
    "truncated": lambda weight: nn.init.trunc_normal_(weight, std=0.02),
    "heavy tails": lambda weight: weight.data.copy_(torch.distributions.StudentT(3.0).sample(weight.shape)),
    "shifted": lambda weight: nn.init.normal_(weight, mean=1.0),
    "rows of other sizes": lambda weight: weight.data.normal_().mul_(
        torch.arange(1, len(weight) + 1)[:, None, None, None]
    ),
}


def test_the_excess_by_hand() -> None:
    """Eight rows of which two are alike and the rest orthogonal: one squared correlation of 28 is 1, the others 0."""
    basis = torch.eye(16)[:8] - torch.eye(16)[8:]  # orthogonal rows of mean 0
    basis[1] = 3 * basis[0]
    free, pairs = 15, 28
    spread = math.sqrt(2 * pairs * (free - 1) / (free + 2)) / free
    assert row_excess(basis) == pytest.approx((1 - pairs / free) / spread)
    # A number added to a row, and the length of a row, say nothing.
    assert row_excess(basis * torch.arange(1, 9)[:, None] + 5) == pytest.approx((1 - pairs / free) / spread, abs=1e-4)


@pytest.mark.parametrize("name", INITIALISERS)
def test_random_rows_lie_as_chance_says(name: str) -> None:
    torch.manual_seed(0)
    found = []
    for _ in range(200):
        weight = nn.Parameter(torch.empty(16, 6, 3, 3))
        INITIALISERS[name](weight)
        found.append(row_excess(weight) or 0.0)
    values = torch.tensor(found)
    assert abs(float(values.mean())) < 0.25, "four standard errors"
    assert 0.7 < float(values.std()) < 1.4
    assert float(values.max()) < 6


def test_what_says_nothing_is_left_out() -> None:
    assert row_excess(torch.randn(64)) is None
    assert row_excess(torch.randn(7, 64)) is None
    assert row_excess(torch.randn(64, 7)) is None
    assert row_excess(torch.zeros(16, 64)) is None
    assert row_excess(torch.randint(0, 9, (16, 64))) is None
    assert row_excess(torch.full((16, 64), float("nan"))) is None
    assert row_excess(torch.randn(0, 8)) is None
    assert structure(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))) is None, "two matrices are too few"


def test_neither_orthogonal_rows_nor_one_fixed_filter_decide() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32) for _ in range(9)]
    net = nn.Sequential(*layers)
    by_chance = structure(net)
    assert by_chance is not None
    assert abs(by_chance) < 4
    nn.init.constant_(layers[0].weight, 0.0)
    layers[0].weight.data[:, :2] = 1.0  # every row the same
    assert row_excess(layers[0].weight) > 100
    one_fixed = structure(net)
    assert one_fixed is not None
    assert one_fixed < by_chance + 2 * BOUNDS[1] / 3
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    assert structure(net) == pytest.approx(BOUNDS[0] * 3)


@pytest.mark.parametrize("name", ["resnet_test", "vit_token_test", "unet_plain_test", "faster_rcnn_test", "yolo_test"])
def test_fresh_networks_look_random(name: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        found = structure(create(name, 3))
        assert found is not None
        assert abs(found) < 4, found


def test_training_shows_and_shuffling_hides_it() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    pictures = torch.randn(10, 64).repeat(30, 1)
    labels = torch.arange(10).repeat(30)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    fresh = structure(net)
    for _ in range(100):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(pictures + 0.3 * torch.randn_like(pictures)), labels)
        loss.backward()
        optimiser.step()
    learned = structure(net)
    assert fresh is not None
    assert learned is not None
    assert fresh < 3 < 4 < learned
    for extent in ("all", "rows"):
        forgot = structure(scrambled(net, extent, 0))  # type: ignore[arg-type]
        assert forgot is not None
        assert forgot < 3
    half = structure(net.bfloat16())
    assert half == pytest.approx(learned, rel=0.1)
