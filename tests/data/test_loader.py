from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from saccade.data.dataset import ArrayDataset, FileDataset, Subset, subset
from saccade.data.loader import MAX_REPLACEMENTS, Batch, Loader, LoaderConfig, as_targets
from saccade.data.pictures import PictureBatch, Pictures
from saccade.data.source import open_data
from saccade.data.transforms import Augment, Mix
from saccade.errors import ConfigError, DataError, ImageError, InputError, SaccadeError
from saccade.ops.image import Preprocess
from saccade.types import IGNORE, Classes, ClassTarget, Geometry, MapTarget, Sample

SMALL = Preprocess(size=(16, 16))
VARIED = Augment(scale=(0.3, 1.0), shift=0.1, flip=0.5, colour=0.4, rand_augment=1, erase=0.5)
BLENDED = Mix(mixup=0.4, cutmix=1.0, label_smoothing=0.1)


def array_data(count: int = 23, size: int = 12) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, size, size), dtype=torch.uint8, generator=generator)
    return ArrayDataset(images, torch.arange(count) % 3, Classes(("a", "b", "c")), "array")


class Numbered:
    """Samples that are known by their label; those in ``bad`` cannot be decoded."""

    task = "classification"
    licence: str | None = None

    def __init__(self, count: int, bad: Sequence[int] = (), error: SaccadeError | None = None) -> None:
        self.count, self.bad, self.error = count, set(bad), error
        self.classes = Classes.numbered(count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise self.error or ImageError("the picture is damaged", where=f"{index}.jpg", remedy="copy it again")
        return Sample(torch.full((3, 4, 5), index, dtype=torch.uint8), ClassTarget(torch.tensor(index)), f"{index}.jpg")

    def labels(self) -> Tensor:
        return torch.arange(self.count)

    def fingerprint(self) -> str:
        return "0"


def same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images.pixels, b.images.pixels)
        and torch.equal(a.labels, b.labels)
        and a.sources == b.sources
        and a.indices == b.indices
        for a, b in zip(one, other, strict=True)
    )


def test_in_order_every_picture_once() -> None:
    data = array_data()
    loader = Loader(data, SMALL, LoaderConfig(batch_size=5))
    batches = list(loader.epoch())
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert len(loader) == 5
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.targets)
    assert batches[1].sources[0] == "array#5"
    # The batched path gives what preprocessing one picture gives.
    expected = SMALL([data[i].image for i in range(5)])
    assert torch.equal(batches[0].images.pixels, expected.pixels)
    assert batches[0].images.geometries == expected.geometries
    assert batches[0].images.sizes == expected.sizes


def test_drop_last() -> None:
    loader = Loader(array_data(), SMALL, LoaderConfig(batch_size=5, drop_last=True))
    assert len(loader) == len(list(loader)) == 4


def test_order_is_drawn_anew_each_epoch_and_covers_all() -> None:
    loader = Loader(array_data(), SMALL, shuffle=True, seed=3)
    first, second = loader.order(0), loader.order(1)
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second
    assert first == Loader(array_data(), SMALL, shuffle=True, seed=3).order(0)
    assert first != Loader(array_data(), SMALL, shuffle=True, seed=4).order(0)


@pytest.mark.parametrize("kind", ["array", "files"])
def test_resumed_epoch_is_bit_identical(kind: str, make_folders: Any) -> None:
    data = array_data() if kind == "array" else open_data(make_folders({"a": 9, "b": 9, "c": 9})).splits["train"]

    def loader() -> Loader:
        return Loader(data, SMALL, LoaderConfig(batch_size=4), shuffle=True, seed=1, augment=VARIED, mix=BLENDED)

    whole = list(loader().epoch(2))
    assert same(whole[3:], list(loader().epoch(2, start_batch=3)))
    assert not same(whole, list(loader().epoch(3)))
    assert list(loader().epoch(2, start_batch=len(whole))) == []


