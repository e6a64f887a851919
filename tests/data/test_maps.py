"""What the values of mask files become."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.dataset import Dataset, subset
from saccade.data.maps import Coding, MapDataset, MapItem, MaskFile, colour_value, read_values
from saccade.errors import DataError, ImageError
from saccade.types import Classes, MapTarget

INDEX = Coding({0: 0, 1: 1, 7: 2, 255: 255})
ABC = Classes(("a", "b", "c"))


def save(path: Path, values: Any, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values))
    (image.convert(mode) if mode else image).save(path)
    return path


GRID = [[0, 1, 7], [255, 7, 0]]
LABELS = [[0, 1, 2], [255, 2, 0]]


@pytest.mark.parametrize(
    "kind", ["grey", "palette", "16-bit", "32-bit", "big-endian 16-bit", "RGB that is grey", "RGBA that is grey"]
)
def test_numbers_of_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    values = np.array(GRID, dtype=np.uint8)
    path = tmp_path / ("mask.tif" if kind in {"32-bit", "big-endian 16-bit"} else "mask.png")
    if kind == "palette":
        image = Image.fromarray(values)
        image.putpalette([200, 10, 10, 0, 0, 200] * 128)  # colours that have nothing to do with the indices
        assert image.mode == "P"
        image.save(path)
    elif kind == "grey":
        save(path, values)
    elif kind == "16-bit":
        save(path, values.astype(np.uint16))
    elif kind == "big-endian 16-bit":
        save(path, values.astype(">u2"))
    elif kind == "32-bit":
        save(path, values.astype(np.int32))
    else:
        save(path, values, "RGB" if kind.startswith("RGB ") else "RGBA")
    assert MaskFile(path, INDEX).read().tolist() == LABELS


def test_one_bit_masks_are_0_and_1(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[True, False, True]])).save(path)
    assert read_values(path, is_colour=False).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours(tmp_path: Path, mode: str) -> None:
    pixels = np.array([[[128, 0, 0], [0, 0, 255]], [[0, 0, 0], [128, 0, 0]]], dtype=np.uint8)
    if mode == "P":
        indices = Image.fromarray(np.array([[2, 1], [0, 2]], dtype=np.uint8))
        indices.putpalette([0, 0, 0, 0, 0, 255, 128, 0, 0])
        path = tmp_path / "mask.png"
        indices.save(path)
    else:
        path = save(tmp_path / "mask.png", pixels, mode)
    coding = Coding(
        {colour_value(0, 0, 0): 0, colour_value(128, 0, 0): 1, colour_value(0, 0, 255): 255}, is_colour=True
    )
    assert MaskFile(path, coding).read().tolist() == [[1, 255], [0, 1]]
    partial = Coding({0: 0, colour_value(128, 0, 0): 1}, is_colour=True)
    with pytest.raises(DataError, match=r"mask.png: the mask has the value rgb\(0, 0, 255\) \(1 pixel\)"):
        MaskFile(path, partial).read()


def test_instances_of_16_bits(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", np.array([[0, 1, 300], [41000, 2, 0]], dtype=np.uint16))
    assert MaskFile(path, Coding({0: 0}, instances=1)).read().tolist() == [[0, 1, 1], [1, 1, 0]]
    # A value of its own comes before the numbers of instances.
    assert MaskFile(path, Coding({0: 0, 2: 255}, instances=1)).read().tolist() == [[0, 1, 1], [1, 255, 0]]


def test_unknown_values_are_named_with_their_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", np.array([[0, 9, 9], [9, 4, 1]], dtype=np.uint8))
    with pytest.raises(DataError) as told:
        MaskFile(path, INDEX).read()
    assert str(told.value) == (
        f"{path}: the mask has the values 9 (3 pixels), 4 (1 pixel), which stand for no class; expected one of 0, 1, "
        '7, 255; list them in classes.json ({"NAME": VALUE}), as "ignore" where they should not count'
    )


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    noise = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with pytest.raises(DataError, match="253 different grey levels: it looks like a photograph"):
        MaskFile(save(tmp_path / "grey.png", noise), Coding({0: 0, 1: 1, 7: 2})).read()
    colours = np.stack([noise, noise.T, noise], axis=2)
    with pytest.raises(DataError, match="255 different colours: it looks like a photograph"):
        MaskFile(save(tmp_path / "colour.png", colours), Coding({0: 0, 1: 1}, is_colour=True)).read()


def test_masks_that_cannot_be_numbers(tmp_path: Path) -> None:
    coloured = save(tmp_path / "colour.png", np.array([[[1, 2, 3]]], dtype=np.uint8))
    with pytest.raises(DataError, match="the mask is coloured, but its classes are numbers"):
        read_values(coloured, is_colour=False)
    fractions = save(tmp_path / "float.tif", np.array([[0.5]], dtype=np.float32))
    with pytest.raises(DataError, match="holds fractions"):
        read_values(fractions, is_colour=False)
    negative = save(tmp_path / "negative.tif", np.array([[-1, 3]], dtype=np.int32))
    with pytest.raises(DataError, match="the mask has the value -1"):
        read_values(negative, is_colour=False)
    (tmp_path / "broken.png").write_bytes(coloured.read_bytes()[:40])
    with pytest.raises(ImageError, match="damaged"):
        read_values(tmp_path / "broken.png", is_colour=False)
    with pytest.raises(ImageError, match="no such mask"):
        read_values(tmp_path / "nowhere.png", is_colour=False)


def make(tmp_path: Path, image: Any, mask: Any, classes: Classes = ABC) -> MapDataset:
    item = MapItem(save(tmp_path / "x.png", image), MaskFile(save(tmp_path / "m.png", mask), INDEX))
    return MapDataset([item], classes, tmp_path, "CC0 1.0")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "16-bit"])
def test_pictures_of_any_kind_become_rgb(tmp_path: Path, mode: str) -> None:
    image = np.zeros((2, 3), dtype=np.uint16 if mode == "16-bit" else np.uint8)
    data = make(tmp_path, image, np.array(GRID, dtype=np.uint8))
    if mode != "16-bit":
        Image.fromarray(image).convert(mode).save(tmp_path / "x.png")
    sample = data[0]
    assert sample.image.shape == (3, 2, 3)
    assert isinstance(sample.target, MapTarget)
    assert sample.target.labels.dtype == torch.uint8
    assert sample.target.labels.tolist() == LABELS
    assert sample.source == str(tmp_path / "x.png")


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    data = make(tmp_path, np.zeros((4, 6), dtype=np.uint8), np.array(GRID, dtype=np.uint8))
    words = r"x.png: the picture has 6x4 pixels but its mask .*m.png 3x2; .*scale the mask"
    with pytest.raises(DataError, match=words):
        data[0]


def test_the_orientation_of_a_picture_never_turns_its_mask(tmp_path: Path) -> None:
    stored = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
    data = make(tmp_path, stored, np.array(GRID, dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    with pytest.raises(DataError, match=r"2x3 pixels but its mask .* 3x2; .*before the EXIF orientation"):
        data[0]
    shown = np.rot90(np.array(GRID, dtype=np.uint8), -1)
    save(tmp_path / "m.png", shown)
    sample = data[0]
    assert sample.image[0].tolist() == [[40, 10], [50, 20], [60, 30]]
    assert sample.target.labels.tolist() == [[255, 0], [2, 1], [0, 2]]
    # The orientation that a mask notes for itself is its own.
    Image.fromarray(np.array(GRID, dtype=np.uint8)).save(tmp_path / "m.png", exif=exif)
    assert data[0].target.labels.tolist() == [[255, 0], [2, 1], [0, 2]]


def test_the_data_set_keeps_its_contract(tmp_path: Path) -> None:
    data = make(tmp_path, np.zeros((2, 3), dtype=np.uint8), np.array(GRID, dtype=np.uint8))
    assert isinstance(data, Dataset)
    assert data.task == "semantic"
    assert subset(data, [0, 0])[1].target.labels.tolist() == LABELS
    assert pickle.loads(pickle.dumps(data))[0].target.labels.tolist() == LABELS


def test_the_fingerprint_tells_what_changed(tmp_path: Path) -> None:
    one = make(tmp_path / "one", np.zeros((2, 3), dtype=np.uint8), np.array(GRID, dtype=np.uint8))
    same = make(tmp_path / "two", np.zeros((2, 3), dtype=np.uint8), np.array(GRID, dtype=np.uint8))
    assert one.fingerprint() == same.fingerprint()
    assert make(tmp_path / "two", *both(), Classes(("a", "b", "d"))).fingerprint() != one.fingerprint()
    recoded = MapItem(tmp_path / "one/x.png", MaskFile(tmp_path / "one/m.png", Coding({**INDEX.values, 7: 1})))
    assert MapDataset([recoded], ABC, tmp_path / "one").fingerprint() != one.fingerprint()
    save(tmp_path / "two/m.png", np.zeros((2, 3), dtype=np.uint8))
    assert same.fingerprint() != one.fingerprint()


def both() -> tuple[Any, Any]:
    return np.zeros((2, 3), dtype=np.uint8), np.array(GRID, dtype=np.uint8)


def test_class_tables_that_maps_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only one class, 'nucleus'; expected at least two: a background is a class"):
        make(tmp_path, *both(), Classes(("nucleus",)))
    with pytest.raises(DataError, match="256 classes; expected at most 255"):
        make(tmp_path, *both(), Classes.numbered(256))
