"""Pascal VOC XML: layouts, the two ways to count pixels, faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from saccade.data.source import DataSource, open_data
from saccade.errors import DataError

Box = tuple[str, float, float, float, float]


def annotate(path: Path, *boxes: Box, name: str = "", size: tuple[int, int] = (20, 30), more: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{label}</name>{more}<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for label, a, b, c, d in boxes
    )
    told = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    path.write_text(f"<annotation><filename>{name or path.stem + '.png'}</filename>{told}{objects}</annotation>")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), (len(path.stem) * 9, 80, 10)).save(path)


def boxes(source: DataSource) -> dict[str, list[list[float]]]:
    return {
        Path(data[index].source).stem: data[index].target.boxes.tolist()  # type: ignore[union-attr]
        for data in source.splits.values()
        for index in range(len(data))
    }


def place(root: Path, annotations: str, pictures: str, *names: str) -> None:
    for name in names:
        annotate(root / annotations / f"{name}.xml", ("cat", 2, 3, 10, 12))
        picture(root / pictures / f"{name}.png")


def test_the_folders_of_voc_with_lists(tmp_path: Path) -> None:
    place(tmp_path, "Annotations", "JPEGImages", "a", "b", "c")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("c\ngone\n")
    source = open_data(tmp_path)
    assert source.task == "detection"
    assert source.format == "Pascal VOC XML with splits train, val"
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 2, "val": 1}
    assert boxes(source)["a"] == [[1, 2, 10, 12]], "pixels are counted from 1, the last one is part of the box"
    assert "1 of 2 pictures of val.txt have XML that is not there: gone: left out" in source.notes
    with pytest.raises(DataError, match="gone"):
        open_data(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("annotations", "pictures", "lists"),
    [
        ("annotations", "images", True),
        ("xml", "images", True),
        ("", "", True),
        ("annotations", "images", False),
        ("images", "images", False),
    ],
)
def test_other_layouts(tmp_path: Path, annotations: str, pictures: str, lists: bool) -> None:
    if annotations == "images":  # XML beside the pictures in train and val
        place(tmp_path, "train", "train", "a", "b", "c")
        place(tmp_path, "val", "val", "d")
    else:
        place(tmp_path, annotations, pictures, "a", "b", "c", "d")
    if lists:
        (tmp_path / "train.txt").write_text("a.png\nb.png\nc.png\n")
        (tmp_path / "val.txt").write_text("images/d.png\n")
    source = open_data(tmp_path)
    assert sorted(boxes(source)) == ["a", "b", "c", "d"]
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 3, "val": 1}


def test_a_coordinate_below_one_means_edges(tmp_path: Path) -> None:
    place(tmp_path, "annotations", "images", "a", "b")
    annotate(tmp_path / "annotations" / "b.xml", ("cat", 0, 3, 10, 12))
    source = open_data(tmp_path)
    assert boxes(source) == {"a": [[2, 3, 10, 12]], "b": [[0, 3, 10, 12]]}
    assert any("b.xml object 0 begins at 0, so pixels are not counted from 1" in note for note in source.notes)


def test_a_box_that_ends_where_it_begins_has_no_area(tmp_path: Path) -> None:
    place(tmp_path, "annotations", "images", "a", "b")
    annotate(tmp_path / "annotations" / "b.xml", ("cat", 2, 2, 9, 9), ("cat", 5, 5, 5, 5))
    source = open_data(tmp_path)
    assert boxes(source)["b"] == [[1, 1, 9, 9]]
    assert any("1 box without area (as in (5, 5, 5, 5))" in n and "b.xml object 1" in n for n in source.notes)


def test_difficult_objects_are_crowds_and_the_rest_is_kept(tmp_path: Path) -> None:
    place(tmp_path, "annotations", "images", "a")
    more = "<difficult>1</difficult><truncated>1</truncated><pose>Left</pose>"
    annotate(tmp_path / "annotations" / "a.xml", ("cat", 2, 3, 10, 12), more=more)
    data = next(iter(open_data(tmp_path).splits.values()))
    assert data[0].target.crowd.tolist() == [True]  # type: ignore[union-attr]
    assert data.images[0].objects[0].extra == {"truncated": 1, "pose": "Left"}  # type: ignore[attr-defined]


def test_a_missing_size_and_another_file_name(tmp_path: Path) -> None:
    annotate(tmp_path / "annotations" / "7.xml", ("cat", 2, 3, 10, 12), name="photo.jpeg", size=(0, 0))
    picture(tmp_path / "images" / "photo.png")
    assert boxes(open_data(tmp_path)) == {"photo": [[1, 2, 10, 12]]}


def test_sides_stored_as_corners_are_named_with_evidence(tmp_path: Path) -> None:
    place(tmp_path, "annotations", "images", "a")
    annotate(tmp_path / "annotations" / "a.xml", *[("cat", 12 + i, 9, 8, 6) for i in range(4)])
    with pytest.raises(DataError, match=r"4 of 4 boxes have x2 < x1 .* read as x, y, width, height 4 of 4 fit"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation><object>", "the XML is damaged"),
        ("<annotation><object><name>cat</name></object></annotation>", "a.xml object 0: the object has no bndbox"),
        (
            "<annotation><object><name>cat</name><bndbox><xmin>x</xmin></bndbox></object></annotation>",
            "bndbox/xmin is 'x'; expected a number",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation></annotation>', "defines entities"),
    ],
)
def test_damaged_xml(tmp_path: Path, text: str, words: str) -> None:
    place(tmp_path, "annotations", "images", "a")
    (tmp_path / "annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)


def test_pictures_without_xml_and_xml_without_pictures(tmp_path: Path) -> None:
    place(tmp_path, "annotations", "images", "a", "b", "c")
    (tmp_path / "images" / "c.png").rename(tmp_path / "images" / "z.png")
    notes = open_data(tmp_path).notes
    assert "1 picture without an XML file: z.png: left out" in notes
    assert "1 of 3 pictures that XML files describe are not there: c.png: left out" in notes


def test_classes_of_one_split_are_told(tmp_path: Path) -> None:
    place(tmp_path, "train", "train", "a")
    place(tmp_path, "val", "val", "b")
    annotate(tmp_path / "val" / "b.xml", ("cats", 2, 3, 10, 12))
    source = open_data(tmp_path)
    assert source.classes.names == ("cat", "cats")
    assert "val has a class 'cats' that train has not (did you mean 'cat'?): 1 object" in source.notes
    with pytest.raises(DataError, match="make the splits agree"):
        open_data(tmp_path, strict=True)


def test_xml_has_no_masks(tmp_path: Path) -> None:
    place(tmp_path, "annotations", "images", "a")
    with pytest.raises(DataError, match="data for the task detection; expected a box and a mask"):
        open_data(tmp_path, task="instance")
