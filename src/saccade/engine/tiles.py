"""Label maps of pictures of any size: whole where that fits, in overlapping tiles that are blended where it does not.

Overlapping tiles: Ronneberger et al. 2015, arXiv 1505.04597, figure 2. Differs from it: where two tiles overlap, their
probabilities are cross-faded. The outer quarters of an overlap count for nothing: there a tile has seen too little of
its surroundings. So a model that looks no further than that gives the same as on the whole picture; for this, tiles
begin at multiples of the model's stride, and what is missing at the right and bottom is filled as ``Segmenter.forward``
does it.

Memory: the picture as bytes, the result, and the probabilities of a batch of tiles and of one row's lower overlap.

K classes · h, w picture · th, tw tile · T tiles along an axis
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError, InputError
from saccade.models.segmenter import Segmenter, SegmenterOutputs
from saccade.types import ImageBatch, Segmentation

Run = Callable[[ImageBatch], SegmenterOutputs]
"""What makes logits ``[B, K, H, W]`` of pixels: a segmenter, or a faster copy of one."""

CPU_PIXELS = 400_000
"""Pixels per forward pass on a processor: the feature maps of more outgrow the caches."""

SMALLEST_TILE = 512
"""Tiles are at least this high and wide unless told otherwise: small ones are mostly overlap and see little around."""


@dataclass(frozen=True, kw_only=True)
class TileConfig(Config):
    """How pictures too large for one pass are cut."""

    whole_pixels: int = 1_500_000
    """Pictures of no more pixels than this go through the model whole."""
    size: tuple[int, int] | None = None
    """Height and width of the tiles of larger ones, rounded up to the model's stride; by default twice the
    training crop (``preprocess.size``), at least 512; for models whose pixels see the whole canvas the crop itself."""
    overlap: float = 0.25
    """Least share of a tile that it has in common with the next, per axis."""
    batch: int = 8
    """Most tiles per forward pass; on a processor no more than fit its caches."""

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"tiles are {self.size}", where="tiles.size", expected="at least 1x1")
        if not 0 <= self.overlap <= 0.5:
            raise ConfigError(f"overlap is {self.overlap}", where="tiles.overlap", expected="from 0 to 0.5")
        if self.batch < 1 or self.whole_pixels < 0:
            found = f"batch is {self.batch}, whole_pixels {self.whole_pixels}"
            raise ConfigError(found, where="tiles", expected="at least 1 and at least 0")


def segment_picture(run: Run, image: Tensor, model: Segmenter, plan: TileConfig | None = None) -> Segmentation:
    """The class of every pixel of one picture, however large; the result is on the CPU.

    Modes and gradients are the caller's: evaluation mode and ``torch.inference_mode()`` are meant.

    Args:
        run: the forward pass: ``model`` itself or a faster copy. Gets float32 pixels on the device of ``model``.
        image: ``[3, h, w]`` uint8 RGB, on any device.
        model: whose preprocessing, post-processing, stride and classes hold.
        plan: how large pictures are cut.

    Raises:
        InputError: where the picture is not ``[3, h, w]`` uint8 with at least one pixel.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or not image.numel():
        raise InputError(f"the image is {tuple(image.shape)} {image.dtype}", expected="[3, h, w] uint8 RGB")
    plan = plan or TileConfig()
    device = next(model.parameters()).device
    size = (int(image.shape[1]), int(image.shape[2]))
    if not needs_tiles(model, size, plan):
        images = model.preprocess([image]).to(device).channels_last()
        found = model.postprocess(run(images), images)[0]
        return Segmentation(found.labels.cpu(), found.confidence.cpu(), found.classes)
    rows, columns = _axes(model, size, plan)
    logits = _tile_logits(run, image, model, (rows, columns), plan.batch)
    labels, confidence = _blend(logits, rows, columns, len(model.classes), device)
    return Segmentation(labels, confidence, model.classes)


def needs_tiles(model: Segmenter, size: tuple[int, int], plan: TileConfig) -> bool:
    """Whether a picture of ``(h, w)`` is cut into tiles; pictures that are not can be batched as usual.

    Models that resize pictures to their canvas need no tiles.
    """
    fits = size[0] * size[1] <= plan.whole_pixels
    if model.sees_all:
        fits = all(side <= most for side, most in zip(size, plan.size or model.preprocess.size, strict=True))
    if model.preprocess.policy != "native" or fits:
        return False
    return any(len(axis.starts) > 1 for axis in _axes(model, size, plan))


