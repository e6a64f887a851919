"""Set prediction: every object is learned by exactly one query, all other queries learn that there is nothing.

Carion et al. 2020 (DETR), arXiv 2005.12872: cross-entropy in which "no object" counts less, L1 and GIoU of the boxes,
the same again for every layer of the decoder. The simpler form (``notes``) has the class's cross-entropy and the
squared error (L2) of the boxes. Scores that say with one number what an object is and how well its box fits: Zhang et
al. 2020 (VarifocalNet), arXiv 2008.13367; with a power of the overlap as the aim: Huang et al. 2024 (DEIM), arXiv
2412.04234.

B batch · L layers · Q queries · K classes · M objects of the picture that has most · R pairs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError
from saccade.matching.hungarian import HungarianMatcher, Objects, Pairs
from saccade.ops.boxes import from_centres, generalized_iou, paired_iou

Terms = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class SetLossConfig(Config):
    """What queries learn, and which query learns which object."""

    kind: Literal["published", "notes"] = "published"
    """Class, L1 and GIoU, or class probability and L2 alone; matching follows the same measure."""
    classes: float = 1.0
    """Weight of the class, in the loss and in matching."""
    boxes: float = 5.0
    """Weight of the distance of the boxes, in the loss and in matching."""
    giou: float = 2.0
    """Weight of the generalised IoU, in the loss and in matching; not used by ``notes``."""
    no_object: float = 0.1
    """Weight of "no object" among the classes: most queries have none."""
    auxiliary: float = 1.0
    """Weight of the earlier layers of the decoder; 0 leaves them out."""

    def __post_init__(self) -> None:
        if min(self.classes, self.boxes, self.giou, self.auxiliary) < 0 or self.no_object <= 0:
            raise ConfigError("a weight is negative, or no_object is not above 0", where="loss")

    def matcher(self) -> HungarianMatcher:
        """The matcher that measures as the loss does."""
        is_published = self.kind == "published"
        return HungarianMatcher(
            distance="l1" if is_published else "l2",
            class_cost=self.classes,
            box_cost=self.boxes,
            giou_cost=self.giou if is_published else 0.0,
        )

    def __call__(self, logits: Tensor, boxes: Tensor, objects: Objects) -> Terms:
        """The terms of all layers, the last one's under plain names, the sums of earlier ones under ``aux_*``.

        Args:
            logits: ``[L, B, Q, K + 1]``, "no object" last.
            boxes: ``[L, B, Q, 4]``, as those of the objects.
            objects: of the batch.
        """
        layers, batch = logits.shape[:2]
        repeated = objects.repeat(layers)
        pairs = self.matcher()(logits.flatten(0, 1), boxes.flatten(0, 1), repeated)
        terms = {"class": self.classes * self._classes(logits, repeated, pairs)}
        matched = Matched.of(boxes.flatten(0, 1), repeated, pairs)
        distance = matched.l1() if self.kind == "published" else matched.l2()
        terms["boxes"] = self.boxes * per_layer(distance, pairs.image // batch, layers) / objects_in(objects)
        if self.kind == "published":
            missed = per_layer(1 - matched.giou(), pairs.image // batch, layers)
            terms["giou"] = self.giou * missed / objects_in(objects)
        return last_and_earlier(terms, self.auxiliary)

    def _classes(self, logits: Tensor, objects: Objects, pairs: Pairs) -> Tensor:
        """Weighted cross-entropy of each layer, ``[L]``."""
        no_object = logits.shape[-1] - 1
        wanted = torch.full((len(objects.labels), logits.shape[2]), no_object, device=logits.device)
        wanted[pairs.image, pairs.query] = objects.labels[pairs.image, pairs.object]
        weight = torch.ones(no_object + 1, device=logits.device)
        weight[no_object] = self.no_object
        losses = F.cross_entropy(logits.float().flatten(0, 2), wanted.flatten(), weight, reduction="none")
        sums = weight[wanted].reshape(len(logits), -1).sum(1)
        return losses.reshape(len(logits), -1).sum(1) / sums


class Matched(NamedTuple):
    """Boxes and the objects that they should be, ``[R, 4]`` each, as shares of the extent, float32."""

    boxes: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, boxes: Tensor, objects: Objects, pairs: Pairs) -> Matched:
        """The pairs among boxes ``[B, Q, 4]``."""
        return cls(boxes[pairs.image, pairs.query].float(), objects.boxes[pairs.image, pairs.object])

    def l1(self) -> Tensor:
        """Sum of the absolute differences, ``[R]``."""
        return (self.boxes - self.wanted).abs().sum(-1)

    def l2(self) -> Tensor:
        """Sum of the squared differences, ``[R]``."""
        return (self.boxes - self.wanted).square().sum(-1)

    def giou(self) -> Tensor:
        """Generalised IoU, ``[R]``."""
        return generalized_iou(from_centres(self.boxes), from_centres(self.wanted))

    def iou(self) -> Tensor:
        """IoU without a gradient, ``[R]``."""
        return paired_iou(from_centres(self.boxes.detach()), from_centres(self.wanted))


def varifocal(logits: Tensor, aims: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Binary cross-entropy towards aimed scores, each term ``[...]``: what aims at nothing counts alpha * score^gamma.

    Differs from the paper (VarifocalNet, equation 2): there what aims at an object counts as much as it aims at, here
    it counts 1 whatever that is, so that an object whose boxes are still far off is not passed over.

    Args:
        logits: ``[..., K]``.
        aims: ``[..., K]`` in [0, 1]; above 0 only for the class of an object.
        alpha: weight of what aims at nothing.
        gamma: how much less it counts where it is already believed.
    """
    logits = logits.float()
    believed = logits.detach().sigmoid()
    weight = torch.where(aims > 0, torch.ones_like(aims), alpha * believed.pow(gamma))
    return F.binary_cross_entropy_with_logits(logits, aims, weight, reduction="none")


def objects_in(objects: Objects) -> Tensor:
    """Number of objects of a batch, at least 1, ``[]``."""
    return objects.is_object.sum().clamp_min(1)


def per_layer(values: Tensor, layer: Tensor, layers: int) -> Tensor:
    """Sums ``[L]`` of values ``[R]`` by the layer ``[R]`` that each comes from."""
    return values.new_zeros(layers).index_add(0, layer, values)


def last_and_earlier(terms: Mapping[str, Tensor], auxiliary: float) -> Terms:
    """Terms ``[L]`` as scalars: the last layer's, and, with their weight, the sums of earlier ones as ``aux_*``."""
    found = {name: values[-1] for name, values in terms.items()}
    if auxiliary and any(len(values) > 1 for values in terms.values()):
        found |= {f"aux_{name}": auxiliary * values[:-1].sum() for name, values in terms.items()}
    return found
