"""Verbs over many files: which files count, what a damaged one does, what the results are called."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import saccade
from saccade import batch, cli
from saccade.batch import picture_paths, predict_files
from saccade.errors import ImageError
from saccade.opening import AnyModel


@pytest.fixture(scope="module")
def model() -> AnyModel:
    return saccade.create("resnet_test", classes=["cat", "dog"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures a, b, d and e; c is none, and f is a TIFF of floats."""
    place = tmp_path / "in"
    place.mkdir()
    for number, name in enumerate("abde"):
        Image.new("RGB", (3, 20), (60 * number, 90, 30)).save(place / f"{name}.png")
    (place / "c.png").write_bytes(b"no picture")
    Image.fromarray(np.full((8, 8), 300.0, dtype=np.float32)).save(place / "f.tif")
    return place


def test_a_damaged_picture_stops_no_other(model: AnyModel, folder: Path) -> None:
    found: list[dict[str, Any]] = []
    with pytest.raises(ImageError, match=r"2 of 6 pictures cannot be read; the first: .*c\.png: this is not a picture"):
        found.extend(predict_files(model, [folder], top=1, exact=True, score=0.3))
    assert [Path(record["image"]).name for record in found] == ["a.png", "b.png", "c.png", "d.png", "e.png", "f.tif"]
    assert ["error" in record for record in found] == [False, False, True, False, False, True]
    assert found[-1]["error"].startswith(f"{folder / 'f.tif'}: the values of this F picture run from 300")
    assert batch.told(found[2], 0.3).startswith(f"unreadable: {folder / 'c.png'}: ")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_what_was_predicted_is_kept_whatever_happens(
    model: AnyModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    original = batch.predict_files

    def stopped(*given: Any, **named: Any) -> Any:
        for number, record in enumerate(original(*given, **named)):
            if number == 2:
                raise stop
            yield record

    monkeypatch.setattr(batch, "predict_files", stopped)
    monkeypatch.setattr("saccade.opening.as_model", lambda *_: model)
    with pytest.raises(stop):
        cli.predict("m", [folder], out=tmp_path / "out", top=1, as_json=False, score=0.3, exact=True)
    written = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert [Path(record["image"]).name for record in written] == ["a.png", "b.png"]


def test_what_a_verb_wrote_is_not_its_input(folder: Path) -> None:
    paths = picture_paths([folder])
    for name in ("out", ".thumbnails", "__MACOSX"):
        (folder / name).mkdir()
        Image.new("RGB", (8, 8)).save(folder / name / "a-overlay.png")
    assert picture_paths([folder], leave_out=folder / "out") == paths
    assert len(picture_paths([folder])) == len(paths) + 1
    assert picture_paths([folder / "out"], leave_out=folder / "out") == [folder / "out" / "a-overlay.png"]


def stems(names: list[str]) -> list[str]:
    return batch._stems([Path(name) for name in names])


def test_pictures_of_equal_names_get_numbers() -> None:
    assert stems(["x/a.png", "y/a.png", "z/a-2.png", "a.jpg"]) == ["a", "a-2", "a-2-2", "a-3"]


def test_many_pictures_of_equal_names_are_named_at_once() -> None:
    start = time.perf_counter()
    assert len(set(stems([f"{number}/image.png" for number in range(3_000)]))) == 3_000
    assert time.perf_counter() - start < 10, "looking through all names for every number takes minutes"
