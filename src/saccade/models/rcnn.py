"""R-CNN: regions from outside the network, each warped and run through it alone; class and refined box.

Girshick et al. 2014, arXiv 1311.2524. Selective search (``ops.regions``) proposes regions from the pixels; each is
warped to a square with some context around it; a network says which class it is or that it is background, and how to
move and stretch the box (appendix C). Accurate and slow: the network runs once per region.

Differs from the paper: any backbone of timm; softmax over classes and background, and the box codes, learn together
(there support vector machines and ridge regression came after); what lies beyond the picture has the mean colour.

R regions · K classes · S side of a warped region
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from saccade.backbones.timm import TimmConfig
from saccade.errors import ConfigError
from saccade.matching.sample import BalancedSampler
from saccade.models.detector import letterbox
from saccade.models.regionwise import QUICK_SEARCH, RegionClassifier, RegionDetector, WarpConfig, searched
from saccade.models.roi_heads import BoxOutputs
from saccade.ops.regions import RegionMemory, SelectiveSearch
from saccade.registry import register
from saccade.types import ExplainSpec, GridLayer, ImageBatch


@dataclass(frozen=True, kw_only=True)
class RCNNConfig(WarpConfig):
    """R-CNN: how regions are found, and what looks at them."""

    kind: Literal["rcnn"] = "rcnn"
    backbone: TimmConfig = field(default_factory=TimmConfig)
    """What turns a warped region into maps; the last one is read."""
    search: SelectiveSearch = field(default_factory=SelectiveSearch)
    """What proposes regions."""
    code_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the four codes, which bring them to a size of about 1."""
    remembered: int = 2000
    """Of how many pictures the proposals are kept: without geometric augmentation each is searched once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remembered < 0:
            raise ConfigError(f"remembered is {self.remembered}", where="remembered", expected="at least 0")

    def build(self) -> RCNN:
        """The detector, with random weights."""
        return RCNN(self)


class RCNN(RegionDetector):
    """Selective search, and a network that sees one region at a time."""

    config: RCNNConfig

    def __init__(self, config: RCNNConfig) -> None:
        super().__init__(config, replace(config.learning(), code_weights=config.code_weights))
        self.memory = RegionMemory(config.search, config.remembered)
        self.pixels = nn.Identity()  # the pictures pass here, for explanation to record: no other grid covers them
        self.network = RegionClassifier(config.backbone, config)

    def announcement(self, size: tuple[int, int]) -> str:
        """What each picture costs."""
        return (
            f"up to {self.config.search.limit:,} regions of each picture, found by selective search, go through the "
            f"network one by one"
        )

    def propose(self, images: ImageBatch) -> list[Tensor]:
        """What selective search finds in each picture."""
        found: list[Tensor] = searched(self.memory, images, self.preprocess)
        return found

    def look(self, images: ImageBatch, boxes: Sequence[Tensor]) -> BoxOutputs:
        """Logits and codes of every region."""
        outputs: BoxOutputs = self.network(self.pixels(images.pixels), images.sizes, boxes)
        return outputs

    def explain_spec(self) -> ExplainSpec:
        """``final``: the pixels, the only grid over the whole picture."""
        return ExplainSpec({"final": GridLayer("pixels")})


def _variants() -> dict[str, RCNNConfig]:
    narrow = TimmConfig(name="resnet18", arguments={"channels": [16, 32, 64, 128]})
    tiny = TimmConfig(name="resnet18", arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]})
    r18 = RCNNConfig()
    small = replace(
        r18,
        backbone=narrow,
        search=QUICK_SEARCH,
        side=64,
        context=6,
        sampler=BalancedSampler(size=32, positive_share=0.25),
        preprocess=letterbox(256),
    )
    return {
        "rcnn_r18": r18,
        "rcnn_r50": replace(r18, backbone=TimmConfig(name="resnet50")),
        "rcnn_small": small,
        "rcnn_test": replace(
            small,
            num_classes=3,
            backbone=tiny,
            search=replace(QUICK_SEARCH, limit=20),
            side=48,
            sampler=BalancedSampler(size=16, positive_share=0.25),
            preprocess=letterbox(64),
        ),
    }


register(_variants())
