"""Tiled inference against the forward pass of the whole picture."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saccade.backbones.base import Routing
from saccade.engine import tiles
from saccade.engine.tiles import TileConfig, needs_tiles, segment_picture
from saccade.errors import ConfigError, InputError
from saccade.models.segmenter import Segmenter, SegmenterConfig, SegmenterOutputs
from saccade.ops.image import Preprocess


class TinySegmenter(Segmenter):
    """Convolutions at full and, between a pooling and its undoing, at a fourth of the resolution: a stride of 4.

    A pixel depends on others at most 2 + 4 + 4 + 2 + 1 pixels away, so a margin of 16 is enough.
    """

    stride = 4

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        self.first = nn.Conv2d(3, 8, 5, padding=2)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(16, config.num_classes, 3, padding=1)

    def segment(self, pixels):
        fine = self.first(pixels).sin()
        coarse = self.middle(F.max_pool2d(fine, 4)).sin()
        logits = self.last(torch.cat([fine, F.interpolate(coarse, scale_factor=4.0)], dim=1))
        return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), Routing.none(pixels))

    def explain_spec(self):
        raise NotImplementedError


class PixelSegmenter(Segmenter):
    """Looks at one pixel at a time; does nothing but take memory."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        self.project = nn.Conv2d(3, config.num_classes, 1)

    def segment(self, pixels):
        logits = self.project(pixels)
        return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), Routing.none(pixels))

    def explain_spec(self):
        raise NotImplementedError


def tiny(policy: str = "native", num_classes: int = 5, size: tuple[int, int] = (16, 16)) -> TinySegmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TinySegmenter(SegmenterConfig(num_classes=num_classes, preprocess=Preprocess(size=size, policy=policy)))
        for parameter in model.parameters():
            parameter.data.mul_(2)
        return model.eval()


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def plain(model: TinySegmenter, image: torch.Tensor):
    images = model.preprocess([image])
    with torch.inference_mode():
        return model.postprocess(model(images), images)[0]


def cut(model: TinySegmenter, image: torch.Tensor, **options):
    with torch.inference_mode():
        return segment_picture(model, image, model, TileConfig(whole_pixels=0, **options))


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [
        (300, 260, (128, 128), 0.5),
        (301, 263, (128, 160), 0.5),  # no multiples of the stride
        (260, 131, (130, 136), 0.5),  # tiles rounded up; the last ones reach beyond the picture
        (100, 700, (256, 256), 0.25),  # lower than a tile
        (133, 90, (128, 128), 0.5),  # two rows that are nearly the same
    ],
)
def test_a_model_that_sees_less_than_the_margin_gives_the_same_in_tiles(height, width, tile, overlap):
    # The outer quarters of overlaps of 64 pixels are left out: 16 pixels, as far as the model looks.
    model, image = tiny(), picture(height, width)
    whole, tiled = plain(model, image), cut(model, image, size=tile, overlap=overlap)
    assert needs_tiles(model, (height, width), TileConfig(whole_pixels=0, size=tile))
    assert len(whole.labels.unique()) == 5
    torch.testing.assert_close(tiled.confidence, whole.confidence, atol=2e-3, rtol=0)
    # Rounding may turn a pixel whose two likeliest classes are equal.
    assert (tiled.labels != whole.labels).float().mean() < 1e-4
    assert tiled.labels.dtype == torch.uint8
    assert tiled.classes is model.classes


def test_tile_size_hardly_matters_even_where_the_model_sees_further():
    model, image = tiny(), picture(300, 300)
    whole = plain(model, image)
    found = [cut(model, image, size=size).labels for size in ((64, 64), (96, 80), (128, 128))]
    for one, other in itertools.combinations([*found, whole.labels], 2):
        assert 0 <= (one != other).float().mean() < 0.01


def test_without_an_overlap_the_seams_show():
    # The counterpart: the tests above could not pass with tiles that are merely put side by side.
    model, image = tiny(), picture(300, 300)
    side_by_side = cut(model, image, size=(64, 64), overlap=0.0)
    assert (side_by_side.labels != plain(model, image).labels).float().mean() > 0.01


def test_one_tile_is_the_plain_forward_pass():
    model, image = tiny(), picture(61, 83)
    whole = plain(model, image)
    for options in ({"size": (64, 84)}, {"size": (500, 500)}, {}):
        tiled = cut(model, image, **options)
        assert torch.equal(tiled.labels, whole.labels)
        assert torch.equal(tiled.confidence, whole.confidence)


def test_pictures_up_to_a_size_stay_whole():
    model, canvases = tiny(), []

    def run(images):
        canvases.append(tuple(images.pixels.shape))
        return model(images)

    plan = TileConfig(whole_pixels=200 * 300, size=(64, 64))
    with torch.inference_mode():
        segment_picture(run, picture(200, 300), model, plan)
        assert canvases == [(1, 3, 200, 300)]
        assert not needs_tiles(model, (200, 300), plan)
        segment_picture(run, picture(200, 301), model, plan)
    assert {canvas[2:] for canvas in canvases[1:]} == {(64, 64)}


@pytest.mark.parametrize("policy", ["stretch", "letterbox"])
def test_models_that_resize_take_pictures_whole(policy):
    model, image = tiny(policy), picture(90, 50)
    found = cut(model, image)
    assert found.labels.shape == (90, 50)
    assert torch.equal(found.labels, plain(model, image).labels)


