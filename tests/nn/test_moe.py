from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.nn.mlp import SwiGLU
from saccade.nn.moe import MixtureOfExperts, MoEConfig


def build(kind: str = "mlp", **options: object) -> MixtureOfExperts:
    torch.manual_seed(0)
    config = MoEConfig(**({"num_experts": 4} | options))  # type: ignore[arg-type]
    return MixtureOfExperts(config, 8, kind, 2.0, "gelu", 0.0)  # type: ignore[arg-type]


def by_tokens(moe: MixtureOfExperts, tokens: Tensor) -> Tensor:
    """The definition: token by token, expert by expert."""
    results = []
    for token in tokens.reshape(-1, tokens.shape[-1]):
        probabilities = (moe.router.weight @ token).softmax(0)
        gates, chosen = probabilities.topk(moe.config.active)
        if moe.config.active > 1:
            gates = gates / gates.sum()
        mixed = torch.zeros_like(token)
        for gate, e in zip(gates, chosen, strict=True):
            expert = moe.experts[e]
            wide = expert.widen.weight @ token + expert.widen.bias
            if isinstance(expert, SwiGLU):
                half = len(wide) // 2
                wide = nn.functional.silu(wide[:half]) * wide[half:]
            else:
                wide = nn.functional.gelu(wide)
            mixed = mixed + gate * (expert.narrow.weight @ wide + expert.narrow.bias)
        results.append(mixed if moe.shared is None else mixed + moe.shared(token))
    return torch.stack(results).view_as(tokens)


@pytest.mark.parametrize("active", [1, 2, 4])
@pytest.mark.parametrize("kind", ["mlp", "swiglu"])
@pytest.mark.parametrize("has_shared_expert", [False, True])
def test_equals_the_definition(active: int, kind: str, has_shared_expert: bool) -> None:
    moe = build(kind, active=active, has_shared_expert=has_shared_expert).eval()
    tokens = torch.randn(2, 9, 8)
    torch.testing.assert_close(moe(tokens)[0], by_tokens(moe, tokens), rtol=1e-5, atol=1e-6)


def test_gradients_equal_those_of_the_definition() -> None:
    moe = build(active=2, capacity_factor=0.0)
    tokens = torch.randn(3, 5, 8, requires_grad=True)
    wanted = [tokens, *moe.parameters()]
    ours = torch.autograd.grad(moe(tokens)[0].square().sum(), wanted)
    expected = torch.autograd.grad(by_tokens(moe, tokens).square().sum(), wanted)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_expert_without_tokens_has_a_zero_gradient() -> None:
    moe = build(capacity_factor=0.0)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[2, 0] = 5.0
    moe(torch.rand(1, 8, 8) + 0.5)[0].sum().backward()
    for index, expert in enumerate(moe.experts):
        assert all(p.grad is not None and bool(p.grad.any()) == (index == 2) for p in expert.parameters())


def test_capacity_drops_the_late_tokens_of_a_crowded_expert() -> None:
    moe = build(capacity_factor=1.0).train()
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[2, 0] = 5.0  # with a positive first channel everybody wants expert 2
    tokens = torch.rand(1, 8, 8) + 0.5
    mixed, decision = moe(tokens)
    assert decision.experts.flatten().tolist() == [2] * 8
    # 8 tokens, 4 experts, factor 1: two places; six tokens pass with nothing added.
    assert float(decision.dropped) == pytest.approx(6 / 8)
    assert mixed[0, :2].abs().sum() > 0
    assert float(mixed[0, 2:].detach().abs().max()) == 0
    assert float(moe.eval()(tokens)[1].dropped) == 0


def test_first_choices_come_before_second_ones() -> None:
    moe = build(num_experts=2, active=2, capacity_factor=1.0).train()
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[0, 0] = 1.0
    tokens = torch.ones(1, 4, 8)
    mixed, decision = moe(tokens)
    # 8 assignments, 2 experts, factor 1: both have four places, so nobody is dropped.
    assert float(decision.dropped) == 0
    torch.testing.assert_close(mixed, by_tokens(moe, tokens))


def test_without_limit_nothing_is_dropped() -> None:
    moe = build(capacity_factor=0.0).train()
    nn.init.zeros_(moe.router.weight)
    tokens = torch.randn(1, 8, 8)
    mixed, decision = moe(tokens)
    assert float(decision.dropped) == 0
    torch.testing.assert_close(mixed, by_tokens(moe, tokens), rtol=1e-5, atol=1e-6)


def test_the_export_path_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    moe = build(active=2, kind="swiglu").eval()
    tokens = torch.randn(2, 9, 8)
    usual = moe(tokens)[0]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(moe(tokens)[0], usual, rtol=1e-5, atol=1e-6)


def test_router_stays_in_float32_under_autocast_and_in_bfloat16() -> None:
    moe = build().eval()
    tokens = torch.randn(2, 9, 8)
    exact = moe(tokens)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = moe(tokens)[1]
    assert torch.equal(under.logits, exact.logits)
    rounded, decision = moe.bfloat16()(tokens.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert decision.logits.dtype == torch.float32


def test_every_other_block_counts_from_the_last() -> None:
    config = MoEConfig(num_experts=4)
    assert [config.stands_in(block, 5) for block in range(5)] == [True, False, True, False, True]
    assert [config.stands_in(block, 4) for block in range(4)] == [False, True, False, True]
    assert not any(MoEConfig().stands_in(block, 4) for block in range(4))
    assert all(MoEConfig(num_experts=2, every=1).stands_in(block, 4) for block in range(4))


@pytest.mark.parametrize("options", [{"num_experts": 1}, {"num_experts": 2, "active": 3}, {"every": 0}])
def test_impossible_numbers_of_experts_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        MoEConfig(**options)  # type: ignore[arg-type]
