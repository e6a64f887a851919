"""The same random weights find the same objects as torchvision's detectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from saccade.models.build import adopt
from saccade.types import Detections, Geometry, ImageBatch
from saccade.weights import torchvision as from_torchvision
from saccade.weights import torchvision_detection as converter

SIZES = ((96, 128), (128, 96))
OPTIONS = {"weights": None, "weights_backbone": None, "num_classes": 5, "min_size": 96, "max_size": 128}
FEW = {"rpn_pre_nms_top_n_test": 150, "rpn_post_nms_top_n_test": 150, "box_detections_per_img": 60}


def build(name: str) -> Any:
    """A detector that is sure of something: its scores differ, and there are many above the threshold."""
    torch.manual_seed(0)
    # The pixels are given as they are: no resizing, no normalisation.
    module = getattr(detection, name)(**OPTIONS, **FEW, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    dice = torch.Generator().manual_seed(0)
    heads = module.roi_heads
    with torch.no_grad():
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=dice))
            elif key.endswith("running_var"):
                buffer.copy_(1 + 0.2 * torch.rand(buffer.shape, generator=dice))
    module.eval()
    layers = [(module.rpn.head.cls_logits, 2.0), (module.rpn.head.bbox_pred, 0.3)]
    layers += [(heads.box_predictor.cls_score, 1.5), (heads.box_predictor.bbox_pred, 1.0)]
    if heads.has_mask():
        layers.append((heads.mask_predictor.mask_fcn_logits, 2.0))
    for layer, spread in layers:  # in the order in which they are reached
        bring_to(layer, spread, module)
    return module


def bring_to(layer: nn.Module, spread: float, module: nn.Module) -> None:
    """Scale and shift a layer so that each of its outputs has this standard deviation, and a mean of 0."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _m, _given, result: seen.append(result.movedim(1, -1).flatten(0, -2)))
    with torch.no_grad():
        module(pictures()[0])
        handle.remove()
        values = torch.cat(seen)
        scale = spread / values.std(0)
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.sub_(values.mean(0)).mul_(scale)


def pictures() -> tuple[list[Tensor], ImageBatch]:
    """Smooth pictures of two sizes: theirs in a list, ours on one canvas."""
    dice = torch.Generator().manual_seed(3)
    noise = [torch.randn(1, 3, height // 8, width // 8, generator=dice) for height, width in SIZES]
    smooth = [nn.functional.interpolate(n, scale_factor=8, mode="bicubic")[0] for n in noise]
    pixels = torch.zeros(2, 3, 128, 128)
    for canvas, picture, (height, width) in zip(pixels, smooth, SIZES, strict=True):
        canvas[:, :height, :width] = picture
    return smooth, ImageBatch(pixels, SIZES, tuple(Geometry(size) for size in SIZES))


def check_same(ours: Detections, theirs: dict[str, Tensor]) -> None:
    assert len(ours) == len(theirs["scores"]) >= 20
    assert float(ours.scores.max() - ours.scores.min()) > 0.1
    torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=0, atol=1e-2)
    torch.testing.assert_close(ours.scores, theirs["scores"], rtol=0, atol=1e-4)
    assert torch.equal(ours.labels + 1, theirs["labels"])
    assert len(ours.labels.unique()) > 1


@pytest.mark.parametrize("name", converter.NAMES)
def test_same_detections(name: str) -> None:
    module = build(name)
    model = adopt(from_torchvision.publish(module, name)).eval()
    given, images = pictures()
    with torch.no_grad():
        theirs = module(given)
        ours = model.postprocess(model(images), images)
    for own, other in zip(ours, theirs, strict=True):
        check_same(own, other)
        if "masks" in other:
            assert own.masks is not None
            expected = other["masks"][:, 0] > 0.5
            assert float(expected.sum()) > 5000
            assert float((own.masks.dense() != expected).sum()) <= 0.001 * float(expected.sum())


def test_frozen_norms_without_a_small_number_are_folded_in() -> None:
    name = "fasterrcnn_resnet50_fpn"
    module = build(name)
    with torch.no_grad():  # variances so small that the number matters
        for part in module.backbone.body.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_var.mul_(1e-4)
                part.weight.mul_(1e-2)
    converter.freeze(module, name)
    assert module.backbone.body.bn1.eps == 0
    published = from_torchvision.publish(module, name)
    adopt(published)  # holds our scores of anchors against theirs
    unchanged = converter.convert(module.state_dict(), [1, 2, 3, 4])["backbone.body.bn1.weight"]
    assert not torch.allclose(published.state["backbone.body.bn1.weight"], unchanged, rtol=1e-2)


def test_places_without_a_class_are_left_out() -> None:
    weights = detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    options = {"weights": None, "weights_backbone": None}
    module = detection.maskrcnn_resnet50_fpn(**options)
    published = from_torchvision.publish(module, "maskrcnn_resnet50_fpn", weights)
    assert published.classes is not None
    assert len(published.classes) == 80
    assert "N/A" not in " ".join(published.classes)
    model = adopt(published)
    theirs = weights.meta["categories"]
    for name in ("person", "stop sign", "toothbrush"):
        ours, other = model.classes.id(name), theirs.index(name)
        predictor = module.roi_heads.box_predictor
        assert torch.equal(model.box.head.classes.weight[ours], predictor.cls_score.weight[other])
        assert torch.equal(
            model.box.head.codes.weight[4 * ours : 4 * ours + 4], predictor.bbox_pred.weight[4 * other : 4 * other + 4]
        )
        mask = module.roi_heads.mask_predictor.mask_fcn_logits
        assert torch.equal(model.heads[1].head.weight[ours], mask.weight[other, :, 0, 0])
    assert torch.equal(model.box.head.classes.weight[-1], module.roi_heads.box_predictor.cls_score.weight[0])
    assert model.preprocess.policy == "shorter"
    assert model.preprocess.size == (800, 1333)
