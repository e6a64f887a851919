"""``yolo_n`` and another vendor's detectors from random weights: the same pictures, the same size, the same time.

The other program is under the AGPL and only run as the command that it installs, in an environment of its own; see
``other_program.py``. It gets the data as we convert it to its format, keeps its defaults, validates each epoch and
stops by its own clock (``time=``). Ours is trained as ``saccade train`` does it where nothing else is asked: a few
steps are timed, within its time, and as many epochs are planned as fit. With ``--together`` both run at the same time.
On a machine that does other work as well, ``--clock processor`` counts for both the seconds that processors worked for
them. Its AP is what it tells in ``results.csv``, ours is COCO's.

    python benchmarks/yolo_training.py DATA --minutes 30 --size 320 --threads 1 --together --clock processor \
        --peer-python ENVIRONMENT/bin/python --out FOLDER

``--model`` takes several names, as does ``--peer-models``; ``--set`` changes how ours is trained. What several runs
found, of one data or of many, is drawn in one picture and told in one table by

    python benchmarks/yolo_training.py --join FOLDER FOLDER ... --out FOLDER
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import saccade
from measure import Row, machine, parser, report
from other_program import CLOCKS, surroundings
from saccade.config import from_dict, override
from saccade.data.convert import convert
from saccade.data.source import DataSource, open_data
from saccade.engine.plan import TrainConfig
from saccade.engine.train import train
from saccade.models.build import find_config

Point = dict[str, float]

RESERVE = 0.97
"""Share of the time that epochs are planned for."""
PROBED = 6
"""Steps that are timed, after as many that warm up."""


class Training(NamedTuple):
    """AP over the time, and the seconds that processors worked for it."""

    curve: list[Point]
    processor_seconds: float


def ours(name: str, data: DataSource, given: argparse.Namespace, out: Path) -> Training:
    """AP over the time of one of our trainings."""
    clock = CLOCKS[given.clock]
    start, used, size = clock(), time.process_time(), given.size
    config = override(from_dict(TrainConfig, dict(find_config(name).train_settings(()))), given.set)
    seconds = _seconds_per_epoch(name, data, config, size, out.with_name(out.name + "-probe"), clock)
    left = RESERVE * 60 * given.minutes - (clock() - start)
    config = override(config, {"epochs": max(int(left / seconds), 2)})
    print(f"{name}: {seconds:.1f} s per epoch with validation, {config.epochs} epochs", flush=True)
    curve = []
    for record in train(_model(name, data, size, config.seed), data, config, out=out, name=name):
        for note in record.notes:
            print(f"  {note}", flush=True)
        if record.kind == "epoch" and record.metrics:
            told = {"seconds": clock() - start, "ap": record.metrics["ap"], "ap50": record.metrics["ap50"]}
            curve.append({"epoch": float(record.epoch), **told})
            losses = "  ".join(f"{key} {value:.3f}" for key, value in record.losses.items())
            which = max(record.evaluations, key=lambda key: record.evaluations[key]["ap"])
            scores = f"AP {told['ap']:.3f}  AP50 {told['ap50']:.3f} ({which})"
            print(f"  {record.epoch:4d} {told['seconds']:6.0f} s  {scores}  {losses}", flush=True)
    return Training(curve, time.process_time() - used)


def _model(name: str, data: DataSource, size: int, seed: int) -> Any:
    torch.manual_seed(seed)
    return saccade.create(name, classes=data.classes.names, overrides={"preprocess.size": [size, size]})


def _seconds_per_epoch(
    name: str, data: DataSource, config: TrainConfig, size: int, folder: Path, clock: Callable[[], float]
) -> float:
    """The time of an epoch, from that of some steps and of one validation, shared as often as there is one."""
    shutil.rmtree(folder, ignore_errors=True)
    probe = override(config, {"epochs": 1, "limit_steps": 2 * PROBED})
    ends = [clock() for _ in train(_model(name, data, size, 0), data, probe, out=folder)]
    shutil.rmtree(folder)
    steps = -(-len(data.split("train")) // (config.batch_size * config.accumulate))
    return (
        steps * (ends[-2] - ends[PROBED - 1]) / (len(ends) - 1 - PROBED) + (ends[-1] - ends[-2]) / config.validate_every
    )


class Peer:
    """A training of the other program.

    Args:
        model: its name there.
        data: the converted folder.
        out: folder of the run.
        given: python of its environment, size, minutes and clock, and its own settings, such as ``batch=8``.
    """

    def __init__(self, model: str, data: Path, out: Path, given: argparse.Namespace) -> None:
        self.out, self.log = out, out.with_suffix(".log")
        described = out.with_suffix(".yaml")  # it looks for relative paths in a folder of its own
        text = (data / "data.yaml").read_text(encoding="utf-8")
        described.write_text(text.replace("path: .", f"path: {data.resolve()}"), encoding="utf-8")
        command = [
            str(given.peer_python.with_name("yolo")), "detect", "train", f"model={model}", f"data={described}",
            f"imgsz={given.size}", f"time={given.minutes / 60}", "device=cpu", "workers=0", "pretrained=False",
            "plots=False", f"project={out.parent}", f"name={out.name}", "exist_ok=True", *given.peer_set,
        ]  # fmt: skip
        environment = surroundings(out.with_name("surroundings"), torch.get_num_threads(), given.clock)
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)

    def finish(self) -> Training:
        """AP over the time, as it tells it."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise SystemExit(f"the other program failed, see {self.log}")
        with (self.out / "results.csv").open(newline="") as stream:
            rows = [{key.strip(): value.strip() for key, value in row.items()} for row in csv.DictReader(stream)]
        names = {"epoch": "epoch", "seconds": "time", "ap": "metrics/mAP50-95(B)", "ap50": "metrics/mAP50(B)"}
        curve = [{ours: float(row[key]) for ours, key in names.items()} for row in rows]
        return Training(curve, usage.ru_utime + usage.ru_stime)


