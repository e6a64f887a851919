from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.errors import ConfigError
from saccade.models.build import create
from saccade.models.sliding_window import SlidingWindow, SlidingWindowConfig
from saccade.registry import lookup
from saccade.types import BoxTarget, ImageBatch


def make(**changes: object) -> SlidingWindow:
    torch.manual_seed(0)
    config = lookup("sliding_window_test")
    assert isinstance(config, SlidingWindowConfig)
    return SlidingWindow(replace(config, **changes)).eval()  # type: ignore[arg-type]


def square(left: int = 16, top: int = 8, side: int = 24) -> tuple[ImageBatch, list[BoxTarget]]:
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[0, 0, top : top + side, left : left + side] = 2.0
    box = torch.tensor([[left, top, left + side, top + side]]).float()
    return ImageBatch.of(pixels), [BoxTarget.of(box, torch.tensor([1]))]


def test_windows_of_a_small_picture_by_hand() -> None:
    model = make(sides=(32.0,), ratios=(1.0,), step=0.5)
    windows = model.windows((64, 48))
    places = [(left, top) for top in (0, 16, 32) for left in (0, 16)]
    expected = [[x, y, x + 32, y + 32] for x, y in places] + [[0, 0, 48, 64]]
    assert windows.tolist() == expected
    assert model.num_windows((64, 48)) == 7


def test_ratios_are_heights_over_widths_of_one_area() -> None:
    first = make(sides=(20.0,), ratios=(4.0,)).windows((64, 64))[0]
    assert first.tolist() == [0, 0, 10, 40]


@pytest.mark.parametrize("size", [(64, 64), (50, 120), (33, 64), (20, 30)])
def test_windows_are_counted_before_they_are_made(size: tuple[int, int]) -> None:
    model = make(sides=(24.0, 40.0), ratios=(0.5, 1.0, 2.0), step=0.3)
    windows = model.windows(size)
    assert model.num_windows(size) == len(windows) == len(torch.unique(windows, dim=0))
    assert windows[-1].tolist() == [0, 0, size[1], size[0]]
    assert float(windows.min()) >= 0
    assert bool((windows[:, 2:] <= torch.tensor([size[1], size[0]]) + 1e-4).all())


@pytest.mark.parametrize("step", [0.2, 0.25, 0.7, 1.0])
def test_windows_reach_from_border_to_border_in_steps(step: float) -> None:
    windows = make(sides=(24.0,), ratios=(1.0,), step=step).windows((64, 90))[:-1]
    for axis, length in ((0, 90), (1, 64)):
        starts = torch.unique(windows[:, axis])
        assert (float(starts[0]), float(starts[-1])) == (0, length - 24)
        assert float(starts.diff().max()) <= 24 * step + 1e-4


def test_a_picture_smaller_than_every_window_is_one_window() -> None:
    assert make().windows((10, 12)).tolist() == [[0, 0, 12, 10]]


def test_announces_how_many() -> None:
    model = create("sliding_window_r18")
    number = model.num_windows((320, 320))
    assert number > 1000
    assert f"{number:,} windows of each picture of 320x320" in str(model.announcement((320, 320)))


def test_a_detection_is_the_window_that_it_comes_from() -> None:
    model = make()
    images = ImageBatch.of(torch.randn(1, 3, 64, 64))
    (found,) = model.postprocess(model(images), images)
    assert len(found)
    torch.testing.assert_close(found.boxes, model.windows((64, 64))[found.source])


def test_chunks_change_nothing() -> None:
    images = ImageBatch.of(torch.randn(2, 3, 64, 64))
    one, many = (make(at_once=count)(images) for count in (7, 10_000))
    torch.testing.assert_close(one.logits, many.logits, rtol=1e-4, atol=1e-5)


def test_at_most_so_many_windows_are_seen_together() -> None:
    model = make(at_once=7)
    seen: list[int] = []
    model.network.backbone.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    with torch.no_grad():
        outputs = model(ImageBatch.of(torch.randn(2, 3, 64, 64)))
    assert max(seen) == 7
    assert sum(seen) == len(outputs.logits) == 2 * model.num_windows((64, 64))


def test_only_classes_are_learned() -> None:
    model, (images, targets) = make(), square()
    outputs = model(images)
    assert not outputs.codes.any()
    losses = model.loss(outputs, targets)
    assert set(losses.terms) == {"class"}


def test_an_object_that_fits_no_window_has_one_still() -> None:
    model, (images, targets) = make(), square(left=20, top=20, side=8)
    outputs = model(images)
    matched = model.learning.assigner(outputs.regions.boxes, targets[0]).matched
    assert int((matched >= 0).sum()) >= 1


def test_targets_choose_a_balanced_sample() -> None:
    model, (images, targets) = make(), square()
    regions = model(images, targets).regions
    matched = model.learning.assigner(regions.boxes, targets[0]).matched
    assert len(matched) == 16
    assert 1 <= int((matched >= 0).sum()) <= 4


def test_crowds_everywhere_teach_nothing() -> None:
    model, (images, _) = make().train(), square()
    crowd = BoxTarget(torch.tensor([[0.0, 0, 64, 64]]), torch.tensor([0]), torch.tensor([True]))
    losses = model.loss(model(images, [crowd]), [crowd])
    losses.total.backward()
    assert float(losses.total.detach()) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"sides": ()}, {"ratios": (0.0,)}, {"step": 0.0}, {"step": 1.5}, {"context": 32}, {"at_once": 0}],
)
def test_refuses_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        make(**wrong)
