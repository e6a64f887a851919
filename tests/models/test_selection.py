"""From raw candidates to detections: what ``select`` keeps, against the definition written out."""

import pytest
import torch
from torch import Tensor

from saccade.models.detector import FIRST_LOOK, Candidates, Selection, select
from saccade.ops.boxes import box_iou

SIZE = (64, 64)


def drawn(count: int, classes: int, seed: int, own_boxes: bool = False) -> Candidates:
    """Random candidates; scores are all different."""
    dice = torch.Generator().manual_seed(seed)
    corner = 50 * torch.rand(count, classes if own_boxes else 1, 2, generator=dice)
    boxes = torch.cat([corner, corner + 4 + 20 * torch.rand(corner.shape, generator=dice)], dim=-1)
    scores = (torch.randperm(count * classes, generator=dice) + 1).reshape(count, classes) / (count * classes + 1)
    return Candidates(boxes, scores, scores)


def by_definition(candidates: Candidates, selection: Selection) -> list[tuple[int, int]]:
    """Candidate and class of what stays: the likeliest of all, then the next that overlaps none of its class."""
    kept: list[tuple[int, int, Tensor]] = []
    num_classes = candidates.scores.shape[1]
    for place in candidates.scores.flatten().argsort(descending=True).tolist():
        source, label = divmod(place, num_classes)
        if candidates.scores[source, label] < selection.min_score or len(kept) == selection.max_detections:
            break
        box = candidates.boxes[source, label if candidates.boxes.shape[1] > 1 else 0].clamp(0, 64)[None]
        rivals = [other for _, taken, other in kept if taken == label]
        if not rivals or float(box_iou(box, torch.cat(rivals)).max()) <= selection.nms_iou:
            kept.append((source, label, box))
    return [(source, label) for source, label, _ in kept]


@pytest.mark.parametrize("own_boxes", [False, True])
@pytest.mark.parametrize(("nms_iou", "most"), [(0.5, 3), (0.1, 20), (1.0, 5), (0.05, 40), (0.5, 2000)])
def test_what_is_kept_is_what_the_definition_keeps(nms_iou: float, most: int, own_boxes: bool) -> None:
    """However many are looked at first: with strong suppression the first look is far too short."""
    candidates = drawn(300, 4, seed=most, own_boxes=own_boxes)
    selection = Selection(min_score=0.01, nms_iou=nms_iou, max_detections=most)
    kept = select(candidates, SIZE, selection)
    assert list(zip(kept.source.tolist(), kept.labels.tolist(), strict=True)) == by_definition(candidates, selection)
    assert kept.scores.tolist() == sorted(kept.scores.tolist(), reverse=True)


def test_candidates_of_equal_score_are_all_looked_at() -> None:
    """The first of them stay, whatever their number: none is lost at the end of the first look."""
    count = 5 * FIRST_LOOK
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(count, 1)[:, None]
    boxes[-1] = torch.tensor([30.0, 30.0, 40.0, 40.0])  # all others lie on one place
    scores = torch.full((count, 1), 0.5)
    kept = select(Candidates(boxes, scores, scores), SIZE, Selection(max_detections=2))
    assert sorted(kept.source.tolist()) == [0, count - 1]


def test_boxes_too_small_do_not_use_up_the_first_look() -> None:
    """They score best and are dropped; what lies behind them is found all the same."""
    count = 4 * FIRST_LOOK
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1)[:, None]
    boxes[-1] = torch.tensor([10.0, 10.0, 30.0, 30.0])
    scores = torch.linspace(0.9, 0.5, count)[:, None]
    kept = select(Candidates(boxes, scores, scores), SIZE, Selection(max_detections=1, min_side=5.0))
    assert kept.source.tolist() == [count - 1]
