from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError, InputError
from saccade.ops.boxes import box_iou
from saccade.ops.regions import (
    _SPACES,
    Colour,
    RegionMemory,
    SelectiveSearch,
    _grown,
    _merge,
    _parts,
    _similarity,
    _texture,
)

ONE = SelectiveSearch(
    colours=("rgb",), scales=(20.0,), measures=(("colour",),), blur=0.0, min_area=4, min_side=1.0, limit=300
)
"""One hierarchy, nothing smoothed, nothing left out."""


def stripes(widths: list[int], colours: list[tuple[int, int, int]], height: int = 30) -> Tensor:
    """Upright stripes side by side, ``[3, h, w]`` uint8."""
    parts = [
        torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, height, width)
        for width, colour in zip(widths, colours, strict=True)
    ]
    return torch.cat(parts, dim=2)


def found(search: SelectiveSearch, picture: Tensor) -> set[tuple[float, ...]]:
    return {tuple(box) for box in search(picture).tolist()}


def rectangles(seed: int) -> tuple[Tensor, Tensor]:
    """A noisy picture with up to five coloured rectangles that may overlap, and those boxes that are not covered."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.full((3, 96, 128), 60.0)
    boxes: list[tuple[int, int, int, int]] = []
    for shade in torch.randperm(5, generator=generator).tolist():
        left, top = (
            int(torch.randint(0, 90, (), generator=generator)),
            int(torch.randint(0, 60, (), generator=generator)),
        )
        box = (left, top, left + 16 + 4 * shade, top + 14 + 4 * shade)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
            continue
        colour = torch.tensor([[220, 40, 40], [40, 220, 40], [40, 40, 220], [220, 220, 40], [40, 220, 220]][shade])
        picture[:, box[1] : box[3], box[0] : box[2]] = colour.view(3, 1, 1).float()
        boxes.append(box)
    picture += 4 * torch.randn(picture.shape, generator=generator)
    return picture.clamp(0, 255).byte(), torch.tensor(boxes).float()


def test_two_halves_are_found_exactly() -> None:
    picture = stripes([20, 40], [(250, 0, 0), (0, 0, 250)])
    boxes = ONE(picture)
    assert boxes.dtype == torch.float32
    assert boxes[0].tolist() == [0, 0, 60, 30]
    assert found(ONE, picture) == {(0, 0, 60, 30), (0, 0, 20, 30), (20, 0, 60, 30)}


def test_neighbours_of_similar_colour_are_joined_first() -> None:
    # Bins of 10.2: reds of 200 and 203 share a bin, but the cut tells them apart by the dark line between them.
    reds = [(200, 0, 0), (0, 0, 0), (203, 0, 0), (0, 0, 250)]
    together = found(ONE, stripes([20, 2, 20, 20], reds))
    assert (0, 0, 22, 30) in together or (20, 0, 42, 30) in together
    assert (0, 0, 42, 30) in together
    assert (22, 0, 62, 30) not in together


@pytest.mark.parametrize("widths", [[10, 10, 40], [40, 10, 10]])
def test_by_size_small_parts_are_joined_first(widths: list[int]) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    first = (0, 0, 20, 30) if widths[0] == 10 else (40, 0, 60, 30)
    second = (10, 0, 60, 30) if widths[0] == 10 else (0, 0, 50, 30)
    assert first in found(replace(ONE, measures=(("size",),)), stripes(widths, colours))
    assert second not in found(replace(ONE, measures=(("size",),)), stripes(widths, colours))


def test_by_fill_a_part_joins_the_one_around_it() -> None:
    picture = stripes([40, 30], [(0, 0, 250), (0, 250, 0)], height=40)
    picture[:, 10:30, 10:40] = torch.tensor([250, 0, 0], dtype=torch.uint8).view(3, 1, 1)  # a bay, open to the green
    boxes = found(replace(ONE, measures=(("fill",),)), picture)
    assert (0, 0, 40, 40) in boxes  # the bay and the blue around it fill their box
    assert (10, 0, 70, 40) not in boxes  # the bay and the green would not


def test_texture_is_the_slope_in_each_direction() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 40), (40, 40))
    channels = np.stack([ramp, ramp.T], axis=2)  # rises to the right, rises downwards
    bins = _texture(np.ascontiguousarray(channels))[20, 20]
    assert bins.shape == (2, 8)
    # Eight directions, each 45 degrees on from the last, the first to the right, the third downwards.
    share = np.sqrt(0.5)
    right = [1, share, 0, 0, 0, 0, 0, share]
    expected = np.minimum(np.array([right, np.roll(right, 2)]) * 10 + 1e-9, 9).astype(int)
    assert np.array_equal(bins, expected)


def test_joined_histograms_are_weighted_by_size() -> None:
    picture = stripes([10, 30], [(250, 0, 0), (0, 0, 250)]).permute(1, 2, 0).double().numpy() / 255
    labels = (np.arange(40) >= 10).astype(np.int64)[None].repeat(30, axis=0)
    parts = _parts(labels, picture, _texture(picture))
    assert parts.sizes.tolist() == [300, 900]
    assert parts.boxes.tolist() == [[0, 0, 10, 30], [10, 0, 40, 30]]
    assert parts.pairs.tolist() == [[0, 1]]
    for histogram in (parts.colour, parts.texture):
        assert np.allclose(histogram.sum(axis=1), 1)
    grown = _grown(parts)
    _merge(grown, 0, 1, 2)
    assert np.allclose(grown.colour[2], (parts.colour[0] + 3 * parts.colour[1]) / 4)
    assert grown.boxes[2].tolist() == [0, 0, 40, 30]
    # One channel of three is dark in both: a third of the histograms is shared.
    one, other = np.array([0]), np.array([1])
    assert _similarity(parts, one, other, ("colour",)).tolist() == pytest.approx([1 / 3])
    assert _similarity(parts, one, other, ("size",)).tolist() == pytest.approx([0])
    assert _similarity(parts, one, other, ("fill",)).tolist() == pytest.approx([1])


@pytest.mark.parametrize("seed", range(6))
def test_every_rectangle_is_found(seed: int) -> None:
    picture, boxes = rectangles(seed)
    proposals = SelectiveSearch(colours=("hsv",), scales=(100.0,))(picture)
    assert len(boxes) >= 2
    assert float(box_iou(boxes, proposals).amax(dim=1).min()) >= 0.5


def test_same_pixels_give_the_same_boxes() -> None:
    picture, _ = rectangles(1)
    search = SelectiveSearch()
    torch.manual_seed(1)
    np.random.seed(1)
    first = search(picture)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(search(picture.clone()), first)


def test_boxes_are_distinct_inside_and_not_narrow() -> None:
    picture, _ = rectangles(2)
    boxes = SelectiveSearch(min_side=9.0)(picture)
    assert boxes[0].tolist() == [0, 0, 128, 96]
    assert len(torch.unique(boxes, dim=0)) == len(boxes) > 20
    assert float((boxes[:, 2:] - boxes[:, :2]).min()) >= 9
    assert float(boxes.min()) >= 0
    assert bool((boxes[:, 2:] <= torch.tensor([128.0, 96.0])).all())


def test_limit_keeps_the_highest_ranks() -> None:
    picture, _ = rectangles(3)
    every = SelectiveSearch()(picture)
    assert torch.equal(SelectiveSearch(limit=7)(picture), every[:7])


def test_reduced_pictures_give_boxes_of_their_own_size() -> None:
    picture = stripes([80, 160], [(250, 0, 0), (0, 0, 250)], height=120)
    assert found(replace(ONE, side=60), picture) >= {(0, 0, 240, 120), (0, 0, 80, 120)}


@pytest.mark.parametrize("colour", sorted(_SPACES))
def test_colour_spaces_keep_to_their_range(colour: Colour) -> None:
    corners = torch.tensor([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)]).double().numpy()[None]
    values = _SPACES[colour](corners)
    assert values.shape[:2] == (1, 8)
    assert values.min() >= 0
    assert values.max() <= 1
    assert len(np.unique(values.round(6).reshape(8, -1), axis=0)) >= 3  # not all colours are the same there


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 1), (2, 2), (30, 40)])
def test_blank_and_tiny_pictures_are_one_region(height: int, width: int) -> None:
    picture = torch.full((3, height, width), 9, dtype=torch.uint8)
    assert SelectiveSearch()(picture).tolist() == [[0, 0, width, height]]


def test_a_picture_without_pixels_has_no_regions() -> None:
    assert SelectiveSearch()(torch.zeros(3, 0, 8, dtype=torch.uint8)).shape == (0, 4)


def test_refuses_what_is_no_picture() -> None:
    with pytest.raises(InputError, match="uint8 RGB"):
        SelectiveSearch()(torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match="uint8 RGB"):
        SelectiveSearch()(torch.zeros(1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    "wrong", [{"colours": ()}, {"measures": ((),)}, {"limit": 0}, {"scales": (0.0,)}, {"blur": -1.0}, {"side": 0}]
)
def test_refuses_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SelectiveSearch(**wrong)  # type: ignore[arg-type]


class Counted(SelectiveSearch):
    """A search that counts how often it is asked."""

    calls = 0

    def __call__(self, picture: Tensor) -> Tensor:
        Counted.calls += 1
        return super().__call__(picture)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    monkeypatch.setattr(Counted, "calls", 0)
    return Counted()


def test_memory_searches_the_same_pixels_once(counted: Counted) -> None:
    memory = RegionMemory(counted, 10)
    picture, other = rectangles(0)[0], rectangles(1)[0]
    first = memory(picture)
    assert torch.equal(memory(picture.clone()), first)
    assert torch.equal(first, counted(picture))
    assert Counted.calls == 2
    memory(other)
    assert Counted.calls == 3
    memory(picture.transpose(1, 2).contiguous().transpose(1, 2))  # the same numbers, laid out otherwise
    assert Counted.calls == 3


def test_memory_tells_shapes_apart() -> None:
    memory = RegionMemory(SelectiveSearch(), 10)
    assert memory(torch.zeros(3, 10, 20, dtype=torch.uint8)).tolist() == [[0, 0, 20, 10]]
    assert memory(torch.zeros(3, 20, 10, dtype=torch.uint8)).tolist() == [[0, 0, 10, 20]]


def test_memory_forgets_what_was_not_asked_for_longest(counted: Counted) -> None:
    memory = RegionMemory(counted, 2)
    pictures = [torch.full((3, 8, 8), shade, dtype=torch.uint8) for shade in range(3)]
    for index in (0, 1, 0, 2):
        memory(pictures[index])
    assert (len(memory), Counted.calls) == (2, 3)
    memory(pictures[0])
    assert Counted.calls == 3
    memory(pictures[1])
    assert Counted.calls == 4


def test_memory_of_none_is_none(counted: Counted) -> None:
    memory = RegionMemory(counted, 0)
    for _ in range(2):
        memory(torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert (len(memory), Counted.calls) == (0, 2)


def test_copies_share_a_memory_and_pickles_begin_anew() -> None:
    memory = RegionMemory(SelectiveSearch(limit=3), 5)
    memory(torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert copy.deepcopy(memory) is memory
    again = pickle.loads(pickle.dumps(memory))
    assert (again.search, again.pictures, len(again)) == (memory.search, 5, 0)


def test_what_prediction_found_can_be_learned_from() -> None:
    memory = RegionMemory(SelectiveSearch(), 5)
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with torch.inference_mode():
        memory(picture)
    assert not memory(picture).is_inference()
