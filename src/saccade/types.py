"""What crosses the boundaries between the parts: validated, frozen, movable between devices.

B batch · K classes · H, W padded canvas · h, w true size in canvas pixels. Boxes are absolute xyxy float32. Predictions
and heat maps are in the pixels of the original picture; ``Geometry`` is the way back there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from saccade.errors import InputError, UnknownNameError

_BACKGROUNDS = frozenset({"background", "unlabeled", "unlabelled", "other"})

TaskName = Literal["classification", "semantic", "detection", "instance", "zero_shot"]


@dataclass(frozen=True)
class Classes:
    """Names of the foreground classes; the id of a class is its place in ``names``.

    Names and ids are this one object in data sets, models, files and predictions, so an id can never drift from
    its name.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise InputError(f"class names repeat: {', '.join(repeated)}", expected="every class name once")

    @classmethod
    def numbered(cls, num_classes: int) -> Classes:
        """Stand-in names ``class_0`` ... for a model that was never told any."""
        return cls(tuple(f"class_{index}" for index in range(num_classes)))

    @property
    def backgrounds(self) -> frozenset[int]:
        """Labels of the classes that stand for everything else: background, unlabeled, other."""
        return frozenset(label for label, name in enumerate(self.names) if name.casefold() in _BACKGROUNDS)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, label: int) -> str:
        return self.names[label]

    def id(self, name: str) -> int:
        """The label of a class name; the nearest name is offered where it does not exist."""
        if name in self.names:
            return self.names.index(name)
        folded = [known.casefold() for known in self.names]
        if folded.count(name.casefold()) == 1:
            return folded.index(name.casefold())
        raise UnknownNameError("class", name, self.names)