def test_batches_hold_no_more_tiles_than_told_nor_than_fit_the_caches(monkeypatch):
    model, image = tiny(), picture(200, 200)
    sizes = []

    def run(images):
        sizes.append(len(images))
        return model(images)

    def labels(batch):
        sizes.clear()
        with torch.inference_mode():
            plan = TileConfig(whole_pixels=0, size=(64, 64), batch=batch)
            return segment_picture(run, image, model, plan).labels

    # 200 pixels: tiles of 64 every 48 at most, so four; 16 in all.
    expected = labels(16)
    assert sizes == [16]
    assert torch.equal(labels(5), expected)
    assert sizes == [5, 5, 5, 1]
    monkeypatch.setattr(tiles, "CPU_PIXELS", 64 * 64 * 3)
    assert torch.equal(labels(16), expected)
    assert sizes == [3, 3, 3, 3, 3, 1]


def test_probabilities_are_blended_by_hand():
    # A model that knows nothing but the number of the tile: the first says class 0, the second class 1, for sure.
    model = tiny(num_classes=2)

    def run(images):
        logits = torch.zeros(len(images), 2, *images.pixels.shape[2:])
        logits[0, 0], logits[1, 1] = 100, 100
        return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), Routing.none(logits))

    # Tiles [0, 64) and [32, 96): the outer quarters [32, 40) and [56, 64) count for nothing, 16 pixels are faded.
    plan = TileConfig(whole_pixels=0, size=(64, 64), overlap=0.5)
    found = segment_picture(run, picture(64, 96), model, plan)
    share = ((torch.arange(96) + 0.5 - 40) / 16).clamp(0, 1)
    assert torch.equal(found.labels, (share > 0.5).to(torch.uint8).expand(64, 96))
    torch.testing.assert_close(found.confidence, torch.maximum(share, 1 - share).half().expand(64, 96))


def test_the_shares_of_all_tiles_sum_to_one():
    for size, tile, overlap, stride in itertools.product((65, 257, 1000), (32, 50, 64), (0.0, 0.25, 0.5), (1, 8, 32)):
        axis = tiles._Axis.of(size, tile, overlap, stride)
        torch.testing.assert_close(axis.weights.sum(0), torch.ones(size))
        assert axis.weights.min() >= 0
        assert all(start % stride == 0 for start in axis.starts)
        assert all(start <= first and last <= start + axis.length for start, (first, last) in _pairs(axis))
        gaps = [later - earlier for earlier, later in itertools.pairwise(axis.starts)]
        if stride < tile // 2:
            assert all(axis.length - gap >= overlap * tile - stride for gap in gaps)


def _pairs(axis):
    return zip(axis.starts, axis.spans, strict=True)


def test_default_tiles_are_twice_the_crop_and_at_least_512():
    for size, expected in (((320, 400), (640, 800)), ((16, 300), (512, 600))):
        rows, columns = tiles._axes(tiny(size=size), (5000, 5000), TileConfig())
        assert (rows.length, columns.length) == expected


def test_a_faster_copy_runs_in_its_place():
    model, image = tiny(), picture(200, 200)
    copy = tiny().to(torch.bfloat16)
    plan = TileConfig(whole_pixels=0, size=(64, 64))
    with torch.inference_mode():
        found = segment_picture(lambda images: copy(images.to(dtype=torch.bfloat16)), image, model, plan)
        exact = segment_picture(model, image, model, plan)
    assert (found.labels == exact.labels).float().mean() > 0.97
    assert found.confidence.dtype == torch.float16


def test_gradients_are_not_kept():
    found = segment_picture(tiny(), picture(90, 90), tiny(), TileConfig(whole_pixels=0, size=(64, 64)))
    assert not found.confidence.requires_grad


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8), picture(0, 4)])
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(InputError, match=r"expected \[3, h, w\] uint8 RGB"):
        segment_picture(tiny(), image, tiny())


@pytest.mark.parametrize("options", [{"size": (0, 5)}, {"overlap": 0.6}, {"batch": 0}, {"whole_pixels": -1}])
def test_plans_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match="expected"):
        replace(TileConfig(), **options)


def test_memory_stays_bounded_on_8000_by_8000_pixels():
    script = """
        import resource, torch
        torch.set_num_threads(1)
        from saccade.engine.tiles import TileConfig, segment_picture
        from saccade.models.segmenter import SegmenterConfig
        from test_tiles import PixelSegmenter
        torch.manual_seed(0)  # some weights give black and white the same class
        model = PixelSegmenter(SegmenterConfig(num_classes=4)).eval()
        image = torch.zeros(3, 8000, 8000, dtype=torch.uint8)
        image[:, 4000:, 100:] = 255
        with torch.inference_mode():
            segment_picture(model, image[:, :600, :600], model, TileConfig(whole_pixels=0))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found = segment_picture(model, image, model)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        black, white = found.labels[0, 0], found.labels[-1, -1]
        assert black != white
        assert (found.labels[:4000] == black).all() and (found.labels[:, :100] == black).all()
        assert (found.labels[4000:, 100:] == white).all()
        print((after - before) / 1024)
    """
    here = str(Path(__file__).parent)
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    # 183 MiB are the result; the logits of the whole picture alone would be 977 MiB.
    assert float(ran.stdout) < 400
