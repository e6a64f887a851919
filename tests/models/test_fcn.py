from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import ConfigError
from saccade.models.build import create
from saccade.models.fcn import ScoreFusion
from saccade.types import IGNORE, ImageBatch, MapTarget


def centres(height: int, width: int, stride: int) -> Tensor:
    """A map ``[1, 1, h, w]`` whose cells hold the horizontal place of their centre in pixels."""
    return ((torch.arange(width // stride) + 0.5) * stride).expand(1, 1, height // stride, -1)


@pytest.mark.parametrize("upsampling", ["bilinear", "learned"])
def test_scores_of_all_maps_meet_at_the_same_pixels(upsampling: str) -> None:
    fusion = ScoreFusion([1, 1, 1], [32, 16, 8], 1, upsampling)
    with torch.no_grad():
        for score, share in zip(fusion.scores, (0.5, 0.3, 0.2), strict=True):
            score.weight.fill_(share)
        logits = fusion([centres(192, 256, stride) for stride in (32, 16, 8)])
    # Every map says where it is, and the shares add up to one: so does each pixel, away from the border.
    expected = torch.arange(256) + 0.5
    inner = slice(64, -64)
    torch.testing.assert_close(logits[0, 0, inner, inner], expected[inner].expand(64, -1), rtol=1e-5, atol=1e-3)


def test_finer_maps_start_as_corrections_of_nothing() -> None:
    fusion = ScoreFusion([4, 3], [16, 8], 2, "bilinear")
    coarse = torch.randn(1, 4, 4, 4)
    one, other = (fusion([coarse, torch.randn(1, 3, 8, 8)]) for _ in range(2))
    assert torch.equal(one, other)
    assert float(one.detach().std()) > 0


@pytest.mark.parametrize(
    ("overrides", "stride"),
    [([], 8), (["finest=16"], 16), (["finest=32"], 32), (["finest=16", "upsampling=learned"], 16)],
)
def test_the_finest_scored_map_is_the_asked_one(overrides: list[str], stride: int) -> None:
    model = create("fcn8s_test", overrides=overrides).eval()
    seen: list[Tensor] = []
    model.get_submodule(model.explain_spec().layers["final"].path).register_forward_hook(
        lambda *given: seen.append(given[2])
    )
    assert model(ImageBatch.of(torch.randn(1, 3, 64, 96))).logits.shape == (1, 5, 64, 96)
    assert seen[0].shape == (1, 5, 64 // stride, 96 // stride)
    assert len(model.head.scores) == {8: 3, 16: 2, 32: 1}[stride]


def test_the_auxiliary_head_works_in_training_alone_and_is_weighted() -> None:
    torch.manual_seed(0)
    model = create("fcn_dilated_test", overrides=["loss.auxiliary=0.3"])
    images = ImageBatch.of(torch.randn(2, 3, 32, 32))
    labels = torch.randint(5, (2, 32, 32), dtype=torch.uint8)
    labels[:, :9] = IGNORE
    outputs = model.train()(images)
    assert outputs.auxiliary.shape == (1, 2, 5, 32, 32)
    terms = model.loss(outputs, [MapTarget(row) for row in labels]).terms
    expected = F.cross_entropy(outputs.auxiliary[0][:, :, 9:], labels[:, 9:].long())
    torch.testing.assert_close(terms["auxiliary_0"], 0.3 * expected)
    assert model.eval()(images).auxiliary.shape == (0, 2, 5, 32, 32)


def test_the_dilated_backbone_keeps_its_resolution() -> None:
    backbone = create("fcn_dilated_test").backbone
    assert backbone.strides == (2, 4, 8, 8, 8)
    assert backbone(torch.randn(2, 3, 64, 48)).maps[-1].shape == (2, 32, 8, 6)


@pytest.mark.parametrize(
    ("name", "override", "complaint"),
    [
        ("fcn_dilated_test", "upsampling=learned", "never learned.*'bilinear'"),
        ("fcn32s_test", "upsampling=learned", "never learned"),
        ("fcn8s_test", 'backbone.arguments={"output_stride": 8, "channels": [8, 8, 8, 8]}', None),
        ("fcn32s_test", 'backbone.arguments={"output_stride": 8, "channels": [8, 8, 8, 8]}', "stride 32.*one of 8"),
        ("fcn8s_test", "head_dropout=1", "head_dropout is 1"),
    ],
)
def test_what_cannot_be_built_is_said(name: str, override: str, complaint: str | None) -> None:
    if complaint is None:
        assert len(create(name, overrides=[override]).head.scores) == 1
        return
    with pytest.raises(ConfigError, match=complaint):
        create(name, overrides=[override])
