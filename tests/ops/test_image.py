from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from saccade.errors import ConfigError, InputError
from saccade.ops.image import Preprocess, to_original
from saccade.types import Geometry

POLICIES = [
    {"policy": "stretch"},
    {"policy": "crop"},
    {"policy": "crop", "crop_fraction": 0.875},
    {"policy": "letterbox"},
]
SIZES = [(40, 60), (60, 40), (57, 31), (12, 90), (48, 48)]


def on_black(**settings: Any) -> Preprocess:
    """Black is zero after normalisation, so that a marker can be weighed."""
    return Preprocess(size=(48, 32), mean=(0, 0, 0), std=(1, 1, 1), **settings)


@pytest.mark.parametrize("settings", POLICIES)
@pytest.mark.parametrize("size", SIZES)
def test_one_pixel_marker_is_found_where_the_geometry_says(settings: dict[str, Any], size: tuple[int, int]) -> None:
    """The centre of gravity of a marker on the canvas, led back, is the centre of the marked pixel."""
    height, width = size
    preprocess = on_black(**settings)
    found = 0
    for row, column in [(height // 2, width // 2), (height // 3, width // 2), (height // 2, 2 * width // 5)]:
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        image[:, row, column] = 255
        batch = preprocess([image])
        weight = batch.pixels[0, 0].double()
        rows = torch.arange(48, dtype=torch.float64) + 0.5
        columns = torch.arange(32, dtype=torch.float64) + 0.5
        gravity = torch.stack([(weight.sum(1) * rows).sum(), (weight.sum(0) * columns).sum()]) / weight.sum()
        centre = torch.tensor([row + 0.5, column + 0.5], dtype=torch.float64)
        geometry = batch.geometries[0]
        canvas_point = geometry.to_canvas(centre)
        # A marker whose blur reaches over the edge of the canvas cannot be weighed.
        reach = torch.tensor(geometry.scale).clamp_min(1).double() * 1.5
        if bool((canvas_point < reach).any() or (canvas_point > torch.tensor([48, 32]) - reach).any()):
            continue
        found += 1
        # Bytes are rounded during resizing: a tenth of an original pixel, or of a canvas pixel where that is larger.
        tolerance = 0.1 / torch.tensor(geometry.scale).clamp(max=1).double()
        assert bool(((geometry.to_original(gravity) - centre).abs() <= tolerance).all())
        assert torch.allclose(geometry.to_original(canvas_point), centre)
    assert found


@pytest.mark.parametrize("settings", POLICIES)
@pytest.mark.parametrize("size", SIZES)
def test_corners_of_the_content(settings: dict[str, Any], size: tuple[int, int]) -> None:
    batch = on_black(**settings)([torch.full((3, *size), 255, dtype=torch.uint8)])
    height, width = batch.sizes[0]
    assert bool((batch.pixels[0, :, :height, :width] == 1).all())
    assert float(batch.pixels.sum()) == 3 * height * width, "beside the content the canvas is black"
    geometry = batch.geometries[0]
    assert geometry.original_size == size
    corners = geometry.to_canvas(torch.tensor([[0.0, 0.0], [float(size[0]), float(size[1])]]))
    if settings["policy"] == "crop":
        assert bool((corners[0] <= 0.5).all())
        assert bool((corners[1] >= torch.tensor([47.5, 31.5])).all())
        middle = corners.mean(0)
        assert bool(((middle - torch.tensor([24.0, 16.0])).abs() <= 0.5).all())
    else:
        assert torch.allclose(corners, torch.tensor([[0.0, 0.0], [float(height), float(width)]]))
    if settings["policy"] == "letterbox":
        assert (height, width) == tuple(int(value) for value in on_black(**settings).content_size(*size))
        assert height == 48 or width == 32


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (257, 259), (100, 640), (256, 256)])
@pytest.mark.parametrize("around", [224, 232, 235, 256])
def test_crop_is_torchvisions_resize_and_centre_crop(size: tuple[int, int], around: int) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = Preprocess(size=(224, 224), crop_fraction=224 / around)([image]).pixels[0]
    steps = [v2.Resize(around, antialias=True), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)]
    theirs = v2.Compose([*steps, v2.Normalize(Preprocess().mean, Preprocess().std)])(image)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_normalisation_closed_form_and_back() -> None:
    preprocess = Preprocess(size=(2, 2), mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.2))
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2)
    pixels = preprocess([image]).pixels
    expected = torch.tensor([(0 - 0.1) / 0.5, (128 / 255 - 0.2) / 0.4, (1 - 0.3) / 0.2])
    assert torch.allclose(pixels[0, :, 0, 0], expected, atol=1e-6)
    assert torch.allclose(preprocess.denormalise(pixels)[0, :, 1, 1], torch.tensor([0, 128 / 255, 1]), atol=1e-6)


