"""Faster copies of convolutional models: what is offered, and that its answers are those of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from saccade.engine import fast
from saccade.engine.fast import ROUNDED_AT_ONCE, Candidate, GatheredRegions, candidates, gather_regions
from saccade.engine.predict import run
from saccade.engine.quantize import QuantizedConv2d, has_eight_bit_kernel
from saccade.models.build import create
from saccade.nn.roi import RoIExtractor
from saccade.types import Detections, Segmentation

needs_kernel = pytest.mark.skipif(not has_eight_bit_kernel(), reason="this processor has no 8-bit multiplication")
CPU = torch.device("cpu")


def offered(model: nn.Module) -> list[Candidate]:
    """The candidates with 8-bit convolutions."""
    return [candidate for candidate in candidates(model, CPU) if "convolutions in 8 bits" in candidate.name]


@needs_kernel
@pytest.mark.parametrize("is_fast", [True, False])
def test_a_convolutional_model_gets_8_bit_convolutions(monkeypatch: pytest.MonkeyPatch, is_fast: bool) -> None:
    monkeypatch.setattr(fast, "has_fast_bfloat16", lambda device: is_fast)
    model = create("timm/resnet18", num_classes=5).eval()
    before = copy.deepcopy(model.state_dict())
    (candidate,) = offered(model)
    dtype = torch.bfloat16 if is_fast else torch.float32
    assert candidate.name.endswith(f"the rest in {str(dtype).removeprefix('torch.')}")
    assert (candidate.dtype, candidate.chunk) == (dtype, ROUNDED_AT_ONCE)
    assert isinstance(candidate.model.backbone.body.layer1[0].conv1, QuantizedConv2d)
    assert isinstance(candidate.model.backbone.body.conv1, nn.Conv2d), "three channels stay as they are"
    assert candidate.model.head.weight.dtype is dtype
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_without_the_kernel_nothing_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "has_eight_bit_kernel", lambda: False)
    model = create("timm/resnet18", num_classes=5).eval()
    names = [candidate.name for candidate in candidates(model, CPU)]
    assert names
    assert not any("8 bits" in name or "8-bit" in name for name in names)


@needs_kernel
def test_a_transformer_has_no_convolutions_to_round() -> None:
    assert offered(create("vit_micro_p4_28").eval()) == []


@needs_kernel
def test_8_bit_convolutions_answer_as_the_model() -> None:
    """Norms with the statistics of the pictures, so that every layer has something to round."""
    torch.manual_seed(0)
    model = create("fcn8s_r18", num_classes=2)
    pictures = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(4)]
    for picture in pictures:
        picture[:, 16:48, 16:48] //= 4
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        model.train()(model.preprocess(torch.stack(pictures)))
    model.eval()
    (candidate,) = offered(model)
    exact, close = (run(one, model, pictures) for one in (Candidate("exact", model), candidate))
    for one, other, picture in zip(exact, close, pictures, strict=True):
        alone = run(candidate, model, [picture])[0]
        assert isinstance(one, Segmentation)
        assert isinstance(other, Segmentation)
        assert isinstance(alone, Segmentation)
        assert (one.labels == other.labels).float().mean() > 0.98
        assert (one.confidence.float() - other.confidence.float()).abs().mean() < 0.01
        assert (alone.confidence.float() - other.confidence.float()).abs().mean() < 0.005


@pytest.mark.parametrize("is_aligned", [True, False])
@pytest.mark.parametrize("strides", [(4, 8, 16), (8,)])
def test_gathered_regions_are_those_of_torchvision(is_aligned: bool, strides: tuple[int, ...]) -> None:
    """Two pictures, maps that differ, boxes inside, across the border, beyond it and without area."""
    torch.manual_seed(0)
    extract = RoIExtractor(3, strides, is_aligned=is_aligned, canonical=64)
    maps = [torch.randn(2, 5, 96 // stride, 128 // stride) for stride in strides]
    corners = torch.rand(60, 2) * 150 - 20
    boxes = torch.cat([corners, corners + torch.rand(60, 2) * 100], dim=1)
    edges = [[-90.0, -90.0, -40.0, -40.0], [200.0, 10.0, 260.0, 40.0], [9.0, 9.0, 9.0, 9.0], [-8.0, -8.0, 128.0, 96.0]]
    boxes = torch.cat([boxes, torch.tensor(edges)])
    image = torch.arange(len(boxes)) % 2
    gathered = GatheredRegions(extract)
    expected = extract(maps, boxes, image)
    torch.testing.assert_close(gathered(maps, boxes, image), expected, atol=1e-4, rtol=0)
    assert gathered(maps, boxes[:0], image[:0]).shape == (0, 5, 3, 3)
    half = [level.bfloat16() for level in maps]
    close = gathered(half, boxes, image)
    assert close.dtype is torch.bfloat16
    assert (close.float() - expected).abs().max() < 0.05


def test_only_regions_with_a_fixed_number_of_samples_are_gathered() -> None:
    layers = nn.ModuleList([RoIExtractor(3, [4]), RoIExtractor(3, [4], "pool"), RoIExtractor(3, [1], sampling=0)])
    assert gather_regions(layers) == 1
    assert [type(layer) for layer in layers] == [GatheredRegions, RoIExtractor, RoIExtractor]


def test_a_detector_with_gathered_regions_finds_the_same() -> None:
    torch.manual_seed(0)
    model = create("mask_rcnn_test").eval()
    copied = copy.deepcopy(model)
    assert gather_regions(copied) == 2
    pictures = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    exact, close = (run(Candidate("one", one), model, pictures) for one in (model, copied))
    for one, other in zip(exact, close, strict=True):
        assert isinstance(one, Detections)
        assert isinstance(other, Detections)
        assert len(one) > 10
        assert torch.equal(one.source, other.source)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=0)


@needs_kernel
def test_the_convolutions_before_a_head_that_is_none_are_rounded() -> None:
    """The last layer of Mask R-CNN is no convolution, so none is spared for being as wide as the last one."""
    model = create("mask_rcnn_small").eval()
    (candidate,) = offered(model)
    assert isinstance(candidate.model.heads[1].convs[2].conv, QuantizedConv2d)
    assert isinstance(candidate.model.rpn.objectness, nn.Conv2d), "three answers per cell"
