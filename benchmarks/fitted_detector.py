"""Random detectors of torchvision that find drawn shapes: on top of random features the heads are fitted.

Published weights are not to be had here. Of random detectors every answer is a near tie, and a check that admits a
faster copy would mean nothing. So the batch norms get the statistics of drawn scenes, and the heads learn from them:
logistic regression for objectness and pixels of masks, ridge regression for the codes of anchors, a short training for
the head of boxes. The residual branches are made quiet, as those of trained networks are: with full ones a random
ResNet-50 makes a rounding error of bfloat16 eighty times as large from its first map to its last.

R rows · C features · K classes · h, w maps
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection

from saccade.ops.boxes import box_iou, encode
from saccade.types import BoxTarget, Masks

SIZE = (480, 640)
COLOURS = ((230.0, 60.0, 60.0), (60.0, 200.0, 60.0), (60.0, 60.0, 230.0))
"""Of the classes."""
NUM_SCENES = 20
"""Scenes that the layers are fitted to."""
MOVED = 40
"""Regions near each object that the box head is fitted to."""
FEWEST = 20
"""Objects of a shape that an anchor is fitted to, or it is never used."""
QUIET = 0.1
"""Factor of the last norm of each residual branch."""
HEAD_STEPS, HEAD_RATE = 1200, 1e-3
"""Training of the head of boxes."""
NOISE = 0.2
"""Of what it sees there, in the measure of what it sees."""
SMALL = 3e-4
"""How much the square of a weight costs."""
NEVER = -20.0
"""Logit of the classes that nothing is drawn of."""


class Scene(NamedTuple):
    """A picture ``[3, h, w]`` uint8 and what is on it."""

    image: Tensor
    target: BoxTarget


def scenes(count: int, seed: int) -> list[Scene]:
    """Pictures of 480x640 pixels with 4 to 8 ellipses that do not overlap; their class is their colour."""
    dice = torch.Generator().manual_seed(seed)
    return [_draw(dice) for _ in range(count)]


def _draw(dice: torch.Generator) -> Scene:
    height, width = SIZE
    down, across = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    picture = 90 + 6 * torch.randn(3, height, width, generator=dice)
    boxes: list[Tensor] = []
    masks, labels = [], []
    wanted = int(torch.randint(4, 9, (1,), generator=dice))
    for _ in range(20 * wanted):
        sides = 50 + 130 * torch.rand(2, generator=dice)
        corner = torch.rand(2, generator=dice) * (torch.tensor([width, height]) - sides)
        box = torch.cat([corner, corner + sides])
        if len(boxes) == wanted or (boxes and float(box_iou(box[None], torch.stack(boxes)).max()) > 0):
            continue
        middle = corner + sides / 2
        mask = ((across - middle[0]) / sides[0]) ** 2 + ((down - middle[1]) / sides[1]) ** 2 < 0.25
        label = int(torch.randint(len(COLOURS), (1,), generator=dice))
        picture[:, mask] += torch.tensor(COLOURS[label])[:, None] - 90
        boxes.append(box)
        masks.append(mask)
        labels.append(label)
    target = BoxTarget.of(torch.stack(boxes), torch.tensor(labels), Masks.of(torch.stack(masks)))
    return Scene(picture.clamp(0, 255).byte(), target)


def decisive(name: str) -> Any:
    """A detector of torchvision that finds the shapes of scenes; classes 1 to K are their labels."""
    module: Any = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=91).eval()
    drawn = scenes(NUM_SCENES, seed=0)
    pictures = [scene.image.float() / 255 for scene in drawn]
    with torch.no_grad():
        _calibrate(module, pictures)
    seen = [_look(module, picture, scene.target) for picture, scene in zip(pictures, drawn, strict=True)]
    _fit_proposals(module, seen)
    _fit_boxes(module, seen)
    if module.roi_heads.has_mask():
        _fit_masks(module, seen)
    return module


class _Seen:
    """A scene as the detector has it: pyramid levels, and the objects on its canvas."""

    def __init__(self, images: Any, levels: dict[str, Tensor], boxes: Tensor, target: BoxTarget) -> None:
        self.images, self.levels, self.boxes, self.target = images, levels, boxes, target


def _calibrate(module: Any, pictures: Sequence[Tensor]) -> None:
    """Statistics of scenes for the norms."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    for name, part in module.backbone.named_modules():
        if name.endswith(".bn3"):
            part.weight.fill_(QUIET)
    module.backbone.train()
    for picture in pictures[:4]:
        module.backbone(module.transform([picture])[0].tensors)
    module.eval()


