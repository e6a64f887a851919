"""``yolo_n`` from picture to boxes at 640 pixels, beside another vendor's detectors of the same size.

The other program is under the AGPL. It lives in an environment of its own, is never imported here, and is only run as
the command it installs: ``--peer-python`` names the python of that environment, and the command lies beside it. Its
``predict`` prints what one picture took to prepare, to pass the network and to become boxes, once it is warm; ours is
timed over the same. Both see the same picture files, read before the clock starts, have equally many threads
(``other_program.py``), and take turns.

    python benchmarks/yolo.py --threads 2 --peer-python ENVIRONMENT/bin/python
    python benchmarks/yolo.py --threads 1 --clock processor --peer-python ENVIRONMENT/bin/python    # on a busy machine
    python benchmarks/yolo.py --yolox FILE.onnx --coco FOLDER      # published weights, against detections told there

Without ``--weights`` and ``--peer-models`` of trained files the weights are random and nothing is found above the
threshold of 0.25 that both use: the network is the same, suppression has nothing to do on either side.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import saccade
from fitted_detector import scenes
from measure import Row, parser, report
from other_program import CLOCKS, surroundings
from saccade.data.decode import read_image
from saccade.engine.predict import PredictConfig, Predictor
from saccade.models.detector import Detector
from saccade.nn.fuse import fuse_batch_norms
from saccade.ops.boxes import box_iou
from saccade.types import ImageBatch

NUM_PICTURES = 24
MIN_SCORE = 0.25
_TOLD = re.compile(r"Speed: ([\d.]+)ms preprocess, ([\d.]+)ms inference, ([\d.]+)ms postprocess")
_SIZE = re.compile(r"([\d,]+) parameters")


def ours(weights: str | None, size: int) -> Detector[Any]:
    """Our detector at this size and the threshold that both use."""
    torch.manual_seed(0)
    if weights is None:
        settings = {"preprocess.size": [size, size], "selection.min_score": MIN_SCORE}
        model = saccade.create("yolo_n", overrides=settings)
    else:
        model = saccade.load(weights)
    assert isinstance(model, Detector)
    return model.eval()


def ways(model: Detector[Any], pictures: list[Tensor]) -> dict[str, Callable[[], object]]:
    """From bytes to boxes, picture by picture."""
    exact = Predictor(model, PredictConfig(speed="exact", batch_size=1))
    auto = Predictor(model, PredictConfig(batch_size=8))
    auto(pictures)  # decides how
    quick = Predictor(model, PredictConfig(batch_size=1))
    quick.plan, quick._runner = auto.plan, auto._runner
    print(f"predict runs: {auto.plan}")
    return {
        "yolo_n, as written": lambda: [exact([picture]) for picture in pictures],
        "yolo_n, predict": lambda: [quick([picture]) for picture in pictures],
        "yolo_n, predict of many": lambda: auto(pictures),
    }


def network_alone(model: Detector[Any], canvas: tuple[int, int], repeats: int, clock: Callable[[], float]) -> float:
    """Milliseconds of a float32 forward pass with norms folded, of one picture that fills a canvas."""
    folded = saccade.create("yolo_n", num_classes=len(model.classes)).eval()
    folded.load_state_dict(model.state_dict())
    fuse_batch_norms(folded)
    images = ImageBatch.of(torch.rand(1, 3, *canvas)).channels_last()
    folded = folded.to(memory_format=torch.channels_last)
    taken = []
    with torch.inference_mode():
        for _ in range(3 * repeats):
            start = clock()
            folded(images)
            taken.append(1e3 * (clock() - start))
    return statistics.median(taken)


def theirs(python: Path, model: str, folder: Path, size: int, clock: str) -> dict[str, float]:
    """Milliseconds per picture that the other program tells of itself, and its parameters."""
    command = [
        str(python.with_name("yolo")), "detect", "predict", f"model={model}", f"source={folder}", f"imgsz={size}",
        f"conf={MIN_SCORE}", "device=cpu", "save=False", "verbose=True", f"project={folder.parent / 'theirs'}",
    ]  # fmt: skip
    environment = surroundings(folder.parent / "surroundings", torch.get_num_threads(), clock)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent, env=environment)
    told = _TOLD.search(done.stdout + done.stderr)
    if told is None:
        raise SystemExit(f"the other program did not run: {(done.stdout + done.stderr)[-800:]}")
    before, network, after = (float(part) for part in told.groups())
    size_told = _SIZE.search(done.stdout + done.stderr)
    parameters = int(size_told.group(1).replace(",", "")) if size_told else 0
    return {"all": before + network + after, "network": network, "parameters": parameters}


def measured(options: argparse.Namespace) -> list[Row]:
    """Rounds in which every side runs once over all pictures."""
    clock = CLOCKS[options.clock]
    model = ours(options.weights, options.size)
    answering = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("one_to_many"))
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "pictures"
        folder.mkdir()
        for index, scene in enumerate(scenes(NUM_PICTURES, seed=1)):
            Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(folder / f"{index:03}.png")
        pictures = [read_image(path) for path in sorted(folder.iterdir())]
        own = ways(model, pictures)
        taken: dict[str, list[float]] = {name: [] for name in own}
        told: dict[str, list[dict[str, float]]] = {name: [] for name in options.peer_models}
        for _ in range(options.repeats):
            for name, way in own.items():
                start = clock()
                way()
                taken[name].append(1e3 * (clock() - start) / len(pictures))
            if options.peer_python is not None:
                for name in options.peer_models:
                    told[name].append(theirs(options.peer_python, name, folder, options.size, options.clock))
    canvas = (int(scene.image.shape[-2]) * options.size // 640, options.size)
    rows: list[Row] = []
    for name, seconds in taken.items():
        alone = network_alone(model, canvas, options.repeats, clock) if name == "yolo_n, as written" else "–"
        rows.append({"detector": name, "ms per picture": statistics.median(seconds), "network ms": alone,
                     "parameters": answering})  # fmt: skip
    for name, found in told.items():
        if found:
            medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
            rows.append({"detector": name, "ms per picture": medians["all"], "network ms": medians["network"],
                         "parameters": int(medians["parameters"])})  # fmt: skip
    return rows


def published(file: Path, coco: Path) -> list[Row]:
    """Detections of the published YOLOX-nano beside those told in ``yolox_nano_detections.json`` of a folder."""
    model = saccade.load(file)
    predictor = Predictor(model, PredictConfig(speed="exact"))
    told = json.loads((coco / "yolox_nano_detections.json").read_text(encoding="utf-8"))
    truth = json.loads((coco / "instances.json").read_text(encoding="utf-8"))
    ids = [category["id"] for category in truth["categories"]]
    gaps, counts = [], {0.01: [0, 0], 0.3: [0, 0]}
    for image in truth["images"]:
        (found,) = predictor([coco / "images" / image["file_name"]])
        for one in (one for one in told if one["image_id"] == image["id"]):
            left, top, width, height = one["bbox"]
            box = torch.tensor([[left, top, left + width, top + height]])
            is_same = found.labels == ids.index(one["category_id"])
            overlap = box_iou(box, found.boxes)[0] * is_same
            is_there = len(found) > 0 and float(overlap.max()) > 0.85
            if is_there:
                gaps.append(abs(float(found.scores[overlap.argmax()]) - one["score"]))
            for least, pair in counts.items():
                pair[0] += one["score"] >= least
                pair[1] += one["score"] >= least and is_there
    return [
        {
            "told with a score above": least,
            "told": pair[0],
            "found": pair[1],
            "mean gap of scores": statistics.mean(gaps),
        }
        for least, pair in counts.items()
    ]


def main() -> None:
    """Run what the options ask for."""
    options = parser(__doc__ or "")
    options.add_argument("--peer-python", type=Path, default=None, help="python of the other program's environment")
    options.add_argument("--peer-models", nargs="+", default=["yolo11n.yaml", "yolo26n.yaml"], help="its models")
    options.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what is counted")
    options.add_argument("--weights", default=None, help="a trained yolo_n; random weights where left out")
    options.add_argument("--size", type=int, default=640)
    options.add_argument("--yolox", type=Path, default=None, help="the published ONNX file")
    options.add_argument("--coco", type=Path, default=None, help="a folder with pictures and told detections")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    report(published(given.yolox, given.coco) if given.yolox else measured(given), given.json)


if __name__ == "__main__":
    main()
