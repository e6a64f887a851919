"""The set prediction loss in numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError
from saccade.matching.hungarian import Objects
from saccade.models.set_loss import SetLossConfig, varifocal

TRUTH = torch.tensor([0.5, 0.5, 0.2, 0.4])
NEAR = torch.tensor([0.6, 0.5, 0.2, 0.4])
"""Half of it is on the true box: IoU 1/3, no empty share in the hull, L1 0.1."""
FAR = torch.tensor([0.1, 0.1, 0.05, 0.05])


def one_object() -> Objects:
    return Objects(torch.tensor([[1]]), TRUTH.reshape(1, 1, 4), torch.tensor([[True]]))


def said(*probabilities: list[float]) -> Tensor:
    """Logits ``[1, 1, Q, 3]`` of two classes and "no object"."""
    return torch.tensor(probabilities).log()[None, None]


def test_published_loss_in_numbers() -> None:
    logits = said([0.2, 0.6, 0.2], [0.1, 0.1, 0.8])
    boxes = torch.stack([NEAR, FAR])[None, None]
    terms = SetLossConfig(no_object=0.1)(logits, boxes, one_object())
    # The first query is the object, the second is none and counts a tenth.
    expected = -(math.log(0.6) + 0.1 * math.log(0.8)) / 1.1
    assert float(terms["class"]) == pytest.approx(expected)
    assert float(terms["boxes"]) == pytest.approx(5 * 0.1)
    assert float(terms["giou"]) == pytest.approx(2 * (1 - 1 / 3))
    assert set(terms) == {"class", "boxes", "giou"}


def test_simple_loss_in_numbers() -> None:
    logits = said([0.2, 0.6, 0.2], [0.1, 0.1, 0.8])
    terms = SetLossConfig(kind="notes", boxes=3.0)(logits, torch.stack([NEAR, FAR])[None, None], one_object())
    assert float(terms["boxes"]) == pytest.approx(3 * 0.01)
    assert set(terms) == {"class", "boxes"}


def test_every_layer_matches_on_its_own() -> None:
    # In the first layer the second query is the better one, in the last layer the first.
    logits = said([0.2, 0.6, 0.2], [0.1, 0.1, 0.8]).repeat(3, 1, 1, 1)
    boxes = torch.stack([torch.stack([FAR, NEAR]), torch.stack([TRUTH, FAR]), torch.stack([NEAR, FAR])])[:, None]
    terms = SetLossConfig(auxiliary=0.5)(logits, boxes, one_object())
    assert float(terms["boxes"]) == pytest.approx(5 * 0.1)
    assert float(terms["aux_boxes"]) == pytest.approx(0.5 * 5 * (0.1 + 0))
    assert float(terms["aux_giou"]) == pytest.approx(0.5 * 2 * (1 - 1 / 3), abs=1e-5)
    assert set(SetLossConfig(auxiliary=0)(logits, boxes, one_object())) == {"class", "boxes", "giou"}


def test_boxes_count_per_object_of_the_batch() -> None:
    two = Objects(*(torch.cat([part, part]) for part in one_object()))
    logits = said([0.2, 0.6, 0.2], [0.1, 0.1, 0.8])
    boxes = torch.stack([NEAR, FAR])[None, None]
    alone = SetLossConfig()(logits, boxes, one_object())
    doubled = SetLossConfig()(logits.repeat(1, 2, 1, 1), boxes.repeat(1, 2, 1, 1), two)
    for name, term in alone.items():
        torch.testing.assert_close(doubled[name], term)


def test_no_objects_teach_no_object() -> None:
    logits = said([0.2, 0.6, 0.2], [0.1, 0.1, 0.8]).requires_grad_()
    none = Objects(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.bool))
    terms = SetLossConfig()(logits, torch.stack([NEAR, FAR])[None, None], none)
    assert terms["class"].item() == pytest.approx(-(math.log(0.2) + math.log(0.8)) / 2)
    assert float(terms["boxes"]) == float(terms["giou"]) == 0
    (gradient,) = torch.autograd.grad(terms["class"], logits)
    assert bool((gradient[..., -1] < 0).all())


def test_varifocal_in_numbers() -> None:
    logits = torch.logit(torch.tensor([0.6, 0.3]))
    aims = torch.tensor([0.5, 0.0])
    expected = [-0.5 * (math.log(0.6) + math.log(0.4)), -0.75 * 0.3**2 * math.log(0.7)]
    assert varifocal(logits, aims, alpha=0.75, gamma=2).tolist() == pytest.approx(expected)
    # It is least where the score is what it aims at.
    score = torch.tensor([0.5]).logit().requires_grad_()
    (gradient,) = torch.autograd.grad(varifocal(score, torch.tensor([0.5]), alpha=0.75, gamma=2).sum(), score)
    assert float(gradient) == pytest.approx(0, abs=1e-6)


def test_weights_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="weight"):
        SetLossConfig(boxes=-1)
