"""Weights of torchvision's two-stage detectors: ``fasterrcnn_resnet50_fpn``, its ``_v2``, ``maskrcnn_resnet50_fpn``.

https://pytorch.org/vision/stable/models.html. Theirs have background first, ours have it last; the empty places that
COCO has between its classes are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saccade.errors import WeightsError
from saccade.weights.published import Published, State, unique

NAMES = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn")
"""What can be translated."""
NORM_EPS = 1e-5
"""What our norms add to variances."""
_EMPTY = "N/A"
_PLACES = {
    "backbone.body.": "backbone.body.",
    "backbone.fpn.inner_blocks.": "pyramid.lateral.",
    "backbone.fpn.layer_blocks.": "pyramid.smooth.",
    "rpn.head.conv.": "rpn.convs.",
    "rpn.head.cls_logits.": "rpn.objectness.",
    "rpn.head.bbox_pred.": "rpn.codes.",
    "roi_heads.box_head.fc6.": "heads.0.linears.0.",
    "roi_heads.box_head.fc7.": "heads.0.linears.2.",
    "roi_heads.box_head.5.": "heads.0.linears.0.",  # behind four convolutions
    "roi_heads.box_head.": "heads.0.convs.",
    "roi_heads.box_predictor.cls_score.": "heads.0.head.classes.",
    "roi_heads.box_predictor.bbox_pred.": "heads.0.head.codes.",
    "roi_heads.mask_head.": "heads.1.convs.",
    "roi_heads.mask_predictor.conv5_mask.": "heads.1.enlarge.0.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "heads.1.head.",
}


def convert(state: State, kept: Sequence[int], norm_eps: float = NORM_EPS) -> dict[str, Tensor]:
    """Torchvision's names to ours.

    Args:
        state: of a torchvision detector.
        kept: their numbers of the classes to keep, in our order; 0 is their background.
        norm_eps: what the norms of their backbone add to variances: 0 in the first published weights.

    Raises:
        WeightsError: where the network has parts that ours does not know.
    """
    converted = {_name(name): tensor for name, tensor in state.items()}
    rows = torch.tensor(kept)
    for leaf in ("weight", "bias"):
        classes, codes = (converted[f"heads.0.head.{part}.{leaf}"] for part in ("classes", "codes"))
        converted[f"heads.0.head.classes.{leaf}"] = torch.cat([classes[rows], classes[:1]])
        per_class = codes.reshape(len(classes), 4, *codes.shape[1:])
        converted[f"heads.0.head.codes.{leaf}"] = per_class[rows].flatten(0, 1)
        if f"heads.1.head.{leaf}" in converted:
            masks = converted[f"heads.1.head.{leaf}"]  # a 1x1 convolution, or its biases
            converted[f"heads.1.head.{leaf}"] = masks[rows].reshape(len(rows), *masks.shape[1:2])
    if norm_eps != NORM_EPS:
        for name in [name for name in converted if name.startswith("backbone.") and name.endswith("running_var")]:
            variance, weight = converted[name], name.replace("running_var", "weight")
            converted[weight] = converted[weight] * ((variance + NORM_EPS) / (variance + norm_eps)).sqrt()
    return converted


def _name(name: str) -> str:
    for theirs, ours in _PLACES.items():
        if name.startswith(theirs):
            return ours + _inside(name.removeprefix(theirs), ours)
    raise WeightsError(f"the parameter {name!r} has no place in our detector", where="torchvision detection")


def _inside(rest: str, ours: str) -> str:
    """The rest of a name: theirs numbers the layers of a block, convolution 0 and norm 1."""
    if not ours.endswith(".convs."):
        return rest
    block, layer, leaf = rest.split(".")
    if ours == "rpn.convs.":  # ours is one list of convolutions and ReLUs by turns
        return f"{2 * int(block)}.{leaf}"
    return f"{block}.{'norm' if layer == '1' else 'conv'}.{leaf}"


def publish(module: Any, name: str, weights: Any = None) -> Published:
    """A torchvision detector, translated; pure, nothing is downloaded."""
    state = module.state_dict()
    count = len(state["roi_heads.box_predictor.cls_score.bias"])
    kept, classes = list(range(1, count)), None
    if weights is not None:
        categories = weights.meta["categories"]
        kept = [index for index in kept if categories[index] != _EMPTY]
        classes = unique(categories[index] for index in kept)
    heads = module.roi_heads
    is_second = name.endswith("_v2")
    config: dict[str, Any] = {
        "kind": "mask_rcnn" if name.startswith("mask") else "faster_rcnn",
        "num_classes": len(kept),
        "backbone": {"kind": "timm", "name": "resnet50"},
        "freeze_norms": not is_second,
        "pyramid_norm": is_second,
        "rpn": {
            "depth": 2 if is_second else 1,
            "before_nms": [module.rpn._pre_nms_top_n[mode] for mode in ("training", "testing")],
            "after_nms": [module.rpn._post_nms_top_n[mode] for mode in ("training", "testing")],
            "nms_iou": module.rpn.nms_thresh,
        },
        "box": {"is_aligned": False, "convs": 4 if is_second else 0, "linears": 1 if is_second else 2},
        "selection": {
            "min_score": heads.score_thresh,
            "nms_iou": heads.nms_thresh,
            "max_detections": heads.detections_per_img,
            "min_side": 0.01,
        },
        "preprocess": {
            "size": [module.transform.min_size[0], module.transform.max_size],
            "policy": "shorter",
            "mean": list(module.transform.image_mean),
            "std": list(module.transform.image_std),
        },
    }
    if config["kind"] == "mask_rcnn":
        config["mask"] = {"is_aligned": False}
    module = module.eval()
    converted = convert(state, kept, module.backbone.body.bn1.eps)
    return Published(f"torchvision/{name}", converted, config, classes, lambda pixels: objectness(module, pixels))


def objectness(module: Any, pixels: Tensor) -> Tensor:
    """How likely theirs takes each anchor for an object, ``[B, A]`` logits of pixels ``[B, 3, H, W]``."""
    levels = module.rpn.head(list(module.backbone(pixels).values()))[0]
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in levels], dim=1)


def freeze(module: Any, name: str) -> None:
    """Norms as the published weights want them: the first ones were trained without a small number at the variance."""
    if not name.endswith("_v2"):
        for part in module.backbone.body.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = 0.0
