from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from saccade.config import from_dict, to_dict
from saccade.data.transforms import PRESETS, Augment, Key, Mix
from saccade.errors import ConfigError, UnknownNameError
from saccade.ops.image import Preprocess
from saccade.types import ImageBatch

PLAIN = Preprocess(size=(16, 16))


def pictures(count: int = 400, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def key(count: int = 400, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, epoch, range(count))


def test_draws_are_uniform_and_independent() -> None:
    draws = Key(7, 3, range(20_000)).uniform(4)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.allclose(draws.mean(0), 0.5, atol=0.01)
    assert np.allclose(draws.var(0), 1 / 12, atol=0.003)
    correlation = np.corrcoef(np.vstack([draws.T, np.roll(draws[:, 0], 1)]))
    assert abs(correlation - np.eye(5)).max() < 0.03
    histogram = np.histogram(draws[:, 0], 20, (0, 1))[0]
    assert ((histogram - 1000) ** 2 / 1000).sum() < 43.8, "chi-square with 19 degrees of freedom, one in a thousand"


def test_draws_depend_on_seed_epoch_and_index_only() -> None:
    assert np.array_equal(Key(1, 2, [3, 4]).uniform(5)[1], Key(1, 2, [9, 8, 4]).uniform(5)[2])
    base = Key(1, 2, [3]).uniform(3)
    for other in (Key(2, 2, [3]), Key(1, 3, [3]), Key(1, 2, [4]), Key(2, 1, [3])):
        assert not np.array_equal(base, other.uniform(3))
    assert np.isfinite(Key(-5, 0, [0]).uniform(2)).all()


def test_off_changes_nothing() -> None:
    images = pictures(3)
    assert Augment().is_off
    assert torch.equal(Augment()(images, PLAIN, key(3)), images)


def test_flip_mirrors_about_half() -> None:
    images = pictures()
    flipped = Augment(flip=0.5)(images, PLAIN, key())
    is_flipped = (flipped == images.flip(3)).flatten(1).all(1)
    is_same = (flipped == images).flatten(1).all(1)
    assert bool((is_flipped ^ is_same).all())
    assert 0.4 < float(is_flipped.float().mean()) < 0.6
    assert torch.equal(Augment(flip=1.0)(images, PLAIN, key()), images.flip(3))


def test_shift_moves_a_marker_by_whole_pixels_and_fills_with_black() -> None:
    images = torch.zeros(400, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 8, 8] = 255
    moved = Augment(shift=0.125)(images, PLAIN, key())
    _, rows, columns = torch.nonzero(moved[:, 0], as_tuple=True)
    assert len(rows) == 400
    assert set(rows.tolist()) == set(columns.tolist()) == {6, 7, 8, 9, 10}
    assert int((Augment(shift=0.125)(pictures(), PLAIN, key()) == 0).flatten(1).sum(1).max()) == 3 * (256 - 14 * 14)


def test_random_crop_shows_a_window_of_the_picture() -> None:
    # The value of a pixel is its place, so a crop can be read off: linear in both directions.
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8)
    images = torch.zeros(200, 3, 64, 64, dtype=torch.uint8)
    images[:, 0], images[:, 1] = ramp[:, None], ramp[None, :]
    cropped = Augment(scale=(0.25, 0.5))(images, PLAIN, key(200)).float()
    tall = (cropped[:, 0, -1, 0] - cropped[:, 0, 0, 0]) / 4 * 16 / 15
    wide = (cropped[:, 1, 0, -1] - cropped[:, 1, 0, 0]) / 4 * 16 / 15
    share = tall * wide / 64**2
    assert 0.22 < float(share.min()) < 0.28
    assert 0.47 < float(share.max()) < 0.53
    ratio = wide / tall
    assert 0.7 < float(ratio.min()) < 0.8
    assert 1.25 < float(ratio.max()) < 1.4


def test_random_crop_keeps_letterbox_content() -> None:
    images = pictures(4)[:, :, :8]  # 8 x 16
    letterbox = Preprocess(size=(16, 16), policy="letterbox")
    assert Augment(scale=(0.5, 1.0))(images, letterbox, key(4)).shape == (4, 3, 8, 16)
    assert Augment(flip=0.5)(images, letterbox, key(4)).shape == (4, 3, 8, 16)


def test_grey_takes_the_colours_of_some_pictures_and_nothing_else() -> None:
    images = pictures()
    varied = Augment(grey=0.4)(images, PLAIN, key())
    is_grey = (varied[:, 0] == varied[:, 1]).flatten(1).all(1) & (varied[:, 1] == varied[:, 2]).flatten(1).all(1)
    assert 0.33 < float(is_grey.float().mean()) < 0.47
    assert torch.equal(varied[~is_grey], images[~is_grey])
    red, green, blue = images[is_grey].double().unbind(1)
    torch.testing.assert_close(
        varied[is_grey][:, 0].double(), 0.299 * red + 0.587 * green + 0.114 * blue, atol=0.501, rtol=0
    )
    again = Augment(grey=0.4, flip=1.0)(images, PLAIN, key())
    assert torch.equal(again, varied.flip(3))  # switching flips on changes no draw
    assert not Augment(grey=0.4).is_off
    with pytest.raises(ConfigError, match=r"grey is 1\.5"):
        Augment(grey=1.5)


