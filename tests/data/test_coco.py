"""COCO JSON: what is read, and the label maps that are painted from it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.cocofile import annotation_mask, is_coco_file, read_coco
from saccade.data.source import DataSource
from saccade.data.source import open_data as open_any
from saccade.data.write import plain_run_lengths, write_scenes
from saccade.errors import DataError


def open_data(source: Path, *, strict: bool = False) -> DataSource:
    """As label maps, which COCO JSON is read as only where somebody asks for it."""
    return open_any(source, task="semantic", strict=strict)


SIZE = (8, 10)


def square(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def content(*segmentations: Any, categories: tuple[int, ...] = (7, 3)) -> dict[str, Any]:
    """One picture a.png of 8x10 with objects; the first is of the first category, the second of the second, ..."""
    return {
        "images": [{"id": 5, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": number, "name": f"kind{number}"} for number in categories],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": categories[i % len(categories)], "segmentation": shape}
            for i, shape in enumerate(segmentations)
        ],
    }


def write(root: Path, told: dict[str, Any], file: str = "instances.json") -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for image in told["images"]:
        Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(root / "images" / Path(image["file_name"]).name)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(told))
    return root


def painted(root: Path, *segmentations: Any, **options: Any) -> np.ndarray:
    data = open_data(write(root, content(*segmentations, **options))).split("train")
    labels: np.ndarray = data[0].target.labels.numpy()
    return labels


def block(*parts: tuple[int, int, int, int, int]) -> np.ndarray:
    """A label map with blocks (label, left, top, right, bottom)."""
    labels = np.zeros(SIZE, dtype=np.uint8)
    for label, left, top, right, bottom in parts:
        labels[top:bottom, left:right] = label
    return labels


def test_polygons_of_several_parts_and_sparse_ids(tmp_path: Path) -> None:
    # Category 3 is label 1 and category 7 label 2: ascending ids after the background.
    labels = painted(tmp_path, [square(0, 0, 2, 3), square(5, 4, 9, 8)], [square(3, 0, 4, 1)])
    assert labels.tolist() == block((2, 0, 0, 2, 3), (2, 5, 4, 9, 8), (1, 3, 0, 4, 1)).tolist()
    assert open_data(tmp_path).classes.names == ("background", "kind3", "kind7")


def test_parts_that_overlap_are_one_object(tmp_path: Path) -> None:
    labels = painted(tmp_path, [square(0, 0, 4, 4), square(2, 2, 6, 6)])
    assert labels.tolist() == block((2, 0, 0, 4, 4), (2, 2, 2, 6, 6)).tolist()


RING = [[0] * 10] + [[0, 1, 1, 1, 1, 1, 0, 0, 0, 0]] + [[0, 1, 0, 0, 0, 1, 0, 0, 0, 0]] * 3
RING += [[0, 1, 1, 1, 1, 1, 0, 0, 0, 0]] + [[0] * 10] * 2


@pytest.mark.parametrize("is_packed", [False, True])
def test_run_lengths_keep_their_holes(tmp_path: Path, is_packed: bool) -> None:
    runs: dict[str, Any] = plain_run_lengths(torch.tensor(RING, dtype=torch.bool))
    if is_packed:
        runs["counts"] = packed(runs["counts"])
    labels = painted(tmp_path, runs)
    assert labels.tolist() == (np.array(RING) * 2).tolist()
    assert (labels[2:5, 2:5] == 0).all()


def packed(counts: list[int]) -> str:
    """COCO's text of run lengths: each is told as the difference to the one before the last, five bits a letter."""
    text = ""
    for place, count in enumerate(counts):
        rest = count - counts[place - 2] if place > 2 else count
        is_more = True
        while is_more:
            bits, rest = rest & 31, rest >> 5
            is_more = rest != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if is_more else bits) + 48)
    return text


def test_the_smaller_object_is_on_top_whatever_the_order(tmp_path: Path) -> None:
    table, cup = [square(0, 0, 9, 7)], [square(2, 2, 4, 4)]
    expected = block((2, 0, 0, 9, 7), (1, 2, 2, 4, 4))
    assert painted(tmp_path / "one", table, cup).tolist() == expected.tolist()
    assert painted(tmp_path / "two", cup, table, categories=(3, 7)).tolist() == expected.tolist()


