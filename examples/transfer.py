"""What one run learned serves another: a backbone trained on six classes learns four others from five pictures each.

Run: python examples/transfer.py [FOLDER]
Writes: first/best.safetensors, moved/best.safetensors, scratch/best.safetensors
"""

import sys
import tempfile
from pathlib import Path

import torch

import saccade
from saccade.api import Run
from saccade.data.dataset import ArrayDataset
from saccade.data.source import open_data
from saccade.types import Classes

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
clothes = open_data("fashion_mnist")


def part(split: str, names: tuple[str, ...], count: int, skip: int = 0) -> ArrayDataset:
    """Some pictures of some classes, with labels that count from zero."""
    whole = clothes.split(split)
    places = [torch.nonzero(whole.labels() == clothes.classes.id(name))[skip : skip + count, 0] for name in names]
    labels = torch.arange(len(names)).repeat_interleave(count)
    return ArrayDataset(whole.images[torch.cat(places)], labels, Classes(names), name=split)


def train(folder: str, data: object, names: tuple[str, ...], **settings: object) -> Run:
    """The same small network, from the same random numbers."""
    torch.manual_seed(0)
    model = saccade.create("vit_pico_p4_28", classes=names, overrides={"backbone.depth": 2})
    return saccade.train(model, data, out=out / folder, ema_decay=0.0, quiet=True, **settings)


first = ("T-shirt/top", "Trouser", "Pullover", "Sneaker", "Bag", "Ankle boot")
plenty = {"train": part("train", first, 300), "val": part("train", first, 50, skip=300)}
run = train("first", plenty, first, epochs=1, batch_size=16, learning_rate=2e-3)

# The backbone is taken, the head is made anew. A frozen backbone computes its features once: thirty passes are quick.
second = ("Dress", "Coat", "Sandal", "Shirt")
few = {"train": part("train", second, 5), "val": part("train", second, 50, skip=5)}
known = {"weights": run.folder, "freeze": ("backbone",)}
moved = train("moved", few, second, epochs=30, batch_size=8, learning_rate=1e-2, **known)
scratch = train("scratch", few, second, epochs=10, batch_size=8, learning_rate=2e-3)
for name, found in (("frozen backbone, new head", moved), ("all from scratch", scratch)):
    evaluation = saccade.evaluate(found.model, part("test", second, 250))
    print(f"{name}: {evaluation.metrics['top1']:.1%} of {evaluation.num_images} unseen pictures right")
