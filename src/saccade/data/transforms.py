"""Augmentation: one picture becomes many, and two pictures become one.

Every draw is a function of (seed, epoch, index of the sample): the same picture in the same epoch is augmented the same
way whatever the number of workers, the order of loading, or where a run was resumed.

Papers: random resized crop, Szegedy et al. 2014, arXiv 1409.4842; pad and crop, He et al. 2015, arXiv 1512.03385;
random erasing, Zhong et al. 2017, arXiv 1708.04896 (here filled with the mean colour); RandAugment, Cubuk et al. 2019,
arXiv 1909.13719; mixup, Zhang et al. 2017, arXiv 1710.09412; CutMix, Yun et al. 2019, arXiv 1905.04899; label
smoothing, Szegedy et al. 2015, arXiv 1512.00567; pictures without colour, Chen et al. 2020 (SimCLR), arXiv 2002.05709.

B pictures · h, w size · H, W canvas · K classes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError, UnknownNameError
from saccade.ops.image import Preprocess
from saccade.types import ImageBatch

AugmentPreset = Literal["none", "light", "standard", "microscope", "scenes", "objects"]

_Words = np.ndarray[Any, np.dtype[np.uint64]]

NUM_DRAWS = 13
"""Uniform numbers per sample and epoch, each used for one purpose: switching one option on leaves the others alone."""

GREY_DRAW = 31
"""Place of the number that takes the colours away: behind those that mosaics and captions draw after ``NUM_DRAWS``."""


@dataclass(frozen=True, kw_only=True)
class Augment(Config):
    """How training pictures are varied; everything is off by default."""

    scale: tuple[float, float] | None = None
    """Random resized crop: smallest and largest share of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: narrowest and widest aspect ratio, relative to the picture's own."""
    shift: float = 0.0
    """Largest shift along each axis, as a share of the side; what comes in is black."""
    flip: float = 0.0
    """Probability of a horizontal flip."""
    flip_vertical: float = 0.0
    """Probability of a vertical flip; for pictures without an up, such as those of a microscope."""
    zoom: tuple[float, float] | None = None
    """Smallest and largest magnification before a crop is cut; for label maps and objects only."""
    colour: float = 0.0
    """Strength of random brightness, contrast and saturation (a quarter of it for hue), in [0, 1]."""
    grey: float = 0.0
    """Probability of a picture without colours, so that what a thing is gets learned apart from its colour; hurts where
    colour alone tells things apart."""
    rand_augment: int = 0
    """Number of RandAugment operations."""
    magnitude: int = 9
    """Magnitude of the RandAugment operations, 0 to 30."""
    erase: float = 0.0
    """Probability of erasing a rectangle."""

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale is {self.scale}", where="augment", expected="0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ratio is {self.ratio}", where="augment", expected="0 < narrowest <= widest")
        if self.zoom is not None and not 0 < self.zoom[0] <= self.zoom[1]:
            raise ConfigError(f"zoom is {self.zoom}", where="augment", expected="0 < smallest <= largest")
        if self.zoom is not None and self.scale is not None:
            raise ConfigError("zoom and scale are both set", where="augment", expected="one of them")
        for name in ("shift", "flip", "flip_vertical", "colour", "grey", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="augment", expected="in [0, 1]")
        if self.rand_augment < 0 or not 0 <= self.magnitude <= 30:
            raise ConfigError("rand_augment is negative or magnitude is outside 0 to 30", where="augment")

    @classmethod
    def preset(cls, name: str) -> Augment:
        """A named setting: ``none``, ``light`` (small images, digits and clothes), ``standard`` (photographs).

        For label maps and objects: ``microscope``, ``scenes`` and ``objects``.

        Raises:
            UnknownNameError: with the nearest name.
        """
        if name not in PRESETS:
            raise UnknownNameError("augmentation preset", name, PRESETS)
        return PRESETS[name]

    @property
    def is_off(self) -> bool:
        """Whether nothing is varied."""
        strengths = (self.shift, self.flip, self.flip_vertical, self.colour, self.grey, self.erase)
        return self.scale is None and self.zoom is None and not self.rand_augment and not any(strengths)

    def __call__(self, images: Tensor, preprocess: Preprocess, key: Key) -> Tensor:
        """Vary pictures of one size and bring them to the size they have on the canvas.

        Args:
            images: ``[B, 3, h, w]`` uint8.
            preprocess: of the model; gives canvas, resampling kernel and mean colour.
            key: seed, epoch and the index of each picture.

        Returns:
            ``[B, 3, H, W]`` uint8, not padded (with ``letterbox`` the content may be smaller than the canvas).
        """
        draws = key.uniform(NUM_DRAWS)  # [B, 13]
        if self.scale is not None:
            size = preprocess.content_size(int(images.shape[-2]), int(images.shape[-1]))
            images = self._random_crop(images, preprocess, size, draws[:, 0:4])
        else:
            images, _ = preprocess.fit(images)
        if self.shift or self.flip:
            images = self._move(images, draws[:, 4:7])
        if self.flip_vertical:
            upset = torch.from_numpy(draws[:, 12] < self.flip_vertical)
            images = torch.where(upset[:, None, None, None], images.flip(2), images)
        return self.recolour(images, preprocess, key)

    def recolour(self, images: Tensor, preprocess: Preprocess, key: Key) -> Tensor:
        """What changes values and moves nothing: colours and erasing, on pictures ``[B, 3, H, W]`` uint8."""
        if self.colour or self.rand_augment:
            images = self._recolour(images, key)
        if self.grey:
            images = self._without_colours(images, key)
        if self.erase:
            images = self._erase(images, preprocess, key.uniform(NUM_DRAWS)[:, 7:12])
        return images

    def _random_crop(
        self, images: Tensor, preprocess: Preprocess, size: tuple[int, int], draws: np.ndarray[Any, Any]
    ) -> Tensor:
        height, width = int(images.shape[-2]), int(images.shape[-1])
        low, high = self.scale or (1.0, 1.0)
        area = low + draws[:, 0] * (high - low)
        ratio = np.exp(math.log(self.ratio[0]) + draws[:, 1] * math.log(self.ratio[1] / self.ratio[0]))
        # The canvas's own aspect is the neutral one, so that ratio 1 never distorts.
        ratio = ratio * (size[1] / size[0])
        crop_h = np.clip(np.rint(np.sqrt(area * height * width / ratio)), 1, height).astype(int)
        crop_w = np.clip(np.rint(np.sqrt(area * height * width * ratio)), 1, width).astype(int)
        tops = np.floor(draws[:, 2] * (height - crop_h + 1)).astype(int)
        lefts = np.floor(draws[:, 3] * (width - crop_w + 1)).astype(int)
        crops = []
        for image, top, left, tall, wide in zip(images, tops, lefts, crop_h, crop_w, strict=True):
            crops.append(preprocess.resize(image[None, :, top : top + tall, left : left + wide], size))
        return torch.cat(crops)

    def _move(self, images: Tensor, draws: np.ndarray[Any, Any]) -> Tensor:
        """Flip, then shift."""
        height, width = int(images.shape[-2]), int(images.shape[-1])
        reach_y, reach_x = round(self.shift * height), round(self.shift * width)
        downs = np.floor(draws[:, 0] * (2 * reach_y + 1)).astype(int) - reach_y
        rights = np.floor(draws[:, 1] * (2 * reach_x + 1)).astype(int) - reach_x
        moved = torch.zeros(images.shape, dtype=images.dtype)
        for image, canvas, down, right, draw in zip(images, moved, downs, rights, draws[:, 2], strict=True):
            window = canvas[:, max(down, 0) : height + down, max(right, 0) : width + right]
            source = image.flip(2) if draw < self.flip else image
            window.copy_(source[:, max(-down, 0) : height - down, max(-right, 0) : width - right])
        return moved

    def _recolour(self, images: Tensor, key: Key) -> Tensor:
        """Torchvision's transforms draw from torch's own generator: it is lent to them, seeded for each picture."""
        from torchvision.transforms import v2  # takes two seconds to import, and few commands augment

        steps: list[Callable[[Image.Image], Image.Image]] = []
        if self.rand_augment:
            steps.append(v2.RandAugment(self.rand_augment, self.magnitude))
        if self.colour:
            steps.append(v2.ColorJitter(self.colour, self.colour, self.colour, self.colour / 4))
        varied = []
        with _borrowed_generator() as generator:
            for image, seed in zip(images, key.seeds(), strict=True):
                generator.manual_seed(int(seed))
                # On Pillow's pictures these are more than twice as fast as on tensors.
                picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
                for step in steps:
                    picture = step(picture)
                varied.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        return torch.stack(varied)

    def _without_colours(self, images: Tensor, key: Key) -> Tensor:
        """Some of the pictures as their brightness (ITU-R 601), in all three channels."""
        is_grey = torch.from_numpy(key.uniform(GREY_DRAW + 1)[:, GREY_DRAW] < self.grey)
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        brightness = (images * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)
        return torch.where(is_grey[:, None, None, None], brightness, images)

    def _erase(self, images: Tensor, preprocess: Preprocess, draws: np.ndarray[Any, Any]) -> Tensor:
        height, width = int(images.shape[-2]), int(images.shape[-1])
        area = 0.02 + draws[:, 1] * 0.18
        ratio = np.exp((draws[:, 2] * 2 - 1) * math.log(3.0))
        tall = np.clip(np.rint(np.sqrt(area * ratio) * height), 1, height)
        wide = np.clip(np.rint(np.sqrt(area / ratio) * width), 1, width)
        top, left = np.floor(draws[:, 3] * (height - tall + 1)), np.floor(draws[:, 4] * (width - wide + 1))
        rows, columns = np.arange(height), np.arange(width)
        in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
        erased = (draws[:, 0] < self.erase)[:, None, None] & in_rows[:, :, None] & in_columns[:, None, :]
        mean = (torch.tensor(preprocess.mean) * 255).round().to(torch.uint8).view(3, 1, 1)
        return torch.where(torch.from_numpy(erased)[:, None], mean, images)


