"""Faster R-CNN: a network that proposes regions and one that says what they are share all convolutions.

Ren et al. 2015, arXiv 1506.01497; on a feature pyramid Lin et al. 2016, arXiv 1612.03144. Pixels become maps, maps a
pyramid; the region proposal network (``models.rpn``) says where anything is; heads (``models.roi_heads``) look at these
regions one after the other. Differs from the papers: any backbone of timm, both parts learn together, RoIAlign. With a
ResNet-50 it is torchvision's ``fasterrcnn_resnet50_fpn`` and its ``_v2`` (Li et al. 2021, arXiv 2111.11429).

B batch · A anchors · R regions of all pictures · K classes · H, W canvas
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from saccade.backbones.timm import TimmConfig
from saccade.errors import ConfigError
from saccade.matching.sample import BalancedSampler
from saccade.models.detector import Candidates, Detector, DetectorConfig, Origin, Selection, letterbox
from saccade.models.roi_heads import BoxHead, BoxHeadConfig, Regions, RoIHead, region_candidates, sample_regions
from saccade.models.rpn import RPN, AnchorConfig, RPNConfig, RPNOutputs
from saccade.nn.fpn import FeaturePyramid
from saccade.ops.image import Preprocess
from saccade.registry import register
from saccade.types import BoxTarget, Detections, ExplainSpec, GridLayer, ImageBatch, Losses, Rows


@dataclass(frozen=True, kw_only=True)
class TwoStageConfig(DetectorConfig):
    """What Faster R-CNN and what is built on it have in common."""

    backbone: TimmConfig = field(default_factory=lambda: TimmConfig(name="resnet50"))
    """What turns pixels into maps."""
    freeze_norms: bool = False
    """Whether the backbone's batch norms stay as they are in training, as published: statistics, which a handful of
    pictures would spoil, weights and biases. For backbones that are trained already."""
    strides: tuple[int, ...] = (4, 8, 16, 32)
    """The backbone's maps that the pyramid stands on; the proposals see one level more, of half the resolution."""
    pyramid_width: int = 256
    """Width of all levels of the pyramid."""
    pyramid_norm: bool = False
    """Whether every convolution of the pyramid has a batch norm."""
    rpn: RPNConfig = field(default_factory=RPNConfig)
    """The network that proposes regions."""
    box: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    """The head that says what they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.strides) != sorted(set(self.strides)) or any(s & (s - 1) for s in self.strides):
            raise ConfigError(f"strides are {self.strides}", where="strides", expected="rising powers of two")
        if len(self.rpn.anchors.sizes) != len(self.strides) + 1:
            raise ConfigError(
                f"there are anchors for {len(self.rpn.anchors.sizes)} levels",
                where="rpn.anchors.sizes",
                expected=f"{len(self.strides) + 1}, one more than there are strides",
            )


@dataclass(frozen=True, kw_only=True)
class FasterRCNNConfig(TwoStageConfig):
    """Faster R-CNN."""

    kind: Literal["faster_rcnn"] = "faster_rcnn"

    def build(self) -> FasterRCNN:
        """The detector, with random weights."""
        return FasterRCNN(self)


class TwoStageOutputs(NamedTuple):
    """What the parts say.

    Attributes:
        rpn: of every anchor.
        heads: of every head, of the regions that it saw; the first is the box head.
    """

    rpn: RPNOutputs
    heads: tuple[Any, ...]


class FasterRCNN(Detector[TwoStageOutputs]):
    """Backbone, pyramid, proposals, heads.

    Attributes:
        backbone: pixels to one map per stage.
        pyramid: some of these maps to levels of one width.
        rpn: levels to proposals.
        heads: what looks at regions, one after the other; the first is the box head.
    """

    config: TwoStageConfig

    def __init__(self, config: TwoStageConfig) -> None:
        super().__init__(config)
        self.backbone = config.backbone.build_pyramid()
        self._stages = self.backbone.stages_of(config.strides, needs_coarsest=True)
        channels = [self.backbone.channels[stage] for stage in self._stages]
        self.pyramid = FeaturePyramid(channels, config.pyramid_width, has_norm=config.pyramid_norm)
        self.rpn = RPN(config.rpn, config.pyramid_width)
        box = BoxHead(config.box, config.pyramid_width, config.strides, config.num_classes, config.selection)
        self.heads = nn.ModuleList([box])
        if config.freeze_norms:
            self.backbone.freeze_norms()

    @property
    def box(self) -> BoxHead:
        """The first head."""
        return cast(BoxHead, self.heads[0])

    def _heads(self) -> list[RoIHead[Any]]:
        return cast("list[RoIHead[Any]]", list(self.heads))

    def forward(self, images: ImageBatch, targets: Sequence[BoxTarget] | None = None) -> TwoStageOutputs:
        """Raw outputs; with targets the heads see a balanced sample of regions instead of all proposals."""
        canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
        maps = self.backbone(images.pixels).maps
        levels = self.pyramid([maps[stage] for stage in self._stages])
        anchors = self.rpn(levels, canvas)
        proposals = self.rpn.propose(anchors, levels, images.sizes)
        with torch.no_grad():
            own = self.box.config
            regions = Regions.of(proposals) if targets is None else sample_regions(proposals, targets, own)
        said: list[Any] = []
        for index, head in enumerate(self._heads()):
            said.append(head(levels, regions))
            if index + 1 < len(self.heads):
                with torch.no_grad():
                    regions = head.passes_on(said[-1], images.sizes, targets)
        return TwoStageOutputs(anchors, tuple(said))

    def loss(self, outputs: TwoStageOutputs, targets: Sequence[BoxTarget]) -> Losses:
        """``rpn_objectness``, ``rpn_boxes``, ``class``, ``boxes`` and the terms of further heads."""
        terms = self.rpn.loss(outputs.rpn, targets)
        for head, said in zip(self._heads(), outputs.heads, strict=True):
            terms |= head.loss(said, targets)
        return Losses(terms)

    def candidates(self, outputs: TwoStageOutputs, images: ImageBatch) -> list[Candidates]:
        """The regions of each picture, each as an object of every class."""
        return region_candidates(outputs.heads[0], len(images), self.box.config)

    def origin(self, outputs: TwoStageOutputs, image: int, source: int) -> Origin:
        """The proposal, and the level that it was read from."""
        regions: Regions = outputs.heads[0].regions
        box = regions.boxes[regions.image == image][source].detach()
        level = self.level_of(box[None])[0]
        # Samples lie within the box; they touch the next cells, and the corner of a cell may count as its place.
        margin = 2 * self.config.strides[int(self.box.extract.levels(box[None]))]
        name = "final" if level == self.level_of(box.new_zeros(1, 4))[0] else level
        return Origin(f"proposal {source}, read from {level}", box, name, box + box.new_tensor([-1, -1, 1, 1]) * margin)

    def postprocess(self, outputs: TwoStageOutputs, images: ImageBatch) -> list[Detections]:
        """The objects of each picture, in the pixels of the original."""
        boxes = outputs.heads[0].regions.boxes
        none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        found = [Detections(boxes[:0], boxes[:0, 0], none, none, self.classes) for _ in range(len(images))]
        for head, said in zip(self._heads(), outputs.heads, strict=True):
            found = head.predict(found, said, images)
        return found

    def explain_spec(self) -> ExplainSpec:
        """The backbone's stages, the levels of the pyramid (``p5`` to ``p2``) and ``final``, the finest of them."""
        layers = dict(self.backbone.explain_spec().under("backbone").layers)
        layers["bottleneck"] = layers.pop("final")
        names = [f"p{stride.bit_length() - 1}" for stride in self.config.strides]
        for index in reversed(range(len(names))):
            layers[names[index]] = GridLayer(f"pyramid.smooth.{index}")
        layers["final"] = GridLayer("pyramid.smooth.0")
        return ExplainSpec(layers, levels=[*reversed(names[1:]), "final"], rows=Rows("heads.0.extract", self._again))

    def _again(self, maps: Mapping[str, Tensor], outputs: TwoStageOutputs, sources: Tensor) -> Tensor:
        """What the box head sees of some proposals of one picture."""
        names = [f"p{stride.bit_length() - 1}" for stride in self.config.strides]
        levels = [maps["final" if index == 0 else name] for index, name in enumerate(names)]
        boxes = outputs.heads[0].regions.boxes[sources].detach()
        found: Tensor = self.box.extract(levels, boxes, torch.zeros_like(sources))
        return found

    def level_of(self, boxes: Tensor) -> list[str]:
        """The layer of ``explain_spec`` that each region ``[N, 4]`` on the canvas is read from."""
        return [f"p{self.config.strides[level].bit_length() - 1}" for level in self.box.extract.levels(boxes).tolist()]


