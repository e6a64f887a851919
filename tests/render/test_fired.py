"""What an object came from, drawn: every mark lies where the numbers say."""

from __future__ import annotations

import pytest
import torch

from saccade.errors import InputError
from saccade.render import fired_overlay

GREY = torch.full((3, 400, 400), 90, dtype=torch.uint8)
BOX = torch.tensor([40.0, 50, 360, 350])


def changed(drawn: torch.Tensor) -> torch.Tensor:
    return (drawn != GREY).any(0)


def test_box_and_cell_are_drawn_at_their_borders() -> None:
    alone = changed(fired_overlay(GREY, BOX))
    assert alone[50, 200]
    assert alone[200, 40]
    assert not alone[100:300, 100:300].any()
    both = fired_overlay(GREY, BOX, torch.tensor([100.0, 120, 140, 160]))
    assert both[:, 140, 100].tolist() == [240, 228, 66], "yellow"
    assert not changed(both)[130:150, 110:130].any()


def test_points_lie_where_they_were_looked_at_and_are_as_large_as_they_count() -> None:
    points = torch.tensor([[[[100.0, 200.0]], [[300.0, 200.0]]]])  # one head, two levels, one point
    drawn = fired_overlay(GREY, BOX, points=points, weights=torch.tensor([[[0.8], [0.2]]]))
    marks = changed(drawn)[150:250, 60:340]
    assert marks[50, 40]
    assert marks[50, 240]
    assert int(marks[:, :140].sum()) > 2 * int(marks[:, 140:].sum())
    assert drawn[:, 200, 100].tolist() != drawn[:, 200, 300].tolist(), "levels have colours of their own"


def test_points_outside_of_the_picture_are_left_out() -> None:
    points = torch.tensor([[[[-50.0, 200.0], [500.0, 900.0]]]])
    drawn = fired_overlay(GREY, BOX, points=points, weights=torch.tensor([[[0.5, 0.5]]]))
    assert torch.equal(drawn, fired_overlay(GREY, BOX))


def test_small_pictures_are_enlarged_with_their_marks() -> None:
    drawn = fired_overlay(GREY[:, :40, :40], BOX / 10, torch.tensor([10.0, 12, 14, 16]))
    assert drawn.shape == (3, 400, 400)
    assert drawn[:, 140, 100].tolist() == [240, 228, 66]
    with pytest.raises(InputError):
        fired_overlay(GREY.float(), BOX)
