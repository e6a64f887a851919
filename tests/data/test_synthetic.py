from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.dataset import Dataset, InMemory, subset
from saccade.data.shapes import SHAPES, inside
from saccade.data.source import open_data
from saccade.data.synthetic import (
    Scene,
    SceneConfig,
    SyntheticClassification,
    SyntheticObjects,
    draw_all,
    draw_scene,
    synthetic_objects,
)
from saccade.data.write import plain_run_lengths, write_scenes
from saccade.errors import ConfigError, DataError, UnknownNameError
from saccade.ops.boxes import box_iou
from saccade.types import BoxTarget, Classes

CROWDED = SceneConfig(size=(64, 80), objects=(1, 4), noise=0.0)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi),
        ("square", 1.6**2),
        ("triangle", 3 * math.sqrt(3) / 4),
        ("star", 5 * 0.45 * math.sin(math.pi / 5)),
        ("cross", 2 * 0.6 * 1.9 - 0.6**2),
        ("ring", math.pi * (1 - 0.55**2)),
    ],
)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_areas_of_shapes(shape: str, area: float, angle: float) -> None:
    mask = inside(shape, (400, 400), (200, 200), 150, angle)
    assert mask.sum() / 150**2 == pytest.approx(area, rel=0.01)


def test_every_shape_is_tested() -> None:
    assert set(SHAPES) == {"circle", "square", "triangle", "star", "cross", "ring"}


def test_triangle_points_up_and_turns_clockwise() -> None:
    up = inside("triangle", (100, 100), (50, 50), 40, 0.0)
    assert up[11:20].sum() < up[60:69].sum()
    right = inside("triangle", (100, 100), (50, 50), 40, math.pi / 2)
    assert right[:, 80:].any()
    assert not right[:, :29].any()


@pytest.mark.parametrize("index", range(12))
def test_masks_boxes_and_pixels_agree(index: int) -> None:
    scene = draw_scene(CROWDED, 5, index)
    assert scene.image.shape == (3, 64, 80)
    assert 1 <= len(scene.objects) <= 4
    taken = torch.zeros(64, 80, dtype=torch.int64)
    for thing in scene.objects:
        rows, columns = torch.nonzero(thing.mask, as_tuple=True)
        assert thing.box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert thing.box.dtype == torch.float32
        taken += thing.mask
        # Inside the mask are only the object's colour and its half: the hue is that of the object everywhere.
        colours = scene.image[:, thing.mask].float()
        hue = colours / colours.amax(0)
        assert float(hue.std(1).max()) < 0.03
    assert int(taken.max()) == 1, "visible pixels belong to one object"
    assert set(scene.caption.replace(",", "").split()) >= {thing.shape for thing in scene.objects[:1]}


def test_pixels_outside_all_masks_do_not_change_with_the_objects() -> None:
    scene = draw_scene(CROWDED, 5, 0)
    background = ~torch.stack([thing.mask for thing in scene.objects]).any(0)
    colours = scene.image[:, background].float()
    assert float((colours / colours.amax(0)).std(1).max()) < 0.03


def test_the_same_seed_draws_the_same_scene() -> None:
    one, two = draw_scene(CROWDED, 1, 4), draw_scene(CROWDED, 1, 4)
    assert torch.equal(one.image, two.image)
    assert one.caption == two.caption
    for seed, index in ((2, 4), (1, 10)):
        assert not torch.equal(one.image, draw_scene(CROWDED, seed, index).image)


def test_captions_with_two_objects_say_where() -> None:
    config = SceneConfig(objects=(2, 2))
    scenes = [draw_scene(config, 0, index) for index in range(20)]
    assert any("to the left of" in scene.caption for scene in scenes)
    for scene in (scene for scene in scenes if len(scene.objects) == 2):
        first, second = (float(thing.box[[0, 2]].mean()) for thing in scene.objects)
        assert ("to the left of" in scene.caption) == (first < second)
        assert scene.caption.startswith(scene.objects[0].phrase)


