"""Synthetic scenes on disk, in the formats of each task; a folder appears whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from saccade.data.attributes import FILE, is_held_out, scene_table, write_table
from saccade.data.synthetic import Scene, SceneConfig, draw_scene
from saccade.errors import ConfigError, DataError, UnknownNameError
from saccade.types import Classes

VALIDATION_EVERY = 5
"""Of each class, every fifth scene goes to validation."""


class _Drawn(NamedTuple):
    """A scene with its place in the folder."""

    name: str
    split: str
    scene: Scene


def write_scenes(
    out: str | Path,
    *,
    count: int = 200,
    size: int | tuple[int, int] = 96,
    task: str = "classification",
    seed: int = 0,
    shortcut: str | None = None,
    shortcut_rate: float = 1.0,
) -> Path:
    """Draw scenes into a new folder.

    ``classification`` gives ``train/SHAPE/*.png`` and ``val/SHAPE/*.png``; ``segmentation`` gives ``images/SPLIT`` and
    label maps in ``masks/SPLIT`` (0 is background); ``detection`` and ``instance`` give ``images/SPLIT`` and COCO JSON
    with boxes and masks in ``annotations``; ``captions`` gives ``images/SPLIT`` and ``captions.csv``; ``attributes``
    gives ``SPLIT/COLOUR SHAPE/*.png`` and ``attributes.csv``, and in ``test`` only combinations that training never
    shows. Every task adds ``scenes.json``, the whole truth.

    Args:
        out: folder to create.
        count: scenes in all; a fifth is for validation.
        size: height and width in pixels.
        task: one of the six; ``semantic`` is ``segmentation``, ``zero_shot`` is ``captions``.
        seed: the same seed draws the same scenes.
        shortcut: class that a watermark betrays.
        shortcut_rate: share of its scenes that carry the watermark.

    Raises:
        UnknownNameError: a task that does not exist.
        ConfigError: too few scenes, or too small ones.
        DataError: a folder that exists already or cannot be written.
    """
    task = {"semantic": "segmentation", "zero_shot": "captions"}.get(task, task)
    if task not in _WRITERS:
        raise UnknownNameError("task", task, _WRITERS)
    config = SceneConfig(
        size=(size, size) if isinstance(size, int) else size,
        objects=(1, 1) if task in {"classification", "attributes"} else (1, 4),
        shortcut=shortcut,
        shortcut_rate=shortcut_rate,
    )
    least = len(config.shapes) * VALIDATION_EVERY
    if count < least:
        raise ConfigError(f"count is {count}", where="count", expected=f"at least {least}: each class in each split")
    classes = Classes(config.shapes)
    with new_folder(Path(out)) as folder:
        facts = [_truth(drawn) | _WRITERS[task].one(folder, drawn, classes) for drawn in _draw(config, count, seed)]
        _WRITERS[task].last(folder, facts, classes)
        about = {"task": task, "seed": seed, "classes": classes.names, "licence": "CC0 1.0", "scenes": facts}
        (folder / "scenes.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        (folder / "LICENSE").write_text("CC0 1.0\n\nDrawn by a program; no rights reserved.\n", encoding="utf-8")
    return Path(out)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends well, and vanishes when it does not.

    Raises:
        DataError: where ``out`` exists, or the disk refuses.
    """
    if out.exists():
        raise DataError("the folder exists already", where=str(out), remedy="choose another name or delete it")
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(out)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = "check rights and free space"
        raise DataError(f"cannot be written ({reason})", where=str(out), remedy=remedy) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _draw(config: SceneConfig, count: int, seed: int) -> Iterator[_Drawn]:
    for index in range(count):
        is_held_out = (index // len(config.shapes)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
        yield _Drawn(f"{index:06d}.png", "val" if is_held_out else "train", draw_scene(config, seed, index))


def _truth(drawn: _Drawn) -> dict[str, Any]:
    scene = drawn.scene
    return {
        "split": drawn.split,
        "caption": scene.caption,
        "background": scene.background,
        "objects": [
            {"shape": o.shape, "colour": o.colour, "texture": o.texture, "box": o.box.tolist()} for o in scene.objects
        ],
        "watermark": scene.has_watermark,
    }


def _save(pixels: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = pixels.permute(1, 2, 0).numpy() if pixels.ndim == 3 else pixels.to(torch.uint8).numpy()
    Image.fromarray(array).save(path)


def _save_image(folder: Path, drawn: _Drawn) -> dict[str, Any]:
    _save(drawn.scene.image, folder / "images" / drawn.split / drawn.name)
    return {"file": f"images/{drawn.split}/{drawn.name}"}


def _one_classified(folder: Path, drawn: _Drawn, classes: Classes) -> dict[str, Any]:
    shape = drawn.scene.objects[0].shape
    _save(drawn.scene.image, folder / drawn.split / shape / drawn.name)
    return {"file": f"{drawn.split}/{shape}/{drawn.name}"}


def _one_described(folder: Path, drawn: _Drawn, classes: Classes) -> dict[str, Any]:
    thing = drawn.scene.objects[0]
    split = "test" if is_held_out(thing.colour, thing.shape) else drawn.split
    place = f"{split}/{thing.colour} {thing.shape}/{drawn.name}"
    _save(drawn.scene.image, folder / place)
    return {"file": place, "split": split}


def _one_segmented(folder: Path, drawn: _Drawn, classes: Classes) -> dict[str, Any]:
    _save(drawn.scene.label_map(classes), folder / "masks" / drawn.split / drawn.name)
    return _save_image(folder, drawn)


def _one_detected(folder: Path, drawn: _Drawn, classes: Classes) -> dict[str, Any]:
    masks = [plain_run_lengths(thing.mask) for thing in drawn.scene.objects]
    return _save_image(folder, drawn) | {"masks": masks, "size": list(drawn.scene.image.shape[-2:])}


def _one_captioned(folder: Path, drawn: _Drawn, classes: Classes) -> dict[str, Any]:
    return _save_image(folder, drawn)


def plain_run_lengths(mask: Tensor) -> dict[str, list[int]]:
    """A mask ``[h, w]`` bool as COCO's uncompressed run lengths: column by column, starting with the zeros."""
    flat = mask.t().reshape(-1).to(torch.int8)
    changes = torch.nonzero(flat.diff(prepend=torch.zeros(1, dtype=torch.int8)))[:, 0].tolist()
    bounds = [0, *changes, flat.numel()]
    counts = [after - before for before, after in pairwise(bounds)]
    return {"size": list(mask.shape), "counts": counts}


def _last_coco(folder: Path, facts: list[dict[str, Any]], classes: Classes) -> None:
    """COCO JSON per split; category ids count from 1, as is the custom there."""
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, fact in enumerate((fact for fact in facts if fact["split"] == split), 1):
            height, width = fact.pop("size")
            name = Path(fact["file"]).name
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for thing, mask in zip(fact["objects"], fact.pop("masks"), strict=True):
                left, top, right, bottom = thing["box"]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": classes.id(thing["shape"]) + 1,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": sum(mask["counts"][1::2]),
                        "iscrowd": 0,
                        "segmentation": mask,
                    }
                )
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(classes)]
        whole = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(whole), encoding="utf-8")


def _last_segmented(folder: Path, facts: list[dict[str, Any]], classes: Classes) -> None:
    (folder / "classes.json").write_text(json.dumps(["background", *classes]), encoding="utf-8")


def _last_captioned(folder: Path, facts: list[dict[str, Any]], classes: Classes) -> None:
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "caption", "split"])
        writer.writerows([fact["file"], fact["caption"], fact["split"]] for fact in facts)


def _last_described(folder: Path, facts: list[dict[str, Any]], classes: Classes) -> None:
    write_table(folder / FILE, scene_table(shapes=classes.names))


def _last_classified(folder: Path, facts: list[dict[str, Any]], classes: Classes) -> None:
    """Class folders say all there is to say."""


class _Writer(NamedTuple):
    """How one task writes a scene, and what it writes at the end."""

    one: Callable[[Path, _Drawn, Classes], dict[str, Any]]
    last: Callable[[Path, list[dict[str, Any]], Classes], None]


_WRITERS = {
    "classification": _Writer(_one_classified, _last_classified),
    "segmentation": _Writer(_one_segmented, _last_segmented),
    "detection": _Writer(_one_detected, _last_coco),
    "instance": _Writer(_one_detected, _last_coco),
    "attributes": _Writer(_one_described, _last_described),
    "captions": _Writer(_one_captioned, _last_captioned),
}
