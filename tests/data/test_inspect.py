from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.data.inspect import contact_sheet, inspect
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
