"""Small pictures and folders, and a small trained model, that several test files need."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from saccade.cli import main

FolderMaker = Callable[[Mapping[str, int]], Path]

COLOURS = {
    "red": (200, 60, 60),
    "green": (60, 200, 60),
    "blue": (60, 60, 200),
    "grey": (150, 150, 150),
    "dark": (30, 30, 30),
}
"""Classes of the pictures that the tests of the verbs train on."""


class Ended(NamedTuple):
    """How a command ended: its exit status and what it wrote."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


def save_picture(path: Path, number: int, size: tuple[int, int] = (20, 24)) -> Path:
    """A picture that differs from every other number's, height by width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_scene(root: Path, split: str, number: int, size: tuple[int, int] = (44, 52)) -> tuple[Path, Path]:
    """One picture of a red and a blue block on grey and its label map, below ``images/`` and ``masks/``."""
    generator = np.random.default_rng(number)
    labels = np.zeros(size, np.uint8)
    for label, left in ((1, 2), (2, size[1] // 2 + 2)) if number % 2 else ((2, 2), (1, size[1] // 2 + 2)):
        top, width = generator.integers(3, 14), generator.integers(12, 20)
        labels[top : top + width, left : left + width] = label
    noise = generator.integers(-25, 26, (*size, 3))
    pixels = (np.array([(120, 120, 120), (210, 60, 60), (60, 60, 210)])[labels] + noise).clip(0, 255)
    picture, mask = (root / kind / split / f"{number}.png" for kind in ("images", "masks"))
    for path, values in ((picture, pixels.astype(np.uint8)), (mask, labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return picture, mask


def shorten_reports(patch: pytest.MonkeyPatch) -> None:
    """Reports with one mistake explained and one method."""
    from saccade import report

    short = functools.partial(report.ReportConfig, mistakes=1, regions=1, compared=1, methods=("gradient",))
    patch.setattr(report, "ReportConfig", short)


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


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of noisy 32x32 pictures in five colours: 8 of each in train, 4 in val. Leave them as they are."""
    root = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                noise = generator.integers(-30, 31, (32, 32, 3))
                pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Path:
    """The run folder of a tiny model after two steps on ``colours``: often wrong, but no longer blind. Leave it."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["train", "vit_average_test", colours, "--epochs", 1, "--lr", 8e-4, "--batch-size", 10, "--out", run]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["saccade", *map(str, words), "--set", "train.limit_steps=2"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return run


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy grey 44x52 pictures with a red and a blue block, and their label maps: 16 in train, 6 in val. Leave them.

    The sides are no multiples of any network's stride.
    """
    root = tmp_path_factory.mktemp("painted")
    for number, split in enumerate(["train"] * 16 + ["val"] * 6):
        save_scene(root, split, number)
    (root / "classes.json").write_text('["background", "red", "blue"]')
    return root


@pytest.fixture(scope="session")
def trained_segmenter(tmp_path_factory: pytest.TempPathFactory, painted: Path) -> Path:
    """The run folder of a tiny U-Net after 24 steps on ``painted``: it finds most of the blocks. Leave it."""
    run = tmp_path_factory.mktemp("runs") / "blocks"
    words = ["train", "unet_plain_test", painted, "--epochs", 12, "--batch-size", 8, "--lr", 1e-2, "--out", run]
    with pytest.MonkeyPatch.context() as patch:
        shorten_reports(patch)
        patch.setattr(sys, "argv", ["saccade", *map(str, words), "--set", "train.ema_decay=0.5"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return run


@pytest.fixture
def short_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with one mistake explained and one method, for tests of something else that writes one."""
    shorten_reports(monkeypatch)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("predict", run, picture)`` -> how ``saccade predict RUN PICTURE`` ended, run in this process."""

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["saccade", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return Ended(int(ended.value.code or 0), written.out, written.err)

    return run
