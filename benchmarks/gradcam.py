"""Grad-CAM of a ResNet-50, batch 8 at 224, ours against pytorch-grad-cam on the same model: one class and five classes.

Also Grad-CAM of twenty classes against our own forward pass without gradients. Both sides end with maps enlarged to the
canvas; before anything is timed they are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from measure import Row, compare, parser, report
from saccade.explanation.cam import GradCAM
from saccade.explanation.heatmap import to_original
from saccade.explanation.record import find_module
from saccade.explanation.scores import class_score
from saccade.models.build import create
from saccade.types import ImageBatch


class Plain(nn.Module):
    """Our classifier as the peer calls models: a tensor in, logits out."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        return self.classifier(ImageBatch.of(pixels)).logits


def ours_of(model: nn.Module, images: ImageBatch, labels: Sequence[int]) -> Callable[[], Tensor]:
    """Maps ``[T, B, 224, 224]`` of all classes."""
    spec = model.explain_spec()
    scores = [class_score(label) for label in labels]

    def run() -> Tensor:
        values = GradCAM()(model, images, scores, spec).values
        return to_original(values, (224, 224), images.geometries[0])[0]

    return run


def peer_of(model: nn.Module, images: ImageBatch, labels: Sequence[int]) -> Callable[[], Tensor]:
    """The same maps by the peer, one class after the other, as its interface has it."""
    from pytorch_grad_cam import GradCAM as PeerGradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = find_module(model, model.explain_spec().layers["final"].path)
    explainer = PeerGradCAM(Plain(model), [layer])

    def run() -> Tensor:
        maps = [explainer(images.pixels, [ClassifierOutputTarget(label)] * len(images)) for label in labels]
        return torch.from_numpy(np.stack(maps))

    return run


def forward_of(model: nn.Module, images: ImageBatch) -> Callable[[], object]:
    """The forward pass without gradients."""

    def run() -> object:
        with torch.no_grad():
            return model(images)

    return run


def agreement(ours: Tensor, peer: Tensor) -> float:
    """Largest difference of two sets of maps, each scaled to [0, 1]."""

    def scaled(maps: Tensor) -> Tensor:
        low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
        return (maps - low) / (high - low).clamp_min(1e-7)

    return float((scaled(ours.cpu()) - scaled(peer.cpu())).abs().max())


def main() -> None:
    """Compare, measure, print."""
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=8)
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create("resnet50").eval().to(device)
    images = ImageBatch.of(torch.randn(chosen.batch, 3, 224, 224, device=device))
    rows: list[Row] = []
    for labels, reach in ((range(1), 2.0), (range(5), 8.0)):
        ours, peer = ours_of(model, images, labels), peer_of(model, images, labels)
        difference = agreement(ours(), peer())
        times = compare({"peer": peer, "ours": ours}, repeats=chosen.repeats, warmup=0)
        what = f"Grad-CAM, ResNet-50, {len(labels)} class{'es' if len(labels) > 1 else ''}"
        rows.append(_row(what, "pytorch-grad-cam", times["ours"], times["peer"], times["ratio"], f">= {reach:g}"))
        print(f"{what}: largest difference of the scaled maps {difference:.1e}")
        assert difference < 1e-3, "the two sides do not compute the same maps"
    twenty, forward = ours_of(model, images, range(20)), forward_of(model, images)
    times = compare({"ours": twenty, "forward": forward}, repeats=chosen.repeats)
    rows.append(
        _row(
            "Grad-CAM, ResNet-50, 20 classes", "our forward", times["ours"], times["forward"], times["ratio"], "<= 1.15"
        )
    )
    report(rows, chosen.json)


def _row(what: str, against: str, ours: float, other: float, ratio: float, reach: str) -> Row:
    return {"what": what, "against": against, "ours_s": ours, "other_s": other, "ratio": ratio, "reach": reach}


if __name__ == "__main__":
    main()
