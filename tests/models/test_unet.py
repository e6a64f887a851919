from __future__ import annotations

import itertools

import pytest
import torch

from saccade.errors import ConfigError
from saccade.models.build import create
from saccade.types import ImageBatch


def images(count: int, height: int = 32, width: int = 32) -> ImageBatch:
    return ImageBatch.of(torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count)))


@pytest.mark.parametrize("has_skips", [True, False])
def test_without_skips_everything_passes_through_the_bottleneck(has_skips: bool) -> None:
    torch.manual_seed(0)
    model = create("unet_plain_test", overrides={"has_skips": has_skips}).eval()
    model.backbone.stages[-1].register_forward_hook(lambda _module, _given, maps: torch.zeros_like(maps))
    logits = model(images(2)).logits
    assert bool((logits[0] - logits[1]).abs().max() > 1e-3) == has_skips


def test_the_papers_network_has_the_papers_parameters() -> None:
    """Biases, no norms, 2x2 up-convolutions that halve the width, 1x1 scores."""
    widths = (4, 8, 16, 32, 64)
    model = create(
        "unet", 2, overrides={"backbone.widths": list(widths), "backbone.has_norm": False, "has_norm": False}
    )
    down = sum(9 * a * b + 9 * b * b + 2 * b for a, b in itertools.pairwise((3, *widths)))
    up = sum(4 * a * b + b + 9 * 2 * b * b + 9 * b * b + 2 * b for b, a in itertools.pairwise(widths))
    assert sum(parameter.numel() for parameter in model.parameters()) == down + up + 4 * 2 + 2


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear", "transposed"])
@pytest.mark.parametrize("name", ["unet_plain_test", "unet_resnet_test"])
def test_logits_are_as_large_as_any_canvas(name: str, upsampling: str) -> None:
    model = create(name, overrides={"upsampling": upsampling}).eval()
    assert model(images(2, 45, 70)).logits.shape == (2, 5, 45, 70)


def test_an_encoder_whose_finest_map_is_coarse_gets_blocks_without_skips() -> None:
    arguments = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
    overrides = {"backbone.name": "convnext_atto", "backbone.arguments": arguments, "widths": []}
    model = create("unet_resnet_test", overrides=overrides).eval()
    assert model.backbone.strides == (4, 8, 16, 32)
    assert [block.has_skip for block in model.decoder] == [True, True, True, False, False]
    assert [block.fuse[1].conv.out_channels for block in model.decoder] == [256, 128, 64, 32, 16]
    assert model(images(1, 64, 32)).logits.shape == (1, 5, 64, 32)


def test_the_deepest_map_is_where_to_look_first() -> None:
    model = create("unet_resnet_test").eval()
    spec = model.explain_spec()
    seen: list[torch.Size] = []
    module = model.get_submodule(spec.layers[spec.usual_layer].path)
    module.register_forward_hook(lambda _module, _given, maps: seen.append(maps.shape))
    model(images(1, 64, 96))
    assert spec.usual_layer == "bottleneck"
    assert seen == [(1, 24, 2, 3)]
    assert "layer2" in spec.layers


@pytest.mark.parametrize("name", ["unet_plain_test", "unet_resnet_test"])
def test_every_way_leads_through_the_early_layer(name: str) -> None:
    torch.manual_seed(0)
    model = create(name).eval()
    spec = model.explain_spec()
    assert spec.early_layer is not None
    with torch.no_grad():
        first, second = model(images(2, 64, 96)).logits
        assert float((first - second).abs().max()) > 1e-3
        module = model.get_submodule(spec.layers[spec.early_layer].path)
        module.register_forward_hook(lambda _module, _given, maps: torch.zeros_like(maps))
        first, second = model(images(2, 64, 96)).logits
    torch.testing.assert_close(first, second)
    without = create(name, overrides={"has_skips": False}).explain_spec()
    assert without.early_layer is None


@pytest.mark.parametrize(
    ("name", "override", "complaint"),
    [
        ("unet_resnet_test", "widths=[16, 8]", "2 widths for 5 decoder blocks"),
        ("unet_plain_test", "backbone.widths=[8]", "two or more"),
        ("unet_plain_test", "dropout=1.0", "dropout is 1.0"),
        ("unet_plain_test", "upsampling=max_unpool", "upsampling"),
    ],
)
def test_what_cannot_be_built_is_said(name: str, override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        create(name, overrides=[override])


def test_a_timm_transformer_is_refused() -> None:
    overrides = {"backbone.name": "vit_tiny_patch16_224", "backbone.arguments": {}}
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224.*no feature map"):
        create("unet_resnet_test", overrides=overrides)
