"""Folders and tables of pictures with masks: layouts, class tables, and everything that may be wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.data import mapscan
from saccade.data.source import DataSource, open_data
from saccade.errors import DataError


def picture(path: Path, size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), len(path.name), dtype=np.uint8)).save(path)


def mask(path: Path, values: Any = (0, 1), dtype: Any = np.uint8, size: tuple[int, int] = (4, 6)) -> None:
    """A mask whose pixels repeat the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, dtype=dtype), size)).save(path)


def tree(root: Path, pairs: Mapping[str, str], classes: Any = ("sky", "road")) -> Path:
    """Files: picture -> mask."""
    for image, label_map in pairs.items():
        picture(root / image)
        mask(root / label_map)
    if classes is not None:
        (root / "classes.json").write_text(json.dumps(classes))
    return root


def names(source: DataSource) -> dict[str, list[str]]:
    return {split: sorted(Path(data[i].source).name for i in range(len(data))) for split, data in source.splits.items()}


LAYOUTS = {
    "splits below": {"images/train/a.jpg": "masks/train/a.png", "images/val/b.jpg": "masks/val/b.png"},
    "splits above": {"train/images/a.jpg": "train/labels/a.png", "valid/images/b.jpg": "valid/labels/b.png"},
    "masks not split": {"images/train/a.jpg": "masks/a.png", "images/val/b.jpg": "masks/b.png"},
    "splits beside": {"train/a.png": "train_labels/a_L.png", "val/b.png": "val_labels/b_L.png"},
    "camvid of SegNet": {"train/a.png": "trainannot/a.png", "val/b.png": "valannot/b.png"},
    "in one folder": {"train/a.jpg": "train/a_mask.png", "val/b.jpg": "val/b_mask.png"},
    "deeper folders": {"imgs/train/x/a.jpg": "gt/train/x/a_gt.png", "imgs/val/x/b.jpg": "gt/val/x/b_gt.png"},
    "cityscapes": {
        "leftImg8bit/train/ulm/a_leftImg8bit.png": "gtFine/train/ulm/a_gtFine_labelIds.png",
        "leftImg8bit/val/ulm/b_leftImg8bit.png": "gtFine/val/ulm/b_gtFine_labelIds.png",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_with_splits(tmp_path: Path, layout: str) -> None:
    source = open_data(tree(tmp_path, LAYOUTS[layout]))
    found = names(source)
    assert list(found) == ["train", "val"]
    assert [name[0] for split in found.values() for name in split] == ["a", "b"]
    assert source.task == "semantic"
    assert source.classes.names == ("sky", "road")
    assert source.notes == []
    assert source.split("val")[0].target.labels.tolist() == np.resize([0, 1], (4, 6)).tolist()


@pytest.mark.parametrize(
    ("image", "label_map"),
    [("images/{}.jpg", "SegmentationClass/{}.png"), ("{}.jpg", "{}_seg.png"), ("image/{}_img.png", "mask/{}-mask.png")],
)
def test_layouts_without_splits_are_split_by_name(tmp_path: Path, image: str, label_map: str) -> None:
    letters = "abcdefghij"
    source = open_data(tree(tmp_path, {image.format(x): label_map.format(x) for x in letters}))
    found = names(source)
    assert {split: len(files) for split, files in found.items()} == {"train": 8, "val": 2}
    assert "".join(sorted(name[0] for files in found.values() for name in files)) == letters
    assert names(open_data(tmp_path)) == found
    assert "20% of the pictures" in source.notes[0]


def test_a_table_of_pairs(tmp_path: Path) -> None:
    tree(tmp_path, {"p/a.jpg": "q/1.png", "p/b.jpg": "q/2.png", "p/c.jpg": "q/3.png"})
    table = tmp_path / "pairs.csv"
    table.write_text("image;mask;split\np/a.jpg;q/1.png;train\np/b.jpg;q/2.png;validation\np/c.jpg;;train\n")
    for given in (table, tmp_path):
        source = open_data(given)
        assert names(source) == {"train": ["a.jpg"], "val": ["b.jpg"]}
        assert source.notes == ["1 picture without a mask: c.jpg: left out"]
    table.write_text("image,mask,split\np/a.jpg,q/1.png,trian\n")
    with pytest.raises(DataError, match=r"pairs.csv:2: unknown split 'trian'; .*; did you mean 'train'"):
        open_data(table)
    table.write_text("image,mask\np/nowhere.jpg,q/1.png\n")
    with pytest.raises(DataError, match=r"pairs.csv:2: there is no picture .*nowhere.jpg"):
        open_data(table)


def test_files_without_a_partner(tmp_path: Path) -> None:
    tree(tmp_path, {f"images/{x}.jpg": f"masks/{x}.png" for x in "abcde"})
    (tmp_path / "masks/a.png").unlink()
    (tmp_path / "images/b.jpg").unlink()
    source = open_data(tmp_path)
    assert "1 picture without a mask: a.jpg: left out" in source.notes
    assert "1 mask without a picture: b.png: left out" in source.notes
    assert sum(len(data) for data in source.splits.values()) == 3
    with pytest.raises(DataError, match=r"without a mask: a.jpg; 1 mask without a picture: b.png; .*--strict"):
        open_data(tmp_path, strict=True)


def test_no_pair_at_all(tmp_path: Path) -> None:
    tree(tmp_path, {"images/a.jpg": "masks/z.png"})
    with pytest.raises(DataError, match=r"no picture has a mask of its name \(1 picture without a mask: a.jpg; 1 mask"):
        open_data(tmp_path)
    picture(tmp_path / "alone/images/a.jpg")
    with pytest.raises(DataError, match="the folder holds 1 picture but no masks; expected images/ and masks/"):
        open_data(tmp_path / "alone", task="semantic")


def test_two_masks_of_one_picture(tmp_path: Path) -> None:
    tree(tmp_path, {"images/a.jpg": "masks/a_seg.png", "images/b.jpg": "masks/a_mask.png"})
    with pytest.raises(DataError, match=r"a_mask.png and a_seg.png are both masks of a.jpg"):
        open_data(tmp_path)


# --- class tables


@pytest.mark.parametrize(
    ("file", "text", "labels"),
    [
        ("classes.json", '["sky", "road", "car"]', {0: "sky", 1: "road", 2: "car"}),
        ("classes.txt", "sky\nroad\ncar\n", {0: "sky", 1: "road", 2: "car"}),
        ("classes.json", '{"car": 2, "sky": 0, "void": 1}', {0: "sky", 1: None, 2: "car"}),
        ("classes.json", '{"0": "sky", "1": "car", "2": "car"}', {0: "sky", 1: "car", 2: "car"}),
        ("classes.json", '{"sky": 0, "car": "instances"}', {0: "sky", 1: "car", 2: "car"}),
        ("classes.json", '{"unlabeled": 0, "road": 1, "car": 2}', {0: "unlabeled", 1: "road", 2: "car"}),
        ("semantic_classes.json", '{"0": "unlabeled", "1": "road", "2": "car"}', {0: None, 1: "road", 2: "car"}),
    ],
)
def test_tables_of_numbers(tmp_path: Path, file: str, text: str, labels: dict[int, str | None]) -> None:
    picture(tmp_path / "train/images/a.png")
    mask(tmp_path / "train/masks/a.png", [2, 1, 0])
    (tmp_path / file).write_text(text)
    source = open_data(tmp_path)
    read = source.split("train")[0].target.labels[0, :3].tolist()
    assert [None if label == 255 else source.classes[label] for label in read] == [labels[v] for v in (2, 1, 0)]
    assert source.format == f"pictures with masks, splits train, classes of {file}"
    has_ignored = None in labels.values()
    assert [note for note in source.notes if "ignored" in note] == (
        [f"33.3% of the pixels are ignored, as {file} says"] if has_ignored else []
    )


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nroad,128,64,0\nsky,0,0,255\nvoid,0,0,0\n"),
        ("classes.json", '{"road": [128, 64, 0], "sky": [0, 0, 255], "ignore": [0, 0, 0]}'),
        ("classes.json", '{"128,64,0": "road", "0,0,255": "sky", "0,0,0": "ignore"}'),
    ],
)
def test_tables_of_colours(tmp_path: Path, file: str, text: str) -> None:
    picture(tmp_path / "train/images/a.png", (1, 3))
    pixels = np.array([[[0, 0, 255], [128, 64, 0], [0, 0, 0]]], dtype=np.uint8)
    (tmp_path / "train/masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "train/masks/a.png")
    (tmp_path / file).write_text(text)
    source = open_data(tmp_path)
    assert source.classes.names == ("road", "sky")  # in the order of the file
    assert source.split("train")[0].target.labels.tolist() == [[1, 0, 255]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 0, "b": [1, 2, 3]}', "some classes have a colour and some a number"),
        ('{"a": 0, "b": 0}', "0 is given twice, to 'b' too"),
        ('{"a": 0, "b": -1}', "-1 is no value of a mask"),
        ('{"x": "a", "1": "b"}', "'x' is no value of a mask"),
        ('["a", "a"]', "class names repeat: a"),
        ('["a"]', "only one class, 'a'; expected at least two: a background"),
        ("[1, 2]", "no table of classes"),
        ("{", "not JSON"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    tree(tmp_path, {"images/a.png": "masks/a.png"}, None)
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=f"classes.json: .*{words}"):
        open_data(tmp_path)


# --- no table


def test_values_without_a_table_become_classes(tmp_path: Path) -> None:
    tree(tmp_path, {"train/images/a.png": "train/masks/a.png"}, None)
    mask(tmp_path / "train/masks/a.png", [3, 0, 255])
    source = open_data(tmp_path)
    assert source.classes.names == ("class_0", "class_3")
    assert source.split("train")[0].target.labels[0, :3].tolist() == [1, 0, 255]
    assert source.notes == [
        "no class table: the values in the masks are the classes class_0, class_3; 255 is ignored, as is the custom; "
        "name them in classes.json"
    ]


def test_0_and_255_without_a_table_or_with_two_names(tmp_path: Path) -> None:
    tree(tmp_path, {"train/images/a.png": "train/masks/a.png"}, None)
    mask(tmp_path / "train/masks/a.png", [0, 255])
    source = open_data(tmp_path)
    assert source.classes.names == ("background", "foreground")
    assert source.split("train")[0].target.labels[0, :2].tolist() == [0, 1]
    (tmp_path / "classes.txt").write_text("paper\nink\n")
    source = open_data(tmp_path)
    assert source.split("train")[0].target.labels[0, :2].tolist() == [0, 1]
    assert "255 is read as 'ink'" in source.notes[0]


def test_255_is_ignored_and_told(tmp_path: Path) -> None:
    tree(tmp_path, {"train/images/a.png": "train/masks/a.png"})
    mask(tmp_path / "train/masks/a.png", [0, 1, 255])
    source = open_data(tmp_path)
    assert source.notes == ["the value 255 is in no class: ignored, as is the custom (33.3% of the pixels)"]
    assert source.split("train")[0].target.labels[0, :3].tolist() == [0, 1, 255]


def test_colours_without_a_table(tmp_path: Path) -> None:
    picture(tmp_path / "train/images/a.png", (1, 2))
    (tmp_path / "train/masks").mkdir()
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0]]], dtype=np.uint8)).save(tmp_path / "train/masks/a.png")
    source = open_data(tmp_path)
    assert source.classes.names == ("colour_000000", "colour_ff0000")
    assert source.split("train")[0].target.labels.tolist() == [[1, 0]]


