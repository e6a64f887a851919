"""LabelMe JSON: one file of shapes per picture, beside the pictures or in ``train`` and ``val`` folders.

A rectangle is a box, a polygon an outline, a mask the pixels of an outline, a circle the polygon around it. Shapes of
one label and one ``group_id`` are one object: its polygons are its outline, its rectangle its box. Points and lines are
no objects and are told. The flag ``crowd`` or ``difficult`` marks a crowd.

h, w picture · bh, bw rectangle of one object
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.data.cocofile import Polygons, run_lengths, shape_mask
from saccade.data.dataset import Opened
from saccade.data.decode import DAMAGE, SUFFIXES, read_size
from saccade.data.objectjoin import Found, absent, join, read_class_list
from saccade.data.objects import AnnotatedImage, Box, ObjectAnnotation, Shape, polygon_box
from saccade.data.objectscan import Draft, Drafted, shown
from saccade.data.splits import SPLIT_NAMES, counted
from saccade.errors import DataError
from saccade.types import TaskName

_HEAD_BYTES = 65536
_SHAPES = re.compile(rb'"shapes"\s*:')
_KNOWN = frozenset({"label", "points", "group_id", "shape_type", "flags", "mask"})
_ABOUT_PICTURE = frozenset({"version", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"})
_CORNERS = 64
"""Corners of the polygon that stands for a circle."""


def is_labelme_folder(root: Path) -> bool:
    """Whether the folder holds LabelMe JSON in one of the known layouts."""
    return any(_is_labelme(paths[0]) for paths in _groups(root).values() if paths)


def open_labelme(root: Path, task: TaskName | None = None, *, strict: bool = False) -> Opened:
    """The splits of a folder of LabelMe JSON.

    Raises:
        DataError: JSON that is damaged, shapes without label or points, no picture of those described, faults of the
            objects that cannot be mended; with ``strict`` also shapes that are no objects.
    """
    found = Found("", "xyxy")
    lost: list[str] = []
    passed: list[str] = []
    total = 0
    for split, paths in _groups(root).items():
        drafts = found.splits.setdefault(split, [])
        for path in paths:
            content = _load(path)
            if content is None:
                continue
            total += 1
            picture = _picture(path, content, root)
            if picture is None:
                lost.append(str(content.get("imagePath") or path.stem))
            else:
                drafts.append(_draft(path, picture, content, passed))
    found.notes += absent(lost, total, "that JSON files describe are", str(root), strict)
    if passed:
        told = f"{counted(len(passed), 'shape')} that are no objects, as points and lines: {shown(passed)}"
        if strict:
            raise DataError(told, where=str(root), remedy="delete them, or leave out --strict")
        found.notes.append(f"{told}: left out")
    found.classes = read_class_list(root)
    named = [split for split in found.splits if split]
    found.format = "LabelMe JSON" + (f" with splits {', '.join(named)}" if named else " without splits")
    return join(found, root, str(root), task, strict)


def _groups(root: Path) -> dict[str | None, list[Path]]:
    """Split (None: nobody said) -> JSON files, which may be other JSON too."""
    found: dict[str | None, list[Path]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = SPLIT_NAMES.get(folder.name.lower())
        files = sorted(folder.rglob("*.json")) if split else []
        if any(_is_labelme(path) for path in files[:1]):
            found.setdefault(split, []).extend(files)
    if found:
        return found
    places = [root, *(root / name for name in ("images", "annotations", "labels", "json"))]
    files = [path for folder in places if folder.is_dir() for path in sorted(folder.glob("*.json"))]
    files = [path for path in files if _is_labelme(path)]
    return {None: files} if files else {}


def _is_labelme(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and _SHAPES.search(head) is not None


def _load(path: Path) -> dict[str, Any] | None:
    """The content of one file; None where it is other JSON."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not JSON ({error})", where=str(path), remedy="save it again") from error
    is_labelme = isinstance(content, dict) and isinstance(content.get("shapes"), list)
    return content if is_labelme else None


