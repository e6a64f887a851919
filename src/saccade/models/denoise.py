"""Denoising queries: objects shown to a decoder with noise on box and class, to be told back without it.

Li et al. 2022 (DN-DETR), arXiv 2203.01305: their matching is known, so a decoder learns from the first step on to move
boxes onto objects, while the matching of ordinary queries still jumps about. Zhang et al. 2022 (DINO), arXiv
2203.03605: of each object a second copy with more noise has to be refused, so that near misses are told from hits.

B batch · M objects of the picture that has most · G groups · D = 2 G M denoising queries · Q ordinary queries
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.matching.hungarian import Objects
from saccade.ops.boxes import from_centres, to_centres

OF_NOTHING = -1
"""Mark of a denoising query that has to be refused."""
UNUSED = -2
"""Mark of a denoising query that only fills up."""


class Noisy(NamedTuple):
    """Denoising queries.

    Attributes:
        labels: ``[B, D]`` int64, classes with noise.
        boxes: ``[B, D, 4]`` boxes with noise, as those of the objects.
        object: ``[B, D]`` int64, the object of its picture that each has to tell; ``OF_NOTHING`` or ``UNUSED``.
        mask: ``[B, 1, D + Q, D + Q]`` bool, who may look at whom.
    """

    labels: Tensor
    boxes: Tensor
    object: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig(Config):
    """How many denoising queries there are, and how much noise they have."""

    queries: int = 100
    """At most so many, copies to be refused not counted; 0 for none. One group at least is made of any picture."""
    label_noise: float = 0.25
    """Share of the classes that are replaced by a random one."""
    box_noise: float = 0.4
    """Largest shift of a corner of a copy to be told, in halves of the box's sides; of one to be refused twice that."""

    def __post_init__(self) -> None:
        if self.queries < 0 or not 0 <= self.label_noise <= 1 or not 0 < self.box_noise <= 1:
            raise ConfigError("queries, label_noise or box_noise is out of range", where="denoise")

    @torch.no_grad()
    def __call__(self, objects: Objects, num_classes: int, queries: int) -> Noisy:
        """Denoising queries of objects, beside Q ordinary ones; draws are torch's global ones."""
        batch, most = objects.labels.shape
        groups = max(self.queries // most, 1) if most and self.queries else 0
        labels, is_object = objects.labels.repeat(1, 2 * groups), objects.is_object.repeat(1, 2 * groups)
        boxes = objects.boxes.repeat(1, 2 * groups, 1)
        # Group by group: first the copies to be told, then those to be refused.
        is_told = torch.tensor([True, False], device=labels.device).repeat_interleave(most).repeat(groups)
        number = torch.arange(most, device=labels.device).repeat(2 * groups)
        source = torch.where(is_told, number, OF_NOTHING).expand(batch, -1)
        source = torch.where(is_object, source, UNUSED)
        is_flipped = _uniform(labels.shape, labels) < self.label_noise
        labels = torch.where(is_flipped, (_uniform(labels.shape, labels) * num_classes).long(), labels)
        mask = _mask(is_object, groups, queries)
        return Noisy(labels, self._shift(boxes, is_told), source, mask)

    def _shift(self, boxes: Tensor, is_told: Tensor) -> Tensor:
        """Boxes ``[B, D, 4]`` whose corners are moved, less far where they have to be told."""
        corners, sides = from_centres(boxes), boxes[..., 2:]
        size = _uniform(corners.shape, corners) + (~is_told)[:, None].float()
        sign = torch.where(_uniform(corners.shape, corners) < 0.5, -1.0, 1.0)
        corners = (corners + size * sign * self.box_noise * sides.repeat(1, 1, 2) / 2).clamp(0, 1)
        low, high = torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])
        return to_centres(torch.cat([low, high], dim=-1))


def _uniform(shape: torch.Size, like: Tensor) -> Tensor:
    """Drawn on the CPU: there the seed of a step is set, and the draw does not depend on the device."""
    return torch.rand(shape).to(like.device)


def _mask(is_object: Tensor, groups: int, queries: int) -> Tensor:
    """Ordinary queries never see denoising ones, which know the answer; a group sees itself and the ordinary ones."""
    count = is_object.shape[1]
    group = torch.arange(count, device=is_object.device) // max(count // max(groups, 1), 1)
    group = torch.cat([group, group.new_full((queries,), -1)])
    is_real = torch.cat([is_object, is_object.new_ones(len(is_object), queries)], dim=1)
    may_look = (group[:, None] == group) | (group == -1)
    return (may_look & is_real[:, None])[:, None]
