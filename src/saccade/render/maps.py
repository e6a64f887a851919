"""Label maps laid over pictures, as arrays, and the colours of their classes.

h, w picture · K classes
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError
from saccade.ops.palette import class_colours
from saccade.render.heat import check_image, enlarged

WRONG = (213, 94, 0)
"""Vermilion of the colour-blind safe palette."""


def label_overlay(
    image: Tensor, labels: Tensor, num_classes: int, hidden: Collection[int] = (), *, alpha: float = 0.45
) -> Tensor:
    """A label map laid over its picture, uint8: classes tinted, with a line along their borders.

    Small pictures are enlarged (``enlarged``), or the lines would cover them.

    Args:
        image: ``[3, h, w]`` uint8.
        labels: ``[h, w]`` uint8; values that are no class are left as they are.
        num_classes: K.
        hidden: classes that are not tinted, such as a background.
        alpha: opacity of the tint.

    Raises:
        InputError: where the sizes differ.
    """
    check_image(image)
    _check_size(labels, image)
    image, labels = enlarged(image.cpu()).float(), enlarged(labels.cpu())
    table = torch.zeros(256, 4)
    table[:num_classes, :3] = class_colours(num_classes).float()
    table[:num_classes, 3] = alpha
    for label in hidden:
        table[label, 3] = 0.0
    drawn = table[labels.int()].permute(2, 0, 1)  # [4, h, w]
    border = _borders(labels) & (drawn[3] > 0)
    opacity = drawn[3].where(~border, torch.ones(()))
    return (image + opacity * (drawn[:3] - image)).round().clamp(0, 255).to(torch.uint8)


def error_map(image: Tensor, predicted: Tensor, truth: Tensor, ignore: int = 255) -> Tensor:
    """Where a label map is wrong, ``[3, h, w]`` uint8: the picture in grey, wrong pixels red, ignored ones white.

    Args:
        image: ``[3, h, w]`` uint8.
        predicted: ``[h, w]`` uint8.
        truth: ``[h, w]`` uint8.
        ignore: label that nobody gave.

    Raises:
        InputError: where the sizes differ.
    """
    check_image(image)
    for labels in (predicted, truth):
        _check_size(labels, image)
    grey = image.float().mean(0, keepdim=True).expand(3, -1, -1) * 0.7 + 40
    is_wrong, is_unknown = (predicted != truth) & (truth != ignore), truth == ignore
    drawn = torch.where(is_wrong, torch.tensor(WRONG).float()[:, None, None], grey)
    drawn = torch.where(is_unknown, torch.tensor(235.0), drawn)
    return enlarged(drawn.round().clamp(0, 255).to(torch.uint8))


def outlined(image: Tensor, region: Tensor) -> Tensor:
    """The picture ``[3, h, w]`` uint8 with a white line, black beside it, around a region ``[h, w]`` bool.

    A region of a few pixels could not be seen from its line: it gets a ring some pixels away.
    """
    check_image(image)
    width = max(round(min(image.shape[1:]) / 160), 1)
    region = region.cpu()
    if int(region.sum()) <= 16:
        region = _grown(region, 3 * width + 1)
    white = _grown(region, width) & ~region
    black = _grown(region, 2 * width) & ~region & ~white
    drawn = image.clone()
    drawn[:, black.to(image.device)] = 0
    drawn[:, white.to(image.device)] = 255
    return drawn


def _check_size(labels: Tensor, image: Tensor) -> None:
    if labels.shape != image.shape[1:]:
        raise InputError(f"the label map is {tuple(labels.shape)}", expected=str(tuple(image.shape[1:])))


def _grown(mask: Tensor, by: int) -> Tensor:
    return F.max_pool2d(mask[None, None].float(), 2 * by + 1, 1, by)[0, 0] > 0


def _borders(labels: Tensor) -> Tensor:
    """Pixels ``[h, w]`` with a neighbour above, below or beside of another label."""
    is_border = torch.zeros(labels.shape, dtype=torch.bool)
    below, beside = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    is_border[1:] |= below
    is_border[:-1] |= below
    is_border[:, 1:] |= beside
    is_border[:, :-1] |= beside
    return is_border
