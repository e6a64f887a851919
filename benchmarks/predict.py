"""`saccade.predict` as shipped against timm in eager float32: the same weights, the same prepared pictures.

The backbones are random (weights are not to be had here). Their answers would all be alike, and the check that admits a
faster copy would mean nothing. Therefore the last layer reads the principal components in which drawn scenes differ
most, scaled so that the answers are decisive; which class means what does not matter here.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from measure import Row, compare, parser, report
from saccade.data.synthetic import SceneConfig, SyntheticClassification
from saccade.engine.predict import Predictor, run
from saccade.models.build import adopt
from saccade.types import ImageBatch
from saccade.weights.timm import publish

MODELS = {"ViT-B/16": "vit_base_patch16_224", "ResNet-50": "resnet50"}
COMPONENTS = 4
SHARPNESS = 4.0
"""Logit at one standard deviation of a component."""


def decisive(name: str, count: int) -> tuple[nn.Module, Tensor]:
    """A timm model whose answers differ from scene to scene, and scenes that its last layer was not made from."""
    scenes = SyntheticClassification(2 * count, SceneConfig(size=(224, 224)), seed=0)
    pictures = torch.stack([scenes[index].image for index in range(len(scenes))])
    peer = timm.create_model(name, num_classes=2 * COMPONENTS).eval()
    with torch.inference_mode():
        pixels = [_prepared(part) for part in pictures[:count].split(16)]
        features = torch.cat([peer.forward_head(peer.forward_features(p), pre_logits=True) for p in pixels])
    middle = features.mean(0)
    _, sizes, directions = torch.linalg.svd(features - middle, full_matrices=False)
    deviation = sizes[:COMPONENTS] / count**0.5
    rows = SHARPNESS * directions[:COMPONENTS] / deviation[:, None]
    head = peer.get_classifier()
    with torch.no_grad():
        head.weight.copy_(torch.cat([rows, -rows]))  # one class for each end of each component
        head.bias.copy_(-head.weight @ middle)
    return peer, pictures[count:]


def _prepared(pictures: Tensor) -> Tensor:
    return (pictures.float() / 255 - 0.5) / 0.25


def measure(name: str, repeats: int, batch: int, count: int) -> Row:
    """One row: the predictor's chosen copy and the peer, on the same pixels."""
    peer, pictures = decisive(MODELS[name], count)
    model = adopt(publish(peer, MODELS[name])).eval()
    predictor = Predictor(model)
    list(predictor.stream(list(pictures[:32])))  # on its first pictures it decides which copy to use
    plan = predictor.plan
    assert plan is not None
    pixels = model.preprocess(pictures[-batch:]).pixels
    images = ImageBatch.of(pixels)

    def theirs() -> object:
        with torch.inference_mode():
            return peer(pixels).softmax(-1)

    ways: dict[str, Callable[[], object]] = {
        "timm": theirs,
        "ours": lambda: run(predictor._runner, model, images),
    }
    ours = torch.stack([prediction.scores for prediction in run(predictor._runner, model, images)])
    difference = float((ours - theirs()).abs().max())  # type: ignore[operator]
    times = compare(ways, repeats)
    for reason in plan.rejected:
        print(f"{name}: not taken: {reason}")
    return {
        "model": name,
        "ours runs": plan.name,
        "ours_s": times["ours"],
        "timm_s": times["timm"],
        "ratio": times["ratio"],
        "reach": ">= 2.5",
        "largest difference": difference,
        "median confidence": float(ours.amax(1).median()),
    }


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--count", type=int, default=120, help="scenes the last layer is made from")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows = [measure(name, given.repeats, given.batch, given.count) for name in given.models]
    report(rows, given.json)
    return rows


if __name__ == "__main__":
    main()
