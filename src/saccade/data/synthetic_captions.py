"""Synthetic scenes with captions, some combinations of colour and shape never shown in training.

``train`` and ``val`` show 40 of the 48 combinations, ``test`` the other eight. Each colour and each shape is shown, so
whoever has learned what the words mean knows the combinations that were never there. A scene has a sentence about all
of it; a training may also take its object alone ("a red striped circle", "a red circle", "red circle") or one of its
words ("red", "circle").
"""

from __future__ import annotations

from pathlib import Path

from saccade.data.attributes import is_held_out
from saccade.data.captions import CaptionItem, CaptionsInMemory
from saccade.data.dataset import Opened
from saccade.data.shapes import COLOURS, SHAPES
from saccade.data.synthetic import Scene, SceneConfig, draw_scene
from saccade.types import Classes

COMBINATIONS = Classes(tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES))
"""Every colour of every shape, the categories of the scenes."""

SIZE = (48, 48)
"""Height and width of the embedded scenes in pixels."""

COUNT = 4800
"""How many of them are drawn; about a sixth shows combinations of the test."""

_VALIDATION_EVERY = 10


def scene_captions() -> Opened:
    """The embedded data set: scenes of 48x48 pixels with one object each."""
    note = "test shows 8 of the 48 combinations of colour and shape, which train and val never show"
    return Opened("embedded data set scene_captions", dict(draw_captioned(COUNT)), [note])


def draw_captioned(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> dict[str, CaptionsInMemory]:
    """Scenes with captions, by split: ``train``, ``val`` and ``test``.

    Args:
        count: how many in all.
        size: height and width in pixels.
        seed: the same seed draws the same scenes.
    """
    config = SceneConfig(size=size)
    splits: dict[str, list[CaptionItem]] = {"train": [], "val": [], "test": []}
    for index in range(count):
        scene = draw_scene(config, seed, index)
        thing = scene.objects[0]
        split = "val" if len(splits["train"]) >= (_VALIDATION_EVERY - 1) * (len(splits["val"]) + 1) else "train"
        if is_held_out(thing.colour, thing.shape):
            split = "test"
        splits[split].append(_item(scene, f"scene_captions/{split}#{index}"))
    licence = "CC0 1.0 (drawn by the program)"
    return {split: CaptionsInMemory(items, COMBINATIONS, Path(), licence) for split, items in splits.items()}


def _item(scene: Scene, source: str) -> CaptionItem:
    thing = scene.objects[0]
    combination = f"{thing.colour} {thing.shape}"
    article = thing.phrase.partition(" ")[0]
    parts = dict.fromkeys([thing.phrase, f"{article} {combination}", combination, thing.colour, thing.shape])
    return CaptionItem(scene.image, (scene.caption,), tuple(parts), COMBINATIONS.id(combination), source)
