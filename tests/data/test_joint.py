"""Pictures whose pixels say where they come from: after any augmentation their label maps must say the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.data.joint import check_joint, vary_pair
from saccade.data.transforms import Augment, Key
from saccade.errors import ConfigError
from saccade.ops.image import Preprocess
from saccade.types import IGNORE

STEP = 3
"""Grey levels per pixel, so that rounding to bytes is a sixth of a pixel."""

HEIGHT, WIDTH = 60, 70


def coordinates(height: int = HEIGHT, width: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    """A picture (red grows with the row, green with the column, blue is full), its rows and its columns as labels."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None, :].expand(height, width)
    image = torch.stack([rows * STEP + 20, columns * STEP + 20, torch.full((height, width), 255)])
    return image.to(torch.uint8), rows.to(torch.uint8), columns.to(torch.uint8)


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
    "crop": {"policy": "native", "size": (32, 40)},
    "larger than the picture": {"policy": "native", "size": (80, 96)},
    "letterbox": {"policy": "letterbox", "size": (48, 40)},
    "stretch": {"policy": "stretch", "size": (48, 40)},
}


def varied(image: Tensor, labels: Tensor, augment: Augment, canvas: Preprocess, epoch: int) -> tuple[Tensor, Tensor]:
    return vary_pair(image, labels, augment, canvas, Key(5, epoch, [7]))


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("augment", AUGMENTS)
def test_labels_stay_on_their_pixels(augment: str, canvas: str) -> None:
    image, rows, columns = coordinates()
    preprocess = Preprocess(**CANVASES[canvas])
    for epoch in range(6):
        picture, row_map = varied(image, rows, AUGMENTS[augment], preprocess, epoch)
        same, column_map = varied(image, columns, AUGMENTS[augment], preprocess, epoch)
        assert torch.equal(picture, same)
        assert picture.shape == (3, *preprocess.size)
        assert row_map.shape == column_map.shape == preprocess.size
        is_shown = picture[2] == 255
        assert is_shown.any()
        assert torch.equal(row_map != IGNORE, is_shown), "what is padding in the one is padding in the other"
        assert torch.equal(column_map != IGNORE, is_shown)
        assert (picture[:, ~is_shown] == 0).all()
        for found, truth in ((row_map, picture[0]), (column_map, picture[1])):
            error = (truth[is_shown].float() - 20) / STEP - found[is_shown].float()
            # A label is the nearest pixel: half a pixel off at most, a sixth by rounding the picture; antialiasing
            # sees less of the picture at its border.
            assert float(error.abs().max()) <= 0.5 + 1 / 6 + 0.35
            assert abs(float(error.mean())) <= 0.2


@pytest.mark.parametrize(("flip", "axis"), [("flip", 1), ("flip_vertical", 0)])
def test_flips_closed_form(flip: str, axis: int) -> None:
    image, rows, columns = coordinates(32, 40)
    preprocess = Preprocess(policy="native", size=(32, 40))
    labels = columns if axis else rows
    picture, found = varied(image, labels, Augment(**{flip: 1.0}), preprocess, 0)
    assert torch.equal(found, labels.flip(axis))
    assert torch.equal(picture, image.flip(axis + 1))


def test_the_two_flips_are_drawn_apart() -> None:
    image, _, _ = coordinates(32, 40)
    both = Augment(flip=0.5, flip_vertical=0.5)
    corners = torch.arange(4, dtype=torch.uint8).reshape(2, 2).repeat_interleave(16, 0).repeat_interleave(20, 1)
    preprocess = Preprocess(policy="native", size=(32, 40))
    found = {int(varied(image, corners, both, preprocess, epoch)[1][0, 0]) for epoch in range(30)}
    assert found == {0, 1, 2, 3}


def test_without_augmentation_native_crops_are_parts_of_the_picture() -> None:
    image, rows, columns = coordinates()
    preprocess = Preprocess(policy="native", size=(20, 30))
    places = set()
    for epoch in range(20):
        picture, row_map = varied(image, rows, Augment(), preprocess, epoch)
        _, column_map = varied(image, columns, Augment(), preprocess, epoch)
        top, left = int(row_map[0, 0]), int(column_map[0, 0])
        assert torch.equal(picture, image[:, top : top + 20, left : left + 30])
        assert torch.equal(row_map, rows[top : top + 20, left : left + 30])
        places.add((top, left))
    tops, lefts = ({place[axis] for place in places} for axis in range(2))
    assert min(len(tops), len(lefts)) > 10, "crops are cut at random places"