def _picture(path: Path, content: Mapping[str, Any], root: Path) -> Path | None:
    said = str(content.get("imagePath") or "").replace("\\", "/")
    name = said.rpartition("/")[2]
    folders = [path.parent, path.parent.parent, root, root / "images", path.parent.parent / "images"]
    choices = [path.parent / said] if said else []
    choices += [folder / name for folder in folders if name]
    choices += [path.with_suffix(suffix) for suffix in sorted(SUFFIXES)]
    return next((choice for choice in choices if choice.is_file()), None)


# --- shapes


def _draft(path: Path, picture: Path, content: Mapping[str, Any], passed: list[str]) -> Draft:
    sides = content.get("imageHeight"), content.get("imageWidth")
    is_told = all(isinstance(side, int) and side > 0 for side in sides)
    size = (int(sides[0] or 0), int(sides[1] or 0)) if is_told else (0, 0)
    groups: dict[tuple[Any, ...], list[tuple[int, Mapping[str, Any]]]] = {}
    for index, shape in enumerate(content["shapes"]):
        where = f"{path} shape {index}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"]:
            raise DataError("the shape has no label", where=where, expected="the name of its class")
        if shape.get("shape_type", "polygon") not in {"rectangle", "polygon", "circle", "mask"}:
            passed.append(where)
            continue
        group = shape.get("group_id")
        key = (shape["label"], group) if group is not None else (index,)
        groups.setdefault(key, []).append((index, shape))
    objects = [_object(path, members, size, picture) for members in groups.values()]
    extra = {key: value for key, value in content.items() if key not in _ABOUT_PICTURE and value not in (None, {})}
    return Draft(AnnotatedImage(picture, size, extra=extra), objects)


def _object(
    path: Path, members: Sequence[tuple[int, Mapping[str, Any]]], size: tuple[int, int], picture: Path
) -> Drafted:
    """One object of the shapes of a group."""
    where = f"{path} shape {members[0][0]}"
    boxes: list[Box] = []
    polygons: Polygons = []
    masks: list[tuple[int, int, NDArray[np.bool_]]] = []
    for index, shape in members:
        place = f"{path} shape {index}"
        points = _points(shape, place)
        kind = shape.get("shape_type", "polygon")
        if kind == "rectangle":
            if len(points) != 2:
                told = f"the rectangle has {counted(len(points), 'point')}"
                raise DataError(told, where=place, expected="two corners")
            boxes.append(polygon_box([[*points[0], *points[1]]]) or (0, 0, 0, 0))
        elif kind == "circle":
            polygons.append(_circle(points, place))
        elif kind == "mask":
            masks.append(_mask(shape, points, place))
        else:
            polygons.append([value for point in points for value in point])
    first = members[0][1]
    flags = first.get("flags") or {}
    extra = {key: value for key, value in first.items() if key not in _KNOWN and value not in (None, "")}
    kept = {key: value for key, value in flags.items() if key != "crowd"} if isinstance(flags, dict) else {}
    extra |= {"flags": kept} if kept else {}
    is_crowd = isinstance(flags, dict) and bool(flags.get("crowd") or flags.get("difficult"))
    outline: Shape | None = polygons or None
    if masks:
        outline = _joined(masks, polygons, size if size != (0, 0) else _size(picture), where)
    corners = [_hull(boxes)] if boxes else []
    thing = ObjectAnnotation(first["label"], corners[0] if corners else (0, 0, 0, 0), outline, is_crowd, extra)
    return Drafted(thing, where, has_box=bool(corners))


def _size(picture: Path) -> tuple[int, int]:
    return read_size(picture)[0]


def _points(shape: Mapping[str, Any], where: str) -> list[tuple[float, float]]:
    points = shape.get("points")
    try:
        found = [(float(x), float(y)) for x, y in points or []]
    except (TypeError, ValueError):
        found = []
    if not found or not all(math.isfinite(value) for point in found for value in point):
        raise DataError("the points are damaged", where=where, expected="[[x, y], ...]")
    return found


