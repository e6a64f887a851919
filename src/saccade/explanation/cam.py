"""Explanations by the activations of a layer: class activation maps and their relatives.

A_k feature maps · g_k gradient of the score at A_k · N = h * w

CAM: Zhou et al. 2016, arXiv 1512.04150. Grad-CAM: Selvaraju et al. 2017, arXiv 1610.02391. Grad-CAM++: Chattopadhay et
al. 2018, arXiv 1710.11063. XGrad-CAM: Fu et al. 2020, arXiv 2008.02312. HiResCAM: Draelos & Carin 2020, arXiv
2011.08891. LayerCAM: Jiang et al. 2021. Eigen-CAM: Muhammad & Yeasin 2020, arXiv 2008.00299. Score-CAM: Wang et al.
2020, arXiv 1910.01279.

T scores · B images · C channels · h, w grid
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError, UnknownNameError
from saccade.explanation.attribution import Attribution, ScoreFn
from saccade.explanation.faithfulness import negative_shares
from saccade.explanation.record import exact, mixing_layer, recording
from saccade.explanation.scores import logits_of, unbounded, when_hidden
from saccade.types import ExplainSpec, GridLayer, ImageBatch


@dataclass(frozen=True)
class _LayerMethod(abc.ABC):
    """Base of the methods that weigh the feature maps of one layer by gradients.

    Attributes:
        layer: a name in ``ExplainSpec.layers``.
    """

    layer: str = "final"

    name: ClassVar[str]
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = False
    shares_forward: ClassVar[bool] = True

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the grid of the layer."""
        layers = {self.layer: grid_layer(spec, self.layer)}
        with recording(model, layers) as record:
            record.run(images)
            maps = record.grid(self.layer)
            parts = [self._combined(maps, gradients) for gradients in record.grid_gradients(self.layer, scores)]
        return _evidence(torch.cat(parts), self.layer, is_signed=self.is_signed)

    @exact()
    def _combined(self, maps: Tensor, gradients: Tensor) -> Tensor:
        return self.combine(maps, gradients)

    @abc.abstractmethod
    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """Feature maps ``[B, C, h, w]`` and their gradients ``[T, B, C, h, w]`` to signed evidence ``[T, B, h, w]``."""


@dataclass(frozen=True)
class GradCAM(_LayerMethod):
    """Feature maps weighted by their mean gradients, the positive part."""

    name: ClassVar[str] = "gradcam"

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """Sum over k of mean(g_k) A_k."""
        return _weigh(maps, gradients.mean(dim=(-2, -1)))


@dataclass(frozen=True)
class GradCAMPlusPlus(_LayerMethod):
    """Grad-CAM whose weights count only positive gradients, place by place.

    The paper's alpha = g² / (2g² + g³ ΣA) is 1 / (2 + g ΣA) once g² is cancelled, which spares underflow; where the
    denominator is not positive its derivation has no meaning and the place gets no weight.
    """

    name: ClassVar[str] = "gradcam++"

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """Sum over k of (sum of alpha ReLU(g_k)) A_k."""
        denominator = 2 + gradients * maps.sum(dim=(-2, -1), keepdim=True)
        weights = torch.where(denominator > 0, gradients.clamp_min(0) / denominator, 0.0)
        return _weigh(maps, weights.sum(dim=(-2, -1)))


@dataclass(frozen=True)
class XGradCAM(_LayerMethod):
    """Grad-CAM whose weights are mean gradients weighted by the activations.

    Where the activations of a channel cancel to (nearly) zero, the plain mean of its gradients is used.
    """

    name: ClassVar[str] = "xgradcam"

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """Sum over k of (ΣgA / ΣA) A_k."""
        total = maps.sum(dim=(-2, -1))
        is_stable = total.abs() > 1e-4 * maps.abs().sum(dim=(-2, -1))
        ratio = torch.einsum("tbchw,bchw->tbc", gradients, maps) / torch.where(is_stable, total, 1.0)
        return _weigh(maps, torch.where(is_stable, ratio, gradients.mean(dim=(-2, -1))))


@dataclass(frozen=True)
class HiResCAM(_LayerMethod):
    """Gradient times activation, place by place: signed evidence that shows only places the model used.

    Where everything after the layer is linear, the values sum to the score less its bias.
    """

    name: ClassVar[str] = "hirescam"
    is_signed: ClassVar[bool] = True

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """Sum over k of g_k A_k."""
        return torch.einsum("tbchw,bchw->tbhw", gradients, maps)


@dataclass(frozen=True)
class LayerCAM(_LayerMethod):
    """Positive gradient times activation, place by place; good on early layers, blind to negative evidence."""

    name: ClassVar[str] = "layercam"

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """Sum over k of ReLU(g_k) A_k."""
        return torch.einsum("tbchw,bchw->tbhw", gradients.clamp_min(0), maps)


