from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saccade.nn.attention import Attention, AttentionPool
from saccade.nn.embed import places, rotation


@pytest.mark.parametrize("qk_norm", [None, "layer", "rms"])
@pytest.mark.parametrize("is_rotary", [False, True])
def test_watched_attention_gives_the_same_numbers(qk_norm: str | None, is_rotary: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(16, 2, qk_norm=qk_norm).eval()  # type: ignore[arg-type]
    tokens = torch.randn(3, 1 + 6, 16)
    turns = rotation(places((2, 3), (2, 3)), 8) if is_rotary else None
    fused = attention(tokens, turns)
    seen: list[Tensor] = []
    handle = attention.probabilities.register_forward_hook(lambda _module, _given, result: seen.append(result))
    written_out = attention(tokens, turns)
    handle.remove()
    torch.testing.assert_close(written_out, fused, rtol=1e-5, atol=1e-6)
    assert seen[0].shape == (3, 2, 7, 7)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(3, 2, 7))
    attention(tokens, turns)
    assert len(seen) == 1


def test_probabilities_can_be_differentiated() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2)
    seen: list[Tensor] = []
    attention.probabilities.register_forward_hook(lambda _module, _given, result: seen.append(result))
    score = attention(torch.randn(1, 4, 8)).sum()
    (gradient,) = torch.autograd.grad(score, seen)
    assert gradient.shape == (1, 2, 4, 4)
    assert float(gradient.abs().max()) > 0


def test_a_hook_may_replace_the_probabilities() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).eval()
    attention.probabilities.register_forward_hook(lambda _module, _given, result: torch.zeros_like(result))
    torch.testing.assert_close(attention(torch.randn(1, 4, 8)), attention.project.bias.expand(1, 4, 8))


def test_attention_equals_torch_multihead_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4).eval(), torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    theirs.in_proj_weight.data.copy_(ours.qkv.weight)
    theirs.in_proj_bias.data.copy_(ours.qkv.bias)
    theirs.out_proj.load_state_dict(ours.project.state_dict())
    tokens = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_watched", [False, True])
def test_causal_attention_never_looks_ahead(is_watched: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(16, 4, is_causal=True)
    seen: list[Tensor] = []
    if is_watched:
        attention.probabilities.register_forward_hook(lambda _m, _given, result: seen.append(result))
    tokens = torch.randn(2, 6, 16)
    changed = tokens.clone()
    changed[:, 4:] += 1
    one, other = attention(tokens), attention(changed)
    torch.testing.assert_close(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4], other[:, 4])
    torch.testing.assert_close(one[:, :1], attention.values(tokens[:, :1]))  # the first sees itself alone
    assert all(not probabilities.triu(1).any() for probabilities in seen)
    assert len(seen) == 2 * is_watched


def test_attention_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, attention_dropout=0.5)
    tokens = torch.randn(1, 6, 8)
    assert not torch.equal(attention(tokens), attention(tokens))
    attention.eval()
    assert torch.equal(attention(tokens), attention(tokens))


def test_attention_pool_with_equal_keys_is_the_mean() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8, 2)
    with torch.no_grad():
        pool.keys_values.weight[:8].zero_()  # all keys equal: uniform weights
    tokens = torch.randn(2, 5, 8)
    values = torch.nn.functional.linear(tokens, pool.keys_values.weight[8:], pool.keys_values.bias[8:])
    torch.testing.assert_close(pool(tokens), pool.project(values.mean(1)))
