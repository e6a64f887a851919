"""Pictures whose pixels say where they come from: after any augmentation boxes and masks lie on the same ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.data.joint import check_joint
from saccade.data.joint_boxes import vary_objects
from saccade.data.transforms import Augment, Key
from saccade.errors import ConfigError
from saccade.ops.boxes import map_to_canvas
from saccade.ops.image import Preprocess
from saccade.types import BoxTarget, Masks

STEP = 3
"""Grey levels per pixel, so that rounding to bytes is a sixth of a pixel."""

HEIGHT, WIDTH = 60, 70
BOXES = [[10.0, 8.0, 30.0, 28.0], [40.0, 20.0, 65.0, 50.0], [2.0, 40.0, 25.0, 58.0], [28.0, 5.0, 60.0, 14.0]]


def picture(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Red grows with the row, green with the column, blue is full."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None, :].expand(height, width)
    image = torch.stack([rows * STEP + 20, columns * STEP + 20, torch.full((height, width), 255)])
    return image.to(torch.uint8)


def filled(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks ``[N, h, w]`` that fill boxes of whole pixels."""
    dense = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(dense, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return dense


def objects(boxes: list[list[float]], size: tuple[int, int] = (HEIGHT, WIDTH), *, has_masks: bool = True) -> BoxTarget:
    corners = torch.tensor(boxes).reshape(-1, 4)
    masks = Masks.of(filled(corners, size)) if has_masks else None
    return BoxTarget.of(corners, torch.arange(len(boxes)), masks)


AUGMENTS = {
    "none": Augment(),
    "zoomed in": Augment(zoom=(1.3, 2.5)),
    "zoomed out": Augment(zoom=(0.5, 0.8)),
    "scaled": Augment(scale=(0.3, 1.0)),
    "flipped": Augment(flip=1.0),
    "upside down": Augment(flip_vertical=1.0),
    "shifted": Augment(shift=0.3),
    "all": Augment(zoom=(0.6, 1.7), flip=0.5, flip_vertical=0.5, shift=0.2),
}
CANVASES: dict[str, dict[str, Any]] = {
    "cut": {"policy": "native", "size": (32, 40)},
    "larger than the picture": {"policy": "native", "size": (80, 96)},
    "letterbox": {"policy": "letterbox", "size": (48, 40)},
    "enlarged": {"policy": "letterbox", "size": (100, 150)},
    "stretch": {"policy": "stretch", "size": (48, 40)},
    "crop": {"policy": "crop", "size": (48, 40), "crop_fraction": 0.9},
    "shorter": {"policy": "shorter", "size": (50, 55)},
}


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("augment", AUGMENTS)
def test_objects_stay_on_their_pixels(augment: str, canvas: str) -> None:
    image, target, preprocess = picture(), objects(BOXES), Preprocess(**CANVASES[canvas])
    kept = 0
    for epoch in range(6):
        content, moved = vary_objects(image, target, AUGMENTS[augment], preprocess, Key(5, epoch, [7]))
        assert moved.masks is not None
        assert moved.masks.size == tuple(content.shape[1:])
        kept += len(moved)
        is_shown = content[2] == 255
        assert (content[:, ~is_shown] == 0).all()
        rows, columns = ((content[axis].float() - 20) / STEP for axis in range(2))
        per_pixel = _pixels_of_the_original(rows, columns, is_shown)
        boxes = torch.tensor(BOXES)[moved.labels]
        for box, (left, top, right, bottom), mask in zip(moved.boxes, boxes.tolist(), moved.masks.dense(), strict=True):
            # Half a pixel of the original by nearest centres, a sixth by rounding, the rest by antialiasing at borders.
            slack = 1.1 * max(per_pixel, 1.0)
            above, beside = rows[mask], columns[mask]
            assert float(above.min()) >= top - slack
            assert float(above.max()) <= bottom - 1 + slack
            assert float(beside.min()) >= left - slack
            assert float(beside.max()) <= right - 1 + slack
            assert not (mask & ~is_shown).any()
            is_deep = (rows > top + slack) & (rows < bottom - 1 - slack)
            is_deep &= (columns > left + slack) & (columns < right - 1 - slack) & is_shown
            assert (mask | ~is_deep).all(), "all pixels of the object that are shown are in its mask"
            down, across = torch.nonzero(mask, as_tuple=True)
            tight = torch.stack([across.min(), down.min(), across.max() + 1, down.max() + 1])
            assert float((tight - box).abs().max()) <= 1, "box and mask agree within a pixel"
    assert kept >= 3


def _pixels_of_the_original(rows: Tensor, columns: Tensor, is_shown: Tensor) -> float:
    """How many pixels of the original one of the canvas covers, along the axis where these are more."""
    known = torch.nonzero(is_shown)
    (top, left), (bottom, right) = known.min(0).values.tolist(), known.max(0).values.tolist()
    down = abs(float(rows[bottom, left] - rows[top, left])) / max(bottom - top, 1)
    across = abs(float(columns[top, right] - columns[top, left])) / max(right - left, 1)
    return max(down, across)


@pytest.mark.parametrize("canvas", sorted(set(CANVASES) - {"cut", "crop"}))
def test_switched_off_the_picture_is_the_fitted_one_and_the_boxes_follow_its_geometry(canvas: str) -> None:
    image, target, preprocess = picture(), objects(BOXES, has_masks=False), Preprocess(**CANVASES[canvas])
    content, moved = vary_objects(image, target, Augment(), preprocess, Key(0, 0, [0]))
    fitted, geometry = preprocess.fit(image[None])
    assert torch.equal(content, fitted[0])
    torch.testing.assert_close(moved.boxes, map_to_canvas(target.boxes, geometry))
    assert torch.equal(moved.labels, target.labels)
    assert moved.masks is None


def test_a_central_crop_cuts_boxes_and_drops_what_is_hardly_there() -> None:
    """Of 80 columns at full height the middle 40 are seen: 20 to 60."""
    boxes = [[0.0, 0, 19, 10], [0, 0, 25, 10], [0, 0, 30, 10], [50, 5, 80, 40]]
    target = objects(boxes, (40, 80), has_masks=False)
    preprocess = Preprocess(policy="crop", size=(40, 40))
    content, moved = vary_objects(picture(40, 80), target, Augment(), preprocess, Key(0, 0, [0]))
    assert torch.equal(content, picture(40, 80)[:, :, 20:60])
    assert moved.labels.tolist() == [2, 3]
    assert moved.boxes.tolist() == [[0, 0, 10, 10], [30, 5, 40, 40]]


def test_a_quarter_is_enough_and_less_is_not() -> None:
    boxes = [[0.0, 0, 26.7, 10], [0, 0, 26.6, 10]]  # (26.67 - 20) / 26.67 is a quarter
    target = objects(boxes, (40, 80), has_masks=False)
    preprocess = Preprocess(policy="crop", size=(40, 40))
    _, moved = vary_objects(picture(40, 80), target, Augment(), preprocess, Key(0, 0, [0]))
    assert moved.labels.tolist() == [0]


def test_a_crowd_stays_as_long_as_anything_of_it_is_left() -> None:
    boxes = torch.tensor([[0.0, 0, 21, 10], [0, 0, 20, 10], [30, 10, 50, 20]])
    target = BoxTarget(boxes, torch.tensor([4, 5, 6]), torch.tensor([True, True, False]))
    preprocess = Preprocess(policy="crop", size=(40, 40))
    _, moved = vary_objects(picture(40, 80), target, Augment(), preprocess, Key(0, 0, [0]))
    assert moved.labels.tolist() == [4, 6]
    assert moved.crowd.tolist() == [True, False]
    assert moved.boxes[0].tolist() == [0, 0, 1, 10]


@pytest.mark.parametrize(
    ("flip", "box"),
    [("flip", [WIDTH - 30.0, 8, WIDTH - 10, 28]), ("flip_vertical", [10.0, HEIGHT - 28, 30, HEIGHT - 8])],
)
def test_flips_closed_form(flip: str, box: list[float]) -> None:
    image, target = picture(), objects(BOXES)
    preprocess = Preprocess(policy="stretch", size=(HEIGHT, WIDTH))
    content, moved = vary_objects(image, target, Augment(**{flip: 1.0}), preprocess, Key(0, 0, [0]))
    axis = -1 if flip == "flip" else -2
    assert torch.equal(content, image.flip(axis))
    assert moved.boxes[0].tolist() == box
    assert target.masks is not None
    assert moved.masks is not None
    assert torch.equal(moved.masks.dense(), target.masks.dense().flip(axis))


def test_a_marker_of_one_pixel_is_followed() -> None:
    """A white pixel on black: its box and mask are where the white is, on canvases of the picture's own scale."""
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    image[:, 23, 41] = 255
    target = objects([[41.0, 23, 42, 24]])
    augment = Augment(flip=0.5, flip_vertical=0.5, shift=0.2)
    places = set()
    for epoch in range(30):
        preprocess = Preprocess(policy="native", size=(40, 50))
        content, moved = vary_objects(image, target, augment, preprocess, Key(1, epoch, [0]))
        found = torch.nonzero(content[0])
        assert len(found) == len(moved)
        if len(found):
            down, across = found[0].tolist()
            assert moved.boxes[0].tolist() == [across, down, across + 1, down + 1]
            assert moved.masks is not None
            assert torch.equal(moved.masks[0], content[0] == 255)
            places.add((down, across))
    assert len(places) > 10


def test_zooming_out_leaves_a_smaller_picture_and_smaller_boxes() -> None:
    preprocess = Preprocess(policy="letterbox", size=(80, 80))
    image, target = picture(80, 80), objects([[20.0, 40, 40, 80]], (80, 80))
    content, moved = vary_objects(image, target, Augment(zoom=(0.5, 0.5)), preprocess, Key(0, 0, [0]))
    assert content.shape == (3, 40, 40)
    assert moved.boxes.tolist() == [[10, 20, 20, 40]]
    assert moved.masks is not None
    assert torch.equal(moved.masks.dense(), filled(moved.boxes, (40, 40)))


def test_zooming_in_shows_half_of_each_side() -> None:
    preprocess = Preprocess(policy="letterbox", size=(80, 80))
    target = objects([[0.0, 0, 80, 80]], (80, 80))
    content, moved = vary_objects(picture(80, 80), target, Augment(zoom=(2.0, 2.0)), preprocess, Key(0, 0, [0]))
    assert content.shape == (3, 80, 80)
    assert int(content[0].max()) - int(content[0].min()) == pytest.approx(39 * STEP, abs=STEP)
    assert moved.boxes.tolist() == [[0, 0, 80, 80]]


def test_the_box_of_a_mask_that_is_cut_is_that_of_what_is_left() -> None:
    """An L: its upright lies in columns 22 to 26, its foot reaches out to the left of the crop at 20."""
    mask = torch.zeros(1, 40, 80, dtype=torch.bool)
    mask[0, 5:30, 22:26] = True
    mask[0, 30:34, 10:26] = True
    mask[0, 2:5, 10:19] = True  # gone with the crop, and with it the upper edge of the box
    target = BoxTarget.of(torch.tensor([[10.0, 2, 26, 34]]), torch.tensor([0]), Masks.of(mask))
    preprocess = Preprocess(policy="crop", size=(40, 40))
    _, moved = vary_objects(picture(40, 80), target, Augment(), preprocess, Key(0, 0, [0]))
    assert moved.boxes.tolist() == [[0, 5, 6, 34]]
    assert moved.masks is not None
    assert torch.equal(moved.masks[0], mask[0, :, 20:60])


def test_with_masks_the_share_that_is_left_counts_pixels() -> None:
    """The right half of the box is seen, but only a tenth of the object is there."""
    mask = torch.zeros(1, 40, 80, dtype=torch.bool)
    mask[0, 0:10, 10:19] = True
    mask[0, 9, 19:30] = True
    preprocess = Preprocess(policy="crop", size=(40, 40))
    for masks, count in ((Masks.of(mask), 0), (None, 1)):
        target = BoxTarget.of(torch.tensor([[10.0, 0, 30, 10]]), torch.tensor([0]), masks)
        _, moved = vary_objects(picture(40, 80), target, Augment(), preprocess, Key(0, 0, [0]))
        assert len(moved) == count


def test_a_thin_mask_does_not_fall_between_the_centres() -> None:
    mask = torch.zeros(1, 90, 90, dtype=torch.bool)
    mask[0, 10:80, 45] = True
    target = BoxTarget.of(torch.tensor([[45.0, 10, 46, 80]]), torch.tensor([0]), Masks.of(mask))
    for side in (30, 29, 22, 13):
        preprocess = Preprocess(policy="letterbox", size=(side, side))
        _, moved = vary_objects(picture(90, 78), target, Augment(), preprocess, Key(0, 0, [0]))
        assert moved.masks is not None
        found = moved.masks[0]
        assert found.any()
        tight = moved.masks.boxes()[0]
        assert float((tight - moved.boxes[0]).abs().max()) <= 1


def test_boxes_without_area_are_dropped() -> None:
    target = objects([[5.0, 5, 5, 20], [5, 5, 20, 20]], has_masks=False)
    _, moved = vary_objects(picture(), target, Augment(), Preprocess(**CANVASES["letterbox"]), Key(0, 0, [0]))
    assert moved.labels.tolist() == [1]


def test_a_box_that_reaches_out_of_its_picture_is_cut_and_stays() -> None:
    target = objects([[-300.0, 5, 10, 15]], has_masks=False)
    preprocess = Preprocess(policy="stretch", size=(HEIGHT, WIDTH))
    _, moved = vary_objects(picture(), target, Augment(), preprocess, Key(0, 0, [0]))
    assert moved.boxes.tolist() == [[0, 5, 10, 15]]


@pytest.mark.parametrize("has_masks", [False, True])
def test_a_picture_without_objects_stays_one(has_masks: bool) -> None:
    target = objects([], has_masks=has_masks)
    content, moved = vary_objects(picture(), target, AUGMENTS["all"], Preprocess(**CANVASES["stretch"]), Key(0, 0, [0]))
    assert moved.boxes.shape == (0, 4)
    assert (moved.masks is not None) == has_masks
    assert moved.masks is None or moved.masks.size == tuple(content.shape[1:])


def test_colours_change_the_picture_and_never_the_objects() -> None:
    plain, coloured = Augment(flip=0.5, zoom=(0.7, 1.4)), Augment(flip=0.5, zoom=(0.7, 1.4), colour=0.5, erase=1.0)
    preprocess = Preprocess(**CANVASES["letterbox"])
    one, moved = vary_objects(picture(), objects(BOXES), plain, preprocess, Key(5, 3, [7]))
    other, same = vary_objects(picture(), objects(BOXES), coloured, preprocess, Key(5, 3, [7]))
    assert torch.equal(moved.boxes, same.boxes)
    assert not torch.equal(one, other)


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    def boxes(seed: int, epoch: int, index: int) -> Tensor:
        torch.rand(3)
        key = Key(seed, epoch, [index])
        return vary_objects(picture(), objects(BOXES), AUGMENTS["all"], Preprocess(**CANVASES["letterbox"]), key)[
            1
        ].boxes

    first = boxes(1, 2, 3)
    assert torch.equal(first, boxes(1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(first, boxes(*other))


def test_the_preset_for_objects_moves_only_what_boxes_can_follow() -> None:
    augment = Augment.preset("objects")
    check_joint(augment)
    assert not augment.is_off
    with pytest.raises(ConfigError, match="RandAugment"):
        check_joint(Augment(rand_augment=1))