@dataclass(frozen=True, eq=False)
class _Axis:
    """Where tiles lie along one axis of the picture, and what each of them says there.

    Attributes:
        starts: first pixel of each tile, multiples of the stride.
        length: pixels of a tile; the last one may reach beyond the picture by less than a stride.
        weights: ``[T, h]``, share that each tile has in each pixel; the shares of a pixel sum to 1.
        spans: from the first pixel in which a tile has a share to after its last; both rise from tile to tile.
        finished: up to where no later tile has a share, per tile.
    """

    starts: tuple[int, ...]
    length: int
    weights: Tensor
    spans: tuple[tuple[int, int], ...]
    finished: tuple[int, ...]

    @classmethod
    def of(cls, size: int, tile: int, overlap: float, stride: int) -> _Axis:
        """Tiles of at least ``tile`` pixels that overlap by at least the share ``overlap``, spread evenly."""
        # All in strides: then every distance is a whole number of them.
        total = -(-size // stride)
        length = min(-(-tile // stride), total)
        common = min(-(-int(overlap * length * stride) // stride), length - 1)
        count = -(-(total - common) // (length - common))
        starts = [index * (total - length) // max(count - 1, 1) * stride for index in range(count)]
        weights = _shares(starts, length * stride, size)
        seen = [row.nonzero()[:, 0] for row in weights]
        spans = tuple((int(places[0]), int(places[-1]) + 1) for places in seen)
        finished = (*(first for first, _ in spans[1:]), size)
        return cls(tuple(starts), length * stride, weights, spans, finished)


def _shares(starts: list[int], length: int, size: int) -> Tensor:
    """Weights ``[T, h]``: each tile hands over to the next in the middle half of their overlap, linearly."""
    centres = torch.arange(size) + 0.5
    # Row i: how far the picture has been handed over to tile i or a later one; falls from row to row, so that the
    # differences are never negative and sum to 1 whatever the overlaps.
    reached = torch.zeros(len(starts) + 1, size)
    reached[0] = 1
    for index in range(1, len(starts)):
        begin, end = starts[index], starts[index - 1] + length
        fade_from, fade_to = begin + (end - begin) / 4, end - (end - begin) / 4
        reached[index] = ((centres - fade_from) / max(fade_to - fade_from, 1e-6)).clamp(0, 1)
    return reached[:-1] - reached[1:]


def _axes(model: Segmenter, size: tuple[int, int], plan: TileConfig) -> tuple[_Axis, _Axis]:
    """The tiles along both axes of a picture of ``(h, w)``."""
    usual = (side if model.sees_all else max(2 * side, SMALLEST_TILE) for side in model.preprocess.size)
    tile = plan.size or tuple(usual)
    rows, columns = (_Axis.of(size[axis], tile[axis], plan.overlap, model.stride) for axis in range(2))
    return rows, columns


def _tile_logits(run: Run, image: Tensor, model: Segmenter, axes: tuple[_Axis, _Axis], batch: int) -> Iterator[Tensor]:
    """Logits ``[K, th, tw]`` of one tile after the other, row by row."""
    device = next(model.parameters()).device
    rows, columns = axes
    at_once = min(batch, max(CPU_PIXELS // (rows.length * columns.length), 1)) if device.type == "cpu" else batch
    places = itertools.product(rows.starts, columns.starts)
    while chunk := list(itertools.islice(places, at_once)):
        tiles = torch.stack([_cut(image, place, (rows.length, columns.length)) for place in chunk])
        # The bytes travel, not the numbers made of them.
        yield from run(ImageBatch.of(model.preprocess.normalise(tiles.to(device))).channels_last()).logits.detach()


def _cut(image: Tensor, place: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The tile ``[3, th, tw]`` at ``place``; beyond the picture its last row and column are repeated."""
    (top, left), (height, width) = place, size
    tile = image[:, top : top + height, left : left + width]
    if tuple(tile.shape[1:]) == size:
        return tile
    rows, columns = (
        torch.arange(side, device=image.device).clamp(max=int(tile.shape[axis]) - 1)
        for axis, side in ((1, height), (2, width))
    )
    return tile[:, rows][:, :, columns]


def _blend(
    tiles: Iterator[Tensor], rows: _Axis, columns: _Axis, num_classes: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Labels and confidence ``[h, w]`` from logits ``[K, th, tw]`` of the tiles, row by row.

    A pixel is decided as soon as no later tile has a share in it; only the probabilities of the others are kept: what
    the row above said of the first pixels of this one, and what the tile beside said of the first pixels of the next.
    """
    height, width = rows.finished[-1], columns.finished[-1]
    labels = torch.empty(height, width, dtype=torch.uint8)
    confidence = torch.empty(height, width, dtype=torch.float16)
    weights_down, weights_across = rows.weights.to(device), columns.weights.to(device)
    above = torch.empty(num_classes, 0, width, device=device)
    for row, (top, bottom) in enumerate(rows.spans):
        ready = rows.finished[row]
        below = torch.empty(num_classes, bottom - ready, width, device=device)
        beside = torch.empty(num_classes, bottom - top, 0, device=device)
        for column, ((left, right), done) in enumerate(zip(columns.spans, columns.finished, strict=True)):
            inside_down = slice(top - rows.starts[row], bottom - rows.starts[row])
            inside_across = slice(left - columns.starts[column], right - columns.starts[column])
            scores = next(tiles)[:, inside_down, inside_across].float().softmax(0)
            scores *= weights_down[row, top:bottom, None] * weights_across[column, left:right]
            scores[:, :, : beside.shape[2]] += beside
            beside = scores[:, :, done - left :]
            scores = scores[:, :, : done - left]
            scores[:, : above.shape[1]] += above[:, :, left:done]
            below[:, :, left:done] = scores[:, ready - top :]
            highest, likeliest = scores[:, : ready - top].max(dim=0)
            labels[top:ready, left:done] = likeliest.to("cpu", torch.uint8)
            confidence[top:ready, left:done] = highest.to("cpu", torch.float16)
        above = below
    return labels, confidence
