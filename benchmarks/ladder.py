"""Every rung of the ladder under equal time: from scratch, on pictures with masks that you name, on this machine.

``python benchmarks/ladder.py data/dsb2018 --seconds 240 --threads 2`` trains each of ``RUNGS`` for that long. Steps are
timed first (which does not count), and the training is made as long as the time allows, so that its learning rate
comes to its end; should the machine slow down, the training stops when the time is over. The weights of the last step
are evaluated on the held-out split, so nothing is chosen by what is reported. Recipes were not tuned for any rung.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from measure import Row, machine, parser, table
from saccade.allocator import keep_freed_memory
from saccade.atomic import write_bytes
from saccade.data.source import DataSource, open_data
from saccade.data.transforms import Augment
from saccade.engine.evaluate import EvaluateConfig, evaluate_split
from saccade.engine.plan import StepRecord, TrainConfig
from saccade.engine.predict import Predictor
from saccade.engine.segment import segment_pictures
from saccade.engine.train import train
from saccade.models.build import AnyModel, create
from saccade.ops.palette import categorical
from saccade.render.figure import FAINT, INK, new_figure, save
from saccade.tasks.semantic import SemanticEvaluation

AUGMENT = Augment.preset("microscope")
LOSS = {"loss.dice": 1.0}
"""Beside the cross-entropy, for every rung."""

WARM_UP = 6
"""Steps that are not timed: the first batches were read ahead of them."""
TIMED = 8
TIMED_SHARE = 0.05
"""At least so many steps are timed, and at least so much of the time."""
RESERVE = 0.97
"""Share of the time that the training is planned to take: steps are not all equally fast."""

SIDE = 256
"""Operations and the time of a prediction are those of a picture of this height and width."""


LONG = ("what", "predicts with")
"""Columns of the JSON that the printed table leaves out."""


@dataclass(frozen=True)
class Rung:
    """An architecture and how it is trained.

    Attributes:
        name: in the registry.
        what: it shows, in a few words.
        crop: side of the training crops; None leaves the model's own.
        batch_size: crops per step.
        learning_rate: at its peak.
        augment: how crops are varied.
    """

    name: str
    what: str
    crop: int | None = 128
    batch_size: int = 8
    learning_rate: float = 3e-3
    augment: Augment = field(default=AUGMENT)


RUNGS = (
    Rung("patch_cnn", "a patch per pixel, in one pass", crop=128, batch_size=4, learning_rate=1e-3),
    Rung("fcn32s_small", "scores of the coarsest map"),
    Rung("fcn8s_small", "scores of three maps"),
    Rung("segnet_small", "places of the maxima", learning_rate=2e-3),
    Rung("segnet_small_bilinear", "bilinear upsampling instead", learning_rate=2e-3),
    Rung("unet_small", "skips at every resolution"),
    Rung("vit_seg_micro_p8", "plain transformer", crop=None, learning_rate=1e-3),
)

DERIVED = {"fcn32s_small": ("fcn8s_small", {"finest": 32})}
"""Rungs that are a registered model with some fields changed."""


def build(rung: Rung, classes: Sequence[str]) -> AnyModel:
    """The rung's model with random weights, the same each time."""
    torch.manual_seed(0)
    name, changed = DERIVED.get(rung.name, (rung.name, {}))
    crop = {} if rung.crop is None else {"preprocess.size": [rung.crop, rung.crop]}
    return create(name, classes=classes, overrides={**LOSS, **changed, **crop})