@torch.no_grad()
def _look(module: Any, picture: Tensor, target: BoxTarget) -> _Seen:
    images, _ = module.transform([picture])
    scale = images.image_sizes[0][0] / picture.shape[-2]
    with torch.autocast("cpu", torch.bfloat16):
        levels = module.backbone(images.tensors)
    return _Seen(images, {name: level.float() for name, level in levels.items()}, target.boxes * scale, target)


def _fit_proposals(module: Any, seen: Sequence[_Seen]) -> None:
    """Objectness and codes of the anchors, each shape of anchor for itself."""
    head = module.rpn.head
    features, labels, codes = [], [], []
    with torch.no_grad():
        for one in seen:
            levels = list(one.levels.values())
            anchors = module.rpn.anchor_generator(one.images, levels)[0]
            maps = torch.cat([head.conv(level)[0].flatten(1).T for level in levels])  # [cells, C]
            overlap, nearest = box_iou(one.boxes, anchors).max(0)
            kinds = len(anchors) // len(maps)
            features.append(maps)
            labels.append(overlap.reshape(-1, kinds))
            codes.append(encode(one.boxes[nearest], anchors).reshape(-1, kinds, 4))
    rows, overlaps, aims = torch.cat(features), torch.cat(labels), torch.cat(codes)
    for kind in range(overlaps.shape[1]):
        is_object, is_nothing = overlaps[:, kind] >= 0.5, overlaps[:, kind] < 0.3
        positive = torch.nonzero(is_object)[:, 0]
        if len(positive) < FEWEST:
            _put(head.cls_logits, slice(kind, kind + 1), torch.zeros_like(rows[:1]), rows.new_full((1,), NEVER))
            continue
        negative = torch.nonzero(is_nothing)[:, 0]
        negative = negative[torch.randperm(len(negative))[: 20 * len(positive)]]
        chosen = torch.cat([positive, negative])
        weight, bias = _classify(rows[chosen], is_object[chosen].long(), 2)
        _put(head.cls_logits, slice(kind, kind + 1), weight[1:] - weight[:1], bias[1:] - bias[:1])
        weight, bias = _regress(rows[positive], aims[positive, kind])
        _put(head.bbox_pred, slice(4 * kind, 4 * kind + 4), weight, bias)


def _fit_boxes(module: Any, seen: Sequence[_Seen]) -> None:
    """The whole head of boxes learns from proposals and from objects moved a little, seen through some noise."""
    heads = module.roi_heads
    features, labels, codes = [], [], []
    with torch.no_grad():
        for one in seen:
            proposals = module.rpn(one.images, one.levels)[0][0]
            boxes = torch.cat(
                [proposals[torch.randperm(len(proposals))[:400]], *[_moved(one.boxes) for _ in range(MOVED)]]
            )
            overlap, nearest = box_iou(one.boxes, boxes).max(0)
            features.append(heads.box_roi_pool(one.levels, [boxes], one.images.image_sizes).to(torch.bfloat16))
            labels.append(torch.where(overlap >= 0.5, one.target.labels[nearest] + 1, 0))
            codes.append(encode(one.boxes[nearest], boxes, heads.box_coder.weights))
    rows, classes, aims = torch.cat(features), torch.cat(labels), torch.cat(codes)
    known, size = int(classes.max()) + 1, float(rows.float().square().mean().sqrt())
    predictor = heads.box_predictor
    with torch.no_grad():
        predictor.cls_score.weight[known:] = 0
        predictor.cls_score.bias[known:] = NEVER
    layers = [*heads.box_head.parameters(), *predictor.parameters()]
    optimizer = torch.optim.Adam(layers, lr=HEAD_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, HEAD_STEPS)
    for _ in range(HEAD_STEPS):
        chosen = torch.randint(len(rows), (256,))
        given = rows[chosen] + torch.randn(256, *rows.shape[1:]) * NOISE * size
        with torch.autocast("cpu", torch.bfloat16):
            logits, moves = predictor(heads.box_head(given))
        is_object = classes[chosen] > 0
        own = moves.float().reshape(256, -1, 4)[is_object, classes[chosen][is_object]]
        total = F.cross_entropy(logits.float(), classes[chosen])
        total = total + F.smooth_l1_loss(own, aims[chosen][is_object], beta=0.1)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()


