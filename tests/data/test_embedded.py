"""The embedded data sets of objects; those of classes and label maps are tested with ``open_data``."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data import embedded
from saccade.data.dataset import Dataset
from saccade.data.source import open_data
from saccade.errors import DataError
from saccade.types import BoxTarget

ASSETS = Path(str(files("saccade"))) / "assets"


def targets_of(data: Dataset) -> list[BoxTarget]:
    found = [data[index].target for index in range(len(data))]
    assert all(isinstance(target, BoxTarget) for target in found)
    return found  # type: ignore[return-value]


def test_blood_cells() -> None:
    source = open_data("blood_cells")
    assert source.task == "detection"
    assert source.classes.names == ("Platelets", "RBC", "WBC")
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 60, "val": 24}
    assert source.notes == []
    counts = {"train": [48, 765, 61], "val": [25, 304, 23]}
    for split, data in source.splits.items():
        assert data.licence is not None
        assert "MIT" in data.licence
        targets = targets_of(data)
        labels = torch.cat([target.labels for target in targets])
        assert torch.bincount(labels).tolist() == counts[split], "as the table in SOURCE.md says"
        for index, target in enumerate(targets):
            sample = data[index]
            assert sample.image.shape == (3, 240, 320)
            assert sample.source.startswith(f"blood_cells/{split}/")
            assert target.masks is None
            assert not target.crowd.any()
            assert (target.boxes[:, :2] >= 0).all()
            assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()
            assert (target.boxes[:, 2:] <= torch.tensor([320, 240])).all()
            assert torch.equal(target.boxes, (target.boxes * 2).round() / 2), "halved whole numbers"


def test_the_boxes_of_blood_cells_lie_on_cells() -> None:
    """White cells are purple: inside of their boxes there is less green than in the whole picture."""
    data = open_data("blood_cells").split("val")
    for index in range(len(data)):
        sample = data[index]
        green, target = sample.image[1].float(), sample.target
        white = target.boxes[target.labels == data.classes.id("WBC")].round().long()
        for left, top, right, bottom in white.tolist():
            assert float(green[top:bottom, left:right].mean()) < float(green.mean())


def test_nuclei_one_by_one() -> None:
    source, merged = open_data("nuclei_instances"), open_data("nuclei")
    assert source.task == "instance"
    assert source.classes.names == ("nucleus",)
    assert source.notes == []
    counts = {"train": 588, "val": 205}
    for split, data in source.splits.items():
        assert data.licence == "CC0 1.0"
        assert len(data) == len(merged.splits[split])
        total = 0
        for index, target in enumerate(targets_of(data)):
            same = merged.splits[split][index]
            assert torch.equal(data[index].image, same.image)
            assert data[index].source.startswith(f"nuclei_instances/{split}/")
            assert target.masks is not None
            assert torch.equal(target.boxes, target.masks.boxes())
            dense = target.masks.dense()
            assert int(dense.sum(0).max()) == 1, "a pixel belongs to one nucleus"
            assert torch.equal(dense.any(0), same.target.labels == 1)
            total += len(target)
        assert total == counts[split]


@pytest.mark.parametrize("name", ["blood_cells", "nuclei_instances"])
def test_fingerprints_do_not_tell_where_the_package_lies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_data(name).fingerprint()
    shutil.copytree(ASSETS, tmp_path / "saccade" / "assets")
    monkeypatch.setattr(embedded, "files", lambda _: tmp_path / "saccade")
    embedded.open_embedded.cache_clear()
    try:
        assert open_data(name).fingerprint() == before
    finally:
        embedded.open_embedded.cache_clear()


@pytest.mark.parametrize(("name", "most"), [("blood_cells", 900_000), ("nuclei_instances", 200_000)])
def test_embedded_objects_are_small_and_say_where_they_are_from(name: str, most: int) -> None:
    folder = ASSETS / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= most
    assert "licen" in (folder / "LICENSE").read_text().lower() or "CC0" in (folder / "LICENSE").read_text()
    assert (folder / "SOURCE.md").read_text().startswith("# ")


def test_numbers_of_nuclei_have_no_gaps() -> None:
    for path in (ASSETS / "nuclei_instances").rglob("*.png"):
        numbers = np.unique(np.asarray(Image.open(path)))
        assert numbers.tolist() == list(range(len(numbers))), path.name


@pytest.mark.parametrize("wanted", ["classification", "semantic"])
def test_objects_are_no_other_task(wanted: Any) -> None:
    for name in ("blood_cells", "nuclei_instances"):
        with pytest.raises(DataError, match="data for the task"):
            open_data(name, task=wanted)
