"""Pictures with captions: every format, what is told about bad input, and which text a training takes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from saccade.data.attributes import is_held_out
from saccade.data.caption_files import row_of, split_of
from saccade.data.captions import CaptionDataset, CaptionItem, LabelledCaptions
from saccade.data.dataset import Captioned, InMemory, Labelled, subset
from saccade.data.inspect import contact_sheet, inspect
from saccade.data.loader import Loader, LoaderConfig
from saccade.data.source import open_data
from saccade.data.synthetic_captions import COMBINATIONS, draw_captioned
from saccade.data.transforms import Mix
from saccade.errors import ConfigError, DataError, ImageError, InputError
from saccade.ops.image import Preprocess
from saccade.types import Caption, Classes

NAMES = ("a", "b", "c", "d", "e")


def png(value: int, side: int = 6) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in ``images``."""
    (tmp_path / "images").mkdir()
    for value, name in enumerate(NAMES):
        (tmp_path / "images" / f"{name}.png").write_bytes(png(value))
    return tmp_path


def table(folder: Path, text: str) -> Path:
    (folder / "captions.csv").write_text(text, encoding="utf-8")
    return folder


def items(data: object) -> dict[str, CaptionItem]:
    assert isinstance(data, CaptionDataset)
    return {
        item.picture.name.partition(".")[0]: item for item in data.items if not isinstance(item.picture, torch.Tensor)
    }


def test_a_table_with_words_and_categories(folder: Path) -> None:
    rows = ["file,description,category,aliases,tags,split", 'a.png,"a cat, asleep",animal,kitty|house_cat,pet,train']
    rows += [
        "b.png,a dog,animal,,dog,train",
        "c.png,a car,thing,,,train",
        "d.png,a van,thing,,,val",
        "e.png,a bus,thing,,,val",
    ]
    source = open_data(table(folder, "\n".join(rows)))
    assert source.task == "zero_shot"
    assert source.classes.names == ("animal", "thing")
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 3, "val": 2}
    found = items(source.splits["train"])
    assert found["a"].texts == ("a cat, asleep, kitty, house cat, pet, animal",)
    assert found["a"].alternatives == ("a cat, asleep", "kitty", "house cat", "pet", "animal", "kitty, house cat, pet")
    assert found["b"].texts == ("a dog, animal",)  # the tag says nothing new
    assert found["b"].alternatives == ("a dog", "animal")
    train = source.splits["train"]
    assert isinstance(train, Labelled)
    assert train.labels().tolist() == [0, 0, 1]
    sample = train[1]
    assert isinstance(sample.target, Caption)
    assert sample.target.texts == ("a dog, animal",)
    assert sample.image.shape == (3, 6, 6)


def test_several_rows_and_columns_are_several_captions(folder: Path) -> None:
    text = "image\tcaption_1\tcaption_2\na.png\tone\ttwo\na.png\tthree\tone\nb.png\tfour\t\n"
    (folder / "captions.tsv").write_text(text, encoding="utf-8")
    source = open_data(folder / "captions.tsv", task="zero_shot")
    found = {name: item for data in source.splits.values() for name, item in items(data).items()}
    assert found["a"].texts == ("one", "two", "three")
    assert found["b"].texts == ("four",)
    assert any("1 row with an empty caption" in note for note in source.notes)
    assert source.classes.names == ()
    assert not isinstance(source.splits["train"], Labelled)


