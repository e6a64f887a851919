from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from saccade.nn import norm
from saccade.nn.mlp import MLP, ExactLayers, SwiGLU, build_mlp, hidden_width, quick_gelu
from saccade.nn.norm import build_norm


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    tokens = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = build_norm("rms", 8, 1e-6).double()
    torch.nn.init.uniform_(norm.weight)
    expected = tokens / (tokens.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(tokens), expected)


def test_rms_norm_keeps_the_mean_and_layer_norm_does_not() -> None:
    tokens = torch.full((1, 4), 3.0)
    torch.testing.assert_close(build_norm("rms", 4, 1e-6)(tokens), torch.ones(1, 4))
    torch.testing.assert_close(build_norm("layer", 4, 1e-6)(tokens), torch.zeros(1, 4))


@pytest.mark.parametrize("width", [64, 192, 384, 768, 1024])
def test_swiglu_has_as_many_parameters_as_the_plain_mlp(width: int) -> None:
    counts = [
        sum(p.numel() for p in build_mlp(kind, width, 4.0, "gelu", 0.0).parameters()) for kind in ("mlp", "swiglu")
    ]
    assert counts[1] / counts[0] == pytest.approx(1, abs=0.02)


def test_swiglu_width_is_two_thirds_exactly_where_it_divides() -> None:
    assert [hidden_width("swiglu", width, 4.0) for width in (192, 384, 768)] == [512, 1024, 2048]
    assert hidden_width("mlp", 192, 4.0) == 768


def test_swiglu_by_hand() -> None:
    layer = SwiGLU(4, 8)
    tokens = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    wide = tokens @ layer.widen.weight.t() + layer.widen.bias
    gate, value = wide[:, :8], wide[:, 8:]
    expected = (gate / (1 + (-gate).exp()) * value) @ layer.narrow.weight.t() + layer.narrow.bias
    torch.testing.assert_close(layer(tokens), expected)


def test_gelu_is_the_exact_one() -> None:
    layer = MLP(4, 8, "gelu")
    tokens = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    wide = F.linear(tokens, layer.widen.weight, layer.widen.bias)
    expected = F.linear(wide * 0.5 * (1 + torch.erf(wide / 2**0.5)), layer.narrow.weight, layer.narrow.bias)
    torch.testing.assert_close(layer(tokens), expected)


def test_quick_gelu_is_close_to_gelu_but_not_it() -> None:
    values = torch.linspace(-4, 4, 101)
    gap = float((quick_gelu(values) - F.gelu(values)).abs().max())
    assert 1e-3 < gap < 0.03


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_quick_gradient_of_rmsnorm_is_torchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokens, pull = torch.randn(2, 5, 3, 16).transpose(1, 2).to(dtype), torch.randn(2, 3, 5, 16).to(dtype)
    torchs, ours = torch.nn.RMSNorm(16, eps=1e-6), build_norm("rms", 16, 1e-6)
    torch.nn.init.normal_(torchs.weight)
    ours.load_state_dict(torchs.state_dict())
    torchs, ours = torchs.to(dtype), ours.to(dtype)
    monkeypatch.setattr(norm, "FEWEST", 0)
    found = []
    for one in (torchs, ours):
        x = tokens.clone().requires_grad_()
        y = one(x)
        assert y.dtype == torchs(x).dtype
        y.backward(pull.to(y.dtype))
        found.append((y, x.grad, one.weight.grad))
    is_quick = type(found[1][0].grad_fn).__name__ == "_RootMeanSquareBackward"
    assert is_quick
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for theirs, own in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=tolerance, atol=tolerance)


def test_many_gradients_pass_rmsnorm_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "FEWEST", 0)
    torch.manual_seed(0)
    tokens, pulls = torch.randn(2, 3, 8, requires_grad=True), torch.randn(4, 2, 3, 8)
    said = build_norm("rms", 8, 1e-6)(tokens)
    together = torch.autograd.grad(said, tokens, pulls, is_grads_batched=True, retain_graph=True)[0]
    for pull, found in zip(pulls, together, strict=True):
        torch.testing.assert_close(found, torch.autograd.grad(said, tokens, pull, retain_graph=True)[0])


def test_the_quick_gradient_of_rmsnorm_is_that_of_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "FEWEST", 0)
    torch.manual_seed(0)
    tokens = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(build_norm("rms", 6, 1e-6).double(), (tokens,))


def test_the_last_layer_answers_in_float32_whatever_autocast_says() -> None:
    torch.manual_seed(0)
    layers = ExactLayers(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    tokens = torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = layers[1](layers[0](tokens))
        said = layers(tokens)
    assert (seen.dtype, said.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(said, layers[2](seen.float()), rtol=0, atol=0)
    torch.testing.assert_close(layers(tokens), torch.nn.Sequential(*layers)(tokens), rtol=0, atol=0)
    assert layers.bfloat16()(tokens.bfloat16()).dtype == torch.float32
    assert layers.to("meta")(tokens.bfloat16().to("meta")).shape == (3, 4)