def test_the_state_of_other_generators_neither_matters_nor_changes() -> None:
    loader = Loader(array_data(), SMALL, shuffle=True, augment=VARIED, mix=BLENDED)
    first = list(loader.epoch(0))
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert same(first, list(loader.epoch(0)))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.slow
def test_workers_change_nothing_and_survive_an_abandoned_epoch(make_folders: Any) -> None:
    data = open_data(make_folders({"a": 9, "b": 9})).splits["train"]

    def loader(workers: int) -> Loader:
        config = LoaderConfig(batch_size=4, workers=workers)
        return Loader(data, SMALL, config, shuffle=True, seed=1, augment=VARIED, mix=BLENDED)

    alone, helped = loader(0), loader(2)
    before = torch.random.get_rng_state()
    next(helped.epoch(0))
    assert same(list(alone.epoch(1)), list(helped.epoch(1)))
    assert same(list(alone.epoch(2, 1)), list(helped.epoch(2, 1)))
    assert torch.equal(before, torch.random.get_rng_state())


# --- pictures that cannot be decoded


def test_evaluation_skips_counts_and_names() -> None:
    loader = Loader(Numbered(7, bad=[1, 4, 5]), SMALL, LoaderConfig(batch_size=2))
    batches = list(loader.epoch())
    assert [batch.indices for batch in batches] == [(0,), (2, 3), (6,)]
    assert len(loader.skipped) == 3
    assert loader.skipped[0] == "1.jpg: the picture is damaged; copy it again"
    list(loader.epoch())
    assert len(loader.skipped) == 3, "a second epoch does not count them again"


def test_training_replaces_them_so_that_batches_keep_their_size() -> None:
    loader = Loader(Numbered(7, bad=[1, 2]), SMALL, LoaderConfig(batch_size=3), shuffle=True)
    batches = list(loader.epoch())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(index for batch in batches for index in batch.indices) == [0, 3, 3, 3, 4, 5, 6]
    assert sum(len(batch.problems) for batch in batches) == 3, "1 -> 2 -> 3 and 2 -> 3"


def test_training_gives_up_where_nothing_can_be_read() -> None:
    count = MAX_REPLACEMENTS + 4
    loader = Loader(Numbered(count, bad=range(count)), SMALL, shuffle=True)
    with pytest.raises(DataError, match=f"{MAX_REPLACEMENTS} pictures in a row"):
        list(loader.epoch())


def test_strict_fails_at_the_first() -> None:
    loader = Loader(Numbered(7, bad=[4]), SMALL, LoaderConfig(strict=True))
    with pytest.raises(ImageError, match=r"4\.jpg: the picture is damaged"):
        list(loader.epoch())


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, InputError("float values run from 0 to 200", where="3", expected="[0, 1]")])
def test_errors_of_workers_arrive_as_they_are(error: SaccadeError | None) -> None:
    loader = Loader(Numbered(7, bad=[4], error=error), SMALL, LoaderConfig(workers=1, strict=True))
    with pytest.raises(SaccadeError) as caught:
        list(loader.epoch())
    assert str(caught.value) == str(error or "4.jpg: the picture is damaged; copy it again")
    assert "Traceback" not in str(caught.value)


