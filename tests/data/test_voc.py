"""The layout of Pascal VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data.source import open_data
from saccade.data.voc import VOC_CLASSES
from saccade.errors import DataError


def write_voc(root: Path, lists: dict[str, str], names: str = "abc") -> Path:
    """Pictures of 2x3 pixels; the masks are palette PNG with the person (15), the sofa (18) and the border (255)."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in names:
        Image.fromarray(np.zeros((2, 3, 3), dtype=np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        mask = Image.fromarray(np.array([[0, 15, 18], [255, 15, 0]], dtype=np.uint8))
        mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        mask.save(root / f"SegmentationClass/{name}.png")
    for split, text in lists.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(text)
    return root


def test_splits_of_the_lists(tmp_path: Path) -> None:
    source = open_data(write_voc(tmp_path, {"train": "c\na\n", "val": "b\n", "trainval": "a\nb\nc\n"}))
    assert source.format == "VOC with splits train, val"
    assert source.classes == VOC_CLASSES
    assert [Path(source.split("train")[i].source).stem for i in range(2)] == ["c", "a"]
    labels = source.split("val")[0].target.labels
    assert labels.tolist() == [[0, 15, 18], [255, 15, 0]]
    assert [source.classes[int(label)] for label in labels[0]] == ["background", "person", "sofa"]
    assert "18 classes ('aeroplane', 'bicycle'" in source.notes[-1]


def test_names_without_files(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": "a\nb\nnowhere\n"})
    (tmp_path / "JPEGImages/b.jpg").unlink()
    source = open_data(tmp_path)
    assert len(source.split("train")) == 1
    assert source.notes[0] == "train lists 2 names without a picture or a mask: b, nowhere: left out"
    with pytest.raises(DataError, match="train lists 2 names"):
        open_data(tmp_path, strict=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("nowhere\n")
    with pytest.raises(DataError, match="no picture has a mask"):
        open_data(tmp_path)


def test_no_lists_and_other_classes(tmp_path: Path) -> None:
    write_voc(tmp_path, {}, "abcde")
    (tmp_path / "classes.json").write_text('{"nothing": 0, "person": 15, "sofa": 18}')
    source = open_data(tmp_path)
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 4, "val": 1}
    assert source.split("val")[0].target.labels.tolist() == [[0, 1, 2], [255, 1, 0]]
