"""`saccade.evaluate` on 10,000 small images against the loop of a plain torch script: same model, same batch size.

The plain loop counts right answers and nothing else. It is given two ways of reading: tensors in memory already (the
fastest there is), and one picture at a time through a torchvision transform, as most scripts do.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from measure import Row, compare, parser, report
from saccade.data.dataset import ArrayDataset
from saccade.engine.evaluate import EvaluateConfig, evaluate
from saccade.models.build import create
from saccade.types import Classes, ImageBatch

COUNT = 10_000
BATCH = 256


class Pictures(Dataset):
    """One picture at a time, as a script has them."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


def plain_loop(model: nn.Module, loader: DataLoader, mean: torch.Tensor, std: torch.Tensor) -> float:
    """Top-1 accuracy, as a plain script computes it."""
    right = 0
    with torch.inference_mode():
        for images, labels in loader:
            pixels = images if images.is_floating_point() else (images.float() / 255 - mean) / std
            right += int((model(ImageBatch.of(pixels)).logits.argmax(1) == labels).sum())
    return right / len(loader.dataset)


def measure(name: str, repeats: int, count: int) -> list[Row]:
    """Both ways of reading against ours, for one model."""
    model = create(name).eval()
    side = model.preprocess.size[0]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    classes = Classes.numbered(len(model.classes))
    labels = torch.randint(0, len(classes), (count,), generator=generator)
    data = ArrayDataset(images, labels, classes, "noise")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.preprocess.mean, model.preprocess.std))
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean.flatten(), std.flatten())])
    loaders = {
        "tensors in memory": DataLoader(TensorDataset(images, labels), BATCH),
        "torchvision transform": DataLoader(Pictures(images, labels, normalise), BATCH),
    }
    rows = []
    for reading, loader in loaders.items():
        ours = evaluate(model, data, EvaluateConfig(batch_size=BATCH)).metrics["top1"]
        theirs = plain_loop(model, loader, mean, std)
        if abs(ours - theirs) > 2e-3:
            raise SystemExit(f"the two disagree: {ours} and {theirs}")
        ways = {
            "saccade": lambda: evaluate(model, data, EvaluateConfig(batch_size=BATCH)),
            "plain": lambda loader=loader: plain_loop(model, loader, mean, std),
        }
        times = compare(ways, repeats)
        rows.append(
            {
                "model": name,
                "plain loop reads": reading,
                "saccade s": times["saccade"],
                "plain s": times["plain"],
                "ratio": times["ratio"],
                "reach": "no slower",
            }
        )
    return rows


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=COUNT, help="pictures")
    arguments = options.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = ("vit_pico_p4_28", "resnet_test")
    rows = [row for name in names for row in measure(name, arguments.repeats, arguments.count)]
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