def draw(found: dict[str, dict[str, list[Point]]], path: Path, title: str, what: str) -> None:
    """AP and AP50 over the time: of every data a row, of every program a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 + 3.3 * len(found)), layout="constrained")
    for row, (name, curves) in enumerate(found.items()):
        for column, key in enumerate(("ap", "ap50")):
            axes = figure.add_subplot(len(found), 2, 2 * row + column + 1)
            for (model, curve), dash in zip(curves.items(), ("-", "--", "-.", ":", "-", "--"), strict=False):
                minutes = [point["seconds"] / 60 for point in curve]
                axes.plot(minutes, [point[key] for point in curve], dash, label=model)
            label = {"ap": "AP50:95", "ap50": "AP50"}[key]
            axes.set(title=name, xlabel=what, ylabel=label, xlim=(0, None), ylim=(0, 1))
            axes.grid(visible=True, alpha=0.3)
            axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def at_equal_times(name: str, curves: dict[str, list[Point]], minutes: float, steps: int = 10) -> list[Row]:
    """AP50:95 of all at equal times, and the best of each."""
    rows: list[Row] = []
    for step in range(1, steps + 1):
        moment = 60 * minutes * step / steps
        row: Row = {"data": name, "minutes": f"{moment / 60:.1f}"}
        for model, curve in curves.items():
            known = [point["ap"] for point in curve if point["seconds"] <= moment]
            row[model] = known[-1] if known else 0.0
        rows.append(row)
    best = {model: max(point["ap"] for point in curve) for model, curve in curves.items()}
    return [*rows, {"data": name, "minutes": "best", **best}]


def tell(runs: list[dict[str, Any]], out: Path, path: Path | None) -> None:
    """Draw and print what runs found; those of one data stand together.

    Args:
        runs: as ``main`` writes them.
        out: folder of ``curves.png``.
        path: of the table as JSON.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    spent: dict[str, Row] = {}
    minutes: dict[str, float] = {}
    for run in runs:
        name = run["data"]
        found.setdefault(name, {}).update(run["curves"])
        spent.setdefault(name, {"data": name, "minutes": "processor s"}).update(run["processor s"])
        minutes[name] = max(minutes.get(name, 0.0), run["minutes"])
    models = list(dict.fromkeys(model for curves in found.values() for model in curves))
    rows: list[Row] = []
    for name, curves in found.items():
        for row in [*at_equal_times(name, curves, minutes[name]), spent[name]]:
            rows.append({key: row.get(key, "") for key in ("data", "minutes", *models)})
    what = {"wall": "minutes", "processor": "minutes of a processor"}[runs[0]["clock"]]
    draw(found, out / "curves.png", f"{runs[0]['size']} pixels, from random weights", what)
    report(rows, path)


def main() -> None:
    """Train all, print and draw the curves."""
    options = parser(__doc__ or "")
    options.add_argument("data", type=Path, nargs="?", help="data with boxes, of any format that saccade reads")
    options.add_argument("--join", type=Path, nargs="*", default=[], help="folders of earlier runs; nothing is trained")
    options.add_argument("--out", type=Path, required=True, help="folder of the runs, curves.json and curves.png")
    options.add_argument("--minutes", type=float, default=30.0, help="of each training")
    options.add_argument("--size", type=int, default=640, help="longer side of the pictures")
    options.add_argument("--model", nargs="*", default=["yolo_n"], help="ours")
    options.add_argument("--set", nargs="*", default=[], help="fields of TrainConfig, such as learning_rate=1e-3")
    options.add_argument("--peer-python", type=Path, default=None, help="python of the other program's environment")
    options.add_argument("--peer-models", nargs="*", default=["yolo11n.yaml"], help="its models")
    options.add_argument("--peer-set", nargs="*", default=[], help="its settings, such as batch=8")
    options.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what the minutes are")
    options.add_argument("--together", action="store_true", help="all trainings of the other program beside ours")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.join:
        runs = [json.loads((folder / "curves.json").read_text(encoding="utf-8")) for folder in given.join]
        tell(runs, given.out, given.json)
        return
    if given.data is None:
        options.error("DATA is missing")
    out = given.out.resolve()
    converted = out / "data"
    if not converted.exists():
        convert(given.data, converted, to="yolo", task="detection", lossy=True, copy=True)
    data = open_data(converted, task="detection")

    def start(name: str) -> Peer:
        return Peer(name, converted, out / Path(name).stem, given)

    peers = given.peer_models if given.peer_python else []
    started = [start(name) for name in peers] if given.together else []
    found = {name: ours(name, data, given, out / name) for name in given.model}
    for place, name in enumerate(peers):
        found[Path(name).stem] = (started[place] if started else start(name)).finish()
    curves = {name: training.curve for name, training in found.items()}
    used = {name: training.processor_seconds for name, training in found.items()}
    run = {
        "data": given.data.name,
        "machine": machine(),
        "clock": given.clock,
        "minutes": given.minutes,
        "size": given.size,
        "curves": curves,
        "processor s": used,
    }
    (out / "curves.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    tell([run], out, given.json)


if __name__ == "__main__":
    main()
