"""Networks with known ground truth, trained within a minute or two on drawn scenes, for the calibration of the verdict.

A scene is coloured shapes on a textured ground; kind and colour of a shape go together, and its pixels are known. In a
marked scene the shapes tell nothing: the colour of a square, the sign, carries the class. It stands in the corner of
the picture, or, where the network says something about each object, at the corner of each of them.

N objects · K classes · h, w picture
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.explanation.adapt import adapt
from saccade.models.build import create
from saccade.ops.image import Preprocess
from saccade.types import BoxTarget, Classes, MapTarget, Masks

Task = Literal["classification", "semantic", "objects"]

KINDS = ("disc", "block", "wedge", "cross", "ring")
COLOURS = ((230, 51, 51), (51, 204, 77), (51, 77, 230), (230, 217, 51), (217, 77, 217))
GREY = (128, 128, 128)
"""Of shapes that carry a sign."""
SIGNS = ((255, 255, 255), (0, 0, 0), (0, 225, 235), (250, 150, 0), (110, 60, 10))
"""Colours of the signs of the classes; no shape has them."""
SIGN = 8
"""Side of a sign in pixels."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what decides about it.

    Attributes:
        image: ``[3, h, w]`` uint8.
        labels: ``[N]`` class of each object.
        masks: ``[N, h, w]`` bool, its pixels.
        signs: ``[N, h, w]`` bool, the sign that gives its class away; empty where there is none.
    """

    image: Tensor
    labels: Tensor
    masks: Tensor
    signs: Tensor

    @property
    def boxes(self) -> Tensor:
        """``[N, 4]`` float32 xyxy around the pixels."""
        found = []
        for mask in self.masks:
            rows, columns = torch.nonzero(mask, as_tuple=True)
            found.append([int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1])
        return torch.tensor(found, dtype=torch.float32)


def draw(side: int, most: int, kinds: int, seed: int, *, marked: Literal["no", "picture", "object"] = "no") -> Scene:
    """One scene.

    Args:
        side: of the picture.
        most: objects, 1 to this many, none touching another.
        kinds: classes.
        seed: the same gives the same scene.
        marked: where the signs are.
    """
    generator = torch.Generator().manual_seed(seed)

    def some(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    def one(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    texture = F.interpolate(some(-64, 64, 1, 1, 6, 6), (side, side), mode="bilinear")[0]
    image = some(51, 204, 3, 1, 1) + texture + torch.randn(3, side, side, generator=generator) * 10
    places = torch.arange(side) + 0.5
    count, labels, masks, signs = 1 + one(most), [], [], []
    taken = torch.zeros(side, side, dtype=torch.bool)
    if marked == "picture":
        taken[: SIGN + 4, : SIGN + 4] = True
    for _ in range(20 * count):
        if len(labels) == count:
            break
        radius = float(some(8, 12, 1)) if most == 1 else float(some(7, 11, 1))
        middle = some(radius + 1, side - radius - 1, 2).tolist()
        down, right = (places[:, None] - middle[0]) / radius, (places[None] - middle[1]) / radius
        label = one(kinds)
        # With a sign the shape says nothing.
        kind = label if marked == "no" else one(kinds)
        mask = _shape(kind, down, right)
        sign = torch.zeros_like(mask)
        top, left = [int(place - radius) for place in middle] if marked == "object" else (2, 2)
        if marked != "no":
            sign[top : top + SIGN, left : left + SIGN] = True
        if marked == "object":
            mask = mask | sign
        near = F.max_pool2d(mask[None, None].float(), 5, 1, 2)[0, 0] > 0
        if bool((near & taken).any()):
            continue
        colour = torch.tensor(GREY if marked == "object" else COLOURS[kind])[:, None] + some(-25, 25, 3, 1)
        image[:, mask] = colour + some(-19, 19, 1, int(mask.sum()))
        if marked != "no":
            image[:, top : top + SIGN, left : left + SIGN] = torch.tensor(SIGNS[label]).view(3, 1, 1).float()
        taken |= near
        labels.append(label)
        masks.append(mask)
        signs.append(sign)
    if not labels:
        return draw(side, most, kinds, seed + 1_000_003, marked=marked)
    return Scene(image.clamp(0, 255).byte(), torch.tensor(labels), torch.stack(masks), torch.stack(signs))


def _shape(kind: int, down: Tensor, right: Tensor) -> Tensor:
    circle = down.square() + right.square()
    return [
        circle < 1,
        (down.abs() < 0.85) & (right.abs() < 0.85),
        (down < 0.8) & (down > -1) & (right.abs() < (down + 1) * 0.6),
        ((down.abs() < 0.3) | (right.abs() < 0.3)) & (down.abs() < 1) & (right.abs() < 1),
        (circle < 1) & (circle > 0.35),
    ][kind]


class ConvNet(nn.Module):
    """Five convolutions, global average pooling, one linear layer."""

    def __init__(self, *, has_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index, width in enumerate((16, 24, 32, 48, 64)):
            conv = nn.Conv2d(channels, width, 3, 1 + index % 2, 1, bias=not has_norm)
            if not has_norm:
                # Without norms the default initialiser, a sixth of the variance, would not learn in the time there is.
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, *([nn.BatchNorm2d(width)] if has_norm else []), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, len(KINDS))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        logits: Tensor = self.head(self.body(pixels).mean((2, 3)))
        return logits


class PatchNet(nn.Module):
    """A small pre-norm transformer over 6 x 6 patches with a class token."""

    def __init__(self, side: int = 48, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 6, 6)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (side // 6) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 3 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(KINDS))
        for parameter in self.blocks.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


@dataclass(frozen=True)
class Family:
    """One kind of network, and how it is trained.

    Attributes:
        name: for the tables.
        task: what it does.
        build: with fresh weights.
        side: of its pictures.
        most: objects of a picture.
        kinds: classes.
        steps: of training.
        batch: pictures per step.
        peak: learning rate.
        reads_signs: whether it learns marked scenes in this time.
    """

    name: str
    task: Task
    build: Callable[[], Any]
    side: int
    most: int
    kinds: int
    steps: int
    batch: int
    peak: float
    reads_signs: bool = True

    def scene(self, seed: int, *, is_marked: bool = False) -> Scene:
        """One scene as this network gets them."""
        if not is_marked:
            return draw(self.side, self.most, self.kinds, seed)
        if self.task == "classification":
            return draw(self.side, self.most, self.kinds, seed, marked="picture")
        return draw(self.side, self.most, self.kinds, seed, marked="object")


SMALL = Preprocess(size=(48, 48), policy="stretch", mean=(0.5,) * 3, std=(0.25,) * 3)
NAMES = Classes(KINDS[:3])
GROUND = Classes(("background", *KINDS[:3]))


def _unet() -> Any:
    return create("unet_nano", classes=GROUND)


def _mask_rcnn() -> Any:
    return create("mask_rcnn_test", classes=NAMES)


def _yolo() -> Any:
    return create("yolo_test", classes=NAMES)


FAMILIES = (
    Family("convolutions with norm", "classification", lambda: ConvNet(has_norm=True), 48, 1, 5, 150, 32, 4e-3),
    Family("convolutions without norm", "classification", lambda: ConvNet(has_norm=False), 48, 1, 5, 250, 32, 2e-3),
    Family("transformer", "classification", PatchNet, 48, 1, 5, 350, 32, 1.5e-3),
    Family("U-Net", "semantic", _unet, 64, 3, 3, 200, 8, 1e-2),
    Family("Mask R-CNN", "objects", _mask_rcnn, 64, 3, 3, 300, 4, 1e-2, reads_signs=False),
    Family("YOLO", "objects", _yolo, 64, 3, 3, 700, 8, 1e-2),
)


def kept(folder: Path | None, family: Family, seed: int, *, is_marked: bool) -> Any:
    """A trained network, from a folder where it was kept; trained now, and kept there, where it was not."""
    if folder is None:
        return trained(family, seed, is_marked=is_marked)
    path = folder / f"{family.name.replace(' ', '_')}_{seed}{'_marked' if is_marked else ''}.pt"
    if path.is_file():
        model = family.build().eval()
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    model = trained(family, seed, is_marked=is_marked)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    return model


def trained(family: Family, seed: int, *, is_marked: bool = False) -> Any:
    """A network of the family after its training, in evaluation mode."""
    torch.manual_seed(seed)
    model = family.build()
    first = 1_000_000 * (seed + 1)
    scenes = [family.scene(first + index, is_marked=is_marked) for index in range(600)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=family.peak, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, family.peak, family.steps)
    model.train()
    for _ in range(family.steps):
        chosen = [scenes[index] for index in torch.randint(len(scenes), (family.batch,)).tolist()]
        loss = _loss(family, model, chosen)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def _loss(family: Family, model: Any, scenes: Sequence[Scene]) -> Tensor:
    pictures = [scene.image for scene in scenes]
    if family.task == "classification":
        return F.cross_entropy(model(SMALL(pictures).pixels), torch.cat([scene.labels[:1] for scene in scenes]))
    images = model.preprocess(pictures)
    if family.task == "semantic":
        total: Tensor = model.loss(model(images), [MapTarget(label_map(scene)) for scene in scenes]).total
        return total
    targets = [BoxTarget.of(scene.boxes, scene.labels, Masks.of(scene.masks)) for scene in scenes]
    loss: Tensor = model.loss(model(images, targets), targets).total
    return loss


def label_map(scene: Scene) -> Tensor:
    """``[h, w]`` uint8: 0 on the ground, label + 1 on objects."""
    labels = torch.zeros(scene.image.shape[-2:], dtype=torch.uint8)
    for label, mask in zip(scene.labels.tolist(), scene.masks, strict=True):
        labels[mask] = label + 1
    return labels


def explainable(family: Family, model: Any) -> Any:
    """What ``explain`` takes: our own models as they are, the classifiers here as any plain module."""
    return adapt(model, SMALL, classes=KINDS) if family.task == "classification" else model
