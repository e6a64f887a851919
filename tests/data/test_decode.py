from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.decode import MAX_PIXELS, read_image, read_size
from saccade.errors import ImageError, InputError

# A picture whose eight orientations all differ: [h=2, w=3], one value per pixel.
UPRIGHT = np.array([[10, 60, 110], [160, 210, 250]], dtype=np.uint8)

# What a camera stored when it declares orientation n, so that the upright picture comes out (EXIF 2.3, tag 0x0112).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.dtype == torch.uint8
    assert tensor.shape[0] == 3
    assert torch.equal(tensor[0], tensor[1])
    assert torch.equal(tensor[1], tensor[2])
    return tensor[0].numpy()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=exif)
    assert np.array_equal(grey(read_image(path)), UPRIGHT)
    assert read_size(path)[0] == (2, 3)


def test_every_orientation_is_stored_differently() -> None:
    assert len({(array.shape, array.tobytes()) for array in STORED.values()}) == 8


def test_colour_order_is_rgb() -> None:
    red = Image.new("RGB", (3, 2), (255, 0, 0))
    for source in (red, encoded(red), np.array(red), torch.from_numpy(np.array(red))):
        assert read_image(source)[:, 0, 0].tolist() == [255, 0, 0]


def test_grey_and_bilevel() -> None:
    assert np.array_equal(grey(read_image(encoded(Image.fromarray(UPRIGHT)))), UPRIGHT)
    bits = Image.fromarray(UPRIGHT > 100).convert("1")
    assert np.array_equal(grey(read_image(encoded(bits))), (UPRIGHT > 100) * 255)


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 0, 128, 0] + [0] * 750)
    image.putdata([0, 1])
    assert read_image(encoded(image))[:, 0].T.tolist() == [[0, 0, 255], [0, 128, 0]]
    image.info["transparency"] = 1
    shown = read_image(encoded(image, transparency=1))
    assert shown[:, 0].T.tolist() == [[0, 0, 255], [255, 255, 255]], "transparent means the white background"


def test_alpha_is_composited_over_white() -> None:
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    expected = [255, round(255 * (1 - 128 / 255)), round(255 * (1 - 128 / 255))]
    assert read_image(half)[:, 0, 0].tolist() == pytest.approx(expected, abs=1)
    assert read_image(encoded(Image.new("LA", (1, 1), (0, 0))))[:, 0, 0].tolist() == [255, 255, 255]