def test_label_map_matches_masks() -> None:
    classes = Classes(CROWDED.shapes)
    scene = draw_scene(CROWDED, 5, 3)
    labels = scene.label_map(classes)
    for thing in scene.objects:
        assert labels[thing.mask].unique().tolist() == [classes.id(thing.shape) + 1]
    assert int((labels > 0).sum()) == sum(int(thing.mask.sum()) for thing in scene.objects)


def test_shortcut_marks_its_class_and_no_object_covers_it() -> None:
    config = SceneConfig(shortcut="star", noise=0.0)
    for index in range(18):
        scene = draw_scene(config, 0, index)
        assert scene.has_watermark == (scene.objects[0].shape == "star")
        if scene.has_watermark:
            assert scene.watermark.shape == scene.image.shape[1:]
            assert set(scene.image[:, scene.watermark].unique().tolist()) == {0, 255}
            assert not (scene.watermark & scene.objects[0].mask).any()


def test_shortcut_rates() -> None:
    config = SceneConfig(size=(16, 16), shortcut="star", shortcut_rate=0.5, shortcut_leak=0.25)
    scenes = [draw_scene(config, 0, index) for index in range(480)]
    marks = {True: [], False: []}
    for scene in scenes:
        marks[scene.objects[0].shape == "star"].append(scene.has_watermark)
    assert np.mean(marks[True]) == pytest.approx(0.5, abs=0.15)
    assert np.mean(marks[False]) == pytest.approx(0.25, abs=0.07)


def test_data_set_in_memory() -> None:
    data = SyntheticClassification(12, SceneConfig(size=(32, 32)), seed=1)
    assert isinstance(data, Dataset)
    assert isinstance(data, InMemory)
    assert torch.bincount(data.labels()).tolist() == [2] * 6
    assert torch.equal(data[5].image, data.scenes[5].image)
    assert data.classes[int(data[5].target.label)] == data.scenes[5].objects[0].shape
    later = SyntheticClassification(6, SceneConfig(size=(32, 32)), seed=1, start=6)
    assert torch.equal(later[0].image, data[6].image)
    assert later[0].source != ""
    assert later.source(0) == data.source(6)
    assert later.fingerprint() != data.fingerprint()


def test_written_class_folders_are_read_back(tmp_path: Path) -> None:
    out = write_scenes(tmp_path / "scenes", count=60, size=32, seed=3)
    source = open_data(out)
    assert source.notes == []
    assert {split: len(data) for split, data in source.splits.items()} == {"train": 48, "val": 12}
    assert torch.bincount(source.splits["val"].labels()).tolist() == [2] * 6
    assert source.splits["train"].licence == "CC0 1.0"
    facts = json.loads((out / "scenes.json").read_text())
    number = int(Path(facts["scenes"][7]["file"]).stem)
    stored = np.asarray(Image.open(out / facts["scenes"][7]["file"]))
    drawn = draw_scene(SceneConfig(size=(32, 32)), 3, number)
    assert np.array_equal(stored, drawn.image.permute(1, 2, 0).numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"], "no temporary folder is left"


def test_written_segmentation(tmp_path: Path) -> None:
    out = write_scenes(tmp_path / "s", count=30, size=32, task="segmentation")
    assert json.loads((out / "classes.json").read_text())[:2] == ["background", "circle"]
    config = SceneConfig(size=(32, 32), objects=(1, 4))
    labels = np.asarray(Image.open(out / "masks/train/000003.png"))
    assert np.array_equal(labels, draw_scene(config, 0, 3).label_map(Classes(config.shapes)).numpy())
    images = sorted(path.relative_to(out / "images") for path in (out / "images").rglob("*.png"))
    assert images == sorted(path.relative_to(out / "masks") for path in (out / "masks").rglob("*.png"))


def test_written_coco(tmp_path: Path) -> None:
    out = write_scenes(tmp_path / "s", count=30, size=(24, 40), task="detection")
    config = SceneConfig(size=(24, 40), objects=(1, 4))
    coco = json.loads((out / "annotations/instances_val.json").read_text())
    assert [category["name"] for category in coco["categories"]] == list(config.shapes)
    image = coco["images"][2]
    scene = draw_scene(config, 0, int(Path(image["file_name"]).stem))
    assert (out / "images/val" / image["file_name"]).is_file()
    mine = [note for note in coco["annotations"] if note["image_id"] == image["id"]]
    assert len(mine) == len(scene.objects)
    for note, thing in zip(mine, scene.objects, strict=True):
        left, top, width, height = note["bbox"]
        assert [left, top, left + width, top + height] == thing.box.tolist()
        runs, decoded = note["segmentation"]["counts"], []
        for place, run in enumerate(runs):
            decoded += [place % 2] * run
        mask = np.array(decoded, bool).reshape(40, 24).T
        assert np.array_equal(mask, thing.mask.numpy())
        assert note["area"] == int(thing.mask.sum())
        assert config.shapes[note["category_id"] - 1] == thing.shape


def test_run_lengths_closed_form() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]], dtype=torch.bool)
    assert plain_run_lengths(mask) == {"size": [2, 3], "counts": [2, 1, 1, 2]}
    assert plain_run_lengths(torch.ones(2, 2, dtype=torch.bool))["counts"] == [0, 4]
    assert plain_run_lengths(torch.zeros(2, 2, dtype=torch.bool))["counts"] == [4]