def _fit_masks(module: Any, seen: Sequence[_Seen]) -> None:
    """Pixels of masks, the same for all classes."""
    heads = module.roi_heads
    rows, labels = [], []
    with torch.no_grad():
        for one in seen:
            boxes = torch.cat([one.boxes, _moved(one.boxes), _moved(one.boxes)])
            cells = heads.mask_head(heads.mask_roi_pool(one.levels, [boxes], one.images.image_sizes))
            cells = heads.mask_predictor.relu(heads.mask_predictor.conv5_mask(cells))  # [N, C, 28, 28]
            assert one.target.masks is not None
            dense = F.interpolate(one.target.masks.dense().float()[None], one.images.image_sizes[0])[0]
            for index, box in enumerate(boxes):
                grid = _grid(box, cells.shape[-1], dense.shape[-2:])
                mask = dense[index % len(dense)][None, None]
                labels.append(F.grid_sample(mask, grid[None], align_corners=False)[0, 0].flatten() > 0.5)
            rows.append(cells.permute(0, 2, 3, 1).flatten(0, 2))
    cells, inside = torch.cat(rows), torch.cat(labels).long()
    chosen = torch.randperm(len(cells))[:40_000]
    weight, bias = _classify(cells[chosen], inside[chosen], 2)
    for label in range(heads.mask_predictor.mask_fcn_logits.out_channels):
        _put(
            heads.mask_predictor.mask_fcn_logits, slice(label, label + 1), weight[1:] - weight[:1], bias[1:] - bias[:1]
        )


def _grid(box: Tensor, side: int, size: Sequence[int]) -> Tensor:
    """Middles of the cells of a box ``[side, side, 2]`` as shares from -1 to 1 of a picture ``(h, w)``."""
    steps = (torch.arange(side) + 0.5) / side
    across = (box[0] + (box[2] - box[0]) * steps) / size[1] * 2 - 1
    down = (box[1] + (box[3] - box[1]) * steps) / size[0] * 2 - 1
    return torch.stack([across.expand(side, side), down[:, None].expand(side, side)], dim=-1)


def _moved(boxes: Tensor) -> Tensor:
    """Boxes ``[N, 4]`` near those given, every side moved by up to a quarter of their length."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + (torch.rand_like(boxes) - 0.5) * 0.5 * sides


def _classify(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Logistic regression: weight ``[K, C]`` and bias ``[K]`` for rows ``[R, C]`` as they come.

    Weights are kept small in the measure of the features themselves, not of their spread: rounding is as well.
    """
    middle, size = rows.mean(0), rows.square().mean().sqrt()
    scaled = (rows - middle) / size
    weight = torch.zeros(num_classes, rows.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(F.linear(scaled, weight, bias), labels) + SMALL * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)  # type: ignore[arg-type]
    own = (weight / size).detach()
    return own, bias.detach() - own @ middle


def _regress(rows: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression: weight ``[D, C]`` and bias ``[D]`` for rows ``[R, C]`` and aims ``[R, D]``."""
    middle, goal = rows.mean(0), aims.mean(0)
    centred = (rows - middle).double()
    ridge = 1e-3 * rows.double().square().sum() / rows.shape[1] * torch.eye(rows.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (aims - goal).double()).T.float()
    return weight, goal - weight @ middle


@torch.no_grad()
def _put(layer: nn.Module, rows: slice, weight: Tensor, bias: Tensor) -> None:
    """Rows of a layer's weight and bias."""
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    layer.weight[rows] = weight.reshape(layer.weight[rows].shape)
    layer.bias[rows] = bias
