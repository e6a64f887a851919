"""Anything a user may call a picture -> ``[3, h, w]`` uint8 RGB, the right way up.

Conventions, each of them tested:

* EXIF orientation is applied. Of a file with several frames (GIF, TIFF, WebP) the first counts.
* Transparency is composited over white, as a browser shows it on an empty page.
* 16-bit values are scaled by 255/65535, so that full scale stays full scale; 1-bit becomes 0 and 255.
* CMYK and palettes become RGB by Pillow's conversion, without colour management.
* Pictures of more than ``MAX_PIXELS`` pixels are refused by their header, before anything is decoded.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from saccade.errors import ImageError, InputError

ImageSource = str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Tensor
"""What a picture may be given as."""

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded, in pixels: 10,000 x 10,000, which takes 0.3 GB as RGB bytes."""

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Endings of the files that count as pictures when a folder is searched."""

_ORIENTATION = 0x0112
"""EXIF tag."""

_BACKGROUND = (255, 255, 255)
_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\b"), 0)
"""The entry of ``warnings.filters`` that ``silence_pillow`` makes."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, OverflowError)
"""What Pillow's readers raise for damaged files; ``UnidentifiedImageError`` is an ``OSError``."""


def read_image(source: Any, *, max_pixels: int = MAX_PIXELS, where: str | None = None) -> Tensor:
    """A picture as a tensor ``[3, h, w]`` uint8 RGB.

    Args:
        source: a path, the bytes of a file, a PIL image, or an array or tensor: ``[h, w]`` grey, ``[h, w, 3]`` or ``[3,
            h, w]`` RGB, uint8, bool, uint16, or float in [0, 1].
        max_pixels: refuse larger pictures.
        where: what to call the picture in errors; by default its path or its type.

    Raises:
        ImageError: a file that is missing, empty, truncated, not a picture, too large, or has values whose full scale
            nobody knows (a float or 32-bit TIFF).
        InputError: an array whose layout, channels, type or range is wrong or can be read in two ways.
    """
    if isinstance(source, str | Path):
        return _read_file(Path(source), max_pixels, where or str(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_bytes(bytes(source), max_pixels, where or "bytes")
    if isinstance(source, Image.Image):
        return _read_pil(source, max_pixels, where or "PIL image")
    if isinstance(source, np.ndarray):
        return _read_array(source, max_pixels, where or "array")
    if isinstance(source, Tensor):
        # NumPy has no bfloat16.
        tensor = source.detach().cpu()
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        return _read_array(tensor.numpy(), max_pixels, where or "tensor")
    raise InputError(
        f"{type(source).__name__} is no picture", where=where, expected="a path, bytes, PIL image, array or tensor"
    )


def read_size(path: Path) -> tuple[tuple[int, int], str]:
    """Height and width as shown (EXIF applied), and Pillow's mode, from the header alone.

    Raises:
        ImageError: where the header cannot be read.
    """
    _check_file(path, str(path))
    silence_pillow()
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) in {5, 6, 7, 8}:
                width, height = height, width
            return (height, width), image.mode
    except Image.DecompressionBombError:
        raise _too_large(str(path), None, MAX_PIXELS) from None
    except DAMAGE as error:
        raise _unreadable(error, str(path)) from error


def silence_pillow() -> None:
    """Hear no warnings of Pillow: of bombs, whose limit is ours here, and of odd metadata, no fault of a picture.

    Pictures are read in threads, where ``warnings.catch_warnings`` restores what another thread has just set; so one
    filter for Pillow alone is put in front and stays, and those of the user are left as they are.
    """
    if not warnings.filters or warnings.filters[0] != _PILLOW:
        warnings.filterwarnings("ignore", module=_PILLOW[3].pattern)


def _check_file(path: Path, where: str) -> None:
    if path.is_dir():
        raise ImageError("this is a folder", where=where, expected="a picture file")
    if not path.exists():
        raise ImageError("there is no such file", where=where, remedy="check the path")
    if path.stat().st_size == 0:
        raise ImageError("the file is empty (0 bytes)", where=where, remedy="copy or download it again")


def _read_file(path: Path, max_pixels: int, where: str) -> Tensor:
    _check_file(path, where)
    try:
        return _read_bytes(path.read_bytes(), max_pixels, where)
    except OSError as error:
        raise _unreadable(error, where) from error


def _read_bytes(data: bytes, max_pixels: int, where: str) -> Tensor:
    if not data:
        raise ImageError("the picture is empty (0 bytes)", where=where, remedy="copy or download it again")
    silence_pillow()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _decode(image, max_pixels, where)
    except InputError as error:
        # Of an array the caller is asked to pass another; a file is one of many, and may be left out.
        raise ImageError(error.what, where=error.where, expected=error.expected, remedy=error.remedy) from None
    except Image.DecompressionBombError:
        raise _too_large(where, None, max_pixels) from None
    except DAMAGE as error:
        raise _unreadable(error, where) from error


def _read_pil(image: Image.Image, max_pixels: int, where: str) -> Tensor:
    try:
        return _decode(image, max_pixels, where)
    except DAMAGE as error:  # Pillow reads the file only now
        raise _unreadable(error, where) from error


def _unreadable(error: Exception, where: str) -> ImageError:
    if isinstance(error, UnidentifiedImageError):
        return ImageError("this is not a picture", where=where, expected="JPEG, PNG, WebP, BMP, GIF or TIFF")
    if isinstance(error, PermissionError):
        return ImageError("the file may not be read", where=where, remedy="give yourself read permission")
    reason = str(error).split("\n")[0] or type(error).__name__
    return ImageError(f"the picture is damaged or cut off ({reason})", where=where, remedy="copy or download it again")


def _too_large(where: str, size: tuple[int, int] | None, max_pixels: int) -> ImageError:
    shown = f"{size[1]}x{size[0]} pixels" if size else "far more pixels than can be decoded"
    return ImageError(
        f"the picture has {shown}",
        where=where,
        expected=f"at most {max_pixels:,} in all",
        remedy="scale it down first",
    )


def _decode(image: Image.Image, max_pixels: int, where: str) -> Tensor:
    if image.width * image.height > max_pixels:
        raise _too_large(where, (image.height, image.width), max_pixels)
    if image.width == 0 or image.height == 0:
        raise ImageError("the picture has no pixels", where=where)
    image.load()
    # Pillow would copy a picture that is upright and RGB already.
    is_turned = image.getexif().get(_ORIENTATION, 1) != 1
    rgb = _to_rgb(ImageOps.exif_transpose(image) if is_turned else image, where)
    # Left as the file has it, colour by colour: resizing is twice as fast on that, and bit for bit the same.
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_to_rgb(image, where)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, (*_BACKGROUND, 255))
        return Image.alpha_composite(background, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_to_rgb(image: Image.Image, where: str) -> Image.Image:
    """Modes ``I``, ``I;16``, ``I;16B`` and ``F``: Pillow would clip them at 255."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        full_scale = 1.0
        is_known = low >= 0 and high <= 1
    else:
        full_scale = 65535.0
        is_known = low >= 0 and high <= 65535
    if not is_known:
        raise InputError(
            f"the values of this {image.mode} picture run from {low:g} to {high:g}",
            where=where,
            expected=f"0 to {full_scale:g}",
            remedy="convert it to 8 bits first",
        )
    return Image.fromarray(np.rint(values * (255 / full_scale)).astype(np.uint8)).convert("RGB")


def _read_array(array: np.ndarray[Any, Any], max_pixels: int, where: str) -> Tensor:
    channels_last = _lay_out(array, where)
    if channels_last.shape[0] * channels_last.shape[1] > max_pixels:
        raise _too_large(where, (channels_last.shape[0], channels_last.shape[1]), max_pixels)
    values = _to_bytes(channels_last, where)
    if values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    return torch.from_numpy(np.array(values.transpose(2, 0, 1), order="C"))


def _lay_out(array: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    """The array as ``[h, w, 1 or 3]``."""
    shape = array.shape
    if array.size == 0:
        raise InputError(f"the array {shape} has no pixels", where=where)
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim == 3:
        is_first, is_last = shape[0] in {1, 3}, shape[2] in {1, 3}
        if is_first and is_last:
            raise InputError(
                f"an array {shape} can be read as [h, w, channels] and as [channels, h, w]",
                where=where,
                remedy="pass a PIL image: Image.fromarray(array) for [h, w, 3]",
            )
        if is_last:
            return array
        if is_first:
            return array.transpose(1, 2, 0)
        if shape[2] == 4 or shape[0] == 4:
            raise InputError(
                f"the array {shape} has 4 channels",
                where=where,
                expected="1 or 3",
                remedy="pass Image.fromarray(array) if it is RGBA [h, w, 4], or drop the fourth channel",
            )
    if array.ndim == 4:
        raise InputError(f"the array {shape} is a batch", where=where, remedy="pass a list of pictures: list(array)")
    raise InputError(f"the array has shape {shape}", where=where, expected="[h, w] grey, [h, w, 3] or [3, h, w] RGB")


def _to_bytes(array: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    """Values of any accepted type as uint8."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return np.rint(array * (255 / 65535)).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"the array holds {array.dtype}",
            where=where,
            expected="uint8, uint16, bool, or float in [0, 1]",
            remedy="if its values are 0 to 255, pass array.astype('uint8')",
        )
    if not np.isfinite(array).all():
        raise InputError("the array holds NaN or infinite values", where=where, expected="numbers in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        is_bytes = low >= 0 and high <= 255
        remedy = "if they are 0 to 255, pass array.round().astype('uint8')" if is_bytes else "undo the normalisation"
        raise InputError(f"float values run from {low:g} to {high:g}", where=where, expected="[0, 1]", remedy=remedy)
    scaled: np.ndarray[Any, Any] = np.rint(array * 255).astype(np.uint8)
    return scaled
