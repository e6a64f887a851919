from __future__ import annotations

import gzip
import json
import lzma
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset as TorchSubset
from torchvision.datasets import FakeData, FashionMNIST, ImageFolder

from saccade.data.dataset import ArrayDataset, Dataset, FileDataset, InMemory, Labelled
from saccade.data.embedded import photos
from saccade.data.source import DataSource, as_task, open_data
from saccade.data.synthetic import SyntheticClassification
from saccade.errors import DataError, InputError
from saccade.types import Classes


def names_of(source: DataSource, split: str) -> list[str]:
    return [source.classes[int(label)] for label in source.splits[split].labels()]


# --- class folders


def test_split_folders(make_folders: Any) -> None:
    source = open_data(
        make_folders({"training/cat": 2, "training/dog": 3, "valid/cat": 1, "valid/dog": 1, "test/dog": 1})
    )
    assert source.format == "class folders with splits train, val, test"
    assert source.classes.names == ("cat", "dog")
    assert list(source.splits) == ["train", "val", "test"]
    assert names_of(source, "train") == ["cat", "cat", "dog", "dog", "dog"]
    assert names_of(source, "test") == ["dog"]
    assert source.notes == ["test has no pictures of 1 class: 'cat'; labels stay as they are in train"]
    sample = source.splits["train"][0]
    assert sample.image.shape == (3, 20, 24)
    assert sample.source.endswith("cat/000.png")


def test_flat_folder_is_split_by_name_the_same_every_time(make_folders: Any) -> None:
    root = make_folders({"cat": 10, "dog": 5, "owl": 2})
    source = open_data(root)
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 13, "val": 4}
    assert sorted(names_of(source, "val")) == ["cat", "cat", "dog", "owl"]
    assert any("20%" in note for note in source.notes)
    train = {file.path for file in source.splits["train"].files}
    val = {file.path for file in source.splits["val"].files}
    assert not train & val
    assert len(train | val) == 17
    assert {file.path for file in open_data(root).splits["val"].files} == val
    assert open_data(root).fingerprint() == source.fingerprint()


def test_a_class_called_test_is_a_class(make_folders: Any) -> None:
    assert open_data(make_folders({"test": 5, "control": 5})).classes.names == ("control", "test")


def test_one_split_alone_is_a_split(make_folders: Any) -> None:
    assert list(open_data(make_folders({"test/a": 2, "test/b": 1})).splits) == ["test"]


def test_splits_without_class_folders_are_no_classes(make_folders: Any) -> None:
    with pytest.raises(DataError, match="test and train hold no class folders"):
        open_data(make_folders({"train": 3, "test": 3}))


def test_everything_left_out_is_told(make_folders: Any) -> None:
    root = make_folders({"train/a": 2, "train/b": 2, "train/c": 0, "train": 1, "test": 2, "extra/a": 1})
    (root / "train/a/notes.txt").touch()
    (root / "train/b/photo.heic").touch()
    (root / "train/b/.hidden").touch()
    source = open_data(root)
    assert [len(source.splits[split]) for split in ("train", "val")] == [2, 2]
    assert source.notes == [
        "the folder 'extra' is no split with class folders: left out",
        "the folder 'test' is no split with class folders: left out",
        "train: left out outside of the class folders: 1 picture",
        "train: no pictures in the class folder 'c'",
        "train: left out for their ending (.heic, .txt): 2 files",
        "there is no val split: 2 of the 4 pictures of train (20% of each class, chosen by a hash of the file name) "
        "are held out as val",
    ]
    with pytest.raises(DataError, match="extra"):
        open_data(root, strict=True)


def test_missing_class_never_shifts_labels(make_folders: Any) -> None:
    source = open_data(make_folders({"train/ant": 2, "train/bee": 2, "train/cow": 2, "val/bee": 1, "val/cow": 1}))
    assert names_of(source, "val") == ["bee", "cow"]
    assert source.splits["val"].labels().tolist() == [1, 2]
    assert "val has no pictures of 1 class: 'ant'" in source.notes[0]


def test_renamed_class_is_reported_with_the_nearest_name(make_folders: Any) -> None:
    root = make_folders({"train/sneaker": 2, "train/sandal": 2, "val/Sneakers": 2, "val/sandal": 1})
    source = open_data(root)
    assert names_of(source, "val") == ["sandal"]
    assert "'Sneakers' that train has not (did you mean 'sneaker'?): 2 pictures left out" in source.notes[0]
    with pytest.raises(DataError, match="Sneakers"):
        open_data(root, strict=True)


