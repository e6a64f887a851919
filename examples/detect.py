"""Boxes: train a small Faster R-CNN on blood cells, list and draw what it finds, and ask why one box is there.

Run: python examples/detect.py [FOLDER]
Writes: run/best.safetensors, found.png, why.png
"""

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

import saccade
from saccade import render
from saccade.data.source import open_data

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
data = open_data("blood_cells")  # or your COCO JSON, VOC XML, YOLO text, LabelMe, table of boxes
print(f"{data.format}: {', '.join(data.classes)}")

# 30 steps learn where cells may be, and little more; a useful detector takes thirty epochs and more.
torch.manual_seed(0)
model = saccade.create("faster_rcnn_small", classes=data.classes.names)
settings = {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "ema_decay": 0.0}
run = saccade.train(model, data, out=out / "run", quiet=True, **settings)

sample = data.split(data.scored)[0]
prediction = saccade.predict(run.model, sample.image)[0]
found = prediction.above(0.3)  # a prediction lists everything; likeliest first, boxes as left, top, right, bottom
print(f"{len(found)} objects, the likeliest:")
for index, box in enumerate(found.boxes[:5].tolist()):
    print(f"box:{index}  {found.name(index)} {found.scores[index]:.0%}  at {', '.join(f'{side:.0f}' for side in box)}")
drawn = render.box_overlay(sample.image, found, data.classes)
Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(out / "found.png")

# `of="box:0"` finds the likeliest box by itself, `of="box:0/left"` asks why it ends there.
heat = saccade.explain(run.model, sample.image, of=(prediction, 0))
print(f"{heat.of} by {heat.name}: {heat.verdict.status}, because {heat.verdict.reasons[0]}")
print(f"written: {heat.save(out / 'why.png')}")