def test_one_by_one_mixed_and_stacked_give_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in SIZES]
    for settings in POLICIES:
        preprocess = on_black(**settings)
        together = preprocess(images)
        for index, image in enumerate(images):
            alone = preprocess([image])
            assert torch.equal(together.pixels[index], alone.pixels[0])
            assert together.geometries[index] == alone.geometries[0]
            assert together.sizes[index] == alone.sizes[0]
    stacked = torch.stack([images[0], images[0].flip(2)])
    assert torch.equal(preprocess(stacked).pixels, preprocess(list(stacked)).pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
@pytest.mark.parametrize("settings", POLICIES)
def test_extreme_sizes(settings: dict[str, Any], size: tuple[int, int]) -> None:
    batch = on_black(**settings)([torch.full((3, *size), 7, dtype=torch.uint8)])
    assert batch.pixels.shape == (1, 3, 48, 32)
    assert min(batch.sizes[0]) >= 1


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 4, 4),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
        torch.zeros(4, 4, dtype=torch.uint8),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(3, 0, 4, dtype=torch.uint8),
    ],
)
def test_wrong_pictures_are_named_by_place(image: torch.Tensor) -> None:
    good = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"images\[1\]"):
        Preprocess()([good, image])
    with pytest.raises(InputError, match="no images"):
        Preprocess()([])


@pytest.mark.parametrize(
    "wrong", [{"size": (0, 4)}, {"crop_fraction": 0.0}, {"crop_fraction": 1.1}, {"std": (1, 0, 1)}]
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Preprocess(**wrong)


# --- every pixel as it is, and the way back of what covers the canvas


def test_native_puts_pictures_of_all_sizes_on_the_largest_canvas_untouched() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in SIZES]
    batch = on_black(policy="native")(images)
    assert batch.pixels.shape == (5, 3, 60, 90), "the highest is 60, the widest 90, whatever `size` says"
    assert batch.sizes == tuple(SIZES)
    for image, pixels, geometry, (height, width) in zip(images, batch.pixels, batch.geometries, SIZES, strict=True):
        assert geometry == Geometry((height, width))
        assert torch.allclose(pixels[:, :height, :width] * 255, image.float(), atol=1e-4)
        assert float(pixels.sum()) == pytest.approx(float(pixels[:, :height, :width].sum())), "the rest is black"


def test_native_pictures_of_one_size_get_no_padding() -> None:
    image = torch.zeros(3, 7, 9, dtype=torch.uint8)
    assert on_black(policy="native")([image, image]).pixels.shape == (2, 3, 7, 9)


@pytest.mark.parametrize("canvas", [(20, 30), (25, 31)])
def test_a_canvas_in_the_pictures_pixels_is_cut_as_the_general_way_has_it(canvas: tuple[int, int]) -> None:
    values = torch.randn(4, *canvas, generator=torch.Generator().manual_seed(0))
    geometry = Geometry((20, 30))
    found, is_seen = to_original(values, canvas, geometry)
    # So small a scale changes nothing, but is not the identity.
    general, is_seen_too = to_original(values, canvas, Geometry((20, 30), (1 + 1e-12, 1.0)))
    assert torch.equal(found, values[:, :20, :30])
    torch.testing.assert_close(found, general)
    assert is_seen.all()
    assert torch.equal(is_seen, is_seen_too)


