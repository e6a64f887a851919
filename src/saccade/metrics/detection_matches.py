"""Which detection is which true object: one by one, so that figures can be resampled, broken down and shown.

The rule of COCO (Lin et al. 2014, arXiv 1405.0312): of one class in one picture the likeliest detection chooses first,
the object that it overlaps most among those that are left, if it overlaps it enough; else it may lie on a crowd and is
ignored. All groups of a width are matched together, rank by rank. Interval: the bootstrap over pictures (Efron 1979)
with Poisson weights (Chamandy et al. 2012).

N detections · G true objects, of all pictures · T thresholds · R resamples · K classes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from saccade.metrics.detection import HALF, RECALLS, THRESHOLDS, Picture
from saccade.metrics.overlap import Flags, Floats, Labels

FREE = -1
"""Mark of a detection that is no object: a false alarm."""
IGNORED = -2
"""Mark of a detection on a crowd: neither right nor wrong."""

_AT_ONCE = 1 << 22
"""Numbers that are worked on together, so that memory stays small."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Every detection that counts, with what became of it.

    Attributes:
        picture: ``[N]``, place of its picture.
        row: ``[N]``, its place among the detections of that picture.
        labels: ``[N]``.
        scores: ``[N]``.
        matched: ``[N, T]``, number of its true object, ``FREE`` or ``IGNORED``.
        true_picture: ``[G]``, place of the picture of each true object.
        true_labels: ``[G]``.
        crowd: ``[G]``.
        first_true: ``[pictures + 1]``, number of the first true object of each picture.
    """

    picture: Labels
    row: Labels
    labels: Labels
    scores: Floats
    matched: Labels
    true_picture: Labels
    true_labels: Labels
    crowd: Flags
    first_true: Labels

    def ranked(self, label: int) -> Labels:
        """Numbers of the detections of a class, likeliest first; equal scores in the order of the pictures."""
        numbers = np.flatnonzero(self.labels == label)
        order: Labels = numbers[np.argsort(-self.scores[numbers], kind="stable")]
        return order

    def objects(self, label: int) -> Labels:
        """Numbers of the true objects of a class that can be found."""
        return np.flatnonzero((self.true_labels == label) & ~self.crowd)

    def occurring(self) -> list[int]:
        """Classes with an object that can be found."""
        return sorted(set(self.true_labels[~self.crowd].tolist()))


class _Group(NamedTuple):
    """Detections ``numbers [D]`` and objects ``true [G]`` of one class in one picture, with ``overlaps [D, G]``."""

    numbers: Labels
    true: Labels
    overlaps: Floats


def match(pictures: Sequence[Picture], most: int) -> Matches:
    """Match the detections of all pictures at all thresholds.

    Args:
        pictures: as ``DetectionMeter.pictures`` has them.
        most: detections of one class in one picture that count, the likeliest first.
    """
    first = np.cumsum([0, *(len(picture.scores) for picture in pictures)])
    first_true = np.cumsum([0, *(len(picture.crowd) for picture in pictures)])
    counts = np.zeros(first[-1], dtype=np.bool_)
    on_crowd = np.zeros(first[-1])
    groups: list[_Group] = []
    for place, picture in enumerate(pictures):
        for ours, theirs in picture.groups.values():
            ours = ours[:most]
            numbers = first[place] + ours
            counts[numbers] = True
            crowd = picture.crowd[theirs]
            if len(ours) and crowd.any():
                on_crowd[numbers] = picture.overlaps[ours[:, None], theirs[crowd]].max(1)
            objects = theirs[~crowd]
            if len(ours) and len(objects):
                matrix = picture.overlaps[ours[:, None], objects]
                groups.append(_Group(numbers, first_true[place] + objects, matrix))
    matched = np.full((first[-1], len(THRESHOLDS)), FREE, dtype=np.int64)
    for chunk in _chunks(groups):
        _choose(chunk, matched)
    matched[(matched == FREE) & (on_crowd[:, None] >= _limits()) & (on_crowd[:, None] > 0)] = IGNORED
    sizes = [len(picture.scores) for picture in pictures]
    true_sizes = [len(picture.crowd) for picture in pictures]
    row = np.arange(first[-1]) - np.repeat(first[:-1], sizes)
    return Matches(
        np.repeat(np.arange(len(pictures)), sizes)[counts],
        row[counts],
        _joined([picture.labels for picture in pictures], np.int64)[counts],
        _joined([picture.scores for picture in pictures], np.float64)[counts],
        matched[counts],
        np.repeat(np.arange(len(pictures)), true_sizes),
        _joined([picture.true_labels for picture in pictures], np.int64),
        _joined([picture.crowd for picture in pictures], np.bool_),
        first_true,
    )


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=kind), *parts])


def _limits() -> Floats:
    """The thresholds, a little below 1 at most, as COCO's program has them."""
    return np.minimum(THRESHOLDS, 1 - 1e-10)


