"""Pictures and texts in one space: does a text find its picture, a picture its text, a picture its category by name.

Recall among the first k, both ways, as Karpathy & Fei-Fei 2014, arXiv 1412.2306, count it: every text is a query, and a
picture is answered by any of its texts. Differs from it: equal texts of several pictures count as right for all of
them, and ties go by expectation (``metrics.retrieval``).

N pictures · T texts · K categories · D width of the space
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from saccade.metrics.classification import confusion_matrix
from saccade.metrics.retrieval import Ranks, bootstrap_ratio, chance_recall, rank, right_share
from saccade.tasks.base import LEVEL, EvaluateConfig, Evaluation, Facts, Table, Tally, Task, known, percent
from saccade.types import Caption, Embedding, Prediction, Target, TaskName

PLACES = (1, 5, 10)
"""Numbers of first answers among which the right one is looked for."""

_AT_ONCE = 1 << 22
"""Scores that are computed together."""


@dataclass(frozen=True)
class Direction:
    """One way of looking: texts that look for pictures, or pictures that look for texts.

    Attributes:
        name: in words.
        recall: share of the queries whose right answer is among the first 1, 5, 10.
        chance: the same of a model that scores everything alike.
        median_place: median place of the first right answer.
        queries: how many looked.
        candidates: among how many.
    """

    name: str
    recall: tuple[float, ...]
    chance: tuple[float, ...]
    median_place: float
    queries: int
    candidates: int


@dataclass(frozen=True)
class Category:
    """One category: how many of its pictures got its name as the likeliest."""

    name: str
    right: float | None
    images: int


@dataclass(frozen=True)
class Miss:
    """One text that did not find its picture.

    Attributes:
        text: the query.
        index: place of its picture in the data set.
        source: path or ``file#index`` of it.
        place: expected place of its picture, from 1.
        found: place in the data set of the picture found first.
        found_source: path or ``file#index`` of that.
        found_text: the first text of that.
    """

    text: str
    index: int
    source: str
    place: float
    found: int
    found_source: str
    found_text: str


@dataclass(frozen=True, kw_only=True)
class ZeroShotEvaluation(Evaluation):
    """How well texts and pictures find each other.

    Attributes:
        directions: text to image, image to text.
        per_category: one row per category of the data.
        category_interval: 95 % bootstrap interval of the share of right categories; None without categories.
        mistakes: the texts whose picture stands last, worst first.
    """

    kind: ClassVar[TaskName] = "zero_shot"

    directions: tuple[Direction, ...]
    per_category: tuple[Category, ...]
    category_interval: tuple[float | None, float | None]
    mistakes: tuple[Miss, ...]

    def table(self) -> Table:
        """Recall both ways, with chance."""
        rows = []
        for way in self.directions:
            recalls = [f"{percent(r)} ({percent(c)})" for r, c in zip(way.recall, way.chance, strict=True)]
            rows.append((way.name, *recalls, f"{way.median_place:g}", f"{way.queries:,} in {way.candidates:,}"))
        return Table(("recall (by chance)", *(f"first {k}" for k in PLACES), "median place", "queries"), rows)

    def conditions(self) -> list[str]:
        """The categories, with chance beside them."""
        if not self.per_category:
            return []
        low, high = self.category_interval
        there = sum(1 for row in self.per_category if row.images)
        largest = max(row.images for row in self.per_category) / max(self.num_images, 1)
        told = (
            f"category by name: {percent(self.metrics['category'])} (95 % interval {percent(low)} to {percent(high)})"
        )
        among = f"among {len(self.per_category)} names" + (
            f", {there} of which occur here" * (there < len(self.classes))
        )
        return [f"{told} {among}; chance {percent(1 / len(self.per_category))}, the largest is {percent(largest)}"]

    def category_table(self) -> Table:
        """The categories, each with the share of its pictures that got its name."""
        rows = [(row.name, percent(row.right), f"{row.images:,}") for row in self.per_category if row.images]
        return Table(("category", "right", "images"), rows)

    def remarks(self) -> list[str]:
        """The texts whose picture stands last."""
        return [f"{m.text!r}: {m.source} is at place {m.place:g}, first is {m.found_source}" for m in self.mistakes]


class _Said(NamedTuple):
    """One text of a picture: the picture's number in the tally, and the number of the text among different texts."""

    owner: int
    number: int


