"""Find pictures by another picture, with any classifier: an index beside the pictures, searched exactly.

Run: python examples/search.py [FOLDER]
Writes: pictures/0000.png, found.png, run/best.safetensors
"""

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

import saccade
from saccade import render
from saccade.data.decode import read_image
from saccade.data.source import open_data

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
data = open_data("fashion_mnist")

torch.manual_seed(0)
model = saccade.create("vit_pico_p4_28", classes=data.classes.names, overrides={"backbone.depth": 2})
settings = {"epochs": 1, "limit_steps": 150, "batch_size": 16, "learning_rate": 2e-3, "ema_decay": 0.0}
run = saccade.train(model, data, out=out / "run", quiet=True, **settings)

# A folder of pictures, as anyone has one; the first stays out of it and is looked for.
held_out = data.split("test")
(out / "pictures").mkdir(parents=True)
for number in range(200):
    pixels = held_out[number + 1].image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(out / "pictures" / f"{number:04}.png")
wanted = Image.fromarray(held_out[0].image.permute(1, 2, 0).numpy())

# The first search embeds the pictures and leaves an index in the folder; later ones embed what has changed since.
found = saccade.search(run.model, out / "pictures", wanted, top=9)
print(f"looked for: {data.classes[int(held_out[0].target.label)]}")
for one in found:
    print(f"{one.score:.3f}  {data.classes[int(held_out[int(one.path.stem) + 1].target.label)]}  {one.path.name}")

pictures, names = [read_image(one.path) for one in found], [one.path.name for one in found]
scores = [one.score for one in found]
sheet = render.found_sheet(pictures, scores, names, title="The most similar of 200", query=held_out[0].image)
print(f"written: {render.save(sheet, out / 'found.png')}")
