from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from saccade.errors import ConfigError
from saccade.models.fast_rcnn import FastRCNN, FastRCNNConfig
from saccade.models.rcnn import RCNNConfig
from saccade.nn.roi import RoIKind
from saccade.ops.boxes import paired_iou
from saccade.registry import lookup
from saccade.types import BoxTarget

VARIANTS = ["fast_rcnn_test", "fast_rcnn_fpn_test"]


def make(name: str = "fast_rcnn_test", **changes: object) -> FastRCNN:
    torch.manual_seed(0)
    config = lookup(name)
    assert isinstance(config, FastRCNNConfig)
    return FastRCNN(replace(config, **changes)).eval()  # type: ignore[arg-type]


def scene() -> tuple[Tensor, BoxTarget]:
    """A grey picture ``[3, 64, 64]`` uint8 with a rectangle of each of three colours."""
    picture = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    boxes = [[4, 6, 28, 30], [36, 8, 58, 34], [16, 38, 40, 60]]
    for channel, (left, top, right, bottom) in enumerate(boxes):
        picture[:, top:bottom, left:right] = 20
        picture[channel, top:bottom, left:right] = 230
    return picture, BoxTarget.of(torch.tensor(boxes).float(), torch.arange(3))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_backbone_runs_once_however_many_regions_there_are(name: str) -> None:
    model = make(name)
    seen: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    images = model.preprocess([scene()[0]] * 2)
    outputs = model(images)
    assert seen == [2]
    assert len(outputs.logits) > 2


@pytest.mark.parametrize("kind", ["pool", "align"])
def test_regions_are_read_from_the_last_map(kind: RoIKind) -> None:
    config = lookup("fast_rcnn_test")
    assert isinstance(config, FastRCNNConfig)
    model = make(box=replace(config.box, roi=kind))
    images = model.preprocess([scene()[0]])
    (maps,) = model.levels(images.pixels)
    assert maps.shape[-2:] == (8, 8)  # stride 8 of a canvas of 64
    outputs = model(images)
    rows = torch.cat([torch.zeros(len(outputs.logits), 1), outputs.regions.boxes], dim=1)
    size = model.config.box.size
    patches = roi_pool(maps, rows, size, 1 / 8) if kind == "pool" else roi_align(maps, rows, size, 1 / 8, 2, True)
    logits, codes = model.box.head(model.box.linears(patches.flatten(1)))
    torch.testing.assert_close(outputs.logits, logits)
    torch.testing.assert_close(outputs.codes, codes)


def test_proposals_are_those_of_rcnn() -> None:
    model = make()
    picture, _ = scene()
    config = lookup("rcnn_test")
    assert isinstance(config, RCNNConfig)
    assert config.search == model.config.search
    assert torch.equal(model.propose(model.preprocess([picture]))[0], config.search(picture))


@pytest.mark.parametrize("name", VARIANTS)
def test_explains_where_regions_are_read(name: str) -> None:
    model = make(name)
    layers = model.explain_spec().layers
    if model.pyramid is None:
        assert layers["final"].path == "backbone.maps"
    else:
        assert [key for key in layers if key.startswith("p")] == ["p5", "p4", "p3", "p2"]
        assert layers["final"].path == layers["p2"].path


def test_frozen_norms_keep_their_statistics() -> None:
    model = make(freeze_norms=True).train()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model(model.preprocess([scene()[0]]))
    after = model.state_dict()
    assert before
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_finds_what_it_learned(name: str) -> None:
    model = make(name).train()
    picture, target = scene()
    images, targets = model.preprocess([picture] * 2), [target] * 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(50):
        losses = model.loss(model(images, targets), targets)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert set(losses.terms) == {"class", "boxes"}
    assert float(losses.terms["class"].detach()) < 0.5
    with torch.no_grad():
        found = model.candidates(model(images), images)[0]
    for index, box in enumerate(target.boxes):
        best = int(found.scores[:, index].argmax())
        assert float(paired_iou(found.boxes[best, index], box)) > 0.5


@pytest.mark.parametrize("wrong", [{"remembered": -1}, {"pyramid_width": -4}])
def test_refuses_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        make(**wrong)