def test_cmyk() -> None:
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow ink: red
    red, green, blue = read_image(encoded(ink, "TIFF"))[:, 4, 4].tolist()
    assert (red, green, blue) == (255, 0, 0)
    jpeg = read_image(encoded(ink, "JPEG", quality=95))[:, 4, 4].tolist()
    assert jpeg == pytest.approx([255, 0, 0], abs=6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_full_scale(kind: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    image = Image.fromarray(values)
    assert image.mode.startswith("I;16")
    assert grey(read_image(encoded(image, kind))).tolist() == [[0, 1, 128, 255]]


def test_thirty_two_bit_integers_hold_sixteen() -> None:
    image = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert image.mode == "I"
    assert grey(read_image(image)).tolist() == [[0, 255]]
    with pytest.raises(InputError, match="70000"):
        read_image(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))


def test_first_frame_of_a_gif_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data)[:, 0, 0].tolist() == [255, 0, 0]


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no\.png: there is no such file"):
        read_image(tmp_path / "no.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="0 bytes"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ImageError, match="not a picture"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_files(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError) as caught:
        read_image(data[: int(len(data) * share)], where="photo")
    assert str(caught.value).startswith("photo: ")
    assert "\n" not in str(caught.value)


def test_flipped_bytes_never_escape_as_another_error() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    generator = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"):
        data = bytearray(encoded(Image.fromarray(noise), kind))
        for _ in range(60):
            damaged = bytearray(data)
            for place in generator.integers(0, len(data), 4):
                damaged[place] = generator.integers(0, 256)
            try:
                image = read_image(bytes(damaged))
            except (ImageError, InputError):
                continue
            assert image.dtype == torch.uint8


def bomb_png(side: int) -> bytes:
    """A header that promises side x side pixels; the little data after it is never reached."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_001, 100_000])
def test_decompression_bomb(side: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb_png(side))
    with pytest.raises(ImageError, match=f"{MAX_PIXELS:,}"):
        read_image(path)


def test_pixel_limit_is_an_argument() -> None:
    with pytest.raises(ImageError, match="at most 5 in all"):
        read_image(Image.new("RGB", (3, 2)), max_pixels=5)
    with pytest.raises(ImageError, match="at most 5 in all"):
        read_image(np.zeros((3, 2), np.uint8), max_pixels=5)
    assert read_image(Image.new("RGB", (3, 2)), max_pixels=6).shape == (3, 2, 3)


def test_array_layouts() -> None:
    rows = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    expected = torch.from_numpy(rows.transpose(2, 0, 1).copy())
    for source in (rows, rows.transpose(2, 0, 1), torch.from_numpy(rows), expected):
        assert torch.equal(read_image(source), expected)
    assert np.array_equal(grey(read_image(rows[:, :, 0])), rows[:, :, 0])
    assert np.array_equal(grey(read_image(rows[:, :, :1])), rows[:, :, 0])
    assert np.array_equal(grey(read_image(rows[:, :, 0][None])), rows[:, :, 0])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 7, 3), "can be read as"),
        ((1, 7, 3), "can be read as"),
        ((6, 7, 4), "4 channels"),
        ((4, 6, 7), "4 channels"),
        ((6, 7, 2), "has shape"),
        ((6, 7, 5), "has shape"),
        ((2, 3, 6, 7), "batch"),
        ((7,), "has shape"),
        ((0, 5), "no pixels"),
    ],
)
def test_ambiguous_or_wrong_shapes(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_image(np.zeros(shape, np.uint8))


def test_types_and_ranges() -> None:
    assert grey(read_image(np.array([[0.0, 0.5, 1.0]]))).tolist() == [[0, 128, 255]]
    assert grey(read_image(np.array([[False, True]]))).tolist() == [[0, 255]]
    assert grey(read_image(np.array([[0, 65535]], dtype=np.uint16))).tolist() == [[0, 255]]
    assert grey(read_image(torch.tensor([[0.0, 1.0]], dtype=torch.float64))).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[0.0, 200.0]]), r"run from 0 to 200; expected \[0, 1\]; if they are 0 to 255"),
        (np.array([[0.0, 1.5]]), "if they are 0 to 255"),
        (np.array([[-2.1, 2.6]]), "undo the normalisation"),
        (np.array([[-0.1, 0.6]]), "undo the normalisation"),
        (np.array([[0.0, 300.0]]), "undo the normalisation"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "NaN or infinite"),
        (np.array([[0, 200]], dtype=np.int64), "astype"),
        (np.array([[0, 200]], dtype=np.int32), "astype"),
        (np.array([["a"]]), "holds"),
        (np.array([[1j]]), "holds"),
    ],
)
def test_ambiguous_ranges_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_image(array)


def test_a_lazily_opened_truncated_picture(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "cut.png").write_bytes(encoded(Image.fromarray(noise))[:500])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ImageError, match="damaged or cut off"):
        read_image(image)


def test_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="int is no picture"):
        read_image(3)


def test_results_do_not_share_memory_with_the_source() -> None:
    array = np.zeros((4, 5, 3), np.uint8)
    image = read_image(array)
    array[:] = 9
    assert int(image.max()) == 0


def test_bfloat16_and_gradients() -> None:
    pixels = torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert int(read_image(pixels)[0, 0, 0]) == 128


@pytest.mark.parametrize("values", [np.full((4, 5), 2.5, np.float32), np.full((4, 5), 1 << 20, np.int32)])
def test_a_file_of_unknown_full_scale_is_an_unreadable_picture(tmp_path: Path, values: np.ndarray[Any, Any]) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ImageError, match=r"deep\.tif: the values of this [FI] picture run from"):
        read_image(path)
    with pytest.raises(InputError, match="PIL image: the values"):
        read_image(Image.fromarray(values))


def test_reading_leaves_the_filters_of_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(path)
    original = Image.open

    def opened(*given: Any) -> Image.Image:
        warnings.warn("of another thread", UserWarning, stacklevel=1)
        return original(*given)

    monkeypatch.setattr(Image, "open", opened)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        read_image(path)
        read_size(path)
    assert [str(one.message) for one in heard] == ["of another thread"] * 2


def test_pillow_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert read_image(path).shape == (3, 40, 40)
    assert not heard
