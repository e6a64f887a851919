"""Synthetic scenes: textured shapes on textured backgrounds, with the exact truth about every pixel.

They serve tests, studies and explanation: where the evidence lies is known, and a shortcut (a small watermark that
betrays one class) can be planted to see whether an explanation finds it. A scene is a function of (seed, index) alone.

N objects · h, w size
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from saccade.config import Config
from saccade.data.dataset import ArrayBatch, Dataset, Subset
from saccade.data.shapes import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, inside, paint
from saccade.errors import ConfigError, UnknownNameError
from saccade.types import BoxTarget, Classes, ClassTarget, Masks, Sample, TaskName

Thing = TypeVar("Thing")

_ATTEMPTS = 40
"""How often a place is sought for an object before the scene does with fewer."""

_LEAST_VISIBLE = 0.6
"""Share of an object that later objects and the watermark must leave visible."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig(Config):
    """What is drawn."""

    size: tuple[int, int] = (96, 96)
    """Height and width in pixels."""
    objects: tuple[int, int] = (1, 1)
    """Fewest and most objects of a scene."""
    shapes: tuple[str, ...] = tuple(SHAPES)
    """The classes."""
    radius: tuple[float, float] = (0.2, 0.36)
    """Smallest and largest radius of an object that is alone, as a share of the shorter side; where there are more
    objects, each is smaller, down to 0.59 times."""
    noise: float = 6.0
    """Standard deviation of the noise on every pixel, of 255."""
    shortcut: str | None = None
    """Class whose scenes carry a watermark."""
    shortcut_rate: float = 1.0
    """Share of the scenes of that class that carry it."""
    shortcut_leak: float = 0.0
    """Share of the other scenes that carry it."""

    def __post_init__(self) -> None:
        if min(self.size) < 16:
            raise ConfigError(f"scenes of {self.size} pixels are too small", where="size", expected="at least 16x16")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise ConfigError(f"objects is {self.objects}", where="objects", expected="1 <= fewest <= most")
        if not 0 < self.radius[0] <= self.radius[1] <= 0.5:
            raise ConfigError(f"radius is {self.radius}", where="radius", expected="0 < smallest <= largest <= 0.5")
        for shape in (*self.shapes, *([self.shortcut] if self.shortcut else [])):
            if shape not in SHAPES:
                raise UnknownNameError("shape", shape, SHAPES)
        if not self.shapes or len(set(self.shapes)) != len(self.shapes):
            raise ConfigError(f"shapes is {self.shapes}", where="shapes", expected="each name once")
        if self.noise < 0 or not 0 <= self.shortcut_rate <= 1 or not 0 <= self.shortcut_leak <= 1:
            raise ConfigError("noise is negative or a rate is outside [0, 1]", where="scene")


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object.

    Attributes:
        shape: its class.
        colour: name of its colour.
        texture: name of its texture.
        box: ``[4]`` float32 xyxy, tight around the visible pixels.
        mask: ``[h, w]`` bool, the visible pixels.
    """

    shape: str
    colour: str
    texture: str
    box: Tensor
    mask: Tensor

    @property
    def phrase(self) -> str:
        """The object in words: "a red striped circle"."""
        words = (_article(self.colour), self.colour, _adjective(self.texture), self.shape)
        return " ".join(word for word in words if word)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and the whole truth about it.

    Attributes:
        image: ``[3, h, w]`` uint8 RGB.
        objects: from back to front; the first decides the class.
        background: colour and texture of the background, by name.
        caption: one English sentence that is true of the picture.
        watermark: ``[h, w]`` bool, the pixels of the planted shortcut; empty where there is none.
    """

    image: Tensor
    objects: tuple[SceneObject, ...]
    background: tuple[str, str]
    caption: str
    watermark: Tensor

    @property
    def has_watermark(self) -> bool:
        """Whether the shortcut was planted here."""
        return bool(self.watermark.any())

    def target(self, classes: Classes, *, has_masks: bool = True) -> BoxTarget:
        """Boxes, labels and, where wanted, masks of the objects, from back to front."""
        boxes = torch.stack([thing.box for thing in self.objects])
        labels = torch.tensor([classes.id(thing.shape) for thing in self.objects], dtype=torch.int64)
        masks = Masks.of(torch.stack([thing.mask for thing in self.objects])) if has_masks else None
        return BoxTarget.of(boxes, labels, masks)

    def label_map(self, classes: Classes) -> Tensor:
        """``[h, w]`` int64: 0 where there is background, label + 1 on objects."""
        labels = torch.zeros(self.image.shape[-2:], dtype=torch.int64)
        for thing in self.objects:
            labels[thing.mask] = classes.id(thing.shape) + 1
        return labels


