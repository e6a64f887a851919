"""CSV tables: what every reader of them has in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from saccade.data.source import open_data
from saccade.data.tables import known_split, read_header, read_table
from saccade.errors import DataError


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8-sig"))
    return path


def test_line_breaks_in_quotes_are_part_of_a_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'path , label\r\n1.png,"a\r\nb"\r\n,\r\n\r\n2.png\r\n')
    names, rows = read_table(path)
    assert names == read_header(path) == ["path", "label"]
    found = list(rows)
    assert [row.cells for row in found] == [{"path": "1.png", "label": "a\r\nb"}, {"path": "2.png", "label": ""}]
    assert [row.where for row in found] == [f"{path}:3", f"{path}:6"]


def test_delimiters_and_what_is_no_table(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "a.csv", "path;label\n1;2\n"))[0] == ["path", "label"]
    assert read_table(write(tmp_path / "b.csv", ""))[0] == []
    (tmp_path / "c.csv").write_bytes(b"path,label\n\xff,a\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(tmp_path / "c.csv")


def test_a_numbered_fold_is_no_split() -> None:
    assert known_split("3", "fold", "a:1") is None
    assert known_split("Valid", "fold", "a:1") == "val"
    for column in ("split", "fold"):
        with pytest.raises(DataError, match=r"unknown split 'trian'; expected train.*did you mean 'train'"):
            known_split("trian", column, "a:1")
    with pytest.raises(DataError, match="unknown split '3'"):
        known_split("3", "split", "a:1")


@pytest.mark.parametrize("note", ['"two\nlines"', "one"])
def test_backslashes_folds_and_quoted_line_breaks_in_tables_of_classes(tmp_path: Path, note: str) -> None:
    (tmp_path / "in").mkdir()
    lines = ["path,label,fold,note"]
    for number in range(8):
        Image.new("RGB", (8, 8), (30 * number, 9, 9)).save(tmp_path / "in" / f"{number}.png")
        lines.append(f"in\\{number}.png,{'ab'[number % 2]},{number % 5},{note}")
    source = open_data(write(tmp_path / "all.csv", "\n".join(lines)))
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 6, "val": 2}
    assert not any("do not exist" in told for told in source.notes)
