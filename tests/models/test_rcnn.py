from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError
from saccade.matching.sample import BalancedSampler
from saccade.models.rcnn import RCNN, RCNNConfig
from saccade.models.regionwise import searched, widened
from saccade.ops.boxes import encode, paired_iou
from saccade.ops.regions import SelectiveSearch
from saccade.registry import lookup
from saccade.types import BoxTarget, ImageBatch


def make(**changes: object) -> RCNN:
    torch.manual_seed(0)
    config = lookup("rcnn_test")
    assert isinstance(config, RCNNConfig)
    return RCNN(replace(config, **changes)).eval()  # type: ignore[arg-type]


def scene(seed: int = 0) -> tuple[Tensor, BoxTarget]:
    """A grey picture ``[3, 64, 64]`` uint8 with a rectangle of each of three colours."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.full((3, 64, 64), 90.0)
    boxes = []
    for channel, (left, top) in enumerate([(4, 6), (36, 8), (16, 36)]):
        width, height = torch.randint(18, 26, (2,), generator=generator).tolist()
        picture[:, top : top + height, left : left + width] = 20
        picture[channel, top : top + height, left : left + width] = 230
        boxes.append([left, top, left + width, top + height])
    picture += 3 * torch.randn(picture.shape, generator=generator)
    return picture.clamp(0, 255).byte(), BoxTarget.of(torch.tensor(boxes).float(), torch.arange(3))


@pytest.mark.parametrize("context", [0, 8])
def test_a_warped_region_shows_the_box_inside_of_its_frame(context: int) -> None:
    model = make(side=48, context=context)
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[:, :, 20:44, 12:60] = 1.0
    regions = [torch.tensor([[12.0, 20.0, 60.0, 44.0]])]
    (warped,) = model.network._warped(pixels, ((64, 64),), regions)
    expected = torch.zeros(48, 48)
    expected[context : 48 - context, context : 48 - context] = 1.0
    assert warped.shape == (1, 3, 48, 48)
    # One pixel of the warped frame may mix the two sides of the edge.
    inner, outer = max(context, 1), max(context - 1, 0)
    assert warped[0, 0, inner + 1 : 47 - inner, inner + 1 : 47 - inner].min() == 1
    if context:
        assert warped[0, 0, :outer].max() == 0
        assert warped[0, 0, :, :outer].max() == 0
    torch.testing.assert_close(warped[0, 0].mean(), expected.mean(), rtol=0.05, atol=0)


def test_widened_boxes_have_the_context_of_the_warped_frame() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    # 224 = 192 + 2 x 16: the sides grow by a sixth, half of it on either side.
    grown = widened(boxes, 224, 16)
    torch.testing.assert_close(grown, torch.tensor([[10 - 10 / 6, 20 - 20 / 6, 30 + 10 / 6, 60 + 20 / 6]]))
    assert torch.equal(widened(boxes, 224, 0), boxes)


def test_large_regions_are_averaged_not_skipped() -> None:
    model = make(side=48, context=0)
    pixels = torch.zeros(1, 3, 192, 192)
    pixels[:, :, ::2] = 1.0  # every other row: samples of one row per pixel would see one kind alone
    (warped,) = model.network._warped(pixels, ((192, 192),), [torch.tensor([[0.0, 0, 192, 192]])])
    torch.testing.assert_close(warped, torch.full_like(warped, 0.5), rtol=0, atol=0.13)
    torch.testing.assert_close(warped[:, :, 1:-1], torch.full_like(warped[:, :, 1:-1], 0.5))


def test_beyond_the_picture_is_the_mean_colour() -> None:
    model = make(side=48, context=8)
    pixels = torch.ones(1, 3, 64, 64)
    regions = [torch.tensor([[0.0, 0.0, 32.0, 40.0]])]
    (all_of_it,) = model.network._warped(pixels, ((64, 64),), regions)
    assert all_of_it[..., :6, :].max() == 0
    (a_part,) = model.network._warped(pixels, ((40, 32),), regions)
    assert a_part[..., -6:, :].max() == 0
    assert a_part[..., -6:].max() == 0


def test_proposals_are_those_of_the_picture_alone() -> None:
    model = make()
    picture, _ = scene()
    wide = picture[:, :40]
    images = model.preprocess([picture, wide])
    both = model.propose(images)
    assert torch.equal(both[0], model.config.search(picture))
    assert torch.equal(both[1], model.config.search(wide))


def test_proposals_do_not_depend_on_the_kind_of_numbers() -> None:
    model = make()
    images = model.preprocess([scene()[0]])
    once = searched(model.memory, images, model.preprocess)
    again = searched(model.memory, images.channels_last(), model.preprocess)
    assert len(model.memory) == 1
    assert torch.equal(once[0], again[0])


def test_pictures_are_searched_once_over_all_epochs() -> None:
    model = make().train()
    picture, target = scene()
    images = model.preprocess([picture])
    for _ in range(3):
        model(images, [target])
        model.eval()(images)
    assert len(model.memory) == 1
    model.memory.search = SelectiveSearch(limit=1)  # not asked again
    assert len(model.propose(images)[0]) > 1


def test_targets_choose_a_balanced_sample_with_the_objects_in_it() -> None:
    model = make()
    picture, target = scene()
    images = model.preprocess([picture, picture])
    outputs = model(images, [target, target])
    matched = [
        model.learning.assigner(outputs.regions.boxes[outputs.regions.image == index], target) for index in range(2)
    ]
    for assignment in matched:
        assert len(assignment.matched) <= 16
        assert 1 <= int((assignment.matched >= 0).sum()) <= 4
    assert float(matched[0].iou.max()) >= 0.5


def test_refined_boxes_undo_the_codes() -> None:
    model = make()
    picture, target = scene()
    images = model.preprocess([picture])
    outputs = model(images)
    aim = target.boxes[:1].expand(len(outputs.regions.boxes), 4)
    codes = encode(aim, outputs.regions.boxes, model.learning.code_weights)
    (candidates,) = model.candidates(outputs._replace(codes=codes[:, None].expand(-1, 3, -1)), images)
    # Sides may grow 62.5-fold and no more, which no proposal here comes near.
    torch.testing.assert_close(candidates.boxes, aim[:, None].expand(-1, 3, -1), rtol=1e-4, atol=1e-3)


def test_finds_what_it_learned() -> None:
    model = make(sampler=BalancedSampler(size=24, positive_share=0.5)).train()
    picture, target = scene()
    images = model.preprocess([picture])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        losses = model.loss(model(images, [target]), [target])
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert set(losses.terms) == {"class", "boxes"}
    assert float(losses.terms["class"].detach()) < 0.5
    model.eval()
    with torch.no_grad():
        (found,) = model.candidates(model(images), images)
    for index, box in enumerate(target.boxes):
        best = int(found.scores[:, index].argmax())
        assert float(paired_iou(found.boxes[best, index], box)) > 0.5


def test_announces_what_it_costs() -> None:
    assert "up to 20 regions" in make().announcement((64, 64))


@pytest.mark.parametrize("wrong", [{"remembered": -1}, {"context": 24}, {"at_once": 0}])
def test_refuses_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        make(**wrong)


def test_canvas_of_one_grey_is_one_region() -> None:
    model = make()
    images = ImageBatch.of(torch.zeros(1, 3, 64, 64))
    assert model.propose(images)[0].tolist() == [[0, 0, 64, 64]]
    assert len(model.postprocess(model(images), images)) == 1