PRESETS: dict[str, Augment] = {
    "none": Augment(),
    "microscope": Augment(zoom=(0.6, 1.6), flip=0.5, flip_vertical=0.5, colour=0.5),
    "scenes": Augment(zoom=(0.5, 2.0), flip=0.5, colour=0.3),
    "objects": Augment(zoom=(0.6, 1.6), flip=0.5, colour=0.3),
    "light": Augment(shift=0.08, flip=0.5, erase=0.1),
    "standard": Augment(scale=(0.35, 1.0), flip=0.5, rand_augment=2, magnitude=7, erase=0.1),
}
"""Named settings."""


@dataclass(frozen=True)
class Key:
    """What every random draw depends on.

    Attributes:
        seed: of the run.
        epoch: counted from 0.
        indices: index in the data set of each picture.
    """

    seed: int
    epoch: int
    indices: Sequence[int]

    def uniform(self, count: int) -> np.ndarray[Any, Any]:
        """Numbers in [0, 1), ``[B, count]`` float64."""
        counters = self.seeds()[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (_scramble(counters) >> np.uint64(11)).astype(np.float64) / float(1 << 53)

    def seeds(self) -> np.ndarray[Any, Any]:
        """One seed per picture, ``[B]`` uint64 below 2^63."""
        state = _scramble(np.full(len(self.indices), self.seed % (1 << 64), dtype=np.uint64))
        state = _scramble(state ^ np.full(len(self.indices), self.epoch, dtype=np.uint64))
        return _scramble(state ^ np.asarray(self.indices, dtype=np.uint64)) >> np.uint64(1)


def _scramble(values: _Words) -> _Words:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): neighbouring counters give unrelated bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@contextmanager
def _borrowed_generator() -> Iterator[torch.Generator]:
    """Torch's default CPU generator, put back as it was."""
    generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)


