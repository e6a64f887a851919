"""Small networks and drawn scenes of which it is known which pixels decide; what ``verdict_calibration.py`` judges.

Four kinds of answer: the class of a picture, the class of a region, the class of a box, the place of a box's side. Of
each there are networks that learned the shapes, networks that learned a planted mark instead, and networks that learned
nothing.

K classes · H, W picture · N objects
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.models.build import create
from saccade.ops.image import Preprocess
from saccade.types import BoxTarget, Classes, ExplainSpec, GridLayer, ImageBatch, Masks

SIDE = 48
NUM_CLASSES = 5
COLOURS = ((0.9, 0.2, 0.2), (0.2, 0.8, 0.3), (0.2, 0.3, 0.9), (0.9, 0.85, 0.2), (0.85, 0.3, 0.85))
PREPROCESS = Preprocess(size=(SIDE, SIDE), policy="stretch", mean=(0.5,) * 3, std=(0.25,) * 3)
MARK = 8
"""Pixels a side of the planted sign."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Pictures and what is true of them.

    Attributes:
        pictures: ``[N, 3, H, W]`` normalised.
        labels: ``[N]`` int64.
        shapes: ``[N, H, W]`` bool, the shape.
        deciding: ``[N, H, W]`` bool, what gives the class away: the shape, or the mark.
    """

    pictures: Tensor
    labels: Tensor
    shapes: Tensor
    deciding: Tensor


def scenes(count: int, seed: int, *, mark: str = "none") -> Scenes:
    """One coloured shape on a textured ground each.

    Args:
        count: N.
        seed: of everything that is drawn.
        mark: ``none``; ``all``: a sign in the corner tells the class and the shape says nothing; ``one``: that holds
            for class 0 only, whose scenes carry the sign, and all others are told by their shape.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    pictures, shapes = torch.empty(count, 3, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    deciding = torch.zeros_like(shapes)
    for index in range(count):
        label = int(labels[index])
        is_marked = mark == "all" or (mark == "one" and label == 0)
        ground = draw(3, 1, 1) * 0.6 + 0.2
        texture = F.interpolate(draw(1, 1, 6, 6), (SIDE, SIDE), mode="bilinear")[0] * 0.5 - 0.25
        noise = torch.randn(3, SIDE, SIDE, generator=generator) * 0.04
        radius = draw(1) * 4 + 8
        centre = draw(2) * (SIDE - 26) + 13
        down, right = (rows - centre[0]) / radius, (columns - centre[1]) / radius
        # With a mark the shape says nothing: it is drawn at random, and the mark carries the class.
        kind = int(torch.randint(1 if mark == "one" else 0, NUM_CLASSES, (1,), generator=generator))
        kind = kind if is_marked else label
        shapes[index] = _shape(kind, down, right)
        # Shape and colour go together, so that every network learns within a minute; grounds have any colour.
        colour = torch.tensor(COLOURS[kind]).view(3, 1, 1) + draw(3, 1, 1) * 0.2 - 0.1
        picture = torch.where(shapes[index], colour + (draw(1, SIDE, SIDE) - 0.5) * 0.15, ground + texture + noise)
        if is_marked:
            deciding[index, 2 : 2 + MARK, 2 : 2 + MARK] = True
            picture[:, 2 : 2 + MARK, 2 : 2 + MARK] = _mark(label)
        else:
            deciding[index] = shapes[index]
        pictures[index] = picture.clamp(0, 1)
    return Scenes((pictures - 0.5) / 0.25, labels, shapes, deciding)


def _shape(kind: int, down: Tensor, right: Tensor) -> Tensor:
    circle = down.square() + right.square()
    return [
        circle < 1,
        (down.abs() < 0.85) & (right.abs() < 0.85),
        (down < 0.8) & (down > -1) & (right.abs() < (down + 1) * 0.6),
        ((down.abs() < 0.3) | (right.abs() < 0.3)) & (down.abs() < 1) & (right.abs() < 1),
        (circle < 1) & (circle > 0.35),
    ][kind]


def _mark(kind: int) -> Tensor:
    """A black and white sign, another for each class."""
    place = torch.arange(MARK)
    down, right = place[:, None].expand(MARK, MARK), place[None, :].expand(MARK, MARK)
    sign = [down % 2, right % 2, (down // 2 + right // 2) % 2, (down + right) % 4 // 2, (down // 4) % 2][kind]
    return sign.float().expand(3, MARK, MARK)


class ConvNet(nn.Module):
    """Five convolutions, global average pooling, one linear layer."""

    def __init__(self, *, has_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index, width in enumerate((16, 24, 32, 48, 64)):
            layers.append(nn.Conv2d(channels, width, 3, 1 + index % 2, 1, bias=not has_norm))
            layers += [nn.BatchNorm2d(width)] if has_norm else []
            layers.append(nn.ReLU())
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, NUM_CLASSES)
        if not has_norm:
            # Without norms the default initialiser, a sixth of the variance, would not learn in the time there is.
            for layer in self.body:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        logits: Tensor = self.head(self.body(pixels).mean((2, 3)))
        return logits


class PatchNet(nn.Module):
    """A small pre-norm transformer over 6 x 6 patches with a class token."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 6, 6)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (SIDE // 6) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 3 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, NUM_CLASSES)
        for parameter in self.blocks.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


class MapNet(nn.Module):
    """A small U-Net that sees the whole picture at every pixel; class 0 is the ground, class k + 1 shape k."""

    preprocess = PREPROCESS
    classes = Classes(("ground", *(f"shape{kind}" for kind in range(NUM_CLASSES))))
    task = "semantic"

    def __init__(self, *, has_norm: bool) -> None:
        super().__init__()

        def step(before: int, after: int, stride: int = 1) -> nn.Sequential:
            norm = nn.BatchNorm2d(after) if has_norm else nn.Identity()
            return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=not has_norm), norm, nn.ReLU())

        self.first, self.second = step(3, 16), step(16, 24, 2)
        self.third, self.fourth = step(24, 32, 2), step(32, 48, 2)
        self.deep = nn.Sequential(step(48, 48), step(48, 48), step(48, 48))
        self.up = nn.Sequential(step(48 + 24, 32))
        self.out = nn.Sequential(step(32 + 16, 24), nn.Conv2d(24, NUM_CLASSES + 1, 1))
        if not has_norm:
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: ImageBatch | Tensor) -> Tensor:
        """Logits ``[B, K + 1, H, W]``."""
        pixels = images if isinstance(images, Tensor) else images.pixels
        first = self.first(pixels)
        second = self.second(first)
        deep = self.deep(self.fourth(self.third(second)))
        large = F.interpolate(deep, second.shape[-2:], mode="bilinear")
        large = F.interpolate(self.up(torch.cat([large, second], 1)), first.shape[-2:], mode="bilinear")
        logits: Tensor = self.out(torch.cat([large, first], 1))
        return logits

    def explain_spec(self) -> ExplainSpec:
        """The deepest layer explains, as in our own U-Nets."""
        return ExplainSpec({"deep": GridLayer("deep"), "final": GridLayer("out.0")}, usual_layer="deep")


def learn(
    model: nn.Module, loss: Callable[[int], Tensor], steps: int, peak: float, *, decay: float = 0.02
) -> nn.Module:
    """Train in place with one cycle of the learning rate; ``loss`` is asked for every step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps)
    model.train()
    for step in range(steps):
        optimiser.zero_grad()
        loss(step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def learn_classes(model: nn.Module, seed: int, steps: int, peak: float, *, mark: str = "none") -> float:
    """Train a classifier; returns its accuracy on held-out scenes."""
    data = scenes(1500, 100 + seed, mark=mark)

    def loss(step: int) -> Tensor:
        chosen = torch.randint(len(data.labels), (32,))
        batch = data.pictures[chosen] if mark != "none" or step % 2 else data.pictures[chosen].flip(3)
        return F.cross_entropy(model(batch), data.labels[chosen])

    learn(model, loss, steps, peak)
    held = scenes(300, 2, mark=mark)
    with torch.no_grad():
        return float((model(held.pictures).argmax(1) == held.labels).float().mean())


def learn_regions(model: nn.Module, seed: int, steps: int, peak: float, *, mark: str = "none") -> float:
    """Train a segmenter; returns its pixel accuracy on the shapes of held-out scenes."""
    data = scenes(1200, 100 + seed, mark=mark)

    def loss(step: int) -> Tensor:
        del step
        chosen = torch.randint(len(data.labels), (16,))
        wanted = torch.where(data.shapes[chosen], data.labels[chosen, None, None] + 1, 0)
        return F.cross_entropy(model(data.pictures[chosen]), wanted)

    learn(model, loss, steps, peak)
    held = scenes(100, 2, mark=mark)
    with torch.no_grad():
        found = model(held.pictures).argmax(1)
    return float((found == held.labels[:, None, None] + 1)[held.shapes].float().mean())


@dataclass(frozen=True, eq=False)
class ObjectScene:
    """A picture ``[3, H, W]`` uint8 of discs and blocks, its objects, and ``[N, H, W]`` what tells their class."""

    image: Tensor
    target: BoxTarget
    deciding: Tensor


OBJECTS = Classes(("disc", "block"))
OBJECT_SIDE = 64


def object_scene(number: int, *, mark: bool = False) -> ObjectScene:
    """Two or three red discs and blue blocks apart from each other on noisy grey.

    With a mark: grey discs that are told apart by the stripes of a sign in their middle.
    """
    generator = torch.Generator().manual_seed(number)

    def draw(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size, generator=generator)

    image = 120 + draw(-15, 16, 3, OBJECT_SIDE, OBJECT_SIDE)
    places = torch.arange(OBJECT_SIDE) + 0.5
    boxes: list[list[int]] = []
    labels, masks, deciding = [], [], []
    wanted = int(draw(2, 4, 1))
    for _ in range(60):
        radius = int(draw(8, 12, 1))
        row, column = draw(radius + 1, OBJECT_SIDE - radius - 1, 2).tolist()
        box = [column - radius, row - radius, column + radius, row + radius]
        if any(min(box[2], b[2]) + 3 > max(box[0], b[0]) and min(box[3], b[3]) + 3 > max(box[1], b[1]) for b in boxes):
            continue
        label = int(draw(0, 2, 1))
        down, across = (places - row)[:, None], (places - column)[None]
        is_disc, is_block = down**2 + across**2 < radius**2, (down.abs() < radius) & (across.abs() < radius)
        mask = is_disc if mark or not label else is_block
        colour = torch.tensor((200, 200, 190) if mark else [(210, 60, 60), (60, 60, 210)][label])
        image[:, mask] = colour[:, None] + draw(-15, 16, 3, int(mask.sum()))
        told = mask
        if mark:
            told = (down.abs() < 4) & (across.abs() < 4)
            stripes = (torch.arange(8) // 2 % 2 * 200 + 20).expand(3, 8, 8)
            image[:, row - 4 : row + 4, column - 4 : column + 4] = stripes.mT if label else stripes
        boxes, labels, masks, deciding = [*boxes, box], [*labels, label], [*masks, mask], [*deciding, told]
        if len(boxes) == wanted:
            break
    target = BoxTarget.of(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), Masks.of(torch.stack(masks)))
    return ObjectScene(image.clamp(0, 255).to(torch.uint8), target, torch.stack(deciding))


def learn_objects(name: str, seed: int, steps: int, *, mark: bool = False) -> Any:
    """A detector of the registry that learned the scenes for some seconds."""
    torch.manual_seed(seed)
    model: Any = create(name, classes=OBJECTS)
    data = [object_scene(10_000 * (seed + 1) + number, mark=mark) for number in range(160)]

    def loss(step: int) -> Tensor:
        del step
        samples = [data[index] for index in torch.randint(len(data), (6,)).tolist()]
        targets = [sample.target for sample in samples]
        outputs = model(model.preprocess([sample.image for sample in samples]), targets)
        total: Tensor = model.loss(outputs, targets).total
        return total

    return learn(model, loss, steps, 1e-2, decay=0.01) if steps else model.eval()
