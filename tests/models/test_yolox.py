"""YOLOX: its codes, its scores, its loss."""

from __future__ import annotations

import pytest
import torch

import saccade
from saccade.errors import ConfigError
from saccade.models.yolox import Yolox, YoloxOutputs
from saccade.types import BoxTarget, ImageBatch


def made() -> Yolox:
    model = saccade.create("yolox_test", num_classes=3)
    assert isinstance(model, Yolox)
    return model


def test_codes_are_seen_from_the_cells_corner() -> None:
    points = torch.tensor([[20.0, 12.0, 8.0]])  # the cell from 16 to 24, 8 to 16
    codes = torch.tensor([[0.25, 1.5, 0.0, torch.tensor(2.0).log()]])
    # Centre at 16 + 2, 8 + 12; 8 wide, 16 high.
    assert torch.allclose(made().decode(codes, points), torch.tensor([[14.0, 12.0, 22.0, 28.0]]))


def test_a_score_is_the_product_of_both_probabilities() -> None:
    model = made()
    logits, objectness = torch.tensor([[[0.3, -2.0, 5.0]]]), torch.tensor([[1.2]])
    outputs = YoloxOutputs(logits, objectness, torch.zeros(1, 1, 4), torch.tensor([[4.0, 4.0, 8.0]]))
    (found,) = model.candidates(outputs, ImageBatch.of(torch.zeros(1, 3, 64, 64)))
    expected = logits[0].sigmoid() * objectness[0].sigmoid()
    torch.testing.assert_close(found.scores, expected)
    torch.testing.assert_close(found.logits, torch.logit(expected), rtol=1e-4, atol=1e-4)


def test_a_batch_without_objects_teaches_that_there_are_none() -> None:
    model = made().train()
    nothing = BoxTarget.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    with torch.no_grad():
        losses = model.loss(model(ImageBatch.of(torch.rand(2, 3, 64, 64))), [nothing] * 2)
    assert float(losses.terms["object"]) > 0
    assert float(losses.terms["class"]) == float(losses.terms["boxes"]) == 0


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="width"):
        saccade.create("yolox_test", overrides={"width": 3})
