"""Prompts as questions: what they become, and whether a map depends on the one that was asked.

A model of pictures and words answers any words, and a map of evidence can be drawn for any of them, also where the
model looked at the same pixels whatever it was asked. So the map of a second, different prompt is computed beside each;
where the two hardly differ, that is told.

K prompts · D width of the shared space
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from saccade.explanation.attribution import Attribution, Explainer
from saccade.explanation.questions import Asked, Question
from saccade.explanation.record import exact
from saccade.explanation.scores import class_score
from saccade.ops.image import Preprocess
from saccade.types import Classes, ImageBatch

ALIKE = 0.95
"""Correlation of two prompts' maps from which on a map is said to hardly depend on the prompt."""

NEUTRAL = "something"
"""What a single prompt is compared with."""


@runtime_checkable
class Prompted(Protocol):
    """A classifier whose classes are words: it scores patches against them too."""

    weight: Tensor
    classes: Classes
    preprocess: Preprocess

    def patch_logits(self, images: ImageBatch) -> Tensor:
        """``[B, K, h, w]``."""
        ...


@dataclass(frozen=True, eq=False)
class Contrast:
    """What a question is checked with.

    Attributes:
        own: the map of the prompt alone.
        other: the map of a prompt that it is compared with.
        words: that prompt.
    """

    own: Asked
    other: Asked
    words: str


def prompts_of(of: Sequence[Question], against: str | int | None) -> tuple[str, ...] | None:
    """The classes that questions in words stand for; None where a question is not in words.

    Args:
        of: what is asked.
        against: what it is contrasted with.
    """
    asked = [*of, *([] if against is None else [against])]
    words = tuple(dict.fromkeys(one for one in asked if isinstance(one, str)))
    if not words or any(not isinstance(one, str) for one in asked):
        return None
    return words if len(words) > 1 else (*words, NEUTRAL)


def contrasts_of(model: nn.Module, explainer: Explainer, asked: Sequence[Asked]) -> list[Contrast | None]:
    """What each question to a model is checked with; None where the model or the method takes no words."""
    if not isinstance(model, Prompted) or explainer.is_class_agnostic or len(model.classes) < 2:
        return [None] * len(asked)
    with exact():
        alike = model.weight.float() @ model.weight.float().T
    contrasts: list[Contrast | None] = []
    for question in asked:
        label, against = question.key
        if label == "own":  # a caller's score is about no prompt
            contrasts.append(None)
            continue
        # The prompt that means something else most: maps of two words for one thing ought to be alike.
        other = int(alike[label].argmin()) if against is None else int(against)
        contrasts.append(Contrast(_alone(model, label), _alone(model, other), model.classes[other]))
    return contrasts


def _alone(model: Prompted, label: int) -> Asked:
    return Asked((label, None), class_score(label), model.classes[label])


def beside(contrasts: Sequence[Contrast | None]) -> list[Asked]:
    """What has to be asked beside the questions themselves."""
    return [part for one in contrasts if one is not None for part in (one.own, one.other)]


def noted(known: Mapping[Asked, Attribution], question: Asked, contrast: Contrast | None) -> Attribution:
    """The map of a question, with a sentence where it hardly depends on the prompt.

    Args:
        known: the maps of everything that was asked.
        question: one of them.
        contrast: what it is checked with.
    """
    found = known[question]
    if contrast is None:
        return found
    correlation = correlated(known[contrast.own].values, known[contrast.other].values)
    if correlation is None or correlation < ALIKE:
        return found
    note = f"the map hardly depends on the prompt: that of {contrast.words!r} is nearly the same"
    return replace(found, notes=(*found.notes, f"{note} (correlation {correlation:.2f})"))


def correlated(first: Tensor, second: Tensor) -> float | None:
    """Pearson's correlation of two maps; None where one of them is flat."""
    pair = torch.stack([first.detach().flatten(), second.detach().flatten()]).double().cpu()
    centred = pair - pair.mean(dim=1, keepdim=True)
    lengths = centred.norm(dim=1)
    if float(lengths.min()) <= 1e-12 * max(float(pair.abs().max()), 1e-300):
        return None
    return float((centred[0] * centred[1]).sum() / lengths.prod())