class ZeroShotTally(Tally):
    """Gathers embeddings and lets them look for each other at the end."""

    def __init__(self, classes: tuple[str, ...], config: EvaluateConfig) -> None:
        self.classes, self.config = classes, config
        self._images: list[Tensor] = []
        self._texts: list[Tensor] = []
        self._said: list[_Said] = []
        self._strings: dict[str, int] = {}
        self._first: list[str] = []
        self._sources: list[str] = []
        self._indices: list[int] = []
        self._names: Tensor | None = None
        self._labels: Tensor | None = None

    def know_categories(self, names: Tensor, labels: Tensor) -> None:
        """Count categories as well.

        Args:
            names: ``[K, D]``, the embedded names.
            labels: ``[N]`` int64, the category of every picture of the data set.
        """
        self._names, self._labels = names.detach().float().cpu(), labels

    def add(
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        indices: Sequence[int],
        sources: Sequence[str],
    ) -> None:
        """Keep one batch of embeddings."""
        self.__dict__.pop("_results", None)
        for prediction, target in zip(predictions, targets, strict=True):
            assert isinstance(prediction, Embedding)
            assert isinstance(target, Caption)
            self._images.append(prediction.image.detach().float().cpu())
            self._texts.append(prediction.texts.detach().float().cpu())
            for text in target.texts:
                number = self._strings.setdefault(text, len(self._strings))
                self._said.append(_Said(len(self._images) - 1, number))
            self._first.append(target.texts[0])
        self._sources += sources
        self._indices += indices

    @cached_property
    def _results(self) -> _Results:
        return _Results(torch.stack(self._images), torch.cat(self._texts), self._said)

    def compute(self) -> dict[str, float]:
        """Recall and median place both ways; with categories the share of right ones."""
        results = self._results
        figures: dict[str, float] = {}
        for name, ranks in (("text_to_image", results.texts), ("image_to_text", results.images)):
            figures |= {f"{name}_{k}": float(ranks.recall(k).mean()) for k in PLACES}
            figures[f"{name}_place"] = float(ranks.place().median())
        if (shares := self._category_shares()) is not None:
            figures["category"] = float(shares.mean())
        return figures

    def evaluation(self, facts: Facts) -> ZeroShotEvaluation:
        """Everything that was counted."""
        results, config = self._results, self.config
        owners = torch.tensor([said.owner for said in self._said])
        counts = torch.bincount(owners, minlength=len(self._images))
        found = torch.zeros(len(self._images), dtype=torch.float64)
        found.index_add_(0, owners, results.texts.recall(PLACES[-1]))
        low, high = bootstrap_ratio(found, counts, config.resamples, config.seed, LEVEL)
        names = self.classes if self._names is not None else ()
        shares, labels = self._category_shares(), self._own_labels()
        interval: tuple[float, float] = (math.nan, math.nan)
        confusion: tuple[tuple[int, ...], ...] = ()
        if shares is not None and labels is not None and self._names is not None:
            interval = bootstrap_ratio(shares, torch.ones_like(shares), config.resamples, config.seed, LEVEL)
            predicted = (torch.stack(self._images) @ self._names.T).argmax(dim=1)
            confusion = tuple(tuple(row) for row in confusion_matrix(labels, predicted, len(names)).tolist())
        return ZeroShotEvaluation(
            task="zero_shot",
            headline=ZeroShotTask.headline,
            metrics={name: known(value) for name, value in self.compute().items()},
            interval=(known(low), known(high)),
            classes=names,
            directions=results.directions(),
            per_category=_categories(names, shares, labels),
            category_interval=(known(interval[0]), known(interval[1])),
            confusion=confusion,
            mistakes=self._worst(),
            num_images=len(self._sources),
            missing_classes=(),
            skipped=facts.skipped,
            settings=facts.settings,
            seconds=facts.seconds,
            images_per_second=len(self._sources) / facts.seconds,
        )

    def _own_labels(self) -> Tensor | None:
        return None if self._labels is None else self._labels[torch.tensor(self._indices, dtype=torch.int64)]

    def _category_shares(self) -> Tensor | None:
        """How right the category of each picture is ``[N]`` float64; None without categories."""
        labels = self._own_labels()
        if labels is None or self._names is None:
            return None
        return right_share(torch.stack(self._images) @ self._names.T, labels)

    def _worst(self) -> tuple[Miss, ...]:
        results = self._results
        places = results.texts.place()
        late = torch.nonzero(places > 1)[:, 0]
        wrong = late[places[late].argsort(descending=True, stable=True)][: self.config.num_mistakes].tolist()
        strings = list(self._strings)
        misses = []
        for query in wrong:
            owner, number = self._said[query]
            found = int(results.first[query])
            misses.append(
                Miss(
                    text=strings[number],
                    index=self._indices[owner],
                    source=self._sources[owner],
                    place=float(places[query]),
                    found=self._indices[found],
                    found_source=self._sources[found],
                    found_text=self._first[found],
                )
            )
        return tuple(misses)


