"""Mask R-CNN: Faster R-CNN with one more head, which says which pixels of a region are the object.

He et al. 2017, arXiv 1703.06870. The mask head looks at the detections themselves; every class has a mask of its own,
so classes do not compete for pixels. Differs from the paper: only the mask of a region's own class is computed. With a
ResNet-50 it is torchvision's ``maskrcnn_resnet50_fpn``.

R regions of all pictures · K classes · D, M widths · S cells per side of what is read, 2 S of a mask
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.config import Config
from saccade.errors import ConfigError, InputError
from saccade.matching.assign import IoUAssigner
from saccade.models.detector import MaskEvidence
from saccade.models.faster_rcnn import MEDIUM, PUBLISHED, SMALL, TINY, FasterRCNN, TwoStageConfig, TwoStageOutputs
from saccade.models.roi_heads import Regions, RoIHead
from saccade.nn.conv import ConvNorm
from saccade.nn.roi import RoIExtractor, RoIKind
from saccade.ops.paste import paste
from saccade.registry import register
from saccade.types import BoxTarget, Detections, ImageBatch, Masks, TaskName


class MaskOutputs(NamedTuple):
    """What the mask head says of every region.

    Attributes:
        regions: which they are, and as what each is seen.
        logits: ``[R, 2 S, 2 S]`` of the cells of each region, for the region's class.
    """

    regions: Regions
    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig(Config):
    """A mask head: what it reads, how deep it is, what it learns from."""

    size: int = 14
    """Cells per side of what is read of a region; a mask has twice as many."""
    roi: RoIKind = "align"
    """RoIAlign, or RoI pooling, which rounds to whole cells."""
    is_aligned: bool = True
    """Whether RoIAlign takes the middle of a cell for its place; networks published before 2019 take its corner."""
    canonical: float = 224.0
    """Side in pixels of a region that reads the map of stride 16."""
    convs: int = 4
    """3x3 convolutions."""
    hidden: int = 256
    """Their width."""
    has_norm: bool = False
    """Whether each has a batch norm."""
    assigner: IoUAssigner = field(default_factory=IoUAssigner)
    """Which object's mask a region learns."""

    def __post_init__(self) -> None:
        if min(self.size, self.convs, self.hidden) < 1:
            raise ConfigError("size, convs or hidden is out of range", where="mask", expected="at least 1")