class Deadly(Numbered):
    """Kills the process that reads it."""

    def __getitem__(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.slow
def test_a_killed_worker_is_told() -> None:
    with pytest.raises(DataError, match="worker process ended unexpectedly"):
        list(Loader(Deadly(4), SMALL, LoaderConfig(workers=1)).epoch())


def test_damaged_files_on_disk(make_folders: Any) -> None:
    root = make_folders({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    (root / "train/a/000.png").write_bytes(b"")
    (root / "train/b/001.png").write_text("no picture")
    data = open_data(root).splits["train"]
    loader = Loader(data, SMALL)
    assert sum(len(batch) for batch in loader) == 4
    assert any("000.png" in line and "0 bytes" in line for line in loader.skipped)
    assert any("001.png" in line and "not a picture" in line for line in loader.skipped)


# --- several processes


@pytest.mark.parametrize("total", [12, 13, 5])
def test_evaluation_shards_are_exact(total: int) -> None:
    ranks = [Loader(Numbered(total), SMALL, LoaderConfig(batch_size=2), rank=rank, world_size=3) for rank in range(3)]
    seen = [index for loader in ranks for batch in loader.epoch() for index in batch.indices]
    assert sorted(seen) == list(range(total))
    assert [len(loader) for loader in ranks] == [len(list(loader.epoch())) for loader in ranks]


@pytest.mark.parametrize("total", [12, 13, 2])
def test_training_shards_are_equally_long_and_cover_all(total: int) -> None:
    config = LoaderConfig(batch_size=2)
    ranks = [Loader(Numbered(total), SMALL, config, shuffle=True, rank=rank, world_size=3) for rank in range(3)]
    orders = [loader.order(1) for loader in ranks]
    assert len({len(order) for order in orders}) == 1
    assert len({len(loader) for loader in ranks}) == 1
    assert {index for order in orders for index in order} == set(range(total))
    assert sum(len(order) for order in orders) < total + 3


def test_one_process_of_one_sees_what_ranks_see_together() -> None:
    alone = Loader(Numbered(12), SMALL, shuffle=True).order(0)
    halves = [Loader(Numbered(12), SMALL, shuffle=True, rank=rank, world_size=2).order(0) for rank in range(2)]
    assert [index for pair in zip(*halves, strict=True) for index in pair] == alone


# --- the rest


def test_pictures_of_many_sizes_and_letterbox(tmp_path: Path) -> None:
    for index, size in enumerate([(8, 16), (16, 8), (5, 5)]):
        folder = tmp_path / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        Image.new("L", (size[1], size[0]), 200).save(folder / f"{index}.png")
    data = FileDataset([*(open_data(tmp_path).splits["train"].files)], Classes(("a", "b")), tmp_path)
    batch = next(iter(Loader(data, Preprocess(size=(16, 16), policy="letterbox"))))
    for size, geometry in zip(batch.images.sizes, batch.images.geometries, strict=True):
        height, width = geometry.original_size
        ratio = 16 / max(height, width)
        assert size == (height * ratio, width * ratio)


def test_augmented_geometry_is_the_canvas_itself() -> None:
    batch = next(iter(Loader(array_data(), SMALL, shuffle=True, augment=VARIED)))
    assert batch.images.geometries[0] == Geometry((16, 16))


def test_batch_to_keeps_everything() -> None:
    batch = next(iter(Loader(array_data(), SMALL)))
    moved = batch.to("meta")
    assert moved.images.pixels.device.type == moved.labels.device.type == "meta"
    assert (moved.sources, moved.indices) == (batch.sources, batch.indices)


def test_mixed_batches_hold_soft_labels() -> None:
    batch = next(iter(Loader(array_data(), SMALL, shuffle=True, mix=BLENDED)))
    assert batch.labels.shape == (23, 3)
    assert torch.allclose(batch.labels.sum(1), torch.ones(23))


def test_tiny_pictures_need_no_workers_and_many_files_get_them() -> None:
    assert Loader(array_data(1000), SMALL).num_workers == 0
    assert Loader(Numbered(3), SMALL).num_workers == 0
    assert Loader(Numbered(1000), SMALL, LoaderConfig(workers=3)).num_workers == 3


def test_subset_keeps_the_fast_path() -> None:
    part = subset(array_data(), [5, 3])
    assert isinstance(part, ArrayDataset)
    assert part.labels().tolist() == [2, 0]
    slow = subset(Numbered(9), [4, 2])
    assert isinstance(slow, Subset)
    assert (slow.labels().tolist(), int(slow[1].target.label)) == ([4, 2], 2)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"workers": -1}, {"rank": 2, "world_size": 2}, {"rank": -1, "world_size": 2}]
)
def test_wrong_settings(wrong: dict[str, int]) -> None:
    shard = {key: wrong.pop(key) for key in ("rank", "world_size") if key in wrong}
    with pytest.raises(ConfigError):
        Loader(array_data(), SMALL, LoaderConfig(**wrong), **shard)  # type: ignore[arg-type]


