from __future__ import annotations

import math

import pytest
import torch

from saccade.errors import InputError
from saccade.losses import cross_entropy, load_balance, router_z


def test_cross_entropy_of_equal_logits_is_log_k() -> None:
    loss = cross_entropy(torch.zeros(3, 7), torch.tensor([0, 3, 6]))
    assert float(loss) == pytest.approx(math.log(7))


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert float(cross_entropy(logits, torch.tensor([0, 0]))) == pytest.approx(expected)


def test_soft_labels_blend_the_hard_losses() -> None:
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    soft = torch.tensor([[0.7, 0.0, 0.3, 0.0, 0.0]])
    parts = [cross_entropy(logits, torch.tensor([label])) for label in (0, 2)]
    assert float(cross_entropy(logits, soft)) == pytest.approx(float(0.7 * parts[0] + 0.3 * parts[1]))


def test_one_hot_soft_labels_equal_hard_labels() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 4, 2, 2])
    soft = torch.nn.functional.one_hot(labels, 5).float()
    torch.testing.assert_close(cross_entropy(logits, soft), cross_entropy(logits, labels))


def test_cross_entropy_is_float32_from_bfloat16() -> None:
    assert cross_entropy(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_named(label: int) -> None:
    with pytest.raises(InputError, match=rf"label {label} is no class.*0 to 2"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, label]))


def test_soft_labels_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 4\).*\(2, 3\)"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("experts", [2, 8])
def test_uniform_routing_has_load_balance_one(experts: int) -> None:
    uniform = torch.full((16, experts), 1 / experts)
    assert float(load_balance(uniform, torch.full((experts,), 1 / experts))) == pytest.approx(1)


def test_collapsed_routing_has_load_balance_e() -> None:
    probabilities = torch.tensor([[1.0, 0, 0, 0]]).expand(10, 4)
    assert float(load_balance(probabilities, torch.tensor([1.0, 0, 0, 0]))) == pytest.approx(4)


def test_load_balance_by_hand_and_its_gradient() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5]], requires_grad=True)
    load = torch.tensor([1.0, 0.0])
    loss = load_balance(probabilities, load)
    assert float(loss.detach()) == pytest.approx(2 * 0.625)
    loss.backward()
    # E * load_e / S: pushes down the probability of the expert in use, nothing else.
    torch.testing.assert_close(probabilities.grad, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_router_z_of_equal_logits() -> None:
    assert float(router_z(torch.zeros(5, 8))) == pytest.approx(math.log(8) ** 2)


def test_router_z_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    expected = (math.log(2) ** 2 + (3 + math.log(2)) ** 2) / 2
    assert float(router_z(logits)) == pytest.approx(expected)