def test_the_same_scenes_as_masks_and_as_coco(tmp_path: Path) -> None:
    masks = open_data(write_scenes(tmp_path / "m", count=30, size=48, task="segmentation", seed=4))
    coco = open_data(write_scenes(tmp_path / "c", count=30, size=48, task="detection", seed=4))
    assert masks.classes == coco.classes
    for split in ("train", "val"):
        for one, other in zip(masks.split(split), coco.split(split), strict=True):
            assert Path(one.source).name == Path(other.source).name
            differing = (one.target.labels != other.target.labels).float().mean()
            assert differing < 0.02  # where objects overlap the smaller is on top, not the later


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the peer, with NumPy 2
def test_areas_are_those_of_pycocotools(tmp_path: Path) -> None:
    peer = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    shapes: list[Any] = [[(generator.random(2 * corners) * 60 - 5).tolist()] for corners in (3, 4, 7, 12)]
    told = content(*shapes, [shapes[0][0], shapes[1][0]])
    told["images"][0] |= {"height": 40, "width": 50}
    (tmp_path / "x.json").write_text(json.dumps(told))
    for annotation in read_coco(tmp_path / "x.json").annotations[5]:
        runs = peer.merge(peer.frPyObjects(annotation.segmentation, 40, 50))
        assert (annotation_mask(annotation, (40, 50), "x") == peer.decode(runs).astype(bool)).all()


def test_a_category_called_background_is_the_background(tmp_path: Path) -> None:
    told = content([square(0, 0, 2, 2)], [square(5, 5, 9, 8)], categories=(1, 2))
    told["categories"][0]["name"] = "Background"
    source = open_data(write(tmp_path, told))
    assert source.classes.names == ("background", "kind2")
    assert source.split("train")[0].target.labels.tolist() == block((1, 5, 5, 9, 8)).tolist()


# --- layouts


def two_splits(root: Path, annotations: str, images: str) -> Path:
    for split in ("train", "val"):
        told = content([square(0, 0, 2, 2)])
        told["images"][0]["file_name"] = f"{split}.png"
        file = root / annotations.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told))
        folder = root / images.format(split)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(folder / f"{split}.png")
    return root


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}.json", "images/{}"),
        ("annotations/{}.json", "images"),
        ("{}.json", "images"),
        ("instances_{}.json", "{}"),
        ("{}/_annotations.coco.json", "{}"),
    ],
)
def test_layouts(tmp_path: Path, annotations: str, images: str) -> None:
    source = open_data(two_splits(tmp_path, annotations, images))
    assert {s: [Path(d[0].source).stem for _ in range(len(d))] for s, d in source.splits.items()} == {
        "train": ["train"],
        "val": ["val"],
    }
    assert source.task == "semantic"


def test_one_file_is_split_by_name_as_folder_and_as_file(tmp_path: Path) -> None:
    told = content()
    told["images"] = [told["images"][0] | {"id": i, "file_name": f"{i}.png"} for i in range(10)]
    write(tmp_path, told)
    whole, file = open_data(tmp_path), open_data(tmp_path / "instances.json")
    assert {split: len(data) for split, data in whole.splits.items()} == {"train": 8, "val": 2}
    assert whole.fingerprint() == file.fingerprint()
    assert "10 pictures of instances.json without an annotation: background only" in whole.notes


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    told = content([square(0, 0, 2, 2)])
    write(tmp_path, told)
    told["images"].append(told["images"][0] | {"id": 6, "file_name": "gone.png"})
    (tmp_path / "instances.json").write_text(json.dumps(told))
    assert "1 of 2 pictures of instances.json are not there: gone.png: left out" in open_data(tmp_path).notes
    with pytest.raises(DataError, match=r"1 of 2 pictures .*gone.png"):
        open_data(tmp_path, strict=True)
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(DataError, match="2 of 2 pictures"):
        open_data(tmp_path)


def test_splits_whose_categories_differ_are_joined_by_name(tmp_path: Path) -> None:
    two_splits(tmp_path, "annotations/instances_{}.json", "images/{}")
    file = tmp_path / "annotations/instances_val.json"
    told = json.loads(file.read_text())
    told["categories"] = [{"id": 7, "name": "kind3"}, {"id": 1, "name": "new"}]  # the ids mean something else here
    file.write_text(json.dumps(told))
    source = open_data(tmp_path)
    assert source.classes.names == ("background", "kind3", "kind7", "new")
    assert source.split("train")[0].target.labels[0, 0] == 2
    assert source.split("val")[0].target.labels[0, 0] == 1
    assert any("categories that instances_train.json has not: new" in note for note in source.notes)


def test_optional_fields_may_be_missing(tmp_path: Path) -> None:
    told = content([square(0, 0, 2, 2)], None, [], [[1, 1, 2, 2]])
    del told["images"][0]["height"], told["annotations"][0]["id"]
    labels = open_data(write(tmp_path, told)).split("train")[0].target.labels
    assert labels.tolist() == block((2, 0, 0, 2, 2)).tolist()


# --- panoptic


