"""Forward pass and training step of ViT-B/16 and ViT-S/16, ours against timm: same weights, batch 8, 224, float32."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure import Row, compare, parser, report
from saccade.models.build import adopt
from saccade.types import ImageBatch
from saccade.weights.timm import publish

MODELS = {"vit_s16": "vit_small_patch16_224", "vit_b16": "vit_base_patch16_224"}


def forward_of(model: nn.Module, pixels: Tensor | ImageBatch) -> Callable[[], object]:
    """The forward pass without a graph."""

    def run() -> object:
        with torch.no_grad():
            return model(pixels)

    return run


def step_of(model: nn.Module, logits: Callable[[], Tensor], labels: Tensor) -> Callable[[], object]:
    """Forward, loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(logits(), labels).backward()
        optimizer.step()

    return run


def measure(name: str, repeats: int, batch: int) -> list[Row]:
    """The two rows of one model."""
    peer = timm.create_model(MODELS[name])
    ours = adopt(publish(peer, MODELS[name]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer, ours = peer.to(device), ours.to(device)
    pixels = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.randint(1000, (batch,), device=device)
    images = ImageBatch.of(pixels)
    peer.eval(), ours.eval()
    with torch.no_grad():
        gap = float((ours(images).logits - peer(pixels)).abs().max())
    rows = []
    for what in ("forward", "training step"):
        if what == "forward":
            ways = {"ours": forward_of(ours, images), "timm": forward_of(peer, pixels)}
        else:
            peer.train(), ours.train()
            ways = {
                "ours": step_of(ours, lambda: ours(images).logits, labels),
                "timm": step_of(peer, lambda: peer(pixels), labels),
            }
        times = compare(ways, repeats)
        rows.append(
            {
                "model": name,
                "what": what,
                "batch": batch,
                "ours_s": times["ours"],
                "timm_s": times["timm"],
                "ratio": times["ratio"],
                "logit_gap": gap,
            }
        )
    return rows


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options.add_argument("--batch", type=int, default=8)
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows = [row for name in given.models for row in measure(name, given.repeats, given.batch)]
    report(rows, given.json)
    return rows


if __name__ == "__main__":
    main()
