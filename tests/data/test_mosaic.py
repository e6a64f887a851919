"""Four pictures in one: every box and mask lies where the colour of its object is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saccade.data.loader import Loader, LoaderConfig
from saccade.data.mosaic import Mosaic, compose
from saccade.data.source import DataSource
from saccade.data.synthetic import synthetic_objects
from saccade.data.transforms import Augment, Key
from saccade.engine.checkpoint import load_state
from saccade.engine.feed import mosaic_for
from saccade.engine.plan import TrainConfig
from saccade.engine.train import resume, train
from saccade.errors import ConfigError
from saccade.models.build import create
from saccade.ops.image import Preprocess
from saccade.types import BoxTarget, Classes, ImageBatch, Masks, Sample

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
LETTERBOX = Preprocess(size=(64, 64), policy="letterbox")
FLIPPED = Augment(flip=0.5, flip_vertical=0.5)


def sample(index: int, size: tuple[int, int] = (64, 64), box: tuple[int, int, int, int] = (16, 12, 48, 44)) -> Sample:
    """A black picture with one rectangle of its own colour."""
    left, top, right, bottom = box
    inside = torch.zeros(1, *size, dtype=torch.bool)
    inside[:, top:bottom, left:right] = True
    image = COLOURS[index % 4][:, None, None] * inside
    target = BoxTarget.of(torch.tensor([box]).float(), torch.tensor([index]), Masks.of(inside))
    return Sample(image, target, f"{index}.png")


class Rectangles:
    """Pictures of one rectangle each."""

    task = "detection"
    licence: str | None = None
    classes = Classes.numbered(12)

    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return sample(index)

    def fingerprint(self) -> str:
        return "0"


def coloured(image: Tensor, index: int) -> Tensor:
    """The pixels ``[H, W]`` that are of an object's colour, more or less: resizing blurs the edges."""
    return ((image.int() - COLOURS[index % 4][:, None, None].int()).abs() < 128).all(0)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (90, 60)])
@pytest.mark.parametrize("epoch", range(4))
def test_boxes_and_masks_lie_where_the_colour_is(size: tuple[int, int], epoch: int) -> None:
    samples = [sample(index, size) for index in range(4)]
    image, target = compose(samples, Mosaic(), FLIPPED, LETTERBOX, Key(0, epoch, [0]))
    assert tuple(image.shape) == (3, 64, 64)
    assert len(target)
    assert target.masks is not None
    for row, label in enumerate(target.labels.tolist()):
        mask = coloured(image, label)
        rows, columns = torch.nonzero(mask.any(1))[:, 0], torch.nonzero(mask.any(0))[:, 0]
        edges = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        assert float((edges - target.boxes[row]).abs().max()) <= 1
        ours = target.masks[row]
        assert float((ours & mask).sum()) >= 0.9 * float((ours | mask).sum())
    # What is gone has left nearly nothing behind.
    for label in set(range(4)) - set(target.labels.tolist()):
        left, top, right, bottom = samples[label].target.boxes[0].tolist()  # type: ignore[union-attr]
        largest = (64 / max(size) * 1.5) ** 2 * (right - left) * (bottom - top)
        assert int(coloured(image, label).sum()) < 0.3 * largest


@pytest.mark.parametrize("epoch", range(6))
def test_without_zoom_the_place_is_exact(epoch: int) -> None:
    """Pictures as large as the canvas, of one colour: every part is a window at scale 1, so edges are exact."""
    samples = [sample(index, box=(0, 0, 64, 64)) for index in range(4)]
    image, target = compose(samples, Mosaic(zoom=(1, 1)), Augment(), LETTERBOX, Key(3, epoch, [0]))
    right, down = int(coloured(image, 0)[0].sum()), int(coloured(image, 0)[:, 0].sum())
    assert 16 <= right <= 48
    assert 16 <= down <= 48
    parts = torch.tensor([[0, 0, right, down], [right, 0, 64, down], [0, down, right, 64], [right, down, 64, 64]])
    for index, (left, top, end, bottom) in enumerate(parts.tolist()):
        assert bool((image[:, top:bottom, left:end] == COLOURS[index][:, None, None]).all())
    # Of an object that is cut, a quarter must be left.
    is_kept = (parts[:, 2:] - parts[:, :2]).prod(1) >= 64 * 64 / 4
    assert target.labels.tolist() == torch.nonzero(is_kept)[:, 0].tolist()
    assert torch.equal(target.boxes, parts[is_kept].float())


