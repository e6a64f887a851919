"""COCO JSON read as objects, faults of boxes, data sets of objects."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.dataset import subset
from saccade.data.inspect import contact_sheet, inspect
from saccade.data.objects import AnnotatedImage, NumberedPixels, ObjectAnnotation, ObjectDataset, numbered_objects
from saccade.data.outlines import join_parts, trace
from saccade.data.source import DataSource, open_data
from saccade.errors import DataError
from saccade.types import BoxTarget, Classes, Masks

SIZE = (20, 30)
SQUARE = [[2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]]


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = np.random.default_rng(len(path.stem)).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(shade).save(path)
    return path


def box(category: int = 3, **changes: Any) -> dict[str, Any]:
    return {"category_id": category, "bbox": [2, 3, 6, 6], "iscrowd": 0, **changes}


def coco(root: Path, *objects: dict[str, Any], num_pictures: int = 1, ids: tuple[int, ...] = (3, 7)) -> Path:
    """A folder with one COCO file, all objects in the first picture."""
    images = []
    for number in range(num_pictures):
        picture(root / "images" / f"{number}.png")
        images.append({"id": 10 + number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
    annotations = [{"id": index + 1, "image_id": 10, **thing} for index, thing in enumerate(objects)]
    categories = [{"id": number, "name": f"kind{number}"} for number in ids]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def target(source: DataSource, split: str = "train", index: int = 0) -> BoxTarget:
    found = source.split(split)[index].target
    assert isinstance(found, BoxTarget)
    return found


def test_boxes_of_sparse_categories_and_crowds(tmp_path: Path) -> None:
    source = open_data(coco(tmp_path, box(7), box(3, bbox=[1, 1, 4.5, 2], iscrowd=1)), task="detection")
    found = target(source)
    assert source.classes.names == ("kind3", "kind7")
    assert found.boxes.tolist() == [[2, 3, 8, 9], [1, 1, 5.5, 3]]
    assert found.labels.tolist() == [1, 0]
    assert found.crowd.tolist() == [False, True]
    assert found.masks is None


def test_what_coco_is_for_where_nobody_says_it(tmp_path: Path) -> None:
    assert open_data(coco(tmp_path / "a", box())).task == "detection"
    outlined = open_data(coco(tmp_path / "b", box(segmentation=SQUARE)))
    assert outlined.task == "instance"
    assert any("--task semantic" in note for note in outlined.notes)
    assert open_data(tmp_path / "b" / "annotations.json", task="semantic").task == "semantic"
    assert open_data(tmp_path / "b" / "annotations.json", task="instance").task == "instance"
    with pytest.raises(DataError, match=r"1 of 1 object known by a box but no mask.*read the data for .* detection"):
        open_data(tmp_path / "a", task="instance")


def test_masks_of_polygons_and_run_lengths(tmp_path: Path) -> None:
    runs = {"size": list(SIZE), "counts": [0, 5, SIZE[0] * SIZE[1] - 5]}
    source = open_data(coco(tmp_path, box(segmentation=SQUARE), box(7, segmentation=runs)), task="instance")
    masks = target(source).masks
    assert masks is not None
    wanted = torch.zeros(2, *SIZE, dtype=torch.bool)
    wanted[0, 3:9, 2:8] = True
    wanted[1, :5, 0] = True
    assert torch.equal(masks.dense(), wanted)


def test_a_box_alone_is_a_crowd_where_masks_are_wanted(tmp_path: Path) -> None:
    things = box(segmentation=SQUARE), box(segmentation=SQUARE, bbox=[2, 3, 7, 6]), box(7)
    source = open_data(coco(tmp_path, *things), task="instance")
    assert target(source).crowd.tolist() == [False, False, True]
    assert any("1 of 3 objects known by a box but no mask" in note for note in source.notes)
    masks = target(source).masks
    assert masks is not None
    assert masks.areas().tolist() == [36, 36, 36]


def test_a_missing_box_is_the_one_around_the_outline(tmp_path: Path) -> None:
    runs = {"size": list(SIZE), "counts": [21, 2, SIZE[0] * SIZE[1] - 23]}
    things = box(bbox=None, segmentation=SQUARE), box(7, bbox=None, segmentation=runs)
    assert target(open_data(coco(tmp_path, *things), task="detection")).boxes.tolist() == [[2, 3, 8, 9], [1, 1, 2, 3]]


def test_pictures_of_background_stay(tmp_path: Path) -> None:
    source = open_data(coco(tmp_path, box(), num_pictures=5), task="detection")
    assert sum(len(data) for data in source.splits.values()) == 5
    empty = [target(source, split, i) for split, data in source.splits.items() for i in range(len(data))]
    assert sorted(len(found) for found in empty) == [0, 0, 0, 0, 1]
    assert all(found.boxes.shape == (len(found), 4) for found in empty)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (box(bbox=[4, 4, 0, 5]), r"1 box without area .*left out: .*0.png object 1 \(annotation 2\)"),
        (box(bbox=[40, 4, 5, 5]), "1 box outside of its picture: left out"),
        (box(), "1 object that is there twice"),
        (box(7, segmentation=[[1, 1, 2, 2]]), "1 object with a polygon of fewer than three points"),
        (box(7, bbox=None), "1 object without a box and without an outline: left out"),
        (box(7, bbox=[20, 10, 15, 5]), "1 box that reaches out of its picture: cut at the border"),
    ],
)
def test_faulty_objects_are_named(tmp_path: Path, thing: dict[str, Any], words: str) -> None:
    import re

    root = coco(tmp_path, box(), thing)
    source = open_data(root, task="detection")
    assert any(re.search(words, note) for note in source.notes), source.notes
    boxes = target(source).boxes
    assert boxes[0].tolist() == [2, 3, 8, 9]
    assert (boxes[:, 2] <= SIZE[1]).all()
    with pytest.raises(DataError, match=words):
        open_data(root, task="detection", strict=True)


def test_corners_stored_as_sides_are_named_with_evidence(tmp_path: Path) -> None:
    things = [box(bbox=[12 + i, 8 + i, 25 + i, 18]) for i in range(4)]
    words = r"4 of 4 boxes have an edge outside .* read as corners .* 4 of 4 fit"
    with pytest.raises(DataError, match=words):
        open_data(coco(tmp_path, *things), task="detection")


def change_size(content: dict[str, Any]) -> None:
    content["images"][0]["height"] = 21


def turn(content: dict[str, Any]) -> None:
    content["images"][0] |= {"height": SIZE[1], "width": SIZE[0]}


def cut_runs(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = {"size": [20, 29], "counts": [580]}


def short_runs(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = {"size": list(SIZE), "counts": [1, 2]}


def same_name(content: dict[str, Any]) -> None:
    content["categories"][1]["name"] = "kind3"


def other_picture(content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = "gone.png"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_size, "0.png: the annotations are for 30x21 pixels but the picture has 30x20"),
        (turn, "save the picture upright"),
        (cut_runs, "the run lengths are of 29x20 pixels; expected 30x20"),
        (short_runs, "the run lengths add up to 3 pixels; expected 30x20 as the picture has, 600 in all"),
        (same_name, "two categories are called 'kind3'"),
        (other_picture, "1 of 1 picture of annotations.json is not there: gone.png"),
    ],
)
def test_damage_that_cannot_be_mended(tmp_path: Path, damage: Callable[[dict[str, Any]], None], words: str) -> None:
    file = coco(tmp_path, box()) / "annotations.json"
    content = json.loads(file.read_text())
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        open_data(tmp_path, task="detection")


def test_annotation_ids_given_twice_are_told(tmp_path: Path) -> None:
    root = coco(tmp_path, box(), box(7, id=1))
    assert any("1 annotation id of annotations.json given twice, the first is 1" in n for n in open_data(root).notes)
    with pytest.raises(DataError, match="given twice"):
        open_data(root, strict=True)


def test_splits_with_other_ids_are_joined_by_name(tmp_path: Path) -> None:
    for split, numbers in (("train", (1, 2)), ("val", (2, 1))):
        inner = coco(tmp_path / split, box(numbers[0]), ids=(1, 2))
        content = json.loads((inner / "annotations.json").read_text())
        content["categories"] = [{"id": numbers[0], "name": "cat"}, {"id": numbers[1], "name": "dog"}]
        (inner / "annotations.json").write_text(json.dumps(content))
    source = open_data(tmp_path, task="detection")
    assert source.classes.names == ("cat", "dog")
    assert [target(source, split).labels.tolist() for split in ("train", "val")] == [[0], [0]]
    assert any("has 'dog' under the id 1, another file under 2" in note for note in source.notes)


def dataset(root: Path, *things: ObjectAnnotation, **changes: Any) -> ObjectDataset:
    image = AnnotatedImage(picture(root / "a.png"), SIZE, things)
    return ObjectDataset([image], changes.pop("classes", Classes(("cat", "dog"))), root, **changes)


def test_the_fingerprint_follows_boxes_classes_and_outlines(tmp_path: Path) -> None:
    cat = ObjectAnnotation("cat", (1, 2, 3, 4), SQUARE)
    sets = [
        dataset(tmp_path, cat),
        dataset(tmp_path, ObjectAnnotation("dog", (1, 2, 3, 4), SQUARE)),
        dataset(tmp_path, ObjectAnnotation("cat", (1, 2, 3, 4.5), SQUARE)),
        dataset(tmp_path, ObjectAnnotation("cat", (1, 2, 3, 4), SQUARE, is_crowd=True)),
        dataset(tmp_path, cat, classes=Classes(("dog", "cat"))),
        dataset(tmp_path, cat, task="instance"),
        dataset(tmp_path, ObjectAnnotation("cat", (1, 2, 3, 4), [[2.0, 3, 8, 3, 8, 8]]), task="instance"),
    ]
    assert len({one.fingerprint() for one in sets}) == len(sets)
    assert dataset(tmp_path, cat).fingerprint() == sets[0].fingerprint()
    moved = dataset(tmp_path / "elsewhere", cat)
    assert moved.fingerprint() == sets[0].fingerprint()


def test_a_subset_and_a_picture_that_changed(tmp_path: Path) -> None:
    data = dataset(tmp_path, ObjectAnnotation("cat", (1, 2, 3, 4)))
    part = subset(data, [0])
    assert part.task == "detection"
    assert torch.equal(part[0].target.boxes, data.target(0).boxes)  # type: ignore[union-attr]
    picture(tmp_path / "a.png", (20, 31))
    with pytest.raises(DataError, match="annotations are for 30x20 pixels but the picture has 31x20"):
        data[0]


def test_unknown_names_and_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'bird' is no class of the data"):
        dataset(tmp_path, ObjectAnnotation("bird", (1, 2, 3, 4)))
    with pytest.raises(DataError, match="no picture has an object"):
        dataset(tmp_path, classes=Classes(()))
    with pytest.raises(DataError, match="objects are no data for the task semantic"):
        dataset(tmp_path, task="semantic")


def numbered(root: Path) -> np.ndarray[Any, Any]:
    values = np.zeros(SIZE, dtype=np.uint16)
    values[2:5, 3:9] = 1
    values[10:12, 20:30] = 2
    values[3, 4] = 3
    (root / "masks").mkdir(parents=True, exist_ok=True)
    for name, most in (("a", 3), ("b", 2)):
        picture(root / "images" / f"{name}.png")
        Image.fromarray(np.where(values <= most, values, 0).astype(np.uint16)).save(root / "masks" / f"{name}.png")
    return values


def test_masks_that_number_objects(tmp_path: Path) -> None:
    values = numbered(tmp_path)
    assert open_data(tmp_path).task == "semantic"
    source = open_data(tmp_path, task="instance")
    assert source.classes.names == ("object",)
    found = [target(source, split) for split in ("train", "val")]
    three = max(found, key=len)
    assert three.boxes.tolist() == [[3, 2, 9, 5], [20, 10, 30, 12], [4, 3, 5, 4]]
    assert three.masks is not None
    assert torch.equal(three.masks.dense(), torch.stack([torch.from_numpy(values == n) for n in (1, 2, 3)]))
    assert torch.equal(three.masks.boxes(), three.boxes)
    assert target(open_data(tmp_path, task="detection")).masks is None


def test_masks_of_classes_number_no_objects(tmp_path: Path) -> None:
    numbered(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match="the masks say the class of every pixel, not which object"):
        open_data(tmp_path, task="instance")


def test_numbers_with_gaps(tmp_path: Path) -> None:
    values = np.zeros((4, 6), dtype=np.uint16)
    values[1, 2], values[2, 3:5] = 7, 300
    Image.fromarray(values).save(tmp_path / "m.png")
    found = numbered_objects(tmp_path / "m.png", (4, 6), "cell")
    assert [(thing.box, thing.shape) for thing in found] == [
        ((2, 1, 3, 2), NumberedPixels(tmp_path / "m.png", 7)),
        ((3, 2, 5, 3), NumberedPixels(tmp_path / "m.png", 300)),
    ]


def test_outlines_give_back_every_pixel() -> None:
    from saccade.data.cocofile import shape_mask

    generator = np.random.default_rng(3)
    for _ in range(30):
        height, width = generator.integers(1, 14, 2)
        mask = generator.random((height, width)) > 0.5
        traced = trace(mask)
        filled = shape_mask(traced.parts, (height, width), "")
        assert not (mask & ~filled).any()
        if not traced.num_holes:
            assert np.array_equal(filled, mask)


def test_a_ring_has_a_hole_and_parts_are_joined_by_bridges() -> None:
    from saccade.data.cocofile import shape_mask

    ring = np.ones((5, 5), dtype=np.bool_)
    ring[2, 2] = False
    assert trace(ring).num_holes == 1
    apart = np.zeros((8, 9), dtype=np.bool_)
    apart[1:3, 1:3] = apart[5:8, 4:6] = apart[0, 8] = True
    traced = trace(apart)
    assert len(traced.parts) == 3
    assert np.array_equal(shape_mask([join_parts(traced.parts)], (8, 9), ""), apart)


def test_inspection_counts_objects(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", box(), box(7, bbox=[1, 1, 2, 2]), box(7, bbox=[5, 5, 9, 9], iscrowd=1))
    found = inspect(open_data(root, task="detection"))
    split = next(iter(found.splits))
    assert found.objects[split] == {"kind3": 1, "kind7": 2}
    assert found.splits[split] == {"kind3": 1, "kind7": 1}
    told = "\n".join(found.problems)
    assert "1 of 3 objects marked as crowds" in told
    assert "2 of 3 boxes smaller than 8x8 pixels" in told
    sheet = contact_sheet(open_data(root, task="detection").split(split), tmp_path / "sheet.png")
    with Image.open(sheet) as drawn:
        assert drawn.size[0] > 240


def test_a_picture_there_twice_under_other_boxes(tmp_path: Path) -> None:
    root = coco(tmp_path, box(), num_pictures=2)
    shutil.copy(root / "images" / "0.png", root / "images" / "1.png")
    assert len(inspect(open_data(root, task="detection")).conflicts) == 1


def test_masks_type_is_told_for_an_empty_picture(tmp_path: Path) -> None:
    data = dataset(tmp_path, task="instance")
    assert isinstance(data.target(0).masks, Masks)
    assert len(data.target(0)) == 0
