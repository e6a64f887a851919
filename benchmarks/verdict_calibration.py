"""Where the lines of the verdict are drawn, and how well they separate.

Run ``python benchmarks/verdict_calibration.py``. Small networks are trained for a minute or so on drawn scenes (a shape
on a textured ground, its mask known) and explained on held-out pictures that they get right; the same networks, never
trained, are explained too. A further network is trained on scenes in which a mark in the corner gives the class away.
What is counted is how many maps come out as supported, weak or failed. ``docs/verdict.md`` holds the table of the last
run and what follows from it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.explanation.adapt import adapt
from saccade.explanation.attention import AttentionRelevance
from saccade.explanation.attribution import Attribution, Explainer
from saccade.explanation.cam import EigenCAM, GradCAM, HiResCAM
from saccade.explanation.faithfulness import energy_inside
from saccade.explanation.gradients import GuidedBackprop
from saccade.explanation.perturbation import Occlusion
from saccade.explanation.scores import class_score
from saccade.explanation.verdict import Judge, VerdictConfig
from saccade.ops.image import Preprocess
from saccade.types import ImageBatch

SIDE = 48
NUM_CLASSES = 5
COLOURS = ((0.9, 0.2, 0.2), (0.2, 0.8, 0.3), (0.2, 0.3, 0.9), (0.9, 0.85, 0.2), (0.85, 0.3, 0.85))
PREPROCESS = Preprocess(size=(SIDE, SIDE), policy="stretch", mean=(0.5,) * 3, std=(0.25,) * 3)


def scenes(count: int, seed: int, *, mark: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised pictures, labels, and masks of what gives the class away (the shape, or the mark in the corner)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    pictures, masks = torch.empty(count, 3, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for index in range(count):
        ground = draw(3, 1, 1) * 0.6 + 0.2
        texture = F.interpolate(draw(1, 1, 6, 6), (SIDE, SIDE), mode="bilinear")[0] * 0.5 - 0.25
        noise = torch.randn(3, SIDE, SIDE, generator=generator) * 0.04
        radius = draw(1) * 4 + 8
        centre = draw(2) * (SIDE - 26) + 13
        down, right = (rows - centre[0]) / radius, (columns - centre[1]) / radius
        # With a mark the shape says nothing: it is drawn at random, and the mark carries the class.
        kind = int(torch.randint(NUM_CLASSES, (1,), generator=generator)) if mark else int(labels[index])
        shape = _shape(kind, down, right)
        # Shape and colour go together, so that every network learns within a minute; grounds have any colour.
        colour = torch.tensor(COLOURS[kind]).view(3, 1, 1) + draw(3, 1, 1) * 0.2 - 0.1
        picture = torch.where(shape, colour + (draw(1, SIDE, SIDE) - 0.5) * 0.15, ground + texture + noise)
        masks[index] = shape
        if mark:
            masks[index] = False
            masks[index, 2:10, 2:10] = True
            picture[:, 2:10, 2:10] = _mark(int(labels[index]))
        pictures[index] = picture.clamp(0, 1)
    return (pictures - 0.5) / 0.25, labels, masks


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
    """An 8 x 8 black and white sign, another for each class."""
    place = torch.arange(8)
    down, right = place[:, None].expand(8, 8), place[None, :].expand(8, 8)
    sign = [down % 2, right % 2, (down // 2 + right // 2) % 2, (down + right) % 4 // 2, (down // 4) % 2][kind]
    return sign.float().expand(3, 8, 8)


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


def train(model: nn.Module, steps: int, peak: float, *, mark: bool = False) -> float:
    """Train in place; returns the accuracy on held-out scenes."""
    pictures, labels, _ = scenes(1500, 1, mark=mark)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps)
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(labels), (32,))
        batch = pictures[chosen] if mark or step % 2 else pictures[chosen].flip(3)
        loss = F.cross_entropy(model(batch), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    held, truth, _ = scenes(300, 2, mark=mark)
    with torch.no_grad():
        return float((model(held).argmax(1) == truth).float().mean())


@dataclass(frozen=True)
class Noise:
    """A control: a map drawn at random, another for every model, so that only the hiding games can find it out."""

    name = "noise (control)"
    is_signed = False
    is_class_agnostic = False
    is_costly = True

    def __call__(self, model: nn.Module, images: ImageBatch, scores: Sequence[Any], spec: Any) -> Attribution:
        """Uniform noise on 7 x 7 cells."""
        del model, spec
        seed = int(images.pixels.double().abs().sum() * 1000) % 2**31
        shape = (len(scores), len(images), 7, 7)
        return Attribution(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))


@dataclass(frozen=True)
class Inverse:
    """A control: HiResCAM upside down."""

    name = "inverse (control)"
    is_signed = True
    is_class_agnostic = False

    def __call__(self, model: nn.Module, images: ImageBatch, scores: Sequence[Any], spec: Any) -> Attribution:
        """The evidence with the sign changed."""
        return Attribution(-HiResCAM()(model, images, scores, spec).values)


CONV_METHODS: tuple[Explainer, ...] = (
    GradCAM(),
    HiResCAM(),
    Occlusion(),
    EigenCAM(),
    GuidedBackprop(),
    Noise(),
    Inverse(),
)
PATCH_METHODS: tuple[Explainer, ...] = (AttentionRelevance(), Occlusion(), Noise())
GOOD = ("gradcam", "hirescam", "occlusion", "relevance")
"""Methods that are known to work on the networks they are used on here; the rest are controls."""


def examine(
    name: str, model: nn.Module, data: tuple[Tensor, Tensor, Tensor], methods: Sequence[Explainer], *, only_right: bool
) -> list[dict[str, Any]]:
    """Explain and judge the predicted class of every picture: one row of figures each."""
    pictures, labels, masks = data
    adapted = adapt(model.eval(), PREPROCESS)
    spec = adapted.explain_spec()
    judge = Judge(adapted, spec)
    with torch.no_grad():
        predicted = model(pictures).argmax(1)
    rows = []
    for index in range(len(labels)):
        if only_right and predicted[index] != labels[index]:
            continue
        images, scores = ImageBatch.of(pictures[index : index + 1]), [class_score(int(predicted[index]))]
        for explainer in methods:
            found = explainer(adapted, images, scores, spec)
            verdict = judge(images, scores, explainer, found)[0][0]
            large = F.interpolate(found.values, (SIDE, SIDE), mode="bilinear")[0, 0]
            inside, area = energy_inside(large, masks[index])
            figures = {"inside": inside, "area": area, "cost": verdict.cost_forwards, **verdict.figures}
            rows.append({"model": name, "method": explainer.name, "status": verdict.status, **figures})
    return rows


def run(num_pictures: int, num_random: int) -> list[dict[str, Any]]:
    """All rows of the study."""
    kinds = {
        "conv+norm": (lambda: ConvNet(has_norm=True), CONV_METHODS, 150, 4e-3),
        "conv": (lambda: ConvNet(has_norm=False), CONV_METHODS, 200, 2e-3),
        "transformer": (PatchNet, PATCH_METHODS, 350, 1.5e-3),
    }
    held = scenes(num_pictures, 7)
    rows: list[dict[str, Any]] = []
    for name, (build, methods, steps, peak) in kinds.items():
        torch.manual_seed(0)
        model, began = build(), time.perf_counter()
        accuracy = train(model, steps, peak)
        print(f"{name}: accuracy {accuracy:.1%} after {time.perf_counter() - began:.0f} s", flush=True)
        rows += examine(f"{name} trained", model, held, methods, only_right=True)
        for seed in range(num_random):
            torch.manual_seed(1000 + seed)
            one = tuple(part[seed % num_pictures : seed % num_pictures + 1] for part in held)
            rows += examine(f"{name} random", build(), one, methods, only_right=False)  # type: ignore[arg-type]
    torch.manual_seed(0)
    marked = ConvNet(has_norm=True)
    print(f"marked: accuracy {train(marked, 100, 4e-3, mark=True):.1%}", flush=True)
    rows += examine("marked trained", marked, scenes(num_pictures, 8, mark=True), CONV_METHODS[:3], only_right=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Counts and medians per model and method, as Markdown."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["model"], row["method"]].append(row)
    lines = [
        "| model | method | maps | supported | weak | failed | energy inside (area) | response ratio | advantage |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for (model, method), members in groups.items():
        counts = Counter(row["status"] for row in members)
        shares = [f"{counts[status] / len(members):.0%}" for status in ("supported", "weak", "failed")]
        middle = {
            key: float(torch.tensor([row[key] for row in members]).median()) for key in ("response_ratio", "advantage")
        }
        inside, area = (sum(row[key] for row in members) / len(members) for key in ("inside", "area"))
        figures = [f"{inside:.2f} ({area:.2f})", f"{middle['response_ratio']:.1f}", f"{middle['advantage']:.2f}"]
        lines.append("| " + " | ".join([model, method, str(len(members)), *shares, *figures]) + " |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The three figures that the verdict has to reach."""

    def failed(chosen: list[dict[str, Any]]) -> float:
        return sum(row["status"] == "failed" for row in chosen) / max(len(chosen), 1)

    random = [row for row in rows if row["model"].endswith("random")]
    good = [row for row in rows if row["model"].endswith("trained") and row["method"] in GOOD]
    good = [row for row in good if not row["model"].startswith("marked")]
    on_mark = [row for row in rows if row["model"].startswith("marked") and row["inside"] > 5 * row["area"]]
    return {
        "random models called failed": failed(random),
        "maps of trained models called failed": failed(good),
        "maps on the planted mark called failed": failed(on_mark),
        "maps on the planted mark": len(on_mark),
        "counts": {"random": len(random), "trained": len(good)},
        "largest cost in forward images": max(row["cost"] for row in rows),
        "config": asdict(VerdictConfig()),
    }


def main() -> None:
    """Run the study, print the table, save the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=40, help="held-out pictures per trained network")
    parser.add_argument("--random", type=int, default=40, help="random networks of each kind")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "verdict_calibration.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = run(arguments.pictures, arguments.random)
    found = summary(rows)
    print(table(rows))
    for name, value in found.items():
        print(f"{name}: {value:.1%}" if isinstance(value, float) else f"{name}: {value}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"summary": found, "table": table(rows), "rows": rows}, indent=1))
    print(f"{time.perf_counter() - began:.0f} s; rows in {arguments.out}")


if __name__ == "__main__":
    main()
