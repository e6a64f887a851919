from __future__ import annotations

import pytest
import torch

from saccade.errors import ConfigError
from saccade.models.build import create
from saccade.types import ImageBatch, MapTarget


def images(height: int = 32, width: int = 32) -> ImageBatch:
    return ImageBatch.of(torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)))


def test_experts_add_their_weighted_terms() -> None:
    model = create("vit_seg_moe_test", overrides=["balance_weight=0.5", "router_z_weight=0.25"]).train()
    outputs = model(images())
    losses = model.loss(outputs, [MapTarget(torch.zeros(32, 32, dtype=torch.uint8))] * 2)
    balance, z = outputs.routing.balance.sum(), outputs.routing.z.sum()
    assert float(balance.detach()) > 0.9  # 1 for a perfectly even load
    torch.testing.assert_close(losses.terms["balance"], 0.5 * balance)
    torch.testing.assert_close(losses.terms["router_z"], 0.25 * z)
    torch.testing.assert_close(losses.total, losses.terms["cross_entropy"] + 0.5 * balance + 0.25 * z)
    assert "dropped" in losses.logs


def test_without_experts_there_is_the_cross_entropy_alone() -> None:
    model = create("vit_seg_test")
    losses = model.loss(model(images()), [MapTarget(torch.zeros(32, 32, dtype=torch.uint8))] * 2)
    assert set(losses.terms) == {"cross_entropy"}


@pytest.mark.parametrize(("widths", "stride"), [([12], 8), ([16, 12], 4), ([16, 12, 8, 6], 1)])
def test_each_further_width_doubles_the_map(widths: list[int], stride: int) -> None:
    model = create("vit_seg_test", overrides={"widths": widths}).eval()
    seen: list[torch.Size] = []
    model.get_submodule(model.explain_spec().layers["final"].path).register_forward_hook(
        lambda _module, _given, maps: seen.append(maps.shape)
    )
    logits = model(images(40, 24)).logits
    assert seen == [(2, widths[-1], 40 // stride, 24 // stride)]
    assert logits.shape == (2, 5, 40, 24)


def test_a_canvas_that_the_patches_do_not_tile_is_padded() -> None:
    assert create("vit_seg_test").eval()(images(37, 50)).logits.shape == (2, 5, 37, 50)


def test_scores_stay_where_the_patches_are() -> None:
    """A transformer without blocks' influence: what one patch shows changes the labels there and nearby only."""
    torch.manual_seed(0)
    model = create("vit_seg_test", overrides={"widths": [12]}).eval()
    with torch.no_grad():
        for block in model.backbone.blocks:  # silence attention and feed-forward layers: tokens pass unchanged
            for module in (block.attention.project, block.mlp.narrow):
                module.weight.zero_()
                module.bias.zero_()
    pixels = images(96, 96).pixels
    changed = pixels.clone()
    changed[:, :, 40:48, 64:72] += 3
    with torch.no_grad():
        difference = (model(ImageBatch.of(changed)).logits - model(ImageBatch.of(pixels)).logits).abs().amax((0, 1))
    rows, columns = (difference > 1e-6).any(1).nonzero(), (difference > 1e-6).any(0).nonzero()
    # The patch at rows 40-47, one cell around it for the 3x3 convolution, half a cell for the bilinear step.
    assert (int(rows.min()), int(rows.max())) == (40 - 8 - 4, 47 + 8 + 4)
    assert (int(columns.min()), int(columns.max())) == (64 - 8 - 4, 71 + 8 + 4)


@pytest.mark.parametrize(("widths", "complaint"), [("[]", "one or more"), ("[8,8,8,8,8]", "double the map 4 times")])
def test_what_cannot_be_built_is_said(widths: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        create("vit_seg_test", overrides=[f"widths={widths}"])
