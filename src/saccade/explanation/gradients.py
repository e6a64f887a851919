"""Explanations by the gradient at the pixels.

Gradient: Simonyan et al. 2014, arXiv 1312.6034. SmoothGrad: Smilkov et al. 2017, arXiv 1706.03825.
Integrated gradients: Sundararajan et al. 2017, arXiv 1703.01365. Guided backpropagation: Springenberg et al. 2015,
arXiv 1412.6806, kept as a negative control only.

T scores · B images · S samples or steps · H, W canvas
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saccade.errors import ConfigError, ExplainError
from saccade.explanation.attribution import Attribution, ScoreFn
from saccade.explanation.faithfulness import negative_shares
from saccade.explanation.perturbation import BASELINES, Baseline, baseline_pixels, masks_at_once
from saccade.explanation.record import Record, mixing_layer, recording, refuse_batch_statistics, unwrap
from saccade.types import ExplainSpec, ImageBatch

BRIEF = 3
"""Samples or steps of a map that is only compared with another."""

GRADIENT_CPU_PIXELS = 1_000_000
"""Pixels per forward and backward pass on a processor: twenty photographs of 224x224. More than without gradients: the
activations leave the caches anyway, and the weights are put in order for fewer passes."""


@dataclass(frozen=True)
class Gradient:
    """How much the score moves when a pixel moves: the largest absolute gradient of its three channels."""

    name: ClassVar[str] = "gradient"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = False
    shares_forward: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the canvas."""
        maps = [gradient.abs().amax(dim=2) for gradient in pixel_gradients(model, images, scores)]
        return Attribution(torch.cat(maps))


@dataclass(frozen=True)
class InputGradient:
    """Input times gradient: the first-order estimate of what each pixel adds to the score of the mean colour."""

    name: ClassVar[str] = "input_gradient"
    is_signed: ClassVar[bool] = True
    is_class_agnostic: ClassVar[bool] = False
    shares_forward: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the canvas."""
        pixels = images.pixels.detach().float()
        values = torch.cat([(pixels * gradient).sum(dim=2) for gradient in pixel_gradients(model, images, scores)])
        return Attribution(values, negative=negative_shares(values))


@dataclass(frozen=True)
class SmoothGrad:
    """The gradient averaged over noisy copies of the picture: signed mean first, absolute value after.

    Attributes:
        samples: noisy copies.
        sigma: standard deviation of the noise, as a share of the value range of each picture.
        seed: of the noise, which is the same for every picture of a batch.
        chunk: pictures per forward pass, at most.
    """

    samples: int = 24
    sigma: float = 0.15
    seed: int = 0
    chunk: int = 16

    name: ClassVar[str] = "smoothgrad"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = False
    shares_forward: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.samples >= 1 and self.sigma >= 0 and self.chunk >= 1, self)

    @property
    def brief(self) -> SmoothGrad:
        """The same with a few samples, for comparison with shuffled copies."""
        return replace(self, samples=min(self.samples, BRIEF))

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the canvas; the error is the relative standard error of the mean gradient; one sample has none."""
        pixels = images.pixels.detach()
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.samples, *pixels.shape[1:], generator=generator).to(pixels)
        spread = pixels.amax(dim=(1, 2, 3), keepdim=True) - pixels.amin(dim=(1, 2, 3), keepdim=True)
        total = pixels.new_zeros(len(scores), *pixels.shape, dtype=torch.float32)
        squares = torch.zeros_like(total)
        per_pass = masks_at_once(images, self.chunk, GRADIENT_CPU_PIXELS)
        for part in torch.split(noise, per_pass):
            noisy = pixels[:, None] + self.sigma * spread[:, None] * part
            gradients = repeated_gradients(model, images, noisy, scores)
            total += gradients.sum(dim=2)
            squares += gradients.square().sum(dim=2)
        mean = total / self.samples
        values = mean.abs().amax(dim=2)
        if self.samples == 1:
            return Attribution(values)
        spread_of_one = (squares - self.samples * mean.square()).clamp_min(0) / (self.samples - 1)
        variance = spread_of_one / self.samples  # of the mean
        error = variance.sum(dim=(2, 3, 4)).sqrt() / mean.flatten(2).norm(dim=2).clamp_min(1e-20)
        return Attribution(values, error=error)