def test_16_bit_masks_that_number_their_objects(tmp_path: Path) -> None:
    tree(tmp_path, {"train/images/a.png": "train/labels/a.png", "val/images/b.png": "val/labels/b.png"}, None)
    mask(tmp_path / "train/labels/a.png", [0, 1, 2, 3], np.uint16)
    mask(tmp_path / "val/labels/b.png", [1, 0, 2], np.uint16)
    source = open_data(tmp_path)
    assert source.classes.names == ("background", "object")
    assert source.split("train")[0].target.labels[0, :4].tolist() == [0, 1, 1, 1]
    assert "number the objects of each picture" in source.notes[0]
    (tmp_path / "index.csv").write_text("split,file,nuclei\ntrain,a.png,3\nval,b.png,2\n")
    assert open_data(tmp_path).classes.names == ("background", "nucleus")
    # The same values in 8 bits are classes: nobody can know better.
    mask(tmp_path / "train/labels/a.png", [0, 1, 2, 3])
    mask(tmp_path / "val/labels/b.png", [1, 0, 2])
    assert open_data(tmp_path).classes.names == ("class_0", "class_1", "class_2", "class_3")


# --- what is wrong with masks


def test_every_mask_of_another_size_is_counted(tmp_path: Path) -> None:
    tree(tmp_path, {f"images/{x}.jpg": f"masks/{x}.png" for x in "abc"})
    for x in "ac":
        mask(tmp_path / f"masks/{x}.png", size=(3, 6))
    words = r"a.jpg: the picture has 6x4 pixels but its mask .*a.png 6x3 \(and 1 other mask like it\)"
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)


