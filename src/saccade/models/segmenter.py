"""One class per pixel: the outputs, loss and post-processing that all segmenters share; each has its own file.

Loss over all labelled pixels: Long et al. 2014, arXiv 1411.4038 (summed, as there, or averaged).

B batch · K classes · H, W canvas · h, w picture · A auxiliary heads
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.backbones.base import Routing
from saccade.config import Config
from saccade.errors import ConfigError, InputError
from saccade.losses import boundary_cross_entropy, dice, focal, lovasz_softmax, pixel_cross_entropy
from saccade.models.base import ModelConfig, VisionModel
from saccade.ops.image import Preprocess, to_original
from saccade.types import IGNORE, ImageBatch, Losses, MapTarget, Segmentation, TaskName


def native(side: int) -> Preprocess:
    """Pictures at their own scale, in crops and tiles of ``side`` x ``side`` pixels."""
    return Preprocess(size=(side, side), policy="native")


@dataclass(frozen=True, kw_only=True)
class MapLoss(Config):
    """What a segmenter learns from: a weighted sum of terms, each over the labelled pixels alone."""

    cross_entropy: float = 1.0
    """Weight of the softmax cross-entropy."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the labelled pixels of the batch; with ``sum`` the learning rate has to be far smaller."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in the cross-entropy; empty for 1 each. ``train.class_weights`` takes them from the data."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    dice: float = 0.0
    """Weight of the soft Dice loss, the mean over the classes that are there (Milletari et al. 2016)."""
    focal: float = 0.0
    """Weight of the focal loss (Lin et al. 2017)."""
    focal_gamma: float = 2.0
    """How strongly the focal loss turns from the easy pixels."""
    lovasz: float = 0.0
    """Weight of the Lovász softmax, a surrogate of the IoU itself (Berman et al. 2018)."""
    boundary: float = 0.0
    """Weight of a cross-entropy over the pixels near a boundary between classes alone."""
    boundary_width: int = 2
    """Pixels on either side of a boundary that count as near."""
    auxiliary: float = 0.4
    """Weight of each auxiliary head's cross-entropy, where the model has one."""

    def __post_init__(self) -> None:
        weights = (self.cross_entropy, self.dice, self.focal, self.lovasz, self.boundary)
        if min(*weights, self.auxiliary) < 0 or not any(weights):
            raise ConfigError(f"the weights are {weights}", where="loss", expected="at least 0, one of them above")
        if not 0 <= self.label_smoothing < 1 or self.focal_gamma < 0 or self.boundary_width < 1:
            raise ConfigError("label_smoothing, focal_gamma or boundary_width is out of range", where="loss")


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(ModelConfig):
    """Base of the segmenters' configs."""

    task: ClassVar[TaskName] = "semantic"
    least_classes: ClassVar[int] = 2
    num_classes: int = 21
    """Number of pixel classes; a background is one of them."""
    preprocess: Preprocess = field(default_factory=lambda: native(256))
    """How pictures become pixels; with ``native``, ``size`` is the size of training crops and of tiles."""
    loss: MapLoss = field(default_factory=MapLoss)
    """What it learns from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes > IGNORE:
            raise ConfigError(f"num_classes is {self.num_classes}", where="num_classes", expected=f"at most {IGNORE}")
        if self.preprocess.policy == "crop":
            expected = "'native', 'letterbox' or 'stretch'"
            raise ConfigError("a crop leaves pixels without a label", where="preprocess.policy", expected=expected)
        if self.loss.class_weights and len(self.loss.class_weights) != self.num_classes:
            found = f"{len(self.loss.class_weights)} class weights for {self.num_classes} classes"
            raise ConfigError(found, where="loss.class_weights")


class SegmenterOutputs(NamedTuple):
    """Raw outputs of a segmenter.

    Attributes:
        logits: ``[B, K, H, W]`` at the resolution of the canvas.
        auxiliary: ``[A, B, K, H, W]`` logits of auxiliary heads; A = 0 without, and always in evaluation mode.
        routing: what the routers did; M = 0 rows without experts.
    """

    logits: Tensor
    auxiliary: Tensor
    routing: Routing


class Segmenter(VisionModel[SegmenterOutputs, MapTarget, Segmentation]):
    """Base of the segmenters: a subclass says how pixels become logits, and where to look when explaining.

    Attributes:
        stride: sides of what ``segment`` gets are multiples of this; ``forward`` pads for it.
        sees_all: whether every pixel looks at the whole canvas, so that a larger one than in training is another task:
            large pictures then come in tiles of ``preprocess.size``.
    """

    config: SegmenterConfig
    stride: int = 1
    sees_all: bool = False

    @abc.abstractmethod
    def segment(self, pixels: Tensor) -> SegmenterOutputs:
        """Pixels ``[B, 3, H, W]``, sides multiples of ``stride``, to logits of the same height and width."""

    def forward(self, images: ImageBatch, targets: Sequence[MapTarget] | None = None) -> SegmenterOutputs:
        """Logits ``[B, K, H, W]`` for a canvas of any size; targets change nothing."""
        height, width = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
        below, beside = -height % self.stride, -width % self.stride
        if not below and not beside:
            return self.segment(images.pixels)
        # The border is repeated: a black one would be an edge that the picture does not have.
        outputs = self.segment(F.pad(images.pixels, (0, beside, 0, below), mode="replicate"))
        cut = (..., slice(height), slice(width))
        return outputs._replace(logits=outputs.logits[cut], auxiliary=outputs.auxiliary[cut])

    def loss(self, outputs: SegmenterOutputs, targets: Sequence[MapTarget]) -> Losses:
        """The weighted terms of ``config.loss`` over the labelled pixels.

        Raises:
            InputError: where a target is not of the canvas's size, or has a label that is no class.
        """
        logits, config = outputs.logits, self.config.loss
        labels = stack_maps(targets, (int(logits.shape[-2]), int(logits.shape[-1]))).to(logits.device)
        weight = logits.new_tensor(config.class_weights, dtype=torch.float32) if config.class_weights else None

        def over_pixels(scores: Tensor) -> Tensor:
            smoothing = config.label_smoothing
            return pixel_cross_entropy(scores, labels, weight=weight, reduction=config.reduction, smoothing=smoothing)

        terms: dict[str, Tensor] = {}
        if config.cross_entropy:
            terms["cross_entropy"] = config.cross_entropy * over_pixels(logits)
        if config.dice:
            terms["dice"] = config.dice * dice(logits, labels)
        if config.focal:
            terms["focal"] = config.focal * focal(logits, labels, gamma=config.focal_gamma)
        if config.lovasz:
            terms["lovasz"] = config.lovasz * lovasz_softmax(logits, labels)
        if config.boundary:
            near = boundary_cross_entropy(logits, labels, width=config.boundary_width)
            terms["boundary"] = config.boundary * near
        for index, auxiliary in enumerate(outputs.auxiliary):
            terms[f"auxiliary_{index}"] = config.auxiliary * over_pixels(auxiliary)
        with torch.no_grad():
            known = labels != IGNORE
            is_right = (logits.argmax(1) == labels) & known
            logs = {"pixel_accuracy": is_right.sum() / known.sum().clamp_min(1)}
        return Losses(terms, logs)

    def postprocess(self, outputs: SegmenterOutputs, images: ImageBatch) -> list[Segmentation]:
        """The likeliest class of every pixel of the original pictures, with its probability."""
        canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
        predictions = []
        for logits, geometry in zip(outputs.logits.detach(), images.geometries, strict=True):
            values = to_original(logits, canvas, geometry)[0]
            highest, labels = values.max(dim=0)
            # The softmax of the likeliest class alone: no need to write down those of the others.
            confidence = (values - highest).exp_().sum(dim=0).reciprocal_()
            predictions.append(Segmentation(labels.to(torch.uint8), confidence.half(), self.classes))
        return predictions


def stack_maps(targets: Sequence[MapTarget], canvas: tuple[int, int]) -> Tensor:
    """Label maps ``[B, H, W]`` int64.

    Raises:
        InputError: where one is not on the canvas.
    """
    for index, target in enumerate(targets):
        if tuple(target.labels.shape) != canvas:
            raise InputError(
                f"the label map is {tuple(target.labels.shape)}, the canvas {canvas}",
                where=f"targets[{index}]",
                expected="label maps in the pixels of the canvas",
                remedy="take batches from a training loader, which crops picture and label map together",
            )
    return torch.stack([target.labels for target in targets]).long()
