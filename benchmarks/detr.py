"""DETR-R50 against transformers: forward pass, predict, training step and matching; same weights, 480x640.

Theirs is float32 and eager. The weights are random (published ones are not to be had here), but for ``predict`` those
of ``fitted_detr.py``: of a network that answers nothing clearly, the check of faster copies would refuse all of them.
Predicted are the scenes that the network knows, so its scores are as sure as a trained network's of photographs. The
time of every copy is told beside that of the one that was taken; ``--fitted`` keeps the weights for the next time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_for_object_detection import HungarianMatcher as TheirMatcher

from fitted_detector import SIZE, scenes
from fitted_detr import CLASSES, SCENES, fitted, normalised, random_peer
from measure import Row, compare, parser, report
from saccade.engine.fast import candidates
from saccade.engine.predict import Predictor, run
from saccade.matching.hungarian import HungarianMatcher, Objects
from saccade.models.build import adopt
from saccade.models.detr import Detr
from saccade.ops.boxes import clip, from_centres
from saccade.tasks import TASKS
from saccade.types import BoxTarget, Detections, ImageBatch
from saccade.weights.transformers_detr import publish


def objects_of(batch: int, count: int) -> tuple[list[BoxTarget], list[dict[str, Tensor]]]:
    """Random objects per picture, for us in pixels and for transformers as shares."""
    ours, theirs = [], []
    height, width = SIZE
    for _ in range(batch):
        boxes = torch.cat([0.3 + 0.4 * torch.rand(count, 2), 0.1 + 0.3 * torch.rand(count, 2)], dim=1)
        labels = torch.randint(CLASSES, (count,))
        theirs.append({"boxes": boxes, "class_labels": labels})
        ours.append(BoxTarget.of(from_centres(boxes) * torch.tensor([width, height, width, height]), labels))
    return ours, theirs


def step_of(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, matching, loss of all layers, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def row(what: str, batch: int, times: dict[str, float], gap: float) -> Row:
    """One line of the table."""
    return {
        "what": what,
        "batch": batch,
        "ours_s": times["ours"],
        "transformers_s": times["transformers"],
        "ratio": times["ratio"],
        "ratio of": "ours / other",
        "reach": "<= 1",
        "note": f"logits differ by {gap:.1g}" if gap else "",
    }


def adopted(peer: Any) -> Any:
    """Ours with its weights."""
    published = publish(peer, "random")
    published.config["preprocess"] = {"size": list(SIZE), "policy": "stretch"}
    ours = adopt(published).eval()
    assert isinstance(ours, Detr)
    return ours


def measure_predict(folder: Path | None, repeats: int) -> list[Row]:
    """``saccade.predict`` as shipped, and each of its copies, against their forward pass and its thresholds."""
    peer = fitted(folder)
    model = adopted(peer)
    listed = [scene.image for scene in scenes(SCENES, seed=0)]
    predictor = Predictor(model)
    predictor(listed[:4])  # on its first pictures it decides which copy to use
    plan = predictor.plan
    assert plan is not None
    scale = torch.tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])

    def one(picture: Tensor) -> Detections:
        said = peer(pixel_values=normalised([picture]))
        scores, labels = said.logits[0].softmax(-1)[:, :-1].max(-1)
        order = torch.nonzero(scores >= model.config.selection.min_score)[:, 0]
        boxes = clip(from_centres(said.pred_boxes[0, order]) * scale, SIZE)
        return Detections(boxes, scores[order], labels[order], order, model.classes)

    def theirs() -> list[Detections]:
        with torch.inference_mode():
            return [one(picture) for picture in listed]

    expected, found = theirs(), predictor(listed)
    agreement, gap = TASKS["detection"].agreement(found, expected)
    clear = sum(int((detections.scores >= 0.5).sum()) for detections in expected)
    copies = [copy for copy in candidates(model, predictor.device) if copy.name != plan.name]
    ways: dict[str, Callable[[], object]] = {"transformers": theirs, "ours": lambda: predictor(listed)}
    ways |= {copy.name: partial(run, copy, model, listed) for copy in copies}
    times = compare(ways, repeats)
    told = f"runs {plan.name}; {agreement:.1%} of their {clear} objects above 0.5 and ours agree, scores by {gap:.3f}"
    rows = [{**row(f"predict, {len(listed)} pictures", 1, times, 0.0), "note": told}]
    for copy in copies:
        reasons = [reason for reason in plan.rejected if reason.startswith(copy.name)]
        times["ours"], times["ratio"] = times[copy.name], times["transformers"] / times[copy.name]
        rows.append({**row(f"predict by {copy.name}", 1, times, 0.0), "note": "; ".join(["not taken", *reasons])})
    return [{**one, "ratio of": "other / ours", "reach": ">= 2.5"} for one in rows]


def measure_passes(batch: int, repeats: int) -> list[Row]:
    """Forward pass and training step."""
    peer = random_peer()
    ours = adopted(peer)
    pixels = torch.randn(batch, 3, *SIZE)
    images = ImageBatch.of(pixels)
    targets, labels = objects_of(batch, 8)

    def forward(once: Callable[[], object]) -> Callable[[], object]:
        def quiet() -> object:
            with torch.no_grad():
                return once()

        return quiet

    ways = {"ours": forward(lambda: ours(images)), "transformers": forward(lambda: peer(pixel_values=pixels))}
    with torch.no_grad():
        gap = float((ours(images).logits - peer(pixel_values=pixels).logits).abs().max())
    rows = [row("forward", batch, compare(ways, repeats), gap)]
    peer.config.auxiliary_loss = True  # as published, and as ours does
    steps = {
        "ours": step_of(ours.train(), lambda: ours.loss(ours(images), targets).total),
        "transformers": step_of(peer.train(), lambda: peer(pixel_values=pixels, labels=labels).loss),
    }
    rows.append(row("training step", batch, compare(steps, repeats), gap))
    return rows


def measure_matching(batch: int, count: int, repeats: int) -> Row:
    """The six layers of a decoder, 100 queries; theirs is asked layer by layer, as their loss does."""
    layers, queries = 6, 100
    logits = torch.randn(layers, batch, queries, CLASSES + 1)
    boxes = torch.rand(layers, batch, queries, 4) * 0.5 + 0.2
    targets, labels = objects_of(batch, count)
    objects = Objects.of(targets, torch.tensor(SIZE).expand(batch, 2)).repeat(layers)
    ours, theirs = HungarianMatcher(), TheirMatcher(class_cost=1, bbox_cost=5, giou_cost=2)

    def all_layers() -> object:
        return [theirs({"logits": layer, "pred_boxes": box}, labels) for layer, box in zip(logits, boxes, strict=True)]

    ways = {
        "ours": lambda: ours(logits.flatten(0, 1), boxes.flatten(0, 1), objects),
        "transformers": all_layers,
    }
    return row(f"matching, {count} objects each", batch, compare(ways, repeats), 0.0)


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    parts = ("passes", "predict", "matching")
    options.add_argument("--parts", nargs="+", default=parts, choices=parts)
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--fitted", type=Path, default=None, help="folder that keeps the fitted weights")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    if "passes" in given.parts:
        rows += measure_passes(given.batch, given.repeats)
    if "predict" in given.parts:
        rows += measure_predict(given.fitted, max(given.repeats // 2, 1))
    if "matching" in given.parts:
        rows += [measure_matching(given.batch, 8, given.repeats), measure_matching(16, 20, given.repeats)]
    report(rows, given.json)
    return rows


if __name__ == "__main__":
    main()
