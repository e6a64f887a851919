"""Many questions about many pictures at once: whatever can share a forward pass does.

T questions · B pictures
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from saccade.explanation.attribution import Attribution, Explainer
from saccade.explanation.questions import Asked
from saccade.explanation.verdict import Judge, Verdict
from saccade.types import ExplainSpec, ImageBatch


def attribute(
    model: nn.Module, spec: ExplainSpec, explainer: Explainer, images: ImageBatch, asked: list[list[Asked]]
) -> list[list[Attribution]]:
    """One attribution ``[1, 1, h, w]`` per picture and question.

    Where further scores cost almost nothing, the union of all questions is asked of the whole batch; elsewhere pictures
    with the same questions go together.
    """
    results: list[list[Attribution]] = [[] for _ in asked]
    if getattr(explainer, "shares_forward", True):
        groups = [(list(dict.fromkeys(q for row in asked for q in row)), list(range(len(asked))))]
    else:
        groups = _same_questions(asked)
    for questions, members in groups:
        part = _subset(images, members)
        attribution = explainer(model, part, [question.score for question in questions], spec)
        for place, index in enumerate(members):
            results[index] = [_pick(attribution, questions.index(question), place) for question in asked[index]]
    return results


def judged(
    judge: Judge | None,
    explainer: Explainer,
    images: ImageBatch,
    asked: list[list[Asked]],
    found: list[list[Attribution]],
) -> list[list[Verdict | None]]:
    """One verdict per picture and question; pictures with the same questions are judged together."""
    results: list[list[Verdict | None]] = [[None] * len(row) for row in asked]
    if judge is None:
        return results
    for questions, members in _same_questions(asked):
        columns = [[found[index][asked[index].index(question)] for index in members] for question in questions]
        scores = [question.score for question in questions]
        verdicts = judge(_subset(images, members), scores, explainer, _joined(columns))
        for place, index in enumerate(members):
            results[index] = [verdicts[questions.index(question)][place] for question in asked[index]]
    return results


def _same_questions(asked: list[list[Asked]]) -> list[tuple[list[Asked], list[int]]]:
    """Pictures grouped by what is asked of them, each question once."""
    members: dict[tuple[Asked, ...], list[int]] = {}
    for index, row in enumerate(asked):
        members.setdefault(tuple(dict.fromkeys(row)), []).append(index)
    return [(list(row), indices) for row, indices in members.items()]


def _subset(images: ImageBatch, members: list[int]) -> ImageBatch:
    sizes, geometries = (tuple(values[i] for i in members) for values in (images.sizes, images.geometries))
    return ImageBatch(images.pixels[members], sizes, geometries)  # type: ignore[arg-type]


def _joined(columns: list[list[Attribution]]) -> Attribution:
    """Attributions ``[1, 1, h, w]`` by question and picture, as one ``[T, B, h, w]``."""

    def join(name: str) -> Tensor | None:
        rows = [[getattr(attribution, name) for attribution in row] for row in columns]
        return None if rows[0][0] is None else torch.cat([torch.cat(row, dim=1) for row in rows])

    values = join("values")
    assert values is not None
    return replace(columns[0][0], values=values, error=join("error"), negative=join("negative"))


def _pick(attribution: Attribution, question: int, picture: int) -> Attribution:
    def one(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[question : question + 1, picture : picture + 1]

    values = attribution.values[question : question + 1, picture : picture + 1]
    return replace(attribution, values=values, error=one(attribution.error), negative=one(attribution.negative))
