"""What label maps must be, and what is read off them."""

from __future__ import annotations

import pytest
import torch

from saccade.errors import InputError
from saccade.types import Classes, Geometry, ImageBatch, MapTarget, Segmentation

CLASSES = Classes(("sky", "road", "tree", "car"))


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(4, 5, dtype=torch.int64),
        torch.zeros(4, 5),
        torch.zeros(1, 4, 5, dtype=torch.uint8),
        torch.zeros(20, dtype=torch.uint8),
    ],
)
def test_other_than_bytes_of_one_plane_are_no_label_map(labels: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"\[h, w\] uint8"):
        MapTarget(labels)
    with pytest.raises(InputError, match="labels and confidence"):
        Segmentation(labels, torch.zeros(labels.shape, dtype=torch.float16), CLASSES)


def test_confidence_has_the_size_of_the_labels() -> None:
    with pytest.raises(InputError, match="both"):
        Segmentation(torch.zeros(4, 5, dtype=torch.uint8), torch.zeros(5, 4, dtype=torch.float16), CLASSES)


def test_areas_are_shares_largest_first_of_what_is_there() -> None:
    labels = torch.tensor([[2, 2, 0, 1], [2, 1, 2, 2]], dtype=torch.uint8)
    areas = Segmentation(labels, torch.ones(2, 4, dtype=torch.float16), CLASSES).areas()
    assert list(areas.items()) == [("tree", 5 / 8), ("road", 2 / 8), ("sky", 1 / 8)]
    # Equal shares in the order of the classes.
    even = Segmentation(labels[:1], torch.ones(1, 4, dtype=torch.float16), CLASSES).areas()
    assert list(even) == ["tree", "sky", "road"]


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    images = ImageBatch.of(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)))
    laid_out = images.channels_last()
    assert torch.equal(laid_out.pixels, images.pixels)
    assert laid_out.pixels.is_contiguous(memory_format=torch.channels_last)
    assert not images.pixels.is_contiguous(memory_format=torch.channels_last)
    assert laid_out.geometries == (Geometry((4, 5)),) * 2
