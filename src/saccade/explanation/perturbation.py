"""Explanation by hiding: occlusion windows and random masks. The model is a black box; no gradient, no layer is needed.

Occlusion: Zeiler and Fergus 2013, arXiv 1311.2901. RISE: Petsiuk et al. 2018, arXiv 1806.07421. D-RISE: Petsiuk et al.
2021, arXiv 2006.03204.
Differs from the papers: scores are whatever is asked (logits by default), occlusion divides the drop by the area that
was hidden, RISE divides by the real mean of the masks instead of the nominal one, takes the mean score away (so that
zero means "no different from the average") and tells its standard error.

T scores · B images · M masks · H, W canvas · h, w true size on the canvas
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError
from saccade.explanation.attribution import Attribution, ScoreFn
from saccade.explanation.boxes import enough_for
from saccade.explanation.record import exact, mixing_layer, refuse_batch_statistics, undisturbed
from saccade.explanation.rounded import TRIAL, agrees, can_round, quick_copy, rounding
from saccade.explanation.scores import when_hidden
from saccade.types import ExplainSpec, ImageBatch

Baseline = Literal["mean", "blur", "black"]
"""What hidden pixels become: the mean colour (zero after normalisation), a blurred copy of the picture, or black."""

BASELINES: tuple[Baseline, ...] = ("mean", "blur", "black")
Precision = Literal["auto", "float32"]
"""What the model may compute in: with ``auto`` also in bfloat16, where that was measured to change little."""

CPU_PIXELS = 400_000
"""Pixels per forward pass on a processor: eight photographs of 224x224, and no fewer icons than asked for."""

FIRST_LOOK = 500
"""Masks after which, and after each as many again, RISE looks whether its error is small enough."""

ERROR_GRID = 16
"""Standard errors are measured on at most this many cells a side; the masks are smooth at that scale."""


def baseline_pixels(model: nn.Module, images: ImageBatch, kind: Baseline) -> Tensor:
    """What hidden pixels are replaced by, ``[B, 3, H, W]`` normalised; padding stays as it is.

    Raises:
        ExplainError: where black is asked and the model does not say how its pixels were normalised.
    """
    pixels = images.pixels.detach().clone()
    height, width = pixels.shape[-2:]
    if kind == "mean":
        baseline = torch.zeros_like(pixels)
    elif kind == "black":
        preprocess = getattr(model, "preprocess", None)
        if preprocess is None:
            raise ExplainError(
                "black is unknown: the model does not say how its pixels are normalised",
                where="baseline",
                remedy="use baseline 'mean' or 'blur', or give adapt() a Preprocess",
            )
        black = -pixels.new_tensor(preprocess.mean) / pixels.new_tensor(preprocess.std)
        baseline = black.view(1, 3, 1, 1).expand_as(pixels).clone()
    elif kind == "blur":
        sigma = max(min(height, width) / 16, 1.0)
        reach = max(min(round(3 * sigma), min(height, width) - 1), 0)
        from torchvision.transforms.v2.functional import gaussian_blur  # takes a second or two to import

        baseline = gaussian_blur(pixels.float(), [2 * reach + 1] * 2, [sigma] * 2).to(pixels.dtype)
    else:
        raise ConfigError(f"unknown baseline {kind!r}", where="baseline", expected=f"one of: {', '.join(BASELINES)}")
    for image, (true_height, true_width) in enumerate(images.sizes):
        baseline[image, :, true_height:] = pixels[image, :, true_height:]
        baseline[image, :, :, true_width:] = pixels[image, :, :, true_width:]
    return baseline


def masks_at_once(images: ImageBatch, most: int, pixels: int = CPU_PIXELS) -> int:
    """Masks per forward pass: ``most`` pictures together on an accelerator; fewer large ones on a processor.

    There the feature maps of more than a few photographs outgrow the caches.

    Args:
        images: of which there are copies.
        most: copies of all of them.
        pixels: at most, on a processor.
    """
    height, width = images.pixels.shape[-2:]
    if images.pixels.device.type == "cpu":
        most = min(most, max(pixels // (height * width), 1))
    return max(most // max(len(images), 1), 1)


def masked_scores(
    model: nn.Module,
    images: ImageBatch,
    baseline: Tensor,
    masks: Iterable[Tensor],
    scores: Sequence[ScoreFn],
    *,
    is_rounded: bool = False,
) -> Iterator[Tensor]:
    """Scores of the pictures seen through masks: one ``[T, B, m]`` float32 for every chunk of masks.

    Args:
        model: called with ``B * m`` pictures at a time, image by image.
        images: the pictures.
        baseline: ``[B, 3, H, W]``, what shows where a mask is 0.
        masks: chunks ``[B or 1, m, H, W]`` of numbers from 0 (hidden) to 1 (kept).
        scores: what is asked of the outputs, in the form for changed pictures.
        is_rounded: let the model compute in bfloat16.

    Raises:
        ExplainError: where there are several pictures and the model mixes those of a batch.
    """
    pixels = images.pixels.detach()
    scores = [when_hidden(score) for score in scores]
    if len(images) > 1:
        refuse_batch_statistics(model)
    # Differently hidden copies of one picture would be normalised with each other's colours.
    together = 1 if mixing_layer(model) is not None else None
    model = enough_for(model, scores)
    for chunk in masks:
        kept = chunk.to(pixels.device, pixels.dtype)[:, :, None]  # [B or 1, m, 1, H, W]
        blended = torch.lerp(baseline[:, None], pixels[:, None], kept).flatten(0, 1)
        seen = []
        with torch.no_grad():
            for part in torch.split(blended, together or len(blended)):
                with rounding(pixels.device, is_on=is_rounded):
                    outputs = model(images.with_pixels(part).channels_last())
                seen.append(torch.stack([score(outputs).float() for score in scores]))
        yield torch.cat(seen, dim=1).reshape(len(scores), len(images), -1)


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """How much the score drops, per hidden pixel, when a sliding window hides a place; signed.

    On a linear model with a window of one pixel this is every pixel's exact contribution.

    Attributes:
        patch: side of the window in canvas pixels; None: a seventh of the shorter side.
        stride: step of the window; None: half the window. At most ``patch``, so that every pixel is hidden once at
            least.
        baseline: what hidden pixels become.
        batch: pictures per forward pass.
    """

    name: ClassVar[str] = "occlusion"
    is_signed: ClassVar[bool] = True
    is_class_agnostic: ClassVar[bool] = False
    is_costly: ClassVar[bool] = True

    patch: int | None = None
    stride: int | None = None
    baseline: Baseline = "mean"
    batch: int = 64

    def __post_init__(self) -> None:
        if (self.patch is not None and self.patch < 1) or (self.stride is not None and self.stride < 1):
            raise ConfigError(f"patch {self.patch}, stride {self.stride}", where="occlusion", expected="at least 1")
        if self.patch is not None and self.stride is not None and self.stride > self.patch:
            raise ConfigError(
                f"stride {self.stride} is greater than patch {self.patch}, so some pixels would never be hidden",
                where="occlusion.stride",
                remedy="make the stride at most the patch",
            )

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Explain every score on every image; values are score drops per hidden pixel, ``[T, B, H, W]``."""
        del spec
        height, width = images.pixels.shape[-2:]
        patch = self.patch or max(round(min(height, width) / 7), 1)
        stride = min(self.stride or max(patch // 2, 1), patch)
        windows = _windows((height, width), patch, stride)
        at_once = masks_at_once(images, self.batch)
        with undisturbed(model):
            valid = _valid(images)
            total = images.pixels.new_zeros(len(scores), len(images), height, width, dtype=torch.float32)
            times = torch.zeros_like(total[0])
            baseline = baseline_pixels(model, images, self.baseline)
            whole = next(masked_scores(model, images, baseline, [torch.ones(1, 1, height, width)], scores))
            for start in range(0, len(windows), at_once):
                hidden = _hidden((height, width), patch, windows[start : start + at_once]).to(total.device)
                covered = hidden[None] * valid[:, None]  # [B, m, H, W]
                area = covered.sum((-2, -1))  # [B, m]
                seen = next(masked_scores(model, images, baseline, [1 - hidden[None]], scores))
                drop = (whole - seen) / area.clamp(min=1)
                with exact():
                    total += torch.einsum("tbm,bmhw->tbhw", drop, covered)
                times += covered.sum(1)
            return Attribution(total / times.clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class RISE:
    """Random masks weighted by the score they leave; signed, because the mean score is taken away.

    The value of a place is the mean score of the masks that show it, less the mean score of all masks. On a linear
    model its expectation is known in closed form (a smoothed map of the contributions) and its error falls as
    1/sqrt(number of masks).

    Attributes:
        num_masks: random masks, at most.
        grid: cells a side of the coarse random grid that is enlarged to a mask.
        keep: probability that a cell is shown.
        baseline: what hidden pixels become.
        is_centred: take the mean score away; without it the map is the mean score of the masks that show a place.
        tolerance: stop as soon as every map's relative standard error is at most this; None: use all masks.
        precision: ``auto`` lets the model compute in bfloat16 where that is fast and the scores of the first masks
            stay what they were; ``float32`` never.
        seed: of the private random generator.
        batch: pictures per forward pass.
    """

    name: ClassVar[str] = "rise"
    is_signed: ClassVar[bool] = True
    is_class_agnostic: ClassVar[bool] = False
    is_costly: ClassVar[bool] = True

    num_masks: int = 1000
    grid: int = 7
    keep: float = 0.5
    baseline: Baseline = "mean"
    is_centred: bool = True
    tolerance: float | None = None
    precision: Precision = "auto"
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        if self.num_masks < 2 or self.grid < 1 or not 0 < self.keep < 1:
            raise ConfigError(
                f"num_masks {self.num_masks}, grid {self.grid}, keep {self.keep}",
                where="rise",
                expected="num_masks at least 2, grid at least 1, keep between 0 and 1",
            )

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Explain every score on every image; values ``[T, B, H, W]``, error is the relative standard error."""
        del spec
        with undisturbed(model):
            return self._explained(model, images, scores)

    def _explained(self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn]) -> Attribution:
        height, width = images.pixels.shape[-2:]
        at_once = masks_at_once(images, self.batch)
        draws = draw_masks(self.num_masks, self.grid, self.keep, torch.Generator().manual_seed(self.seed))
        weighted = images.pixels.new_zeros(len(scores), len(images), height, width, dtype=torch.float32)
        shown = weighted.new_zeros(height, width)
        pooled: list[Tensor] = []
        seen: list[Tensor] = []
        device, done, is_rounded = images.pixels.device, 0, False
        may_round = self.precision == "auto" and self.num_masks > 2 * TRIAL and can_round(model, device)
        baseline = baseline_pixels(model, images, self.baseline)

        quick = model

        def scores_under(start: int, count: int, *, is_rounded: bool) -> tuple[Tensor, Tensor]:
            masks = draws.enlarged(start, count, (height, width)).to(device)
            asked = quick if is_rounded else model
            return masks, next(masked_scores(asked, images, baseline, [masks[None]], scores, is_rounded=is_rounded))

        while done < self.num_masks:
            count = min(at_once, self.num_masks - done)
            masks, chunk = scores_under(done, count, is_rounded=is_rounded)
            with exact():
                weighted += torch.einsum("tbm,mhw->tbhw", chunk, masks)
            shown += masks.sum(0)
            pooled.append(_pooled(masks))
            seen.append(chunk)
            done += count
            if may_round and done >= TRIAL:
                quick = quick_copy(model)
                again = [
                    scores_under(start, min(at_once, done - start), is_rounded=True)[1]
                    for start in range(0, done, at_once)
                ]
                is_rounded, may_round = agrees(torch.cat(seen, dim=-1), torch.cat(again, dim=-1)), False
            if self._is_enough(pooled, seen, done, at_once):
                break
        result = torch.cat(seen, dim=-1)  # [T, B, M]
        values = _estimate(weighted, shown, result, is_centred=self.is_centred)
        notes = (f"{done} random masks" + (", in bfloat16" if is_rounded else ""),)
        return Attribution(values, standard_error(torch.cat(pooled), result), notes=notes)

    def _is_enough(self, pooled: list[Tensor], seen: list[Tensor], done: int, at_once: int) -> bool:
        # A standard error from a handful of masks is itself noise: look at the earliest after some hundred masks, and
        # after as many again.
        if self.tolerance is None or done < FIRST_LOOK or done % FIRST_LOOK >= at_once:
            return False
        return float(standard_error(torch.cat(pooled), torch.cat(seen, dim=-1)).max()) <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class DRISE(RISE):
    """RISE about one object: what a mask leaves counts by how surely the object is still found where it was.

    Petsiuk et al. 2021, arXiv 2006.03204. RISE asks the same of a detector; here the cells are finer, because objects
    are smaller than pictures. Differs from the paper: the score of the asked class, not the similarity of all class
    scores; 1,000 masks instead of 5,000.
    """

    name: ClassVar[str] = "drise"

    grid: int = 12

    def __call__(
        self, model: nn.Module, images: ImageBatch, scores: Sequence[ScoreFn], spec: ExplainSpec
    ) -> Attribution:
        """Explain every score on every image.

        Raises:
            ExplainError: where a score is not about an object.
        """
        if any(when_hidden(score) is score for score in scores):
            raise ExplainError("D-RISE explains detections", where="method", remedy="choose method 'rise'")
        return super().__call__(model, images, scores, spec)


@dataclass(frozen=True, eq=False)
class MaskDraws:
    """The coin tosses behind random masks, drawn all at once so that they do not depend on how many are used together.

    Attributes:
        tosses: ``[M, 1, grid + 1, grid + 1]`` float32, 1 where a cell is shown.
        shifts: ``[M, 2]`` down and right, in [0, 1) of a cell.
    """

    tosses: Tensor
    shifts: Tensor

    def enlarged(self, start: int, count: int, size: tuple[int, int]) -> Tensor:
        """``count`` masks from ``start`` on, ``[count, H, W]`` in [0, 1], each enlarged and shifted."""
        height, width = size
        tosses, shifts = self.tosses[start : start + count], self.shifts[start : start + count]
        grid = tosses.shape[-1] - 1
        cell_h, cell_w = -(-height // grid), -(-width // grid)
        large = F.interpolate(tosses, ((grid + 1) * cell_h, (grid + 1) * cell_w), mode="bilinear", align_corners=False)
        rows = (shifts[:, :1] * cell_h).long() + torch.arange(height)
        columns = (shifts[:, 1:] * cell_w).long() + torch.arange(width)
        return large[torch.arange(len(tosses))[:, None, None], 0, rows[:, :, None], columns[:, None, :]]


def draw_masks(count: int, grid: int, keep: float, generator: torch.Generator) -> MaskDraws:
    """Coin tosses for ``count`` smooth random masks; ``keep`` is the probability that a cell is shown."""
    tosses = (torch.rand(count, 1, grid + 1, grid + 1, generator=generator) < keep).float()
    return MaskDraws(tosses, torch.rand(count, 2, generator=generator))


@exact()
def rise_values(masks: Tensor, seen: Tensor, *, is_centred: bool = True) -> Tensor:
    """The RISE map ``[T, B, H, W]`` of masks ``[M, H, W]`` and the scores ``[T, B, M]`` they left."""
    return _estimate(torch.einsum("tbm,mhw->tbhw", seen, masks), masks.sum(0), seen, is_centred=is_centred)


@exact()
def standard_error(masks: Tensor, seen: Tensor) -> Tensor:
    """Relative Monte-Carlo error ``[T, B]`` of a centred RISE map: root mean square of its standard error over its own.

    Where the map is nothing but rounding the error is infinite, or NaN where there is none to be told either.

    Args:
        masks: ``[M, ...]`` shares shown of some places.
        seen: ``[T, B, M]`` scores under the masks.
    """
    flat = masks.flatten(1).double()  # [M, P]
    seen = seen.double()
    count = len(flat)
    share = flat.mean(0).clamp(min=1e-12)  # [P]
    mean = seen.mean(-1, keepdim=True)  # [T, B, 1]
    ratio = seen @ flat / count / share  # [T, B, P]
    squared = torch.empty_like(ratio)
    for row in range(seen.shape[0]):
        for column in range(seen.shape[1]):
            here = seen[row, column, :, None]  # [M, 1]
            # First-order influence of one mask on (sum fM / sum M) - mean f; the variance of its mean is the
            # squared error.
            influence = (flat / share) * (here - ratio[row, column]) - (here - mean[row, column])
            squared[row, column] = influence.var(dim=0) / count
    size = (ratio - mean).square().mean(-1).sqrt()
    error = squared.mean(-1).sqrt()
    # Rounding in the sums above, relative to what was summed: scores may be of any scale.
    rounding_size = 1e-12 * seen.abs().amax(-1)
    size, error = (torch.where(number > rounding_size, number, 0.0) for number in (size, error))
    return (error / size).float()


def _estimate(weighted: Tensor, shown: Tensor, seen: Tensor, *, is_centred: bool) -> Tensor:
    """Mean score of the masks that show a place, from sums over masks: of score times mask, and of masks."""
    values = weighted / shown.clamp(min=torch.finfo(torch.float32).tiny)
    return values - seen.mean(-1)[..., None, None] if is_centred else values


def _pooled(masks: Tensor) -> Tensor:
    height, width = masks.shape[-2:]
    return F.adaptive_avg_pool2d(masks[:, None], (min(height, ERROR_GRID), min(width, ERROR_GRID)))[:, 0]


def _windows(size: tuple[int, int], patch: int, stride: int) -> list[tuple[int, int]]:
    """Top left corners of windows that cover the canvas; the last of a row ends at the edge."""

    def starts(length: int) -> list[int]:
        last = max(length - patch, 0)
        return [*range(0, last, stride), last]

    return [(top, left) for top in starts(size[0]) for left in starts(size[1])]


def _hidden(size: tuple[int, int], patch: int, corners: Sequence[tuple[int, int]]) -> Tensor:
    """``[m, H, W]``: 1 inside the window of each corner."""
    tops, lefts = torch.tensor(corners).unbind(1)
    rows, columns = torch.arange(size[0]), torch.arange(size[1])
    in_rows = (rows >= tops[:, None]) & (rows < tops[:, None] + patch)
    in_columns = (columns >= lefts[:, None]) & (columns < lefts[:, None] + patch)
    return (in_rows[:, :, None] & in_columns[:, None, :]).float()


def _valid(images: ImageBatch) -> Tensor:
    """``[B, H, W]``: 1 on the picture, 0 on padding."""
    valid = images.pixels.new_zeros(len(images), *images.pixels.shape[-2:], dtype=torch.float32)
    for image, (height, width) in enumerate(images.sizes):
        valid[image, :height, :width] = 1
    return valid
