"""Data that names training pictures alone: a part of them is held out, the same for every verb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.data.dataset import ArrayDataset, FileDataset
from saccade.data.source import open_data
from saccade.engine.feed import training_splits
from saccade.engine.plan import TrainConfig
from saccade.errors import DataError
from saccade.types import Classes


def names(source: Any, split: str) -> set[Path]:
    data = source.split(split)
    assert isinstance(data, FileDataset)
    return {file.path for file in data.files}


def test_training_and_evaluation_hold_out_the_same_pictures(make_folders: Any) -> None:
    root = make_folders({"train/a": 10, "train/b": 5})
    source = open_data(root)
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 12, "val": 3}
    assert "3 of the 15 pictures of train (20% of each class" in source.notes[-1]
    train, val, notes = training_splits(source, TrainConfig(seed=7, validation_share=0.5))
    assert (train, val, notes) == (source.splits["train"], source.splits["val"], [])
    again = open_data(root, strict=True)
    assert again.held_out == "val"
    assert names(again, "val") == names(source, "val")
    assert not names(source, "val") & names(source, "train")


def test_a_test_split_is_left_alone(make_folders: Any) -> None:
    source = open_data(make_folders({"train/a": 5, "train/b": 5, "test/a": 1, "test/b": 1}))
    assert list(source.splits) == ["train", "test"]
    assert source.held_out == "test"


def test_one_object_is_evaluated_whole_but_a_named_training_split_never_unasked() -> None:
    data = ArrayDataset(
        torch.zeros(4, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), Classes(("a", "b")), "mine"
    )
    source = open_data(data)
    assert source.held_out == "train"
    with pytest.raises(DataError, match=r"only training pictures.*ask for the split train"):
        _ = open_data({"train": data}).held_out
    assert len(source.split("train")) == 4
    assert open_data({"test": data}).held_out == "test"


def test_one_picture_of_each_class_stays_training_alone(make_folders: Any) -> None:
    source = open_data(make_folders({"train/a": 1, "train/b": 1}))
    assert list(source.splits) == ["train"]
    with pytest.raises(DataError, match="only training pictures"):
        _ = source.held_out


def test_names_that_are_not_utf_8_have_a_fingerprint(make_folders: Any) -> None:
    root = make_folders({"train/a": 3, "train/b": 3})
    for name in "ab":
        (root / "train" / name / "000.png").rename(root / "train" / name / "gr\udcfcn.png")
    source = open_data(root)
    assert len(source.split("train")) == 4
    assert source.fingerprint() == open_data(root).fingerprint()
