"""A tiny Vision Transformer learns ten kinds of clothes; then it is scored, asked, and made to explain itself.

Run: python examples/classify.py [FOLDER]
Writes: run/best.safetensors, why.png
"""

import sys
import tempfile
from pathlib import Path

import torch

import saccade
from saccade.data.source import open_data

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

# Real pictures that ship with the package; a folder of class folders or a CSV would do as well.
data = open_data("fashion_mnist")

# Any field of the config can be overridden. 200 steps are a third of a pass; `make demo` trains for ten passes.
torch.manual_seed(0)
model = saccade.create("vit_pico_p4_28", classes=data.classes.names, overrides={"backbone.depth": 2})
settings = {"epochs": 1, "limit_steps": 200, "batch_size": 16, "learning_rate": 2e-3, "ema_decay": 0.0}
run = saccade.train(model, data, out=out / "run", quiet=True, **settings)

evaluation = saccade.evaluate(run.model, data, split="test")
low, high = evaluation.interval
print(f"{evaluation.metrics['top1']:.1%} of {evaluation.num_images} unseen pictures right ({low:.1%} to {high:.1%})")

sample = data.split("test")[4]
prediction = saccade.predict(run.model, sample.image)[0]
answer = ", ".join(f"{name} {score:.0%}" for name, score in prediction.top(3))
print(f"{sample.source} is {data.classes[int(sample.target.label)]}; the model says {answer}")

heat = saccade.explain(run.model, sample.image, of=prediction)
print(f"{heat.of} by {heat.method}: {heat.verdict.status}, because {heat.verdict.reasons[0]}")
print(f"written: {heat.save(out / 'why.png')}")