def test_extra_class_is_reported(make_folders: Any) -> None:
    source = open_data(make_folders({"train/b": 2, "train/c": 2, "val/a": 3, "val/b": 1, "val/c": 1}))
    assert source.classes.names == ("b", "c")
    assert names_of(source, "val") == ["b", "c"]
    assert "'a' that train has not" in source.notes[0]


def test_validation_alone_names_the_classes(make_folders: Any) -> None:
    source = open_data(make_folders({"val/a": 1, "val/b": 1, "test/b": 1, "test/a": 1}))
    assert list(source.splits) == ["val", "test"]
    assert (source.held_out, source.scored) == ("val", "test")
    assert not source.is_split_by_hash
    with pytest.raises(DataError, match="one of: val, test"):
        source.split("train")


def test_all_is_every_split_one_after_the_other(make_folders: Any) -> None:
    source = open_data(make_folders({"a": 10, "b": 7}))
    assert source.is_split_by_hash
    whole = source.split("all")
    assert (len(whole), whole.classes, whole.task) == (17, source.classes, "classification")
    assert isinstance(whole, Labelled)
    assert sorted(whole.labels().tolist()) == [0] * 10 + [1] * 7
    samples = [whole[index] for index in range(17)]
    assert [int(sample.target.label) for sample in samples] == whole.labels().tolist()  # type: ignore[union-attr]
    assert len({sample.source for sample in samples}) == 17
    assert whole[-1].source == source.splits["val"][-1].source
    assert whole.fingerprint() != source.splits["train"].fingerprint()
    with pytest.raises(IndexError):
        _ = whole[17]


def test_all_captions_stay_captions() -> None:
    source = open_data("emoji")
    whole = source.split("all")
    assert type(whole) is type(source.splits["train"])
    assert len(whole) == sum(len(part) for part in source.splits.values())


@pytest.mark.parametrize(
    ("name", "task"), [("segmentation", "semantic"), ("captions", "zero_shot"), ("semantic", "semantic"), (None, None)]
)
def test_tasks_have_the_names_that_people_use(name: str | None, task: str | None) -> None:
    assert as_task(name) == task


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, "the folder is empty"),
        ({"cat": 0}, "holds no pictures"),
        ({"cat": 3}, "only one class, 'cat'"),
        ({"train/cat": 3, "val/cat": 1}, "only one class, 'cat'"),
        ({"train/cat": 0, "val/cat": 0}, "holds no pictures"),
        ({"images": 2, "masks": 2}, "looks like a photograph"),
        ({"images": 2, "annotations": 0}, "boxes, masks or captions"),
        ({"": 3}, "3 pictures but no class folders"),
    ],
)
def test_folders_without_a_task(make_folders: Any, tmp_path: Path, counts: dict[str, int], words: str) -> None:
    root = make_folders(counts)
    root.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=words):
        open_data(root)


def test_missing_path_and_near_name() -> None:
    for nothing in ("no/such/folder", "", " "):
        with pytest.raises(DataError, match="no such folder or file"):
            open_data(nothing)
    with pytest.raises(DataError, match="did you mean 'fashion_mnist'"):
        open_data("fashion-mnist")


def test_files_that_are_no_data(tmp_path: Path) -> None:
    for name, words in (("a.jpg", "one picture"), ("train-images-idx3-ubyte", "one file of"), ("a.zip", "no data set")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=words):
            open_data(tmp_path / name)


def test_two_folders_of_one_split(make_folders: Any) -> None:
    with pytest.raises(DataError, match="val and valid are both the val split"):
        open_data(make_folders({"train/a": 1, "train/b": 1, "val/a": 1, "valid/b": 1}))


def test_fingerprint_follows_names_sizes_and_labels(make_folders: Any) -> None:
    root = make_folders({"train/a": 2, "train/b": 2})
    prints = [open_data(root).fingerprint()["train"]]
    (root / "train/a/000.png").rename(root / "train/a/x.png")
    prints.append(open_data(root).fingerprint()["train"])
    (root / "train/a/x.png").rename(root / "train/b/x.png")
    prints.append(open_data(root).fingerprint()["train"])
    (root / "train/b/x.png").write_bytes(b"longer than before" * 999)
    prints.append(open_data(root).fingerprint()["train"])
    assert len(set(prints)) == 4


