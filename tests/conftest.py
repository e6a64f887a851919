"""Small pictures and folders that several test files need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FolderMaker = Callable[[Mapping[str, int]], Path]


def save_picture(path: Path, number: int, size: tuple[int, int] = (20, 24)) -> Path:
    """A picture that differs from every other number's, height by width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def make_folders(tmp_path: Path) -> FolderMaker:
    """``make_folders({"train/cat": 3, "val/cat": 1})`` -> a folder with so many pictures in each sub-folder."""

    def make(counts: Mapping[str, int]) -> Path:
        number = 0
        for name, count in counts.items():
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                save_picture(tmp_path / "data" / name / f"{index:03d}.png", number)
                number += 1
        return tmp_path / "data"

    return make