def draw_scene(config: SceneConfig, seed: int, index: int) -> Scene:
    """The scene number ``index``; its first object is of class ``index % K``, so classes are balanced.

    Args:
        config: what is drawn.
        seed: the same seed gives the same scenes.
        index: number of the scene, from 0.
    """
    generator = np.random.default_rng([seed % (1 << 63), index])
    height, width = config.size
    backdrop = _choose(generator, BACKGROUNDS), _choose(generator, TEXTURES)
    period = min(config.size) * (0.08 + 0.12 * generator.random())
    canvas = paint(BACKGROUNDS[backdrop[0]], backdrop[1], config.size, period, generator)
    first = config.shapes[index % len(config.shapes)]
    watermark = _stamp(canvas, config, _is_marked(config, first, generator))
    count = int(generator.integers(config.objects[0], config.objects[1] + 1))
    drawn: list[tuple[str, str, str]] = []
    masks: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    for place in range(count):
        shape = first if place == 0 else _choose(generator, config.shapes)
        mask = _place(shape, config, count, masks, watermark, generator)
        colour, texture = _choose(generator, COLOURS), _choose(generator, TEXTURES)
        if mask is None:
            continue
        fill = paint(COLOURS[colour], texture, config.size, min(config.size) * 0.09, generator)
        canvas[mask] = fill[mask]
        masks = [earlier & ~mask for earlier in masks] + [mask]
        drawn.append((shape, colour, texture))
    canvas = canvas + generator.normal(0, 1, (height, width, 3)) * config.noise
    objects = tuple(
        SceneObject(*words, _tight_box(mask), torch.from_numpy(mask)) for words, mask in zip(drawn, masks, strict=True)
    )
    image = torch.from_numpy(np.clip(np.rint(canvas), 0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()
    return Scene(image, objects, backdrop, _caption(objects, backdrop), torch.from_numpy(watermark))


def _choose(generator: np.random.Generator, names: Any) -> str:
    choices: Sequence[str] = tuple(names)
    return choices[int(generator.integers(len(choices)))]


def _is_marked(config: SceneConfig, shape: str, generator: np.random.Generator) -> bool:
    draw = generator.random()
    if config.shortcut is None:
        return False
    return bool(draw < (config.shortcut_rate if shape == config.shortcut else config.shortcut_leak))


def _stamp(canvas: np.ndarray[Any, Any], config: SceneConfig, is_marked: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Draw the watermark, black and white squares in the lower left corner; returns its pixels."""
    mask = np.zeros(config.size, dtype=np.bool_)
    if is_marked:
        side = max(min(config.size) // 8, 4)
        cell = max(side // 4, 1)
        top = config.size[0] - side - 2
        mask[top : top + side, 2 : 2 + side] = True
        rows, columns = np.nonzero(mask)
        canvas[rows, columns] = np.where(((rows - top) // cell + (columns - 2) // cell) % 2, 255.0, 0.0)[:, None]
    return mask


def _place(
    shape: str,
    config: SceneConfig,
    count: int,
    earlier: list[np.ndarray[Any, np.dtype[np.bool_]]],
    watermark: np.ndarray[Any, np.dtype[np.bool_]],
    generator: np.random.Generator,
) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Pixels of a shape at a place where the watermark stays whole and earlier objects stay well visible."""
    height, width = config.size
    areas = [max(int(mask.sum()), 1) for mask in earlier]
    crowding = 1.0 if count == 1 else 1.18 / math.sqrt(min(count, 4))
    for _ in range(_ATTEMPTS):
        radius = min(config.size) * generator.uniform(*config.radius) * crowding
        centre = generator.uniform(radius, height - radius), generator.uniform(radius, width - radius)
        mask = inside(shape, config.size, centre, radius, generator.uniform(-math.pi, math.pi)) & ~watermark
        shares = [int((mask & other).sum()) / area for other, area in zip(earlier, areas, strict=True)]
        if mask.any() and max(shares, default=0.0) <= (1 - _LEAST_VISIBLE) / max(count - 1, 1):
            return mask
    return None


def _tight_box(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Tensor:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)


def _adjective(texture: str) -> str:
    return "" if texture == "plain" else texture


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _caption(objects: tuple[SceneObject, ...], backdrop: tuple[str, str]) -> str:
    phrases = [thing.phrase for thing in objects]
    if len(objects) == 2:
        first, second = (float(thing.box[0] + thing.box[2]) for thing in objects)
        side = "to the left of" if first < second else "to the right of"
        subject = f"{phrases[0]} {side} {phrases[1]}"
    else:
        subject = ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]
    ground = " ".join(word for word in (backdrop[0], _adjective(backdrop[1]), "background") if word)
    return f"{subject} on {_article(ground)} {ground}"


class Drawn(Sequence[Thing]):
    """Things in memory, each drawn when it is first looked at.

    Args:
        draw: makes a thing from its number.
        numbers: of the things.
    """

    def __init__(self, draw: Callable[[int], Thing], numbers: range) -> None:
        self.draw, self.numbers = draw, numbers
        self._kept: dict[int, Thing] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Thing: ...

    @overload
    def __getitem__(self, index: slice) -> list[Thing]: ...

    def __getitem__(self, index: int | slice) -> Thing | list[Thing]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        number = self.numbers[index]
        if number not in self._kept:
            self._kept[number] = self.draw(number)
        return self._kept[number]


class SyntheticClassification:
    """Scenes whose class is the shape of the first object, in memory; ``scenes`` holds the truth about each.

    Args:
        count: number of scenes.
        config: what is drawn.
        seed: the same seed gives the same scenes.
        start: number of the first scene; ranges that do not overlap make splits that do not overlap.
    """

    task: TaskName = "classification"
    licence: str | None = "CC0 1.0 (drawn by the program)"

    def __init__(self, count: int, config: SceneConfig | None = None, *, seed: int = 0, start: int = 0) -> None:
        self.config = config or SceneConfig()
        self.seed = seed
        self.start = start
        self.classes = Classes(self.config.shapes)
        self.scenes = Drawn(partial(draw_scene, self.config, seed), range(start, start + count))
        # The first object of a scene is of the class that its number says.
        self._labels = torch.arange(start, start + count) % len(self.classes)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        return Sample(self.scenes[index].image, ClassTarget(self._labels[index]), self.source(index))

    def gather(self, indices: Tensor) -> ArrayBatch:
        """The pictures and labels at ``indices``."""
        images = [self.scenes[index].image for index in indices.tolist()]
        return ArrayBatch(torch.stack(images), self._labels[indices])

    def source(self, index: int) -> str:
        """Seed and number of a scene."""
        return f"synthetic/{self.seed}#{self.start + index}"

    def labels(self) -> Tensor:
        """The label of every sample ``[N]`` int64."""
        return self._labels

    def fingerprint(self) -> str:
        """A SHA-256 over what decides the scenes."""
        return _fingerprint(self.config, self.seed, self.start, len(self))


class SyntheticObjects:
    """Scenes whose shapes are to be found: boxes and, for ``instance``, masks of the visible pixels, in memory.

    The truth about a scene beyond that (colours, textures, a sentence) is ``draw_scene(config, seed, start + index)``.

    Args:
        count: number of scenes.
        config: what is drawn.
        seed: the same seed gives the same scenes.
        start: number of the first scene; ranges that do not overlap make splits that do not overlap.
        task: ``instance``, or ``detection`` for boxes alone.
    """

    licence: str | None = "CC0 1.0 (drawn by the program)"

    def __init__(
        self, count: int, config: SceneConfig, *, seed: int = 0, start: int = 0, task: TaskName = "instance"
    ) -> None:
        if task not in {"instance", "detection"}:
            raise ConfigError(f"task is {task}", where="task", expected="instance or detection")
        self.config = config
        self.seed = seed
        self.start = start
        self.task: TaskName = task
        self.classes = Classes(config.shapes)
        self._samples = Drawn(self._sample, range(start, start + count))

    def _sample(self, number: int) -> Sample:
        scene = draw_scene(self.config, self.seed, number)
        target = scene.target(self.classes, has_masks=self.task == "instance")
        return Sample(scene.image, target, f"synthetic/{self.seed}#{number}")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def fingerprint(self) -> str:
        """A SHA-256 over what decides the scenes."""
        return _fingerprint(self.config, self.seed, self.start, len(self), self.task)


def draw_all(dataset: Dataset) -> None:
    """Draw the scenes of a data set, or of a choice from one, that nobody looked at yet; of other data nothing."""
    whole = dataset.dataset if isinstance(dataset, Subset) else dataset
    if isinstance(whole, SyntheticClassification | SyntheticObjects):
        for index in range(len(dataset)):
            dataset[index]


def synthetic_objects(
    count: int,
    size: int | tuple[int, int] = 96,
    seed: int = 0,
    *,
    objects: tuple[int, int] = (2, 6),
    start: int = 0,
    task: TaskName = "instance",
) -> SyntheticObjects:
    """Scenes of several shapes that may overlap; two of three scenes hold two objects of one class.

    Args:
        count: number of scenes.
        size: height and width in pixels.
        seed: the same seed gives the same scenes.
        objects: fewest and most objects of a scene.
        start: number of the first scene.
        task: ``instance``, or ``detection`` for boxes alone.
    """
    config = SceneConfig(size=(size, size) if isinstance(size, int) else size, objects=objects)
    return SyntheticObjects(count, config, seed=seed, start=start, task=task)


def _fingerprint(config: SceneConfig, *facts: int | str) -> str:
    return hashlib.sha256(json.dumps([asdict(config), *facts], sort_keys=True).encode()).hexdigest()