def test_a_blended_picture_keeps_the_objects_of_both() -> None:
    samples = [*(sample(index) for index in range(4)), sample(3, box=(0, 0, 64, 64))]
    key = Key(0, 0, [0])
    alone, four = compose(samples[:4], Mosaic(), Augment(), LETTERBOX, key)
    blended, five = compose(samples, Mosaic(), Augment(), LETTERBOX, key)
    assert five.labels.tolist() == [*four.labels.tolist(), 3]
    assert five.boxes[-1].tolist() == [0, 0, 64, 64]
    assert torch.equal(blended, ((alone.int() + COLOURS[3][:, None, None].int() + 1) // 2).to(torch.uint8))


def test_shares_of_pictures_are_kept() -> None:
    numbers = [len(Mosaic(probability=0.5, mixup=0.25).partners(50, Key(0, 0, [index]))) for index in range(2000)]
    assert numbers.count(0) / 2000 == pytest.approx(0.5, abs=0.05)
    assert numbers.count(4) / 2000 == pytest.approx(0.125, abs=0.03)
    assert set(numbers) == {0, 3, 4}


@pytest.mark.parametrize(("closed", "expected"), [(0.2, 8), (0.0, 10), (1.0, 0), (0.25, 8)])
def test_the_last_epochs_are_closed(closed: float, expected: int) -> None:
    assert Mosaic(closed=closed).open_epochs(10) == expected


def images_of(loader: Loader, epoch: int, start: int = 0) -> list[tuple[Tensor, list[list[float]]]]:
    return [
        (batch.images.pixels, [box for target in batch.targets for box in target.boxes.tolist()])
        for batch in loader.epoch(epoch, start)
    ]


def same(ones: Sequence[tuple[Tensor, list[list[float]]]], others: Sequence[tuple[Tensor, list[list[float]]]]) -> bool:
    pairs = zip(ones, others, strict=True)
    return all(torch.equal(one[0], other[0]) and one[1] == other[1] for one, other in pairs)


def loader(workers: int = 0, mosaic: Mosaic | None = None, epochs: int = 2) -> Loader:
    config = LoaderConfig(batch_size=4, workers=workers)
    return Loader(Rectangles(), LETTERBOX, config, shuffle=True, seed=5, mosaic=mosaic, mosaic_epochs=epochs)


def test_a_batch_depends_on_seed_epoch_and_place_alone() -> None:
    whole = images_of(loader(mosaic=Mosaic()), 1)
    assert same(images_of(loader(mosaic=Mosaic()), 1, start=2), whole[2:])
    assert same(images_of(loader(2, Mosaic()), 1), whole)
    assert not same(images_of(loader(mosaic=Mosaic()), 0), whole)


def test_closed_epochs_see_pictures_as_they_are() -> None:
    plain, closing = loader(), loader(mosaic=Mosaic())
    assert not same(images_of(closing, 1), images_of(plain, 1))
    assert same(images_of(closing, 2), images_of(plain, 2))


def test_models_say_whether_they_want_it() -> None:
    config = TrainConfig(epochs=10)
    assert mosaic_for(create("yolo_test"), config)[1] == 8
    assert mosaic_for(create("faster_rcnn_test"), config) == (None, 0, [])
    assert mosaic_for(create("faster_rcnn_test"), TrainConfig(mosaic=Mosaic(use="on")))[0] is not None
    assert mosaic_for(create("yolo_test"), TrainConfig(mosaic=Mosaic(use="off"))) == (None, 0, [])
    assert "first 8 of 10" in mosaic_for(create("yolo_test"), config)[2][0]
    with pytest.raises(ConfigError, match="objects"):
        mosaic_for(create("vit_average_test"), TrainConfig(mosaic=Mosaic(use="on")))


@pytest.mark.parametrize("wrong", [{"probability": 1.5}, {"closed": -0.1}, {"zoom": (0.0, 1.0)}, {"zoom": (2.0, 1.0)}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Mosaic(**wrong)  # type: ignore[arg-type]


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    splits = {name: synthetic_objects(8, 64, seed) for seed, name in enumerate(("train", "val"))}
    classes = splits["train"].classes
    config = TrainConfig(epochs=3, batch_size=4, precision="32", ema_decay=0.5, workers=0, checkpoint_steps=1)
    states = []
    for stop in (0, 3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = create("yolo_test", classes=classes.names)
        out = tmp_path / str(stop)
        data = DataSource(dict(splits), classes, "scenes", "scenes")
        records = train(model, data, config, out=out)
        if stop:
            for _ in range(stop):
                next(records)
            records.close()
            records = resume(out, data)
        told = [note for record in records for note in record.notes]
        assert any("mosaic" in note for note in told)
        states.append(load_state(out / "last.ckpt")["model"])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.isfinite(model(ImageBatch.of(torch.rand(1, 3, 64, 64))).one_logits).all()


def test_the_four_get_their_colours_together() -> None:
    samples = [sample(index) for index in range(4)]
    key = Key(0, 0, [0])
    plain, target = compose(samples, Mosaic(), Augment(), LETTERBOX, key)
    varied, moved = compose(samples, Mosaic(), Augment(colour=0.8), LETTERBOX, key)
    assert torch.equal(varied, Augment(colour=0.8).recolour(plain[None], LETTERBOX, key)[0])
    assert not torch.equal(varied, plain)
    assert torch.equal(target.boxes, moved.boxes)


def test_small_data_are_decoded_once_and_what_does_not_fit_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Rectangles):
        def __init__(self) -> None:
            super().__init__(6)
            self.decoded: list[int] = []

        def __getitem__(self, index: int) -> Sample:
            self.decoded.append(index)
            return super().__getitem__(index)

    def batches(room: int) -> tuple[list[Tensor], list[int]]:
        monkeypatch.setattr("saccade.data.loader._MEMORY", room)
        data = Counted()
        loader = Loader(data, LETTERBOX, LoaderConfig(batch_size=3), shuffle=True, mosaic=Mosaic(), mosaic_epochs=2)
        pixels = [batch.images.pixels for epoch in range(2) for batch in loader.epoch(epoch)]
        return pixels, data.decoded

    picture = 3 * 64 * 64
    kept, once = batches(6 * picture)
    some, _ = batches(2 * picture)
    none, every = batches(0)
    assert sorted(once) == list(range(6))
    assert len(every) == 2 * 6 * 4
    for one, other, third in zip(kept, some, none, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
