"""Mixture of experts: each patch of a picture visits one of four feed-forward layers. Which one, and how evenly?

Run: python examples/experts.py [FOLDER]
Writes: run/best.safetensors, routing.png
"""

import sys
import tempfile
from pathlib import Path

import torch

import saccade
from saccade.data.source import open_data
from saccade.explanation.routing import routing_maps

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
data = open_data("fashion_mnist")

# Two blocks, both with experts. A loss term keeps the experts about equally busy.
torch.manual_seed(0)
shape = {"backbone.depth": 2, "backbone.moe.every": 1}
model = saccade.create("vit_nano_p4_28_moe4", classes=data.classes.names, overrides=shape)
settings = {"epochs": 1, "limit_steps": 100, "batch_size": 16, "learning_rate": 2e-3, "ema_decay": 0.0}
run = saccade.train(model, data, out=out / "run", quiet=True, **settings)

# The routing travels in the outputs of the model, beside the logits.
pictures = [data.split("test")[index].image for index in range(100)]
with torch.no_grad():
    routing = run.model.eval()(run.model.preprocess(pictures)).routing

print("share of the patches that each expert took (25 % each would be even):")
for layer, load in enumerate(routing.load.tolist()):
    print(f"  routed layer {layer}: {'  '.join(f'{share:.0%}' for share in load)}")

# One picture, an ankle boot of 7 x 7 patches: the first layer with experts tells its parts apart.
found = routing_maps(run.model, [pictures[4]])[0]
print(f"written: {found.save(out / 'routing.png', layer=0)}")
