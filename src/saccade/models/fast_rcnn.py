"""Fast R-CNN: the network runs once over the picture; regions are read from its map.

Girshick 2015, arXiv 1504.08083. The proposals are R-CNN's (selective search, from the pixels); RoI pooling, or RoIAlign
(He et al. 2017, arXiv 1703.06870), brings the part of the map under each to one size; linear layers say which class it
is or that it is background, and how to move and stretch the box. Class and box learn together.

Differs from the paper: any backbone of timm; its last map is read, of stride 16 if its arguments say so, or a feature
pyramid (Lin et al. 2016, arXiv 1612.03144), so that all rungs can be compared on one backbone.

R regions · K classes · L levels · D their width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from saccade.backbones.timm import TimmConfig
from saccade.errors import ConfigError
from saccade.matching.sample import BalancedSampler
from saccade.models.detector import DetectorConfig, letterbox
from saccade.models.regionwise import QUICK_SEARCH, RegionDetector, searched
from saccade.models.roi_heads import BoxHead, BoxHeadConfig, BoxOutputs, Regions
from saccade.nn.fpn import FeaturePyramid
from saccade.ops.regions import RegionMemory, SelectiveSearch
from saccade.registry import register
from saccade.types import ExplainSpec, GridLayer, ImageBatch

FINEST = 4
"""Stride of the finest map that a pyramid stands on."""


@dataclass(frozen=True, kw_only=True)
class FastRCNNConfig(DetectorConfig):
    """Fast R-CNN: how regions are found, what sees, what says what they are."""

    kind: Literal["fast_rcnn"] = "fast_rcnn"
    backbone: TimmConfig = field(default_factory=lambda: TimmConfig(name="resnet18", arguments={"output_stride": 16}))
    """What turns pixels into maps; ``{"output_stride": 16}`` dilates a ResNet's last stage to the paper's stride."""
    freeze_norms: bool = False
    """Whether the backbone's batch norms stay as they are in training, as published: statistics, which a handful of
    pictures would spoil, weights and biases. For backbones that are trained already."""
    pyramid_width: int = 0
    """D, width of a feature pyramid over the maps from stride 4; 0 reads the backbone's last map alone."""
    box: BoxHeadConfig = field(
        default_factory=lambda: BoxHeadConfig(roi="pool", sampler=BalancedSampler(size=64, positive_share=0.25))
    )
    """The head that says what regions are; ``roi`` chooses RoI pooling, as published, or RoIAlign."""
    search: SelectiveSearch = field(default_factory=SelectiveSearch)
    """What proposes regions."""
    remembered: int = 2000
    """Of how many pictures the proposals are kept: without geometric augmentation each is searched once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.remembered, self.pyramid_width) < 0:
            raise ConfigError("remembered or pyramid_width is below 0", where="fast_rcnn", expected="at least 0")

    def build(self) -> FastRCNN:
        """The detector, with random weights."""
        return FastRCNN(self)


class FastRCNN(RegionDetector):
    """Backbone, perhaps a pyramid, selective search, box head."""

    config: FastRCNNConfig

    def __init__(self, config: FastRCNNConfig) -> None:
        super().__init__(config, config.box)
        self.memory = RegionMemory(config.search, config.remembered)
        self.pyramid: FeaturePyramid | None = None
        if config.pyramid_width:
            self.backbone = config.backbone.build_pyramid()
            last = {stride: stage for stage, stride in enumerate(self.backbone.strides) if stride >= FINEST}
            self._stages, strides, width = list(last.values()), list(last), config.pyramid_width
            channels = [self.backbone.channels[stage] for stage in self._stages]
            self.pyramid = FeaturePyramid(channels, width, has_top=False)
        else:
            self.backbone = config.backbone.build()
            self._stages, strides, width = [-1], [self.backbone.strides[-1]], self.backbone.channels[-1]
        self.box = BoxHead(config.box, width, strides, config.num_classes, config.selection)
        if config.freeze_norms:
            self.backbone.freeze_norms()

    def propose(self, images: ImageBatch) -> list[Tensor]:
        """What selective search finds in each picture."""
        found: list[Tensor] = searched(self.memory, images, self.preprocess)
        return found

    def look(self, images: ImageBatch, boxes: Sequence[Tensor]) -> BoxOutputs:
        """Logits and codes of every region, from one pass over the pictures."""
        outputs: BoxOutputs = self.box(self.levels(images.pixels), Regions.of(boxes))
        return outputs

    def levels(self, pixels: Tensor) -> Sequence[Tensor]:
        """Pixels ``[B, 3, H, W]`` to the maps that regions are read from, finest first."""
        maps = self.backbone(pixels).maps
        chosen = [maps[stage] for stage in self._stages]
        return chosen if self.pyramid is None else self.pyramid(chosen)

    def explain_spec(self) -> ExplainSpec:
        """The backbone's stages and ``final``, the map that regions are read from; of a pyramid each level (``p2``)."""
        layers = dict(self.backbone.explain_spec().under("backbone").layers)
        if self.pyramid is None:
            return ExplainSpec(layers)
        layers["bottleneck"] = layers.pop("final")
        for index in reversed(range(len(self._stages))):
            level = self.box.extract.strides[index].bit_length() - 1
            layers[f"p{level}"] = GridLayer(f"pyramid.smooth.{index}")
        return ExplainSpec({**layers, "final": GridLayer("pyramid.smooth.0")})


def _variants() -> dict[str, FastRCNNConfig]:
    channels = [16, 32, 64, 128]
    narrow = TimmConfig(name="resnet18", arguments={"channels": channels, "output_stride": 16})
    layers = {"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]}
    r18 = FastRCNNConfig()
    small_box = BoxHeadConfig(hidden=256, canonical=128.0, sampler=BalancedSampler(size=64, positive_share=0.25))
    small = replace(r18, backbone=narrow, box=small_box, search=QUICK_SEARCH, preprocess=letterbox(256))
    test_box = BoxHeadConfig(size=3, hidden=32, canonical=28.0, sampler=BalancedSampler(size=32, positive_share=0.25))
    test = replace(
        small,
        num_classes=3,
        backbone=TimmConfig(name="resnet18", arguments={**layers, "output_stride": 8}),
        box=test_box,
        search=replace(QUICK_SEARCH, limit=20),
        preprocess=letterbox(64),
    )
    return {
        "fast_rcnn_r18": r18,
        "fast_rcnn_r50": replace(r18, backbone=TimmConfig(name="resnet50", arguments={"output_stride": 16})),
        "fast_rcnn_r18_fpn": replace(
            r18,
            backbone=TimmConfig(name="resnet18"),
            pyramid_width=256,
            box=BoxHeadConfig(sampler=BalancedSampler(size=64, positive_share=0.25)),
        ),
        "fast_rcnn_small": small,
        "fast_rcnn_small_fpn": replace(
            small, backbone=TimmConfig(name="resnet18", arguments={"channels": channels}), pyramid_width=64
        ),
        "fast_rcnn_test": replace(test, box=replace(test_box, roi="pool")),
        "fast_rcnn_fpn_test": replace(test, backbone=TimmConfig(name="resnet18", arguments=layers), pyramid_width=16),
    }


register(_variants())
