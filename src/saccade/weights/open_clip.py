"""Weights of open_clip: CLIP with a ViT tower, under the names of OpenAI's own files, and SigLIP with timm's tower.

https://github.com/mlfoundations/open_clip, https://github.com/openai/CLIP. The package is imported only when weights
are asked for (extra ``parity``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saccade.errors import UnknownNameError, WeightsError
from saccade.weights import timm
from saccade.weights.published import Published, State, first_line, rename, square

_SOURCE = "open_clip"
_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.out_proj": "attention.project",
    "mlp.c_fc": "mlp.widen",
    "mlp.c_proj": "mlp.narrow",
}
_FUSED = {"attn.in_proj_weight": "attention.qkv.weight", "attn.in_proj_bias": "attention.qkv.bias"}
_OUTSIDE = {
    "visual.conv1": "backbone.embed.project",
    "visual.ln_pre": "backbone.stem_norm",
    "visual.ln_post": "backbone.norm",
    "token_embedding": "text.tokens",
    "ln_final": "text.norm",
    "text_projection": "text.project",
}
_POOL = {
    "kv": "pool.gather.keys_values",
    "proj": "pool.gather.project",
    "norm": "pool.norm",
    "mlp.fc1": "pool.mlp.widen",
    "mlp.fc2": "pool.mlp.narrow",
}
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "ReLU": "relu"}
_TRUNK = "visual.trunk."
_PUBLISHED_VOCABULARY = 49408


def is_clip(state: State) -> bool:
    """Whether these are weights of open_clip, or OpenAI's own."""
    has_tower = "visual.conv1.weight" in state or f"{_TRUNK}patch_embed.proj.weight" in state
    return has_tower and any(f"{prefix}token_embedding.weight" in state for prefix in ("", "text."))


def convert(state: State) -> dict[str, Tensor]:
    """Their names to ours; the class token takes its position with it.

    Raises:
        WeightsError: where there are parts that our towers do not know.
    """
    # OpenAI's files keep three numbers beside the weights.
    state = {name: tensor for name, tensor in state.items() if name not in _NUMBERS}
    trunk = {name.removeprefix(_TRUNK): tensor for name, tensor in state.items() if name.startswith(_TRUNK)}
    converted = _convert_trunk(trunk) if trunk else {}
    for name, tensor in state.items():
        if name.startswith(_TRUNK):
            continue
        converted |= _convert_one(name if name.startswith("visual.") else name.removeprefix("text."), tensor)
    if "visual.class_embedding" in state:
        positions = state["visual.positional_embedding"]
        grid = square(len(positions) - 1, _SOURCE)
        converted["backbone.class_token"] = (state["visual.class_embedding"] + positions[0])[None, None]
        converted["backbone.positions.table"] = positions[1:].reshape(1, *grid, -1)
    if "backbone.embed.project.bias" not in converted:
        weight = converted["backbone.embed.project.weight"]
        converted["backbone.embed.project.bias"] = weight.new_zeros(len(weight))
    return converted


_NUMBERS = {"input_resolution", "context_length", "vocab_size"}


