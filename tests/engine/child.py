"""A training in a process of its own: ``python child.py RUN '{"epochs": 2, ...}'`` prints a line per record."""

import json
import os
import sys

import torch

from conftest import make_captions, make_clip, make_model, make_source
from saccade.config import from_dict
from saccade.engine.train import TrainConfig, train

if __name__ == "__main__":
    torch.set_num_threads(1)
    out, settings, name = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    model, source = (make_clip(), make_captions()) if name == "clip_test" else (make_model(name), make_source())
    for record in train(model, source, from_dict(TrainConfig, settings), out=out, name=name):
        print(record.kind, record.step, flush=True)
    rank = os.environ.get("RANK", "0")
    torch.save(model.state_dict(), f"{out}.rank{rank}.pt")