NARROW = TimmConfig(name="resnet18", arguments={"channels": [16, 32, 64, 128]})
"""A backbone that learns on a CPU."""
SMALL: dict[str, Any] = {
    "backbone": NARROW,
    "pyramid_width": 64,
    "rpn": RPNConfig(
        anchors=AnchorConfig(sizes=((12,), (24,), (48,), (96,), (192,))),
        before_nms=(500, 300),
        after_nms=(500, 200),
    ),
    "box": BoxHeadConfig(hidden=256, canonical=128.0, sampler=BalancedSampler(size=128, positive_share=0.25)),
    "preprocess": letterbox(256),
}
"""Fields of the small variants, here and in ``models.mask_rcnn``: for objects of 10 to 200 pixels."""
TINY: dict[str, Any] = {
    "backbone": TimmConfig(name="resnet18", arguments={"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24]}),
    "pyramid_width": 16,
    "rpn": RPNConfig(
        anchors=AnchorConfig(sizes=((8,), (16,), (24,), (40,), (56,))),
        before_nms=(100, 50),
        after_nms=(100, 150),
        sampler=BalancedSampler(size=64),
    ),
    "box": BoxHeadConfig(size=5, hidden=32, canonical=20.0, sampler=BalancedSampler(size=64, positive_share=0.25)),
    "num_classes": 3,
    "preprocess": letterbox(64),
}
"""Fields of the variants for tests."""
PUBLISHED: dict[str, Any] = {
    "freeze_norms": True,
    "box": BoxHeadConfig(is_aligned=False),
    "preprocess": Preprocess(size=(800, 1333), policy="shorter"),
    "selection": Selection(min_side=0.01),
}
"""Fields of the variants that published weights fit."""
MEDIUM: dict[str, Any] = {"backbone": TimmConfig(name="resnet18"), "freeze_norms": True, "preprocess": letterbox(512)}
"""Fields of the variants for one GPU, or much patience."""


def _sizes() -> dict[str, FasterRCNNConfig]:
    r50 = FasterRCNNConfig(**PUBLISHED)
    return {
        "faster_rcnn_r50": r50,
        "faster_rcnn_r50_v2": replace(
            r50,
            freeze_norms=False,
            pyramid_norm=True,
            rpn=RPNConfig(depth=2),
            box=BoxHeadConfig(is_aligned=False, convs=4, linears=1),
        ),
        "faster_rcnn_r18": FasterRCNNConfig(**MEDIUM),
        "faster_rcnn_mobilenet": FasterRCNNConfig(
            **{**SMALL, "backbone": TimmConfig(name="mobilenetv2_100"), "preprocess": letterbox(320)}
        ),
        "faster_rcnn_small": FasterRCNNConfig(**SMALL),
        "faster_rcnn_test": FasterRCNNConfig(**TINY),
    }


register(_sizes())
