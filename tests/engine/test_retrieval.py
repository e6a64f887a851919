"""Retrieval: exact order, an index that is made once and refreshed only where files changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

import saccade
from saccade.engine import retrieval, text_cache
from saccade.engine.retrieval import Entry, PictureIndex, embed_query, index_path, list_pictures, open_index
from saccade.errors import ConfigError, DataError, ImageError, InputError
from saccade.opening import AnyModel

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "inner").mkdir(parents=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 16), colour).save(root / "inner" / f"{name}.png")
    Image.new("RGB", (20, 16), COLOURS["red"]).save(root / "a red one.png")
    return root


@pytest.fixture
def model() -> AnyModel:
    torch.manual_seed(0)
    return saccade.create("vit_average_test")


def index_of(vectors: Tensor) -> PictureIndex:
    entries = tuple(Entry(f"{number}.png", 1, 1) for number in range(len(vectors)))
    return PictureIndex(Path("pictures"), "digest", entries, vectors)


def test_the_order_is_that_of_the_products() -> None:
    vectors = torch.eye(4)[[2, 0, 1, 0]]
    query = torch.tensor([[0.8, 0.6, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    first, second = index_of(vectors).search(query, top=3)
    assert [(found.path.name, found.score) for found in first] == [
        ("1.png", pytest.approx(0.8)),
        ("3.png", pytest.approx(0.8)),
        ("2.png", pytest.approx(0.6)),
    ]
    # All are equally far: the order of the names decides.
    assert [found.path.name for found in second] == ["0.png", "1.png", "2.png"]


def test_more_are_asked_for_than_there_are() -> None:
    assert len(index_of(torch.eye(3)).search(torch.eye(3)[:1], top=50)[0]) == 3


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected \[Q, 3\]"):
        index_of(torch.eye(3)).search(torch.ones(1, 4))
    with pytest.raises(InputError, match="top is 0"):
        index_of(torch.eye(3)).search(torch.eye(3), top=0)


def test_a_picture_finds_its_like_first(folder: Path, model: AnyModel) -> None:
    found = saccade.search(model, folder, folder / "inner" / "red.png", top=4)
    assert {one.path.name for one in found[:2]} == {"a red one.png", "red.png"}
    assert [one.score for one in found[:2]] == pytest.approx([1.0, 1.0])
    assert found[2].score < 0.9999


def test_only_what_changed_is_embedded_again(folder: Path, model: AnyModel) -> None:
    assert open_index(model, folder)[0].num_embedded == 4
    assert open_index(model, folder)[0].num_embedded == 0
    Image.new("RGB", (30, 16), COLOURS["green"]).save(folder / "inner" / "red.png")
    (folder / "inner" / "blue.png").unlink()
    Image.new("RGB", (30, 16), COLOURS["blue"]).save(folder / "new.jpg")
    index, notes = open_index(model, folder)
    assert index.num_embedded == 2
    assert notes == ()
    assert [entry.name for entry in index.entries] == ["a red one.png", "inner/green.png", "inner/red.png", "new.jpg"]
    again = PictureIndex.build(model, folder)
    assert torch.allclose(index.vectors, again.vectors, atol=1e-6)


def test_a_file_of_the_same_size_but_a_later_time_is_read_again(folder: Path, model: AnyModel) -> None:
    open_index(model, folder)
    path = folder / "a red one.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert open_index(model, folder)[0].num_embedded == 1


def test_another_model_has_another_index(folder: Path, model: AnyModel) -> None:
    open_index(model, folder)
    other = saccade.create("vit_average_test")
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    assert open_index(other, folder)[0].num_embedded == 4
    assert len(list(folder.glob("saccade-index-*"))) == 2


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 0.0), ("float16", 1e-3)])
def test_the_file_gives_back_what_was_written(
    folder: Path, model: AnyModel, tmp_path: Path, dtype: str, gap: float
) -> None:
    index = PictureIndex.build(model, folder)
    back = PictureIndex.load(index.save(tmp_path / "index.safetensors", dtype=dtype), folder)  # type: ignore[arg-type]
    assert back.entries == index.entries
    assert back.digest == index.digest
    assert float((back.vectors - index.vectors).abs().max()) <= gap


def test_a_damaged_index_is_made_anew_and_told(folder: Path, model: AnyModel) -> None:
    index, _ = open_index(model, folder)
    index_path(folder, index.digest).write_bytes(b"nothing of the kind")
    again, notes = open_index(model, folder)
    assert again.num_embedded == 4
    assert "cannot be read" in notes[0]
    assert open_index(model, folder)[0].num_embedded == 0


def test_a_folder_that_takes_no_index_is_searched_all_the_same(
    folder: Path, model: AnyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rights do not stop the superuser, who may run this: a folder of that name stops everybody.
    index_path(folder, PictureIndex.build(model, folder).digest).mkdir()
    index, notes = open_index(model, folder)
    assert len(index) == 4
    assert any("was not kept" in note for note in notes)


def test_unreadable_pictures_are_left_out_and_told(folder: Path, model: AnyModel) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    index, notes = open_index(model, folder)
    assert len(index) == 4
    assert [note for note in notes if "broken.png" in note]


def test_hidden_files_and_folders_are_no_pictures(folder: Path) -> None:
    (folder / ".thumbnails").mkdir()
    Image.new("RGB", (8, 8)).save(folder / ".thumbnails" / "red.png")
    Image.new("RGB", (8, 8)).save(folder / ".hidden.png")
    assert len(list_pictures(folder)) == 4


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture in this folder"):
        list_pictures(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        list_pictures(tmp_path / "nowhere")


def test_a_classifier_knows_no_words(model: AnyModel) -> None:
    with pytest.raises(ConfigError, match="knows no words"):
        embed_query(model, "a red square")
    with pytest.raises(InputError, match="empty"):
        embed_query(model, "  ")
    with pytest.raises(ImageError, match=r"missing\.png"):
        embed_query(model, "missing.png")


def test_a_detector_has_no_vector(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no vector for a whole picture"):
        saccade.search(saccade.create("yolo_test"), folder, folder / "inner" / "red.png")


def test_words_are_asked_of_a_model_that_knows_them(
    folder: Path, model: AnyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words' vector is that of the blue picture, so that one comes first."""
    blue = embed_query(model, folder / "inner" / "blue.png")

    def encode_text(texts: Sequence[str]) -> Tensor:
        assert list(texts) == ["something blue"]
        return blue

    monkeypatch.setattr(model, "encode_text", encode_text, raising=False)
    assert isinstance(model, retrieval.EncodesTexts)
    assert saccade.search(model, folder, "something blue")[0].path.name == "blue.png"


