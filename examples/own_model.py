"""Explain a classifier that is not ours: any torch.nn.Module that takes pixels and gives logits.

The network here has random weights, so there is nothing to explain, and every verdict must be "failed". The maps alone
would not have told you. Load trained weights into your model before you believe anything.

Run: python examples/own_model.py [FOLDER]
Writes: methods.png
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import saccade
from saccade import render
from saccade.data.embedded import photos
from saccade.explanation.adapt import adapt
from saccade.ops.image import Preprocess

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

torch.manual_seed(0)
network = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.ReLU()),
    nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
    nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 4),
)

# What a plain module cannot tell is how its pictures are prepared. Layers, grids and linear head are found.
model = adapt(network, Preprocess(size=(96, 96)), classes=("bird", "cat", "owl", "parrot"))

panels = []
with photos() as files:
    photo = next(file for file in files if file.name == "owl.jpg")
    for method in ("gradcam", "integrated_gradients", "occlusion"):
        heat = saccade.explain(model, photo, of="owl", method=method)
        status = heat.verdict.status
        print(f"{method}: {status}, because {heat.verdict.reasons[0]}")
        panel = render.Panel(image=heat.image, heat=heat.map, is_signed=heat.is_signed, title=method, status=status)
        panels.append(panel)

print(f"written: {render.save(render.side_by_side([panels]), out / 'methods.png')}")