def plan(rung: Rung, source: DataSource, seconds: float, folder: Path) -> TrainConfig:
    """A training that takes so many seconds, judged by the first steps of one that is thrown away.

    Args:
        rung: what to train.
        source: the data.
        seconds: for the steps.
        folder: for the run that is thrown away.
    """
    config = TrainConfig(
        epochs=1_000,
        batch_size=rung.batch_size,
        learning_rate=rung.learning_rate,
        warmup=0.1,
        # The average of weights would not catch up with the weights in a training this short.
        ema_decay=0.0,
        validate_every=1_000,
        checkpoint_seconds=1e6,
        augment=rung.augment,
    )
    records = train(build(rung, source.classes.names), source, config, out=folder)
    ticks: list[float] = []
    for record in records:
        if record.kind == "step":
            ticks.append(time.perf_counter())
        if len(ticks) > WARM_UP + TIMED and ticks[-1] - ticks[WARM_UP] > TIMED_SHARE * seconds:
            break
    records.close()  # type: ignore[attr-defined]
    per_step = (ticks[-1] - ticks[WARM_UP]) / (len(ticks) - 1 - WARM_UP)
    num_steps = max(int(RESERVE * seconds / per_step), 1)
    steps_per_epoch = record.num_steps // config.epochs
    epochs = -(-num_steps // steps_per_epoch)
    limit = -(-num_steps // epochs)
    return replace(config, epochs=epochs, limit_steps=limit, validate_every=epochs)


def climb(rung: Rung, source: DataSource, seconds: float, folder: Path) -> tuple[AnyModel, Row]:
    """Train a rung for so many seconds.

    Args:
        rung: what to train.
        source: the data.
        seconds: for the steps; reading and augmenting pictures is part of them, evaluating is not.
        folder: for the runs.

    Returns:
        The model as the last step left it, and how far it came.
    """
    config = plan(rung, source, seconds, folder / "warm-up")
    model = build(rung, source.classes.names)
    last: StepRecord | None = None
    records = train(model, source, config, out=folder / "run")
    start = time.perf_counter()
    for record in records:
        if record.kind == "epoch":
            continue
        last, spent = record, time.perf_counter() - start
        if spent > seconds or record.step == record.num_steps:
            break
    records.close()  # type: ignore[attr-defined]
    assert last is not None
    return model.eval(), {
        "steps": last.step,
        "of": last.num_steps,
        "crop": model.preprocess.size[0],
        "batch": config.batch_size,
        "seconds": spent,
        "images_per_s": last.step * config.batch_size / spent,
    }


def squares(source: DataSource, count: int) -> list[Tensor]:
    """Pictures ``[3, SIDE, SIDE]`` uint8 of the held-out split, resized."""
    dataset = source.split(source.held_out)
    pictures = [dataset[index].image for index in range(min(count, len(dataset)))]
    resized = [F.interpolate(picture[None].float(), (SIDE, SIDE), mode="bilinear")[0] for picture in pictures]
    return [picture.round().clamp(0, 255).to(torch.uint8) for picture in resized]


def operations(model: AnyModel) -> int:
    """Floating-point operations of one prediction, tiles included where the model needs them."""
    picture = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        segment_pictures(model, [picture])  # type: ignore[arg-type]
    return int(counter.get_total_flops())


def seconds_per_picture(model: AnyModel, pictures: Sequence[Tensor], repeats: int) -> tuple[float, str]:
    """Median over the rounds, with the copy of the model that ``saccade.predict`` decides on; and which that is."""
    predictor = Predictor(model)
    predictor(pictures)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        predictor(pictures)
        times.append((time.perf_counter() - start) / len(pictures))
    return statistics.median(times), predictor.plan.name if predictor.plan else "float32, as written"


def measure(rung: Rung, source: DataSource, seconds: float, foreground: str, repeats: int) -> Row:
    """One row: trained, evaluated, timed."""
    with tempfile.TemporaryDirectory() as folder:
        model, course = climb(rung, source, seconds, Path(folder))
    result = evaluate_split(model, source, source.held_out, EvaluateConfig(resamples=200))[1]
    assert isinstance(result, SemanticEvaluation)
    figures = {row.name: row for row in result.per_class}[foreground]
    time_of_one, runs = seconds_per_picture(model, squares(source, 16), repeats)
    return {
        "model": rung.name,
        "what": rung.what,
        "iou": figures.iou,
        "miou": result.metrics["miou"],
        "boundary_f": figures.boundary_f,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gflops": operations(model) / 1e9,
        "predict_ms": 1000 * time_of_one,
        "predicts with": runs,
        **course,
    }


def chart(rows: Sequence[Row], path: Path, foreground: str, seconds: float) -> None:
    """IoU over the operations of one picture, one point per rung."""
    figure = new_figure(6.4, 4.0)
    axes = figure.add_axes((0.11, 0.14, 0.85, 0.75))
    for index, row in enumerate(rows):
        axes.scatter(row["gflops"], row["iou"], s=60, color=categorical(index), zorder=3)
        axes.annotate(
            row["model"],
            (row["gflops"], row["iou"]),
            (6, 5 if index % 2 else -11),
            textcoords="offset points",
            size=8,
            color=INK,
        )
    axes.set_xscale("log")
    axes.margins(x=0.22, y=0.12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(labelsize=8, colors=INK, color=FAINT)
    axes.grid(color="#E8EAED", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"GFLOPs of one picture of {SIDE}x{SIDE}", color=INK, size=9)
    axes.set_ylabel(f"IoU of {foreground}", color=INK, size=9)
    title = f"The ladder, {seconds:.0f} s of training each"
    axes.set_title(title, size=10.5, weight="bold", color=INK, loc="left")
    save(figure, path)


def main() -> None:
    """Climb, print, save."""
    options = parser(__doc__ or "")
    options.add_argument("data", help="folder of pictures with masks, or `nuclei` for the embedded ones")
    options.add_argument("--seconds", type=float, default=240.0, help="of training for each rung")
    options.add_argument("--rungs", nargs="+", default=[r.name for r in RUNGS], choices=[r.name for r in RUNGS])
    options.add_argument("--foreground", default=None, help="class whose IoU is told; by default the last")
    options.add_argument("--chart", type=Path, default=None, help="write a PNG here")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    keep_freed_memory()  # as the command line does
    source = open_data(given.data, task="semantic")
    foreground = given.foreground or source.classes.names[-1]
    if foreground not in source.classes.names:
        raise SystemExit(f"there is no class {foreground!r}; expected one of: {', '.join(source.classes.names)}")
    rows: list[Row] = []
    for rung in (rung for rung in RUNGS if rung.name in given.rungs):
        rows.append(measure(rung, source, given.seconds, foreground, given.repeats))
        print(f"{rung.name}: IoU of {foreground} {rows[-1]['iou']:.3f} after {rows[-1]['steps']} steps", flush=True)
        if given.json is not None:  # each time: a rung takes minutes, and the others should not be lost with it
            told = {"machine": machine(), "seconds": given.seconds, "foreground": foreground, "rows": rows}
            write_bytes(given.json, (json.dumps(told, indent=2) + "\n").encode())
    print(table([{key: value for key, value in row.items() if key not in LONG} for row in rows]))
    if given.chart is not None:
        chart(rows, given.chart, foreground, given.seconds)


if __name__ == "__main__":
    main()
