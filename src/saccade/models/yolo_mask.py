"""Instances in one pass: the one-stage detector whose points also say how to mix a few maps into their object's mask.

Bolya et al. 2019 (YOLACT), arXiv 1904.02689: one branch makes M prototypes of the whole picture, every point has M
coefficients, and the mask of a detection is the sum of the prototypes, weighted by its coefficients and cut to its box.
Differs from the paper: the prototypes are made at stride 8 and rearranged into cells of stride 4; a mask is learned at
28 x 28 places of its object's box, so that small objects count as much as large ones and the cost does not grow with
the picture; coefficients come from the box's tower.

B batch · P points · M prototypes · N masks · S places per side of a box · h, w grid of the prototypes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, InputError
from saccade.matching.aligned import Aligned
from saccade.models.detector import MaskEvidence
from saccade.models.mask_rcnn import cells
from saccade.models.yolo import VARIANTS, Yolo, YoloConfig, YoloOutputs
from saccade.nn.conv import ConvNorm
from saccade.ops.boxes import clip, map_to_canvas
from saccade.registry import register
from saccade.types import BoxTarget, Detections, Geometry, ImageBatch, Masks, TaskName

STRIDE = 4
"""Pixels of the canvas per cell of a prototype."""
SIDE = 28
"""Places per side of a box at which a mask is learned and explained."""
AROUND = 0.1
"""How far beyond its object's box a mask is learned, as a share of the sides: predicted boxes are not exact."""


@dataclass(frozen=True, kw_only=True)
class YoloMaskConfig(YoloConfig):
    """A one-stage detector that cuts objects out."""

    task: ClassVar[TaskName] = "instance"
    kind: Literal["yolo_mask"] = "yolo_mask"  # type: ignore[assignment]
    prototypes: int = 32
    """M, maps that masks are mixed of."""
    prototype_width: int = 64
    """Channels of the convolution before them."""
    mask_weight: float = 2.5
    """Of the cross-entropy of the masks' places."""
    masks_per_picture: int = 64
    """Most points of a picture that learn masks, those that fit their objects best."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.prototypes, self.prototype_width, self.masks_per_picture) < 1 or self.mask_weight < 0:
            raise ConfigError("a number of prototypes or masks is below 1", where="yolo_mask", expected="positive")

    @property
    def num_codes(self) -> int:
        """Those of the box and the coefficients."""
        return super().num_codes + self.prototypes

    def build(self) -> YoloMask:
        """The model, with random weights."""
        return YoloMask(self)


class PrototypeBranch(nn.Module):
    """M maps of the whole picture, at twice the resolution of what it reads.

    Args:
        num_in: width of the map of stride 8.
        width: channels inside.
        count: M.
    """

    def __init__(self, num_in: int, width: int, count: int) -> None:
        super().__init__()
        self.read = ConvNorm(num_in, width, activation=nn.SiLU)
        self.spread = ConvNorm(width, 4 * count, 1, activation=nn.SiLU)
        self.enlarge = nn.PixelShuffle(2)
        self.smooth = ConvNorm(count, count, groups=count, activation=nn.SiLU)
        self.mix = nn.Conv2d(count, count, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, M, 2 h, 2 w]``."""
        mixed: Tensor = self.mix(self.smooth(self.enlarge(self.spread(self.read(maps)))))
        return mixed


class YoloMask(Yolo):
    """The detector, its prototypes, and coefficients beside the codes of each point."""

    config: YoloMaskConfig

    def __init__(self, config: YoloMaskConfig) -> None:
        super().__init__(config)
        self.branch = PrototypeBranch(config.widths[2], config.prototype_width, config.prototypes)

    def prototypes(self, maps: Sequence[Tensor]) -> Tensor:
        """``[B, M, H / 4, W / 4]`` from the finest map."""
        made: Tensor = self.branch(maps[0])
        return made

    def mask_term(
        self, is_one: bool, outputs: YoloOutputs, codes: Tensor, aligned: Aligned, targets: Sequence[BoxTarget]
    ) -> Tensor:
        """The mean cross-entropy ``[]`` at the places of the objects of all positive points.

        Raises:
            InputError: where a target has objects, but no masks.
        """
        prototypes = outputs.prototypes.float()
        if is_one and self.training:  # as the maps: formed by the heads that many points teach
            prototypes = prototypes.detach()
        said, aims = [], []
        for index, target in enumerate(targets):
            points = torch.nonzero(aligned.is_positive[index])[:, 0]
            if not len(points):
                continue
            if target.masks is None:
                raise InputError(
                    "the objects have no masks",
                    where=f"targets[{index}]",
                    expected="data for instance segmentation",
                    remedy="train a detector of boxes on this data",
                )
            fit = aligned.scores[index, points].sum(-1)
            points = points[fit.argsort(descending=True, stable=True)[: self.config.masks_per_picture]]
            frames = _around(aligned.boxes[index, points])
            said.append(sampled(self._mixed(prototypes[index], codes[index, points]), frames, SIDE))
            aims.append(cells(target.masks, aligned.owner[index, points], frames, SIDE))
        if not said:
            return prototypes.sum() * 0.0 + codes.sum() * 0.0
        loss = F.binary_cross_entropy_with_logits(torch.cat(said), torch.cat(aims))
        return self.config.mask_weight * loss

    def postprocess(self, outputs: YoloOutputs, images: ImageBatch) -> list[Detections]:
        """The detections with their masks, in the pixels of the original pictures."""
        _, codes = self._answering(outputs)
        found = []
        for index, own in enumerate(super().postprocess(outputs, images)):
            logits = self._mixed(outputs.prototypes[index].float(), codes[index, own.source].float())
            found.append(replace(own, masks=cut_out(logits, own.boxes, images.geometries[index])))
        return found

    def mask_evidence(self, outputs: YoloOutputs, images: ImageBatch) -> list[MaskEvidence]:
        """The masks of the detections of each picture."""
        _, codes = self._answering(outputs)
        found = []
        for index, own in enumerate(super().postprocess(outputs, images)):
            boxes = map_to_canvas(own.boxes, images.geometries[index])
            logits = self._mixed(outputs.prototypes[index].float(), codes[index, own.source].float())
            found.append(MaskEvidence(boxes, own.labels, own.source, sampled(logits, boxes, SIDE)))
        return found

    def _mixed(self, prototypes: Tensor, codes: Tensor) -> Tensor:
        """Prototypes ``[M, h, w]`` mixed by the coefficients in codes ``[N, 4 n + M]``: logits ``[N, h, w]``."""
        coefficients = codes[:, -self.config.prototypes :].tanh()
        return (coefficients @ prototypes.flatten(1)).reshape(-1, *prototypes.shape[1:])


def sampled(logits: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Maps ``[N, h, w]`` that cover the canvas, read at S x S places of a box each, ``[N, 4]`` to ``[N, S, S]``."""
    steps = (torch.arange(side, device=boxes.device) + 0.5) / side
    extent = boxes.new_tensor([logits.shape[2], logits.shape[1]]) * STRIDE
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    places = (low + (high - low) * steps[None, :, None]) / extent * 2 - 1  # [N, S, 2], -1 to 1 over the canvas
    across, down = places[:, None, :, 0].expand(-1, side, -1), places[:, :, None, 1].expand(-1, -1, side)
    grid = torch.stack([across, down], dim=-1)
    read = F.grid_sample(logits[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return read[:, 0]


@torch.no_grad()
def cut_out(logits: Tensor, boxes: Tensor, geometry: Geometry) -> Masks:
    """The pixels of each object: those in its box at which its map, bilinear between the cells' centres, is above 0.

    Args:
        logits: ``[N, h, w]`` maps that cover the canvas.
        boxes: ``[N, 4]`` xyxy in the original picture.
        geometry: from the original picture to the canvas.
    """
    size = geometry.original_size
    frames = clip(torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1), size)
    corners, crops = [], []
    for mask, (left, top, right, bottom) in zip(logits, frames.long().tolist(), strict=True):
        rows, down = _tents((top, bottom), int(mask.shape[0]), geometry, 0)
        columns, across = _tents((left, right), int(mask.shape[1]), geometry, 1)
        crops.append(rows.to(mask) @ mask[down, across] @ columns.to(mask).mT > 0)
        corners.append((top, left))
    return Masks(size, torch.tensor(corners, dtype=torch.int64).reshape(-1, 2), tuple(crops))


def _tents(edges: tuple[int, int], count: int, geometry: Geometry, axis: int) -> tuple[Tensor, slice]:
    """How pixels from ... to along an axis are read between the centres of cells: weights ``[n, c]`` and which c."""
    centres = torch.arange(*edges) + 0.5
    places = ((centres * geometry.scale[axis] + geometry.offset[axis]) / STRIDE - 0.5).clamp(0, count - 1)
    if not len(places):
        return places[:, None].expand(0, 1), slice(0, 1)
    read = slice(int(places[0]), min(int(places[-1]) + 2, count))
    weights = (1 - (places[:, None] - torch.arange(read.start, read.stop)).abs()).clamp_min(0)
    return weights, read


def _around(boxes: Tensor) -> Tensor:
    """Boxes ``[N, 4]`` grown by ``AROUND`` on every side."""
    grown = (boxes[:, 2:] - boxes[:, :2]) * AROUND
    return torch.cat([boxes[:, :2] - grown, boxes[:, 2:] + grown], dim=1)


def _variants() -> dict[str, YoloMaskConfig]:
    """Each as the detector of boxes of the same size."""
    found = {}
    for name in ("n", "s", "small", "test"):
        detector = VARIANTS[f"yolo_{name}"]
        taken = {field.name: getattr(detector, field.name) for field in fields(detector) if field.name != "kind"}
        found[f"yolo_mask_{name}"] = YoloMaskConfig(**taken)
    found["yolo_mask_test"] = replace(found["yolo_mask_test"], prototypes=8, prototype_width=16)
    return found


register(_variants())
