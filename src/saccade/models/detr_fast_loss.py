"""What queries and cells of ``models.detr_fast`` say, and what they learn.

One to one, after Hungarian matching, in every layer of the decoder: Carion et al. 2020, arXiv 2005.12872. Many to one,
the cells of the maps, task-aligned (Feng et al. 2021, arXiv 2108.07755; beside a decoder Zong et al. 2022, arXiv
2211.12860). With known answers, denoising queries: Li et al. 2022, arXiv 2203.01305. A score aims at the overlap of its
box, so that it says both what is there and how well it was found (Zhang et al. 2020, arXiv 2008.13367).

B batch · L layers of the decoder · Q queries · D denoising queries · T cells of all maps · K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.matching.aligned import AlignedAssigner
from saccade.matching.hungarian import HungarianMatcher, Objects, Pairs
from saccade.models.denoise import OF_NOTHING, UNUSED
from saccade.models.set_loss import Matched, Terms, last_and_earlier, objects_in, per_layer, varifocal
from saccade.ops.boxes import from_centres, to_centres
from saccade.types import BoxTarget


class Answers(NamedTuple):
    """What queries say, layer by layer of the decoder.

    Attributes:
        logits: ``[L, B, Q, K]``.
        boxes: ``[L, B, Q, 4]`` centre x, y, width, height, as shares of the canvas.
    """

    logits: Tensor
    boxes: Tensor


class FastOutputs(NamedTuple):
    """What queries and cells say.

    Attributes:
        logits: ``[B, Q, K]`` of the last layer.
        boxes: ``[B, Q, 4]`` centre x, y, width, height, as shares of the canvas.
        auxiliary: of the earlier layers; none in evaluation.
        dense_logits: ``[B, T, K]`` of every cell, map by map, finest first.
        dense_boxes: ``[B, T, 4]``.
        centres: ``[T, 2]`` x and y of the cells on the canvas.
        cells: ``[B, Q]`` int64, the cell that each query started from.
        noisy: of the denoising queries, ``[L, B, D, ...]``; none without targets.
        denoised: ``[B, D]`` int64, the object that each of them has to tell (``models.denoise``).
        canvas: ``[2]`` int64, H and W.
    """

    logits: Tensor
    boxes: Tensor
    auxiliary: Answers
    dense_logits: Tensor
    dense_boxes: Tensor
    centres: Tensor
    cells: Tensor
    noisy: Answers
    denoised: Tensor
    canvas: Tensor


@dataclass(frozen=True, kw_only=True)
class FastLossConfig(Config):
    """What queries and cells learn, and how much each part counts."""

    classes: float = 1.0
    """Weight of the class of queries, denoising queries and cells."""
    boxes: float = 5.0
    """Weight of the L1 distance of boxes."""
    giou: float = 2.0
    """Weight of one minus the generalised IoU."""
    dense: float = 1.0
    """Weight of all that the cells learn, above 0: nothing else tells cells which of them to begin with."""
    denoise: float = 1.0
    """Weight of all that the denoising queries learn."""
    auxiliary: float = 1.0
    """Weight of the earlier layers of the decoder."""
    overlap_power: float = 1.0
    """A query's score aims at this power of the IoU of its box."""
    alpha: float = 0.75
    """Weight of scores that aim at nothing."""
    gamma: float = 2.0
    """How much less they count where they are low already."""
    matcher: HungarianMatcher = field(default_factory=lambda: HungarianMatcher(scores="sigmoid", class_cost=2.0))
    """Which query learns which object."""
    assigner: AlignedAssigner = field(default_factory=lambda: AlignedAssigner(most=4, score_power=1.0))
    """Which cells learn which object."""

    def __post_init__(self) -> None:
        weights = (self.classes, self.boxes, self.giou, self.dense, self.denoise, self.auxiliary, self.overlap_power)
        if min(*weights, self.alpha, self.gamma) < 0:
            raise ConfigError("a weight is negative", where="loss", expected="at least 0")
        if not self.dense:
            raise ConfigError(
                "the cells' scores and boxes would never learn, and queries begin as the best cells",
                where="loss.dense",
                expected="above 0",
                remedy="set it to 1",
            )
        if self.matcher.scores != "sigmoid":
            raise ConfigError("these scores are sigmoids", where="loss.matcher.scores", expected="'sigmoid'")

    def __call__(self, outputs: FastOutputs, targets: Sequence[BoxTarget], finest: int | None = None) -> Terms:
        """All terms.

        Args:
            outputs: of the model, with denoising queries or without.
            targets: of the batch, without crowds; the same as denoising queries were made of.
            finest: how many cells the finest map has, as ``AlignedAssigner`` takes it.
        """
        objects = Objects.of(targets, outputs.canvas.expand(len(targets), 2))
        logits = torch.cat([outputs.auxiliary.logits, outputs.logits[None]])
        boxes = torch.cat([outputs.auxiliary.boxes, outputs.boxes[None]])
        repeated = objects.repeat(len(logits))
        pairs = self.matcher(logits.flatten(0, 1), boxes.flatten(0, 1), repeated)
        terms = self._terms(Answers(logits, boxes), repeated, pairs, objects_in(objects))
        found = last_and_earlier(terms, self.auxiliary)
        found |= {f"dense_{name}": self.dense * term for name, term in self._dense(outputs, targets, finest).items()}
        if self.denoise and outputs.denoised.shape[1]:
            told = self._denoise(outputs.noisy, outputs.denoised, objects)
            found |= {f"denoise_{name}": self.denoise * term.sum() for name, term in told.items()}
        return found

    def _denoise(self, said: Answers, denoised: Tensor, objects: Objects) -> Terms:
        """The terms of denoising queries, whose objects ``[B, D]`` are known."""
        layers, batch = said.logits.shape[:2]
        every = denoised.repeat(layers, 1)  # [L * B, D]
        image, query = torch.nonzero(every > OF_NOTHING).unbind(1)
        pairs = Pairs(image, query, every[image, query])
        count = max(len(image) // layers, 1)
        return self._terms(said, objects.repeat(layers), pairs, count, (every != UNUSED).reshape(layers, batch, -1))

    def _terms(
        self, said: Answers, objects: Objects, pairs: Pairs, count: Tensor | int, is_used: Tensor | None = None
    ) -> Terms:
        """``class``, ``boxes`` and ``giou`` of every layer ``[L]``, per object; what is not used counts nothing."""
        layers, batch = said.logits.shape[:2]
        matched = Matched.of(said.boxes.flatten(0, 1), objects, pairs)
        aims = torch.zeros_like(said.logits, dtype=torch.float32).flatten(0, 1)
        labels = objects.labels[pairs.image, pairs.object]
        aims[pairs.image, pairs.query, labels] = matched.iou().pow(self.overlap_power)
        wrong = varifocal(said.logits.flatten(0, 1), aims, alpha=self.alpha, gamma=self.gamma).sum(-1)
        wrong = wrong.reshape(layers, batch, -1)
        wrong = wrong if is_used is None else wrong * is_used
        layer = pairs.image // batch
        return {
            "class": self.classes * wrong.flatten(1).sum(1) / count,
            "boxes": self.boxes * per_layer(matched.l1(), layer, layers) / count,
            "giou": self.giou * per_layer(1 - matched.giou(), layer, layers) / count,
        }

    def _dense(self, outputs: FastOutputs, targets: Sequence[BoxTarget], finest: int | None) -> Terms:
        """What the cells learn, each object by several of them, as much as they fit it."""
        sides = outputs.canvas.flip(0).repeat(2)
        boxes = from_centres(outputs.dense_boxes.detach()) * sides
        scores = outputs.dense_logits.detach().float().sigmoid()
        aligned = self.assigner(outputs.centres, boxes, scores, targets, finest=finest)
        count = aligned.scores.sum().clamp_min(1)
        wrong = varifocal(outputs.dense_logits, aligned.scores, alpha=self.alpha, gamma=self.gamma)
        chosen = aligned.is_positive
        weight = aligned.scores[chosen].sum(-1)
        matched = Matched(outputs.dense_boxes[chosen], to_centres(aligned.boxes[chosen] / sides))
        return {
            "class": self.classes * wrong.sum() / count,
            "boxes": self.boxes * (matched.l1() * weight).sum() / count,
            "giou": self.giou * ((1 - matched.giou()) * weight).sum() / count,
        }