class _Results:
    """All ranks of a tally.

    Attributes:
        texts: of the T texts that look for pictures.
        images: of the N pictures that look for texts.
        first: ``[T]`` int64, the picture that each text finds first.
    """

    def __init__(self, images: Tensor, texts: Tensor, said: Sequence[_Said]) -> None:
        self.num_images, self.num_texts = len(images), len(texts)
        numbers = torch.tensor([one.number for one in said])
        owners = torch.tensor([one.owner for one in said])
        # [V, N]: which pictures have a text, for each different text.
        has = torch.zeros(int(numbers.max()) + 1, len(images), dtype=torch.bool)
        has[numbers, owners] = True
        parts, firsts = [], []
        for part in _parts(len(texts), len(images)):
            scores = texts[part] @ images.T
            parts.append((rank(scores, has[numbers[part]]), has[numbers[part]].sum(dim=1)))
            firsts.append(scores.argmax(dim=1))
        self.texts, self._right_images = _joined(parts)
        self.first = torch.cat(firsts)
        parts = []
        for part in _parts(len(images), len(texts)):
            right = has[:, part].T[:, numbers]
            parts.append((rank(images[part] @ texts.T, right), right.sum(dim=1)))
        self.images, self._right_texts = _joined(parts)

    def directions(self) -> tuple[Direction, Direction]:
        """Both ways, with chance."""
        ways = (
            ("text to image", self.texts, self._right_images, self.num_images),
            ("image to text", self.images, self._right_texts, self.num_texts),
        )
        first, second = (
            Direction(
                name,
                tuple(float(ranks.recall(k).mean()) for k in PLACES),
                tuple(chance_recall(right, candidates, k) for k in PLACES),
                float(ranks.place().median()),
                len(right),
                candidates,
            )
            for name, ranks, right, candidates in ways
        )
        return first, second


def _parts(queries: int, candidates: int) -> Iterator[slice]:
    step = max(1, _AT_ONCE // max(candidates, 1))
    return (slice(start, start + step) for start in range(0, queries, step))


def _joined(parts: Sequence[tuple[Ranks, Tensor]]) -> tuple[Ranks, Tensor]:
    ranks = Ranks(*(torch.cat(column) for column in zip(*(part for part, _ in parts), strict=True)))
    return ranks, torch.cat([right for _, right in parts])


def _categories(names: tuple[str, ...], shares: Tensor | None, labels: Tensor | None) -> tuple[Category, ...]:
    if shares is None or labels is None:
        return ()
    of = [shares[labels == label] for label in range(len(names))]
    return tuple(Category(n, float(s.mean()) if len(s) else None, len(s)) for n, s in zip(names, of, strict=True))


class ZeroShotTask(Task):
    """Pictures and texts in one space."""

    name = "zero_shot"
    headline = "text_to_image_10"

    def tally(self, classes: tuple[str, ...], relabel: Tensor, config: EvaluateConfig) -> ZeroShotTally:
        """A new tally; ``relabel`` says nothing here, as a text needs no label."""
        return ZeroShotTally(classes, config)

    def quality(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The mean of all recalls, and of the categories where there are any."""
        recalls = [metrics[f"{way}_{k}"] for way in ("text_to_image", "image_to_text") for k in PLACES]
        mean = sum(recalls) / len(recalls)
        return ((mean + metrics["category"]) / 2,) if "category" in metrics else (mean,)

    def agreement(self, predictions: Sequence[Prediction], reference: Sequence[Prediction]) -> tuple[float, float]:
        """Share of pictures whose nearest neighbour among these is the same, and the largest 1 - cosine."""
        ours, theirs = (
            torch.stack([one.image for one in row if isinstance(one, Embedding)]) for row in (predictions, reference)
        )
        away = 1 - (ours * theirs).sum(dim=1)
        among = [(side @ side.T).fill_diagonal_(-math.inf) for side in (ours, theirs)]
        same = (among[0].argmax(dim=1) == among[1].argmax(dim=1)).float().mean()
        return float(same), float(away.max())

    def record(self, prediction: Prediction, top: int) -> dict[str, Any]:
        """The vector of the picture."""
        assert isinstance(prediction, Embedding)
        return {"embedding": prediction.image.tolist()}