# --- idx files


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(root: Path, num_train: int = 6, num_test: int = 4, pack: str = "", test: str = "t10k") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    packers = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
    for split, count in (("train", num_train), (test, num_test)):
        images = np.arange(count * 12).reshape(count, 4, 3) % 256
        labels = np.arange(count) % 3
        (root / f"{split}-images-idx3-ubyte{pack}").write_bytes(packers[pack](idx_bytes(images)))
        (root / f"{split}-labels-idx1-ubyte{pack}").write_bytes(packers[pack](idx_bytes(labels)))
    return root


@pytest.mark.parametrize("pack", ["", ".gz", ".xz"])
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_idx(tmp_path: Path, pack: str, test: str) -> None:
    source = open_data(write_idx(tmp_path, pack=pack, test=test))
    assert source.format == "idx files with splits train, test"
    assert source.classes.names == ("0", "1", "2")
    assert "classes.json" in source.notes[0]
    sample = source.splits["train"][1]
    assert sample.image[2].tolist() == np.arange(12, 24).reshape(4, 3).tolist()
    assert int(sample.target.label) == 1


def test_idx_in_the_folder_torchvision_makes_with_names(tmp_path: Path) -> None:
    raw = write_idx(tmp_path / "FashionMNIST" / "raw")
    (raw / "classes.json").write_text('["shirt", "shoe", "bag"]')
    assert open_data(tmp_path).classes.names == ("shirt", "shoe", "bag")
    assert open_data(tmp_path).notes == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-5], r"train-images.*67 of 72 bytes"),
        (lambda data: data + b"\0", "more of 72 bytes"),
        (lambda data: data[:9], "inside its header"),
        (lambda data: b"", "not an idx file"),
        (lambda data: b"PK" + data[2:], "not an idx file"),
        (lambda data: data[:2] + b"\x0d" + data[3:], "0x0d"),
        (lambda data: data[:4] + b"\xff" * 12, "promises"),
    ],
)
def test_damaged_idx(tmp_path: Path, damage: Any, words: str) -> None:
    path = write_idx(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)


@pytest.mark.parametrize("pack", [".gz", ".xz"])
def test_truncated_packed_idx(tmp_path: Path, pack: str) -> None:
    path = write_idx(tmp_path, pack=pack) / f"train-labels-idx1-ubyte{pack}"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train-labels.*damaged or cut off"):
        open_data(tmp_path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="damaged or cut off"):
        open_data(tmp_path)


def test_idx_labels_outside_the_classes_or_missing(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "classes.json").write_text('["a", "b"]')
    with pytest.raises(DataError, match="label 2; expected 0 to 1"):
        open_data(tmp_path)
    (tmp_path / "classes.json").write_text('{"a": 0}')
    with pytest.raises(DataError, match="not a list of names"):
        open_data(tmp_path)
    (tmp_path / "classes.json").unlink()
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="the labels of train are missing"):
        open_data(tmp_path)


def test_idx_counts_must_agree(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5)))
    with pytest.raises(DataError, match="6 images but 5 labels"):
        open_data(tmp_path)


# --- tables


def write_table(root: Path, text: str, name: str = "data.csv") -> Path:
    for index in range(6):
        picture = root / "pictures" / f"{index}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (index, 0, 0)).save(picture)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def test_table_with_split_column(tmp_path: Path) -> None:
    rows = [
        "pictures/0.png,cat,train",
        "pictures/1.png,dog,train",
        "pictures/2.png,cat,validation",
        "pictures/3.png,dog,val",
    ]
    path = write_table(tmp_path, "path,label,split\n" + "\n".join(rows))
    for place in (path, tmp_path):
        source = open_data(place)
        assert source.format == "CSV of path,label with splits train, val"
        assert names_of(source, "val") == ["cat", "dog"]
        assert source.splits["val"][1].image[0, 0, 0] == 3
        assert source.notes == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_table_without_splits_other_headers_and_a_byte_order_mark(tmp_path: Path, delimiter: str) -> None:
    lines = [f"Filename{delimiter}Class"] + [f"pictures/{i}.png{delimiter}{'ab'[i % 2]}" for i in range(6)]
    source = open_data(write_table(tmp_path, "\ufeff" + "\n".join(lines)))
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 4, "val": 2}
    assert source.classes.names == ("a", "b")