def test_a_picture_smaller_than_the_crop_lies_at_the_top_left_unscaled() -> None:
    image, rows, _ = coordinates(10, 50)
    picture, found = varied(image, rows, Augment(), Preprocess(policy="native", size=(16, 40)), 0)
    assert torch.equal(found[:10], rows[:, :40])
    assert (found[10:] == IGNORE).all()
    assert (picture[:, 10:] == 0).all()


def test_a_small_picture_keeps_its_magnification_when_zoomed() -> None:
    """8 rows doubled are 16 of 32; the same again, halved, are 4."""
    image, rows, _ = coordinates(8, 8)
    preprocess = Preprocess(policy="native", size=(32, 32))
    for zoom, side in ((2.0, 16), (0.5, 4)):
        _, found = varied(image, rows, Augment(zoom=(zoom, zoom)), preprocess, 0)
        is_known = found != IGNORE
        assert is_known[:side, :side].all()
        assert int(is_known.sum()) == side * side


@pytest.mark.parametrize("zoom", [0.9, 1.0, 1.7, 2.6, 2.85, 6.5])
def test_a_picture_larger_than_the_window_fills_the_canvas(zoom: float) -> None:
    image, rows, _ = coordinates(80, 80)
    _, found = varied(image, rows, Augment(zoom=(zoom, zoom)), Preprocess(policy="native", size=(64, 64)), 0)
    assert not (found == IGNORE).any()


def test_zooming_in_shows_less_and_out_shows_more() -> None:
    image, rows, _ = coordinates(80, 80)
    preprocess = Preprocess(policy="native", size=(40, 40))
    spans = []
    for zoom in (0.5, 1.0, 2.0):
        _, found = varied(image, rows, Augment(zoom=(zoom, zoom)), preprocess, 0)
        spans.append(int(found.max()) - int(found.min()) + 1)
    assert spans[1:] == [40, 20]
    assert 78 <= spans[0] <= 80


def test_labels_are_never_blended() -> None:
    """Between 0 and 200 lies every class that a blend would invent."""
    labels = torch.where(torch.rand(50, 60, generator=torch.Generator().manual_seed(0)) < 0.5, 0, 200)
    image = torch.zeros(3, 50, 60, dtype=torch.uint8)
    for settings in CANVASES.values():
        for epoch in range(5):
            _, found = varied(image, labels.to(torch.uint8), AUGMENTS["all"], Preprocess(**settings), epoch)
            assert set(found.unique().tolist()) <= {0, 200, IGNORE}


def test_ignored_pixels_stay_ignored_and_move_along() -> None:
    image, _, columns = coordinates(32, 40)
    labels = torch.where(columns < 10, IGNORE, 1).to(torch.uint8)
    _, found = varied(image, labels, Augment(flip=1.0), Preprocess(policy="native", size=(32, 40)), 0)
    assert torch.equal(found == IGNORE, (columns >= 30))


def test_colours_change_the_picture_and_never_the_labels() -> None:
    image, rows, _ = coordinates()
    preprocess = Preprocess(policy="native", size=(32, 40))
    plain, coloured = Augment(flip=0.5, zoom=(0.7, 1.4)), Augment(flip=0.5, zoom=(0.7, 1.4), colour=0.5, erase=1.0)
    one, labels = varied(image, rows, plain, preprocess, 3)
    other, same = varied(image, rows, coloured, preprocess, 3)
    assert torch.equal(labels, same), "switching one option on leaves the draws of the others alone"
    assert not torch.equal(one, other)


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    image, rows, _ = coordinates()
    preprocess = Preprocess(policy="native", size=(32, 40))

    def labels(seed: int, epoch: int, index: int) -> Tensor:
        torch.rand(3)
        return vary_pair(image, rows, AUGMENTS["all"], preprocess, Key(seed, epoch, [index]))[1]

    first = labels(1, 2, 3)
    assert torch.equal(first, labels(1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(first, labels(*other))


def test_what_labels_cannot_follow_is_refused() -> None:
    with pytest.raises(ConfigError, match="RandAugment"):
        check_joint(Augment(rand_augment=1))
    check_joint(AUGMENTS["all"])
