"""The first YOLO against its equation."""

from __future__ import annotations

import pytest
import torch

import saccade
from saccade.errors import ConfigError, InputError
from saccade.models.yolo_v1 import YoloV1, YoloV1Outputs
from saccade.types import BoxTarget, ImageBatch


@pytest.fixture
def model() -> YoloV1:
    made = saccade.create("yolo_v1_test", num_classes=3, overrides={"selection.min_score": 0.05})
    assert isinstance(made, YoloV1)
    return made.eval()


def outputs_of(size: int = 4, boxes: int = 2, classes: int = 3) -> YoloV1Outputs:
    """A grid on a canvas of 64x64 that says nothing at all."""
    return YoloV1Outputs(
        torch.zeros(1, size, size, boxes, 2),
        torch.zeros(1, size, size, boxes, 2),
        torch.zeros(1, size, size, boxes),
        torch.zeros(1, size, size, classes),
        torch.tensor([64, 64]),
    )


def target(*boxes: tuple[float, float, float, float], labels: list[int]) -> BoxTarget:
    return BoxTarget.of(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64)
    )


def test_loss_of_one_object_in_numbers(model: YoloV1) -> None:
    # Centre (24, 40) lies in column 1, row 2 of cells of 16 pixels, in its middle; sides 32x16 of 64.
    outputs = outputs_of()
    outputs.roots[0, 2, 1, 0] = torch.tensor([0.5, 0.5])  # a box of 16x16 around the corner (16, 32)
    outputs.confidence[0, 2, 1, 0] = 0.25
    outputs.confidence[0, 0, 0, 1] = 2.0
    outputs.classes[0, 2, 1, 2] = 0.5
    losses = model.loss(outputs, [target((8, 32, 40, 48), labels=[2])])
    # The predicted box (8, 24, 24, 40) shares 16x8 with the truth's 32x16: IoU 128 / (256 + 512 - 128) = 0.2.
    expected = {
        "centres": 5 * (0.5**2 + 0.5**2),
        "sides": 5 * ((0.5 - 0.5**0.5) ** 2 + (0.5 - 0.25**0.5) ** 2),
        "object": (0.25 - 0.2) ** 2,
        "no_object": 0.5 * 2.0**2,
        "class": (0.5 - 1.0) ** 2,
    }
    assert {name: float(term) for name, term in losses.terms.items()} == pytest.approx(expected, abs=1e-6)
    assert float(losses.logs["iou"]) == pytest.approx(0.2, abs=1e-6)


def test_a_picture_without_objects_costs_its_false_confidence_alone(model: YoloV1) -> None:
    outputs = outputs_of()
    outputs.confidence[0, 1, 1, 0] = 3.0
    losses = model.loss(outputs, [target(labels=[])])
    assert float(losses.total) == pytest.approx(0.5 * 9.0)


def test_of_two_objects_in_a_cell_the_larger_is_answered_for(model: YoloV1) -> None:
    small, large = (20.0, 20.0, 28.0, 28.0), (8.0, 8.0, 40.0, 40.0)
    both = model.loss(outputs_of(), [target(small, large, labels=[0, 1])])
    alone = model.loss(outputs_of(), [target(large, labels=[1])])
    assert float(both.total) == float(alone.total)


def test_the_box_that_overlaps_most_is_responsible(model: YoloV1) -> None:
    outputs = outputs_of()
    outputs.centres[0, 1, 1] = 0.5
    outputs.roots[0, 1, 1, 0] = 0.9
    outputs.roots[0, 1, 1, 1] = 0.5  # exactly the object
    losses = model.loss(outputs, [target((16, 16, 32, 32), labels=[0])])
    assert float(losses.terms["centres"]) == 0
    assert float(losses.terms["sides"]) == 0
    assert float(losses.terms["object"]) == pytest.approx(1.0)  # confidence 0 where 1 is due


def test_crowds_are_no_objects(model: YoloV1) -> None:
    crowd = BoxTarget(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), torch.tensor([True]))
    assert float(model.loss(outputs_of(), [crowd]).total) == 0


def test_source_names_the_cell_of_the_box(model: YoloV1) -> None:
    outputs = outputs_of()
    outputs.centres[0, 2, 3, 1] = 0.5
    outputs.roots[0, 2, 3, 1] = 0.5
    outputs.confidence[0, 2, 3, 1] = 0.9
    outputs.classes[0, 2, 3, 1] = 0.8
    found = model.postprocess(outputs, ImageBatch.of(torch.zeros(1, 3, 64, 64)))[0]
    assert len(found) == 1
    assert found.boxes[0].tolist() == [48, 32, 64, 48]
    assert float(found.scores[0]) == pytest.approx(0.72)
    assert int(found.labels[0]) == 1
    assert model.cell(int(found.source[0])) == (2, 3)


def test_two_negative_factors_are_no_evidence(model: YoloV1) -> None:
    outputs = outputs_of()
    outputs.roots.fill_(0.5)
    outputs.confidence.fill_(-1.0)
    outputs.classes.fill_(-1.0)
    assert len(model.postprocess(outputs, ImageBatch.of(torch.zeros(1, 3, 64, 64)))[0]) == 0


def test_another_canvas_is_refused(model: YoloV1) -> None:
    with pytest.raises(InputError, match="canvas"):
        model(ImageBatch.of(torch.zeros(1, 3, 96, 96)))


def test_a_canvas_of_changing_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="policy"):
        saccade.create("yolo_v1_test", overrides={"preprocess.policy": "native"})


@pytest.mark.parametrize("name", ["yolo_v1_test", "yolo_v1_small", "yolo_v1_r18", "yolo_v1"])
def test_every_cell_has_a_place_of_the_map_of_its_own(name: str) -> None:
    overrides = {"head": "convolutional", "width": 16} if name == "yolo_v1" else {}
    model = saccade.create(name, overrides=overrides)
    assert isinstance(model, YoloV1)
    height, width = model.preprocess.size
    with torch.no_grad():
        outputs = model.eval()(ImageBatch.of(torch.randn(1, 3, height, width)))
    said = outputs.confidence.flatten(1, 2)[0]
    assert len(said.unique(dim=0)) == len(said)


def test_a_grid_finer_than_the_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="the grid is 5x5, the backbone's last map 4x4"):
        saccade.create("yolo_v1_test", overrides={"grid": 5})
