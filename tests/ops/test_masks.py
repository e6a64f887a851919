"""Connected parts of label maps, drawn by hand."""

from __future__ import annotations

import torch

from saccade.ops.masks import connected_components


def drawn(*rows: str) -> torch.Tensor:
    return torch.tensor([[int(letter) for letter in row] for row in rows], dtype=torch.uint8)


PICTURE = drawn(
    "110020",
    "100022",
    "001100",
    "201100",
)
"""Class 1: a corner of three and a square of four that touches nothing; class 2: a corner of three and one pixel."""


def test_parts_by_hand() -> None:
    parts = connected_components(PICTURE, skip=frozenset({0}))
    assert [(part.label, part.area, part.box) for part in parts] == [
        (1, 4, (2, 2, 4, 4)),
        (1, 3, (0, 0, 2, 2)),
        (2, 3, (4, 0, 6, 2)),
        (2, 1, (0, 3, 1, 4)),
    ]
    assert parts[1].inside.tolist() == [[True, True], [True, False]]
    assert parts[2].inside.tolist() == [[True, False], [True, True]]


def test_masks_of_all_parts_make_up_the_picture() -> None:
    parts = connected_components(PICTURE)
    total = torch.zeros(4, 6, dtype=torch.int64)
    for part in parts:
        mask = part.mask((4, 6))
        assert int(mask.sum()) == part.area
        assert (PICTURE[mask] == part.label).all()
        total += mask
    assert (total == 1).all()


def test_corners_do_not_connect_and_other_parts_of_the_box_are_not_inside() -> None:
    diagonal = connected_components(drawn("10", "01"), skip=frozenset({0}))
    assert [part.area for part in diagonal] == [1, 1]
    ring = connected_components(drawn("11111", "10001", "10101", "10001", "11111"), skip=frozenset({0}))
    assert [(part.area, part.box) for part in ring] == [(16, (0, 0, 5, 5)), (1, (2, 2, 3, 3))]
    assert not ring[0].inside[2, 2]


def test_the_smallest_go_first_where_there_are_too_many() -> None:
    parts = connected_components(PICTURE, skip=frozenset({0}), most=3)
    assert [part.area for part in parts] == [4, 3, 3]


def test_equal_parts_come_in_reading_order_whatever_their_class() -> None:
    parts = connected_components(drawn("02010", "00000", "10003"), skip=frozenset({0}))
    assert [part.box[:2] for part in parts] == [(1, 0), (3, 0), (0, 2), (4, 2)]


def test_nothing_is_left_where_all_is_skipped() -> None:
    assert connected_components(torch.zeros(3, 3, dtype=torch.uint8), skip=frozenset({0})) == []
