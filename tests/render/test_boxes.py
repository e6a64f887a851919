"""Boxes, masks and names on pictures: where they lie, what they cover, what may not cover what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.render.boxes import (
    MAX_SIDE,
    OUTCOME_COLOURS,
    Outcomes,
    box_overlay,
    compared_boxes,
    drawing_scale,
    object_colour,
    truth_beside_prediction,
)
from saccade.render.charts import losses_by_cause, precision_recall
from saccade.types import BoxTarget, Classes, Detections, Masks

CLASSES = Classes(("cell", "grain"))
SIDE = 480


def paint(colour: str) -> Tensor:
    return torch.tensor([int(colour[place : place + 2], 16) for place in (1, 3, 5)], dtype=torch.uint8)


def grey(height: int = SIDE, width: int = SIDE, value: int = 200) -> Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def target(*boxes: tuple[float, float, float, float], crowd: tuple[bool, ...] = ()) -> BoxTarget:
    count = len(boxes)
    flags = torch.tensor(crowd or (False,) * count, dtype=torch.bool)
    return BoxTarget(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.zeros(count, dtype=torch.int64), flags
    )


def found(boxes: Tensor, masks: Masks | None = None) -> Detections:
    count = len(boxes)
    scores = torch.linspace(0.9, 0.5, count)
    return Detections(boxes, scores, torch.zeros(count, dtype=torch.int64), torch.arange(count), CLASSES, masks)


def is_colour(image: Tensor, colour: str) -> Tensor:
    return (image == paint(colour)[:, None, None]).all(0)


def test_a_line_of_two_pixels_lies_on_the_border_of_the_box() -> None:
    drawn = box_overlay(grey(), target((100, 120, 300, 340)), CLASSES, has_words=False)
    painted = is_colour(drawn, object_colour(0))
    expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    expected[119:341, 99:301] = True
    expected[121:339, 101:299] = False
    assert torch.equal(painted, expected)
    assert bool((drawn[:, 125:335, 105:295] == 200).all()), "nothing is painted inside of a box without a mask"


def test_a_border_between_pixels_is_painted_by_its_share() -> None:
    drawn = box_overlay(grey(value=0), target((100.25, 120, 300, 340)), CLASSES, has_words=False)
    line = drawn[:, 200, 98:103].float() / paint(object_colour(0)).float()[:, None].clamp(min=1)
    # From 99.25 to 101.25, on black, whose dark edge changes nothing.
    assert torch.allclose(line[1:].mean(0), torch.tensor([0.0, 0.75, 1.0, 0.25, 0.0]), atol=0.02)


def test_a_crowd_is_dashed() -> None:
    box = (100.0, 120.0, 300.0, 340.0)
    whole, dashed = (
        is_colour(box_overlay(grey(), target(box, crowd=(crowd,)), CLASSES, has_words=False), object_colour(0))
        for crowd in (False, True)
    )
    assert not bool((dashed & ~whole).any())
    assert 0.4 < float(dashed.sum() / whole.sum()) < 0.6
    gaps = (dashed[200:260, 100].int().diff() != 0).sum()
    assert int(gaps) >= 5


def test_a_mask_is_tinted_and_outlined_only_where_it_is() -> None:
    dense = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    dense[0, 150:250, 160:260] = True
    detections = found(torch.tensor([[150.0, 140.0, 270.0, 260.0]]), Masks.of(dense))
    drawn = box_overlay(grey(), detections, CLASSES, has_words=False, alpha=0.5).float()
    colour = paint(object_colour(0)).float()
    assert torch.allclose(drawn[:, 200, 200], (200 + colour) / 2, atol=1)
    assert torch.allclose(drawn[:, 150, 200], 200 + 0.9 * (colour - 200), atol=1), "its border is a line"
    assert torch.equal(drawn[:, 147, 200], torch.full((3,), 200.0)), "beside it nothing changes"


def test_names_do_not_cover_each_other_and_the_likeliest_stays() -> None:
    same = torch.tensor([[100.0, 120.0, 300.0, 160.0]]).expand(9, 4).contiguous()
    many = box_overlay(grey(), found(same), CLASSES)
    assert torch.equal(many, box_overlay(grey(), found(same), CLASSES))
    first = box_overlay(grey(), found(same[:1]), CLASSES)
    plate = slice(106, 118), slice(100, 150)
    assert torch.equal(many[(slice(None), *plate)], first[(slice(None), *plate)])


@pytest.mark.parametrize("value", [0, 128, 255])
def test_words_are_read_on_any_ground(value: int) -> None:
    drawn = box_overlay(grey(value=value), target((100, 120, 300, 340)), CLASSES)
    plate = drawn[:, 107:117, 103:140].float().mean(0)
    assert float(plate.max() - plate.min()) > 100


def test_a_name_stays_inside_of_the_picture() -> None:
    corners = ((0.0, 0.0, SIDE, SIDE), (470.0, 0.0, 480.0, 20.0), (0.0, 470.0, 10.0, 480.0))
    for corner in corners:
        plain = box_overlay(grey(), target(corner), CLASSES, has_words=False)
        assert bool((box_overlay(grey(), target(corner), CLASSES) != plain).any())


@pytest.mark.parametrize(("size", "scale"), [((64, 64), 6), ((480, 640), 1), ((100, 1500), 1), ((8000, 4000), 0.2)])
def test_the_picture_is_drawn_at_a_size_that_can_be_read(size: tuple[int, int], scale: float) -> None:
    assert drawing_scale(size) == pytest.approx(scale)


def test_boxes_and_masks_follow_the_size_of_the_drawing() -> None:
    for side in (60, 3200):
        dense = torch.zeros(1, side, side, dtype=torch.bool)
        dense[0, side // 2 :, : side // 2] = True
        quarter = torch.tensor([[0.0, side / 2, side / 2, side]])
        drawn = box_overlay(grey(side, side), found(quarter, Masks.of(dense)), CLASSES, has_words=False).float()
        high = drawn.shape[1]
        assert 400 <= high <= MAX_SIDE
        changed = (drawn - 200).abs().sum(0) > 20
        assert float(changed[high // 2 + 8 :, : high // 2 - 8].float().mean()) == 1
        assert float(changed[: high // 2 - 8].float().mean()) == 0


def test_a_picture_without_objects_stays_as_it_is() -> None:
    assert torch.equal(box_overlay(grey(), target(), CLASSES), grey())


def test_outcomes_give_the_colours() -> None:
    truth = target((50, 50, 150, 150), (250, 250, 350, 350))
    detections = found(truth.boxes[:1] + torch.tensor([[2.0, 2, 2, 2], [200, 0, 200, 0]]))
    outcomes = Outcomes(["right", "missed"], ["right", "false"])
    left, right = compared_boxes(grey(), truth, detections, CLASSES, outcomes)
    for image, places in ((left, ((100, 50, "right"), (300, 250, "missed"))), (right, ((100, 250, "false"),))):
        for row, column, outcome in places:
            assert torch.equal(image[:, row, column], paint(OUTCOME_COLOURS[outcome]))  # type: ignore[index]
    sheet = truth_beside_prediction(grey(), truth, detections, CLASSES, outcomes)
    assert torch.equal(sheet[:, :SIDE, :SIDE], left)
    assert torch.equal(sheet[:, :SIDE, -SIDE:], right)
    legend = sheet[:, SIDE:]
    assert bool(is_colour(legend[:, :, :SIDE], OUTCOME_COLOURS["missed"]).any())
    assert bool(is_colour(legend[:, :, SIDE:], OUTCOME_COLOURS["false"]).any())
    assert not bool(is_colour(legend[:, :, :SIDE], OUTCOME_COLOURS["false"]).any())


def test_what_does_not_fit_is_refused() -> None:
    truth = target((50, 50, 150, 150))
    with pytest.raises(InputError, match="2 colours for 1"):
        box_overlay(grey(), truth, CLASSES, colours=["#000000", "#ffffff"])
    with pytest.raises(InputError, match="masks are of a picture"):
        box_overlay(grey(), found(truth.boxes, Masks.of(torch.ones(1, 20, 20))), CLASSES)
    with pytest.raises(InputError, match="picture is"):
        box_overlay(grey().float(), truth, CLASSES)


def test_precision_recall_curves_hold_the_numbers_they_were_given() -> None:
    lines = {"cell": [1.0, 0.8, 0.6, 0.4, 0.2], "grain": [0.5, 0.5, None, 0.0, 0.0]}
    axes = precision_recall(lines, title="at IoU 0.5").axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert drawn == {
        "cell  60.0%": lines["cell"],
        "grain  20.0%": [0.5, 0.5, 0.0, 0.0, 0.0],
        "mean of 2  40.0%": pytest.approx([0.75, 0.65, 0.3, 0.2, 0.1]),
    }
    assert list(axes.get_lines()[0].get_xdata()) == [0, 0.25, 0.5, 0.75, 1]
    many = precision_recall({f"class {k}": [k / 20] * 3 for k in range(20)})
    labels = [text.get_text() for text in many.axes[0].get_legend().get_texts()]
    assert labels == [*(f"class {k}  {k / 20:.1%}" for k in range(8)), "mean of 20  47.5%"], "the lowest and the mean"
    with pytest.raises(InputError, match="no curve"):
        precision_recall({"cell": []})


def test_the_cost_of_mistakes_is_drawn_with_their_number() -> None:
    axes = losses_by_cause({"class": (0.031, 12), "missed": (0.2, 1500), "both": (None, 0)}, unit="AP50").axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.031, 0.2, 0.0])
    assert [text.get_text() for text in axes.texts] == ["3.1  (12)", "20.0  (1,500)", "–  (0)"]
    assert "AP50" in axes.get_xlabel()
    with pytest.raises(InputError, match="no kinds"):
        losses_by_cause({})
