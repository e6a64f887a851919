"""Denoising queries: what is copied, how far it moves, and who may see whom."""

from __future__ import annotations

import pytest
import torch

from saccade.errors import ConfigError
from saccade.matching.hungarian import Objects
from saccade.models.denoise import OF_NOTHING, UNUSED, DenoiseConfig, Noisy
from saccade.ops.boxes import from_centres


def objects() -> Objects:
    """Two objects in the first picture, one in the second, well inside of the canvas."""
    boxes = torch.tensor([[[0.4, 0.5, 0.2, 0.1], [0.6, 0.4, 0.1, 0.2]], [[0.5, 0.5, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0]]])
    return Objects(torch.tensor([[3, 7], [5, 0]]), boxes, torch.tensor([[True, True], [True, False]]))


def made(**changes: float) -> Noisy:
    torch.manual_seed(0)
    return DenoiseConfig(**{"queries": 6, **changes})(objects(), num_classes=10, queries=4)


def test_every_object_is_shown_in_every_group() -> None:
    noisy = made()
    assert noisy.object[0].tolist() == [0, 1, OF_NOTHING, OF_NOTHING] * 3
    assert noisy.object[1].tolist() == [0, UNUSED, OF_NOTHING, UNUSED] * 3


def test_without_label_noise_classes_stay_and_with_it_some_change() -> None:
    assert made(label_noise=0.0).labels[0].tolist() == [3, 7] * 6
    changed = made(label_noise=1.0, queries=400).labels[0]
    assert 0 <= int(changed.min()) <= int(changed.max()) < 10
    assert 0.8 < float((changed != torch.tensor([3, 7]).repeat(400)).float().mean()) < 1


def test_corners_move_less_far_where_the_object_has_to_be_told() -> None:
    noise = 0.4
    noisy = made(queries=400, box_noise=noise)
    truth = objects().boxes.repeat(1, 400, 1)
    moved = (from_centres(noisy.boxes) - from_centres(truth)).abs() / truth[..., 2:].repeat(1, 1, 2) * 2
    is_told, is_refused = noisy.object >= 0, noisy.object == OF_NOTHING
    assert float(moved[is_told].max()) <= noise + 1e-4
    assert float(moved[is_told].max()) > 0.95 * noise
    assert float(moved[is_refused].min()) >= noise - 1e-4
    assert float(moved[is_refused].max()) <= 2 * noise + 1e-4


def test_boxes_stay_on_the_canvas_and_keep_their_sides_positive() -> None:
    wide = objects()._replace(boxes=torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]).expand(2, 2, 4))
    noisy = DenoiseConfig(queries=100, box_noise=1.0)(wide, 10, 4)
    corners = from_centres(noisy.boxes)
    assert float(corners.min()) >= -1e-6
    assert float(corners.max()) <= 1 + 1e-6
    assert float(noisy.boxes[..., 2:].min()) >= 0


def test_who_may_look_at_whom() -> None:
    mask = made().mask[:, 0]  # three groups of four, then four ordinary queries
    assert mask.shape == (2, 16, 16)
    ordinary, first, second = slice(12, 16), slice(0, 4), slice(4, 8)
    assert not mask[:, ordinary, :12].any()
    assert bool(mask[:, :, ordinary].all())
    assert bool(mask[0, first, first].all())
    assert not mask[:, first, second].any()
    assert not mask[:, second, first].any()
    # The second picture has one object: nobody looks at what only fills up.
    assert not mask[1, :, 1].any()
    assert bool(mask[1, first, 0].all())


def test_one_group_at_least_and_none_without_objects() -> None:
    assert made(queries=1).object.shape == (2, 4)
    assert made(queries=0).object.shape == (2, 0)
    none = Objects(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool))
    noisy = DenoiseConfig()(none, 10, 4)
    assert noisy.boxes.shape == (2, 0, 4)
    assert bool(noisy.mask.all())


def test_draws_follow_the_seed() -> None:
    assert torch.equal(made().boxes, made().boxes)


def test_wrong_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise"):
        DenoiseConfig(label_noise=2)
