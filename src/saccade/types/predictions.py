"""What models say of one picture, post-processed, in its own pixels.

N objects · K classes · h, w picture · T texts · D width of a shared space
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.types.classes import Classes
from saccade.types.masks import Masks


@dataclass(frozen=True, eq=False)
class Classification:
    """What a classifier says of one picture.

    Attributes:
        scores: ``[K]`` float32, softmax probabilities.
        classes: names of the K classes.
    """

    scores: Tensor
    classes: Classes

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.classes),):
            expected = f"[{len(self.classes)}], one per class"
            raise InputError(f"scores have shape {tuple(self.scores.shape)}", expected=expected)

    @property
    def label(self) -> int:
        """Id of the likeliest class."""
        return int(self.scores.argmax())

    @property
    def name(self) -> str:
        """Name of the likeliest class."""
        return self.classes[self.label]

    @property
    def score(self) -> float:
        """Probability of the likeliest class."""
        return float(self.scores[self.label])

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The ``count`` likeliest classes with their probabilities, likeliest first.

        Raises:
            InputError: where ``count`` is below 1.
        """
        if count < 1:
            raise InputError(f"count is {count}", where="top", expected="at least 1")
        scores, labels = self.scores.topk(min(count, len(self.classes)))
        return [(self.classes[int(label)], float(score)) for score, label in zip(scores, labels, strict=True)]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a segmenter says of every pixel of one picture.

    The scores of all classes are not kept: a picture of 8000x8000 pixels and 21 classes would take 5 GB.

    Attributes:
        labels: ``[h, w]`` uint8, the likeliest class of each pixel, in the pixels of the original picture.
        confidence: ``[h, w]`` float16, the softmax probability of that class.
        classes: names of the K classes.
    """

    labels: Tensor
    confidence: Tensor
    classes: Classes

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.shape != self.confidence.shape or self.labels.dtype != torch.uint8:
            got = f"{tuple(self.labels.shape)} {self.labels.dtype} and {tuple(self.confidence.shape)}"
            raise InputError(f"labels and confidence are {got}", expected="both [h, w], labels uint8")

    def areas(self) -> dict[str, float]:
        """Share of the pixels that each class covers, the classes that are there, largest first."""
        counts = torch.bincount(self.labels.flatten(), minlength=len(self.classes))[: len(self.classes)]
        shares = (counts.double() / max(self.labels.numel(), 1)).tolist()
        return {self.classes[k]: shares[k] for k in counts.argsort(descending=True, stable=True).tolist() if shares[k]}


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects that a model finds in one picture, likeliest first.

    Attributes:
        boxes: ``[N, 4]`` float32 absolute xyxy in the pixels of the original picture.
        scores: ``[N]`` float32 in [0, 1], falling.
        labels: ``[N]`` int64.
        source: ``[N]`` int64, which raw candidate of this picture each comes from: a proposal, grid cell or query. A
            candidate may be the source of several objects, of different classes.
        classes: names of the K classes.
        masks: the pixels of each object, of models that cut objects out.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    source: Tensor
    classes: Classes
    masks: Masks | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if tuple(self.boxes.shape) != (count, 4) or len(self.labels) != count or len(self.source) != count:
            got = f"{tuple(self.boxes.shape)}, {len(self.labels)} and {len(self.source)}"
            raise InputError(
                f"boxes, labels and source are {got} for {count} scores", expected="one of each per object"
            )
        if self.masks is not None and len(self.masks) != count:
            raise InputError(f"{len(self.masks)} masks for {count} boxes", expected="as many")

    def __len__(self) -> int:
        return len(self.scores)

    def name(self, index: int) -> str:
        """Name of the class of one object."""
        return self.classes[int(self.labels[index])]

    def select(self, indices: Tensor) -> Detections:
        """Some of the objects, by ``[M]`` int64 indices."""
        masks = None if self.masks is None else self.masks.select(indices)
        boxes, scores, labels, source = (part[indices] for part in (self.boxes, self.scores, self.labels, self.source))
        return Detections(boxes, scores, labels, source, self.classes, masks)

    def above(self, score: float) -> Detections:
        """The objects with at least this score."""
        return self.select(torch.nonzero(self.scores >= score)[:, 0])

    def to(self, device: torch.device | str) -> Detections:
        """The same objects on another device."""
        boxes, scores, labels, source = (
            part.to(device) for part in (self.boxes, self.scores, self.labels, self.source)
        )
        masks = None if self.masks is None else self.masks.to(device)
        return Detections(boxes, scores, labels, source, self.classes, masks)


@dataclass(frozen=True, eq=False)
class Embedding:
    """Where a model puts one picture, and its texts where it has some, in the space that both share.

    Attributes:
        image: ``[D]`` float32, a vector of length 1.
        texts: ``[T, D]`` float32, vectors of length 1; ``[0, D]`` where the model was given no texts.
    """

    image: Tensor
    texts: Tensor

    def __post_init__(self) -> None:
        if self.image.ndim != 1 or self.texts.ndim != 2 or self.texts.shape[1] != len(self.image):
            got = f"{tuple(self.image.shape)} and {tuple(self.texts.shape)}"
            raise InputError(f"image and texts are {got}", expected="[D] and [T, D]")

    def to(self, device: torch.device | str) -> Embedding:
        """The same vectors on another device."""
        return Embedding(self.image.to(device), self.texts.to(device))


Prediction = Classification | Segmentation | Detections | Embedding
"""Post-processed result for one picture; grows with the tasks."""