@dataclass(frozen=True)
class CAM:
    """The last feature maps weighted by the rows of the linear layer after global average pooling; signed."""

    name: ClassVar[str] = "cam"
    is_signed: ClassVar[bool] = True
    is_class_agnostic: ClassVar[bool] = False
    shares_forward: ClassVar[bool] = True

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the grid of layer "final".

        Raises:
            ExplainError: where the model is not "global average pooling, then one linear layer".
        """
        if spec.linear_head is None:
            raise ExplainError(
                "CAM needs global average pooling followed by one linear layer, which this model does not have",
                remedy="use method='hirescam', which equals CAM where both apply",
            )
        with recording(model, {"final": spec.layers["final"]}) as record:
            logits = logits_of(record.run(images))
            maps = record.grid("final")
            head = spec.linear_head().weight.detach().float()
            parts = [_by_class(maps, g.float(), head) for (g,) in record.gradients(scores, [logits])]
        return _evidence(torch.cat(parts), "final", is_signed=True)


@dataclass(frozen=True)
class EigenCAM:
    """The first principal component of the feature maps: what the layer saw, whatever the class.

    The sign of a component is arbitrary; it is chosen so that strong activations come out positive.

    Attributes:
        layer: a name in ``ExplainSpec.layers``.
    """

    layer: str = "final"

    name: ClassVar[str] = "eigencam"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = True
    shares_forward: ClassVar[bool] = True

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the grid of the layer, the same for every score."""
        with recording(model, {self.layer: grid_layer(spec, self.layer)}, with_gradients=False) as record:
            record.run(images)
            maps = record.grid(self.layer)
        values = _principal(maps)
        return Attribution(values.expand(len(scores), *values.shape).clone(), layer=self.layer)


@dataclass(frozen=True)
class ScoreCAM:
    """Feature maps weighted by the score of the picture seen through each of them; needs no gradient.

    Convention (Algorithm 1 of the paper): each map is enlarged to the canvas, scaled to [0, 1] and multiplied with the
    normalised pixels; the weights are the softmax *over channels* of the resulting scores, taken as they are (here:
    logits); subtracting the score of a baseline would cancel in that softmax. Constant maps get no weight. How surely
    an object is still found is a share in [0, 1], of which a softmax is all but even; its log odds are taken instead.

    Attributes:
        layer: a name in ``ExplainSpec.layers``.
        max_channels: only the channels that vary most over the picture; None for all (one forward pass per channel).
        chunk: pictures per forward pass.
    """

    layer: str = "final"
    max_channels: int | None = None
    chunk: int = 16

    name: ClassVar[str] = "scorecam"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = False
    is_costly: ClassVar[bool] = True
    shares_forward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.chunk < 1 or (self.max_channels is not None and self.max_channels < 1):
            raise ConfigError(f"the options of {self!r} make no sense", expected="positive counts")

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the grid of the layer."""
        values = []
        layers = {self.layer: grid_layer(spec, self.layer)}
        asked = [unbounded(when_hidden(score)) for score in scores]
        for index in range(len(images)):
            image = images[index]
            with recording(model, layers, with_gradients=False) as record:
                record.run(image)
                maps = record.grid(self.layer)[0]
            if self.max_channels is not None:
                maps = maps[maps.var(dim=(1, 2)).topk(min(self.max_channels, len(maps))).indices]
            with recording(model, with_gradients=False) as record:
                weighed = []
                for part in torch.split(maps, self.chunk if mixing_layer(model) is None else 1):
                    masks = F.interpolate(part[:, None], image.pixels.shape[-2:], mode="bilinear", align_corners=False)
                    low, high = masks.amin(dim=(1, 2, 3), keepdim=True), masks.amax(dim=(1, 2, 3), keepdim=True)
                    masks = (masks - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
                    record.run(image.with_pixels(image.pixels * masks.to(image.pixels.dtype)))
                    is_constant = (high <= low).flatten()
                    weighed.append(record.scores(asked).masked_fill(is_constant, float("-inf")))
            weights = torch.cat(weighed, dim=1).softmax(dim=1).nan_to_num(0.0)  # nan: every map is constant
            values.append(_weigh(maps[None], weights[:, None])[:, 0].clamp_min(0))
        return Attribution(torch.stack(values, dim=1), layer=self.layer)


def grid_layer(spec: ExplainSpec, name: str) -> GridLayer:
    """A layer by its declared name.

    Raises:
        UnknownNameError: with the nearest name.
    """
    if name not in spec.layers:
        raise UnknownNameError("layer", name, spec.layers)
    return spec.layers[name]


@exact()
def _weigh(maps: Tensor, weights: Tensor) -> Tensor:
    """Feature maps ``[B, C, h, w]`` summed with weights ``[T, B, C]`` -> ``[T, B, h, w]``."""
    return torch.einsum("tbc,bchw->tbhw", weights, maps)


@exact()
def _by_class(maps: Tensor, gradients: Tensor, head: Tensor) -> Tensor:
    """Feature maps ``[B, C, h, w]`` weighted by rows of the head ``[K, C]``, mixed as the scores mix logits."""
    return _weigh(maps, gradients @ head)


@exact()
def _principal(maps: Tensor) -> Tensor:
    """The first principal component of feature maps ``[B, C, h, w]``, its positive part ``[B, h, w]``."""
    places = maps.flatten(2)  # [B, C, N]
    strength = places.norm(dim=1)
    _, sizes, directions = torch.linalg.svd(places, full_matrices=False)
    component = sizes[:, :1] * directions[:, 0]  # [B, N]
    sign = torch.where((component * strength).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    positive: Tensor = (component * sign).clamp_min(0).unflatten(1, maps.shape[-2:])
    return positive


def _evidence(values: Tensor, layer: str, *, is_signed: bool) -> Attribution:
    """Signed evidence to an attribution; what rectification removes is told in ``negative``."""
    negative = negative_shares(values)
    return Attribution(values if is_signed else values.clamp_min(0), layer=layer, negative=negative)
