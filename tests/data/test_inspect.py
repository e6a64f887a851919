from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.data.inspect import contact_sheet, inspect
from saccade.data.mapsheet import map_sheet
from saccade.data.source import open_data
from saccade.errors import RunError


def test_a_sound_data_set(make_folders: Any) -> None:
    found = inspect(make_folders({"train/a": 10, "train/b": 12, "val/a": 2, "val/b": 3}))
    assert found.splits == {"train": {"a": 10, "b": 12}, "val": {"a": 2, "b": 3}}
    assert found.problems == []
    assert found.sizes is not None
    assert str(found.sizes) == "all 20x24"
    assert found.modes == {"colour": 27}
    assert json.loads(json.dumps(found.to_dict()))["sizes"]["median"] == [20, 24]


def test_every_kind_of_damage_is_found(make_folders: Any) -> None:
    root = make_folders({"train/a": 40, "train/b": 3, "val/a": 2, "val/b": 2})
    shutil.copy(root / "train/a/000.png", root / "val/a/copy.png")  # leakage
    shutil.copy(root / "train/a/001.png", root / "train/b/copy.png")  # two labels
    shutil.copy(root / "train/a/002.png", root / "train/a/copy.png")  # twice
    (root / "val/b/000.png").write_bytes(b"")
    Image.new("L", (7, 9)).save(root / "val/b/grey.png")
    found = inspect(root)
    told = "\n".join(found.problems)
    assert len(found.corrupt) == 1
    assert "1 picture cannot be read" in told
    assert [len(group) for group in (found.leaks, found.conflicts, found.duplicates)] == [1, 1, 3]
    assert "1 picture is in more than one split (leakage): train: " in told
    assert "1 picture is under different labels" in told
    assert "1 picture is there more than once" in told
    assert "1 class has fewer than 10 training pictures: b (4)" in told
    assert "a has 10 times as many training pictures as b" in told
    assert found.modes == {"colour": 49, "grey": 1}
    assert found.sizes is not None
    assert found.sizes.smallest == (9, 7)


def test_notes_of_the_source_are_passed_on(make_folders: Any) -> None:
    found = inspect(make_folders({"train/a": 10, "train/b": 10, "val/a": 3}))
    assert "val has no pictures of 1 class: 'b'" in found.problems[0]
    assert found.splits["val"] == {"a": 3, "b": 0}


def test_contact_sheet(make_folders: Any, tmp_path: Path) -> None:
    root = make_folders({"train/a": 10, "train/b": 2})
    (root / "train/b/001.png").write_bytes(b"broken")
    path = contact_sheet(open_data(root).splits["train"], tmp_path / "new" / "sheet.png", columns=4, cell=40)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (6 + 2 * (40 + 18 + 6), 6 + 4 * 46, 3)
    first = np.asarray(Image.open(root / "train/a/000.png"))
    assert sheet[6 + 18, 6].tolist() == first[0, 0].tolist()
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_contact_sheet_where_nothing_can_be_written(make_folders: Any, tmp_path: Path) -> None:
    data = open_data(make_folders({"train/a": 1, "train/b": 1})).splits["train"]
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        contact_sheet(data, tmp_path / "file" / "sheet.png")


# --- label maps


def save_pair(root: Path, split: str, name: str, labels: list[int], shade: int, size: tuple[int, int] = (4, 8)) -> None:
    """A picture of one shade and a mask whose columns repeat the labels."""
    for folder, value in (("images", np.full(size, shade)), ("masks", np.resize(np.array(labels), size))):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(value.astype(np.uint8)).save(root / split / folder / f"{name}.png")


def test_pixels_and_pictures_of_each_class(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["background", "cell", "dust"]')
    save_pair(tmp_path, "train", "a", [0, 1], 10)
    save_pair(tmp_path, "train", "b", [0, 0, 0, 255], 20)
    save_pair(tmp_path, "val", "c", [2], 30, (2, 3))
    found = inspect(tmp_path)
    assert found.pictures == {"train": 2, "val": 1}
    assert found.splits == {
        "train": {"background": 2, "cell": 1, "dust": 0},
        "val": {"background": 0, "cell": 0, "dust": 1},
    }
    # Of 56 labelled pixels in train, 16 + 24 are background.
    assert found.pixels["train"] == pytest.approx({"background": 40 / 56, "cell": 16 / 56, "dust": 0})
    assert found.pixels["val"] == {"background": 0, "cell": 0, "dust": 1}
    assert found.modes == {"grey": 3}
    told = "\n".join(found.problems)
    assert "the value 255 is in no class: ignored, as is the custom (11.4% of the pixels)" in told
    assert "1 class ('dust') without a pixel in train" in told
    assert "2 classes have fewer than 10 training pictures: background (2), cell (1)" in told
    assert json.loads(json.dumps(found.to_dict()))["pixels"]["val"]["dust"] == 1


def test_what_is_wrong_with_pairs(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["background", "cell"]')
    rare = [0] * 20 * 30
    rare[-1] = 1
    save_pair(tmp_path, "train", "a", [0], 10, (20, 30))
    save_pair(tmp_path, "train", "b", rare, 20, (20, 30))
    save_pair(tmp_path, "train", "same", rare, 10, (20, 30))  # the picture of a with another map
    save_pair(tmp_path, "val", "a", [0], 10, (20, 30))  # a again
    save_pair(tmp_path, "val", "broken", [0], 40)
    (tmp_path / "val/masks/broken.png").write_bytes(b"")
    found = inspect(tmp_path)
    assert len(found.corrupt) == 1
    assert "broken.png: the mask is damaged or no picture" in found.corrupt[0]
    assert [len(group) for group in found.duplicates] == [3]
    assert found.leaks == found.conflicts == found.duplicates
    told = "\n".join(found.problems)
    assert "background has 899 times as many training pixels as cell: pixel accuracy will flatter" in told


def test_contact_sheet_of_label_maps(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["background", "cell", "dust"]')
    save_pair(tmp_path, "train", "a", [0, 1, 255, 0], 100, (4, 4))
    save_pair(tmp_path, "train", "b", [0], 100)
    data = open_data(tmp_path).splits["train"]
    sheet = np.asarray(Image.open(contact_sheet(data, tmp_path / "sheet.png", columns=2, cell=40)))
    picture, tinted = sheet[6 + 18 :, 6:], sheet[6 + 18 :, 6 + 40 + 6 :]
    columns = [5, 15, 25, 35]  # the middles of the four pixels, ten times enlarged
    assert picture[20, columns].tolist() == [[100] * 3] * 4
    assert tinted[20, 5].tolist() == tinted[20, 35].tolist() == [100] * 3  # the background has no tint
    assert tinted[20, 25].tolist() == [255] * 3  # ignored
    assert len(set(tinted[20, 15].tolist())) > 1  # the cell has a colour
    assert sheet.shape[1] == 6 + 2 * 40 + 3 * 6
    (tmp_path / "train/masks/b.png").write_bytes(b"")
    assert map_sheet(data, columns=1, cell=40, rows=6).size == sheet.shape[1::-1]