def _chunks(groups: list[_Group]) -> list[list[_Group]]:
    """Groups of like width together, those with most detections first."""
    chunks: list[list[_Group]] = []
    held = 0
    for group in sorted(groups, key=lambda one: (len(one.true).bit_length(), -len(one.numbers))):
        width = 1 << len(group.true).bit_length()
        is_like = bool(chunks) and len(chunks[-1][0].true).bit_length() == len(group.true).bit_length()
        if not is_like or held > _AT_ONCE:
            chunks.append([])
            held = 0
        chunks[-1].append(group)
        held += len(chunks[-1][0].numbers) * width + len(THRESHOLDS) * width
    return chunks


def _choose(groups: list[_Group], matched: Labels) -> None:
    """Fill the rows of ``matched [N, T]`` of these groups, which have their detections in falling number."""
    depth, width = len(groups[0].numbers), max(len(group.true) for group in groups)
    overlaps = np.full((len(groups), depth, width), -1.0)
    numbers = np.zeros((len(groups), depth), dtype=np.int64)
    true = np.zeros((len(groups), width), dtype=np.int64)
    for place, group in enumerate(groups):
        overlaps[place, : len(group.numbers), : len(group.true)] = group.overlaps
        numbers[place, : len(group.numbers)] = group.numbers
        true[place, : len(group.true)] = group.true
    depths = np.array([len(group.numbers) for group in groups])
    is_taken = np.zeros((len(groups), len(THRESHOLDS), width), dtype=np.bool_)
    limits = _limits()
    steps = np.arange(len(THRESHOLDS))[None]
    for rank in range(depth):
        active = int((depths > rank).sum())
        places = np.arange(active)[:, None]
        offered = np.where(is_taken[:active], -1.0, overlaps[:active, rank, None])
        best = width - 1 - offered[..., ::-1].argmax(-1)  # of equal overlaps the last object
        is_hit = offered[places, steps, best] >= limits
        is_taken[places, steps, best] |= is_hit
        matched[numbers[:active, rank]] = np.where(is_hit, true[places, best], FREE)


def average_precision(is_hit: Flags, num_objects: int) -> float:
    """Precision at the 101 recalls, interpolated and averaged; NaN without an object.

    Args:
        is_hit: ``[N]`` of the detections that count, likeliest first.
        num_objects: that are to be found.
    """
    if not num_objects:
        return math.nan
    if not is_hit.any():
        return 0.0
    weights = np.ones((1, len(is_hit)), dtype=np.int64)
    return float(_weighted_ap(weights, np.flatnonzero(is_hit), np.cumsum(weights, 1), np.array([num_objects]))[0])


def _weighted_ap(weights: Labels, hits: Labels, seen: Labels, num_objects: Labels) -> Floats:
    """AP ``[R]`` of detections that count ``weights [R, N]`` times each.

    Args:
        weights: how often each detection is there.
        hits: places of those that are right.
        seen: ``[R, N]``, how many detections there are up to each.
        num_objects: ``[R]``, how many objects there are.
    """
    right = np.cumsum(weights[:, hits], 1)
    precision = right / np.maximum(seen[:, hits], 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    # How many of the 101 recalls are reached at each hit, and how many of them are new there.
    reached = np.searchsorted(RECALLS, right / np.maximum(num_objects, 1)[:, None], side="right")
    new = np.diff(reached, prepend=0, axis=1)
    figures: Floats = (envelope * new).sum(1) / len(RECALLS)
    return figures


def resampled_ap(matches: Matches, indices: Sequence[int], resamples: int, seed: int) -> Floats:
    """The headline AP of each resample of the pictures, ``[R]``; NaN where a resample has no object.

    Args:
        matches: of all pictures.
        indices: place of each picture in the data set; decides its weights.
        resamples: R.
        seed: of the weights.
    """
    # How often a picture is drawn is binomial(N, 1/N), for many pictures Poisson(1).
    drawn = np.stack([np.random.default_rng([seed, index]).poisson(1.0, resamples) for index in indices], axis=1)
    total, classes = np.zeros(resamples), np.zeros(resamples)
    for label in matches.occurring():
        order = matches.ranked(label)
        objects = drawn[:, matches.true_picture[matches.objects(label)]].sum(1)
        chunk = max(_AT_ONCE // max(len(order), 1), 1)
        for start in range(0, resamples, chunk):
            rows = slice(start, start + chunk)
            weights = drawn[rows][:, matches.picture[order]]
            total[rows] += np.where(objects[rows] > 0, _mean_ap(weights, matches.matched[order], objects[rows]), 0.0)
        classes += objects > 0
    figures: Floats = np.where(classes > 0, total / np.maximum(classes, 1), math.nan)
    return figures


def _mean_ap(weights: Labels, matched: Labels, num_objects: Labels) -> Floats:
    """AP ``[R]`` of one class, averaged over the thresholds."""
    figures = np.zeros(len(weights))
    seen = np.cumsum(weights, 1)
    for step in range(len(THRESHOLDS)):
        is_ignored = matched[:, step] == IGNORED
        hits = np.flatnonzero(matched[:, step] >= 0)
        if len(hits):
            counted = np.cumsum(weights * ~is_ignored, 1) if is_ignored.any() else seen
            figures += _weighted_ap(weights, hits, counted, num_objects)
    return figures / len(THRESHOLDS)


def interval(matches: Matches, indices: Sequence[int], resamples: int, seed: int, level: float) -> tuple[float, float]:
    """Percentile bootstrap interval of AP over pictures; NaN without an object.

    Args:
        matches: of all pictures.
        indices: place of each picture in the data set.
        resamples: R.
        seed: of the weights.
        level: share of the resampled figures inside the interval.
    """
    if not len(indices):
        return math.nan, math.nan
    figures = resampled_ap(matches, indices, resamples, seed)
    figures = figures[~np.isnan(figures)]
    if not len(figures):
        return math.nan, math.nan
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class BestPoint(NamedTuple):
    """Where the F1 score of a class is highest, at an overlap of 0.5; NaN where nothing can be said.

    Attributes:
        precision: share of the detections from ``score`` on that are right.
        recall: share of the objects that these find.
        f1: of the two.
        score: the lowest that is taken.
    """

    precision: float
    recall: float
    f1: float
    score: float


def best_point(matches: Matches, label: int, step: int = HALF) -> BestPoint:
    """The score from which the detections of a class have the highest F1; the highest such score."""
    num_objects = len(matches.objects(label))
    order = matches.ranked(label)
    order = order[matches.matched[order, step] != IGNORED]
    if not len(order):
        return BestPoint(math.nan, 0.0 if num_objects else math.nan, 0.0 if num_objects else math.nan, math.nan)
    scores = matches.scores[order]
    right = np.cumsum(matches.matched[order, step] >= 0)
    # A threshold takes all of equal score.
    ends = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))
    taken = ends + 1
    f1 = 2 * right[ends] / (taken + num_objects)
    best = int(f1.argmax())
    hits = int(right[ends][best])
    recall = hits / num_objects if num_objects else math.nan
    return BestPoint(hits / int(taken[best]), recall, float(f1[best]), float(scores[ends][best]))


