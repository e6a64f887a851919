"""Small data and small models for the engine; also imported by ``child.py``, which runs them in other processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saccade.data.captions import CaptionItem, CaptionsInMemory, training_texts
from saccade.data.dataset import ArrayDataset
from saccade.data.source import DataSource
from saccade.models.build import create, find_config
from saccade.types import Classes

NAMES = ("red", "green", "blue", "grey", "dark")


def make_dataset(count: int, seed: int = 0, names: tuple[str, ...] = NAMES, size: int = 32) -> ArrayDataset:
    """Noisy pictures whose colour is their class."""
    generator = torch.Generator().manual_seed(seed)
    colours = {
        "red": (200, 60, 60),
        "green": (60, 200, 60),
        "blue": (60, 60, 200),
        "grey": (150, 150, 150),
        "dark": (30, 30, 30),
    }
    labels = torch.arange(count) % len(names)
    base = torch.tensor([colours[name] for name in names])[labels][:, :, None, None]
    noise = torch.randint(-30, 31, (count, 3, size, size), generator=generator)
    return ArrayDataset((base + noise).clamp(0, 255).to(torch.uint8), labels, Classes(names), f"colours{seed}", "CC0")


def make_source(train: int = 40, val: int = 15) -> DataSource:
    splits = {"train": make_dataset(train, 0), "val": make_dataset(val, 1)}
    return DataSource(splits, Classes(NAMES), "colours", "colours")


def make_model(name: str = "vit_average_test", seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(name)


def make_captions(train: int = 24, val: int = 10) -> DataSource:
    """The same pictures with captions and categories."""
    splits = {}
    for split, count, seed in (("train", train, 0), ("val", val, 1)):
        coloured = make_dataset(count, seed)
        items = []
        for place in range(count):
            label = int(coloured.targets[place])
            texts = (f"a {NAMES[label]} picture number {place}",)
            parts = (f"{NAMES[label]} {place}", NAMES[label])  # the second is true of others as well
            items.append(CaptionItem(coloured.images[place], texts, parts, label, f"{place}"))
        splits[split] = CaptionsInMemory(items, Classes(NAMES), Path(), "CC0")
    return DataSource(splits, Classes(NAMES), "captions", "captions")


def make_clip(name: str = "clip_test", overrides: tuple[str, ...] = ()):
    config = find_config(name).fitted(lambda: training_texts(make_captions().split("train")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(config, overrides=list(overrides))


@pytest.fixture
def captions():
    return make_captions()


@pytest.fixture
def new_clip():
    return make_clip


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def source():
    return make_source()


@pytest.fixture
def dataset():
    return make_dataset


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def new_model():
    return make_model