def test_one_table_per_split(tmp_path: Path) -> None:
    write_table(tmp_path, "path,label\npictures/0.png,a\npictures/1.png,b\n", "train.csv")
    write_table(tmp_path, "path,label\npictures/2.png,b\n", "val.csv")
    source = open_data(tmp_path)
    assert source.splits["val"].labels().tolist() == [1]


def test_table_reports_missing_files(tmp_path: Path) -> None:
    text = "path,label\npictures/0.png,a\npictures/1.png,b\npictures/2.png,a\npictures/3.png,b\nno.png,a\n"
    path = write_table(tmp_path, text)
    assert "1 of 5 files do not exist" in open_data(path).notes[0]
    assert "data.csv:6" in open_data(path).notes[0]
    with pytest.raises(DataError, match=r"no\.png"):
        open_data(path, strict=True)


def test_listed_classes_make_numbers_of_labels(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,label\npictures/0.png,1\npictures/1.png,0\npictures/2.png,1\npictures/3.png,0\n")
    (tmp_path / "classes.json").write_text(json.dumps(["zebra", "ant"]))
    source = open_data(path)
    assert source.classes.names == ("zebra", "ant")
    truth = {"0.png": "ant", "1.png": "zebra", "2.png": "ant", "3.png": "zebra"}
    for data in source.splits.values():
        assert all(source.classes[label] == truth[file.name] for file, label in data.files)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("path,label\npictures/0.png,2\n", "data.csv:2: the label is 2; expected 0 to 1"),
        ("path,label\npictures/0.png,-1\n", "the label is -1"),
        ("path,label\npictures/0.png,zebr\n", "did you mean 'zebra'"),
        ("path,label\npictures/0.png,\n", "data.csv:2: the label is empty"),
        ("path,label\n,zebra\n", "data.csv:2: the path is empty"),
        ("name,kind\npictures/0.png,a\n", "the columns are name, kind; expected path and label"),
        ("", "the columns are nothing"),
        ("path,label\n", "no labelled pictures"),
        ("path,label,split\npictures/0.png,ant,trian\n", "did you mean 'train'"),
        ("path,label\nno.png,ant\n", "1 of 1 files do not exist"),
    ],
)
def test_bad_tables(tmp_path: Path, rows: str, words: str) -> None:
    path = write_table(tmp_path, rows)
    (tmp_path / "classes.txt").write_text("zebra\nant\n")
    with pytest.raises(DataError, match=words):
        open_data(path)


def test_one_class_table_and_wrong_encoding(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,label\npictures/0.png,a\npictures/1.png,a\n")
    with pytest.raises(DataError, match="only one class"):
        open_data(path)
    path.write_bytes(b"path,label\nx\xff.png,a\n")
    with pytest.raises(DataError, match="UTF-8"):
        open_data(path)


# --- embedded


def test_embedded_fashion_mnist() -> None:
    source = open_data("fashion_mnist")
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 10_000, "test": 2_500}
    assert source.classes.names[0] == "T-shirt/top"
    assert source.classes.names[9] == "Ankle boot"
    for split, each in (("train", 1000), ("test", 250)):
        assert torch.bincount(source.splits[split].labels()).tolist() == [each] * 10
    licence = source.splits["train"].licence
    assert licence is not None
    assert "MIT" in licence
    assert source.splits["train"][0].image.shape == (3, 28, 28)
    assert source.notes == []


def test_photographs_ship_with_their_sources() -> None:
    with photos() as paths:
        assert len(paths) == 8
        told = (paths[0].parent / "SOURCE.md").read_text() + (paths[0].parent / "LICENSE").read_text()
        for path in paths:
            assert path.stat().st_size <= 60_000
            assert told.count(path.name) == 2


# --- objects


class Pairs:
    """The least a data set object can be."""

    def __init__(self, classes: list[str], labels: list[int], picture: Any = None) -> None:
        self.classes = classes
        self.labels = labels
        self.picture = Image.new("RGB", (5, 4)) if picture is None else picture

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.picture, self.labels[index]


