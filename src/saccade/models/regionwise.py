"""Detectors that judge regions which something else proposed: what sliding window, R-CNN and Fast R-CNN share.

Girshick et al. 2014, arXiv 1311.2524. Each picture gets regions (windows, or the proposals of selective search); to
learn, a balanced handful of them and the objects themselves; the network says of every region which class it is or
that it is background, and how to move and stretch it. How it looks at a region is what the detectors differ in.

B batch · R regions of all pictures, R_b of one · K classes · S side of a warped region · C width
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from saccade.backbones.base import BackboneConfig
from saccade.errors import ConfigError
from saccade.matching.assign import IGNORED, IoUAssigner
from saccade.matching.sample import BalancedSampler
from saccade.models.detector import Candidates, Detector, DetectorConfig
from saccade.models.roi_heads import (
    BoxHeadConfig,
    BoxOutputs,
    BoxPredictor,
    Regions,
    region_candidates,
    region_losses,
    sample_regions,
)
from saccade.nn.roi import RoIExtractor
from saccade.ops.boxes import from_centres, to_centres
from saccade.ops.image import Preprocess
from saccade.ops.regions import RegionMemory, SelectiveSearch
from saccade.types import BoxTarget, ImageBatch, Losses


class RegionDetector(Detector[BoxOutputs]):
    """Base: a subclass says which regions there are, and looks at them.

    Args:
        config: of the detector.
        learning: of its fields, matching, choice and the factors of the codes count here.
    """

    def __init__(self, config: DetectorConfig, learning: BoxHeadConfig) -> None:
        super().__init__(config)
        self.learning = learning

    @abc.abstractmethod
    def propose(self, images: ImageBatch) -> list[Tensor]:
        """The regions ``[R_b, 4]`` of each picture on the canvas, at least one; no gradient passes."""

    @abc.abstractmethod
    def look(self, images: ImageBatch, boxes: Sequence[Tensor]) -> BoxOutputs:
        """What the network says of the regions ``[R_b, 4]`` of each picture."""

    def forward(self, images: ImageBatch, targets: Sequence[BoxTarget] | None = None) -> BoxOutputs:
        """Raw outputs; with targets of a balanced sample of the regions and of the objects, else of all regions."""
        with torch.no_grad():
            boxes = self.propose(images)
            if targets is None:
                return self.look(images, boxes)
            regions = self.sample(boxes, targets)
        outputs = self.look(images, [regions.boxes[rows] for rows in regions.per_image(len(images))])
        return outputs._replace(regions=regions)

    def sample(self, proposals: Sequence[Tensor], targets: Sequence[BoxTarget]) -> Regions:
        """A balanced choice of each picture's regions and its objects themselves; two at least, for the batch norms."""
        sampled = sample_regions(proposals, targets, self.learning)
        chosen, assigned = [], []
        for boxes, rows in zip(proposals, sampled.per_image(len(targets)), strict=True):
            some, matched = sampled.boxes[rows], sampled.matched[rows]
            if not len(rows):  # where crowds cover everything one region stays, which nothing is learned from
                some, matched = boxes[:1], matched.new_full((1,), IGNORED)
            times = 1 if len(some) > 1 else 2
            chosen.append(some.repeat(times, 1))
            assigned.append(matched.repeat(times))
        return Regions.of(chosen, matched=assigned)

    def loss(self, outputs: BoxOutputs, targets: Sequence[BoxTarget]) -> Losses:
        """``class`` and ``boxes``, the multi-task loss of Fast R-CNN."""
        return Losses(region_losses(outputs, targets, self.learning))

    def candidates(self, outputs: BoxOutputs, images: ImageBatch) -> list[Candidates]:
        """Every region of each picture as an object of every class."""
        return region_candidates(outputs, len(images), self.learning)


