from __future__ import annotations

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from saccade.nn.roi import RoIExtractor, RoIKind


def ramp(stride: int, side: int = 64) -> torch.Tensor:
    """A map ``[1, 2, h, w]`` whose cells hold the place of their centre in pixels, x and y."""
    centres = (torch.arange(side // stride) + 0.5) * stride
    return torch.stack([centres.expand(len(centres), -1), centres[:, None].expand(-1, len(centres))])[None]


@pytest.mark.parametrize("stride", [4, 8])
def test_cells_are_read_where_they_lie(stride: int) -> None:
    box = torch.tensor([[13.0, 17.0, 41.0, 45.0]])
    patch = RoIExtractor(7, [stride])([ramp(stride)], box, torch.tensor([0]))
    expected = torch.arange(7) * 4.0 + 2  # the middle of each cell of 4 pixels
    torch.testing.assert_close(patch[0, 0], (13 + expected).expand(7, 7), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(patch[0, 1], (17 + expected)[:, None].expand(7, 7), rtol=1e-5, atol=1e-4)
    # By the older rule a cell lies at its corner: half a cell off.
    older = RoIExtractor(7, [stride], is_aligned=False)([ramp(stride)], box, torch.tensor([0]))
    torch.testing.assert_close(older, patch + stride / 2, rtol=1e-5, atol=1e-4)


def test_pooling_takes_the_largest_of_whole_cells() -> None:
    level = torch.zeros(1, 1, 8, 8)
    level[0, 0, 2, 3] = 5
    patch = RoIExtractor(2, [4], "pool")([level], torch.tensor([[4.0, 4.0, 28.0, 28.0]]), torch.tensor([0]))
    assert patch.flatten().tolist() == [5, 0, 0, 0]


def test_the_level_follows_the_size() -> None:
    extractor = RoIExtractor(7, [4, 8, 16, 32])
    sides = torch.tensor([10.0, 111.9, 112.0, 223.9, 224.0, 448.0, 5000.0])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    assert extractor.levels(boxes).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert extractor.levels(torch.zeros(1, 4)).tolist() == [0]
    halved = RoIExtractor(7, [4, 8, 16, 32], canonical=112)
    assert halved.levels(boxes / 2).tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_same_as_torchvision() -> None:
    dice = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 640 // s, 640 // s, generator=dice) for s in (4, 8, 16, 32)]
    corner = torch.rand(40, 2, generator=dice) * 200
    boxes = torch.cat([corner, corner + torch.rand(40, 2, generator=dice) ** 2 * 600 + 1], dim=1).clamp(max=640)
    image = torch.arange(2).repeat_interleave(20)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = theirs({str(i): m for i, m in enumerate(maps)}, [boxes[:20], boxes[20:]], [(640, 640)] * 2)
    extractor = RoIExtractor(7, [4, 8, 16, 32], is_aligned=False)
    assert len(extractor.levels(boxes).unique()) >= 3
    torch.testing.assert_close(extractor(maps, boxes, image), expected)


def test_no_regions_and_half_precision() -> None:
    extractor = RoIExtractor(5, [4, 8])
    maps = [ramp(4), ramp(8)]
    assert extractor(maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 2, 5, 5)
    patch = extractor([m.bfloat16() for m in maps], torch.tensor([[0.0, 0.0, 32.0, 32.0]]), torch.tensor([0]))
    assert patch.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["align", "pool"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_round_the_maps_alone_and_never_the_places(kind: RoIKind, dtype: torch.dtype) -> None:
    level = torch.randn(1, 2, 8, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    boxes = torch.tensor([[1029.3, 3.1, 1101.7, 27.9], [514.6, 0.3, 561.4, 31.2]])  # halves of them are 1 and 8 apart
    image = torch.zeros(2, dtype=torch.int64)
    extractor = RoIExtractor(5, [4], kind)
    expected = extractor([level.float()], boxes, image).to(dtype)
    torch.testing.assert_close(extractor([level], boxes, image), expected, rtol=0, atol=0)


def test_a_batch_of_many_pictures_keeps_their_numbers_in_half_precision() -> None:
    numbers = torch.arange(300.0)[:, None, None, None].expand(300, 1, 2, 2)
    image = torch.tensor([255, 257, 299])
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(3, 4).bfloat16()
    found = RoIExtractor(1, [4], is_aligned=False)([numbers.contiguous()], boxes, image)
    assert found.flatten().tolist() == [255, 257, 299]