def test_torchvision_image_folder_keeps_its_files(make_folders: Any) -> None:
    folder = ImageFolder(str(make_folders({"cat": 2, "dog": 2})))
    source = open_data({"train": folder, "val": folder})
    assert isinstance(source.splits["train"], FileDataset)
    assert source.classes.names == ("cat", "dog")
    assert source.format == "torchvision data set"


def test_torchvision_mnist_goes_by_its_array(tmp_path: Path) -> None:
    write_idx(tmp_path / "FashionMNIST" / "raw", num_train=20)
    fashion = FashionMNIST(str(tmp_path), train=True)
    source = open_data(fashion)
    assert isinstance(source.splits["train"], ArrayDataset)
    assert isinstance(source.splits["train"], InMemory)
    assert source.classes.names[9] == "Ankle boot"
    assert torch.equal(source.splits["train"][3].image[0], fashion.data[3])
    half = open_data(TorchSubset(fashion, [4, 2]))
    assert torch.equal(half.splits["train"][0].image[0], fashion.data[4])


def test_objects_without_names_are_told_the_remedy() -> None:
    with pytest.raises(DataError, match="set its attribute `classes`"):
        open_data(FakeData(4, (3, 8, 8), 2))
    with pytest.raises(DataError, match="list is no data set"):
        open_data([1, 2])
    with pytest.raises(DataError, match="the splits are missing"):
        open_data({})
    with pytest.raises(DataError, match="the splits are holdout; expected train, val, test"):
        open_data({"holdout": Pairs(["a", "b"], [0, 1])})


def test_objects_are_joined_by_name() -> None:
    source = open_data({"train": Pairs(["a", "b", "c"], [0, 1, 2]), "val": Pairs(["c", "a"], [0, 1, 0])})
    assert source.classes.names == ("a", "b", "c")
    assert source.splits["val"].labels().tolist() == [2, 0, 2]
    assert int(source.splits["val"][0].target.label) == 2
    assert "val has no pictures of 1 class: 'b'" in source.notes[0]


def test_other_splits_of_objects_are_told() -> None:
    pairs = Pairs(["a", "b"], [0, 1])
    assert open_data({"train": pairs, "unsupervised": pairs}).notes == ["the split 'unsupervised' is left out"]
    with pytest.raises(DataError, match="a second val split, 'validation'"):
        open_data({"val": pairs, "validation": pairs})


def test_arrays_are_joined_by_name() -> None:
    images = torch.zeros(2, 4, 4, dtype=torch.uint8)
    train = ArrayDataset(images, torch.tensor([0, 1]), Classes(("a", "b")), "one")
    val = ArrayDataset(images, torch.tensor([0, 1]), Classes(("b", "a")), "two")
    assert open_data({"train": train, "val": val}).splits["val"].labels().tolist() == [1, 0]


def test_labels_of_objects_are_checked() -> None:
    source = open_data(Pairs(["a", "b"], [0, 2]))
    with pytest.raises(DataError, match="label 2; expected 0 to 1"):
        source.splits["train"].labels()
    with pytest.raises(DataError, match="label 2"):
        source.splits["train"][1]
    with pytest.raises(DataError, match="one integer"):
        open_data(Pairs(["a", "b"], [0, 1.5])).splits["train"][1]  # type: ignore[list-item]
    with pytest.raises(DataError, match="only one class"):
        open_data(Pairs(["a"], [0]))


def test_a_transform_that_normalises_is_named() -> None:
    source = open_data(Pairs(["a", "b"], [0, 1], torch.randn(3, 8, 9) * 3))
    with pytest.raises(InputError, match="open the data set without its transform"):
        source.splits["train"][0]


class Image_:  # noqa: N801
    """Stands for the Image feature of Hugging Face, which is known by the name of its class."""


Image_.__name__ = "Image"


class ClassLabel:
    def __init__(self, names: list[str]) -> None:
        self.names = names


class Columns:
    """What a Hugging Face data set offers."""

    def __init__(self, features: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.features = features
        self.column_names = list(features)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


def test_hugging_face_columns(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), (9, 8, 7)).save(tmp_path / "a.png")
    features = {"id": object(), "img": Image_(), "fine": ClassLabel(["x", "y"])}
    undecoded = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    rows = [{"id": 0, "img": Image.new("L", (5, 4)), "fine": 1}, {"id": 1, "img": undecoded, "fine": 0}]
    source = open_data({"train": Columns(features, rows), "validation": Columns(features, rows[:1])})
    assert source.format == "Hugging Face data set"
    assert list(source.splits) == ["train", "val"]
    assert source.splits["train"].labels().tolist() == [1, 0]
    assert source.splits["train"][1].image[:, 0, 0].tolist() == [9, 8, 7]
    assert isinstance(source.splits["train"], Dataset)


