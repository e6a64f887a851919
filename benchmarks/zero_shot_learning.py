"""What a zero-shot model learns: emoji that it never saw found by their texts, combinations that it never saw named.

The emoji need ``--weights``, a MobileNetV2 of ImageNet as TensorFlow trained it. The held-out fifth that ships with the
data comes first; then every fifth is held out in turn, for 138 pictures are few. A picture's text ends in the name of
its category, as in a bag of words of all that is said of it; how far the other words alone find it stands beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import saccade
from measure import Row, parser, report
from saccade.data.captions import CaptionsInMemory
from saccade.data.source import DataSource, open_data
from saccade.data.synthetic_captions import COMBINATIONS, draw_captioned
from saccade.data.transforms import Augment
from saccade.tasks.zero_shot import ZeroShotEvaluation

FOLDS = 5
VARIED_SCENES: dict[str, Any] = {"shift": 0.08, "flip": 0.5, "flip_vertical": 0.5}
"""A drawn shape stands at any angle."""
CATEGORY_REACH, RECALL_REACH, COMBINATION_REACH = 0.45, 0.60, 0.90


def emoji(weights: Path, folds: int) -> Iterator[Row]:
    """Recall among the first ten, and the category by name, of pictures and texts that were held out."""
    shipped = open_data("emoji", task="zero_shot")
    parts = [_part(shipped, split) for split in ("train", "val")]
    yield {"what": "emoji, the held-out fifth", **_emoji_row([_trained(shipped, weights)])}
    items = [item for part in parts for item in part.items]
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    for fold in range(folds):
        held_out = set(order[fold::FOLDS])
        kept = [[item for place, item in enumerate(items) if (place in held_out) == is_val] for is_val in (False, True)]
        splits = {
            name: CaptionsInMemory(chosen, shipped.classes, parts[0].root, parts[0].licence)
            for name, chosen in zip(("train", "val"), kept, strict=True)
        }
        found.append(_trained(DataSource(splits, shipped.classes, "emoji", f"emoji, fold {fold}"), weights))
    if found:
        yield {"what": f"emoji, the mean of {len(found)} fifths", **_emoji_row(found)}


def _part(source: DataSource, split: str) -> CaptionsInMemory:
    part = source.split(split)
    assert isinstance(part, CaptionsInMemory)
    return part


def _trained(source: DataSource, weights: Path) -> tuple[ZeroShotEvaluation, ZeroShotEvaluation, float]:
    """Trained as ``saccade train`` does it: scored with whole texts, with texts without the category, and the time."""
    # One validation, at the end: none of the held-out pictures chooses the epoch.
    settings: dict[str, Any] = {"validate_every": 1000}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        run = saccade.train("clip_mobilenet_tf", source, out=out, weights=weights, quiet=True, **settings)
    seconds = time.perf_counter() - start
    part = _part(source, "val")
    bare = [replace(item, texts=tuple(text.rpartition(", ")[0] or text for text in item.texts)) for item in part.items]
    without = CaptionsInMemory(bare, part.classes, part.root, part.licence)
    return _scored(run.model, source), _scored(run.model, replace(source, splits={"val": without})), seconds


def _scored(model: Any, source: DataSource, split: str = "val") -> ZeroShotEvaluation:
    found = saccade.evaluate(model, source, split=split)
    assert isinstance(found, ZeroShotEvaluation)
    return found


def _emoji_row(found: list[tuple[ZeroShotEvaluation, ZeroShotEvaluation, float]]) -> Row:
    whole, bare, seconds = zip(*found, strict=True)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    recall = mean([one.metrics["text_to_image_10"] or 0.0 for one in whole])
    words = mean([one.metrics["text_to_image_10"] or 0.0 for one in bare])
    category = mean([one.metrics["category"] or 0.0 for one in whole])
    chance = mean([one.directions[0].chance[-1] for one in whole])
    intervals = ""
    if len(found) == 1:
        (low, high), (least, most) = whole[0].interval, whole[0].category_interval
        intervals = f"; 95 % intervals {low:.2f} to {high:.2f}, {least:.2f} to {most:.2f}"
    return {
        "first": f"recall@10 {recall:.3f}",
        "reach": f">= {RECALL_REACH}",
        "chance": chance,
        "second": f"9-way category {category:.3f} (>= {CATEGORY_REACH})",
        "seconds": mean(list(seconds)),
        "remark": f"without the category in the text recall@10 is {words:.3f}{intervals}",
    }


def scenes(epochs: int, count: int) -> Row:
    """Which of all 48 combinations of colour and shape a scene shows, for the eight that no training scene shows."""
    source = DataSource(dict(draw_captioned(count)), COMBINATIONS, "scene_captions", f"{count} scenes")
    start, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = saccade.train(
            "clip_words", source, out=Path(folder, "run"), epochs=epochs, augment=Augment(**VARIED_SCENES)
        )
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    unseen, seen = (_scored(run.model, source, split) for split in ("test", "val"))
    (low, high), (least, most) = unseen.category_interval, seen.category_interval
    told = f"95 % intervals {low:.3f} to {high:.3f}, {least:.3f} to {most:.3f}; {unseen.num_images} pictures"
    return {
        "what": "scenes, combinations never shown, among all 48",
        "first": f"accuracy {unseen.metrics['category']:.3f}",
        "reach": f">= {COMBINATION_REACH}",
        "chance": 1 / len(source.classes),
        "second": f"seen combinations {seen.metrics['category']:.3f}",
        "seconds": seconds,
        "remark": f"{told}; {count} scenes drawn, {epochs} epochs from scratch, {worked:.0f} s of processor",
    }


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    options.add_argument("--weights", type=Path, default=None, help="MobileNetV2 of ImageNet; without it no emoji")
    options.add_argument("--folds", type=int, default=FOLDS, help="how many fifths are held out in turn, 0 to 5")
    options.add_argument("--epochs", type=int, default=16, help="of the scenes; 0 leaves them out")
    options.add_argument("--scenes", type=int, default=24_000, help="how many are drawn, those of the tests included")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    rows = [scenes(given.epochs, given.scenes)] if given.epochs else []
    if given.weights is not None:
        rows += emoji(given.weights, given.folds)
    if rows:
        report(rows, given.json)
    return rows


if __name__ == "__main__":
    main()
