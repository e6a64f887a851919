"""Heads that look at regions of a picture, as a list: each says what is there, and which regions the next one sees.

The box head of Fast R-CNN, Girshick 2015, arXiv 1504.08083: which class, and how to move and stretch the region to fit
the object of each class. Its deeper form with four convolutions: Wu and He 2018, arXiv 1803.08494.

B batch · R regions of all pictures · K classes · N objects · D width of the maps · S cells per side · M hidden width
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.losses import cross_entropy, smooth_l1
from saccade.matching.assign import IoUAssigner
from saccade.matching.sample import BalancedSampler
from saccade.models.detector import Candidates, Kept, Selection, select
from saccade.nn.conv import ConvNorm
from saccade.nn.roi import RoIExtractor, RoIKind
from saccade.ops.boxes import decode, encode, map_to_original
from saccade.types import BoxTarget, Detections, ImageBatch

UNKNOWN = -1
"""Label of a region of which nobody said what it is."""
UNASSIGNED = -3
"""Mark of a region that was not yet held against the objects; beside those of ``matching.assign``."""


class Regions(NamedTuple):
    """Parts of the pictures of a batch, picture by picture.

    Attributes:
        boxes: ``[R, 4]`` xyxy on the canvas.
        image: ``[R]`` int64, which picture each is in.
        labels: ``[R]`` int64, which class each is seen as; ``UNKNOWN`` of proposals.
        source: ``[R]`` int64, which candidate of its picture each comes from.
        matched: ``[R]`` int64, which object of its picture's target each learns, ``BACKGROUND`` or ``IGNORED``;
            ``UNASSIGNED`` of regions that were not sampled to learn from.
    """

    boxes: Tensor
    image: Tensor
    labels: Tensor
    source: Tensor
    matched: Tensor

    @classmethod
    def of(
        cls,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor] | None = None,
        source: Sequence[Tensor] | None = None,
        matched: Sequence[Tensor] | None = None,
    ) -> Regions:
        """The boxes ``[R_b, 4]`` of each picture as one; of unknown class, their own source, unassigned unless told."""
        device = boxes[0].device
        counts = [len(part) for part in boxes]
        image = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
        if labels is None:
            labels = [torch.full((count,), UNKNOWN, device=device) for count in counts]
        if source is None:
            source = [torch.arange(count, device=device) for count in counts]
        if matched is None:
            matched = [torch.full((count,), UNASSIGNED, device=device) for count in counts]
        parts = (torch.cat(list(part)) for part in (labels, source, matched))
        return cls(torch.cat(list(boxes)), image, *parts)

    def per_image(self, count: int) -> list[Tensor]:
        """Indices of the regions of each of ``count`` pictures."""
        sizes: list[int] = torch.bincount(self.image, minlength=count).tolist()
        return list(torch.split(torch.arange(len(self.image), device=self.image.device), sizes))


HeadOutputs = TypeVar("HeadOutputs")


class RoIHead(nn.Module, abc.ABC, Generic[HeadOutputs]):
    """One element of the list."""

    @abc.abstractmethod
    def forward(self, levels: Sequence[Tensor], regions: Regions) -> HeadOutputs:
        """What there is to say of regions, from maps ``[B, D, h_l, w_l]``, finest first."""

    @abc.abstractmethod
    def passes_on(
        self, outputs: HeadOutputs, sizes: Sequence[tuple[int, int]], targets: Sequence[BoxTarget] | None
    ) -> Regions:
        """The regions that the next head sees.

        Args:
            outputs: of this head.
            sizes: ``(h, w)`` of each picture on the canvas.
            targets: where given, the next head learns: it sees regions of which is known what they are.
        """

    @abc.abstractmethod
    def loss(self, outputs: HeadOutputs, targets: Sequence[BoxTarget]) -> dict[str, Tensor]:
        """The terms ``[]`` of this head."""

    @abc.abstractmethod
    def predict(self, found: list[Detections], outputs: HeadOutputs, images: ImageBatch) -> list[Detections]:
        """Adds what this head knows to what the heads before it found; that of the first is empty."""


class BoxOutputs(NamedTuple):
    """What the box head says of every region.

    Attributes:
        regions: which they are.
        logits: ``[R, K + 1]``, background last.
        codes: ``[R, K, 4]`` how to move and stretch the region to fit an object of each class.
    """

    regions: Regions
    logits: Tensor
    codes: Tensor


@dataclass(frozen=True, kw_only=True)
class BoxHeadConfig(Config):
    """A box head: what it reads, how deep it is, what it learns from."""

    size: int = 7
    """Cells per side of what is read of a region."""
    roi: RoIKind = "align"
    """RoIAlign, or RoI pooling, which rounds to whole cells."""
    is_aligned: bool = True
    """Whether RoIAlign takes the middle of a cell for its place; networks published before 2019 take its corner."""
    canonical: float = 224.0
    """Side in pixels of a region that reads the map of stride 16."""
    convs: int = 0
    """3x3 convolutions with batch norm, as wide as the maps."""
    linears: int = 2
    """Linear layers behind them."""
    hidden: int = 1024
    """Width of the linear layers."""
    code_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the four codes, which bring them to a size of about 1."""
    assigner: IoUAssigner = field(default_factory=IoUAssigner)
    """Which regions are objects, in training."""
    sampler: BalancedSampler = field(default_factory=lambda: BalancedSampler(size=512, positive_share=0.25))
    """How many regions of one picture are learned from."""

    def __post_init__(self) -> None:
        if self.convs < 0 or min(self.linears, self.size, self.hidden) < 1:
            raise ConfigError("size, convs, linears or hidden is out of range", where="box")