def write_panoptic(root: Path, segments: list[dict[str, int]]) -> Path:
    told = content(categories=(1, 200))
    told["annotations"] = [{"image_id": 5, "file_name": "a.png", "segments_info": segments}]
    write(root, told, "annotations/panoptic_train.json")
    identifiers = np.zeros(SIZE, dtype=np.int64)
    identifiers[:4], identifiers[4:6] = 70000, 300
    pixels = np.stack([identifiers % 256, identifiers // 256 % 256, identifiers // 65536], axis=2).astype(np.uint8)
    (root / "annotations/panoptic_train").mkdir()
    Image.fromarray(pixels).save(root / "annotations/panoptic_train/a.png")
    return root


def test_panoptic_masks(tmp_path: Path) -> None:
    segments = [{"id": 70000, "category_id": 200}, {"id": 300, "category_id": 1}]
    source = open_data(write_panoptic(tmp_path, segments))
    assert source.format == "COCO panoptic masks, from panoptic_train.json"
    assert source.classes.names == ("kind1", "kind200")
    assert source.split("train")[0].target.labels[:, 0].tolist() == [1, 1, 1, 1, 0, 0, 255, 255]


def test_a_segment_that_the_json_does_not_know(tmp_path: Path) -> None:
    write_panoptic(tmp_path, [{"id": 70000, "category_id": 200}])
    with pytest.raises(DataError, match=r"a.png: the mask has the value rgb\(44, 1, 0\) \(20 pixels\)"):
        open_data(tmp_path)


# --- damage


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(told: dict[str, Any]) -> None:
        told["annotations"][0][key] = value

    return edit


DAMAGE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda told: told.pop("images"), "no list 'images'"),
    (lambda told: told["images"].append(told["images"][0]), "the image id 5 is given twice"),
    (lambda told: told["categories"].append({"id": 3, "name": "x"}), "the category id 3 is given twice"),
    (lambda told: told["categories"].append({"id": 9, "name": "kind3"}), "two categories are called 'kind3'"),
    (lambda told: told["images"][0].pop("file_name"), r"images\[0\]: file_name is missing"),
    (
        lambda told: told["images"][0].update(height=10**9, width=10**9),
        "1000000000x1000000000 pixels; expected at most",
    ),
    (lambda told: told["images"][0].update(width=11), "has 10x8 pixels but its mask .*instances.json#5 11x8"),
    (change("category_id", 4), r"annotations\[0\]: category_id is 4, which is not listed; expected one of 3, 7"),
    (change("category_id", "7"), "category_id is '7'; expected a number"),
    (change("bbox", [1, 2]), r"bbox is \[1, 2\]"),
    (change("segmentation", [[1, 2, 3, 4, 5]]), "the polygon is damaged"),
    (change("segmentation", [[1, 2, 3, 4, 5, float("nan")]]), "the polygon is damaged"),
    (change("segmentation", [[1, 2, 3, 4, 5, 1e12]]), "the polygon is damaged"),
    (change("segmentation", [["1", 2, 3, 4, 5, 6]]), "the polygon is damaged"),
    (change("segmentation", 5), "the segmentation is damaged"),
    (change("segmentation", {"size": [8, 10], "counts": [3, -4]}), "the run lengths are damaged"),
    (change("segmentation", {"size": [8, 10], "counts": [3, 4]}), "the run lengths are damaged"),
    (change("segmentation", {"size": [8, 10], "counts": [3, 4000]}), "the run lengths are damaged"),
    (change("segmentation", {"size": [8, 10], "counts": "zzzz"}), "the run lengths are damaged"),
    (change("segmentation", {"size": [4, 20], "counts": [80]}), "are of 20x4 pixels; expected 10x8"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[words for _, words in DAMAGE])
def test_damaged_json(tmp_path: Path, damage: Callable[[dict[str, Any]], Any], words: str) -> None:
    told = copy.deepcopy(content([square(0, 0, 2, 2)]))
    write(tmp_path, told)
    damage(told)
    (tmp_path / "instances.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=words):
        open_data(tmp_path / "instances.json")


def test_files_that_are_no_coco(tmp_path: Path) -> None:
    for name, text in (("a", '[{"image_id": 1}]'), ("b", '{"scenes": []}'), ("c", "{")):
        (tmp_path / f"{name}.json").write_text(text)
        assert not is_coco_file(tmp_path / f"{name}.json")
    with pytest.raises(DataError, match=r"a.json: this is a list, as of detections"):
        open_data(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"b.json: this is no COCO JSON"):
        open_data(tmp_path / "b.json")
    with pytest.raises(DataError, match=r"c.json: this is not JSON"):
        open_data(tmp_path / "c.json")


def test_annotations_of_pictures_that_are_not_listed_are_told(tmp_path: Path) -> None:
    told = content([square(0, 0, 2, 2)], [square(3, 3, 5, 5)])
    told["annotations"][1]["image_id"] = 99
    source = open_data(write(tmp_path, told))
    assert "1 annotation of instances.json is of pictures that it does not list (image id 99): left out" in source.notes
