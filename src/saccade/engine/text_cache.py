"""Embedded class names kept beside the weights: the second time the same classes are asked for no text is read.

One small file per question, in the folder ``texts`` beside the weights; its name is a digest of the weights, the
templates and the classes, so that it can never be used for others.

K classes · D width of the space
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saccade.engine.checkpoint import save_tensors, stored_digest
from saccade.engine.modes import evaluating
from saccade.errors import InputError, RunError
from saccade.models.base import VisionModel
from saccade.models.clip import Clip
from saccade.text.prompts import as_templates, check_names

FOLDER = "texts"
"""Where the embedded names are kept, beside the weights."""


def classifier_of(
    model: VisionModel[Any, Any, Any],
    classes: Sequence[str] | None,
    templates: str | Sequence[str] | None = None,
    file: Path | None = None,
) -> VisionModel[Any, Any, Any]:
    """A classifier of pictures by the names of classes.

    Args:
        model: puts pictures and texts into one space.
        classes: names.
        templates: what each name is put into: a named set, a file, or texts; the model's own where it is None.
        file: the weights of the model, where they come from a file of ours.

    Raises:
        InputError: no names, names that are empty or repeat, a name without a word that the model knows, a template
            without a place for the name.
    """
    assert isinstance(model, Clip)
    if classes is None:
        raise InputError(
            "a zero-shot model has no classes of its own",
            where="classes",
            expected="the names to tell apart",
            remedy='for example --classes "a cat,a dog", or classes=["a cat", "a dog"] in Python',
        )
    names = check_names(classes)
    chosen = as_templates(templates) or tuple(model.config.templates)
    place = None if file is None else place_of(file, names, chosen)
    known = None if place is None else _read(place, len(names))
    if known is None:
        if unknown := model.unknown(names):
            raise InputError(
                f"the model knows no word of {unknown[0]!r}",
                where="classes",
                expected="words of the captions it was trained on",
            )
        with evaluating(model), torch.no_grad():
            known = model.class_embeddings(names, chosen)
        if place is not None:
            write(place, known)
    return model.with_class_embeddings(names, known, chosen)


def place_of(file: Path, classes: Sequence[str], templates: Sequence[str]) -> Path | None:
    """The file that keeps these names in these templates; None where the weights do not say which they are."""
    weights = stored_digest(file)
    if weights is None:
        return None
    said = json.dumps([weights, list(classes), list(templates)])
    return file.parent / FOLDER / f"{hashlib.sha256(said.encode()).hexdigest()[:40]}.safetensors"


def _read(place: Path, count: int) -> Tensor | None:
    """The vectors ``[K, D]``, or None where there are none that can be used."""
    if not place.is_file():
        return None
    with suppress(SafetensorError, OSError), safe_open(place, framework="pt") as stored:
        found: Tensor = stored.get_tensor("embeddings")
        return found if found.ndim == 2 and len(found) == count else None
    return None


def write(place: Path, embeddings: Tensor) -> None:
    """Keep the vectors ``[K, D]``; a folder that takes no files costs time the next time, nothing else."""
    with suppress(RunError):
        save_tensors(place, {"embeddings": embeddings.detach().float().cpu().contiguous()})