def test_unknown_values_are_found_when_the_data_is_opened(tmp_path: Path) -> None:
    tree(tmp_path, {f"images/{x}.jpg": f"masks/{x}.png" for x in "abc"})
    mask(tmp_path / "masks/b.png", [0, 1, 2, 0, 0, 0])
    with pytest.raises(
        DataError, match=r"b.png: the mask has the value 2 \(4 pixels\), which stand.*one of 0, 1, 255;"
    ):
        open_data(tmp_path)


def test_a_sample_is_checked_where_there_are_very_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapscan, "MAX_SCANNED", 3)
    monkeypatch.setattr(mapscan, "SAMPLED", 2)
    tree(tmp_path, {f"test/images/{x}.jpg": f"test/masks/{x}.png" for x in "abcde"})
    mask(tmp_path / "test/masks/c.png", [7])
    source = open_data(tmp_path)  # a and e were looked at
    assert source.notes == ["2 of 5 masks were checked; the others will be when they are read"]
    with pytest.raises(DataError, match=r"c.png: the mask has the value 7 \(24 pixels\)"):
        source.split("test")[2]


def test_masks_in_which_nothing_is_labelled(tmp_path: Path) -> None:
    tree(tmp_path, {f"train/images/{x}.jpg": f"train/masks/{x}.png" for x in "abc"})
    mask(tmp_path / "train/masks/b.png", [255])
    assert "1 mask with every pixel ignored: b.png" in open_data(tmp_path).notes
    for x in "ac":
        mask(tmp_path / f"train/masks/{x}.png", [255])
    with pytest.raises(DataError, match=r"all pixels of all 3 masks are ignored: a.png, b.png, c.png"):
        open_data(tmp_path)