@dataclass(frozen=True, kw_only=True)
class Mix(Config):
    """How pictures of a batch are blended with one another; everything is off by default."""

    mixup: float = 0.0
    """Beta parameter of mixup; 0 is off."""
    cutmix: float = 0.0
    """Beta parameter of CutMix; 0 is off. With both, each batch draws one of the two."""
    probability: float = 1.0
    """Share of batches that are blended."""
    label_smoothing: float = 0.0
    """Share of the label that is spread over all classes."""

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0:
            raise ConfigError("mixup or cutmix is negative", where="mix", expected="0 (off) or a positive number")
        if not 0 <= self.probability <= 1 or not 0 <= self.label_smoothing < 1:
            raise ConfigError("probability or label_smoothing is outside [0, 1)", where="mix")

    @property
    def is_off(self) -> bool:
        """Whether nothing is blended or smoothed."""
        return not (self.mixup or self.cutmix or self.label_smoothing)

    def __call__(
        self, images: ImageBatch, labels: Tensor, num_classes: int, seed: Sequence[int]
    ) -> tuple[ImageBatch, Tensor]:
        """Blend a batch.

        Args:
            images: normalised pictures.
            labels: ``[B]`` int64.
            num_classes: K.
            seed: numbers that name this batch (seed of the run, epoch, place in the epoch, rank).

        Returns:
            The blended pictures and their labels ``[B, K]`` float32, each summing to one.
        """
        generator = np.random.default_rng(list(seed))
        soft = F.one_hot(labels, num_classes).float()
        soft = soft * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        kinds = [kind for kind, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)) if alpha]
        if not kinds or len(labels) < 2 or generator.random() >= self.probability:
            return images, soft
        kind = kinds[int(generator.integers(len(kinds)))]
        partner = torch.from_numpy(generator.permutation(len(labels)))
        if kind == "mixup":
            kept = float(generator.beta(self.mixup, self.mixup))
            pixels = images.pixels.lerp(images.pixels[partner], 1 - kept)
        else:
            pixels, kept = self._cut(images.pixels, partner, generator)
        return images.with_pixels(pixels), soft.lerp(soft[partner], 1 - kept)

    def _cut(self, pixels: Tensor, partner: Tensor, generator: np.random.Generator) -> tuple[Tensor, float]:
        height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
        side = math.sqrt(1 - float(generator.beta(self.cutmix, self.cutmix)))
        centre_y, centre_x = generator.random(2)
        top, bottom = (round(min(max(centre_y + way * side / 2, 0), 1) * height) for way in (-1, 1))
        left, right = (round(min(max(centre_x + way * side / 2, 0), 1) * width) for way in (-1, 1))
        pixels = pixels.clone()
        pixels[..., top:bottom, left:right] = pixels[partner][..., top:bottom, left:right]
        return pixels, 1 - (bottom - top) * (right - left) / (height * width)
