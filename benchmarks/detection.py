"""Faster and Mask R-CNN against torchvision, with the same random weights, on pictures of 480x640.

The weights are random (published ones are not to be had here). The layers that score anchors, regions and masks are
scaled so that scores differ and dozens of regions become detections, as they would in a photograph full of objects.
For ``predict`` that would not do: near ties are no detections, and the check that admits a faster copy would mean
nothing. There the last layers are fitted to drawn scenes (``fitted_detector.py``), and AP on others is printed.

* forward: eager float32, one picture from bytes to detections in its own pixels, masks included;
* predict: ``saccade.predict`` on pictures of bytes after it has decided how on others, against their eager float32;
* step: forward, loss, backward and AdamW of a batch of two, float32, batch norms frozen on neither side. Ours takes
  targets as training gives them: boxes and masks on the canvas;
* memory: peak memory of two such steps, of the process on a processor, each side in one of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection

from fitted_detector import Scene, decisive, scenes
from measure import Row, compare, parser, peak_memory, report
from saccade.engine.predict import Predictor
from saccade.metrics.detection import DetectionMeter
from saccade.models.build import adopt
from saccade.ops.boxes import box_iou, map_to_canvas
from saccade.tasks import TASKS
from saccade.types import BoxTarget, Detections, Masks
from saccade.weights import torchvision as torchvision_weights

SIZE = (480, 640)
NAMES = {"Faster R-CNN": "fasterrcnn_resnet50_fpn", "Mask R-CNN": "maskrcnn_resnet50_fpn"}
SCORED = 20
"""Scenes that AP and agreement are counted on."""
BACKGROUND_LEAD = 4.0
"""How far background lies above the classes, which leaves some dozens of detections."""


def pictures(count: int, seed: int) -> list[Tensor]:
    """Smooth noise ``[3, 480, 640]`` uint8."""
    dice = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, SIZE[0] // 16, SIZE[1] // 16, generator=dice)
    smooth = nn.functional.interpolate(noise, size=SIZE, mode="bicubic")
    return list(((smooth * 0.25 + 0.5).clamp(0, 1) * 255).byte())


def floats(pictures: list[Tensor]) -> list[Tensor]:
    """What torchvision takes."""
    return [picture.float() / 255 for picture in pictures]


def build(name: str) -> Any:
    """Their detector, sure of some regions."""
    module: Any = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=91).eval()
    heads = module.roi_heads
    layers = [(module.rpn.head.cls_logits, 2.0), (module.rpn.head.bbox_pred, 0.3)]
    layers += [(heads.box_predictor.cls_score, 2.0), (heads.box_predictor.bbox_pred, 1.0)]
    if heads.has_mask():
        layers.append((heads.mask_predictor.mask_fcn_logits, 2.0))
    given = floats(pictures(1, seed=1))
    with torch.no_grad():
        for layer, spread in layers:
            seen: list[Tensor] = []
            handle = layer.register_forward_hook(
                lambda _m, _given, out, seen=seen: seen.append(out.movedim(1, -1).flatten(0, -2))
            )
            module(given)
            handle.remove()
            values = torch.cat(seen)
            scale = spread / values.std(0)
            layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias.sub_(values.mean(0)).mul_(scale)
        heads.box_predictor.cls_score.bias[0] += BACKGROUND_LEAD
    return module


def row(what: str, times: dict[str, float], names: tuple[str, str], reach: str, told: str) -> Row:
    """One line of the results; the ratio is that of the first name over the second."""
    figures = {"ours_s": times["ours"], "other_s": times["peer"], "ratio": times["ratio"]}
    return {
        "what": what,
        "against": "torchvision",
        **figures,
        "ratio of": " / ".join(names),
        "reach": reach,
        "note": told,
    }


def forward(name: str, device: str, repeats: int) -> Row:
    """One picture, from bytes to detections."""
    module = build(NAMES[name]).to(device)
    model: Any = adopt(torchvision_weights.publish(module.cpu(), NAMES[name])).eval().to(device)
    module = module.to(device)
    (picture,) = [picture.to(device) for picture in pictures(1, seed=2)]

    def ours() -> Detections:
        images = model.preprocess([picture])
        return model.postprocess(model(images), images)[0]

    with torch.no_grad():
        found, (expected,) = ours(), module(floats([picture]))
        overlap = float(box_iou(expected["boxes"], found.boxes).amax(1).median())
        times = compare({"ours": ours, "peer": lambda: module(floats([picture]))}, repeats)
    told = f"{len(found)} detections, theirs {len(expected['scores'])}, median overlap {overlap:.2f} (other resizing)"
    return row(f"{name} forward, 480x640", times, ("ours", "other"), "<= 1", told)


def fitted(name: str, folder: Path | None) -> Any:
    """Their detector that finds drawn shapes; kept in a folder, for fitting takes minutes."""
    path = folder / f"{NAMES[name]}.pt" if folder else None
    if path is None or not path.is_file():
        module = decisive(NAMES[name])
        if path is not None:
            torch.save(module.state_dict(), path)
        return module
    module = getattr(detection, NAMES[name])(weights=None, weights_backbone=None, num_classes=91).eval()
    module.load_state_dict(torch.load(path, weights_only=True))
    return module


def average_precision(found: Sequence[Detections], drawn: Sequence[Scene], has_masks: bool) -> float:
    """AP of masks, or of boxes, in points."""
    meter = DetectionMeter(90, "masks" if has_masks else "boxes")
    for index, (detections, scene) in enumerate(zip(found, drawn, strict=True)):
        meter.update(detections, scene.target, index=index, source="")
    return 100 * meter.compute()["ap"]


def predict(name: str, count: int, repeats: int, folder: Path | None) -> Row:
    """``saccade.predict`` as shipped."""
    module = fitted(name, folder)
    model: Any = adopt(torchvision_weights.publish(module, NAMES[name]))
    predictor = Predictor(model)
    predictor([scene.image for scene in scenes(4, seed=7)])  # on its first pictures it decides which copy to use
    plan = predictor.plan
    assert plan is not None
    drawn = scenes(SCORED, seed=8)
    listed = [scene.image for scene in drawn]

    def theirs(count: int = count) -> list[dict[str, Tensor]]:
        with torch.inference_mode():
            return [module(floats([picture]))[0] for picture in listed[:count]]

    found = predictor(listed)
    has_masks = model.task == "instance"
    expected = [_ours(one, listed[0].shape[-2:], model.classes, has_masks) for one in theirs(SCORED)]
    agreement, gap = TASKS[model.task].agreement(found, expected)
    points = [average_precision(side, drawn, has_masks) for side in (found, expected)]  # type: ignore[arg-type]
    times = compare({"peer": theirs, "ours": lambda: predictor(listed[:count])}, repeats)
    for reason in plan.rejected:
        print(f"{name}: not taken: {reason}")
    told = (
        f"runs {plan.name}; {agreement:.1%} of the clear objects agree, scores differ by {gap:.3f}; "
        f"AP of {'masks' if has_masks else 'boxes'} {points[0]:.2f}, theirs {points[1]:.2f}"
    )
    return row(f"{name} predict, {count} pictures", times, ("other", "ours"), ">= 2.5", told)


def _ours(found: dict[str, Tensor], size: Sequence[int], classes: Any, has_masks: bool) -> Detections:
    """Their detections as ours; the labels of both count from their first class."""
    labels = found["labels"] - 1
    masks = None
    if has_masks:
        masks = Masks.of(found["masks"][:, 0] > 0.5) if len(labels) else Masks.none((int(size[0]), int(size[1])))
    return Detections(found["boxes"], found["scores"], labels, torch.arange(len(labels)), classes, masks)


def targets(model: Any, count: int) -> tuple[list[BoxTarget], list[dict[str, Tensor]]]:
    """Ten rectangles per picture: ours on the canvas, theirs in the picture."""
    dice = torch.Generator().manual_seed(4)
    images = model.preprocess(pictures(count, seed=5))
    ours, theirs = [], []
    for geometry, size in zip(images.geometries, images.sizes, strict=True):
        corner = torch.rand(10, 2, generator=dice) * 350
        boxes = torch.cat([corner, corner + 20 + torch.rand(10, 2, generator=dice) * 100], dim=1).round()
        labels = torch.randint(80, (10,), generator=dice)
        moved = map_to_canvas(boxes, geometry)
        theirs.append({"boxes": boxes, "labels": labels + 1, "masks": filled(boxes, SIZE).byte()})
        ours.append(BoxTarget.of(moved, labels, Masks.of(filled(moved, size)) if model.task == "instance" else None))
    return ours, theirs


def filled(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Whole maps ``[N, h, w]`` bool of rectangles."""
    maps = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(maps, boxes.round().int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return maps


def steps(name: str, device: str) -> dict[str, Callable[[], None]]:
    """One step of a training, of either side; theirs includes its resizing, which belongs to its forward pass."""
    module = build(NAMES[name])
    published = torchvision_weights.publish(module, NAMES[name])
    published.config["freeze_norms"] = False
    model: Any = adopt(published).train().to(device)
    module = module.train().to(device)
    own, other = targets(model, 2)
    own = [target.to(device) for target in own]
    other = [{key: value.to(device) for key, value in target.items()} for target in other]
    listed = pictures(2, seed=5)
    images = model.preprocess(listed).to(device)
    given = [picture.to(device) for picture in floats(listed)]

    def stepping(part: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(part.parameters(), lr=1e-6)

        def run() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return run

    return {
        "ours": stepping(model, lambda: model.loss(model(images, own), own).total),
        "peer": stepping(module, lambda: sum(module(given, other).values())),  # type: ignore[arg-type, return-value]
    }


def step(name: str, device: str, repeats: int) -> Row:
    """One step of a training."""
    times = compare(steps(name, device), repeats)
    return row(f"{name} training step, batch 2", times, ("ours", "other"), "<= 1", "float32, contiguous")


def peak(name: str, side: str, device: str) -> tuple[float, float]:
    """Peak MiB of two steps of one side, and what there was before the first."""
    run = steps(name, device)[side]
    if device != "cpu":
        before = torch.cuda.max_memory_allocated() / 2**20
        run()
        run()
        return torch.cuda.max_memory_allocated() / 2**20, before
    before = peak_memory()
    run()
    run()
    return peak_memory(), before


def memory(name: str, device: str) -> Row:
    """Peak memory of steps, each side in a process of its own; seconds are MiB here."""
    peaks, before = {}, 0.0
    for side in ("ours", "peer"):
        words = [sys.executable, __file__, "--models", name, "--device", device, "--peak-of", side]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        peaks[side], before = float(said[-2]), float(said[-1])
    times = {**peaks, "ratio": peaks["ours"] / peaks["peer"]}
    told = f"MiB instead of seconds; {before:.0f} with both models, before the first step"
    return row(f"{name} training step, batch 2, peak memory", times, ("ours", "other"), "<= 1", told)


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    parts = ("forward", "predict", "step", "memory")
    options.add_argument("--parts", nargs="+", default=parts, choices=parts)
    options.add_argument("--models", nargs="+", default=tuple(NAMES), choices=tuple(NAMES))
    options.add_argument("--count", type=int, default=4, help="pictures that are predicted")
    options.add_argument("--device", default="cpu", help="of forward, step and memory")
    options.add_argument("--fitted", type=Path, default=None, help="folder that keeps the fitted weights of predict")
    options.add_argument("--peak-of", choices=("ours", "peer"), help="only measure the memory of this very process")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if given.peak_of:
        print(*peak(given.models[0], given.peak_of, given.device))
        return []
    rows: list[Row] = []
    try:
        for line in measured(given):
            rows.append(line)
            print(f"{line['what']}: {line['ratio']:.3g} ({line['note']})", flush=True)
    finally:  # a later line must not lose those before it
        if rows:
            report(rows, given.json)
    return rows


def measured(given: argparse.Namespace) -> Iterator[Row]:
    """One row after the other, as asked on the command line."""
    for name in given.models:
        if "forward" in given.parts:
            yield forward(name, given.device, given.repeats)
        if "predict" in given.parts:
            yield predict(name, given.count, max(given.repeats // 2, 1), given.fitted)
        if "step" in given.parts:
            yield step(name, given.device, given.repeats)
        if "memory" in given.parts:
            yield memory(name, given.device)


if __name__ == "__main__":
    main()