def test_empty_data() -> None:
    with pytest.raises(DataError, match="empty"):
        Loader(Numbered(0), SMALL)


# --- label maps


class Mapped:
    """Pictures of many sizes whose label maps hold the green channel; those in ``bad`` cannot be read."""

    task = "semantic"
    licence: str | None = None
    classes = Classes.numbered(200)

    def __init__(self, count: int, bad: Sequence[int] = (), error: SaccadeError | None = None) -> None:
        self.count, self.bad, self.error = count, set(bad), error
        self.read: list[int] = []
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        with self.lock:
            self.read.append(index)
        if index in self.bad:
            raise self.error or ImageError("the picture is damaged", where=f"{index}.png", remedy="copy it again")
        generator = torch.Generator().manual_seed(index)
        size = (3, 20 + index % 3, 24 + index % 2)
        image = torch.randint(1, 200, size, dtype=torch.uint8, generator=generator)
        image[0] = index
        return Sample(image, MapTarget(image[1].clone()), f"{index}.png")

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count, "bad": self.bad, "error": self.error, "read": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.Lock())

    def fingerprint(self) -> str:
        return "0"


PIXELS = Preprocess(size=(16, 22), policy="native", mean=(0, 0, 0), std=(1, 1, 1))
JOINT = Augment(zoom=(0.7, 1.4), flip=0.5, flip_vertical=0.5, shift=0.1)


def test_label_maps_come_on_the_canvas_beside_their_pictures() -> None:
    augment = Augment(flip=0.5, flip_vertical=0.5, shift=0.2)
    loader = Loader(Mapped(7), PIXELS, LoaderConfig(batch_size=4), shuffle=True, augment=augment)
    batches = list(loader.epoch(1))
    assert [tuple(batch.labels.shape) for batch in batches] == [(4, 16, 22), (3, 16, 22)]
    for batch in batches:
        assert batch.labels.dtype == torch.uint8
        assert all(isinstance(target, MapTarget) for target in batch.targets)
        green = (batch.images.pixels[:, 1] * 255).round().to(torch.uint8)
        # Nothing in a picture is black, so black is what does not show it.
        assert torch.equal(batch.labels, torch.where(green == 0, IGNORE, green))
        assert (batch.labels == IGNORE).any()
        red = (batch.images.pixels[:, 0].amax((1, 2)) * 255).round().int().tolist()
        assert red == list(batch.indices)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(7))


def test_a_resumed_epoch_of_label_maps_is_bit_identical() -> None:
    def loader() -> Loader:
        return Loader(Mapped(11), PIXELS, LoaderConfig(batch_size=3), shuffle=True, seed=2, augment=JOINT)

    whole = list(loader().epoch(4))
    assert same(whole[2:], list(loader().epoch(4, start_batch=2)))
    assert not same(whole, list(loader().epoch(5)))


def test_the_same_picture_is_varied_otherwise_in_each_epoch() -> None:
    loader = Loader(Mapped(3), PIXELS, augment=JOINT)
    (first,), (second,) = loader.epoch(0), loader.epoch(1)
    assert first.indices == second.indices
    assert not any(torch.equal(one, other) for one, other in zip(first.labels, second.labels, strict=True))


@pytest.mark.slow
def test_workers_change_nothing_about_label_maps() -> None:
    def loader(workers: int) -> Loader:
        config = LoaderConfig(batch_size=3, workers=workers)
        return Loader(Mapped(8), PIXELS, config, shuffle=True, seed=2, augment=JOINT)

    alone, helped = list(loader(0).epoch(1)), list(loader(2).epoch(1))
    assert same(alone, helped)
    assert helped[0].labels.dtype == torch.uint8


