"""Detectors through the verbs: from the words on the line to the files on the disk; and what is said to bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import saccade
from saccade.data.write import write_scenes
from saccade.types import Detections

pytestmark = pytest.mark.xdist_group("verbs")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO JSON of 30 scenes with shapes, 64x64, boxes and masks. Leave them."""
    root = tmp_path_factory.mktemp("objects") / "scenes"
    write_scenes(root, count=30, size=64, task="instance", seed=0)
    return root


@pytest.fixture(scope="module")
def trained_detector(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """The run folder of a tiny Mask R-CNN that has seen 24 scenes for some seconds. Leave it."""
    run = tmp_path_factory.mktemp("runs") / "shapes"
    saccade.train(
        "mask_rcnn_test",
        scenes,
        out=run,
        epochs=40,
        batch_size=8,
        learning_rate=5e-3,
        validate_every=20,
        ema_decay=0.5,
        precision="32",
        quiet=True,
    )
    return run


@pytest.fixture
def places(tmp_path: Path, scenes: Path, trained_detector: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """What a line of words may name, as ``{name}``; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    picture = min((scenes / "images/val").iterdir())
    truth = scenes / "annotations/instances_val.json"
    return {"data": scenes, "run": trained_detector, "picture": picture, "truth": truth}


@pytest.fixture
def refused(command: Any, places: dict[str, Path]) -> Callable[[str], str]:
    """``refused("evaluate {run} {data}")`` -> the one sentence that this is answered with."""

    def run(line: str) -> str:
        ended = command(*line.format(**places).split())
        assert ended.status == 2, ended
        assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
        return str(ended.err[len("error: ") : -1])

    return run


# --- what works


def test_a_run_finds_something(trained_detector: Path) -> None:
    metrics = json.loads((trained_detector / "metrics.json").read_text())
    assert metrics["headline"] == "mask_ap"
    assert metrics["metrics"]["ap50"] > 0.01, "the other tests need a model that is not blind"


@pytest.mark.usefixtures("short_report")
def test_evaluate_prints_the_figures_with_all_that_they_depend_on(
    command: Any, places: dict[str, Path], tmp_path: Path
) -> None:
    ended = command(*"evaluate {run} {data} --out scored".format(**places).split())
    assert (ended.status, ended.err) == (0, "")
    assert "mask_ap" in ended.out
    assert "max_detections 100" in ended.out
    assert "score_threshold 0.5" in ended.out
    result = json.loads((tmp_path / "scored/evaluation.json").read_text())
    assert result["task"] == "instance"
    page = (tmp_path / "scored/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_predict_lists_and_draws_objects(command: Any, places: dict[str, Path], tmp_path: Path) -> None:
    ended = command(*"predict {run} {picture} --out found".format(**places).split())
    assert ended.status == 0, ended
    (record,) = json.loads((tmp_path / "found/predictions.json").read_text())
    assert record["objects"]
    assert {"class", "score", "box", "source", "mask"} <= set(record["objects"][0])
    with Image.open(tmp_path / "found" / record["drawn"]) as drawn:
        assert min(drawn.size) >= 64
    scores = [entry["score"] for entry in record["objects"]]
    assert scores == sorted(scores, reverse=True)


def test_predict_tells_the_objects_from_the_score_that_is_asked(command: Any, places: dict[str, Path]) -> None:
    """Where none has it, the line says how high the best one is, and how to see it."""
    everything = command(*"predict {run} {picture} --score 0".format(**places).split())
    assert everything.status == 0, everything
    assert re.search(r"\d+ \w.* \(best ", everything.out)
    assert "below" not in everything.out
    nothing = command(*"predict {run} {picture} --score 1".format(**places).split())
    assert re.search(r": \d+ below 100%, the best \d+\.\d%; --score shows them\n", nothing.out)


def test_python_and_command_line_find_the_same(command: Any, places: dict[str, Path]) -> None:
    ended = command(*"predict {run} {picture} --json --exact".format(**places).split())
    record = json.loads(ended.out.splitlines()[0])
    found = saccade.predict(saccade.load(places["run"]), places["picture"], speed="exact")[0]
    assert isinstance(found, Detections)
    assert [entry["class"] for entry in record["objects"]] == [found.name(index) for index in range(len(found))]
    boxes = torch.tensor([entry["box"] for entry in record["objects"]])
    assert torch.allclose(boxes, found.boxes, atol=0.01)


def test_explain_writes_a_map_of_one_box(command: Any, places: dict[str, Path], tmp_path: Path) -> None:
    line = "explain {run} {picture} --of box:0 --of box:0/left --of mask:0 --method gradient --no-verdict --out why"
    ended = command(*line.format(**places).split())
    assert ended.status == 0, ended
    manifests = [json.loads(path.read_text()) for path in sorted((tmp_path / "why").glob("*.json"))]
    assert len(manifests) == 3
    assert len(list((tmp_path / "why").glob("*-gradient.png"))) == 3
    assert len(list((tmp_path / "why").glob("*-fired.png"))) == 1  # all three come from one proposal
    assert len(list((tmp_path / "why").glob("*.png"))) == 4


def test_evaluate_scores_a_result_file_of_anyone(command: Any, places: dict[str, Path], tmp_path: Path) -> None:
    truth = json.loads(places["truth"].read_text())
    perfect = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.9}
        for one in truth["annotations"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(perfect))
    ended = command(*"evaluate --predictions results.json {truth}".format(**places).split())
    assert ended.status == 0, ended
    assert ended.out.startswith("ap 100.0 %")


def test_a_sliding_window_says_what_it_will_cost(command: Any, places: dict[str, Path], tmp_path: Path) -> None:
    saccade.train("sliding_window_test", places["data"], out=tmp_path / "slow", epochs=1, limit_steps=1, quiet=True)
    ended = command(*"predict {} {picture}".format(tmp_path / "slow", **places).split())
    assert ended.status == 0, ended
    assert re.search(r"note: .*\d+ windows", ended.err)


# --- what is refused


def test_a_score_that_is_none(refused: Callable[[str], str]) -> None:
    assert (
        refused("predict {run} {picture} --score 30")
        == "--score: 30.0 is not the score of an object; expected in [0, 1]"
    )


def test_evaluate_wants_a_model_or_predictions(refused: Callable[[str], str]) -> None:
    assert "evaluate needs MODEL and DATA" in refused("evaluate {run}")
    assert "one DATA" in refused("evaluate {run} {data} --predictions results.json")


def test_results_of_other_pictures_are_refused(refused: Callable[[str], str], tmp_path: Path) -> None:
    row = {"image_id": 999, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}
    (tmp_path / "other.json").write_text(json.dumps([row]))
    assert "999" in refused("evaluate --predictions other.json {truth}")


def test_a_box_that_is_not_there_is_refused(refused: Callable[[str], str]) -> None:
    sentence = refused("explain {run} {picture} --of box:5000 --no-verdict")
    assert "box" in sentence


def test_data_for_another_task_is_refused(refused: Callable[[str], str], colours: Path) -> None:
    assert "class" in refused(f"evaluate {{run}} {colours}")