def test_a_crop_that_leaves_out_one_row_at_the_end_is_no_whole_picture() -> None:
    """33 rows on a canvas of 32: no scale and, as half a row is rounded to none, no offset either."""
    batch = Preprocess(size=(32, 32), policy="crop")([torch.zeros(3, 33, 32, dtype=torch.uint8)])
    values = torch.ones(1, 32, 32)
    found, is_seen = to_original(values, (32, 32), batch.geometries[0])
    assert found.shape == (1, 33, 32)
    assert is_seen.shape == (33, 32)
    assert is_seen[:32].all()
    assert not is_seen[32].any()


@pytest.mark.parametrize("policy", ["letterbox", "stretch"])
@pytest.mark.parametrize("size", SIZES)
def test_half_planes_come_back_where_they_were(policy: Any, size: tuple[int, int]) -> None:
    """A step edge through a canvas, led back: the pixel on either side of it is known in closed form."""
    height, width = size
    geometry = on_black(policy=policy)([torch.zeros(3, height, width, dtype=torch.uint8)]).geometries[0]
    for axis in range(2):
        edge = max(round(0.4 * size[axis] * geometry.scale[axis]), 1)
        values = torch.zeros(2, 48, 32)
        halves = values.transpose(1, 2) if axis else values
        halves[0, :edge], halves[1, edge:] = 1, 1
        found, is_seen = to_original(values, (48, 32), geometry)
        labels = found.argmax(0)
        assert labels.shape == size
        assert is_seen.all()
        centres = (torch.arange(size[axis]) + 0.5) * geometry.scale[axis]
        is_beyond = (centres > edge).long()
        is_clear = (centres - edge).abs() > 1e-3
        along = labels if axis == 0 else labels.T
        expected = is_beyond[:, None].expand_as(along)
        assert torch.equal(along[is_clear], expected[is_clear])


@pytest.mark.parametrize("policy", ["letterbox", "stretch", "native"])
def test_a_marker_on_the_canvas_comes_back_around_its_place(policy: Any) -> None:
    preprocess = on_black(policy=policy)
    batch = preprocess([torch.zeros(3, 60, 40, dtype=torch.uint8)])
    canvas = (int(batch.pixels.shape[2]), int(batch.pixels.shape[3]))
    geometry = batch.geometries[0]
    values = torch.zeros(1, *canvas)
    values[0, 20, 12] = 1
    found = to_original(values, canvas, geometry)[0][0].double()
    rows, columns = torch.arange(60.0).double() + 0.5, torch.arange(40.0).double() + 0.5
    gravity = torch.stack([(found.sum(1) * rows).sum(), (found.sum(0) * columns).sum()]) / found.sum()
    expected = geometry.to_original(torch.tensor([20.5, 12.5], dtype=torch.float64))
    torch.testing.assert_close(gravity, expected, atol=0.1, rtol=0)


# --- the shorter side, as two-stage detectors are published


def test_shorter_brings_the_shorter_side_to_its_length_unless_the_longer_one_would_exceed_its_own() -> None:
    preprocess = Preprocess(policy="shorter", size=(80, 120))
    assert preprocess.content_size(40, 50) == (80, 100)
    assert preprocess.content_size(50, 40) == (100, 80)
    assert preprocess.content_size(40, 100) == (48, 120)
    assert preprocess.content_size(1000, 10) == (120, 1)


def test_shorter_pads_with_the_mean_colour_to_multiples_of_thirty_two() -> None:
    preprocess = Preprocess(policy="shorter", size=(80, 120))
    pictures = [torch.full((3, 40, 50), 255, dtype=torch.uint8), torch.full((3, 50, 40), 255, dtype=torch.uint8)]
    batch = preprocess(pictures)
    assert batch.sizes == ((80, 100), (100, 80))
    assert tuple(batch.pixels.shape) == (2, 3, 128, 128)
    assert (batch.pixels[0, :, 80:] == 0).all()
    assert (batch.pixels[0, :, :, 100:] == 0).all()
    assert (batch.pixels[1, :, 100:] == 0).all()
    assert (batch.pixels[0, :, :80, :100] > 1).all()
    assert batch.geometries[0].scale == (2.0, 2.0)


def test_a_picture_of_policy_shorter_alone_has_a_canvas_of_its_own() -> None:
    preprocess = Preprocess(policy="shorter", size=(64, 96))
    assert tuple(preprocess(torch.zeros(2, 3, 64, 96, dtype=torch.uint8)).pixels.shape) == (2, 3, 64, 96)