def _convert_one(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One parameter outside of timm's trunk."""
    if name in {"visual.class_embedding", "visual.positional_embedding"}:
        return {}
    whole = {"logit_scale": "log_scale", "logit_bias": "bias"}
    if name in whole:
        return {whole[name]: tensor.reshape(())}
    if name == "positional_embedding":
        return {"text.positions": tensor}
    if name in {"visual.proj", "text_projection"}:  # theirs multiply from the right
        return {("image_projection" if name == "visual.proj" else "text.project") + ".weight": tensor.T.contiguous()}
    for prefix, ours in (("visual.transformer.resblocks.", "backbone"), ("transformer.resblocks.", "text")):
        if name.startswith(prefix):
            index, _, inside = name.removeprefix(prefix).partition(".")
            return {f"{ours}.blocks.{index}.{_inside(inside)}": tensor}
    return {rename(name, _OUTSIDE, _SOURCE): tensor}


def _inside(name: str) -> str:
    if name in {"ls_1.gamma", "ls_2.gamma"}:
        return f"scale{name[3]}.scale"
    return _FUSED[name] if name in _FUSED else rename(name, _BLOCK, _SOURCE)


def _convert_trunk(trunk: State) -> dict[str, Tensor]:
    """A tower of timm with pooling by a learned query, whose way to the query is always the same: it is gone here."""
    pool = {name.removeprefix("attn_pool."): tensor for name, tensor in trunk.items() if name.startswith("attn_pool.")}
    if not pool:
        raise WeightsError("the tower of pictures has no pooling by attention", where=_SOURCE, expected="SigLIP")
    converted = timm.convert_vit({name: tensor for name, tensor in trunk.items() if name not in _below(pool)})
    if "pos_embed" in pool or "q_norm.weight" in pool:
        raise WeightsError("the pooling by attention has parts that ours does not know", where=_SOURCE)
    converted["pool.gather.query"] = pool["latent"] @ pool["q.weight"].T + pool["q.bias"]
    for name, tensor in pool.items():
        if name != "latent" and not name.startswith("q."):
            converted[rename(name, _POOL, _SOURCE)] = tensor
    return converted


def _below(pool: State) -> set[str]:
    return {f"attn_pool.{name}" for name in pool}


def publish(module: Any, name: str, preprocess: Mapping[str, Any] | None = None, definition: str = "") -> Published:
    """A model of open_clip, translated; pure, nothing is downloaded.

    Args:
        module: ``CLIP`` or ``CustomTextCLIP`` of open_clip.
        name: for messages.
        preprocess: plain data of our ``Preprocess``.
        definition: JSON of the vocabulary, where it is not CLIP's.

    Raises:
        WeightsError: where there are parts that our towers do not know.
    """
    where = f"{_SOURCE}/{name}"
    module.eval()
    state = convert(module.state_dict())
    text = getattr(module, "text", module)
    config: dict[str, Any] = {
        "kind": "clip",
        **_tower_config(module.visual, where),
        "embed_dim": state["text.project.weight"].shape[0],
        "text": _text_config(text, where),
        "tokenizer": vocabulary(
            state["text.tokens.weight"].shape[0], state["text.positions"].shape[0], text.attn_mask is None, definition
        ),
        "loss": "sigmoid" if "bias" in state else "softmax",
        "max_scale": 0.0 if "bias" in state else 100.0,
    }
    side = list(_size(module.visual))
    config["preprocess"] = {**(preprocess or {}), "size": side}

    def reference(pixels: Tensor) -> Tensor:
        vectors: Tensor = module.encode_image(pixels, normalize=True)
        return vectors

    def texts(ids: Tensor) -> Tensor:
        vectors: Tensor = module.encode_text(ids, normalize=True)
        return vectors

    return Published(where, state, config, None, reference, texts)


def vocabulary(size: int, context: int, pads_all: bool, definition: str, pad: int | None = None) -> dict[str, Any]:
    """Plain data of the ``TokenizerConfig`` of a table of ``size`` tokens.

    Raises:
        WeightsError: where it is not CLIP's, and nobody says which it is.
    """
    common = {"context": context, "pads_all": pads_all}
    if definition:
        padded = {"pad": 1 if pad is None else pad, "canonical": True}
        return {**common, **padded, "kind": "library", "vocab_size": size, "definition": definition}
    if size != _PUBLISHED_VOCABULARY:
        raise WeightsError(
            f"the weights have a vocabulary of {size} tokens, and nobody says which",
            expected=f"CLIP's of {_PUBLISHED_VOCABULARY}, or its definition beside the weights",
        )
    return {**common, "kind": "clip", "pad": pad or 0}


def _size(visual: Any) -> tuple[int, int]:
    size = visual.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _tower_config(visual: Any, where: str) -> dict[str, Any]:
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        pool = trunk.attn_pool
        if not isinstance(visual.head, nn.Identity) and len(visual.head):
            raise WeightsError("the tower of pictures has a projection of its own", where=where, expected="SigLIP's")
        return {
            "backbone": {**timm.vit_config(trunk), "activation": _activation(trunk.blocks[0].mlp.act)},
            "pool": "attention",
            "pool_heads": pool.num_heads,
            "pool_mlp_ratio": pool.mlp.fc1.out_features / trunk.embed_dim,
            "pool_activation": _activation(pool.mlp.act),
            "image_projection": "none",
        }
    if not hasattr(visual, "transformer"):
        raise WeightsError("the tower of pictures is no transformer", where=where, expected="a ViT")
    block = visual.transformer.resblocks[0]
    if visual.pool_type != "tok" or visual.attn_pool is not None:
        raise WeightsError("the tower of pictures reads no class token", where=where, expected="a class token")
    width = visual.conv1.out_channels
    return {
        "backbone": {
            "kind": "vit",
            "image_size": list(_size(visual)),
            "patch_size": visual.conv1.kernel_size[0],
            "embed_dim": width,
            "depth": len(visual.transformer.resblocks),
            "num_heads": block.attn.num_heads,
            "norm_eps": block.ln_1.eps,
            "mlp_ratio": block.mlp.c_fc.out_features / width,
            "activation": _activation(block.mlp.gelu),
            "stem_norm": not isinstance(visual.ln_pre, nn.Identity),
            "layer_scale": 0.0 if isinstance(block.ls_1, nn.Identity) else 1.0,
        },
        "pool": "token",
        "image_projection": "linear",
    }


def _text_config(text: Any, where: str) -> dict[str, Any]:
    if not hasattr(text, "transformer") or not hasattr(text.transformer, "resblocks"):
        raise WeightsError("the tower of texts is of another kind", where=where, expected="open_clip's transformer")
    block = text.transformer.resblocks[0]
    width = text.token_embedding.embedding_dim
    pool = getattr(text, "text_pool_type", None) or text.pool_type
    if pool not in {"argmax", "last"}:
        raise WeightsError(f"the tower of texts reads {pool!r}", where=where, expected="'argmax' or 'last'")
    has_bias = isinstance(text.text_projection, nn.Linear) and text.text_projection.bias is not None
    return {
        "width": width,
        "depth": len(text.transformer.resblocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.c_fc.out_features / width,
        "activation": _activation(block.mlp.gelu),
        "norm_eps": block.ln_1.eps,
        "causal": text.attn_mask is not None,
        "pool": "end" if pool == "argmax" else "last",
        "projection": "bias" if has_bias else "linear",
    }


def _activation(module: Any) -> str:
    """The name of an activation; GELU has two forms."""
    kind = type(module).__name__
    if "GELU" in kind and kind != "QuickGELU":
        return "gelu_tanh" if kind == "GELUTanh" or getattr(module, "approximate", "none") == "tanh" else "gelu"
    return _ACTIVATIONS[kind]


def fetch(name: str) -> Published:
    """Download (or take from the cache) ``NAME/TAG`` of open_clip and translate it.

    Raises:
        UnknownNameError: with open_clip's nearest name.
        WeightsError: where the package or the weights cannot be had, or hold another architecture.
    """
    where = f"{_SOURCE}/{name}"
    try:
        import open_clip
    except ImportError as error:
        remedy = "pip install '.[parity]' in the folder of Saccade's sources"
        raise WeightsError("the package open_clip_torch is not installed", where=where, remedy=remedy) from error
    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        raise UnknownNameError("open_clip model", architecture, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise UnknownNameError(f"weights of {architecture}", tag, tags, where=where)
    try:
        module = open_clip.create_model(architecture, pretrained=tag)
        tokenizer = getattr(open_clip.get_tokenizer(architecture), "tokenizer", None)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"these weights cannot be had ({first_line(error)})",
            where=where,
            remedy="check the network, or pass a file of weights instead",
        ) from error
    given = module.visual.preprocess_cfg
    preprocess = {
        "policy": "stretch" if given.get("resize_mode") == "squash" else "crop",
        "interpolation": given.get("interpolation", "bicubic"),
        "mean": list(given["mean"]),
        "std": list(given["std"]),
    }
    return publish(module, name, preprocess, definition_of(tokenizer))


def definition_of(tokenizer: Any) -> str:
    """JSON of the vocabulary of a tokenizer of transformers; empty for CLIP's, which is packaged."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(tokenizer) == _PUBLISHED_VOCABULARY:
        return ""
    definition: str = backend.to_str()
    return definition


def thirds(parts: Mapping[int, Tensor], name: str, source: str) -> Tensor:
    """Queries, keys and values as one matrix.

    Raises:
        WeightsError: where one is missing.
    """
    if len(parts) != 3:
        raise WeightsError(f"{name!r} has {len(parts)} of 3 projections", where=source)
    return torch.cat([parts[place] for place in range(3)])