class ClassMasks(nn.Module):
    """The layer that depends on the classes: one 1x1 convolution per class, of which each region takes its own."""

    def __init__(self, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, hidden))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.normal_(self.weight, std=(2 / hidden) ** 0.5)

    def forward(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Patches ``[R, M, h, w]`` of regions of classes ``[R]`` to logits ``[R, h, w]``."""
        own = self.weight[labels][:, None]  # [R, 1, M]
        logits = torch.bmm(own, patches.flatten(2))[:, 0] + self.bias[labels][:, None]
        return logits.reshape(-1, int(patches.shape[2]), int(patches.shape[3]))


class MaskHead(RoIHead[MaskOutputs]):
    """Which pixels are the object.

    Args:
        config: of the head.
        width: D.
        strides: of the maps that regions are read from, finest first.
        num_classes: K.
    """

    def __init__(self, config: MaskHeadConfig, width: int, strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.extract = RoIExtractor(
            config.size, strides, config.roi, is_aligned=config.is_aligned, canonical=config.canonical
        )
        widths = [width, *[config.hidden] * config.convs]
        self.convs = nn.Sequential(
            *(ConvNorm(widths[i], widths[i + 1], has_norm=config.has_norm) for i in range(config.convs))
        )
        self.enlarge = nn.Sequential(nn.ConvTranspose2d(config.hidden, config.hidden, 2, 2), nn.ReLU(inplace=True))
        self.head = ClassMasks(config.hidden, num_classes)

    def forward(self, levels: Sequence[Tensor], regions: Regions) -> MaskOutputs:
        """Logits of the cells of every region."""
        patches = self.extract(levels, regions.boxes, regions.image)
        return MaskOutputs(regions, self.head(self.enlarge(self.convs(patches)), regions.labels))

    def passes_on(
        self, outputs: MaskOutputs, sizes: Sequence[tuple[int, int]], targets: Sequence[BoxTarget] | None
    ) -> Regions:
        """What it saw itself."""
        return outputs.regions

    def loss(self, outputs: MaskOutputs, targets: Sequence[BoxTarget]) -> dict[str, Tensor]:
        """``mask`` ``[]``: the mean over all cells of the regions that are objects and are seen as what they are.

        Raises:
            InputError: where a target has objects, but no masks.
        """
        side = int(outputs.logits.shape[-1])
        chosen, aims = [], []
        for index, (rows, target) in enumerate(zip(outputs.regions.per_image(len(targets)), targets, strict=True)):
            if target.masks is None and len(target):
                raise InputError(
                    "the objects have no masks",
                    where=f"targets[{index}]",
                    expected="data for instance segmentation",
                    remedy="train a detector of boxes on this data",
                )
            boxes = outputs.regions.boxes[rows]
            matched = self.config.assigner(boxes, target).matched
            right = torch.nonzero(matched >= 0)[:, 0]
            right = right[target.labels[matched[right]] == outputs.regions.labels[rows[right]]]
            if target.masks is not None and len(right):
                chosen.append(rows[right])
                aims.append(cells(target.masks, matched[right], boxes[right].float(), side))
        if not chosen:
            return {"mask": outputs.logits.float().sum() * 0.0}
        logits = outputs.logits[torch.cat(chosen)].float()
        return {"mask": F.binary_cross_entropy_with_logits(logits, torch.cat(aims))}

    def predict(self, found: list[Detections], outputs: MaskOutputs, images: ImageBatch) -> list[Detections]:
        """The detections with their masks, in the pixels of the original pictures.

        Raises:
            InputError: where the masks are those of other regions, because the outputs were made with targets.
        """
        scores = outputs.logits.float().sigmoid()
        complete = []
        for rows, own, geometry in zip(outputs.regions.per_image(len(found)), found, images.geometries, strict=True):
            seen = outputs.regions.source[rows], outputs.regions.labels[rows]
            if not (torch.equal(seen[0], own.source) and torch.equal(seen[1], own.labels)):
                raise InputError(
                    "these outputs hold the masks of sampled regions, not of detections",
                    expected="outputs that were made without targets",
                )
            masks = paste(scores[rows], own.boxes, geometry.original_size)
            complete.append(replace(own, masks=masks))
        return complete


def cells(masks: Masks, objects: Tensor, boxes: Tensor, side: int) -> Tensor:
    """How much of each cell of a box an object covers, ``[P, S, S]`` float32 in [0, 1].

    Args:
        masks: of one picture.
        objects: ``[P]`` int64, which of them each box is about.
        boxes: ``[P, 4]`` xyxy on the canvas.
        side: S, cells per side of a box.
    """
    result = boxes.new_zeros(len(boxes), side, side)
    for index in sorted(set(objects.tolist())):
        own = torch.nonzero(objects == index)[:, 0]
        crop = masks.crops[index].to(boxes.device)
        if crop.numel():
            top, left = masks.corners[index].tolist()
            result[own] = _shares(crop, boxes[own] - boxes.new_tensor([left, top, left, top]), side)
    return result


def _shares(crop: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The covered share of each cell ``[P, S, S]`` of boxes ``[P, 4]`` on one crop ``[bh, bw]``, exactly.

    The covered area above and left of a point is linear between the pixels' corners along either axis; that of a cell
    is a difference of four.
    """
    total = F.pad(crop.float().cumsum(0).cumsum(1), (1, 0, 1, 0))
    steps = torch.arange(side + 1, device=boxes.device) / side
    places, parts = [], []
    for axis, length in ((0, crop.shape[1]), (1, crop.shape[0])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        edges = (low + (high - low) * steps).clamp(0, length)
        places.append(edges.long().clamp(max=length - 1))
        parts.append(edges - places[-1])
    right, down = places
    rows = torch.lerp(total[down], total[down + 1], parts[1][..., None])  # [P, S + 1, bw + 1]
    right = right[:, None].expand(-1, side + 1, -1)
    covered = torch.lerp(rows.gather(2, right), rows.gather(2, right + 1), parts[0][:, None])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) / side**2
    return covered.diff(dim=1).diff(dim=2) / areas.clamp_min(1e-6)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(TwoStageConfig):
    """Mask R-CNN."""

    task: ClassVar[TaskName] = "instance"
    kind: Literal["mask_rcnn"] = "mask_rcnn"
    mask: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    """The head that cuts objects out."""

    def build(self) -> MaskRCNN:
        """The model, with random weights."""
        return MaskRCNN(self)


class MaskRCNN(FasterRCNN):
    """Faster R-CNN whose list of heads goes on."""

    config: MaskRCNNConfig

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__(config)
        self.heads.append(MaskHead(config.mask, config.pyramid_width, config.strides, config.num_classes))

    def boxes_only(self) -> Self:
        """The same without the mask head, all weights shared."""
        view = copy.copy(self)
        view._modules = {**self._modules, "heads": nn.ModuleList([self.box])}
        return view

    def mask_evidence(self, outputs: TwoStageOutputs, images: ImageBatch) -> list[MaskEvidence] | None:
        """The cells of every region; None of what has boxes only."""
        if len(self.heads) == 1:
            return None
        said: MaskOutputs = outputs.heads[-1]
        regions = said.regions
        return [
            MaskEvidence(regions.boxes[rows], regions.labels[rows], regions.source[rows], said.logits[rows])
            for rows in regions.per_image(len(images))
        ]


def _sizes() -> dict[str, MaskRCNNConfig]:
    return {
        "mask_rcnn_r50": MaskRCNNConfig(mask=MaskHeadConfig(is_aligned=False), **PUBLISHED),
        "mask_rcnn_r18": MaskRCNNConfig(**MEDIUM),
        "mask_rcnn_small": MaskRCNNConfig(mask=MaskHeadConfig(convs=3, hidden=64, canonical=128.0), **SMALL),
        "mask_rcnn_test": MaskRCNNConfig(mask=MaskHeadConfig(size=7, convs=1, hidden=16, canonical=20.0), **TINY),
    }


register(_sizes())
