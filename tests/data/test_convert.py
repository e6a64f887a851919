"""Conversion between formats: nothing shifts, nothing is lost in silence, nothing is half written."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.api import convert
from saccade.data.objects import ObjectDataset, object_mask
from saccade.data.source import open_data
from saccade.data.write import plain_run_lengths, write_scenes
from saccade.errors import DataError, UnknownNameError

SIZE = (24, 36)
SQUARE = [2.0, 3.0, 8.25, 3.0, 8.0, 9.5, 2.0, 9.0]
IDS = {"zebra": 3, "cat": 7, "a dog": 90}


def source(root: Path, *, has_masks: bool = False, is_crowded: bool = False) -> Path:
    """COCO with sparse ids in an order that is not the alphabet's, two splits, a class without an object."""
    generator = np.random.default_rng(5)
    (root / "annotations").mkdir(parents=True)
    for split, names in (("train", ("zebra", "a dog", "cat")), ("val", ("cat", "zebra"))):
        images, annotations = [], []
        for number in range(3):
            (root / split).mkdir(exist_ok=True)
            shade = generator.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(shade).save(root / split / f"{number}.png")  # the same name in both splits
            images.append({"id": 50 - number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
            for name in names if number else ():
                left, top = generator.uniform(0, 12, 2).round(2).tolist()
                thing = {"id": 1000 + len(annotations), "image_id": 50 - number, "category_id": IDS[name]}
                thing |= {"bbox": [left, top, 7.31, 5.5], "iscrowd": 0, "area": 40.2, "note": f"{name} {number}"}
                if has_masks:
                    thing["segmentation"] = [[v + left if i % 2 == 0 else v + top for i, v in enumerate(SQUARE)]]
                if is_crowded and number == 1 and name == "cat":
                    thing["iscrowd"] = 1
                annotations.append(thing)
        categories = [{"id": number, "name": name, "supercategory": "animal"} for name, number in IDS.items()]
        content = {"info": {"year": 2020}, "images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (root / "LICENSE").write_text("CC0 1.0\n")
    return root


def facts(root: Path) -> dict[str, list[list[tuple[Any, ...]]]]:
    """Per split and picture, in order: class, box, crowd."""
    found: dict[str, list[list[tuple[Any, ...]]]] = {}
    for split, data in open_data(root, task="detection").splits.items():
        assert isinstance(data, ObjectDataset)
        found[split] = [
            sorted((t.name, *(round(edge, 4) for edge in t.box), t.is_crowd) for t in image.objects)
            for image in sorted(data.images, key=lambda image: image.path.stem)
        ]
    return found


def test_classes_and_boxes_stay_through_all_formats(tmp_path: Path) -> None:
    root = source(tmp_path / "start")
    wanted = facts(root)
    steps = [root]
    for to in ("voc", "yolo", "csv", "labelme", "coco"):
        steps.append(tmp_path / to)
        done = convert(steps[-2], steps[-1], to=to)
        assert done.largest_deviation < 1e-6
        assert done.pictures == {"train": 3, "val": 3}
        assert open_data(steps[-1], task="detection").classes.names == ("zebra", "cat", "a dog")
        assert facts(steps[-1]) == wanted, to
        assert (steps[-1] / "LICENSE").read_text() == "CC0 1.0\n"
    for before, after in pairwise(steps):
        assert before != after
    last = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())
    assert [(category["id"], category["name"]) for category in last["categories"]] == [
        (1, "zebra"),
        (2, "cat"),
        (3, "a dog"),
    ]


def test_coco_keeps_ids_and_everything_else(tmp_path: Path) -> None:
    root = source(tmp_path / "start", has_masks=True)
    done = convert(root, tmp_path / "out", to="coco")
    assert done.lost == []
    assert done.num_masks == 10
    for split in ("train", "val"):
        before, after = (
            json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
            for folder in (root, tmp_path / "out")
        )
        assert after["categories"] == before["categories"]
        assert after["info"] == before["info"]
        assert [image["id"] for image in after["images"]] == [image["id"] for image in before["images"]]
        for old, new in zip(before["annotations"], after["annotations"], strict=True):
            assert new.pop("bbox") == pytest.approx(old.pop("bbox"))
            assert new == old


def masks(root: Path) -> list[bytes]:
    return sorted(
        object_mask(thing, image.size, "").tobytes()
        for data in open_data(root, task="instance").splits.values()
        for image in data.images  # type: ignore[attr-defined]
        for thing in image.objects
    )


@pytest.mark.parametrize("to", ["coco", "yolo", "labelme"])
def test_masks_stay_pixel_by_pixel(tmp_path: Path, to: str) -> None:
    scenes = write_scenes(tmp_path / "scenes", count=30, size=40, task="instance", seed=2)
    done = convert(scenes, tmp_path / to, to=to, task="instance", lossy=to == "yolo")
    assert done.num_masks > 30
    assert open_data(tmp_path / to, task="instance").task == "instance"
    if not any(line.startswith("lost") for line in done.lost):
        assert masks(tmp_path / to) == masks(scenes)


def test_what_cannot_be_held_is_refused_with_a_count(tmp_path: Path) -> None:
    root = source(tmp_path / "start", has_masks=True, is_crowded=True)
    for to in ("voc", "csv"):
        with pytest.raises(DataError, match=r"10 objects with a mask.*--lossy.*or --task detection"):
            convert(root, tmp_path / to, to=to)
        assert not (tmp_path / to).exists()
        assert convert(root, tmp_path / to, to=to, task="detection").num_masks == 0
    with pytest.raises(DataError, match="2 objects marked as a crowd"):
        convert(root, tmp_path / "yolo", to="yolo")
    done = convert(root, tmp_path / "yolo", to="yolo", lossy=True)
    assert sum(done.objects["train"].values()) == 5
    assert any("lost: 2 objects marked as a crowd" in line for line in done.lost)
    assert any("boxes are those around the outlines" in line for line in done.lost)


def test_holes_are_refused_by_yolo_and_kept_by_others(tmp_path: Path) -> None:
    import torch

    root = source(tmp_path / "start")
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    ring = torch.zeros(SIZE, dtype=torch.bool)
    ring[4:12, 5:15] = True
    ring[6:8, 7:9] = False
    content["annotations"][0] |= {"segmentation": plain_run_lengths(ring), "bbox": [5, 4, 10, 8]}
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="1 object with holes in their outline"):
        convert(root, tmp_path / "yolo", to="yolo")
    assert convert(root, tmp_path / "labelme", to="labelme").num_masks == 1
    data = open_data(tmp_path / "labelme", task="detection").split("train")
    things = [thing for image in data.images for thing in image.objects if thing.shape is not None]  # type: ignore[attr-defined]
    assert np.array_equal(object_mask(things[0], SIZE, ""), ring.numpy())


def test_pictures_that_number_objects_become_coco(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "data" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "masks").mkdir(exist_ok=True)
        values = np.zeros(SIZE, dtype=np.uint16)
        for number in range(1, 3 if name == "a" else 4):
            values[2 : 3 + number, 6 * number : 6 * number + 4] = number
        Image.fromarray(np.full((*SIZE, 3), 90, dtype=np.uint8)).save(tmp_path / "data" / "images" / f"{name}.png")
        Image.fromarray(values).save(tmp_path / "data" / "masks" / f"{name}.png")
    done = convert(tmp_path / "data", tmp_path / "out", to="coco")
    assert done.num_masks == 5
    assert masks(tmp_path / "out") == masks(tmp_path / "data")


def test_an_existing_folder_and_unknown_names(tmp_path: Path) -> None:
    root = source(tmp_path / "start")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        convert(root, tmp_path / "out", to="coco")
    with pytest.raises(UnknownNameError, match="unknown format 'yolov8'"):
        convert(root, tmp_path / "new", to="yolov8")
    with pytest.raises(UnknownNameError, match="unknown task 'boxes'"):
        convert(root, tmp_path / "new", to="voc", task="boxes")


def test_a_difference_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.data import objectwrite

    root = source(tmp_path / "start")
    sound = objectwrite.FORMATS["csv"].write

    def shifted(out: Path, splits: Any, data: Any) -> None:
        sound(out, splits, data)
        file = out / "annotations.csv"
        file.write_text(file.read_text().replace(",zebra,", ",cat,"))

    monkeypatch.setitem(objectwrite.FORMATS, "csv", objectwrite.FORMATS["csv"]._replace(write=shifted))
    with pytest.raises(
        DataError, match=r"object 0 of .* did not come back from CSV of boxes: cat False instead of zebra"
    ):
        convert(root, tmp_path / "out", to="csv")
    assert [path.name for path in tmp_path.iterdir()] == ["start"]


def test_links_and_copies(tmp_path: Path) -> None:
    root = source(tmp_path / "start")
    assert convert(root, tmp_path / "copied", to="coco", copy=True).num_linked == 0
    done = convert(root, tmp_path / "linked", to="coco")
    copies = [path for path in (tmp_path / "linked").rglob("*.png") if path.stat().st_nlink == 1]
    assert len(copies) == 6 - done.num_linked
    assert any("pictures: " in line for line in done.lines())
