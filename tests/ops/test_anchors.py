from __future__ import annotations

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from saccade.ops import anchors


def test_shapes_in_closed_form() -> None:
    found = anchors.shapes([32], [0.25, 1.0, 4.0])
    # Height over width; the areas stay.
    assert found.tolist() == [[-32, -8, 32, 8], [-16, -16, 16, 16], [-8, -32, 8, 32]]
    assert anchors.shapes([10, 20], [1.0]).tolist() == [[-5, -5, 5, 5], [-10, -10, 10, 10]]


def test_spread_row_by_row() -> None:
    shapes = torch.tensor([[-1.0, -1.0, 1.0, 1.0], [-2.0, -2.0, 2.0, 2.0]])
    found = anchors.spread(shapes, (2, 3), (8, 4))
    assert found.shape == (12, 4)
    assert found[2].tolist() == [3, -1, 5, 1]  # one cell to the right
    assert found[7].tolist() == [-2, 6, 2, 10]  # the second shape one row down


def test_same_as_torchvision() -> None:
    sizes, ratios = ((32, 45), (64, 91)), (0.5, 1.0, 2.0)
    generator = AnchorGenerator(sizes, (ratios,) * 2)
    pixels = torch.zeros(1, 3, 100, 160)
    maps = [torch.zeros(1, 1, 25, 40), torch.zeros(1, 1, 13, 20)]
    (theirs,) = generator(ImageList(pixels, [(100, 160)]), maps)
    ours = [
        anchors.spread(anchors.shapes(own, ratios), (h, w), (100 // h, 160 // w))
        for own, (h, w) in zip(sizes, [(25, 40), (13, 20)], strict=True)
    ]
    assert torch.equal(torch.cat(ours), theirs)