def test_written_captions(tmp_path: Path) -> None:
    out = write_scenes(tmp_path / "s", count=30, size=32, task="captions")
    with (out / "captions.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 30
    assert all((out / row["path"]).is_file() for row in rows)
    assert rows[4]["caption"] == draw_scene(SceneConfig(size=(32, 32), objects=(1, 4)), 0, 4).caption


def test_bad_requests_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'segmentation'"):
        write_scenes(tmp_path / "s", task="segmentaton")
    with pytest.raises(ConfigError, match="at least 30"):
        write_scenes(tmp_path / "s", count=3)
    with pytest.raises(ConfigError, match="too small"):
        write_scenes(tmp_path / "s", size=4)
    with pytest.raises(UnknownNameError, match="did you mean 'star'"):
        write_scenes(tmp_path / "s", shortcut="stars")
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="exists already"):
        write_scenes(tmp_path / "there")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_scenes(tmp_path / "file" / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_scenes(tmp_path / "s", count=30, size=16)
    assert list(tmp_path.iterdir()) == []


# --- objects


def test_objects_in_memory_have_exact_boxes_and_masks() -> None:
    data = synthetic_objects(12, (48, 64), 3)
    assert isinstance(data, Dataset)
    assert data.task == "instance"
    assert data.classes.names == tuple(SHAPES)
    for index, sample in enumerate(data):
        target = sample.target
        assert isinstance(target, BoxTarget)
        assert target.masks is not None
        scene = draw_scene(data.config, 3, index)
        assert torch.equal(sample.image, scene.image)
        assert [data.classes[label] for label in target.labels.tolist()] == [thing.shape for thing in scene.objects]
        assert torch.equal(target.masks.dense(), torch.stack([thing.mask for thing in scene.objects]))
        assert torch.equal(target.boxes, target.masks.boxes())
        assert not target.crowd.any()


def test_objects_without_masks_are_for_detection() -> None:
    boxes, masks = (synthetic_objects(3, 48, task=task) for task in ("detection", "instance"))
    assert boxes.task == "detection"
    assert all(sample.target.masks is None for sample in boxes)
    assert torch.equal(boxes[2].target.boxes, masks[2].target.boxes)
    assert boxes.fingerprint() != masks.fingerprint()
    with pytest.raises(ConfigError, match="instance or detection"):
        synthetic_objects(3, 48, task="semantic")


def test_two_objects_of_one_class_and_overlaps_are_frequent() -> None:
    targets = [sample.target for sample in synthetic_objects(100, 48)]
    pairs = sum(len(target.labels.unique()) < len(target) for target in targets)
    overlaps = sum(bool(((box_iou(t.boxes, t.boxes) > 0).sum(1) > 1).any()) for t in targets)
    assert pairs >= 50
    assert overlaps >= 50


def test_seed_and_number_decide_the_objects() -> None:
    one, later = synthetic_objects(6, 48, 1), synthetic_objects(2, 48, 1, start=4)
    assert torch.equal(one[4].image, later[0].image)
    assert one[5].source == later[1].source == "synthetic/1#5"
    assert one.fingerprint() == synthetic_objects(6, 48, 1).fingerprint()
    others = (synthetic_objects(6, 48, 2), synthetic_objects(6, 50, 1), synthetic_objects(6, 48, 1, start=1))
    assert len({one.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_the_radius_decides_the_size() -> None:
    config = SceneConfig(size=(200, 200), shapes=("circle",), radius=(0.1, 0.1))
    for index in range(3):
        left, top, right, bottom = draw_scene(config, 0, index).objects[0].box.tolist()
        assert right - left == pytest.approx(40, abs=1)
        assert bottom - top == pytest.approx(40, abs=1)
    with pytest.raises(ConfigError, match="radius"):
        SceneConfig(radius=(0.3, 0.2))


def test_objects_are_written_as_coco_with_run_lengths(tmp_path: Path) -> None:
    out = write_scenes(tmp_path / "s", count=30, size=32, task="instance", seed=2)
    coco = json.loads((out / "annotations/instances_train.json").read_text())
    truth = {
        f"{index:06d}.png": draw_scene(SceneConfig(size=(32, 32), objects=(1, 4)), 2, index) for index in range(30)
    }
    for image in coco["images"]:
        mine = [note for note in coco["annotations"] if note["image_id"] == image["id"]]
        scene = truth[image["file_name"]]
        assert [note["segmentation"] for note in mine] == [plain_run_lengths(thing.mask) for thing in scene.objects]
    read = open_data(out, task="instance").split("train")
    for sample in read:
        target, scene = sample.target, truth[Path(sample.source).name]
        assert torch.equal(target.masks.dense(), torch.stack([thing.mask for thing in scene.objects]))
        assert torch.equal(target.boxes, torch.stack([thing.box for thing in scene.objects]))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the scenes that were drawn, as often as they were."""
    numbers: list[int] = []

    def draw(config: SceneConfig, seed: int, index: int) -> Scene:
        numbers.append(index)
        return draw_scene(config, seed, index)

    monkeypatch.setattr("saccade.data.synthetic.draw_scene", draw)
    return numbers


def test_scenes_are_drawn_when_they_are_looked_at(drawn: list[int]) -> None:
    config = SceneConfig(size=(32, 32), objects=(1, 3))
    many, classes = SyntheticObjects(1_000_000, config), SyntheticClassification(1_000_000, config)
    labels = classes.labels()[[7, 999_999]]
    assert many.fingerprint() != classes.fingerprint()
    assert drawn == []
    assert torch.equal(many[999_999].image, draw_scene(config, 0, 999_999).image)
    assert many[-1] is many[999_999]
    assert many[-1].source == "synthetic/0#999999"
    assert torch.equal(classes.gather(torch.tensor([7, 999_999])).labels, labels)
    assert drawn == [999_999, 7, 999_999]
    scenes = [classes.scenes[7], *classes.scenes[999_999:]]
    assert [scene.objects[0].shape for scene in scenes] == [classes.classes[int(label)] for label in labels]
    with pytest.raises(IndexError):
        many[1_000_000]


def test_scenes_can_be_drawn_beforehand(drawn: list[int]) -> None:
    config = SceneConfig(size=(32, 32))
    classes, objects = SyntheticClassification(6, config), SyntheticObjects(6, config)
    draw_all(subset(classes, [1, 4]))
    draw_all(objects)
    assert drawn == [1, 4, 0, 1, 2, 3, 4, 5]
    for index in range(6):
        classes[index], objects[index]
    assert drawn[8:] == [0, 2, 3, 5]
