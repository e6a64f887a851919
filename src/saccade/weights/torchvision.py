"""Weights of torchvision: ``vit_b_16`` and its family, ResNets, MobileNetV2, and the segmenters ``fcn_resnet50/101``.

Its detectors are in ``weights.torchvision_detection``.

https://pytorch.org/vision/stable/models.html. The convolutional ones are built by timm, whose networks are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saccade.errors import UnknownNameError, WeightsError
from saccade.weights import timm as timm_weights
from saccade.weights import torchvision_detection as detection
from saccade.weights.published import Published, State, first_line, rename, square, unique

_LAYER = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention.out_proj": "attention.project",
    "mlp.0": "mlp.widen",
    "mlp.3": "mlp.narrow",
    # the names of the first published files
    "mlp.linear_1": "mlp.widen",
    "mlp.linear_2": "mlp.narrow",
}
_OUTSIDE = {"conv_proj": "backbone.embed.project", "encoder.ln": "backbone.norm", "heads.head": "head"}
_MOBILENET_STAGES = (1, 2, 3, 4, 3, 3, 1)
_TIMM_NAMES = {
    "mobilenet_v2": "mobilenetv2_100",
    **{
        name: name
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2")
    },
}
_FCN_NAMES = ("fcn_resnet50", "fcn_resnet101")
_FCN_PLACES = {
    "backbone.": "backbone.body.",
    "classifier.0.": "neck.0.conv.",
    "classifier.1.": "neck.0.norm.",
    "classifier.4.": "head.scores.0.",
    "aux_classifier.0.": "auxiliary.neck.0.conv.",
    "aux_classifier.1.": "auxiliary.neck.0.norm.",
    "aux_classifier.4.": "auxiliary.head.",
}


def is_vit(state: State) -> bool:
    """Whether these are weights of a torchvision VisionTransformer."""
    return "conv_proj.weight" in state and "encoder.pos_embedding" in state


def is_mobilenet_v2(state: State) -> bool:
    """Whether these are weights of torchvision's MobileNetV2."""
    return {"features.1.conv.0.0.weight", "features.18.0.weight", "classifier.1.weight"} <= state.keys()


def convert_vit(state: State) -> dict[str, Tensor]:
    """Torchvision's names to ours; the class token takes its row of the position table with it."""
    positions = state["encoder.pos_embedding"]
    grid = square(positions.shape[1] - 1, "torchvision ViT")
    converted = {
        "backbone.class_token": state["class_token"] + positions[:, :1],
        "backbone.positions.table": positions[:, 1:].reshape(1, *grid, -1),
    }
    for name, tensor in state.items():
        if name not in {"class_token", "encoder.pos_embedding"}:
            converted[_vit_name(name)] = tensor
    return converted


def _vit_name(name: str) -> str:
    start = "encoder.layers.encoder_layer_"
    if not name.startswith(start):
        return rename(name, _OUTSIDE, "torchvision ViT")
    index, _, inside = name.removeprefix(start).partition(".")
    if inside.startswith("self_attention.in_proj_"):
        return f"backbone.blocks.{index}.attention.qkv.{inside.rpartition('_')[2]}"
    return f"backbone.blocks.{index}." + rename(inside, _LAYER, "torchvision ViT")


def convert_mobilenet_v2(state: State) -> dict[str, Tensor]:
    """Torchvision's MobileNetV2 to timm's names under our backbone."""
    table = {
        "features.0.0": "conv_stem",
        "features.0.1": "bn1",
        "features.1.conv.0.0": "blocks.0.0.conv_dw",
        "features.1.conv.0.1": "blocks.0.0.bn1",
        "features.1.conv.1": "blocks.0.0.conv_pw",
        "features.1.conv.2": "blocks.0.0.bn2",
        "features.18.0": "conv_head",
        "features.18.1": "bn2",
        "classifier.1": "classifier",
    }
    inside = {
        "0.0": "conv_pw",
        "0.1": "bn1",
        "1.0": "conv_dw",
        "1.1": "bn2",
        "2": "conv_pwl",
        "3": "bn3",
    }
    index = 2
    for stage, count in enumerate(_MOBILENET_STAGES):
        for block in range(count):
            if stage == 0:
                continue  # the first block has no widening convolution; its names stand above
            table |= {f"features.{index}.conv.{a}": f"blocks.{stage}.{block}.{b}" for a, b in inside.items()}
            index += 1
    renamed = {rename(name, table, "torchvision MobileNetV2"): tensor for name, tensor in state.items()}
    return timm_weights.convert_cnn(renamed)


def is_fcn(state: State) -> bool:
    """Whether these are weights of torchvision's dilated FCN on a ResNet."""
    needed = {"backbone.conv1.weight", "classifier.1.running_mean", "classifier.4.weight"}
    # DeepLab's classifier goes on behind that place.
    return needed <= state.keys() and "classifier.4.running_mean" not in state


def convert_fcn(state: State) -> dict[str, Tensor]:
    """Torchvision's names to ours, the auxiliary head's where it has one.

    Raises:
        WeightsError: where the network has parts that ours does not know.
    """
    return {_fcn_name(name): tensor for name, tensor in state.items()}


def _fcn_name(name: str) -> str:
    for theirs, ours in _FCN_PLACES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise WeightsError(f"the parameter {name!r} has no place in our FCN", where="torchvision FCN")


def preprocess_of(transforms: Any) -> dict[str, Any]:
    """Plain data of our ``Preprocess`` from ``weights.transforms()``."""
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    return {
        "size": [crop, crop],
        "policy": "crop",
        "crop_fraction": crop / resize,
        "interpolation": "bicubic" if transforms.interpolation.value == "bicubic" else "bilinear",
        "mean": list(transforms.mean),
        "std": list(transforms.std),
    }


def vit_config(module: Any) -> dict[str, Any]:
    """Plain data of the ``ViTConfig`` that rebuilds a torchvision VisionTransformer."""
    return {
        "kind": "vit",
        "image_size": [module.image_size, module.image_size],
        "patch_size": module.patch_size,
        "embed_dim": module.hidden_dim,
        "depth": len(module.encoder.layers),
        "num_heads": module.encoder.layers[0].num_heads,
        "norm_eps": module.encoder.ln.eps,
        "mlp_ratio": module.mlp_dim / module.hidden_dim,
    }


def publish(module: Any, name: str, weights: Any = None) -> Published:
    """A torchvision model, translated; pure, nothing is downloaded."""
    state = module.state_dict()
    if name in _FCN_NAMES:
        return _publish_fcn(module, name, weights)
    if name in detection.NAMES:
        return detection.publish(module, name, weights)
    config: dict[str, Any] = {"kind": "classifier"}
    if weights is not None:
        config["preprocess"] = preprocess_of(weights.transforms())
    if is_vit(state):
        converted = convert_vit(state)
        config = {"preprocess": {"size": [module.image_size] * 2}} | config
        config |= {"backbone": vit_config(module), "pool": "token"}
    elif name in _TIMM_NAMES:
        converted = convert_mobilenet_v2(state) if is_mobilenet_v2(state) else timm_weights.convert_cnn(state)
        config |= {"backbone": {"kind": "timm", "name": _TIMM_NAMES[name]}, "pool": "average"}
    else:
        known = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", *_TIMM_NAMES, *_FCN_NAMES)
        known += detection.NAMES
        raise UnknownNameError("translatable torchvision model", name, known)
    config["num_classes"] = converted["head.weight"].shape[0]
    classes = None if weights is None else unique(weights.meta["categories"])
    return Published(f"torchvision/{name}", converted, config, classes, module.eval())


def _publish_fcn(module: Any, name: str, weights: Any) -> Published:
    state = convert_fcn(module.state_dict())
    preprocess: dict[str, Any] = {"size": [512, 512], "policy": "native"}
    classes = None
    if weights is not None:
        transforms = weights.transforms()
        # Trained on pictures whose shorter side is about this long; ours keeps them as they are.
        preprocess |= {"size": [transforms.resize_size[0]] * 2}
        preprocess |= {"mean": list(transforms.mean), "std": list(transforms.std)}
        classes = unique(category.strip("_") for category in weights.meta["categories"])
    config = {
        "kind": "fcn",
        "backbone": {"kind": "timm", "name": name.removeprefix("fcn_"), "arguments": {"output_stride": 8}},
        "head": "dilated",
        "has_auxiliary": any(key.startswith("auxiliary.") for key in state),
        "num_classes": state["head.scores.0.weight"].shape[0],
        "preprocess": preprocess,
    }
    module = module.eval()
    return Published(f"torchvision/{name}", state, config, classes, lambda pixels: module(pixels)["out"])


def fetch(name: str) -> Published:
    """Download (or take from the cache) torchvision's default weights of ``NAME`` and translate them.

    Raises:
        UnknownNameError: with torchvision's nearest name.
        WeightsError: where they cannot be reached.
    """
    from torchvision import models

    if name not in models.list_models():
        raise UnknownNameError("torchvision model", name, models.list_models())
    weights = models.get_model_weights(name).DEFAULT
    with torch.random.fork_rng(devices=[]):
        # Without this torchvision would download a backbone that is about to be overwritten.
        options: dict[str, Any] = {"weights_backbone": None} if name in (*_FCN_NAMES, *detection.NAMES) else {}
        if name in _FCN_NAMES:
            options["aux_loss"] = True
        module = models.get_model(name, **options)
    publish(module, name)  # refuses what cannot be translated before anything is downloaded
    try:
        module.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"these weights cannot be had ({first_line(error)})",
            where=f"torchvision/{name}",
            remedy="check the network, or pass a file of weights instead",
        ) from error
    if name in detection.NAMES:
        detection.freeze(module, name)
    return publish(module, name, weights)