@dataclass(frozen=True, kw_only=True)
class WarpConfig(DetectorConfig):
    """Base of the configs of detectors that warp each region to one size and classify it like a picture."""

    side: int = 224
    """S, pixels per side of a warped region."""
    context: int = 16
    """Pixels of the warped frame that show what is around the region."""
    at_once: int = 256
    """Most regions per pass of the network in evaluation, which bounds the memory."""
    assigner: IoUAssigner = field(default_factory=IoUAssigner)
    """Which regions are objects, in training."""
    sampler: BalancedSampler = field(default_factory=lambda: BalancedSampler(size=64, positive_share=0.25))
    """How many regions of one picture are learned from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at_once < 1 or not 0 <= 2 * self.context < self.side:
            raise ConfigError(
                f"side {self.side}, context {self.context} or at_once {self.at_once} is out of range",
                where="side",
                expected="a frame that leaves room for the region, at_once of at least 1",
            )

    def learning(self) -> BoxHeadConfig:
        """Matching and choice, as ``RegionDetector`` takes them."""
        return BoxHeadConfig(assigner=self.assigner, sampler=self.sampler)


class RegionClassifier(nn.Module):
    """A network that sees one warped region at a time: backbone, mean over the map, logits and codes.

    Args:
        backbone: what turns warped regions into maps; the last one is read.
        config: how regions are warped.
        refines: whether regions are moved and stretched; else their codes are 0.
    """

    def __init__(self, backbone: BackboneConfig, config: WarpConfig, *, refines: bool = True) -> None:
        super().__init__()
        self.config = config
        # As many samples as there are pixels: a large region must not become a picture of every tenth pixel.
        self.warp = RoIExtractor(config.side, [1], sampling=0)
        self.backbone = backbone.build()
        width = self.backbone.channels[-1]
        self.head = BoxPredictor(width, config.num_classes) if refines else nn.Linear(width, config.num_classes + 1)

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor]) -> BoxOutputs:
        """Logits and codes of the regions of pictures.

        Args:
            pixels: ``[B, 3, H, W]`` normalised.
            sizes: ``(h, w)`` of each picture on the canvas; what is beyond counts as the mean colour.
            boxes: the regions ``[R_b, 4]`` of each picture on the canvas.
        """
        regions, parts = Regions.of(boxes), self._warped(pixels, sizes, boxes)
        if self.training:  # batch norms see all regions of a step together
            parts = iter([torch.cat(list(parts))])
        said = [self.head(self.backbone(part).maps[-1].mean(dim=(2, 3))) for part in parts]
        if isinstance(self.head, BoxPredictor):
            logits, codes = zip(*said, strict=True)
            return BoxOutputs(regions, torch.cat(logits), torch.cat(codes))
        together = torch.cat(said)
        still = together.new_zeros(1, 1, 1).expand(len(together), self.config.num_classes, 4)
        return BoxOutputs(regions, together, still)

    def _warped(self, pixels: Tensor, sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor]) -> Iterator[Tensor]:
        """The regions, warped ``[r, 3, S, S]``, picture by picture, no more than ``at_once`` together."""
        for number, (own, (height, width)) in enumerate(zip(boxes, sizes, strict=True)):
            picture = pixels[number : number + 1, :, :height, :width]
            for start in range(0, len(own), self.config.at_once):
                part = widened(own[start : start + self.config.at_once], self.config.side, self.config.context)
                warped = self.warp([picture], part, torch.zeros(len(part), dtype=torch.int64, device=part.device))
                yield warped.contiguous(memory_format=torch.channels_last)


def widened(boxes: Tensor, side: int, context: int) -> Tensor:
    """Boxes ``[R, 4]`` that, warped to ``side`` pixels, show the given ones inside a frame of ``context`` pixels."""
    centres = to_centres(boxes)
    return from_centres(torch.cat([centres[:, :2], centres[:, 2:] * (side / (side - 2 * context))], dim=1))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def searched(memory: RegionMemory, images: ImageBatch, preprocess: Preprocess) -> list[Tensor]:
    """Selective search in each picture, on the canvas without its padding; a function of the pixels alone."""
    pictures = (preprocess.denormalise(images.pixels.float()) * 255).round().byte().cpu()
    found: list[Tensor] = []
    for picture, (height, width) in zip(pictures, images.sizes, strict=True):
        found.append(memory(picture[:, :height, :width]).to(images.pixels.device))
    return found


QUICK_SEARCH = SelectiveSearch(
    colours=("hsv", "lab"), scales=(100.0,), measures=(("colour", "texture", "size", "fill"),), side=320, limit=300
)
"""The search of the small variants: 2 hierarchies."""
