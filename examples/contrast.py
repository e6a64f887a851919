"""Why this class and not that one? Several methods answer side by side on one page, each with its verdict.

Run: python examples/contrast.py [FOLDER]
Writes: run/best.safetensors, contrast.png
"""

import sys
import tempfile
from pathlib import Path

import torch

import saccade
from saccade import render
from saccade.data.source import open_data

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
data = open_data("fashion_mnist")

torch.manual_seed(0)
model = saccade.create("vit_pico_p4_28", classes=data.classes.names, overrides={"backbone.depth": 2})
settings = {"epochs": 1, "limit_steps": 200, "batch_size": 16, "learning_rate": 2e-3, "ema_decay": 0.0}
run = saccade.train(model, data, out=out / "run", quiet=True, **settings)

# Without `against` the logit of one class is explained. With it, the difference of two logits: what speaks for both
# classes cancels, and what tells them apart is left.
picture = data.split("test")[4].image
rows = []
for against in (None, "Sneaker"):
    row = [render.Panel(image=picture, title=f"rather than {against}" if against else "Ankle boot")]
    for method in ("relevance", "hirescam", "integrated_gradients", "occlusion"):
        heat = saccade.explain(run.model, picture, of="Ankle boot", against=against, method=method)
        status = heat.verdict.status
        print(f"{heat.of} by {method} (score {heat.score:.1f}): {status}, because {heat.verdict.reasons[0]}")
        row.append(render.Panel(image=heat.image, heat=heat.map, is_signed=heat.is_signed, title=method, status=status))
    rows.append(row)

# Maps that failed are crossed out: with so short a training some will.
page = render.side_by_side(rows, title="Orange speaks for the boot, blue against it; viridis knows no sign")
print(f"written: {render.save(page, out / 'contrast.png')}")