@dataclass(frozen=True)
class IntegratedGradients:
    """The difference between picture and baseline, times the mean gradient on the straight line between them.

    The values sum to the difference of the scores; how far they miss it (relative) is the returned error.

    Attributes:
        steps: Gauss-Legendre points on the line.
        baseline: ``mean`` colour of the training data, ``black`` (blind to black objects), or the picture itself,
            strongly ``blur``red.
        chunk: pictures per forward pass, at most.
        has_gap: whether the completeness gap is measured, which takes two more pictures forward.
    """

    steps: int = 32
    baseline: Baseline = "mean"
    chunk: int = 16
    has_gap: bool = True

    name: ClassVar[str] = "integrated_gradients"
    is_signed: ClassVar[bool] = True
    is_class_agnostic: ClassVar[bool] = False
    shares_forward: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.steps >= 1 and self.chunk >= 1 and self.baseline in BASELINES, self)

    @property
    def brief(self) -> IntegratedGradients:
        """The same with a few steps, for comparison with shuffled copies."""
        return replace(self, steps=min(self.steps, BRIEF), has_gap=False)

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the canvas; the error is the relative completeness gap."""
        pixels = images.pixels.detach()
        start = baseline_pixels(unwrap(model), images, self.baseline)
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        points = torch.from_numpy((nodes + 1) / 2).to(pixels)
        shares = torch.from_numpy(weights / 2).to(pixels.device, torch.float32)
        mean = pixels.new_zeros(len(scores), *pixels.shape, dtype=torch.float32)
        per_pass = masks_at_once(images, self.chunk, GRADIENT_CPU_PIXELS)
        for part, share in zip(torch.split(points, per_pass), torch.split(shares, per_pass), strict=True):
            line = start[:, None] + part.view(-1, 1, 1, 1) * (pixels - start)[:, None]
            mean += (repeated_gradients(model, images, line, scores) * share.view(-1, 1, 1, 1)).sum(dim=2)
        values = ((pixels - start).float() * mean).sum(dim=2)
        if not self.has_gap:
            return Attribution(values, negative=negative_shares(values))
        with recording(model, with_gradients=False) as record:
            record.run(images)
            difference = record.scores(scores)
            record.run(images.with_pixels(start))
            difference = difference - record.scores(scores)
        gap = (values.sum(dim=(2, 3)) - difference).abs() / difference.abs().clamp_min(1e-6)
        return Attribution(values, error=gap, negative=negative_shares(values))


@dataclass(frozen=True)
class GuidedBackprop:
    """Negative control: a gradient that also drops negative evidence at every ReLU on its way back.

    It sharpens edges and hardly depends on the later weights or the class (Adebayo et al. 2018, arXiv 1810.03292). The
    verdict finds that out by shuffling the later half of the weights (``docs/verdict.md`` says how often). Not for use
    as an explanation.
    """

    name: ClassVar[str] = "guided_backprop"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = False
    shares_forward: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Values on the canvas.

        Raises:
            ExplainError: where the model has no ReLU.
        """
        guide = _GuidedMode()
        maps = [g.abs().amax(dim=2) for g in pixel_gradients(model, images, scores, within=guide)]
        if not guide.count:
            raise ExplainError("guided backpropagation is defined for ReLU networks, and this model has no ReLU")
        return Attribution(torch.cat(maps), notes=("negative control: not to be used as an explanation",))


def pixel_gradients(
    model: nn.Module,
    images: ImageBatch,
    scores: Sequence[ScoreFn],
    *,
    within: AbstractContextManager[Any] | None = None,
) -> Iterator[Tensor]:
    """Gradients of the scores at the pixels: chunks of ``[t, B, 3, H, W]`` float32.

    Args:
        model: called with the images.
        images: where the gradients are taken.
        scores: what is differentiated.
        within: entered around the forward pass.
    """
    with recording(model, at_pixels=True) as record:
        with within or nullcontext():
            record.run(images)
        for gradient in record.gradients(scores, [_pixels(record)]):
            yield gradient[0].float()


def repeated_gradients(model: nn.Module, images: ImageBatch, copies: Tensor, scores: Sequence[ScoreFn]) -> Tensor:
    """Gradients at S variants of every picture: ``copies [B, S, 3, H, W]`` -> ``[T, B, S, 3, H, W]`` float32.

    Raises:
        ExplainError: where there are several pictures and the model mixes those of a batch.
    """
    if len(images) > 1:
        refuse_batch_statistics(model)
    pixels, parts = copies.flatten(0, 1), []
    for part in torch.split(pixels, len(pixels) if mixing_layer(model) is None else 1):
        batch = images.with_pixels(part).channels_last()
        parts.append(torch.cat(list(pixel_gradients(model, batch, scores))))
    return torch.cat(parts, dim=1).reshape(len(scores), *copies.shape)


def _pixels(record: Record) -> Tensor:
    assert record.pixels is not None
    return record.pixels


def _check(is_valid: bool, explainer: object) -> None:
    if not is_valid:
        raise ConfigError(f"the options of {explainer!r} make no sense", expected="positive counts, sigma at least 0")


class _GuidedReLU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(activation: Tensor) -> Tensor:
        return activation.clamp_min(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (activation,) = ctx.saved_tensors
        guided: Tensor = gradient.clamp_min(0) * (activation > 0)
        return guided


class _GuidedMode(TorchFunctionMode):
    """Replaces every ReLU, module or function, in place or not, for the length of a block."""

    _IN_PLACE = (F.relu_, torch.relu_, Tensor.relu_)
    _RELUS = (F.relu, torch.relu, Tensor.relu, *_IN_PLACE)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._RELUS:
            return func(*args, **kwargs)
        self.count += 1
        given: Tensor = args[0] if args else kwargs["input"]
        is_in_place = kwargs.get("inplace", len(args) > 1 and args[1]) if func is F.relu else func in self._IN_PLACE
        if not is_in_place:
            return _GuidedReLU.apply(given)
        # Whoever calls it as a statement goes on with what was given; what is rectified is a copy, because the backward
        # pass needs it as it was.
        return given.copy_(_GuidedReLU.apply(given.clone()))
