from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from saccade.nn.fpn import FeaturePyramid


def maps() -> list[torch.Tensor]:
    dice = torch.Generator().manual_seed(0)
    # Odd sides, as pictures of any size leave them.
    return [torch.randn(2, c, h, w, generator=dice) for c, h, w in ((4, 15, 21), (6, 8, 11), (8, 4, 6))]


@pytest.mark.parametrize("has_norm", [False, True])
def test_same_as_torchvision(has_norm: bool) -> None:
    norm = nn.BatchNorm2d if has_norm else None
    theirs = FeaturePyramidNetwork([4, 6, 8], 5, extra_blocks=LastLevelMaxPool(), norm_layer=norm).eval()
    ours = FeaturePyramid([4, 6, 8], 5, has_norm=has_norm).eval()
    names = {"inner_blocks": "lateral", "layer_blocks": "smooth"}
    state = {".".join([names[key.split(".")[0]], *key.split(".")[1:]]): t for key, t in theirs.state_dict().items()}
    ours.load_state_dict(state)
    expected = theirs(dict(enumerate(maps()))).values()
    levels = ours(maps())
    assert len(levels) == 4
    for one, other in zip(levels, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_coarse_maps_reach_fine_levels_but_not_the_other_way_round() -> None:
    pyramid = FeaturePyramid([4, 6, 8], 5, has_top=False)
    given = [level.requires_grad_() for level in maps()]
    levels = pyramid(given)
    assert len(levels) == 3
    assert all(g.any() for g in torch.autograd.grad(levels[0].sum(), given, retain_graph=True))
    (fine, coarse) = torch.autograd.grad(levels[2].sum(), [given[0], given[2]], allow_unused=True)
    assert fine is None
    assert bool(coarse.any())
