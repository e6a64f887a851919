"""Weights of timm: Vision Transformers (class token, or averaged with ``fc_norm``) and convolutional networks.

Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from saccade.errors import UnknownNameError, WeightsError
from saccade.weights.published import Published, State, first_line, rename, square, unique

_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attention.qkv",
    "attn.q_norm": "attention.query_norm",
    "attn.k_norm": "attention.key_norm",
    "attn.proj": "attention.project",
    "mlp.fc1": "mlp.widen",
    "mlp.fc2": "mlp.narrow",
}
_OUTSIDE = {
    "patch_embed.proj": "backbone.embed.project",
    "norm": "backbone.norm",
    "fc_norm": "pool_norm",
    "head": "head",
}
_HEADS = ("fc", "classifier", "head.fc", "head")


def is_vit(state: State) -> bool:
    """Whether these are weights of a timm Vision Transformer."""
    return "patch_embed.proj.weight" in state and "blocks.0.attn.qkv.weight" in state


def is_cnn(state: State) -> bool:
    """Whether these are weights of something convolutional with a linear head, under timm's names."""
    has_head = any(f"{head}.weight" in state for head in _HEADS)
    return has_head and any(tensor.ndim == 4 for tensor in state.values())


def convert_vit(state: State, grid: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Timm's names to ours; ``grid`` is needed only where the patches form no square.

    timm gives the class token, and sometimes the registers, rows in the position table. These rows are only ever added
    to the tokens, so they are added here once and for all.

    Raises:
        WeightsError: where the transformer has parts that ours does not know.
    """
    converted: dict[str, Tensor] = {}
    prefix = [state[name] for name in ("cls_token", "reg_token") if name in state]
    num_prefix = sum(token.shape[1] for token in prefix)
    if "pos_embed" in state:
        table = state["pos_embed"]
        count = table.shape[1]
        has_rows = count == grid[0] * grid[1] + num_prefix if grid else round(count**0.5) ** 2 != count
        rows = num_prefix if has_rows else 0
        grid = grid or square(count - rows, "timm ViT")
        converted["backbone.positions.table"] = table[:, rows:].reshape(1, *grid, -1)
        if rows:
            offsets = table[:, :rows].split([token.shape[1] for token in prefix], dim=1)  # type: ignore[no-untyped-call]
            prefix = [token + offset for token, offset in zip(prefix, offsets, strict=True)]
    for name in ("cls_token", "reg_token"):
        if name in state:
            ours = "class_token" if name == "cls_token" else "registers"
            converted[f"backbone.{ours}"] = prefix.pop(0)
    for name, tensor in state.items():
        if name in {"cls_token", "reg_token", "pos_embed"}:
            continue
        converted[_vit_name(name)] = tensor
    return converted


def _vit_name(name: str) -> str:
    if not name.startswith("blocks."):
        return rename(name, _OUTSIDE, "timm ViT")
    _, index, inside = name.split(".", 2)
    if inside in {"ls1.gamma", "ls2.gamma"}:
        return f"backbone.blocks.{index}.scale{inside[2]}.scale"
    return f"backbone.blocks.{index}." + rename(inside, _BLOCK, "timm ViT")


def convert_cnn(state: State) -> dict[str, Tensor]:
    """Timm's names under our backbone, the classifier's under our head."""
    head = next(name for name in _HEADS if f"{name}.weight" in state)
    return {
        f"head.{name.removeprefix(f'{head}.')}" if name.startswith(f"{head}.") else f"backbone.body.{name}": tensor
        for name, tensor in state.items()
    }


def preprocess_of(published: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of our ``Preprocess`` from timm's ``pretrained_cfg``."""
    policy = {"center": "crop", "squash": "stretch", "border": "letterbox"}[published.get("crop_mode", "center")]
    return {
        "size": list(published["input_size"][1:]),
        "policy": policy,
        "crop_fraction": published["crop_pct"] if policy == "crop" else 1.0,
        "interpolation": "bilinear" if published["interpolation"] == "bilinear" else "bicubic",
        "mean": list(published["mean"]),
        "std": list(published["std"]),
    }


def vit_config(module: Any) -> dict[str, Any]:
    """Plain data of the ``ViTConfig`` that rebuilds a timm VisionTransformer."""
    block = module.blocks[0]
    is_gated = type(block.mlp).__name__ == "GluMlp"
    width = module.embed_dim
    hidden = block.mlp.fc2.in_features
    return {
        "kind": "vit",
        "image_size": list(module.patch_embed.img_size),
        "patch_size": module.patch_embed.patch_size[0],
        "embed_dim": width,
        "depth": len(module.blocks),
        "num_heads": block.attn.num_heads,
        "has_class_token": module.cls_token is not None,
        "num_registers": 0 if module.reg_token is None else module.reg_token.shape[1],
        "norm": "rms" if "RmsNorm" in type(block.norm1).__name__ else "layer",
        "norm_eps": block.norm1.eps,
        "final_norm": not isinstance(module.norm, nn.Identity),
        "mlp": "swiglu" if is_gated else "mlp",
        "mlp_ratio": hidden * (1.5 if is_gated else 1) / width,
        "activation": {"QuickGELU": "quick_gelu", "ReLU": "relu"}.get(type(block.mlp.act).__name__, "gelu"),
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "layer_scale": 0.0 if isinstance(block.ls1, nn.Identity) else 1.0,
    }


def publish(module: Any, name: str) -> Published:
    """A timm classifier, translated; pure, nothing is downloaded."""
    state = module.state_dict()
    cfg = module.pretrained_cfg
    config: dict[str, Any] = {
        "kind": "classifier",
        "num_classes": module.num_classes,
        "preprocess": preprocess_of(cfg),
    }
    if is_vit(state):
        converted = convert_vit(state, tuple(module.patch_embed.grid_size))
        config |= {
            "backbone": vit_config(module),
            "pool": {"token": "token", "avg": "average"}.get(module.global_pool, module.global_pool),
            "pool_norm": not isinstance(module.fc_norm, nn.Identity),
        }
        config["preprocess"]["size"] = list(module.patch_embed.img_size)
    elif is_cnn(state):
        converted = convert_cnn(state)
        config |= {"backbone": {"kind": "timm", "name": name.partition(".")[0]}, "pool": "average"}
    else:
        raise WeightsError("neither a ViT nor a convolutional classifier", where=f"timm/{name}")
    return Published(f"timm/{name}", converted, config, _class_names(module), module.eval())


def _class_names(module: Any) -> tuple[str, ...] | None:
    """ImageNet's names where timm knows which of its subsets the head was trained on."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(module)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return unique(info.index_to_description(index) for index in range(module.num_classes))


def fetch(name: str) -> Published:
    """Download (or take from the cache) ``NAME`` or ``NAME.TAG`` of timm and translate it.

    Raises:
        UnknownNameError: with timm's nearest name.
        WeightsError: where there are no such weights or they cannot be reached.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise UnknownNameError("timm model", name, timm.list_models())
    try:
        module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"these weights cannot be had ({first_line(error)})",
            where=f"timm/{name}",
            remedy="check the network, or pass a file of weights instead",
        ) from error
    return publish(module, name)
