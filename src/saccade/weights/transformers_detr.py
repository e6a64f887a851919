"""Weights of transformers' ``DetrForObjectDetection``, under the names of its 4.x and 5.x releases.

https://huggingface.co/docs/transformers/model_doc/detr. "No object" is last there as here; the empty places that
COCO has between its classes are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saccade.errors import WeightsError
from saccade.weights.published import Published, State, unique

_EMPTY = "N/A"
_SOURCE = "transformers DETR"
_BACKBONES = ("model.backbone.model.", "model.backbone.conv_encoder.model.")
_OUTSIDE = {
    "model.query_position_embeddings.weight": "decoder.places",
    "model.input_projection": "project",
    "model.decoder.layernorm": "decoder.norm",
    "class_labels_classifier": "decoder.head",
    "bbox_predictor.layers.0": "decoder.box.0",
    "bbox_predictor.layers.1": "decoder.box.2",
    "bbox_predictor.layers.2": "decoder.box.4",
}
_ATTENTION = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "project",
    "out_proj": "project",
}
_LAYER = {
    **{f"self_attn.{theirs}": f"attention.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"encoder_attn.{theirs}": f"cross.{ours}" for theirs, ours in _ATTENTION.items()},
    "self_attn_layer_norm": "norm1",
    "encoder_attn_layer_norm": "norm2",
    "mlp.fc1": "mlp.widen",
    "mlp.fc2": "mlp.narrow",
    "fc1": "mlp.widen",
    "fc2": "mlp.narrow",
}
_LAST_NORM = {"encoder": "norm2", "decoder": "norm3"}


def is_detr(state: State) -> bool:
    """Whether these are weights of ``DetrForObjectDetection``."""
    return "model.query_position_embeddings.weight" in state and "bbox_predictor.layers.2.weight" in state


def convert(state: State, kept: Sequence[int]) -> dict[str, Tensor]:
    """Transformers' names to ours.

    Args:
        state: of a ``DetrForObjectDetection`` on a backbone of timm.
        kept: their numbers of the classes to keep, in our order.

    Raises:
        WeightsError: where the network has parts that ours does not know.
    """
    converted = {_name(name): tensor for name, tensor in state.items()}
    for leaf in ("weight", "bias"):
        rows = converted[f"decoder.head.{leaf}"]
        converted[f"decoder.head.{leaf}"] = torch.cat([rows[torch.tensor(list(kept))], rows[-1:]])
    # Their frozen norms do not count batches.
    counters = [name.replace("running_var", "num_batches_tracked") for name in converted if "running_var" in name]
    return {**converted, **{name: torch.tensor(0) for name in counters}}


def _name(name: str) -> str:
    for prefix in _BACKBONES:
        if name.startswith(prefix):
            return "backbone.body." + name.removeprefix(prefix).removeprefix("_backbone.")
    module, _, leaf = name.rpartition(".")
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{leaf}"
    parts = module.split(".", 4)  # model.encoder.layers.0.self_attn.q_proj
    if len(parts) == 5 and parts[1] in _LAST_NORM and parts[2] == "layers":
        inside = _LAST_NORM[parts[1]] if parts[4] == "final_layer_norm" else _LAYER.get(parts[4])
        if inside:
            place = "encoder" if parts[1] == "encoder" else "decoder.layers"
            return f"{place}.{parts[3]}.{inside}.{leaf}"
    raise WeightsError(f"the parameter {name!r} has no place in our DETR", where=_SOURCE)


def preprocess_of(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of our ``Preprocess`` from an image processor's ``to_dict()``."""
    size = processor["size"]
    return {
        "size": [size["shortest_edge"], size["longest_edge"]],
        "policy": "shorter",
        "interpolation": "bicubic" if processor.get("resample") == 3 else "bilinear",
        "mean": list(processor["image_mean"]),
        "std": list(processor["image_std"]),
    }


def detr_config(hub: Any) -> dict[str, Any]:
    """Plain data of the ``DetrConfig`` that rebuilds a transformers ``DetrConfig``.

    Raises:
        WeightsError: where it has parts that ours does not know.
    """
    _same("position_embedding_type", hub.position_embedding_type, "sine")
    _same("activation_function", hub.activation_function, "relu")
    _same("encoder_attention_heads", hub.encoder_attention_heads, hub.decoder_attention_heads)
    _same("encoder_ffn_dim", hub.encoder_ffn_dim, hub.decoder_ffn_dim)
    inner = getattr(hub, "backbone_config", None)
    backbone = getattr(inner, "backbone", None) or getattr(hub, "backbone", None)
    if not isinstance(backbone, str):
        raise WeightsError("the backbone is none of timm's", where=_SOURCE, expected="use_timm_backbone=True")
    stride = getattr(inner, "output_stride", None) or (16 if getattr(hub, "dilation", False) else None)
    return {
        "kind": "detr",
        "backbone": {"kind": "timm", "name": backbone, "arguments": {"output_stride": stride} if stride else {}},
        "freeze_norms": True,
        "width": hub.d_model,
        "num_heads": hub.decoder_attention_heads,
        "hidden": hub.decoder_ffn_dim,
        "encoder_layers": hub.encoder_layers,
        "decoder_layers": hub.decoder_layers,
        "dropout": hub.dropout,
        "queries": hub.num_queries,
    }


def _same(name: str, found: object, expected: object) -> None:
    if found != expected:
        raise WeightsError(f"{name} is {found!r}", where=_SOURCE, expected=repr(expected))


def publish(module: Any, name: str, processor: Mapping[str, Any] | None = None) -> Published:
    """A ``DetrForObjectDetection``, translated; pure, nothing is downloaded."""
    module.eval()
    names = [str(module.config.id2label[index]) for index in range(module.config.num_labels)]
    kept = [index for index, label in enumerate(names) if label != _EMPTY]
    config = {**detr_config(module.config), "num_classes": len(kept)}
    if processor:
        config["preprocess"] = preprocess_of(processor)
    rows = [*kept, len(names)]

    def reference(pixels: Tensor) -> Tensor:
        logits: Tensor = module(pixel_values=pixels).logits
        return logits[..., rows]

    classes = unique(names[index] for index in kept)
    return Published(f"transformers/{name}", convert(module.state_dict(), kept), config, classes, reference)
