from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from saccade.errors import InputError
from saccade.models.build import create
from saccade.models.mask_rcnn import ClassMasks, MaskHead, MaskHeadConfig, MaskOutputs, cells
from saccade.models.roi_heads import Regions
from saccade.types import BoxTarget, ImageBatch, Masks


def half() -> Masks:
    """The left half of a square, a triangle below it."""
    dense = torch.zeros(2, 40, 40, dtype=torch.bool)
    dense[0, 10:30, 10:20] = True
    dense[1, 20:36, 20:36] = torch.ones(16, 16).tril().bool()
    return Masks.of(dense)


def test_cells_hold_the_share_that_is_covered() -> None:
    boxes = torch.tensor(
        [
            [10.0, 10.0, 30.0, 30.0],
            [5.0, 10.0, 15.0, 30.0],
            [20.0, 20.0, 36.0, 36.0],
            [18.5, 9.5, 20.5, 11.5],
            [0, 0, 80, 80],
        ]
    )
    found = cells(half(), torch.tensor([0, 0, 1, 0, 0]), boxes, 4)
    torch.testing.assert_close(found[0], torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(4, 4))
    torch.testing.assert_close(found[1], torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(4, 4))
    # 4x4 pixels per cell of the triangle: 16 below the diagonal, 10 on it.
    torch.testing.assert_close(found[2], torch.ones(4, 4).tril(-1) + torch.eye(4) * 10 / 16)
    # Cells of half a pixel, and cells larger than the object.
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(found[3], expected)
    torch.testing.assert_close(found[4][:2, :2], torch.tensor([[0.25, 0.0], [0.25, 0.0]]))
    torch.testing.assert_close(found.sum((1, 2))[4] * 400, torch.tensor(200.0))


def test_every_region_gets_the_mask_of_its_own_class() -> None:
    torch.manual_seed(0)
    layer = ClassMasks(6, 3)
    patches = torch.randn(4, 6, 5, 5)
    labels = torch.tensor([2, 0, 2, 1])
    every = F.conv2d(patches, layer.weight[:, :, None, None], layer.bias)
    torch.testing.assert_close(layer(patches, labels), every[torch.arange(4), labels])
    assert layer(patches[:0], labels[:0]).shape == (0, 5, 5)


def outputs(labels: list[int]) -> MaskOutputs:
    boxes = torch.tensor([[10.0, 10.0, 20.0, 30.0], [20.0, 20.0, 36.0, 36.0], [0.0, 0.0, 5.0, 5.0]])
    regions = Regions.of([boxes], [torch.tensor(labels)])
    return MaskOutputs(regions, torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_loss_is_over_regions_that_are_seen_as_what_they_are() -> None:
    head = MaskHead(MaskHeadConfig(size=4, convs=1, hidden=4), 4, [4], 3)
    boxes = torch.tensor([[10.0, 10.0, 20.0, 30.0], [20.0, 20.0, 36.0, 36.0]])
    target = BoxTarget.of(boxes, torch.tensor([1, 2]), half())
    given = outputs([1, 0, 1])  # the second is seen as another class, the third is background
    expected = F.binary_cross_entropy_with_logits(given.logits[:1], torch.ones(1, 8, 8))
    torch.testing.assert_close(head.loss(given, [target])["mask"], expected)
    both = outputs([1, 2, 1])
    aims = cells(half(), torch.tensor([0, 1]), boxes, 8)
    torch.testing.assert_close(
        head.loss(both, [target])["mask"], F.binary_cross_entropy_with_logits(both.logits[:2], aims)
    )


def test_nothing_to_cut_out_is_no_loss() -> None:
    head = MaskHead(MaskHeadConfig(size=4, convs=1, hidden=4), 4, [4], 3)
    none = BoxTarget.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert head.loss(outputs([1, 1, 1]), [none])["mask"].item() == 0


def test_objects_without_masks_are_refused() -> None:
    head = MaskHead(MaskHeadConfig(size=4, convs=1, hidden=4), 4, [4], 3)
    target = BoxTarget.of(torch.tensor([[0.0, 0.0, 5.0, 5.0]]), torch.tensor([1]))
    with pytest.raises(InputError, match=r"targets\[0\]: the objects have no masks"):
        head.loss(outputs([1, 1, 1]), [target])


def test_masks_lie_in_the_original_picture() -> None:
    """A head that takes everything for covered fills the boxes, whatever the canvas was."""
    model = create("mask_rcnn_test").eval()
    with torch.no_grad():
        model.heads[1].head.weight.zero_()
        model.heads[1].head.bias.fill_(9)
    images = model.preprocess([torch.zeros(3, 90, 120, dtype=torch.uint8), torch.zeros(3, 50, 20, dtype=torch.uint8)])
    for found, size in zip(model.postprocess(model(images), images), ((90, 120), (50, 20)), strict=True):
        assert found.masks is not None
        assert found.masks.size == size
        assert len(found) > 3
        large = ((found.boxes[:, 2:] - found.boxes[:, :2]) > 8).all(1).nonzero()[:, 0]
        assert float((found.masks.boxes() - found.boxes)[large].abs().max()) <= 2


def test_outputs_of_sampled_regions_have_no_detections() -> None:
    model = create("mask_rcnn_test").eval()
    images = ImageBatch.of(torch.randn(1, 3, 64, 64))
    target = BoxTarget.of(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([1]), Masks.of(torch.ones(1, 64, 64)))
    with pytest.raises(InputError, match="made without targets"):
        model.postprocess(model(images, [target]), images)


def test_masks_cost_memory_for_their_boxes_alone() -> None:
    model = create("mask_rcnn_test").eval()
    images = model.preprocess([torch.zeros(3, 600, 800, dtype=torch.uint8)])
    (found,) = model.postprocess(model(images), images)
    assert found.masks is not None
    held = sum(crop.numel() for crop in found.masks.crops)
    areas = float(((found.boxes[:, 2:] - found.boxes[:, :2] + 12) * 1.2).prod(1).sum())
    assert held < areas
    assert all(crop.untyped_storage().nbytes() == crop.numel() for crop in found.masks.crops)


def test_four_pictures_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    config = replace(create("mask_rcnn_test").config, num_classes=1)
    model = config.build().train()
    boxes = torch.tensor([[8.0, 8.0, 32.0, 32.0], [36.0, 30.0, 60.0, 54.0]])
    dense = torch.zeros(2, 64, 64, dtype=torch.bool)
    dense[0, 8:32, 8:32] = torch.ones(24, 24).tril().bool()
    dense[1, 30:54, 36:60] = torch.ones(24, 24).triu().bool()
    pixels = torch.zeros(4, 3, 64, 64)
    pixels[:, 0, dense.any(0)] = 2
    targets = [BoxTarget.of(boxes, torch.zeros(2, dtype=torch.int64), Masks.of(dense))] * 4
    images = ImageBatch.of(pixels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(160):
        losses = model.loss(model(images, targets), targets)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert set(losses.terms) == {"rpn_objectness", "rpn_boxes", "class", "boxes", "mask"}
    with torch.no_grad():
        found = model.eval().postprocess(model(images), images)[0]
    assert found.masks is not None
    best = found.select(torch.arange(2))
    assert best.masks is not None
    order = best.boxes[:, 0].argsort()
    covered = best.masks.select(order).dense()
    overlap = (covered & dense).flatten(1).sum(1) / (covered | dense).flatten(1).sum(1)
    assert float(overlap.min()) > 0.7
