"""Detections and objects one by one: the same matches as COCO's, what is read from them, how sure the figures are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from saccade.metrics.detection import HALF, THRESHOLDS, DetectionMeter
from saccade.metrics.detection_matches import (
    FREE,
    IGNORED,
    Matches,
    average_precision,
    best_point,
    confusion,
    count_pictures,
    interval,
    match,
    resampled_ap,
)
from saccade.types import BoxTarget, Classes, Detections

CLASSES = Classes(("a", "b", "c"))
Scene = tuple[Detections, BoxTarget]
Scenes = Callable[..., list[Scene]]


def scene(
    found: list[tuple[float, float, float, int]], true: list[tuple[float, float, int]], crowd: list[bool] | None = None
) -> Scene:
    """Boxes 10 high from left to right: rows left, right, score, label, and left, right, label."""
    f, t = torch.tensor(found).reshape(-1, 4), torch.tensor(true).reshape(-1, 3)
    zeros, tens = torch.zeros(len(f)), torch.full((len(f),), 10.0)
    labels = f[:, 3].long()
    detections = Detections(torch.stack([f[:, 0], zeros, f[:, 1], tens], 1), f[:, 2], labels, labels, CLASSES)
    zeros, tens = torch.zeros(len(t)), torch.full((len(t),), 10.0)
    flags = torch.tensor(crowd or [False] * len(t), dtype=torch.bool)
    return detections, BoxTarget(torch.stack([t[:, 0], zeros, t[:, 1], tens], 1).float(), t[:, 2].long(), flags)


def meter_of(scenes: list[Scene]) -> DetectionMeter:
    meter = DetectionMeter(len(CLASSES))
    for index, (detections, target) in enumerate(scenes):
        meter.update(detections, target, index=index, source=f"{index}.png")
    return meter


def matched(scenes: list[Scene], most: int = 100) -> Matches:
    return match(meter_of(scenes).pictures, most)


def test_the_likeliest_chooses_first_and_what_is_left_goes_to_the_next() -> None:
    """Two detections on two objects side by side; the likelier overlaps both, the second one more."""
    matches = matched([scene([(4, 14, 0.9, 0), (0, 10, 0.8, 0)], [(0, 10, 0), (3, 13, 0)])])
    assert matches.matched[:, HALF].tolist() == [1, 0]
    assert matches.matched[0, -1] == FREE, "overlaps by 9 / 11 at most"
    assert matches.matched[1, -1] == 0


def test_objects_are_numbered_through_all_pictures_and_crowds_ignore() -> None:
    crowd = scene([(20, 28, 0.9, 0), (0, 10, 0.7, 0)], [(20, 60, 0), (0, 10, 0)], [True, False])
    matches = matched([scene([(0, 10, 0.5, 1)], [(0, 10, 1)]), crowd])
    assert matches.matched[:, HALF].tolist() == [0, IGNORED, 2]
    assert matches.picture.tolist() == [0, 1, 1]
    assert matches.first_true.tolist() == [0, 1, 3]
    assert matches.objects(0).tolist() == [2]


def test_only_the_likeliest_of_a_class_in_a_picture_count() -> None:
    scenes = [scene([(0, 10, 0.9, 0), (0, 10, 0.8, 0), (0, 10, 0.7, 1)], [(0, 10, 0)])]
    assert matched(scenes, most=1).labels.tolist() == [0, 1]


@pytest.mark.parametrize("options", [{}, {"crowds": 0.4}, {"is_tied": True}, {"most": 40, "crowds": 0.1}])
def test_average_precision_equals_that_of_the_other_program(random_scenes: Scenes, options: dict[str, float]) -> None:
    meter = meter_of(random_scenes(60, seed=11, **options))
    matches = match(meter.pictures, 100)
    per_class = meter.per_class()["ap"]
    for label in matches.occurring():
        ranked = matches.matched[matches.ranked(label)]
        objects = len(matches.objects(label))
        figures = [average_precision(part[part != IGNORED] >= 0, objects) for part in ranked.T]
        assert np.mean(figures) == pytest.approx(per_class[label], abs=1e-12)
    assert len(matches.occurring()) == 3
    assert matches.matched.shape[1] == len(THRESHOLDS)


def test_average_precision_by_hand() -> None:
    assert average_precision(np.array([True, False, True]), 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(np.array([False]), 1) == 0.0
    assert average_precision(np.zeros(0, dtype=bool), 3) == 0.0
    assert math.isnan(average_precision(np.array([False]), 0))


def test_the_best_point_is_where_f1_is_highest() -> None:
    """Right, right, wrong, right of four objects: F1 is 4/6 after two, 6/8 after four."""
    found = [(0, 10, 0.9, 0), (20, 30, 0.8, 0), (60, 70, 0.7, 0), (40, 50, 0.6, 0)]
    true = [(0, 10, 0), (20, 30, 0), (40, 50, 0), (80, 90, 0)]
    point = best_point(matched([scene(found, true)]), 0)
    assert (point.precision, point.recall) == (0.75, 0.75)
    assert point.f1 == pytest.approx(0.75)
    assert point.score == pytest.approx(0.6)


def test_a_score_takes_all_detections_that_have_it() -> None:
    """The right one comes first among equals, but no score takes it alone."""
    found = [(0, 10, 0.5, 0), (60, 70, 0.5, 0)]
    point = best_point(matched([scene(found, [(0, 10, 0)])]), 0)
    assert (point.precision, point.recall, point.score) == (0.5, 1.0, 0.5)


def test_the_best_point_of_nothing() -> None:
    matches = matched([scene([(60, 70, 0.5, 1)], [(0, 10, 0)])])
    unseen, absent, neither = (best_point(matches, label) for label in range(3))
    assert (unseen.recall, unseen.f1) == (0.0, 0.0)
    assert math.isnan(unseen.precision)
    assert absent.precision == 0.0
    assert math.isnan(absent.recall)
    assert all(math.isnan(value) for value in neither)


def test_pictures_are_counted_from_a_score_on() -> None:
    scenes = [
        scene([(0, 10, 0.9, 0), (60, 70, 0.6, 0), (20, 30, 0.4, 0)], [(0, 10, 0), (20, 30, 0)]),
        scene([(0, 10, 0.2, 0)], []),
    ]
    counts = count_pictures(matched(scenes), 0.5)
    assert [part.tolist() for part in counts] == [[1, 0], [1, 0], [1, 0]]
    assert counts.f1()[0] == pytest.approx(0.5)
    assert math.isnan(counts.f1()[1])
    assert count_pictures(matched(scenes), 0.0).wrong.tolist() == [1, 1]


def test_confusion_pairs_what_is_left_by_overlap() -> None:
    """One right; one of another class; one that overlaps too little; the object of the right one is not taken twice."""
    found = [(0, 10, 0.9, 0), (21, 31, 0.8, 1), (44, 54, 0.7, 1), (0, 10, 0.6, 2), (20, 30, 0.3, 2)]
    scenes = [scene(found, [(0, 10, 0), (20, 30, 2), (50, 60, 0)])]
    meter = meter_of(scenes)
    table = confusion(match(meter.pictures, 100), meter.pictures, 3, 0.5)
    assert table.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    lower = confusion(match(meter.pictures, 100), meter.pictures, 3, 0.2)
    assert lower.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_a_resample_is_the_figure_of_pictures_repeated(random_scenes: Scenes) -> None:
    """Each picture as often as it was drawn, counted by the meter itself."""
    scenes = random_scenes(8, seed=2, crowds=0.1)
    figures = resampled_ap(matched(scenes), range(8), 5, seed=4)
    drawn = np.stack([np.random.default_rng([4, index]).poisson(1.0, 5) for index in range(8)], 1)
    for row, figure in zip(drawn, figures, strict=True):
        # Repeats follow each other, so that equal scores are ranked alike.
        repeated = [scenes[index] for index, times in enumerate(row) for _ in range(times)]
        # A repeat ranks right behind the first; only precision between the two differs.
        assert figure == pytest.approx(meter_of(repeated).compute()["ap"], abs=0.01)


def test_the_interval_holds_the_figure_and_shrinks_with_more_pictures(random_scenes: Scenes) -> None:
    few, many = random_scenes(20, seed=6), random_scenes(320, seed=6)
    widths = []
    for scenes in (few, many):
        ap = meter_of(scenes).compute()["ap"]
        low, high = interval(matched(scenes), range(len(scenes)), 200, 0, 0.95)
        assert low < ap < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_the_interval_of_nothing_is_undefined() -> None:
    assert all(math.isnan(value) for value in interval(matched([]), [], 10, 0, 0.95))
    assert all(math.isnan(value) for value in interval(matched([scene([(0, 10, 0.5, 0)], [])]), [0], 10, 0, 0.95))
