"""``yolo_n`` and another vendor's detectors from random weights: the same pictures, the same size, the same time.

The other program is under the AGPL and only run as the command that it installs, in an environment of its own; see
``yolo.py``. It gets the data as we convert it to its format, validates after every epoch as we do, and stops by its own
clock (``time=``). For ours one epoch is timed first, and as many are planned as fit. Each side runs alone, one after
the other. Its AP is what it tells in ``results.csv``, ours is COCO's.

    python benchmarks/yolo_training.py DATA --minutes 30 --size 640 --peer-python ENVIRONMENT/bin/python --out FOLDER

``--model`` may be given more than once, as may ``--peer-models``; ``--set`` changes how ours is trained.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import saccade
from measure import machine, table
from saccade.config import override
from saccade.data.convert import convert
from saccade.data.source import DataSource, open_data
from saccade.data.transforms import Augment
from saccade.engine.plan import TrainConfig
from saccade.engine.train import train

Point = dict[str, float]

RESERVE = 0.97
"""Share of the time that epochs are planned for."""
RECIPE = TrainConfig(
    batch_size=8,
    learning_rate=2e-3,
    warmup=0.05,
    ema_decay=0.998,
    clip_norm=10.0,
    augment=Augment(flip=0.5, colour=0.3, zoom=(0.7, 1.4)),
)
"""How ours is trained."""


def ours(name: str, data: DataSource, config: TrainConfig, size: int, minutes: float, out: Path) -> list[Point]:
    """AP over the time of one of our trainings."""
    seconds = _seconds_per_epoch(name, data, config, size, out.with_name(out.name + "-probe"))
    config = override(config, {"epochs": max(int(RESERVE * 60 * minutes / seconds), 2)})
    print(f"{name}: {seconds:.1f} s per epoch with validation, {config.epochs} epochs", flush=True)
    curve, start = [], time.monotonic()
    for record in train(_model(name, data, size, config.seed), data, config, out=out, name=name):
        for note in record.notes:
            print(f"  {note}", flush=True)
        if record.kind == "epoch" and record.metrics:
            told = {"seconds": time.monotonic() - start, "ap": record.metrics["ap"], "ap50": record.metrics["ap50"]}
            curve.append({"epoch": float(record.epoch), **told})
            losses = "  ".join(f"{key} {value:.3f}" for key, value in record.losses.items())
            scores = f"AP {told['ap']:.3f}  AP50 {told['ap50']:.3f}"
            print(f"  {record.epoch:4d} {told['seconds']:6.0f} s  {scores}  {losses}", flush=True)
    return curve


def _model(name: str, data: DataSource, size: int, seed: int) -> Any:
    torch.manual_seed(seed)
    return saccade.create(name, classes=data.classes.names, overrides={"preprocess.size": [size, size]})


def _seconds_per_epoch(name: str, data: DataSource, config: TrainConfig, size: int, folder: Path) -> float:
    """The time of the second of two epochs, with its validation."""
    shutil.rmtree(folder, ignore_errors=True)
    probe = override(config, {"epochs": 2, "validate_every": 1, "mosaic.closed": 0.0})
    ends = [time.monotonic() for record in train(_model(name, data, size, 0), data, probe, out=folder)
            if record.kind == "epoch"]  # fmt: skip
    shutil.rmtree(folder)
    return ends[1] - ends[0]


def theirs(python: Path, model: str, data: Path, size: int, minutes: float, out: Path, batch: int) -> list[Point]:
    """AP over the time, as the other program tells it."""
    command = [
        str(python.with_name("yolo")), "detect", "train", f"model={model}", f"data={data / 'data.yaml'}",
        f"imgsz={size}", f"time={minutes / 60}", f"batch={batch}", "device=cpu", "workers=0", "pretrained=False",
        "plots=False", f"project={out.parent}", f"name={out.name}", "exist_ok=True",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    log = out.with_suffix(".log")
    with log.open("w") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"the other program failed, see {log}")
    with (out / "results.csv").open(newline="") as stream:
        rows = [{key.strip(): value.strip() for key, value in row.items()} for row in csv.DictReader(stream)]
    names = {"epoch": "epoch", "seconds": "time", "ap": "metrics/mAP50-95(B)", "ap50": "metrics/mAP50(B)"}
    return [{ours: float(row[key]) for ours, key in names.items()} for row in rows]


def draw(curves: dict[str, list[Point]], path: Path, title: str) -> None:
    """AP and AP50 over the time, every program a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for place, key in enumerate(("ap", "ap50")):
        axes = figure.add_subplot(1, 2, place + 1)
        for (name, curve), dash in zip(curves.items(), ("-", "--", "-.", ":", "-", "--"), strict=False):
            axes.plot([point["seconds"] / 60 for point in curve], [point[key] for point in curve], dash, label=name)
        axes.set(xlabel="minutes", ylabel={"ap": "AP50:95", "ap50": "AP50"}[key], ylim=(0, 1))
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def printed(curves: dict[str, list[Point]], steps: int = 12) -> str:
    """AP50:95 of all at equal times."""
    end = max(curve[-1]["seconds"] for curve in curves.values() if curve)
    rows = []
    for step in range(1, steps + 1):
        moment = end * step / steps
        row: dict[str, Any] = {"minutes": moment / 60}
        for name, curve in curves.items():
            known = [point["ap"] for point in curve if point["seconds"] <= moment + 1]
            row[name] = known[-1] if known else 0.0
        rows.append(row)
    rows.append({"minutes": "best", **{name: max(point["ap"] for point in curve) for name, curve in curves.items()}})
    return table(rows)


def main() -> None:
    """Train all, print and draw the curves."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path, help="data with boxes, of any format that saccade reads")
    options.add_argument("--out", type=Path, required=True, help="folder of the runs, curves.json and curves.png")
    options.add_argument("--minutes", type=float, default=30.0, help="of each training")
    options.add_argument("--size", type=int, default=640, help="longer side of the pictures")
    options.add_argument("--model", nargs="*", default=["yolo_n"], help="ours")
    options.add_argument("--set", nargs="*", default=[], help="fields of TrainConfig, such as learning_rate=1e-3")
    options.add_argument("--peer-python", type=Path, default=None, help="python of the other program's environment")
    options.add_argument("--peer-models", nargs="*", default=["yolo11n.yaml"], help="its models")
    options.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's own choice")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    converted = given.out.resolve() / "data"
    if not converted.exists():
        convert(given.data, converted, to="yolo", task="detection", lossy=True, copy=True)
    data = open_data(converted, task="detection")
    config = override(RECIPE, given.set)
    curves: dict[str, list[Point]] = {}
    for name in given.model:
        curves[name] = ours(name, data, config, given.size, given.minutes, given.out / name)
    for name in given.peer_models if given.peer_python else ():
        out = given.out.resolve() / Path(name).stem
        curves[name] = theirs(given.peer_python, name, converted, given.size, given.minutes, out, config.batch_size)
    told = {"machine": machine(), "minutes": given.minutes, "size": given.size, "curves": curves}
    (given.out / "curves.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    draw(curves, given.out / "curves.png", f"{given.data.name}, {given.size} pixels, from random weights")
    print(printed(curves))


if __name__ == "__main__":
    main()
