"""Prompts beyond whole pictures: a class for every pixel, and new classes for the boxes of any detector.

Label maps: each patch of the image tower is compared with the texts (MaskCLIP: Zhou, Loy and Dai 2022, "Extract Free
Dense Labels from CLIP", arXiv 2112.01071). The tower sees squares of the size it was trained on, which overlap where
the picture is longer than wide or wider than long, and what squares say of one patch is averaged. Nothing is trained,
so borders are as coarse as patches.

Boxes: a detector says where things are, the texts say what they are (as in Gu et al. 2022, "Open-vocabulary Object
Detection via Vision and Language Knowledge Distillation", arXiv 2104.13921, section 3.2: crops classified by text).

K classes · h, w picture · S side of the tower's canvas · g, G patches along S and along the picture
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.data.decode import ImageSource, read_image
from saccade.engine.detect import detect_pictures
from saccade.engine.modes import evaluating
from saccade.errors import ConfigError, InputError
from saccade.models.base import VisionModel
from saccade.models.detector import Detector
from saccade.ops.boxes import batched_nms
from saccade.ops.image import Preprocess
from saccade.types import IGNORE, Classes, Detections, ImageBatch, Segmentation, TaskName

SQUARES_AT_ONCE = 8
"""Squares or crops that go through the tower together."""

VALUES_AT_ONCE = 1 << 24
"""Class scores of pixels that are held at once: 64 MB."""

CONTEXT = 1.2
"""Side of a crop over that of its box: a little of the surroundings tells more than the box alone."""

SAME = 0.7
"""Of two boxes that overlap more than this, the likelier stays, whatever their classes."""


@runtime_checkable
class ScoresPatches(Protocol):
    """A classifier by prompts that can say of every patch how well each prompt fits."""

    def patch_logits(self, images: ImageBatch) -> Tensor:
        """``[B, K, g, g]``."""
        ...


class PromptSegmenter:
    """Label maps by prompts.

    Args:
        classifier: its classes are the prompts.

    Raises:
        ConfigError: where the classifier cannot score patches, or has more classes than a label map can hold.
    """

    task: ClassVar[TaskName] = "semantic"

    def __init__(self, classifier: VisionModel[Any, Any, Any]) -> None:
        if not isinstance(classifier, ScoresPatches):
            what = f"{type(classifier).__name__} cannot say anything of single patches"
            raise ConfigError(what, expected="a model for zero_shot with classes")
        if len(classifier.classes) > IGNORE:
            raise ConfigError(f"{len(classifier.classes)} classes", where="classes", expected=f"at most {IGNORE}")
        self.classifier = classifier
        self.preprocess = _whole(classifier.preprocess)

    @property
    def classes(self) -> Classes:
        """The prompts."""
        return self.classifier.classes

    def stream(self, images: Iterable[ImageSource]) -> Iterator[Segmentation]:
        """A label map for each picture, one after the other."""
        return self.stream_pictures(read_image(image) for image in images)

    def stream_pictures(self, pictures: Iterable[Tensor]) -> Iterator[Segmentation]:
        """The same for pictures ``[3, h, w]`` uint8 that somebody else has read."""
        return map(self, pictures)

    def __call__(self, picture: Tensor) -> Segmentation:
        """The likeliest prompt of every pixel of a picture ``[3, h, w]`` uint8."""
        with evaluating(self.classifier), torch.inference_mode():
            return _labelled(self.patch_scores(picture), (int(picture.shape[1]), int(picture.shape[2])), self.classes)

    def patch_scores(self, picture: Tensor) -> Tensor:
        """The logits of every prompt on a grid over the whole picture, ``[K, Gh, Gw]`` float32 on the CPU."""
        side = self.preprocess.size[0]
        first = self._logits([self.preprocess.resize(picture[None], (side, side))[0]])[0]
        grid = int(first.shape[-1])
        cells = _cells((int(picture.shape[1]), int(picture.shape[2])), grid)
        if cells == (grid, grid):
            return first
        whole = self.preprocess.resize(picture[None], (cells[0] * side // grid, cells[1] * side // grid))[0]
        places = [(top, left) for top in _starts(cells[0], grid) for left in _starts(cells[1], grid)]
        total = torch.zeros(first.shape[0], *cells)
        count = torch.zeros(cells)
        for start in range(0, len(places), SQUARES_AT_ONCE):
            part = places[start : start + SQUARES_AT_ONCE]
            squares = []
            for top, left in part:
                y, x = top * side // grid, left * side // grid
                squares.append(whole[:, y : y + side, x : x + side])
            for (top, left), logits in zip(part, self._logits(squares), strict=True):
                total[:, top : top + grid, left : left + grid] += logits
                count[top : top + grid, left : left + grid] += 1
        return total / count

    def _logits(self, squares: Sequence[Tensor]) -> Tensor:
        assert isinstance(self.classifier, ScoresPatches)
        return self.classifier.patch_logits(_canvas(self.classifier, self.preprocess, squares)).float().cpu()


class PromptDetector:
    """The boxes of any detector, with prompts as classes.

    Args:
        classifier: its classes are the prompts.
        detector: says where things are; its own classes are forgotten.
        min_score: lowest score of an object, which is the detector's times the probability of the prompt.

    Raises:
        ConfigError: where ``detector`` finds no boxes, or ``classifier`` is none.
    """

    task: ClassVar[TaskName] = "detection"

    def __init__(
        self, classifier: VisionModel[Any, Any, Any], detector: VisionModel[Any, Any, Any], *, min_score: float = 0.05
    ) -> None:
        if not isinstance(detector, Detector):
            remedy = f"choose a model for detection, not for {detector.task}"
            raise ConfigError(f"{type(detector).__name__} finds no boxes", remedy=remedy)
        if classifier.task != "classification":
            raise ConfigError(
                f"{type(classifier).__name__} is no classifier", expected="a model for zero_shot, classes"
            )
        if not 0 <= min_score <= 1:
            raise ConfigError(f"min_score is {min_score}", where="min_score", expected="in [0, 1]")
        self.classifier, self.detector, self.min_score = classifier, detector, min_score
        self.preprocess = _whole(classifier.preprocess)

    @property
    def classes(self) -> Classes:
        """The prompts."""
        return self.classifier.classes

    def stream(self, images: Iterable[ImageSource]) -> Iterator[Detections]:
        """The objects of each picture, one after the other."""
        return self.stream_pictures(read_image(image) for image in images)

    def stream_pictures(self, pictures: Iterable[Tensor]) -> Iterator[Detections]:
        """The same for pictures ``[3, h, w]`` uint8 that somebody else has read."""
        return map(self, pictures)

    def __call__(self, picture: Tensor) -> Detections:
        """The objects of a picture ``[3, h, w]`` uint8."""
        with evaluating(self.classifier), evaluating(self.detector), torch.inference_mode():
            return self.rename(picture, detect_pictures(self.detector, [picture])[0])

    def rename(self, picture: Tensor, found: Detections) -> Detections:
        """The same boxes with the prompts as classes.

        A box that the detector gave two classes is one object here, as are two that overlap by more than ``SAME``.
        ``source`` stays, so that an object can still be traced to the detector's candidate.
        """
        keep = batched_nms(found.boxes, found.scores, torch.zeros_like(found.labels), SAME)
        found = found.select(keep)
        if not len(found):
            return Detections(found.boxes, found.scores, found.labels, found.source, self.classes, found.masks)
        crops = [crop(picture, box) for box in found.boxes]
        shares = torch.cat(
            [self._shares(crops[i : i + SQUARES_AT_ONCE]) for i in range(0, len(crops), SQUARES_AT_ONCE)]
        )
        share, labels = shares.max(dim=1)
        scores = found.scores * share
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= self.min_score]
        named = Detections(found.boxes, scores, labels, found.source, self.classes, found.masks)
        return named.select(order)

    def _shares(self, crops: Sequence[Tensor]) -> Tensor:
        """Probabilities of the prompts for each crop, ``[B, K]``."""
        images = _canvas(self.classifier, self.preprocess, crops)
        predictions = self.classifier.postprocess(self.classifier(images), images)
        return torch.stack([prediction.scores for prediction in predictions]).cpu()


def crop(picture: Tensor, box: Tensor, context: float = CONTEXT) -> Tensor:
    """The square around a box, as far as the picture goes, ``[3, h', w']``: shapes are kept, not stretched.

    Args:
        picture: ``[3, h, w]`` uint8.
        box: ``[4]`` xyxy.
        context: side of the square over the longer side of the box.
    """
    height, width = int(picture.shape[1]), int(picture.shape[2])
    left, top, right, bottom = box.tolist()
    half = max(right - left, bottom - top, 1.0) * context / 2
    across, down = (left + right) / 2, (top + bottom) / 2
    x0, y0 = min(max(round(across - half), 0), width - 1), min(max(round(down - half), 0), height - 1)
    x1, y1 = min(round(across + half), width), min(round(down + half), height)
    return picture[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


def _whole(preprocess: Preprocess) -> Preprocess:
    """The same, without cutting anything off."""
    if preprocess.size[0] != preprocess.size[1]:
        raise InputError(f"the canvas of the model is {preprocess.size}", expected="a square one")
    return replace(preprocess, policy="letterbox", crop_fraction=1.0)


def _canvas(model: VisionModel[Any, Any, Any], preprocess: Preprocess, pictures: Sequence[Tensor]) -> ImageBatch:
    first = next(model.parameters())
    return preprocess(list(pictures)).to(first.device, first.dtype).channels_last()


def _cells(size: tuple[int, int], grid: int) -> tuple[int, int]:
    """Patches along height and width of a picture whose shorter side has ``grid`` of them."""
    shorter = min(size)
    return max(round(size[0] / shorter * grid), grid), max(round(size[1] / shorter * grid), grid)


def _starts(cells: int, grid: int) -> list[int]:
    """Where squares of ``grid`` patches begin along ``cells`` of them: evenly, overlapping by half or more."""
    if cells == grid:
        return [0]
    count = -(-(cells - grid) // max(grid // 2, 1)) + 1
    return [round(place * (cells - grid) / (count - 1)) for place in range(count)]


def _labelled(logits: Tensor, size: tuple[int, int], classes: Classes) -> Segmentation:
    """Likeliest class and its probability for every pixel, from logits ``[K, Gh, Gw]``; some classes at a time."""
    at_once = max(VALUES_AT_ONCE // (size[0] * size[1]), 1)
    best = torch.full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.uint8)
    total = torch.full(size, -torch.inf)
    for start in range(0, logits.shape[0], at_once):
        part = F.interpolate(logits[None, start : start + at_once], size, mode="bilinear", align_corners=False)[0]
        value, label = part.max(dim=0)
        labels = torch.where(value > best, (label + start).to(torch.uint8), labels)
        best = torch.maximum(best, value)
        total = torch.logaddexp(total, part.logsumexp(dim=0))
    return Segmentation(labels, (best - total).exp().half(), classes)
