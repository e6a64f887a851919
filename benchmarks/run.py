"""Runs every benchmark in a process of its own and writes ``RESULTS.md`` from what they measured.

``python benchmarks/run.py`` runs all, ``python benchmarks/run.py vit moe`` some of them; the figures of the others are
kept from their last run (``results/*.json``). Those that need data or another program are run by hand, each with
``--json benchmarks/results/NAME.json``: ``python benchmarks/ladder.py data/dsb2018``, and ``yolo.py`` and
``yolo_training.py``, which say how.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from measure import Row

HERE = Path(__file__).parent
RESULTS = HERE / "results"

BENCHMARKS = {
    "vit": "ViT forward pass and training step against timm: ratio of times, reach at most 1.02",
    "predict": "saccade.predict as shipped against timm in eager float32: how many times as fast",
    "explain_speed": "Explanations against pytorch-grad-cam, captum, xaitk and the published procedure of relevance",
    "explain_boxes": "50 objects of one picture explained at once, against our own forward pass: reach at most 3",
    "moe": "8 experts, one active, against the dense layer of the same active width: reach at most 1.3",
    "segmentation": "FCN and U-Net against torchvision and segmentation-models-pytorch; one pass against sliding",
    "detection": "Faster and Mask R-CNN against torchvision: forward, predict, training step and its memory",
    "ladder_detection": "What a picture costs on every rung of the ladder of detectors",
    "detr": "DETR-R50 against transformers: forward pass, training step, matching",
    "postprocess": "From raw outputs to detections, against a pipeline of torchvision's functions",
    "coco_evaluation": "COCO evaluation against pycocotools and torchmetrics; memory with many masks",
    "zero_shot": "CLIP ViT-B/32 against open_clip, classes by templates, search among 100,000 pictures",
    "evaluate": "saccade.evaluate on 10,000 small pictures against the loop of a plain script",
}
"""Scripts of this folder, with what they measure."""

BY_HAND = {
    "ladder": "Every rung of the segmentation ladder, trained for the same time from scratch",
    "yolo": "yolo_n from picture to boxes at 640 pixels, beside another vendor's detectors of its size",
    "yolo_training": "AP50:95 of detectors from scratch over the minutes of a processor, one thread and one seed each",
    "zero_shot_learning": "Emoji found by their texts and named by category; combinations that were never shown",
    "verdict_calibration": "The verdict on networks with known ground truth, held-out ones: share and 95 % interval",
}
"""Scripts that need pictures or programs that you name, or long trainings; what they last measured stands in
``RESULTS.md`` as well."""


def markdown(rows: list[Row]) -> str:
    """Rows as a table."""
    columns = list(rows[0])

    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def write_results() -> Path:
    """``RESULTS.md`` from the JSON files that exist."""
    parts = [
        "# Measured speed\n",
        "Written by `make bench`; do not edit. Both sides run in one process, in turn, and the medians are shown. "
        "`ratio` is the median over the rounds of the time of one side over that of the other, as each table says.\n",
    ]
    for name, what in {**BENCHMARKS, **BY_HAND}.items():
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            continue
        measured = json.loads(path.read_text(encoding="utf-8"))
        place = ", ".join(f"{key} {value}" for key, value in measured["machine"].items())
        parts.append(f"## {what}\n\n`benchmarks/{name}.py` on {place}\n\n{markdown(measured['rows'])}\n")
    path = HERE / "RESULTS.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def main() -> None:
    """Run the benchmarks named on the command line, or all."""
    chosen = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in chosen if name not in BENCHMARKS]
    if unknown:
        raise SystemExit(f"unknown benchmark {unknown[0]!r}; expected one of: {', '.join(BENCHMARKS)}")
    RESULTS.mkdir(exist_ok=True)
    for name in chosen:
        print(f"\n{name}: {BENCHMARKS[name]}", flush=True)
        script = [sys.executable, str(HERE / f"{name}.py"), "--json", str(RESULTS / f"{name}.json")]
        subprocess.run(script, check=True)
    print(f"\nwritten: {write_results()}")


if __name__ == "__main__":
    main()
