"""Sliding window: every box of a fixed set of places, sizes and shapes is classified as an object or background.

As in Sermanet et al. 2013, arXiv 1312.6229, but without sharing anything between windows: each is cut out, warped and
run through the network alone, then non-maximum suppression keeps the likeliest. Nothing is refined, so a box is never
better than the nearest window. It is the plain idea at its honest price: ``SlidingWindow.num_windows`` tells it before.

R windows · K classes · S side of a warped window · h, w picture on the canvas
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from saccade.backbones.timm import TimmConfig
from saccade.errors import ConfigError
from saccade.matching.assign import IoUAssigner
from saccade.matching.sample import BalancedSampler
from saccade.models.detector import Selection, letterbox
from saccade.models.regionwise import RegionClassifier, RegionDetector, WarpConfig
from saccade.models.roi_heads import BoxOutputs
from saccade.registry import register
from saccade.types import BoxTarget, ExplainSpec, GridLayer, ImageBatch, Losses


@dataclass(frozen=True, kw_only=True)
class SlidingWindowConfig(WarpConfig):
    """Which windows there are, and what looks at them."""

    kind: Literal["sliding_window"] = "sliding_window"
    backbone: TimmConfig = field(default_factory=TimmConfig)
    """What turns a warped window into maps; the last one is read."""
    sides: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0)
    """Square roots of the windows' areas, in pixels of the canvas."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights over widths; every side comes in every ratio."""
    step: float = 0.25
    """Farthest distance of neighbouring windows, as a share of their width and height."""
    side: int = 64
    """S, pixels per side of a warped window."""
    context: int = 4
    """Pixels of the warped frame that show what is around the window."""
    assigner: IoUAssigner = field(default_factory=lambda: IoUAssigner(positive=0.5, negative=0.4, keep_best=True))
    """Which windows are objects, in training; with ``keep_best`` an object that fits no window has its best one still,
    unless that overlaps another object more. The objects themselves are among the windows that are learned from."""
    sampler: BalancedSampler = field(default_factory=lambda: BalancedSampler(size=64, positive_share=0.25))
    """How many windows of one picture are learned from."""
    selection: Selection = field(default_factory=lambda: Selection(nms_iou=0.3))
    """Which windows become detections; neighbours overlap much, so suppression is stricter than elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sides or not self.ratios or min(*self.sides, *self.ratios) <= 0:
            raise ConfigError("sides or ratios are empty or not positive", where="sliding_window")
        if not 0 < self.step <= 1:
            raise ConfigError(f"step is {self.step}", where="step", expected="in (0, 1]: no pixel is left out")

    def build(self) -> SlidingWindow:
        """The detector, with random weights."""
        return SlidingWindow(self)


class SlidingWindow(RegionDetector):
    """Windows, and a network that sees one at a time."""

    config: SlidingWindowConfig

    def __init__(self, config: SlidingWindowConfig) -> None:
        super().__init__(config, config.learning())
        self.pixels = nn.Identity()  # the pictures pass here, for explanation to record: no other grid covers them
        self.network = RegionClassifier(config.backbone, config, refines=False)

    def num_windows(self, size: tuple[int, int]) -> int:
        """How many windows a picture ``(h, w)`` on the canvas has."""
        return 1 + sum(rows * columns for rows, columns in (grid.counts for grid in self._grids(size)))

    def announcement(self, size: tuple[int, int]) -> str:
        """The number of windows, for people to know before it starts."""
        return (
            f"{self.num_windows(size):,} windows of each picture of {size[0]}x{size[1]} pixels go through the network"
        )

    def windows(self, size: tuple[int, int]) -> Tensor:
        """The windows ``[R, 4]`` xyxy inside a picture ``(h, w)``; the whole picture is the last one."""
        height, width = size
        whole = torch.tensor([[0.0, 0.0, float(width), float(height)]])
        return torch.cat([*(grid.boxes() for grid in self._grids(size)), whole])

    def propose(self, images: ImageBatch) -> list[Tensor]:
        """The windows of each picture."""
        return [self.windows(size).to(images.pixels.device) for size in images.sizes]

    def look(self, images: ImageBatch, boxes: Sequence[Tensor]) -> BoxOutputs:
        """Logits of every window; the codes are 0, for a window stays where it is."""
        outputs: BoxOutputs = self.network(self.pixels(images.pixels), images.sizes, boxes)
        return outputs

    def loss(self, outputs: BoxOutputs, targets: Sequence[BoxTarget]) -> Losses:
        """``class``: softmax over the classes and background."""
        return Losses({"class": super().loss(outputs, targets).terms["class"]})

    def explain_spec(self) -> ExplainSpec:
        """``final``: the pixels, the only grid over the whole picture."""
        return ExplainSpec({"final": GridLayer("pixels")})

    def _grids(self, size: tuple[int, int]) -> list[_Grid]:
        """All windows of one size and shape, each; those that the picture cannot hold are left out."""
        shapes = [
            (side * math.sqrt(ratio), side / math.sqrt(ratio))
            for side in self.config.sides
            for ratio in self.config.ratios
        ]
        return [_Grid(size, shape, self.config.step) for shape in shapes if shape[0] <= size[0] and shape[1] <= size[1]]


class _Grid:
    """Windows of one shape ``(height, width)``, evenly spread from border to border of a picture ``(h, w)``."""

    def __init__(self, size: tuple[int, int], shape: tuple[float, float], step: float) -> None:
        self.room = (size[0] - shape[0], size[1] - shape[1])
        self.shape = shape
        # The small number keeps a step that fits exactly from becoming two.
        rows, columns = (
            1 + math.ceil(room / (side * step) - 1e-6) for room, side in zip(self.room, shape, strict=True)
        )
        self.counts = (rows, columns)

    def boxes(self) -> Tensor:
        """``[rows * columns, 4]`` xyxy, in reading order."""
        top, left = (
            torch.linspace(0, room, count) if count > 1 else torch.zeros(1)
            for room, count in zip(self.room, self.counts, strict=True)
        )
        down, right = torch.meshgrid(top, left, indexing="ij")
        corners = torch.stack([right, down], dim=-1).reshape(-1, 2)
        return torch.cat([corners, corners + torch.tensor([self.shape[1], self.shape[0]])], dim=1)


def _variants() -> dict[str, SlidingWindowConfig]:
    narrow = TimmConfig(name="resnet18", arguments={"channels": [16, 32, 64, 128]})
    tiny = TimmConfig(name="resnet18", arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]})
    r18 = SlidingWindowConfig()
    small = replace(
        r18,
        backbone=narrow,
        sides=(20.0, 32.0, 52.0, 84.0),
        step=0.35,
        side=32,
        context=3,
        sampler=BalancedSampler(size=32, positive_share=0.25),
        preprocess=letterbox(128),
    )
    return {
        "sliding_window_r18": r18,
        "sliding_window_small": small,
        "sliding_window_test": replace(
            small,
            num_classes=3,
            backbone=tiny,
            sides=(24.0, 40.0),
            ratios=(1.0,),
            side=32,
            sampler=BalancedSampler(size=16, positive_share=0.25),
            preprocess=letterbox(64),
        ),
    }


register(_variants())
