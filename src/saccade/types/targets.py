"""Ground truth of one picture for every task, and the loss that comes of it.

N objects · h, w picture · H, W canvas · K classes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.types.masks import Masks


@dataclass(frozen=True, eq=False)
class ClassTarget:
    """The class of one picture.

    Attributes:
        label: ``[]`` int64; or ``[K]`` float32 that sums to one, where mixup or cutmix blended classes.
    """

    label: Tensor

    def to(self, device: torch.device | str) -> ClassTarget:
        """The same target on another device."""
        return ClassTarget(self.label.to(device, non_blocking=True))


IGNORE = 255
"""Label of pixels that nobody labelled: they take part in no loss and no figure. So there are at most 255 classes."""


@dataclass(frozen=True, eq=False)
class MapTarget:
    """The class of every pixel of one picture.

    Attributes:
        labels: ``[h, w]`` uint8, ``IGNORE`` where nobody said; in the pixels of the original picture, or, in a training
            batch, on the canvas ``[H, W]``.
    """

    labels: Tensor

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype != torch.uint8:
            got = f"{tuple(self.labels.shape)} {self.labels.dtype}"
            raise InputError(f"the label map is {got}", expected="[h, w] uint8")

    def to(self, device: torch.device | str) -> MapTarget:
        """The same target on another device."""
        return MapTarget(self.labels.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class BoxTarget:
    """The objects of one picture; none is a picture of background, and is learned from as such.

    Attributes:
        boxes: ``[N, 4]`` float32 absolute xyxy, in the pixels of the original picture, or, in a training batch, on the
            canvas.
        labels: ``[N]`` int64.
        crowd: ``[N]`` bool: groups that nobody took apart, and objects marked as difficult. Nothing is learned from
            them, and what is found on them counts neither as right nor as wrong.
        masks: the pixels of each object where the data has them; required for instance segmentation.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    masks: Masks | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if tuple(self.boxes.shape) != (count, 4) or self.boxes.dtype != torch.float32:
            got = f"{tuple(self.boxes.shape)} {self.boxes.dtype}"
            raise InputError(f"boxes are {got} for {count} labels", expected=f"[{count}, 4] float32 xyxy")
        if self.labels.ndim != 1 or self.labels.dtype != torch.int64 or self.crowd.shape != self.labels.shape:
            got = f"{tuple(self.labels.shape)} {self.labels.dtype} and {tuple(self.crowd.shape)}"
            raise InputError(f"labels and crowd are {got}", expected="[N] int64 and [N] bool")
        if self.masks is not None and len(self.masks) != count:
            raise InputError(f"{len(self.masks)} masks for {count} boxes", expected="as many")

    @classmethod
    def of(cls, boxes: Tensor, labels: Tensor, masks: Masks | None = None) -> BoxTarget:
        """A target without crowds."""
        return cls(boxes, labels, torch.zeros(len(labels), dtype=torch.bool, device=labels.device), masks)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> BoxTarget:
        """Some of the objects, by ``[M]`` int64 indices."""
        masks = None if self.masks is None else self.masks.select(indices)
        return BoxTarget(self.boxes[indices], self.labels[indices], self.crowd[indices], masks)

    def without_crowds(self) -> BoxTarget:
        """Only the objects that can be learned from."""
        return self.select(torch.nonzero(~self.crowd)[:, 0]) if bool(self.crowd.any()) else self

    def to(self, device: torch.device | str) -> BoxTarget:
        """The same target on another device."""
        boxes, labels, crowd = (part.to(device, non_blocking=True) for part in (self.boxes, self.labels, self.crowd))
        return BoxTarget(boxes, labels, crowd, None if self.masks is None else self.masks.to(device))


@dataclass(frozen=True, eq=False)
class Caption:
    """What people wrote of one picture.

    Attributes:
        texts: at least one, none empty; in a training batch the one that the loader chose.
        also: every text that is true of the picture as well; where another picture of a training batch brings one of
            these, it is no wrong answer.
    """

    texts: tuple[str, ...]
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.texts or not all(text.strip() for text in self.texts):
            got = "there is no text" if not self.texts else "a text is empty"
            raise InputError(got, where="caption", expected="at least one text of a picture, none empty")

    def to(self, device: torch.device | str) -> Caption:
        """Itself: a text lives on no device."""
        return self


Target = ClassTarget | MapTarget | BoxTarget | Caption
"""Ground truth of one picture; grows with the tasks."""


@dataclass(frozen=True, eq=False)
class Losses:
    """The loss of one batch.

    Attributes:
        terms: scalars ``[]``, already weighted; ``total`` is their sum.
        logs: scalars ``[]`` worth watching that are not part of the loss.
    """

    terms: Mapping[str, Tensor]
    logs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum of the terms, ``[]``."""
        return torch.stack(list(self.terms.values())).sum()


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture of a data set with its ground truth.

    Attributes:
        image: ``[3, h, w]`` uint8 RGB, EXIF orientation applied.
        target: ground truth.
        source: path or ``file#index``, for messages and reports.
    """

    image: Tensor
    target: Target
    source: str
