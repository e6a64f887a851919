"""A detector as explanation sees it: raw candidates instead of raw outputs, and which layer an object was read from.

What a score asks of a detector is a raw candidate (``Detections.source`` says which), and what the candidates are only
the model knows. So the model is wrapped: ``Watched`` passes on the candidates, and scores need to know nothing else.

B batch · R raw candidates of one picture · K classes · N objects with masks · S cells per side of a mask
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from saccade.explanation.attribution import ScoreFn
from saccade.explanation.record import recording
from saccade.models.detector import Candidates, Detector, MaskEvidence
from saccade.ops.image import Preprocess
from saccade.types import Classes, Detections, ExplainSpec, GridLayer, ImageBatch


class Found(NamedTuple):
    """What a detector says of a batch.

    Attributes:
        candidates: of each picture.
        masks: of each picture; None where the model has none.
        sizes: ``(h, w)`` of each picture on the canvas.
        outputs: of the model itself.
    """

    candidates: list[Candidates]
    masks: list[MaskEvidence] | None
    sizes: tuple[tuple[int, int], ...]
    outputs: Any


class Watched(nn.Module):
    """A detector whose outputs are ``Found``.

    Args:
        detector: left as it is.
    """

    def __init__(self, detector: Detector[Any]) -> None:
        super().__init__()
        self.detector = detector
        self.training = detector.training

    @property
    def classes(self) -> Classes:
        """Of the detector."""
        return self.detector.classes

    @property
    def preprocess(self) -> Preprocess:
        """Of the detector."""
        return self.detector.preprocess

    def forward(self, images: ImageBatch) -> Found:
        """The candidates of each picture."""
        outputs = self.detector(images)
        candidates = self.detector.candidates(outputs, images)
        return Found(candidates, self.detector.mask_evidence(outputs, images), images.sizes, outputs)

    def boxes_only(self) -> Watched:
        """The same without what only masks need."""
        return Watched(self.detector.boxes_only())

    def detections(self, found: Found, images: ImageBatch) -> list[Detections]:
        """The objects of each picture, as the detector predicts them, on the CPU."""
        return [one.to("cpu") for one in self.detector.postprocess(found.outputs, images)]

    def explain_spec(self) -> ExplainSpec:
        """That of the detector."""
        return self.detector.explain_spec().under("detector")


def enough_for(model: nn.Module, scores: Sequence[ScoreFn]) -> nn.Module:
    """The model, without what only masks need where all scores are known to read nothing but candidates.

    A mask head is most of the work of a small Mask R-CNN, and a question about a box may ask it a thousand times.
    """
    if isinstance(model, Watched) and all(getattr(score, "reads_candidates_only", False) for score in scores):
        return model.boxes_only()
    return model


def fired_layers(
    model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], layers: dict[str, GridLayer]
) -> list[str]:
    """The last layer that the gradient of each score reaches: of a pyramid, the level that an object was read from.

    Args:
        model: called with the images.
        images: one picture.
        scores: T of them.
        layers: in the order of the forward pass.

    Returns:
        T names; the first layer for a score that reaches none.
    """
    found: dict[int, str] = {}
    for name in reversed(layers):
        missing = [index for index in range(len(scores)) if index not in found]
        if not missing:
            break
        with recording(model, {name: layers[name]}) as record:
            record.run(images)
            gradients = record.gradients([scores[index] for index in missing], [record.all_seen()[name]])
            reached = [bool(one.any()) for (chunk,) in gradients for one in chunk]
        found |= {index: name for index, is_reached in zip(missing, reached, strict=True) if is_reached}
    return [found.get(index, next(iter(layers))) for index in range(len(scores))]
