"""Result files of anyone's model: COCO's own fake results, and files with mistakes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from saccade.errors import DataError
from saccade.tasks import EvaluateConfig
from saccade.tasks.results import score_results

REFERENCE = Path(__file__).parent / "coco_reference"
QUICK = EvaluateConfig(detection_resamples=5)

NAMES = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large"}
NAMES |= {"AR1": "ar_1", "AR10": "ar_10", "AR100": "ar_100", "ARs": "ar_small", "ARm": "ar_medium", "ARl": "ar_large"}


def unpacked(name: str, folder: Path) -> Path:
    path = folder / f"{name}.json"
    path.write_bytes(gzip.decompress((REFERENCE / f"{name}.json.gz").read_bytes()))
    return path


@pytest.mark.parametrize(("name", "kind", "prefix"), [("boxes", "bbox", ""), ("masks", "segm", "mask_")])
def test_cocos_fake_results_get_cocos_figures(tmp_path: Path, name: str, kind: str, prefix: str) -> None:
    truth = unpacked("instances", tmp_path)
    expected = json.loads((REFERENCE / "expected.json").read_text())[kind]
    evaluation = score_results(unpacked(name, tmp_path), truth, config=QUICK)
    assert evaluation.task == ("instance" if name == "masks" else "detection")
    for theirs, ours in NAMES.items():
        assert evaluation.metrics[prefix + ours] == pytest.approx(expected["stats"][theirs], abs=1e-6), ours
    categories = {category["id"]: category["name"] for category in json.loads(truth.read_text())["categories"]}
    per_class = {row.name: row.ap for row in evaluation.per_class}
    for number, figure in expected["per_category_AP"].items():
        assert per_class[categories[int(number)]] == pytest.approx(figure, abs=1e-6)
    assert (evaluation.num_images, evaluation.num_detections) == (100, 734)


# --- small files


def truth_of(folder: Path, **more: Any) -> Path:
    """Two pictures of 100x80 pixels; a cat in the first, a dog with a mask and a cat in the second."""
    square = [[10, 10, 40, 10, 40, 40, 10, 40]]
    content = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80},
            {"id": 3, "file_name": "b.jpg", "width": 100, "height": 80},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 10, 30, 30], "segmentation": square, "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 90, "bbox": [10, 10, 30, 30], "segmentation": square},
        ],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps({**content, **more}))
    return path


def results_of(folder: Path, *entries: Any) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(list(entries)))
    return path


def entry(image: Any = 7, category: Any = 2, score: Any = 0.9, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "score": score, "bbox": [10, 10, 30, 30], **more}


def runs(width: int, height: int, counts: Any = None) -> dict[str, Any]:
    """The square from 10 to 40, as plain run lengths."""
    columns = [10 * height + 10] + [30, height - 30] * 29 + [30, (width - 40) * height + height - 40]
    return {"size": [height, width], "counts": columns if counts is None else counts}


def test_sparse_ids_are_joined_and_both_kinds_are_read(tmp_path: Path) -> None:
    truth = truth_of(tmp_path)
    evaluation = score_results(results_of(tmp_path, entry(), entry(3, 90, 0.8)), truth, config=QUICK)
    assert evaluation.classes == ("cat", "dog")
    assert evaluation.metrics["ap"] == 1.0
    assert evaluation.confusion == ((1, 0), (0, 1))
    assert evaluation.worst[0].source.startswith("truth.json#")
    assert evaluation.settings["boxes"] == "as in the file"
    masked = results_of(tmp_path, entry(segmentation=runs(100, 80)), entry(3, 90, segmentation=runs(100, 80)))
    evaluation = score_results(masked, truth, config=QUICK)
    assert (evaluation.task, evaluation.metrics["mask_ap"]) == ("instance", 1.0)
    assert score_results(masked, truth, task="detection", config=QUICK).task == "detection"


def test_masks_alone_and_polygons_alone_give_boxes_too(tmp_path: Path) -> None:
    square = [[10, 10, 40, 10, 40, 40, 10, 40]]
    for shape in (runs(100, 80), square):
        one = {"image_id": 7, "category_id": 2, "score": 0.9, "segmentation": shape}
        evaluation = score_results(results_of(tmp_path, one), truth_of(tmp_path), config=QUICK)
        assert evaluation.task == "instance"
        assert evaluation.settings["boxes"] == "around the masks"
        assert evaluation.per_class[0].box_ap == 1.0
    # Beside a box a polygon is its outline, as COCO's program leaves it there.
    outlined = results_of(tmp_path, entry(segmentation=square))
    assert score_results(outlined, truth_of(tmp_path), config=QUICK).task == "detection"


def test_areas_are_those_of_the_file(tmp_path: Path) -> None:
    """A box of 30x30 is small, but the file says 2,000 pixels."""
    told = {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 10, 30, 30], "area": 2000}
    evaluation = score_results(results_of(tmp_path, entry()), truth_of(tmp_path, annotations=[told]), config=QUICK)
    assert (evaluation.metrics["ap_small"], evaluation.metrics["ap_medium"]) == (None, 1.0)


def test_a_folder_of_splits_gives_the_held_out_one(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        truth_of(tmp_path).rename(tmp_path / "annotations" / f"instances_{split}.json")
    results = tmp_path / "elsewhere"
    results.mkdir()
    path = results_of(results, entry())
    assert score_results(path, tmp_path, config=QUICK).worst[0].source.startswith("instances_val.json#")
    train = score_results(path, tmp_path, split="train", config=QUICK)
    assert train.worst[0].source.startswith("instances_train.json#")
    with pytest.raises(DataError, match="no split 'test'"):
        score_results(path, tmp_path, split="test")


def test_no_detection_at_all_is_zero(tmp_path: Path) -> None:
    evaluation = score_results(results_of(tmp_path), truth_of(tmp_path), config=QUICK)
    assert (evaluation.task, evaluation.metrics["ap"]) == ("detection", 0.0)


LEAVING = [entry(bbox=[30, 20, 90, 70]) for _ in range(6)]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([entry(), entry(8), entry(9)], r"\[1\]: image_id is 8, .*2 of 3 detections.*one of: 3, 7"),
        ([entry(category=3)], r"\[0\]: category_id is 3, .*one of: 2, 90"),
        ([entry(category="2")], "category_id is '2'"),
        ([entry(), entry(score=1.5)], r"\[1\]: score is 1.5; expected a number from 0 to 1"),
        ([entry(score=None)], "score is None"),
        ([entry(score=float("nan"))], "score is nan"),
        ([{"image_id": 7, "category_id": 2}], "score is missing"),
        ([5], "no detection"),
        ([entry(bbox=[0, 0, -1, 5])], "bbox is .*width, height"),
        ([entry(bbox=[0, 0, 5])], "bbox is"),
        ([entry(bbox=None)], "no box and some no mask"),
        (LEAVING, "6 of 6 boxes leave their picture, .*corners.*subtract"),
        ([entry(segmentation=runs(50, 80))], "run lengths are of 50x80 pixels; expected 100x80"),
        ([entry(segmentation=runs(100, 80, [5, 5]))], "make 10 pixels; expected 8000"),
        ([entry(segmentation=runs(100, 80, "o" * 25))], "damaged"),
        ([entry(segmentation=runs(100, 80, [-5, 8005]))], "damaged; expected"),
        ([entry(segmentation=runs(100, 80, 5))], "damaged; expected"),
        ([entry(segmentation={"counts": "a"})], "neither polygons nor run lengths"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, entries: list[Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        score_results(results_of(tmp_path, *entries), truth_of(tmp_path), config=QUICK)


def test_a_few_boxes_beyond_the_border_are_let_be(tmp_path: Path) -> None:
    evaluation = score_results(results_of(tmp_path, *LEAVING[:3], entry()), truth_of(tmp_path), config=QUICK)
    assert evaluation.num_detections == 4


def test_files_that_are_something_else_are_named(tmp_path: Path) -> None:
    truth, results = truth_of(tmp_path), results_of(tmp_path, entry())
    with pytest.raises(DataError, match="file of ground truth"):
        score_results(truth, truth)
    with pytest.raises(DataError, match="list"):
        score_results(results, results)
    with pytest.raises(DataError, match="no such file"):
        score_results(tmp_path / "no.json", truth)
    with pytest.raises(DataError, match="no such file"):
        score_results(results, tmp_path / "no.json")
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        score_results(tmp_path / "no.json", truth)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="saccade data convert"):
        score_results(results, tmp_path / "pictures")


def test_masks_that_are_wanted_and_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="results have no masks"):
        score_results(results_of(tmp_path, entry()), truth_of(tmp_path), task="instance")
    plain = {"id": 4, "image_id": 7, "category_id": 2, "bbox": [10, 10, 30, 30]}
    masked = results_of(tmp_path, entry(segmentation=runs(100, 80)))
    with pytest.raises(DataError, match="annotation 4: the object has no mask"):
        score_results(masked, truth_of(tmp_path, annotations=[plain]))
