"""DETR-R50 against transformers: forward pass, training step and matching; same weights, 480x640, float32, eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection
from transformers.loss.loss_for_object_detection import HungarianMatcher as TheirMatcher

from measure import Row, compare, parser, report
from saccade.matching.hungarian import HungarianMatcher, Objects
from saccade.models.build import adopt
from saccade.models.detr import Detr
from saccade.ops.boxes import from_centres
from saccade.types import BoxTarget, ImageBatch
from saccade.weights.transformers_detr import publish

SIZE = (480, 640)
CLASSES = 91


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

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def row(what: str, batch: int, times: dict[str, float], gap: float) -> Row:
    """One line of the table."""
    return {
        "what": what,
        "batch": batch,
        "ours_s": times["ours"],
        "transformers_s": times["transformers"],
        "ratio": times["ratio"],
        "logit_gap": gap,
    }


def measure_passes(batch: int, repeats: int) -> list[Row]:
    """Forward pass and training step."""
    peer = DetrForObjectDetection(
        DetrConfig(backbone="resnet50", use_timm_backbone=True, use_pretrained_backbone=False, num_labels=CLASSES)
    ).eval()
    published = publish(peer, "random")
    published.config["preprocess"] = {"size": list(SIZE), "policy": "stretch"}
    ours: Any = adopt(published).eval()
    assert isinstance(ours, Detr)
    pixels = torch.randn(batch, 3, *SIZE)
    images = ImageBatch.of(pixels)
    targets, labels = objects_of(batch, 8)

    def forward(run: Callable[[], object]) -> Callable[[], object]:
        def quiet() -> object:
            with torch.no_grad():
                return run()

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
    options.add_argument("--batch", type=int, default=2)
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows = measure_passes(given.batch, given.repeats)
    rows += [measure_matching(given.batch, 8, given.repeats), measure_matching(16, 20, given.repeats)]
    report(rows, given.json)
    return rows


if __name__ == "__main__":
    main()