def test_an_unreadable_pair_is_replaced_and_told() -> None:
    loader = Loader(Mapped(6, bad=[2]), PIXELS, LoaderConfig(batch_size=6), shuffle=True)
    (batch,) = loader.epoch()
    assert sorted(batch.indices) == [0, 1, 3, 3, 4, 5]
    assert loader.skipped == ["2.png: the picture is damaged; copy it again"]


def test_what_does_not_fit_the_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="RandAugment"):
        Loader(Mapped(3), PIXELS, augment=Augment(rand_augment=1))
    with pytest.raises(ConfigError, match="only classes are mixed"):
        Loader(Mapped(3), PIXELS, mix=Mix(mixup=0.2))
    with pytest.raises(ConfigError, match="zoom is for label maps"):
        Loader(array_data(), SMALL, augment=Augment(zoom=(0.5, 2.0)))


def test_targets_of_classes_come_from_labels() -> None:
    for labels in (torch.tensor([1, 0]), torch.rand(2, 5)):
        targets = as_targets(labels)
        assert all(isinstance(target, ClassTarget) for target in targets)
        assert torch.equal(torch.stack([target.label for target in targets]), labels)
    batch = next(iter(Loader(Mapped(2), PIXELS)))
    assert batch.to("meta").labels.shape == batch.labels.shape


# --- pictures as they are


def indices(batches: Sequence[PictureBatch]) -> list[tuple[int, ...]]:
    return [batch.indices for batch in batches]


def test_pictures_come_in_order_untouched() -> None:
    data = Mapped(7)
    pictures = Pictures(data, batch_size=3)
    batches = list(pictures.epoch())
    assert indices(batches) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert len(pictures) == 3
    for batch in batches:
        assert len(batch) == len(batch.pictures) == len(batch.targets)
        for index, picture, target, source in zip(
            batch.indices, batch.pictures, batch.targets, batch.sources, strict=True
        ):
            expected = data[index]
            assert torch.equal(picture, expected.image)
            assert torch.equal(target.labels, expected.target.labels)
            assert source == f"{index}.png"
    assert indices(list(pictures.epoch(5))) == indices(batches), "every epoch is the same"
    assert indices(list(pictures.epoch(0, start_batch=1))) == [(3, 4, 5), (6,)]
    assert list(pictures.epoch(0, start_batch=3)) == []


def test_unreadable_pictures_are_skipped_once_and_named() -> None:
    pictures = Pictures(Mapped(8, bad=[1, 3, 4, 5]), batch_size=3)
    assert indices(list(pictures.epoch())) == [(0, 2), (6, 7)]
    list(pictures.epoch())
    assert pictures.skipped == [f"{index}.png: the picture is damaged; copy it again" for index in (1, 3, 4, 5)]


def test_strict_pictures_fail_at_the_first_unreadable_one() -> None:
    pictures = Pictures(Mapped(8, bad=[4, 6]), batch_size=3, strict=True)
    batches = pictures.epoch()
    assert next(batches).indices == (0, 1, 2)
    with pytest.raises(ImageError, match=r"^4\.png"):
        next(batches)


def test_other_errors_are_never_taken_for_an_unreadable_picture() -> None:
    error = DataError("the mask is 4x5, the picture 6x5", where="2.png")
    pictures = Pictures(Mapped(6, bad=[2], error=error), batch_size=2)
    with pytest.raises(DataError, match="the mask is 4x5"):
        list(pictures.epoch())
    assert pictures.skipped == []


def test_reading_runs_ahead_by_two_batches_at_most() -> None:
    data = Mapped(40)
    batches = Pictures(data, batch_size=4).epoch()
    for done in range(1, 4):
        next(batches)
        assert max(data.read) < (done + 2) * 4
    batches.close()
    assert max(data.read) < 20, "leaving the loop ends the reading"


def test_no_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        Pictures(Mapped(0))
