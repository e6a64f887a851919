"""The objects of a batch as rectangular tensors: every picture filled up to as many as the one with most.

B batch · M objects of the picture that has most
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.types import BoxTarget


class Padded(NamedTuple):
    """The objects of B pictures.

    Attributes:
        boxes: ``[B, M, 4]`` float32 xyxy, zeros where filled up.
        labels: ``[B, M]`` int64, zeros where filled up.
        is_object: ``[B, M]`` bool, False where filled up.
    """

    boxes: Tensor
    labels: Tensor
    is_object: Tensor


def pad_targets(targets: Sequence[BoxTarget], device: torch.device) -> Padded:
    """The objects of targets on one device."""
    most = max((len(target) for target in targets), default=0)
    boxes = torch.zeros(len(targets), most, 4, device=device)
    labels = torch.zeros(len(targets), most, dtype=torch.int64, device=device)
    is_object = torch.zeros(len(targets), most, dtype=torch.bool, device=device)
    for index, target in enumerate(targets):
        boxes[index, : len(target)] = target.boxes
        labels[index, : len(target)] = target.labels
        is_object[index, : len(target)] = True
    return Padded(boxes, labels, is_object)
