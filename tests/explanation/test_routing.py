"""Routing maps: the expert of each patch, where the patch is."""

import pytest
import torch

import saccade
from saccade.errors import ExplainError, InputError
from saccade.explanation.routing import has_experts, routing_maps


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return saccade.create("vit_moe_test").eval()


def pictures(count, size=(32, 32)):
    return list(torch.randint(0, 256, (count, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8))


def test_the_map_is_what_the_router_decided(model):
    images = pictures(2)
    maps = routing_maps(model, images)
    with torch.no_grad():
        experts = model(model.preprocess(images)).routing.experts
    for index, found in enumerate(maps):
        assert found.experts.shape == (len(experts), 4, 4)
        assert torch.equal(found.experts.flatten(1), experts[:, index, :, 0])
        assert torch.equal(found.seen, images[index])
        assert all(sum(row) == pytest.approx(1) for row in found.shares())


def test_a_patch_that_changes_place_takes_its_expert_along():
    """The router of the first block sees patches with positions; without positions it must follow the patch."""
    moved = saccade.create("vit_moe_test", overrides={"backbone.moe.every": 1})
    torch.nn.init.zeros_(moved.backbone.positions.table)
    for block in moved.backbone.blocks[:1]:
        torch.nn.init.zeros_(block.attention.project.weight)
        torch.nn.init.zeros_(block.attention.project.bias)
    image = pictures(1)[0]
    turned = torch.cat([image[:, 8:], image[:, :8]], dim=1)
    before, after = routing_maps(moved, [image, turned])
    assert len(before.experts[0].unique()) > 1
    assert torch.equal(torch.roll(before.experts[0], -1, dims=0), after.experts[0])


def test_it_draws_and_refuses(model, tmp_path):
    found = routing_maps(model, pictures(1, (40, 20)))[0]
    assert found.save(tmp_path / "routing.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no routed layer 7"):
        found.save(tmp_path / "routing.png", layer=7)
    dense = saccade.create("vit_average_test")
    assert has_experts(model)
    assert not has_experts(dense)
    assert not has_experts(saccade.create("resnet_test"))
    with pytest.raises(ExplainError, match="no experts"):
        routing_maps(dense, pictures(1))
    with pytest.raises(InputError, match="no images"):
        routing_maps(model, [])
