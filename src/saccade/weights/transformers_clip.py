"""Weights of transformers: ``CLIPModel`` and ``SiglipModel``, under the names of its 4.x and 5.x releases.

https://huggingface.co/docs/transformers/model_doc/clip, https://huggingface.co/docs/transformers/model_doc/siglip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from saccade.errors import WeightsError
from saccade.weights.open_clip import thirds, vocabulary
from saccade.weights.published import Published, State, rename, square

_SOURCE = "transformers CLIP"
_LAYER = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attention.project",
    "mlp.fc1": "mlp.widen",
    "mlp.fc2": "mlp.narrow",
}
_OUTSIDE = {
    "vision_model.embeddings.patch_embedding": "backbone.embed.project",
    "vision_model.pre_layrnorm": "backbone.stem_norm",
    "vision_model.post_layernorm": "backbone.norm",
    "visual_projection": "image_projection",
    "text_model.embeddings.token_embedding": "text.tokens",
    "text_model.final_layer_norm": "text.norm",
    "text_projection": "text.project",
    "text_model.head": "text.project",
}
_POOL = {
    "attention.out_proj": "pool.gather.project",
    "layernorm": "pool.norm",
    "mlp.fc1": "pool.mlp.widen",
    "mlp.fc2": "pool.mlp.narrow",
}
_WHOLE = {
    "logit_scale": "log_scale",
    "logit_bias": "bias",
    "text_model.embeddings.position_embedding.weight": "text.positions",
}
_APART = {
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.position_embedding.weight",
}
_TOWERS = {"vision_model.encoder.layers.": "backbone", "text_model.encoder.layers.": "text"}
_QKV = {"q_proj": 0, "k_proj": 1, "v_proj": 2}
_HEAD = "vision_model.head."
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def is_clip(state: State) -> bool:
    """Whether these are weights of ``CLIPModel`` or ``SiglipModel``."""
    return {"vision_model.embeddings.patch_embedding.weight", "text_model.final_layer_norm.weight"} <= state.keys()


def convert(state: State) -> dict[str, Tensor]:
    """Their names to ours; three projections become one matrix, the class token takes its position with it.

    Raises:
        WeightsError: where there are parts that our towers do not know.
    """
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        tower = next((prefix for prefix in _TOWERS if name.startswith(prefix)), None)
        if name in _APART or name.endswith("position_ids") or name.startswith(_HEAD):
            continue
        if name in _WHOLE:
            converted[_WHOLE[name]] = tensor.reshape(()) if name.startswith("logit") else tensor
        elif tower is None:
            converted[rename(name, _OUTSIDE, _SOURCE)] = tensor
        else:
            index, _, inside = name.removeprefix(tower).partition(".")
            module, _, leaf = inside.removeprefix("self_attn.").rpartition(".")
            place = f"{_TOWERS[tower]}.blocks.{index}."
            if module in _QKV:
                parts.setdefault(f"{place}attention.qkv.{leaf}", {})[_QKV[module]] = tensor
            else:
                converted[place + rename(inside, _LAYER, _SOURCE)] = tensor
    converted |= {name: thirds(three, name, _SOURCE) for name, three in parts.items()}
    return converted | _positions(state) | _pooling(state)


def _positions(state: State) -> dict[str, Tensor]:
    table = state["vision_model.embeddings.position_embedding.weight"]
    token = state.get("vision_model.embeddings.class_embedding")
    rows = 0 if token is None else 1
    placed = {"backbone.positions.table": table[rows:].reshape(1, *square(len(table) - rows, _SOURCE), -1)}
    if token is not None:
        placed["backbone.class_token"] = (token + table[0])[None, None]
    if "vision_model.embeddings.patch_embedding.bias" not in state:
        weight = state["vision_model.embeddings.patch_embedding.weight"]
        placed["backbone.embed.project.bias"] = weight.new_zeros(len(weight))
    return placed


def _pooling(state: State) -> dict[str, Tensor]:
    """Pooling by a learned query, whose way to the query is always the same: it is gone here."""
    head = {name.removeprefix(_HEAD): tensor for name, tensor in state.items() if name.startswith(_HEAD)}
    if not head:
        return {}
    probe = head.pop("probe")
    width = probe.shape[-1]
    weight, bias = head.pop("attention.in_proj_weight"), head.pop("attention.in_proj_bias")
    pooling = {
        "pool.gather.query": probe @ weight[:width].T + bias[:width],
        "pool.gather.keys_values.weight": weight[width:],
        "pool.gather.keys_values.bias": bias[width:],
    }
    return pooling | {rename(name, _POOL, _SOURCE): tensor for name, tensor in head.items()}


def publish(module: Any, name: str, preprocess: Mapping[str, Any] | None = None, definition: str = "") -> Published:
    """A ``CLIPModel`` or ``SiglipModel``, translated; pure, nothing is downloaded.

    Args:
        module: of transformers.
        name: for messages.
        preprocess: plain data of our ``Preprocess``.
        definition: JSON of the vocabulary, where it is not CLIP's.

    Raises:
        WeightsError: where there are parts that our towers do not know.
    """
    where = f"transformers/{name}"
    module.eval()
    state = convert(module.state_dict())
    vision, text = module.config.vision_config, module.config.text_config
    is_siglip = "bias" in state
    width = vision.hidden_size
    tower: dict[str, Any] = {
        "backbone": {
            "kind": "vit",
            "image_size": [vision.image_size, vision.image_size],
            "patch_size": vision.patch_size,
            "embed_dim": width,
            "depth": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "norm_eps": vision.layer_norm_eps,
            "mlp_ratio": vision.intermediate_size / width,
            "activation": _activation(vision.hidden_act, where),
            "has_class_token": not is_siglip,
            "stem_norm": not is_siglip,
        },
        "pool": "attention" if is_siglip else "token",
        "image_projection": "none" if is_siglip else "linear",
    }
    if is_siglip:
        tower |= {
            "pool_heads": vision.num_attention_heads,
            "pool_mlp_ratio": vision.intermediate_size / width,
            "pool_activation": _activation(vision.hidden_act, where),
        }
    config: dict[str, Any] = {
        "kind": "clip",
        **tower,
        "embed_dim": state["text.project.weight"].shape[0],
        "text": {
            "width": text.hidden_size,
            "depth": text.num_hidden_layers,
            "num_heads": text.num_attention_heads,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "activation": _activation(text.hidden_act, where),
            "norm_eps": text.layer_norm_eps,
            "causal": not is_siglip,
            "pool": "last" if is_siglip else "end",
            "projection": "bias" if is_siglip else "linear",
        },
        "tokenizer": vocabulary(
            text.vocab_size, text.max_position_embeddings, is_siglip, definition, text.pad_token_id
        ),
        "loss": "sigmoid" if is_siglip else "softmax",
        "max_scale": 0.0 if is_siglip else 100.0,
        "preprocess": {**(preprocess or {}), "size": [vision.image_size, vision.image_size]},
    }

    def reference(pixels: Tensor) -> Tensor:
        return _unit(module.get_image_features(pixel_values=pixels))

    def texts(ids: Tensor) -> Tensor:
        return _unit(module.get_text_features(input_ids=ids))

    return Published(where, state, config, None, reference, texts)


def _activation(name: str, where: str) -> str:
    if name not in _ACTIVATIONS:
        raise WeightsError(f"activation {name!r} is unknown", where=where, expected=", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def _unit(features: Any) -> Tensor:
    """Vectors of length 1; version 5 gives them inside of an output, projected already."""
    vectors: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return functional.normalize(vectors, dim=-1)
