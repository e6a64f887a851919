"""What is special about the Vision Transformer: its switches in combination, its canvas, its experts."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

from saccade.backbones.vit import ViT, ViTConfig
from saccade.errors import ConfigError, InputError
from saccade.models.build import create
from saccade.nn.moe import MoEConfig
from saccade.types import ClassTarget, ImageBatch

SWITCHES = {
    "positions": ["learned", "sincos", "rotary"],
    "has_class_token": [False, True],
    "num_registers": [0, 2],
    "norm": ["layer", "rms"],
    "norm_position": ["pre", "post"],
    "final_norm": [False, True],
    "mlp": ["mlp", "swiglu"],
    "activation": ["gelu", "quick_gelu", "relu"],
    "moe": [
        MoEConfig(),
        MoEConfig(num_experts=3),
        MoEConfig(num_experts=4, active=2, every=1, has_shared_expert=True, capacity_factor=0.5),
    ],
    "qkv_bias": [False, True],
    "qk_norm": [False, True],
    "layer_scale": [0.0, 0.1],
    "drop_path": [0.0, 0.3],
    "dropout": [0.0, 0.2],
    "attention_dropout": [0.0, 0.2],
}
TINY = ViTConfig(image_size=(16, 24), patch_size=8, embed_dim=16, depth=2, num_heads=2)


def pairwise_covering(seed: int = 0) -> list[dict[str, object]]:
    """Combinations in which every pair of values of two switches occurs at least once."""
    dice = random.Random(seed)
    values = {name: range(len(choices)) for name, choices in SWITCHES.items()}
    missing = {((a, i), (b, j)) for a, b in itertools.combinations(SWITCHES, 2) for i in values[a] for j in values[b]}
    rows = []
    while missing:
        candidates = [{name: dice.choice(values[name]) for name in SWITCHES} for _ in range(30)]
        row = max(candidates, key=lambda row: len(missing & set(itertools.combinations(row.items(), 2))))
        missing -= set(itertools.combinations(row.items(), 2))
        rows.append({name: SWITCHES[name][index] for name, index in row.items()})
    return rows


@pytest.mark.parametrize("switches", [pytest.param(row, id=str(i)) for i, row in enumerate(pairwise_covering())])
def test_switches_combine(switches: dict[str, object]) -> None:
    torch.manual_seed(0)
    backbone = dataclasses.replace(TINY, **switches).build()
    pixels = torch.randn(2, 3, 16, 24)
    features = backbone.train()(pixels)
    assert features.maps[0].shape == (2, 16, 2, 3)
    assert features.prefix.shape == (2, backbone.num_prefix, 16)
    (features.maps[0].square().mean() + features.prefix.square().sum() + features.routing.balance.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.parameters())
    backbone.eval()
    for size in ((16, 24), (24, 16), (32, 40)):  # any multiple of the patch
        canvas = torch.randn(1, 3, *size)
        assert backbone(canvas).maps[0].shape[2:] == (size[0] // 8, size[1] // 8)


def test_the_pairs_are_covered() -> None:
    rows = pairwise_covering()
    assert len(rows) < 60
    assert {(r["norm_position"], r["positions"]) for r in rows} == set(
        itertools.product(SWITCHES["norm_position"], SWITCHES["positions"])
    )


@pytest.mark.parametrize("positions", ["learned", "sincos", "rotary"])
def test_the_model_sees_where_a_patch_is(positions: str) -> None:
    torch.manual_seed(0)
    backbone = dataclasses.replace(TINY, positions=positions).build().eval()
    pixels = torch.randn(1, 3, 16, 24)
    swapped = pixels.clone()
    swapped[..., :8, :8], swapped[..., 8:, 16:] = pixels[..., 8:, 16:], pixels[..., :8, :8]
    assert float((backbone(pixels).prefix - backbone(swapped).prefix).detach().abs().max()) > 1e-4


def test_an_untiled_image_names_the_nearest_sizes() -> None:
    model = create("vit_average_test")
    with pytest.raises(InputError, match="32x32 or 40x40"):
        model(ImageBatch.of(torch.zeros(1, 3, 36, 36)))


def test_an_untiled_canvas_is_refused_by_the_config() -> None:
    with pytest.raises(ConfigError, match=r"preprocess.size.*30x30.*32x32"):
        create("vit_average_test", overrides=["preprocess.size=[30, 30]"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_heads", 3), ("image_size", (20, 16)), ("drop_path", 1.0), ("depth", 0), ("norm_eps", 0.0)],
)
def test_impossible_numbers_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match="expected"):
        dataclasses.replace(TINY, **{field: value})


@pytest.mark.parametrize(("positions", "width"), [("sincos", 18), ("rotary", 20)])
def test_positions_that_need_another_width_say_so(positions: str, width: int) -> None:
    with pytest.raises(ConfigError, match="embed_dim"):
        dataclasses.replace(TINY, embed_dim=width, positions=positions)


def test_published_sizes_have_the_papers_parameters() -> None:
    for name, millions in {"vit_ti16": 5.7, "vit_s16": 22.05, "vit_b16": 86.6, "vit_b32": 88.2}.items():
        with torch.device("meta"):
            model = create(name)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)


def test_routing_tells_which_expert_took_which_patch() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, num_registers=1, moe=MoEConfig(num_experts=4, active=2, every=1))
    backbone = config.build().eval()
    pixels = torch.randn(3, 3, 16, 24)
    routing = backbone(pixels).routing
    assert routing.balance.shape == routing.z.shape == routing.dropped.shape == (2,)
    assert routing.load.shape == (2, 4)
    torch.testing.assert_close(routing.load.sum(-1), torch.ones(2))
    assert routing.experts.shape == (2, 3, 6, 2)
    assert bool((routing.experts[..., 0] != routing.experts[..., 1]).all())
    # The map is of the patches alone: what the router sees of patch 4 of picture 1 decides its entry.
    alone = backbone(pixels[1:2]).routing.experts
    assert torch.equal(alone[:, 0], routing.experts[:, 1])


def test_routing_of_a_dense_model_is_empty() -> None:
    routing = TINY.build()(torch.randn(2, 3, 16, 24)).routing
    assert routing.balance.shape == (0,)
    assert routing.experts.shape == (0, 2, 0, 0)


def test_balance_terms_enter_the_loss_with_their_weights() -> None:
    torch.manual_seed(0)
    model = create("vit_moe_test", overrides={"balance_weight": 0.5, "router_z_weight": 0.25})
    outputs = model(ImageBatch.of(torch.randn(2, 3, 32, 32)))
    losses = model.loss(outputs, [ClassTarget(torch.tensor(0)), ClassTarget(torch.tensor(1))])
    torch.testing.assert_close(losses.terms["balance"], 0.5 * outputs.routing.balance.sum())
    torch.testing.assert_close(losses.terms["router_z"], 0.25 * outputs.routing.z.sum())
    torch.testing.assert_close(losses.total, sum(losses.terms.values()))


def test_training_balances_the_experts() -> None:
    torch.manual_seed(0)
    backbone = dataclasses.replace(TINY, depth=1, moe=MoEConfig(num_experts=4, capacity_factor=0.0)).build()
    router = backbone.blocks[0].mlp.router
    with torch.no_grad():
        router.weight[0] += 0.3
    pixels = torch.randn(32, 3, 16, 24)
    optimizer = torch.optim.Adam([router.weight], lr=1e-2)
    before = backbone(pixels).routing
    for _ in range(60):
        optimizer.zero_grad()
        backbone(pixels).routing.balance.sum().backward()
        optimizer.step()
    after = backbone(pixels).routing
    assert float(after.balance.detach()) < min(float(before.balance.detach()), 1.05)
    assert float(after.load.max()) < 0.4


def test_no_decay_spares_tokens_and_positions() -> None:
    config = dataclasses.replace(TINY, num_registers=1, moe=MoEConfig(num_experts=2))
    assert ViT(config).no_decay() == {"class_token", "registers", "positions.table"}
