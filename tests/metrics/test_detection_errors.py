"""The six kinds of mistakes, each made on purpose, and what mending them gains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from saccade.metrics.detection import DetectionMeter
from saccade.metrics.detection_errors import ErrorKind, ErrorShare, error_shares, find_errors
from saccade.metrics.detection_matches import match
from saccade.types import BoxTarget, Classes, Detections

CLASSES = Classes(("a", "b"))
Found = list[tuple[float, float, float, int]]
True_ = list[tuple[float, float, int]]


def shares(*pictures: tuple[Found, True_], crowd: bool = False) -> dict[ErrorKind, ErrorShare]:
    """Boxes 10 high: rows left, right, score, label, and left, right, label; ``crowd`` makes the last object one."""
    meter = DetectionMeter(2)
    for index, (found, true) in enumerate(pictures):
        f, t = torch.tensor(found).reshape(-1, 4), torch.tensor(true).reshape(-1, 3)
        boxes = torch.stack([f[:, 0], torch.zeros(len(f)), f[:, 1], torch.full((len(f),), 10.0)], 1)
        truth = torch.stack([t[:, 0], torch.zeros(len(t)), t[:, 1], torch.full((len(t),), 10.0)], 1).float()
        labels, flags = f[:, 3].long(), torch.zeros(len(t), dtype=torch.bool)
        if crowd:
            flags[-1] = True
        target = BoxTarget(truth, t[:, 2].long(), flags)
        meter.update(Detections(boxes, f[:, 2], labels, labels, CLASSES), target, index=index, source="")
    pictures_ = meter.pictures
    matches = match(pictures_, 100)
    return error_shares(matches, find_errors(matches, pictures_))


def numbers(found: dict[ErrorKind, ErrorShare]) -> dict[str, int]:
    return {kind: share.number for kind, share in found.items() if share.number}


def test_a_wrong_class() -> None:
    """Class a has one object and a false alarm instead of it; class b has its object and that alarm in front."""
    found = shares(([(0, 10, 0.9, 1), (40, 50, 0.8, 1)], [(0, 10, 0), (40, 50, 1)]))
    assert numbers(found) == {"class": 1}, "and the object is not missed as well"
    # Before: a 0, b 1/2. After: a 1, b 1.
    assert found["class"].gain == pytest.approx(1 - 0.25)
    assert found["missed"].gain == 0.0


def test_a_place_that_is_not_quite_right() -> None:
    found = shares(([(4, 14, 0.9, 0)], [(0, 10, 0)]))
    assert numbers(found) == {"localisation": 1}, "overlaps by 6 / 14"
    assert found["localisation"].gain == 1.0


def test_neither_class_nor_place() -> None:
    found = shares(([(4, 14, 0.9, 1)], [(0, 10, 0)]))
    assert numbers(found) == {"both": 1, "missed": 1}
    # It is taken away, but the object is still not found.
    assert found["both"].gain == 0.0
    assert found["missed"].gain == 1.0


def test_found_twice() -> None:
    found = shares(([(0, 10, 0.9, 0), (0, 9, 0.8, 0), (40, 50, 0.7, 0)], [(0, 10, 0), (40, 50, 0)]))
    assert numbers(found) == {"duplicate": 1}
    # Precision 1 up to recall 1/2, then 2/3; afterwards 1 throughout.
    assert found["duplicate"].gain == pytest.approx(1 - (51 + 50 * 2 / 3) / 101)


def test_nothing_there() -> None:
    found = shares(([(60, 70, 0.9, 0), (0, 10, 0.8, 0)], [(0, 10, 0)]))
    assert numbers(found) == {"background": 1}
    assert found["background"].gain == pytest.approx(0.5)
    assert numbers(shares(([(0, 10, 0.9, 0)], []))) == {"background": 1}


def test_missed() -> None:
    found = shares(([(0, 10, 0.9, 0)], [(0, 10, 0), (40, 50, 0)]))
    assert numbers(found) == {"missed": 1}
    assert found["missed"].gain == pytest.approx(1 - 51 / 101)


@pytest.mark.parametrize(
    ("left", "kind"),
    [(10 / 3, None), (3.4, "localisation"), (8.1, "localisation"), (8.2, "background")],
)
def test_the_limits_are_a_half_and_a_tenth(left: float, kind: str | None) -> None:
    """Moved by m of 10 the overlap is (10 - m) / (10 + m)."""
    found = shares(([(left, left + 10, 0.9, 0)], [(0, 10, 0)]))
    assert next(iter(numbers(found)), None) == kind


def test_the_own_class_comes_before_others() -> None:
    """On a b by half and more, and near an a of its own: a matter of place."""
    found = shares(([(6, 16, 0.9, 0)], [(0, 10, 0), (6, 16, 1)]))
    assert numbers(found) == {"localisation": 1, "missed": 1}


def test_of_several_mended_detections_of_an_object_the_likeliest_stays() -> None:
    """The object is found at 0.5; a better-scored detection of the wrong place would be it when mended."""
    found = shares(([(4, 14, 0.9, 0), (0, 10, 0.5, 0)], [(0, 10, 0)]))
    assert numbers(found) == {"localisation": 1}
    # Before: wrong, right: 1/2. After: the first is right, the second goes.
    assert found["localisation"].gain == pytest.approx(0.5)
    worse = shares(([(0, 10, 0.9, 0), (4, 14, 0.5, 0)], [(0, 10, 0)]))
    assert worse["localisation"].gain == 0.0


def test_what_lies_on_a_crowd_is_no_mistake() -> None:
    found = shares(([(20, 28, 0.9, 0), (0, 10, 0.5, 0)], [(0, 10, 0), (20, 90, 0)]), crowd=True)
    assert numbers(found) == {}


def test_pictures_are_kept_apart() -> None:
    found = shares(([(0, 10, 0.9, 0)], []), ([], [(0, 10, 0)]), ([(0, 10, 0.4, 1)], [(0, 10, 0)]))
    assert numbers(found) == {"background": 1, "class": 1, "missed": 1}


def test_without_an_object_nothing_can_be_gained() -> None:
    assert all(math.isnan(share.gain) for share in shares(([(0, 10, 0.9, 0)], [])).values())
    perfect = shares(([(0, 10, 0.9, 0)], [(0, 10, 0)]))
    assert np.allclose([share.gain for share in perfect.values()], 0.0)