class BoxPredictor(nn.Module):
    """The layers that depend on the classes: hidden numbers ``[R, M]`` to logits and codes."""

    def __init__(self, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Linear(hidden, num_classes + 1)
        self.codes = nn.Linear(hidden, 4 * num_classes)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.codes.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.codes.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, M]`` to ``[R, K + 1]`` and ``[R, K, 4]``."""
        return self.classes(hidden), self.codes(hidden).reshape(len(hidden), self.codes.out_features // 4, 4)


class BoxHead(RoIHead[BoxOutputs]):
    """Which class, and where exactly.

    Args:
        config: of the head.
        width: D.
        strides: of the maps that regions are read from, finest first.
        num_classes: K.
        selection: which regions become detections.
    """

    def __init__(
        self, config: BoxHeadConfig, width: int, strides: Sequence[int], num_classes: int, selection: Selection
    ) -> None:
        super().__init__()
        self.config, self.selection = config, selection
        self.extract = RoIExtractor(
            config.size, strides, config.roi, is_aligned=config.is_aligned, canonical=config.canonical
        )
        self.convs = nn.Sequential(*(ConvNorm(width, width) for _ in range(config.convs)))
        widths = [width * config.size**2, *[config.hidden] * config.linears]
        self.linears = nn.Sequential()
        for num_in, num_out in itertools.pairwise(widths):
            self.linears.extend([nn.Linear(num_in, num_out), nn.ReLU(inplace=True)])
        self.head = BoxPredictor(config.hidden, num_classes)

    def forward(self, levels: Sequence[Tensor], regions: Regions) -> BoxOutputs:
        """Logits and codes of every region."""
        patches = self.convs(self.extract(levels, regions.boxes, regions.image))
        return BoxOutputs(regions, *self.head(self.linears(patches.flatten(1))))

    @torch.no_grad()
    def keep(self, outputs: BoxOutputs, sizes: Sequence[tuple[int, int]]) -> list[Kept]:
        """The detections of each picture, as ``select`` takes them from all candidates."""
        scores = outputs.logits.float().softmax(dim=1)[:, :-1]
        is_likely = (scores >= self.selection.min_score).any(dim=1)
        kept = []
        for rows, size in zip(outputs.regions.per_image(len(sizes)), sizes, strict=True):
            # Only regions that may become a detection are decoded.
            own = torch.nonzero(is_likely[rows])[:, 0]
            rows = rows[own]
            boxes = decode(outputs.codes[rows].float(), outputs.regions.boxes[rows, None], self.config.code_weights)
            best = select(Candidates(boxes, scores[rows], scores[rows]), size, self.selection)
            kept.append(best._replace(source=own[best.source]))
        return kept

    def passes_on(
        self, outputs: BoxOutputs, sizes: Sequence[tuple[int, int]], targets: Sequence[BoxTarget] | None
    ) -> Regions:
        """The detections, or, to learn from, the regions that are objects."""
        if targets is None:
            kept = self.keep(outputs, sizes)
            return Regions.of([k.boxes for k in kept], [k.labels for k in kept], [k.source for k in kept])
        boxes, labels, source = [], [], []
        assigned = _assigned(outputs.regions, targets, self.config)
        for rows, matched, target in zip(outputs.regions.per_image(len(targets)), assigned, targets, strict=True):
            own = outputs.regions.boxes[rows]
            positive = torch.nonzero(matched >= 0)[:, 0]
            boxes.append(own[positive])
            labels.append(target.labels[matched[positive]])
            source.append(positive)
        return Regions.of(boxes, labels, source)

    def loss(self, outputs: BoxOutputs, targets: Sequence[BoxTarget]) -> dict[str, Tensor]:
        """``class`` and ``boxes``."""
        return region_losses(outputs, targets, self.config)

    def predict(self, found: list[Detections], outputs: BoxOutputs, images: ImageBatch) -> list[Detections]:
        """The detections in the pixels of the original pictures, without masks."""
        classes = found[0].classes
        return [
            Detections(map_to_original(kept.boxes, geometry), kept.scores, kept.labels, kept.source, classes)
            for kept, geometry in zip(self.keep(outputs, images.sizes), images.geometries, strict=True)
        ]


def class_evidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and log odds of the classes, both ``[R, K]`` float32, of logits ``[R, K + 1]``, background last.

    The odds of a class say how far its logit lies above all the others together; what all logits share cancels.
    """
    logits = logits.float()
    total = logits.logsumexp(dim=1, keepdim=True)
    likeliest = logits.argmax(dim=1, keepdim=True)
    is_likeliest = torch.zeros_like(logits, dtype=torch.bool).scatter(1, likeliest, True)
    # Where a class has nearly all the probability, what is left for the others has to be summed up, not subtracted.
    beside = logits.masked_fill(is_likeliest, float("-inf")).logsumexp(dim=1, keepdim=True)
    share = (logits - total).masked_fill(is_likeliest, -1.0).exp()
    others = torch.where(is_likeliest, beside, total + torch.log1p(-share))
    return logits.softmax(dim=1)[:, :-1], (logits - others)[:, :-1]


