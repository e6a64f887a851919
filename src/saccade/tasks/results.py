"""A result file of anyone's model, scored as our own detections are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from saccade.config import to_dict
from saccade.data.coco_results import CocoResults, Rows, held_out_file, read_results, truth_rows
from saccade.data.cocofile import CocoFile
from saccade.errors import DataError
from saccade.metrics.overlap import Found, Kind, Truth
from saccade.tasks.base import LEVEL, EvaluateConfig, Facts
from saccade.tasks.detection import DetectionEvaluation, DetectionTally


def score_results(
    results: Path | str,
    data: Path | str,
    *,
    split: str | None = None,
    task: Literal["detection", "instance"] | None = None,
    config: EvaluateConfig | None = None,
) -> DetectionEvaluation:
    """Score a COCO result file against COCO ground truth; pictures need not be there.

    Args:
        results: a JSON list of detections.
        data: a COCO JSON file, or a folder that holds one.
        split: of a folder; where it is None, ``test`` if there is one, else the held-out one.
        task: ``instance`` for masks and boxes; by what the results have where it is None.
        config: how to evaluate.

    Raises:
        DataError: files that are damaged or do not belong together, masks wanted and not there.
    """
    config = config or EvaluateConfig()
    start = time.perf_counter()
    truth = held_out_file(Path(data), split)
    found = read_results(Path(results), truth)
    if task == "instance" and found.number and not found.has_masks:
        raise DataError("the results have no masks", where=str(results), remedy="evaluate them for detection")
    task = task or ("instance" if found.has_masks else "detection")
    names = tuple(category.name for category in truth.categories)
    tally = DetectionTally(names, torch.arange(len(names)), config, task)
    for index, image in enumerate(truth.images[number] for number in sorted(truth.images)):
        rows = truth_rows(truth, image, has_masks=task == "instance")
        source = f"{truth.path.name}#{image.file_name}"
        _count(tally, found.rows.get(image.id), rows, _labels(truth), index, source)
    settings = {**to_dict(config), "level": LEVEL, "data": str(truth.path), "predictions": str(found.path)}
    settings["boxes"] = "as in the file" if found.has_boxes or not found.number else "around the masks"
    settings["areas"] = "of true objects as the ground truth says, of found ones their own"
    return tally.evaluation(Facts(tuple(truth.notes), settings, time.perf_counter() - start))


def _labels(truth: CocoFile) -> dict[int, int]:
    return {category.id: label for label, category in enumerate(truth.categories)}


def _count(
    tally: DetectionTally, rows: Rows | None, true: Rows, labels: dict[int, int], index: int, source: str
) -> None:
    for kind, meter in tally.meters.items():
        truth = Truth(true.boxes, _joined(true, labels), true.crowd, true.areas, true.shapes)
        meter.add(_found(rows, labels, kind), truth, index=index, source=source)


def _joined(rows: Rows, labels: dict[int, int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([labels[number] for number in rows.category_ids.tolist()], dtype=np.int64)


def _found(rows: Rows | None, labels: dict[int, int], kind: Kind) -> Found:
    if rows is None:
        return Found(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0), [])
    areas = rows.areas
    if kind == "masks" and rows.shapes is not None:
        from faster_coco_eval.core import mask

        areas = np.asarray(mask.area(rows.shapes), dtype=np.float64)
    return Found(rows.boxes, _joined(rows, labels), rows.scores, areas, rows.shapes)


__all__ = ["CocoResults", "score_results"]