def test_what_does_not_agree_is_told_and_refused_when_strict(folder: Path) -> None:
    text = "file,caption,split\na.png,one,train\nb.png,two,val\nc.png,,train\nx.png,none,train\n"
    source = open_data(table(folder, text))
    told = "; ".join(source.notes)
    assert "1 caption (the first: x.png" in told
    assert "whose picture does not exist" in told
    assert "1 row with an empty caption" in told
    assert "3 pictures (the first: " in told  # c, whose caption is empty, and d and e, which nobody names
    assert "without a caption" in told
    with pytest.raises(DataError, match="whose picture does not exist"):
        open_data(folder, task="zero_shot", strict=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,caption\nx.png,one\n", r"no pictures with captions: there is 1 caption .* does not exist.*; expected"),
        ("file,caption,split\na.png,one,train\nb.png,two,\n", "the split is empty"),
        ("file,caption,split\na.png,one,tarin\n", "unknown split 'tarin'"),
        ("file,caption\n,one\n", "no picture is named"),
    ],
)
def test_tables_that_are_wrong(folder: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        open_data(table(folder, text), task="zero_shot")


def test_json_json_lines_and_karpathys(folder: Path) -> None:
    whole = [{"file": f"{name}.png", "captions": [f"a {name}", f"the {name}"]} for name in NAMES]
    (folder / "all.json").write_text(json.dumps(whole), encoding="utf-8")
    assert len(open_data(folder / "all.json", task="zero_shot").splits["train"]) == 4
    lines = [
        json.dumps({"file_name": f"images/{name}.png", "text": name, "split": "val" if name == "e" else "train"})
        for name in NAMES
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert items(open_data(folder / "metadata.jsonl").splits["train"])["c"].texts == ("c",)
    said = {name: "val" if name == "e" else "restval" for name in NAMES}
    images = [{"filename": f"{n}.png", "split": said[n], "sentences": [{"raw": f"a  {n}."}]} for n in NAMES]
    (folder / "dataset.json").write_text(json.dumps({"images": images}), encoding="utf-8")
    assert items(open_data(folder / "dataset.json", task="zero_shot").splits["train"])["d"].texts == ("a d.",)
    (folder / "named.json").write_text(json.dumps({"a.png": "an a", "b.png": ["a b", "the b"]}), encoding="utf-8")
    named = open_data(folder / "named.json", task="zero_shot")
    assert {name: item.texts for data in named.splits.values() for name, item in items(data).items()} == {
        "a": ("an a",),
        "b": ("a b", "the b"),
    }
    (folder / "bad.json").write_text('[{"caption": ', encoding="utf-8")
    with pytest.raises(DataError, match="this is no JSON"):
        open_data(folder / "bad.json", task="zero_shot")


def test_coco_captions_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        images = [{"id": value, "file_name": f"{split}{value}.png"} for value in range(3)]
        said = [{"image_id": value % 3, "id": value, "caption": f"caption {value}\n"} for value in range(6)]
        for image in images:
            (tmp_path / f"{split}2017" / str(image["file_name"])).write_bytes(png(1))
        content = json.dumps({"info": {"description": "COCO"}, "images": images, "annotations": said})
        (tmp_path / "annotations" / f"captions_{split}2017.json").write_text(content, encoding="utf-8")
    source = open_data(tmp_path, task="zero_shot")
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 3, "val": 3}
    assert source.splits["val"].items[1].texts == ("caption 1", "caption 4")  # type: ignore[attr-defined]
    assert not source.notes


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


def test_shards_are_read_in_place(tmp_path: Path) -> None:
    first = {"one.png": png(10), "one.txt": b"a first picture\n", "one.json": b'{"caption": "not this", "width": 6}'}
    shard(tmp_path / "train-000.tar", first | {"two.png": png(20), "two.json": b'{"caption": "a second"}'})
    shard(tmp_path / "train-001.tar", {"deep/three.a.png": png(30), "deep/three.txt": b"a third", "four.txt": b"alone"})
    shard(tmp_path / "val-000.tar", {"five.png": png(50), "five.txt": b"a fifth", "six.png": png(60)})
    source = open_data(tmp_path)
    assert source.task == "zero_shot"
    train, val = source.splits["train"], source.splits["val"]
    assert [int(train[index].image[0, 0, 0]) for index in range(3)] == [10, 20, 30]
    texts = [train[index].target.texts for index in range(3)]  # type: ignore[union-attr]
    assert texts == [("a first picture",), ("a second",), ("a third",)]
    assert len(val) == 1
    assert any("1 picture" in note and "six.png" in note and "without a caption" in note for note in source.notes)
    before = train.fingerprint()
    assert open_data(tmp_path).splits["train"].fingerprint() == before
    (tmp_path / "train-000.tar").write_bytes(b"")
    with pytest.raises(ImageError, match="ends in the middle"):
        train[0]


def test_shards_that_cannot_be_read(tmp_path: Path) -> None:
    packed = shard(tmp_path / "a" / "train.tar", {"one.png": png(1), "one.txt": b"one"}, "w:gz")
    with pytest.raises(DataError, match="cannot be read"):
        open_data(packed, task="zero_shot")
    cut = shard(tmp_path / "b" / "train.tar", {"one.txt": b"one", "one.png": png(1, 200)})
    cut.write_bytes(cut.read_bytes()[:1800])
    with pytest.raises(DataError, match="unexpected end"):
        open_data(cut, task="zero_shot")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "one.png").write_bytes(png(1))
    with pytest.raises(DataError, match="1 picture but no captions"):
        open_data(tmp_path / "bare", task="zero_shot")


def test_splits_are_known_by_the_names_of_files() -> None:
    assert split_of("captions_train2017") == "train"
    assert split_of("val-000012") == "val"
    assert split_of("trainee") is None
    assert row_of({"file": "x", "text": [None, "two"]}, "here", None).texts == ("two",)


