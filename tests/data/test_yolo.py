"""YOLO text: layouts, boxes and polygons, faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from saccade.data.source import open_data
from saccade.errors import DataError
from saccade.types import BoxTarget


def place(root: Path, image: str, label: str | None, text: str = "0 0.5 0.5 0.2 0.4\n") -> None:
    path = root / image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), (10, 90, 30)).save(path)
    if label:
        (root / label).parent.mkdir(parents=True, exist_ok=True)
        (root / label).write_text(text)


def only(root: Path, task: str | None = None) -> BoxTarget:
    source = open_data(root, task=task)  # type: ignore[arg-type]
    target = next(iter(source.splits.values()))[0].target
    assert isinstance(target, BoxTarget)
    return target


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{split}/{name}.png", "labels/{split}/{name}.txt"),
        ("{split}/images/{name}.png", "{split}/labels/{name}.txt"),
        ("{split}/{name}.png", "{split}/{name}.txt"),
    ],
)
@pytest.mark.parametrize("has_yaml", [True, False])
def test_layouts(tmp_path: Path, image: str, label: str, has_yaml: bool) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        place(tmp_path, image.format(split=split, name=name), label.format(split=split, name=name))
    if has_yaml:
        folder = image.rpartition("/")[0]
        lines = [f"{split}: ../{folder.format(split=split)}" for split in ("train", "val")]
        (tmp_path / "data.yaml").write_text("\n".join([*lines, "nc: 2", "names: ['a cat', dog]"]))
    else:
        (tmp_path / "classes.txt").write_text("a cat\ndog\n")
    source = open_data(tmp_path)
    assert source.task == "detection"
    assert source.classes.names == ("a cat", "dog")
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 2, "val": 1}
    target = source.split("val")[0].target
    assert isinstance(target, BoxTarget)
    torch.testing.assert_close(target.boxes, torch.tensor([[16.0, 6.0, 24.0, 14.0]]))


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("train/{name}.png", "train/{name}.txt"),
        ("train/images/{name}.png", "train/labels/{name}.txt"),
        ("images/{name}.png", "labels/{name}.txt"),
    ],
)
@pytest.mark.parametrize("has_yaml", [True, False])
def test_a_folder_above_the_data_may_be_called_images(tmp_path: Path, image: str, label: str, has_yaml: bool) -> None:
    root = tmp_path / "Images" / "mine"
    for name in "ab":
        place(root, image.format(name=name), label.format(name=name))
    if has_yaml:
        folder = image.rpartition("/")[0]
        (root / "data.yaml").write_text(f"train: {folder}\nval: {folder}\nnames: [cat]")
    source = open_data(root)
    assert all(image.objects for data in source.splits.values() for image in data.images)  # type: ignore[attr-defined]


def test_pictures_listed_from_elsewhere(tmp_path: Path) -> None:
    place(tmp_path / "other", "images/a.png", "labels/a.txt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "list.txt").write_text(str(tmp_path / "other" / "images" / "a.png"))
    (tmp_path / "mine" / "data.yaml").write_text("val: list.txt\nnames: [cat]")
    assert len(only(tmp_path / "mine").boxes) == 1


def test_pictures_of_which_none_has_a_text(tmp_path: Path) -> None:
    place(tmp_path, "pictures/a.png", None)
    place(tmp_path, "pictures/b.png", None)
    (tmp_path / "data.yaml").write_text("val: pictures\nnames: [cat]")
    with pytest.raises(DataError, match=r"data\.yaml: none of the 2 pictures has a text file; expected .*a\.txt for "):
        open_data(tmp_path)


def test_polygons_are_masks(tmp_path: Path) -> None:
    place(tmp_path, "images/a.png", "labels/a.txt", "1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert open_data(tmp_path).task == "instance"
    target = only(tmp_path, "instance")
    assert target.labels.tolist() == [1]
    assert target.boxes.tolist() == [[10, 5, 20, 15]]
    wanted = torch.zeros(1, 20, 40, dtype=torch.bool)
    wanted[0, 5:15, 10:20] = True
    assert target.masks is not None
    assert torch.equal(target.masks.dense(), wanted)


def test_names_of_yaml_as_numbers_and_a_list_of_pictures(tmp_path: Path) -> None:
    place(tmp_path, "images/a.png", "labels/a.txt", "1 0.5 0.5 0.2 0.4\n")
    (tmp_path / "train.txt").write_text("images/a.png\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: train.txt\nnames:\n  0: cat\n  1: dog\n")
    source = open_data(tmp_path / "data.yaml")
    assert source.classes.names == ("cat", "dog")
    assert source.format == "YOLO text, data.yaml with splits train"
    assert only(tmp_path).labels.tolist() == [1]


def test_a_picture_without_text_is_background(tmp_path: Path) -> None:
    place(tmp_path, "images/train/a.png", "labels/train/a.txt")
    place(tmp_path, "images/train/b.png", "labels/train/b.txt", "")
    place(tmp_path, "images/train/c.png", None)
    place(tmp_path, "images/val/d.png", "labels/val/d.txt")
    source = open_data(tmp_path)
    assert [len(image.objects) for image in source.split("train").images] == [1, 0, 0]  # type: ignore[attr-defined]
    assert "1 picture without a text file: background only: c.png" in source.notes
    assert any("they are called class_0" in note for note in source.notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 20 10 8 8\n0 .5 .5 .1 .1\n", r"a.txt:1: 1 of 2 lines have numbers of pixels"),
        ("0 .5 .5 .1 .1\n5 .5 .5 .1 .1\n", r"a.txt:2: 1 object has a class that is not listed, the first is 5"),
        ("0 .5 .5 .1 .1 .9\n", "remove the sixth number"),
        ("0 .5 .5 .1\n0 .5 .5 .1 .1\n", "the line has 4 numbers"),
        ("0 .5 .5 .1 .1\ncat .5 .5 .1 .1\n", "a.txt:2: the line is 'cat .5 .5 .1 .1'"),
        ("0 .1 .1 .2 .2 .3 .3 .4\n", "the line has 8 numbers"),
    ],
)
def test_bad_lines(tmp_path: Path, text: str, words: str) -> None:
    place(tmp_path, "images/a.png", "labels/a.txt", text)
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images\nnames: [cat, cat]\n", "class names repeat: cat"),
        ("train: images\nnames: {0: cat, 2: dog}\n", "the ids of the classes are 0, 2"),
        ("train: nowhere\nnames: [cat]\n", "there is no nowhere"),
        ("train: images\nnames: [cat]\nkpt_shape: [17, 3]\n", "the data has key points"),
        ("train: [images\nnames: [cat]\n", "this is not YAML"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, words: str) -> None:
    place(tmp_path, "images/a.png", "labels/a.txt")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)


def test_corners_stored_as_centres_are_named_with_evidence(tmp_path: Path) -> None:
    place(tmp_path, "images/a.png", "labels/a.txt", "".join(f"0 0.1 0.1 0.9{i} 0.95\n" for i in range(4)))
    with pytest.raises(DataError, match=r"4 of 4 boxes have an edge outside .* read as corners"):
        open_data(tmp_path)