def test_found_pictures_are_not_searched(folder: Path, tmp_path: Path) -> None:
    (folder / "found").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "found" / "found.png")
    assert len(list_pictures(folder, leave_out=folder / "found")) == 4
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    assert len(list_pictures(folder)) == 5


def test_half_the_file_is_wanted_of_an_index_that_exists(folder: Path, model: AnyModel) -> None:
    open_index(model, folder)
    place = next(folder.glob("saccade-index-*"))
    whole = place.stat().st_size
    index, _ = open_index(model, folder, dtype="float16")
    assert index.num_embedded == 0
    assert place.stat().st_size < whole
    changed = place.stat().st_mtime_ns
    open_index(model, folder, dtype="float16")
    open_index(model, folder)
    assert place.stat().st_mtime_ns == changed


def test_a_writer_that_fails_in_the_library_is_no_traceback(
    folder: Path, model: AnyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: Read-only file system (os error 30)")

    monkeypatch.setattr("saccade.engine.checkpoint.save_file", refuse)
    index, notes = open_index(model, folder)
    assert len(index) == 4
    assert any("the index was not kept: " in note and "Read-only" in note for note in notes)
    text_cache.write(folder / "texts" / "a.safetensors", torch.zeros(2, 3))
    assert not (folder / "texts" / "a.safetensors").exists()
