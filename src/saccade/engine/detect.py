"""Many pictures through a detector: those that fill the same canvas together.

Pictures that fill different canvases never share one: convolutions would see the padding of the smaller one, and a box
would depend on which pictures happened to be beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from saccade.engine.groups import neighbours
from saccade.models.detector import Detector
from saccade.types import Detections, ImageBatch

AT_ONCE = 8
"""Most pictures per forward pass; of larger batches the maps of all pyramid levels outgrow the caches."""

Run = Callable[[ImageBatch], Any]
"""A forward pass."""


def detect_pictures(
    model: Detector[Any], pictures: Sequence[Tensor], run: Run | None = None, *, at_once: int = AT_ONCE
) -> list[Detections]:
    """The objects of every picture, on the CPU.

    Modes and gradients are the caller's: evaluation mode and no gradient are meant.

    Args:
        model: whose preprocessing, post-processing and classes hold.
        pictures: each ``[3, h, w]`` uint8 RGB.
        run: the forward pass; ``model`` itself where it is None.
        at_once: most pictures per forward pass.
    """
    run = run or model
    device = next(model.parameters()).device
    found: list[Detections] = []

    def canvas(picture: Tensor) -> tuple[int, int]:
        content = model.preprocess.content_size(int(picture.shape[-2]), int(picture.shape[-1]))
        return model.preprocess.canvas([content])

    for group in neighbours(pictures, canvas, lambda _: at_once):
        images = model.preprocess(group).to(device).channels_last()
        found += [detections.to("cpu") for detections in model.postprocess(run(images), images)]
    return found
