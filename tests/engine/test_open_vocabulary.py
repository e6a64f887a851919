"""Prompts for pixels and boxes, on a model whose prompts are colours, so that every answer is known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import saccade
from saccade.engine import open_vocabulary
from saccade.engine.open_vocabulary import PromptDetector, PromptSegmenter, crop
from saccade.errors import ConfigError
from saccade.models.classifier import Classifier, ClassifierOutputs
from saccade.types import Classes, ClassTarget, Detections, ImageBatch

GRID = 4


class Colours(Classifier):
    """Scores red, green and blue by the mean colour, of patches or of the picture."""

    def patch_logits(self, images: ImageBatch) -> Tensor:
        return 10 * torch.nn.functional.adaptive_avg_pool2d(images.pixels, GRID)

    def forward(self, images: ImageBatch, targets: Sequence[ClassTarget] | None = None) -> ClassifierOutputs:
        outputs = super().forward(images)
        return outputs._replace(logits=10 * images.pixels.mean(dim=(2, 3)))


@pytest.fixture
def colours() -> Colours:
    model = Colours(saccade.create("vit_average_test", num_classes=3).config)  # type: ignore[arg-type]
    model.classes = Classes(("red", "green", "blue"))
    return model


def painted(height: int, width: int) -> Tensor:
    """Red above, green below left, blue below right."""
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    picture[0, : height // 2] = 255
    picture[1, height // 2 :, : width // 2] = 255
    picture[2, height // 2 :, width // 2 :] = 255
    return picture


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (150, 40)])
def test_every_pixel_gets_its_prompt(colours: Colours, size: tuple[int, int]) -> None:
    picture = painted(*size)
    found = PromptSegmenter(colours)(picture)
    assert found.labels.shape == size
    assert found.classes.names == ("red", "green", "blue")
    # A border may be off by half a patch, whatever the shape of the picture.
    wrong = found.labels != picture.argmax(dim=0)
    assert float(wrong.float().mean()) < 0.13
    inner = (slice(4, size[0] // 2 - size[0] // 8), slice(4, -4))
    assert not wrong[inner].any()


def test_pieces_say_the_same_as_the_whole(colours: Colours) -> None:
    """Where the model sees each patch alone, where a square begins changes nothing."""
    scores = PromptSegmenter(colours).patch_scores(painted(64, 192))
    assert scores.shape == (3, GRID, 3 * GRID)
    expected = torch.zeros(3, GRID, 3 * GRID)
    expected[0, :2] = 1
    expected[1, 2:, :6] = 1
    expected[2, 2:, 6:] = 1
    inner = [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert torch.equal(scores.argmax(dim=0)[:, inner], expected.argmax(dim=0)[:, inner])


def test_classes_in_parts_give_the_same_map(colours: Colours, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = PromptSegmenter(colours)(picture)
    monkeypatch.setattr(open_vocabulary, "VALUES_AT_ONCE", 1)
    parts = PromptSegmenter(colours)(picture)
    assert torch.equal(whole.labels, parts.labels)
    assert torch.allclose(whole.confidence.float(), parts.confidence.float(), atol=1e-3)


def test_confidence_is_the_probability_of_the_prompt(colours: Colours) -> None:
    picture = painted(64, 64)
    found = PromptSegmenter(colours)(picture)
    logits = PromptSegmenter(colours).patch_scores(picture)
    assert float(found.confidence[2, 2]) == pytest.approx(float(logits[:, 0, 0].softmax(0)[0]), abs=1e-3)


def test_a_plain_classifier_says_nothing_of_patches() -> None:
    with pytest.raises(ConfigError, match="cannot say anything"):
        PromptSegmenter(saccade.create("vit_average_test"))


def boxes_of(*boxes: tuple[float, float, float, float], scores: Sequence[float]) -> Detections:
    count = len(boxes)
    labels = torch.arange(count)
    classes = Classes.numbered(max(count, 1))
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(count, 4)
    return Detections(corners, torch.tensor(scores), labels, labels + 7, classes)


def test_boxes_get_prompts_for_classes(colours: Colours) -> None:
    picture = painted(100, 100)
    given = boxes_of((10, 10, 40, 35), (10, 60, 40, 90), (60, 60, 90, 90), scores=[0.9, 0.8, 0.6])
    found = PromptDetector(colours, saccade.create("yolo_test")).rename(picture, given)
    assert [found.name(index) for index in range(3)] == ["red", "green", "blue"]
    assert torch.equal(found.boxes, given.boxes)
    assert found.source.tolist() == [7, 8, 9]
    assert (found.scores <= given.scores).all()
    assert (found.scores > 0.5).all()


def test_one_thing_with_two_classes_becomes_one_object(colours: Colours) -> None:
    given = boxes_of((10, 10, 40, 35), (11, 10, 41, 35), scores=[0.9, 0.8])
    found = PromptDetector(colours, saccade.create("yolo_test")).rename(painted(100, 100), given)
    assert found.source.tolist() == [7]


def test_objects_come_by_falling_score_and_faint_ones_are_left_out(colours: Colours) -> None:
    picture = painted(100, 100)
    # The first box lies half on red and half on green, so no prompt is sure of it.
    given = boxes_of((5, 35, 35, 65), (60, 60, 90, 90), (60, 10, 80, 30), scores=[0.9, 0.8, 0.01])
    found = PromptDetector(colours, saccade.create("yolo_test")).rename(picture, given)
    assert found.source.tolist() == [8, 7]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_nothing_found_stays_nothing(colours: Colours) -> None:
    found = PromptDetector(colours, saccade.create("yolo_test")).rename(painted(100, 100), boxes_of(scores=[]))
    assert len(found) == 0
    assert found.classes.names == ("red", "green", "blue")


def test_a_detector_is_run_end_to_end(colours: Colours) -> None:
    torch.manual_seed(0)
    detector = saccade.create("yolo_test", overrides={"selection.min_score": 0.0})
    found = PromptDetector(colours, detector, min_score=0.0)(painted(80, 120))
    assert len(found) > 0
    assert set(found.labels.tolist()) <= {0, 1, 2}


def test_what_finds_no_boxes_is_refused(colours: Colours) -> None:
    with pytest.raises(ConfigError, match="finds no boxes"):
        PromptDetector(colours, saccade.create("vit_average_test"))


def test_crops_are_square_inside_and_cut_at_the_border() -> None:
    picture = torch.zeros(3, 100, 200, dtype=torch.uint8)
    assert crop(picture, torch.tensor([80.0, 40.0, 100.0, 50.0]), 1.0).shape == (3, 20, 20)
    assert crop(picture, torch.tensor([0.0, 0.0, 20.0, 10.0]), 1.0).shape == (3, 15, 20)
    assert crop(picture, torch.tensor([199.5, 99.5, 199.6, 99.6])).shape[1:] >= (1, 1)
