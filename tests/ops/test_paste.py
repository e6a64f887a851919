from __future__ import annotations

import torch

from saccade.ops.paste import paste


def test_a_full_mask_covers_its_box() -> None:
    masks = paste(torch.ones(1, 28, 28), torch.tensor([[10.0, 20.0, 40.0, 60.0]]), (80, 100))
    dense = masks.dense()[0]
    rows, columns = dense.any(1).nonzero()[:, 0], dense.any(0).nonzero()[:, 0]
    # The border lies halfway between the mask and nothing, within a pixel of the box.
    edges = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    assert all(abs(edge - wanted) <= 1 for edge, wanted in zip(edges, (10, 20, 40, 60), strict=True))
    missing = (edges[2] - edges[0]) * (edges[3] - edges[1]) - int(dense.sum())
    assert 0 <= missing <= 8  # the corners are rounded


def test_halves_lie_where_they_are() -> None:
    scores = torch.zeros(2, 28, 28)
    scores[0, :, :14] = 1  # left
    scores[1, :14] = 1  # top
    dense = paste(scores, torch.tensor([[0.0, 0.0, 56.0, 56.0]] * 2), (56, 56)).dense()
    assert bool(dense[0, 5:50, 3:25].all())
    assert not bool(dense[0, :, 31:].any())
    assert bool(dense[1, 3:25, 5:50].all())
    assert not bool(dense[1, 31:].any())


def test_what_lies_beyond_the_picture_is_cut() -> None:
    boxes = torch.tensor([[-20.0, -10.0, 20.0, 10.0], [90.0, 70.0, 130.0, 95.0], [0.0, 0.0, 0.5, 0.5]])
    masks = paste(torch.ones(3, 14, 14), boxes, (80, 100))
    assert masks.size == (80, 100)
    assert bool(masks[0][:9, :19].all())
    assert bool(masks[1][72:, 92:].all())
    # No whole map of the picture is made for any object.
    assert max(crop.numel() for crop in masks.crops) < 80 * 100 / 8


def test_no_objects() -> None:
    masks = paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (30, 40))
    assert len(masks) == 0
    assert masks.dense().shape == (0, 30, 40)