def sample_regions(proposals: Sequence[Tensor], targets: Sequence[BoxTarget], config: BoxHeadConfig) -> Regions:
    """A balanced choice of each picture's proposals ``[R_b, 4]`` and its objects themselves, to learn from.

    What each learns is settled here: among the few that are chosen an object may have lost all its regions, and another
    assignment would give it what is background.
    """
    chosen, assigned = [], []
    for boxes, target in zip(proposals, targets, strict=True):
        boxes = torch.cat([boxes, target.without_crowds().boxes.to(boxes)])
        matched = config.assigner(boxes, target).matched
        rows = torch.cat(config.sampler(matched))
        chosen.append(boxes[rows])
        assigned.append(matched[rows])
    return Regions.of(chosen, matched=assigned)


def region_candidates(outputs: BoxOutputs, count: int, config: BoxHeadConfig) -> list[Candidates]:
    """Every region of each of ``count`` pictures as an object of every class."""
    scores, odds = class_evidence(outputs.logits)
    found = []
    for rows in outputs.regions.per_image(count):
        boxes = decode(outputs.codes[rows].float(), outputs.regions.boxes[rows, None], config.code_weights)
        found.append(Candidates(boxes, scores[rows], odds[rows]))
    return found


def _assigned(regions: Regions, targets: Sequence[BoxTarget], config: BoxHeadConfig) -> list[Tensor]:
    """Which object the regions of each picture learn, ``[R_b]`` as ``Regions.matched`` has it; sampled ones know."""
    rows = regions.per_image(len(targets))
    if not bool((regions.matched == UNASSIGNED).any()):
        return [regions.matched[own] for own in rows]
    return [config.assigner(regions.boxes[own], target).matched for own, target in zip(rows, targets, strict=True)]


def region_losses(outputs: BoxOutputs, targets: Sequence[BoxTarget], config: BoxHeadConfig) -> dict[str, Tensor]:
    """The multi-task loss of Fast R-CNN, means over the regions that are learned from.

    Args:
        outputs: of regions of all pictures; what sampled ones learn was settled when they were sampled, of others a
            balanced choice of each picture is learned from.
        targets: the objects of each picture, on the canvas; of sampled regions those that they were sampled for.
        config: matching, choice and the factors of the codes.

    Returns:
        ``class`` ``[]``: softmax over the classes and background. ``boxes`` ``[]``: smooth L1 of the codes of the
        object's own class, over regions that are objects, divided by the number of all regions.
    """
    background = outputs.logits.shape[1] - 1
    chosen, labels, objects, own, aims = [], [], [], [], []
    assigned = _assigned(outputs.regions, targets, config)
    for rows, matched, target in zip(outputs.regions.per_image(len(targets)), assigned, targets, strict=True):
        boxes = outputs.regions.boxes[rows]
        positive, negative = config.sampler(matched)  # of sampled regions all
        classes = target.labels[matched[positive]]
        chosen += [rows[positive], rows[negative]]
        labels += [classes, torch.full_like(negative, background)]
        objects.append(rows[positive])
        own.append(classes)
        aims.append(encode(target.boxes[matched[positive]], boxes[positive].float(), config.code_weights))
    rows = torch.cat(chosen)
    if not len(rows):
        nothing = outputs.logits.float().sum() * 0.0
        return {"class": nothing, "boxes": nothing + outputs.codes.float().sum() * 0.0}
    codes = outputs.codes[torch.cat(objects), torch.cat(own)]
    return {
        "class": cross_entropy(outputs.logits[rows], torch.cat(labels)),
        "boxes": smooth_l1(codes, torch.cat(aims), beta=1 / 9) / len(rows),
    }
