"""Classes in words: train on captions, then name classes that no label ever had, map them, and ask why.

Run: python examples/zero_shot.py [FOLDER]
Writes: run/best.safetensors, why.png, map.png
"""

import sys
import tempfile
from pathlib import Path

import saccade
from saccade import render
from saccade.data.source import open_data

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
data = open_data("scene_captions")

# So small and so shortly trained a model knows some colours and hardly a shape: this is about how, not how well.
settings = {"epochs": 1, "limit_steps": 120, "batch_size": 32, "learning_rate": 3e-3, "ema_decay": 0.0}
run = saccade.train("clip_cnn_test", data, out=out / "run", quiet=True, **settings)
for name in ("text_to_image_10", "category"):
    print(f"{name}: {run.metrics[name]:.3f}")

sample = data.split(data.held_out)[0]
colours = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
classes = [f"a {colour} circle" for colour in colours]
prediction = saccade.predict(run.model, sample.image, classes=classes, templates=("{}",))[0]
print(f"the caption says: {sample.target.texts[0]}")
print("the model says: " + ", ".join(f"{name} {score:.0%}" for name, score in prediction.top(3)))

# The same words for every pixel, and for the question why; a map that is the same whatever is asked says so.
found = saccade.predict(run.model, sample.image, classes=classes, maps=True)[0]
drawn = render.label_overlay(sample.image, found.labels, len(classes), frozenset())
page = render.side_by_side([[render.Panel(image=sample.image), render.Panel(image=drawn, title="prompts per pixel")]])
print(f"written: {render.save(page, out / 'map.png')}")
heat = saccade.explain(run.model, sample.image, of=prediction.name, against=prediction.top(2)[1][0], method="hirescam")
print(f"{heat.of}: {heat.verdict.status}. {' '.join(heat.notes)}")
print(f"written: {heat.save(out / 'why.png')}")
