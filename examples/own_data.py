"""Data that is already in memory: an object in the manner of torchvision, a mapping of splits, PIL pictures, arrays.

Run: python examples/own_data.py [FOLDER]
Writes: run/best.safetensors
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import saccade

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())


class Stripes:
    """A data set in the manner of torchvision: class names, a length, and (picture, label) pairs."""

    classes = ("across", "down", "slanted")

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        random = np.random.default_rng([self.seed, index])
        rows, columns = np.mgrid[:32, :32]
        place = (rows, columns, rows + columns)[index % 3]
        wave = np.sin(place * random.uniform(0.5, 1.2) + random.uniform(0, 6))[..., None]
        pixels = 128 + wave * random.uniform(-60, 60, 3) + random.normal(0, 20, (32, 32, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), index % 3


# Splits are joined by the names of their classes. One object alone would be the training split.
data = {"train": Stripes(450, seed=0), "val": Stripes(90, seed=1)}
run = saccade.train("vit_average_test", data, out=out / "run", epochs=5, learning_rate=3e-3, workers=0, quiet=True)
evaluation = saccade.evaluate(run.model, Stripes(300, seed=2))
print(f"{evaluation.metrics['top1']:.1%} of {evaluation.num_images} new pictures right")

# One picture in four forms: PIL, array [h, w, 3], array [3, h, w], tensor. Bytes and paths would do as well.
array = np.array(picture := Stripes(2, seed=3)[1][0])
forms = [picture, array, array.transpose(2, 0, 1), torch.tensor(array)]
for form, prediction in zip(forms, saccade.predict(run.model, forms), strict=True):
    print(f"{type(form).__name__}: {prediction.name} {prediction.score:.1%}")
