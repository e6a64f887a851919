"""Attention with places and masks against PyTorch's own, and the layers around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saccade.nn.decoder import DecoderLayer, EncoderLayer, QueryAttention

B, T, Q, C = 2, 7, 3, 12


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def padding() -> Tensor:
    """The second picture ends after four tokens."""
    mask = torch.ones(B, 1, 1, T, dtype=torch.bool)
    mask[1, ..., 4:] = False
    return mask


@torch.no_grad()
def test_it_is_pytorchs_attention() -> None:
    ours = filled(QueryAttention(C, 3))
    theirs = nn.MultiheadAttention(C, 3, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
    theirs.out_proj.load_state_dict(ours.project.state_dict())
    queries, keys, values = randn(B, Q, C), randn(B, T, C, seed=1), randn(B, T, C, seed=2)
    for mask in (None, padding()):
        is_hidden = None if mask is None else ~mask[:, 0, 0]
        expected = theirs(queries, keys, values, key_padding_mask=is_hidden, need_weights=False)[0]
        torch.testing.assert_close(ours(queries, keys, values, mask), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_watching_changes_nothing_and_padding_gets_no_attention() -> None:
    attention = filled(QueryAttention(C, 3))
    arguments = (randn(B, Q, C), randn(B, T, C, seed=1), randn(B, T, C, seed=2), padding())
    expected = attention(*arguments)
    seen: list[Tensor] = []
    attention.probabilities.register_forward_hook(lambda _module, _given, found: seen.append(found))
    torch.testing.assert_close(attention(*arguments), expected, rtol=1e-4, atol=1e-5)
    assert seen[0].shape == (B, 3, Q, T)
    assert not seen[0][1, ..., 4:].any()
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(B, 3, Q))


@pytest.mark.parametrize("is_pre_norm", [False, True])
@torch.no_grad()
def test_what_is_padded_does_not_matter(is_pre_norm: bool) -> None:
    encoder = filled(EncoderLayer(C, 3, 16, is_pre_norm=is_pre_norm))
    decoder = filled(DecoderLayer(C, 3, 16, is_pre_norm=is_pre_norm))
    tokens, places, queries, own = randn(B, T, C), randn(1, T, C, seed=1), randn(B, Q, C, seed=2), randn(Q, C, seed=3)
    other = tokens.clone()
    other[1, 4:] = 9.0
    memories = [encoder(given, places, padding()) for given in (tokens, other)]
    torch.testing.assert_close(memories[0][1, :4], memories[1][1, :4])
    answers = [decoder(queries, own, memory + places, memory, padding()) for memory in memories]
    torch.testing.assert_close(*answers)
    unmasked = [decoder(queries, own, memory + places, memory) for memory in memories]
    assert not torch.allclose(unmasked[0][1], unmasked[1][1])


@torch.no_grad()
def test_places_are_not_passed_on() -> None:
    # Values carry no places: with all tokens alike, attention gathers the same whatever the places.
    attention = filled(QueryAttention(C, 3))
    token = randn(1, 1, C).expand(1, T, C)
    gathered = [attention(token + places, token + places, token) for places in (randn(1, T, C, seed=1), 0)]
    torch.testing.assert_close(*gathered)
    encoder = filled(EncoderLayer(C, 3, 16))
    mixed = randn(1, T, C)
    assert not torch.allclose(encoder(mixed, randn(1, T, C, seed=1)), encoder(mixed, torch.zeros(1, T, C)))


def test_dropout_is_only_for_training() -> None:
    layer = DecoderLayer(C, 3, 16, dropout=0.5)
    arguments = (randn(B, Q, C), randn(Q, C), randn(B, T, C), randn(B, T, C))
    torch.manual_seed(0)
    assert not torch.equal(layer(*arguments), layer(*arguments))
    layer.eval()
    assert torch.equal(layer(*arguments), layer(*arguments))