def test_a_training_takes_one_text_that_depends_on_seed_epoch_and_place_alone(folder: Path) -> None:
    whole = [CaptionItem(folder / "images" / f"{n}.png", (f"{n} whole",), (f"{n} part", f"{n} other")) for n in NAMES]
    data = CaptionDataset(whole, Classes(()), folder)
    assert isinstance(data, Captioned)
    assert [data.chosen(0, draw) for draw in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [
        *["a whole"] * 2,
        *["a part"] * 2,
        *["a other"] * 2,
    ]
    size, config = Preprocess(size=(6, 6)), LoaderConfig(batch_size=2, workers=0)

    def texts(epoch: int, start: int = 0, seed: int = 3) -> list[tuple[str, ...]]:
        loader = Loader(data, size, config, shuffle=True, seed=seed)
        batches = loader.epoch(epoch, start)
        return [t.texts for batch in batches for t in batch.targets if isinstance(t, Caption)]

    assert texts(0) == texts(0)
    assert texts(0)[2:] == texts(0, start=1)
    assert all(len(chosen) == 1 for chosen in texts(0))
    assert {text for epoch in range(20) for (text,) in texts(epoch)} == {t for item in whole for t in item.choices}
    held_out = next(iter(Loader(data, size, config)))
    assert held_out.targets[0].texts == ("a whole",)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="boxes and texts"):
        _ = held_out.labels
    with pytest.raises(ConfigError, match="captions are not mixed"):
        Loader(data, size, config, mix=Mix(mixup=0.5))


def test_texts_that_are_not_usable_leave_with_their_pictures(folder: Path) -> None:
    whole = [CaptionItem(folder / f"{n}.png", (n, f"{n} long"), (f"{n} longer",), label=0) for n in NAMES]
    data = LabelledCaptions(whole, Classes(("letters",)), folder)
    kept = data.keeping(lambda text: "long" not in text and text != "b")
    assert isinstance(kept, LabelledCaptions)
    assert [item.choices for item in kept.items] == [(n,) for n in "acde"]
    part = subset(data, [4, 0])
    assert isinstance(part, LabelledCaptions)
    assert [item.texts[0] for item in part.items] == ["e", "a"]
    assert part.fingerprint() != data.fingerprint()


def test_scenes_keep_combinations_from_training() -> None:
    splits = draw_captioned(120, (24, 24))
    shown = {COMBINATIONS[label] for split in ("train", "val") for label in splits[split].labels().tolist()}
    asked = {COMBINATIONS[label] for label in splits["test"].labels().tolist()}
    assert asked
    assert not shown & asked
    assert all(is_held_out(*name.split()) for name in asked)
    words = {word for item in splits["train"].items for word in item.texts[0].split()}
    assert {word for name in COMBINATIONS for word in name.split()} <= words
    item = splits["test"].items[0]
    assert all(word in item.texts[0] for word in COMBINATIONS[item.label].split())
    loader = Loader(splits["train"], Preprocess(size=(24, 24)), LoaderConfig(batch_size=8), shuffle=True)
    assert isinstance(splits["train"], InMemory)
    batch = next(loader.epoch(0))
    for index, target in zip(batch.indices, batch.targets, strict=True):
        assert isinstance(target, Caption)
        assert target.texts[0] in splits["train"].choices(index)


def test_the_embedded_emoji() -> None:
    source = open_data("emoji", task="zero_shot")
    assert sum(len(data) for data in source.splits.values()) == 693
    assert len(source.splits["val"]) == pytest.approx(693 / 5, abs=2)
    assert len(source.classes) == 9
    licence = source.splits["val"].licence
    assert licence is not None
    assert "CC BY 4.0" in licence


def test_inspection_tells_captions_and_draws_them(folder: Path, tmp_path: Path) -> None:
    rows = ["file,caption,split", *(f"{name}.png,a small picture,test" for name in NAMES)]
    source = open_data(table(folder, "\n".join(rows)), task="zero_shot")
    found = inspect(source)
    assert found.captions["test"] == {"pictures": 5, "texts": 5, "different": 1, "words": (3, 3, 3)}
    assert any("5 of 5 captions of test stand under several pictures" in line for line in found.problems)
    sheet = contact_sheet(source.splits["test"], tmp_path / "sheet.png", columns=3)
    with Image.open(sheet) as drawn:
        assert drawn.width == 6 + 3 * 118


def test_a_caption_needs_words() -> None:
    with pytest.raises(InputError, match="text"):
        Caption(("  ",))


def test_class_folders_stay_class_folders_beside_captions(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for place in range(2):
            (tmp_path / name / f"{place}.png").write_bytes(png(place))
    about = {"task": "classification", "scenes": [{"file": "cat/0.png", "caption": "a cat"}]}
    (tmp_path / "scenes.json").write_text(json.dumps(about), encoding="utf-8")
    assert open_data(tmp_path).task == "classification"
    (tmp_path / "captions.csv").write_text("file,caption\ncat/0.png,a cat\ndog/0.png,a dog\n", encoding="utf-8")
    assert open_data(tmp_path, task="classification").classes.names == ("cat", "dog")
    assert open_data(tmp_path, task="zero_shot").task == "zero_shot"