def test_hugging_face_texts_become_classes() -> None:
    rows = [{"image": Image.new("L", (5, 4)), "label": name} for name in ("dog", "cat", "dog")]
    source = open_data(Columns({"image": Image_(), "label": object()}, rows))
    assert source.classes.names == ("cat", "dog")
    assert source.splits["train"].labels().tolist() == [1, 0, 1]


def test_hugging_face_without_images_or_labels() -> None:
    with pytest.raises(DataError, match="no column holds images"):
        open_data(Columns({"text": object()}, []))
    with pytest.raises(DataError, match="no column holds labels"):
        open_data(Columns({"image": Image_()}, []))


def test_our_own_data_sets_pass_through() -> None:
    scenes = SyntheticClassification(6)
    assert open_data(scenes).splits["train"] is scenes
    assert open_data(open_data(scenes)).classes is scenes.classes


# --- pixels and tasks


def test_the_embedded_nuclei() -> None:
    source = open_data("nuclei")
    assert source.task == "semantic"
    assert source.classes.names == ("background", "nucleus")
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 72, "val": 24}
    assert source.notes == []
    for split, data in source.splits.items():
        assert data.licence == "CC0 1.0"
        for sample in data:
            assert sample.image.shape == (3, 128, 128)
            assert sample.target.labels.unique().tolist() == [0, 1]  # no crop without a nucleus
            assert sample.source.startswith(f"nuclei/{split}/")
    names = {
        split: {data[i].source.rpartition("/")[2] for i in range(len(data))} for split, data in source.splits.items()
    }
    assert not names["train"] & names["val"]


def test_the_fingerprint_of_the_nuclei_does_not_tell_where_they_are(tmp_path: Path) -> None:
    source = open_data("nuclei")
    root = source.splits["train"].root
    shutil.copytree(root, tmp_path / "elsewhere")
    assert open_data(tmp_path / "elsewhere").fingerprint() == source.fingerprint()


def test_data_of_another_task_than_the_one_wanted(make_folders: Any, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="nuclei: this is embedded data set nuclei: data for the task semantic; expected one"
    ):
        open_data("nuclei", task="classification")
    with pytest.raises(DataError, match="data for the task classification; expected a class for every pixel"):
        open_data("fashion_mnist", task="semantic")
    with pytest.raises(DataError, match="data for the task classification"):
        open_data(open_data("fashion_mnist"), task="semantic")
    folders = make_folders({"train/cat": 2, "train/dog": 2})
    assert open_data(folders).task == open_data(folders, task="classification").task == "classification"
    with pytest.raises(
        DataError, match=r"the folder holds 4 pictures but no masks; .* choose a model for classification"
    ):
        open_data(folders, task="semantic")
    masks = make_folders({"images": 1, "masks": 1})
    with pytest.raises(DataError, match="this is pictures with masks: data for the task semantic"):
        open_data(masks, task="classification")


def test_a_folder_that_can_be_read_in_two_ways(make_folders: Any) -> None:
    root = make_folders({"images": 2})
    (root / "masks").mkdir()
    for name in ("000", "001"):
        Image.fromarray(np.array([[0] * 24] * 10 + [[1] * 24] * 10, dtype=np.uint8)).save(root / f"masks/{name}.png")
    (root / "table.csv").write_text("path,label\nimages/000.png,cat\nimages/001.png,dog\n")
    assert open_data(root).task == open_data(root, task="semantic").task == "semantic"
    assert open_data(root, task="classification").classes.names == ("cat", "dog")
    assert "the folder can be read as a table too, for classification" in open_data(root).notes


def test_splits_of_label_maps_given_as_objects() -> None:
    parts = open_data("nuclei").splits
    source = open_data({"train": parts["train"], "validation": parts["val"]}, task="semantic")
    assert list(source.splits) == ["train", "val"]
    assert source.fingerprint() == open_data("nuclei").fingerprint()
