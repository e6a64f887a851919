"""CSV tables of boxes: names of columns, splits, background, faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from saccade.data.source import open_data
from saccade.errors import DataError
from saccade.types import BoxTarget


def table(root: Path, text: str, name: str = "boxes.csv", pictures: str = "abc") -> Path:
    for letter in pictures:
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (ord(letter), 90, 30)).save(root / "images" / f"{letter}.png")
    (root / name).write_text(text)
    return root


def targets(source: object) -> dict[str, BoxTarget]:
    found = {}
    for data in source.splits.values():  # type: ignore[attr-defined]
        for index in range(len(data)):
            found[Path(data[index].source).stem] = data[index].target
    return found


@pytest.mark.parametrize(
    "text",
    [
        "path,xmin,ymin,xmax,ymax,class\nimages/a.png,2,3,10,12,cat\nimages/b.png,1,1,5,5,dog\n",
        "filename;x1;y1;x2;y2;label\na.png;2;3;10;12;cat\nb.png;1;1;5;5;dog\n",
        "image\tleft\ttop\tright\tbottom\tname\na.png\t2\t3\t10\t12\tcat\nb.png\t1\t1\t5\t5\tdog\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,30,20,cat,2,3,10,12\nb.png,30,20,dog,1,1,5,5\n",
        "class,image,x,y,width,height\ncat,a.png,2,3,8,9\ndog,b.png,1,1,4,4\n",
    ],
)
def test_names_of_columns(tmp_path: Path, text: str) -> None:
    root = table(tmp_path, text)
    for opened in (open_data(root), open_data(root / "boxes.csv")):
        assert opened.task == "detection"
        assert set(opened.classes) == {"cat", "dog"}
        found = targets(opened)
        assert found["a"].boxes.tolist() == [[2, 3, 10, 12]]
        assert found["b"].boxes.tolist() == [[1, 1, 5, 5]]


def test_splits_crowds_background_and_other_columns(tmp_path: Path) -> None:
    head = "path,xmin,ymin,xmax,ymax,class,split,difficult,weather\n"
    rows = "a.png,2,3,10,12,cat,train,1,rain\na.png,1,1,4,4,dog,train,0,\nb.png,,,,,,val,,\nc.png,1,1,4,4,dog,val,0,\n"
    source = open_data(table(tmp_path, head + rows))
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 1, "val": 2}
    first = source.split("train")[0].target
    assert isinstance(first, BoxTarget)
    assert first.crowd.tolist() == [True, False]
    assert source.split("train").images[0].objects[0].extra == {"weather": "rain"}  # type: ignore[attr-defined]
    assert len(targets(source)["b"]) == 0


def test_one_table_per_split_and_listed_classes(tmp_path: Path) -> None:
    head = "path,xmin,ymin,xmax,ymax,class\n"
    table(tmp_path, head + "a.png,1,1,4,4,dog\nb.png,1,1,4,4,cat\n", "train.csv")
    table(tmp_path, head + "c.png,1,1,4,4,dog\n", "val.csv")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    source = open_data(tmp_path)
    assert source.format == "CSV of boxes with splits train, val"
    assert source.classes.names == ("dog", "cat")
    assert "val has no object of 1 class that other splits have: 'cat'" in source.notes


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.png,x,1,4,4,dog", "boxes.csv:2: xmin is 'x'; expected a number"),
        ("a.png,1,1,4,4,", "boxes.csv:2: the class is empty"),
        (",1,1,4,4,dog", "boxes.csv:2: the path is empty"),
        ("z.png,1,1,4,4,dog", "1 of 1 picture of boxes.csv are not there: z.png"),
        ("a.png,12,9,8,6,dog\na.png,13,9,8,6,dog\na.png,14,9,8,6,dog", "3 of 3 boxes have x2 < x1"),
    ],
)
def test_bad_rows(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_data(table(tmp_path, f"path,xmin,ymin,xmax,ymax,class\n{row}\n"))


def test_the_size_of_the_picture_is_compared(tmp_path: Path) -> None:
    text = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,60,40,cat,2,3,10,12\n"
    with pytest.raises(DataError, match="the annotations are for 60x40 pixels but the picture has 30x20"):
        open_data(table(tmp_path, text))


def test_a_table_of_classes_is_still_one(tmp_path: Path) -> None:
    text = "path,label\nimages/a.png,cat\nimages/b.png,dog\nimages/c.png,dog\n"
    assert open_data(table(tmp_path, text)).task == "classification"