@dataclass(frozen=True)
class Geometry:
    """Where the original picture lies on the canvas: ``canvas = original * scale + offset``, per axis (y, x).

    Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)`` and its centre is ``i + 0.5``, so resizing,
    letterboxing, cropping (a negative offset) and padding are all undone exactly.
    """

    original_size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def to_canvas(self, points: Tensor) -> Tensor:
        """Points (y, x) ``[..., 2]`` of the original picture, on the canvas."""
        return points * points.new_tensor(self.scale) + points.new_tensor(self.offset)

    def to_original(self, points: Tensor) -> Tensor:
        """Points (y, x) ``[..., 2]`` of the canvas, in the original picture (may lie outside of it)."""
        return (points - points.new_tensor(self.offset)) / points.new_tensor(self.scale)


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Normalised, padded pictures, ready for a model.

    Attributes:
        pixels: ``[B, 3, H, W]`` normalised, padded at the right and bottom.
        sizes: true ``(h, w)`` of each image on the canvas, without padding.
        geometries: the map back to the original pixels of each image.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    geometries: tuple[Geometry, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            shape = tuple(self.pixels.shape)
            raise InputError(f"pixels have shape {shape}", expected="[B, 3, H, W]", remedy="pass images to predict()")

    @classmethod
    def of(cls, pixels: Tensor) -> ImageBatch:
        """A batch whose canvas is the original picture: no padding, no resizing."""
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        count = int(pixels.shape[0])
        return cls(pixels, (size,) * count, (Geometry(size),) * count)

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def __getitem__(self, index: int) -> ImageBatch:
        """The batch of the one image at ``index``."""
        index = range(len(self))[index]
        return ImageBatch(self.pixels[index : index + 1], (self.sizes[index],), (self.geometries[index],))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ImageBatch:
        """The same batch with its pixels on another device or of another type."""
        return replace(self, pixels=self.pixels.to(device=device, dtype=dtype, non_blocking=True))

    def channels_last(self) -> ImageBatch:
        """The same pictures laid out channels last: convolutions run up to twice as fast, and no model slower."""
        return replace(self, pixels=self.pixels.contiguous(memory_format=torch.channels_last))

    def with_pixels(self, pixels: Tensor) -> ImageBatch:
        """The same geometry with other pixels ``[R * B, 3, H, W]``: B images repeated R times, image by image."""
        if pixels.shape[0] == len(self):
            return replace(self, pixels=pixels)
        repeats, rest = divmod(int(pixels.shape[0]), max(len(self), 1))
        if rest:
            raise InputError(f"{pixels.shape[0]} pictures for {len(self)} geometries", expected="a multiple")
        sizes = tuple(size for size in self.sizes for _ in range(repeats))
        return ImageBatch(pixels, sizes, tuple(g for g in self.geometries for _ in range(repeats)))


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


Target = ClassTarget | MapTarget
"""Ground truth of one picture; grows with the tasks."""

Prediction = Classification | Segmentation
"""Post-processed result for one picture; grows with the tasks."""


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


def as_grid(activation: Tensor, canvas: tuple[int, int]) -> Tensor:
    """An activation ``[B, C, h, w]`` that is a grid over the whole canvas already."""
    return activation


@dataclass(frozen=True)
class GridLayer:
    """A layer whose activation can be laid out on the picture.

    Attributes:
        path: dotted name of the module ("" is the model itself).
        to_grid: (recorded activation, canvas size ``(H, W)``) -> ``[B, C, h, w]``; a view, so that gradients pass. By
            default the activation itself, as convolutions leave it.
        is_input: record what enters the module instead of what leaves it.
    """

    path: str
    to_grid: Callable[[Tensor, tuple[int, int]], Tensor] = as_grid
    is_input: bool = False


@dataclass(frozen=True)
class AttentionSite:
    """A softmax over tokens that can be observed.

    Attributes:
        path: dotted name of a module that passes the attention probabilities ``[B, heads, queries, keys]`` through
            unchanged whenever somebody listens (see ``saccade.nn.attention``).
        num_prefix: tokens before the patches (class token, registers).
        grid: canvas size ``(H, W)`` -> patches ``(h, w)``.
    """

    path: str
    num_prefix: int
    grid: Callable[[tuple[int, int]], tuple[int, int]]


class LinearHead(NamedTuple):
    """The layer after global average pooling of ``layers["final"]``: plain CAM weights the channels with it.

    Attributes:
        weight: ``[K, C]``.
        bias: ``[K]``.
    """

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class ExplainSpec:
    """What a model declares about itself so that explanation need not know it.

    Attributes:
        layers: grid layers by name, in the order of the forward pass; ``"final"`` is required and is the last one that
            a gradient of the score reaches.
        usual_layer: the layer that explains best where nobody chose one. The last layer of a segmenter can only point
            at the very pixels it was asked about; why they got their class is seen further in.
        attention: observable softmaxes, in the order of the forward pass; empty for convolutional models.
        has_class_token: whether the class is read from token 0 (else from the mean of the patches).
        linear_head: returns the linear layer where plain CAM applies; None where it does not.
    """

    layers: Mapping[str, GridLayer]
    attention: Sequence[AttentionSite] = ()
    has_class_token: bool = False
    linear_head: Callable[[], LinearHead] | None = None
    usual_layer: str = "final"

    def __post_init__(self) -> None:
        if "final" not in self.layers:
            raise InputError("an ExplainSpec has no layer 'final'", expected="the last layer that a gradient reaches")
        if self.usual_layer not in self.layers:
            raise InputError(f"usual_layer {self.usual_layer!r} is no layer", expected=", ".join(self.layers))

    def under(self, prefix: str) -> ExplainSpec:
        """The same spec for a model that holds this one as its submodule ``prefix``."""

        def join(path: str) -> str:
            return f"{prefix}.{path}" if path else prefix

        layers = {name: replace(layer, path=join(layer.path)) for name, layer in self.layers.items()}
        return replace(self, layers=layers, attention=[replace(s, path=join(s.path)) for s in self.attention])