def test_erasing_fills_a_rectangle_with_the_mean_colour() -> None:
    images = torch.zeros(400, 3, 16, 16, dtype=torch.uint8)
    erased = Augment(erase=0.5)(images, PLAIN, key())
    is_erased = erased[:, 0] != 0
    assert 0.4 < float(is_erased.flatten(1).any(1).float().mean()) < 0.6
    colour = (torch.tensor(PLAIN.mean) * 255).round().to(torch.uint8)
    for mask, image in zip(is_erased, erased, strict=True):
        if mask.any():
            rows, columns = torch.nonzero(mask, as_tuple=True)
            assert int(mask.sum()) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert torch.equal(image[:, rows[0], columns[0]], colour)
            assert int(mask.sum()) <= 0.25 * 256


@pytest.mark.parametrize("name", ["light", "standard"])
def test_alone_or_in_a_batch_is_the_same(name: str) -> None:
    images, augment = pictures(5, 20), Augment.preset(name)
    together = augment(images, PLAIN, Key(3, 1, [7, 2, 9, 4, 5]))
    alone = augment(images[2:3], PLAIN, Key(3, 1, [9]))
    assert torch.equal(together[2:3], alone)
    assert not torch.equal(alone, augment(images[2:3], PLAIN, Key(3, 2, [9])))


def test_switching_one_option_on_leaves_the_others_alone() -> None:
    images = pictures(20)
    erased = Augment(erase=1.0)(images, PLAIN, key(20)) != images
    both = Augment(erase=1.0, flip=1.0)(images, PLAIN, key(20)) != images.flip(3)
    assert torch.equal(erased.any(1), both.any(1))


def test_presets_and_configs() -> None:
    assert Augment.preset("none").is_off
    assert not any(PRESETS[name].is_off for name in ("light", "standard"))
    with pytest.raises(UnknownNameError, match="did you mean 'standard'"):
        Augment.preset("standart")
    for preset in PRESETS.values():
        assert from_dict(Augment, to_dict(preset)) == preset


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.1)},
        {"flip": 1.5},
        {"shift": -0.1},
        {"magnitude": 31},
        {"ratio": (0, 1)},
    ],
)
def test_wrong_augmentation(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Augment(**wrong)  # type: ignore[arg-type]


# --- mixing


def constant_batch(count: int = 6) -> tuple[ImageBatch, torch.Tensor]:
    """Picture i is filled with the number i and has class i, so the blend can be read off the pixels."""
    pixels = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    return ImageBatch.of(pixels), torch.arange(count)


def test_label_smoothing_closed_form() -> None:
    images, labels = constant_batch(2)
    mixed, soft = Mix(label_smoothing=0.1)(images, labels, 4, [0])
    assert torch.equal(mixed.pixels, images.pixels)
    assert torch.allclose(soft[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


@pytest.mark.parametrize("mix", [Mix(mixup=1.0), Mix(cutmix=1.0), Mix(mixup=1.0, cutmix=1.0)])
def test_labels_are_blended_as_the_pixels_are(mix: Mix) -> None:
    images, labels = constant_batch()
    for seed in range(12):
        mixed, soft = mix(images, labels, 6, [seed])
        expected = soft @ torch.arange(6.0)
        assert torch.allclose(mixed.pixels.mean((1, 2, 3)), expected, atol=1e-4)
        assert torch.allclose(soft.sum(1), torch.ones(6))
    assert torch.equal(images.pixels, constant_batch()[0].pixels), "the batch given is left as it was"


def test_cutmix_pastes_one_rectangle_and_mixup_blends_all() -> None:
    images, labels = constant_batch()
    mixed, _ = Mix(cutmix=1.0)(images, labels, 6, [3])
    assert set(mixed.pixels.unique().tolist()) <= set(range(6))
    mixed, _ = Mix(mixup=1.0)(images, labels, 6, [3])
    assert len(mixed.pixels[1].unique()) == 1


def test_mixing_follows_its_seed_and_probability() -> None:
    images, labels = constant_batch()
    mix = Mix(mixup=1.0, cutmix=1.0, probability=0.5)
    first = [mix(images, labels, 6, [seed])[1] for seed in range(200)]
    again = [mix(images, labels, 6, [seed])[1] for seed in range(200)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    hard = sum(bool((soft.max(1).values == 1).all()) for soft in first)
    assert 60 < hard < 140


def test_one_picture_is_not_mixed_with_itself() -> None:
    images, labels = constant_batch(1)
    _, soft = Mix(mixup=1.0)(images, labels, 3, [0])
    assert soft.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("wrong", [{"mixup": -1.0}, {"probability": 2.0}, {"label_smoothing": 1.0}])
def test_wrong_mix(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(Mix(), **wrong)
