"""Many pictures through a segmenter: those of one size together, large ones in tiles.

Pictures of different sizes never share a canvas: convolutions would see the padding of the smaller one, and a label
would depend on which pictures happened to be beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.engine.groups import neighbours
from saccade.engine.tiles import CPU_PIXELS, Run, TileConfig, needs_tiles, segment_picture
from saccade.models.segmenter import Segmenter
from saccade.types import Segmentation

AT_ONCE = 16
"""Most pictures per forward pass on an accelerator."""


def segment_pictures(
    model: Segmenter, pictures: Sequence[Tensor], run: Run | None = None, plan: TileConfig | None = None
) -> list[Segmentation]:
    """The class of every pixel of every picture, on the CPU.

    Modes and gradients are the caller's: evaluation mode and no gradient are meant.

    Args:
        model: whose preprocessing, post-processing and classes hold.
        pictures: each ``[3, h, w]`` uint8 RGB.
        run: the forward pass; ``model`` itself where it is None.
        plan: how large pictures are cut.
    """
    run, plan = run or model, plan or TileConfig()
    device = next(model.parameters()).device
    found: list[Segmentation] = []

    def size_of(picture: Tensor) -> tuple[int, int]:
        return int(picture.shape[1]), int(picture.shape[2])

    def most(size: tuple[int, int]) -> int:
        # On a processor, as many pixels as its caches hold.
        return AT_ONCE if device.type != "cpu" else max(CPU_PIXELS // max(size[0] * size[1], 1), 1)

    for group in neighbours(pictures, size_of, most):
        size = size_of(group[0])
        if len(group) == 1 or needs_tiles(model, size, plan):
            found += [segment_picture(run, picture, model, plan) for picture in group]
            continue
        images = model.preprocess(torch.stack(group)).to(device).channels_last()
        for one in model.postprocess(run(images), images):
            found.append(Segmentation(one.labels.cpu(), one.confidence.cpu(), one.classes))
    return found
