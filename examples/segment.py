"""One class per pixel: train a small U-Net on nuclei, score it, predict, and ask why one part got its class.

Run: python examples/segment.py [FOLDER]
Writes: run/best.safetensors, overlay.png, why.png
"""

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

import saccade
from saccade import render
from saccade.data.source import open_data
from saccade.data.transforms import Augment

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
data = open_data("nuclei")  # or your folder with images/ and masks/
print(f"{data.format}: {', '.join(data.classes)}")

torch.manual_seed(0)
model = saccade.create("unet_nano", classes=data.classes.names, overrides={"loss.dice": 1.0})
settings = {"epochs": 5, "batch_size": 8, "learning_rate": 3e-3, "ema_decay": 0.0, "validate_every": 5}
run = saccade.train(model, data, out=out / "run", augment=Augment.preset("microscope"), quiet=True, **settings)
for row in saccade.evaluate(run.model, data).per_class:
    print(f"{row.name}: IoU {row.iou:.1%}, boundary F {row.boundary_f:.1%}")

picture = data.split("val")[0].image
prediction = saccade.predict(run.model, picture)[0]
print({name: f"{share:.1%} of the pixels" for name, share in prediction.areas().items()})
overlay = render.label_overlay(picture, prediction.labels, len(prediction.classes), {0})
Image.fromarray(overlay.permute(1, 2, 0).numpy()).save(out / "overlay.png")

# Of a class, `of="nucleus"`; of the pixel 40 from the left and 60 from the top, `of=(40, 60)`.
heat = saccade.explain(run.model, picture, of="component:1")
print(f"{heat.of} by {heat.name}: {heat.verdict.status}, because {heat.verdict.reasons[0]}")
heat.save(out / "why.png")
