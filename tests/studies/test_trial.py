"""What a trial counts: steps, operations, bytes kept for the backward pass."""

from __future__ import annotations

import pytest
import torch

from saccade.models.build import create
from saccade.studies.trial import count_activations, count_flops, count_parameters, divided, seconds_of
from saccade.types import ImageBatch


@pytest.mark.parametrize(
    ("steps", "per_epoch", "expected"), [(80, 6, (13, 6)), (3, 200, (1, 3)), (1, 1, (1, 1)), (400, 200, (2, 200))]
)
def test_steps_are_divided_into_epochs(steps: int, per_epoch: int, expected: tuple[int, int]) -> None:
    assert divided(steps, per_epoch) == expected


def test_no_number_of_steps_is_missed_by_much() -> None:
    for steps in range(1, 300):
        epochs, length = divided(steps, 9)
        assert 1 <= length <= 9
        assert abs(epochs * length - steps) <= 0.03 * steps


def test_operations_are_those_of_the_matrices() -> None:
    """The patches of a ViT: 16 patches of 8 x 8 x 3 numbers times 32 columns, two operations each, at any depth."""
    shallow, deep = (count_flops(create("vit_average_test", overrides={"backbone.depth": depth})) for depth in (1, 3))
    block = (deep - shallow) // 2
    assert shallow - block == 2 * 16 * 192 * 32 + 2 * 32 * 5


def test_parameters_are_counted() -> None:
    one, two = (count_parameters(create("vit_average_test", num_classes=count)) for count in (5, 6))
    assert two - one == 33  # a row of 32 weights and a bias


def test_activations_grow_with_the_batch_and_leave_parameters_out() -> None:
    model = create("unet_plain_test")
    one, two, four = (count_activations(model, ImageBatch.of(torch.zeros(n, 3, 32, 32))) for n in (1, 2, 4))
    assert four - two == 2 * (two - one)
    assert two - one > 0.9 * one  # what does not grow is small: statistics of norms
    assert model.training


def test_the_first_run_is_not_timed() -> None:
    calls = []
    assert seconds_of(lambda: calls.append(0), 3) >= 0
    assert len(calls) == 4