def _circle(points: Sequence[tuple[float, float]], where: str) -> list[float]:
    if len(points) != 2:
        raise DataError(f"the circle has {counted(len(points), 'point')}", where=where, expected="centre and border")
    (across, down), border = points[0], points[1]
    radius = math.dist(points[0], border)
    angles = [2 * math.pi * corner / _CORNERS for corner in range(_CORNERS)]
    return [v for angle in angles for v in (across + radius * math.cos(angle), down + radius * math.sin(angle))]


def _mask(
    shape: Mapping[str, Any], points: Sequence[tuple[float, float]], where: str
) -> tuple[int, int, NDArray[np.bool_]]:
    """Top, left and pixels ``[bh, bw]`` of a mask, which is a PNG as text."""
    try:
        content = base64.b64decode(str(shape.get("mask") or ""), validate=True)
        with Image.open(io.BytesIO(content)) as picture:
            pixels = np.asarray(picture.convert("L")) != 0
    except (*DAMAGE, binascii.Error) as error:
        raise DataError("the mask is damaged", where=where, expected="a PNG as base64 text") from error
    return round(points[0][1]), round(points[0][0]), pixels


def _joined(
    masks: Sequence[tuple[int, int, NDArray[np.bool_]]], polygons: Polygons, size: tuple[int, int], where: str
) -> Mapping[str, Any]:
    """Masks and polygons of one object as run lengths."""
    whole = shape_mask(polygons or None, size, where)
    for top, left, pixels in masks:
        bottom, right = top + pixels.shape[0], left + pixels.shape[1]
        if min(top, left) < 0 or bottom > size[0] or right > size[1]:
            raise DataError("the mask reaches out of the picture", where=where, expected="a mask inside of it")
        whole[top:bottom, left:right] |= pixels
    return run_lengths(whole)


def _hull(boxes: Sequence[Box]) -> Box:
    return min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)


# --- writing


def labelme_content(image: AnnotatedImage, name: str) -> dict[str, Any]:
    """The JSON of one picture, whose file is called ``name`` and lies beside it."""
    shapes: list[dict[str, Any]] = []
    for number, thing in enumerate(image.objects, start=1):
        own = _shapes(thing)
        extra = {key: value for key, value in thing.extra.items() if key not in _KNOWN}
        flags = dict(thing.extra["flags"]) if isinstance(thing.extra.get("flags"), dict) else {}
        flags |= {"crowd": True} if thing.is_crowd else {}
        for shape in own:
            group = number if len(own) > 1 else None
            shapes.append({"label": thing.name, "group_id": group, "flags": flags, **extra, **shape})
    return {
        "version": "5.5.0",
        "flags": {},
        **{key: value for key, value in image.extra.items() if key not in _ABOUT_PICTURE},
        "shapes": shapes,
        "imagePath": name,
        "imageData": None,
        "imageHeight": image.size[0],
        "imageWidth": image.size[1],
    }


def _shapes(thing: ObjectAnnotation) -> list[dict[str, Any]]:
    """The shapes of one object; its rectangle only where its outline does not say the box."""
    left, top, right, bottom = thing.box
    rectangle = {"shape_type": "rectangle", "points": [[left, top], [right, bottom]]}
    if thing.shape is None:
        return [rectangle]
    if isinstance(thing.shape, list):
        outlines = [
            {"shape_type": "polygon", "points": [list(point) for point in zip(part[::2], part[1::2], strict=True)]}
            for part in thing.shape
        ]
        return outlines if polygon_box(thing.shape) == thing.box else [*outlines, rectangle]
    assert isinstance(thing.shape, Mapping)  # the writer turns pixels of files into run lengths
    height, width = thing.shape["size"]
    mask = shape_mask(thing.shape, (height, width), thing.name)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [rectangle]
    first, last = (int(rows[0]), int(columns[0])), (int(rows[-1]), int(columns[-1]))
    crop = mask[first[0] : last[0] + 1, first[1] : last[1] + 1]
    stream = io.BytesIO()
    Image.fromarray(crop.astype(np.uint8) * 255).save(stream, format="PNG")
    outline = {
        "shape_type": "mask",
        "points": [[first[1], first[0]], [last[1], last[0]]],
        "mask": base64.b64encode(stream.getvalue()).decode("ascii"),
    }
    return [outline, rectangle]
