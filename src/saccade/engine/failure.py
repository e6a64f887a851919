"""What is kept when a loss becomes non-finite: weights, batch and random seed, enough to replay that one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.data.loader import Batch
from saccade.engine.checkpoint import build_described, describe_model, load_weights, read_container, write_container
from saccade.models.base import VisionModel
from saccade.types import BoxTarget, Caption, ClassTarget, Geometry, ImageBatch, Losses, MapTarget, Masks, Target

_WEIGHTS = "model."
_TARGETS = "targets."


def seed_step(*numbers: int) -> None:
    """Seed torch from (seed, step, batch of the step, process): a step's randomness depends on nothing before it."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def save_failure(
    path: Path, model: VisionModel[Any, Any, Any], batch: Batch, seeds: tuple[int, ...], about: Mapping[str, Any]
) -> None:
    """Write the step that failed.

    Raises:
        RunError: where the file cannot be written.
    """
    tensors: dict[str, Tensor] = {f"{_WEIGHTS}{key}": value for key, value in model.state_dict().items()}
    tensors["pixels"] = batch.images.pixels
    for index, target in enumerate(batch.targets):
        tensors |= {f"{_TARGETS}{index}.{name}": value for name, value in _pack(target).items()}
    header = {
        **describe_model(model),
        **about,
        "captions": [list(target.texts) if isinstance(target, Caption) else None for target in batch.targets],
        "seeds": list(seeds),
        "sources": list(batch.sources),
        "sizes": batch.images.sizes,
        "geometries": [dataclasses.asdict(geometry) for geometry in batch.images.geometries],
        "training": sorted(name for name, module in model.named_modules() if module.training),
    }
    write_container(path, tensors, header, "batch")


def replay(path: str | Path) -> Losses:
    """Compute the losses of the step saved in ``failure.safetensors`` again, for a look at where they break.

    Raises:
        WeightsError: where the file is not one, or is damaged.
    """
    tensors, header = read_container(path, "batch")
    model = build_described(header, where=str(path))
    weights = {key.removeprefix(_WEIGHTS): value for key, value in tensors.items() if key.startswith(_WEIGHTS)}
    load_weights(model, weights, where=str(path))
    is_training = set(header["training"])
    for name, module in model.named_modules():
        module.training = name in is_training
    images = ImageBatch(
        tensors["pixels"],
        tuple((height, width) for height, width in header["sizes"]),
        tuple(Geometry(*(tuple(pair) for pair in geometry.values())) for geometry in header["geometries"]),
    )
    packed: list[dict[str, Tensor]] = [{} for _ in images.sizes]
    for key, value in tensors.items():
        if key.startswith(_TARGETS):
            index, _, part = key.removeprefix(_TARGETS).partition(".")
            packed[int(index)][part] = value
    captions = header.get("captions") or [None] * len(packed)
    targets = [_unpack(parts, texts) for parts, texts in zip(packed, captions, strict=True)]
    seed_step(*header["seeds"])
    losses: Losses = model.loss(model(images, targets), targets)
    return losses


def _pack(target: Target) -> dict[str, Tensor]:
    """The tensors of a target, by name."""
    if isinstance(target, ClassTarget):
        return {"label": target.label}
    if isinstance(target, MapTarget):
        return {"map": target.labels}
    if isinstance(target, Caption):
        return {}
    parts = {"boxes": target.boxes, "labels": target.labels, "crowd": target.crowd}
    return parts if target.masks is None else {**parts, "masks": target.masks.dense()}


def _unpack(parts: Mapping[str, Tensor], texts: Sequence[str] | None) -> Target:
    """The target behind the tensors of ``_pack``, or behind the texts of a caption."""
    if texts is not None:
        return Caption(tuple(texts))
    if "label" in parts:
        return ClassTarget(parts["label"])
    if "map" in parts:
        return MapTarget(parts["map"])
    masks = Masks.of(parts["masks"]) if "masks" in parts else None
    return BoxTarget(parts["boxes"], parts["labels"], parts["crowd"], masks)
