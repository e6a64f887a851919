"""A classifier whose classes are words: a picture's vector against those of the classes' prompts.

Radford et al. 2021 (CLIP), arXiv 2103.00020, section 3.1. Vectors of the prompts are computed once and stay in the
model, so its file needs no text tower. Labels of single patches: Zhou et al. 2021 (MaskCLIP), arXiv 2112.01071.

B batch · K classes · D width of the shared space · h, w grid
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from saccade.backbones.base import Routing
from saccade.backbones.vit import ViTConfig
from saccade.errors import InputError
from saccade.losses import cross_entropy
from saccade.models.base import icons
from saccade.models.classifier import ClassifierOutputs, stack_labels
from saccade.models.image_tower import ImageTower, TowerConfig, unit
from saccade.registry import register
from saccade.types import Classification, ClassTarget, ImageBatch, Losses, TaskName

_STEPS = 60
"""Halvings of the interval in which the temperature is looked for."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(TowerConfig):
    """An image tower and the vectors of K classes."""

    task: ClassVar[TaskName] = "classification"
    kind: Literal["zero_shot"] = "zero_shot"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts whose mean each class is; for people, the vectors are in the weights."""

    def build(self) -> ZeroShotClassifier:
        """The classifier, with random weights."""
        return ZeroShotClassifier(self)


class ZeroShotClassifier(ImageTower[ClassifierOutputs, ClassTarget, Classification]):
    """The image tower, and one vector per class.

    Attributes:
        weight: ``[K, D]``, vectors of length 1.
        logit_scale: ``[]``, what cosines are multiplied with: the inverse temperature.
        logit_bias: ``[]``, added after that.
    """

    config: ZeroShotConfig
    weight: Tensor
    logit_scale: Tensor
    logit_bias: Tensor

    def __init__(self, config: ZeroShotConfig, shared: ImageTower[Any, Any, Any] | None = None) -> None:
        super().__init__(config, shared)
        self.register_buffer("weight", unit(torch.randn(config.num_classes, config.embed_dim)))
        self.register_buffer("logit_scale", torch.tensor(10.0))
        self.register_buffer("logit_bias", torch.tensor(0.0))

    def forward(self, images: ImageBatch, targets: Sequence[ClassTarget] | None = None) -> ClassifierOutputs:
        """Logits ``[B, K]`` float32; targets change nothing."""
        logits = self._logits(self.encode_images(images))
        return ClassifierOutputs(logits, Routing.none(images.pixels))

    def _logits(self, vectors: Tensor) -> Tensor:
        """Vectors ``[..., D]`` to ``[..., K]``."""
        cosines = vectors @ self.weight.float().T
        return self.logit_scale.float() * cosines + self.logit_bias.float()

    def patch_logits(self, images: ImageBatch) -> Tensor:
        """Which class each patch is like, ``[B, K, h, w]`` float32."""
        return self._logits(self.encode_patches(images).movedim(1, -1)).movedim(-1, 1)

    def loss(self, outputs: ClassifierOutputs, targets: Sequence[ClassTarget]) -> Losses:
        """Cross-entropy; what is learned is the image tower, the classes stay where their words are."""
        labels = stack_labels(targets, outputs.logits.shape[1]).to(outputs.logits.device)
        with torch.no_grad():
            hard = labels.argmax(dim=1) if labels.ndim == 2 else labels
            logs = {"accuracy": (outputs.logits.argmax(dim=1) == hard).float().mean()}
        return Losses({"cross_entropy": cross_entropy(outputs.logits, labels)}, logs)

    def postprocess(self, outputs: ClassifierOutputs, images: ImageBatch) -> list[Classification]:
        """Softmax probabilities, one ``Classification`` per picture."""
        scores = outputs.logits.detach().float().softmax(dim=-1)
        return [Classification(row, self.classes) for row in scores]

    def calibrate(self, logits: Tensor, labels: Tensor) -> float:
        """Set the temperature so that probabilities fit labelled pictures; no answer changes, only how sure it is.

        Guo et al. 2017, arXiv 1706.04599, section 4.2: the factor that makes the cross-entropy least.

        Args:
            logits: ``[B, K]`` of this model, as it is now.
            labels: ``[B]`` int64.

        Returns:
            What the scale was multiplied with; below 1 where the model was too sure.

        Raises:
            InputError: where there are no pictures.
        """
        if not len(logits):
            raise InputError("there are no labelled pictures to calibrate on", where="calibrate")
        factor = best_factor(logits, labels)
        with torch.no_grad():
            self.logit_scale.mul_(factor)
            self.logit_bias.mul_(factor)
        return factor


def best_factor(logits: Tensor, labels: Tensor) -> float:
    """The factor, from 0.001 to 1000, whose multiple of logits ``[B, K]`` has the least cross-entropy.

    The cross-entropy is convex in the factor, so the place where its slope changes sign is halved towards.
    """
    logits = logits.detach().double()
    right = logits.gather(1, labels[:, None])[:, 0]
    low, high = -3.0, 3.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        expected = ((10**middle * logits).softmax(dim=1) * logits).sum(dim=1)
        if float((expected - right).mean()) > 0:
            high = middle
        else:
            low = middle
    return float(10 ** ((low + high) / 2))


def _tests() -> dict[str, ZeroShotConfig]:
    backbone = ViTConfig(image_size=(32, 32), patch_size=8, embed_dim=32, depth=2, num_heads=4, stem_norm=True)
    preprocess = icons(32)
    return {
        "zero_shot_test": ZeroShotConfig(
            backbone=backbone, pool="token", embed_dim=16, num_classes=5, preprocess=preprocess
        )
    }


register(_tests())