def test_empty_classes_are_told(tmp_path: Path) -> None:
    tree(tmp_path, {"train/images/a.jpg": "train/masks/a.png", "val/images/b.jpg": "val/masks/b.png"})
    (tmp_path / "classes.json").write_text('["sky", "road", "car", "cat"]')
    mask(tmp_path / "val/masks/b.png", [0, 2])
    assert open_data(tmp_path).notes == [
        "1 class ('cat') without a pixel in any mask",
        "1 class ('car') without a pixel in train, but not in the other splits",
    ]


@pytest.mark.parametrize("classes", [None, ("sky", "road")])
def test_a_photograph_among_the_masks(tmp_path: Path, classes: Any) -> None:
    tree(tmp_path, {f"images/{x}.jpg": f"masks/{x}.png" for x in "ab"}, classes)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    grey = np.arange(24 * 40, dtype=np.uint16).astype(np.uint8).reshape(24, 40)
    Image.fromarray(grey).save(tmp_path / "masks/b.png")
    picture(tmp_path / "images/b.jpg", (24, 40))
    with pytest.raises(DataError, match=r"b.png: the mask has 25\d different grey levels: it looks like a photograph"):
        open_data(tmp_path)
    Image.fromarray(pixels).save(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"coloured, but its classes are numbers|different colours"):
        open_data(tmp_path)


def test_a_mask_saved_as_jpeg(tmp_path: Path) -> None:
    tree(tmp_path, {"images/a.png": "masks/a.jpg"}, None)
    mask(tmp_path / "masks/a.jpg", [0, 90, 180, 255])
    with pytest.raises(DataError, match=r"a.jpg: the mask is a JPEG, which changes the values; save masks as PNG"):
        open_data(tmp_path)
    (tmp_path / "classes.json").write_text('{"a": 0, "b": 90}')
    with pytest.raises(DataError, match=r"a.jpg: the mask has the values .*; save masks as PNG: JPEG changes"):
        open_data(tmp_path)


def test_damaged_masks_are_left_to_those_who_read_them(tmp_path: Path) -> None:
    tree(tmp_path, {f"train/images/{x}.jpg": f"train/masks/{x}.png" for x in "ab"})
    (tmp_path / "train/masks/a.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"a.png: the mask is damaged"):
        open_data(tmp_path).split("train")[0]
    (tmp_path / "train/masks/b.png").write_bytes(b"")
    with pytest.raises(DataError, match="no mask can be read"):
        open_data(tmp_path)
