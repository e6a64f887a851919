"""Schedule, weight-decay groups and moving average against their formulas."""

import math

import pytest
import torch
from torch import nn

from saccade.engine.optim import MovingAverage, build_optimizer, parameter_groups, schedule, set_learning_rate
from saccade.errors import UnknownNameError


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.0),
        (0.05, 0.5),
        (0.1, 1.0),
        (0.1 + 0.9 / 3, 0.1 + 0.9 * 0.75),  # cos(60 degrees) = 1/2
        (0.55, 0.1 + 0.9 * 0.5),
        (1.0, 0.1),
        (1.2, 0.1),
    ],
)
def test_schedule_is_a_ramp_and_half_a_cosine(progress, expected):
    assert schedule(progress, warmup=0.1, floor=0.1) == pytest.approx(expected, abs=1e-12)


def test_schedule_without_warmup_starts_at_the_peak():
    assert schedule(0.0, warmup=0.0) == 1.0


def test_decay_spares_norms_biases_and_named_parameters(new_model):
    model = new_model("vit_token_test")
    groups = parameter_groups(model, weight_decay=0.1, spared=model.no_decay(), head_multiplier=5.0)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    rate = {id(p): group["rate_multiplier"] for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert decay.keys() == {id(p) for p in names.values()}
    for name, parameter in names.items():
        is_spared = parameter.ndim < 2 or name in model.no_decay()
        assert decay[id(parameter)] == (0.0 if is_spared else 0.1), name
        assert rate[id(parameter)] == (5.0 if name.startswith("head.") else 1.0), name
    assert any("bias" in name for name in names)
    assert any("position" in name for name in model.no_decay())


def test_decay_is_decoupled_from_the_gradient():
    model = nn.Sequential(nn.Linear(3, 2))
    groups = parameter_groups(model, weight_decay=0.1, spared=set())
    optimizer = build_optimizer("adamw", groups, 1.0)
    set_learning_rate(optimizer, 0.5)
    before = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # With a zero gradient only the decay moves: w - rate * decay * w.
    torch.testing.assert_close(model[0].weight, before[0] * (1 - 0.5 * 0.1))
    assert torch.equal(model[0].bias, before[1])


def test_a_spared_name_that_does_not_exist_is_an_error():
    with pytest.raises(UnknownNameError, match=r"did you mean '0\.weight'"):
        parameter_groups(nn.Sequential(nn.Linear(2, 2)), weight_decay=0.1, spared={"0.weigth"})


def test_frozen_parameters_are_in_no_group():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1, spared=set())
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model[1].parameters()}


def test_moving_average_follows_its_recursion():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.zeros_(model[0].weight)
    average = MovingAverage(model, decay=0.6)
    expected = 0.0
    for update in range(12):
        with torch.no_grad():
            model[0].weight.fill_(update + 1.0)
            model[1].running_mean.fill_(update + 1.0)
            model[1].num_batches_tracked.fill_(update)
        average.update(model)
        decay = min(0.6, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * (update + 1.0)
    assert math.isclose(float(average.model[0].weight), expected, rel_tol=1e-6)
    assert math.isclose(float(average.model[1].running_mean), expected, rel_tol=1e-6)
    assert int(average.model[1].num_batches_tracked) == 11
    assert not average.model.training
    assert not average.model[0].weight.requires_grad


def test_moving_average_leaves_the_model_alone():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    average = MovingAverage(model, decay=0.5)
    average.update(model)
    average.model.weight.fill_(9.0)
    assert torch.equal(model.weight, before)
