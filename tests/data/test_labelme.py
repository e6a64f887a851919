"""LabelMe JSON: shapes, groups, splits, faults."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.source import open_data
from saccade.errors import DataError
from saccade.types import BoxTarget


def shape(label: str, kind: str, points: list[list[float]], **changes: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **changes}


def place(folder: Path, name: str, *shapes: dict[str, Any], **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), (10, 90, 30)).save(folder / f"{name}.png")
    content = {"version": "5.0.1", "flags": {}, "shapes": list(shapes), "imagePath": f"{name}.png", "imageData": None}
    content |= {"imageHeight": 20, "imageWidth": 30, **changes}
    (folder / f"{name}.json").write_text(json.dumps(content))


def only(root: Path, task: str | None = None) -> BoxTarget:
    target = next(iter(open_data(root, task=task).splits.values()))[0].target  # type: ignore[arg-type]
    assert isinstance(target, BoxTarget)
    return target


SQUARE = [[2, 3], [8, 3], [8, 9], [2, 9]]


def test_rectangles_in_any_order_and_flags(tmp_path: Path) -> None:
    things = shape("cat", "rectangle", [[10, 12], [2, 3]]), shape("dog", "rectangle", [[1, 1], [4, 4]])
    things[1]["flags"] = {"crowd": True}
    place(tmp_path, "a", *things)
    assert open_data(tmp_path).task == "detection"
    target = only(tmp_path)
    assert target.boxes.tolist() == [[2, 3, 10, 12], [1, 1, 4, 4]]
    assert target.crowd.tolist() == [False, True]


def test_polygons_of_a_group_are_one_object(tmp_path: Path) -> None:
    far = [[20, 10], [24, 10], [24, 14], [20, 14]]
    parts = [shape("cat", "polygon", points, group_id=4) for points in (SQUARE, far)]
    place(tmp_path, "a", *parts, shape("dog", "polygon", SQUARE, group_id=4), shape("cat", "polygon", SQUARE))
    source = open_data(tmp_path)
    assert source.task == "instance"
    target = only(tmp_path)
    assert target.boxes.tolist() == [[2, 3, 24, 14], [2, 3, 8, 9], [2, 3, 8, 9]]
    assert target.masks is not None
    assert target.masks.areas().tolist() == [36 + 16, 36, 36]


def test_masks_and_circles(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5), dtype=np.uint8)
    pixels[1:, 2:] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    mask = shape("cat", "mask", [[6, 2], [10, 5]], mask=text)
    place(tmp_path, "a", mask, shape("dog", "circle", [[15, 10], [15, 14]]))
    target = only(tmp_path)
    wanted = torch.zeros(20, 30, dtype=torch.bool)
    wanted[3:6, 8:11] = True
    assert target.masks is not None
    assert torch.equal(target.masks[0], wanted)
    assert target.boxes[0].tolist() == [8, 3, 11, 6]
    torch.testing.assert_close(target.boxes[1], torch.tensor([11.0, 6.0, 19.0, 14.0]))


def test_splits_and_shapes_that_are_no_objects(tmp_path: Path) -> None:
    place(tmp_path / "train", "a", shape("cat", "rectangle", [[1, 1], [4, 4]]), shape("cat", "point", [[3, 3]]))
    place(tmp_path / "val", "b", shape("cat", "rectangle", [[1, 1], [4, 4]]))
    source = open_data(tmp_path)
    assert source.format == "LabelMe JSON with splits train, val"
    assert any("1 shape that are no objects" in note and "a.json shape 1" in note for note in source.notes)
    with pytest.raises(DataError, match="no objects"):
        open_data(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (shape("", "rectangle", [[1, 1], [4, 4]]), "a.json shape 0: the shape has no label"),
        (shape("cat", "rectangle", [[1, 1]]), "the rectangle has 1 point; expected two corners"),
        (shape("cat", "rectangle", []), "the points are damaged"),
        (shape("cat", "mask", [[1, 1], [2, 2]], mask="no"), "the mask is damaged"),
        (shape("cat", "polygon", [[1, 1], [2, 2]]), "no picture has an object"),
    ],
)
def test_bad_shapes(tmp_path: Path, thing: dict[str, Any], words: str) -> None:
    place(tmp_path, "a", thing)
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)


def test_a_picture_elsewhere_and_one_that_is_gone(tmp_path: Path) -> None:
    square = shape("cat", "rectangle", [[1, 1], [4, 4]])
    place(tmp_path, "a", square, imagePath="..\\photos\\a.png")
    assert len(only(tmp_path)) == 1
    place(tmp_path, "b", square)
    (tmp_path / "b.png").unlink()
    assert "1 of 2 pictures that JSON files describe are not there: b.png: left out" in open_data(tmp_path).notes