class PictureCounts(NamedTuple):
    """Per picture, at an overlap of 0.5 and from some score on, ``[pictures]``.

    Attributes:
        right: objects that were found.
        wrong: detections that are no object.
        missed: objects that were not found.
    """

    right: Labels
    wrong: Labels
    missed: Labels

    def f1(self) -> Floats:
        """F1 of each picture; NaN where there was nothing and nothing was found."""
        whole = 2 * self.right + self.wrong + self.missed
        figures: Floats = np.where(whole > 0, 2 * self.right / np.maximum(whole, 1), math.nan)
        return figures


def count_pictures(matches: Matches, score: float, step: int = HALF) -> PictureCounts:
    """Right, wrong and missed objects of every picture, from this score on."""
    pictures = len(matches.first_true) - 1
    is_taken = matches.scores >= score
    chosen = matches.matched[:, step]
    right = np.bincount(matches.picture[is_taken & (chosen >= 0)], minlength=pictures)
    wrong = np.bincount(matches.picture[is_taken & (chosen == FREE)], minlength=pictures)
    objects = np.bincount(matches.true_picture[~matches.crowd], minlength=pictures)
    return PictureCounts(right, wrong, objects - right)


def confusion(
    matches: Matches, pictures: Sequence[Picture], num_classes: int, score: float, step: int = HALF
) -> Labels:
    """Pairs ``[K, K]`` of true class (row) and predicted class, from this score on.

    Right detections first; then what is left is paired whatever its class, the largest overlap first.
    """
    table = np.zeros((num_classes, num_classes), dtype=np.int64)
    chosen = matches.matched[:, step]
    is_taken = matches.scores >= score
    is_right = is_taken & (chosen >= 0)
    np.add.at(table, (matches.labels[is_right], matches.labels[is_right]), 1)
    is_open = ~matches.crowd
    is_open[chosen[is_right]] = False
    wrong = np.flatnonzero(is_taken & (chosen == FREE))
    for place in np.unique(matches.picture[wrong]).tolist():
        numbers = wrong[matches.picture[wrong] == place]
        start, stop = matches.first_true[place : place + 2].tolist()
        columns = np.flatnonzero(is_open[start:stop])
        matrix = pictures[place].overlaps[matches.row[numbers][:, None], columns]
        for row, column in _largest_first(matrix, _limits()[step]):
            table[matches.true_labels[start + columns[column]], matches.labels[numbers[row]]] += 1
    return table


def _largest_first(matrix: Floats, least: float) -> list[tuple[int, int]]:
    """Pairs of row and column, each used once, by falling overlap."""
    pairs: list[tuple[int, int]] = []
    rows: set[int] = set()
    columns: set[int] = set()
    places = np.argwhere(matrix >= least)
    order = np.argsort(-matrix[places[:, 0], places[:, 1]], kind="stable")
    for row, column in places[order].tolist():
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs
