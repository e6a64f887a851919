"""Weights of transformers: ``ViTForImageClassification``, under the names of its 4.x and 5.x releases.

https://huggingface.co/docs/transformers/model_doc/vit. The package is imported only when weights are asked for (extra
``parity``). Of ``DetrForObjectDetection``, ``CLIPModel`` and ``SiglipModel`` only the download is here; see
``weights.transformers_detr`` and ``weights.transformers_clip``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saccade.errors import WeightsError
from saccade.weights import transformers_clip, transformers_detr
from saccade.weights.open_clip import definition_of
from saccade.weights.published import Published, State, first_line, rename, square, unique

_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attention.project",
    "attention.output.dense": "attention.project",
    "mlp.fc1": "mlp.widen",
    "intermediate.dense": "mlp.widen",
    "mlp.fc2": "mlp.narrow",
    "output.dense": "mlp.narrow",
}
_OUTSIDE = {
    "vit.embeddings.patch_embeddings.projection": "backbone.embed.project",
    "vit.layernorm": "backbone.norm",
    "classifier": "head",
}
_QKV = {
    "attention.q_proj": 0,
    "attention.k_proj": 1,
    "attention.v_proj": 2,
    "attention.attention.query": 0,
    "attention.attention.key": 1,
    "attention.attention.value": 2,
}
_MODELS = {
    "vit": "ViTForImageClassification",
    "detr": "DetrForObjectDetection",
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
}
"""What can be translated, by the type of the model."""
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "relu": "relu"}


def is_vit(state: State) -> bool:
    """Whether these are weights of ``ViTForImageClassification``."""
    return "vit.embeddings.cls_token" in state and "vit.embeddings.position_embeddings" in state


def convert_vit(state: State) -> dict[str, Tensor]:
    """Transformers' names to ours; three projections become one matrix, the class token takes its position with it."""
    positions = state["vit.embeddings.position_embeddings"]
    grid = square(positions.shape[1] - 1, "transformers ViT")
    converted = {
        "backbone.class_token": state["vit.embeddings.cls_token"] + positions[:, :1],
        "backbone.positions.table": positions[:, 1:].reshape(1, *grid, -1),
    }
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        if name in {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}:
            continue
        short = name.replace("vit.encoder.layer.", "vit.layers.")
        if not short.startswith("vit.layers."):
            converted[rename(name, _OUTSIDE, "transformers ViT")] = tensor
            continue
        index, _, inside = short.removeprefix("vit.layers.").partition(".")
        module, _, leaf = inside.rpartition(".")
        if module in _QKV:
            thirds.setdefault(f"backbone.blocks.{index}.attention.qkv.{leaf}", {})[_QKV[module]] = tensor
        else:
            converted[f"backbone.blocks.{index}." + rename(inside, _LAYER, "transformers ViT")] = tensor
    for name, parts in thirds.items():
        if len(parts) != 3:
            raise WeightsError(f"{name!r} has {len(parts)} of 3 projections", where="transformers ViT")
        converted[name] = torch.cat([parts[place] for place in range(3)])
    return converted


def preprocess_of(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of our ``Preprocess`` from an image processor's ``to_dict()``."""
    size = processor["size"]
    side = size.get("shortest_edge")
    return {
        "size": [side or size["height"], side or size["width"]],
        "policy": "crop" if side else "stretch",
        "interpolation": "bicubic" if processor.get("resample") == 3 else "bilinear",
        "mean": list(processor["image_mean"]),
        "std": list(processor["image_std"]),
    }


def vit_config(hub: Any) -> dict[str, Any]:
    """Plain data of the ``ViTConfig`` that rebuilds a transformers ``ViTConfig``."""
    if hub.hidden_act not in _ACTIVATIONS:
        expected = ", ".join(_ACTIVATIONS)
        raise WeightsError(f"activation {hub.hidden_act!r} is unknown", where="transformers ViT", expected=expected)
    size = hub.image_size if isinstance(hub.image_size, (list, tuple)) else (hub.image_size, hub.image_size)
    return {
        "kind": "vit",
        "image_size": list(size),
        "patch_size": hub.patch_size,
        "embed_dim": hub.hidden_size,
        "depth": hub.num_hidden_layers,
        "num_heads": hub.num_attention_heads,
        "norm_eps": hub.layer_norm_eps,
        "mlp_ratio": hub.intermediate_size / hub.hidden_size,
        "activation": _ACTIVATIONS[hub.hidden_act],
        "qkv_bias": hub.qkv_bias,
    }


def publish(module: Any, name: str, processor: Mapping[str, Any] | None = None) -> Published:
    """A ``ViTForImageClassification``, translated; pure, nothing is downloaded."""
    module.eval()
    converted = convert_vit(module.state_dict())
    num_classes = converted["head.weight"].shape[0]
    backbone = vit_config(module.config)
    config: dict[str, Any] = {
        "kind": "classifier",
        "backbone": backbone,
        "pool": "token",
        "num_classes": num_classes,
        "preprocess": preprocess_of(processor) if processor else {"size": backbone["image_size"]},
    }
    classes = unique(str(module.config.id2label[index]) for index in range(num_classes))

    def reference(pixels: Tensor) -> Tensor:
        logits: Tensor = module(pixel_values=pixels).logits
        return logits

    return Published(f"transformers/{name}", converted, config, classes, reference)


def fetch(name: str) -> Published:
    """Download (or take from the cache) a repository of the Hugging Face hub and translate it.

    Raises:
        WeightsError: where the package or the weights cannot be had, or hold another architecture.
    """
    where = f"transformers/{name}"
    try:
        import transformers
    except ImportError as error:
        remedy = "pip install '.[parity]' in the folder of Saccade's sources"
        raise WeightsError("the package transformers is not installed", where=where, remedy=remedy) from error
    try:
        kind = transformers.AutoConfig.from_pretrained(name).model_type
        if kind not in _MODELS:
            raise WeightsError(f"the architecture is {kind!r}", where=where, expected=f"one of {', '.join(_MODELS)}")
        module = getattr(transformers, _MODELS[kind]).from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name).to_dict()
        reads = kind in {"clip", "siglip"}
        definition = definition_of(transformers.AutoTokenizer.from_pretrained(name)) if reads else ""
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"these weights cannot be had ({first_line(error)})",
            where=where,
            remedy="check the name and the network, or pass a file of weights instead",
        ) from error
    if reads:
        return transformers_clip.publish(module, name, preprocess_of(processor), definition)
    return (transformers_detr.publish if kind == "detr" else publish)(module, name, processor)
