"""Weights of segmentation-models-pytorch: ``Unet`` with a ResNet of torchvision's kind as its encoder.

Iakubovskii 2019, https://github.com/qubvel-org/segmentation_models.pytorch. Nothing is downloaded here: files of such
weights are read, and a module of the library is translated.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from saccade.errors import WeightsError
from saccade.weights.published import Published, State

_BLOCK = re.compile(r"decoder\.blocks\.(\d+)\.conv([12])\.([01])\.(\w+)")


def is_unet(state: State) -> bool:
    """Whether these are weights of a ``segmentation_models_pytorch.Unet``."""
    return {"decoder.blocks.0.conv1.0.weight", "segmentation_head.0.weight"} <= state.keys()


def convert_unet(state: State) -> dict[str, Tensor]:
    """The library's names to ours.

    Raises:
        WeightsError: where the U-Net has parts that ours does not know, such as attention or a centre block.
    """
    return {_name(name): tensor for name, tensor in state.items()}


def _name(name: str) -> str:
    for theirs, ours in (("encoder.", "backbone.body."), ("segmentation_head.0.", "head.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    found = _BLOCK.fullmatch(name)
    if found is None:
        raise WeightsError(f"the parameter {name!r} has no place in our U-Net", where="segmentation-models-pytorch")
    block, convolution, part, leaf = found.groups()
    return f"decoder.{block}.fuse.{int(convolution) - 1}.{('conv', 'norm')[int(part)]}.{leaf}"


def publish(module: Any, encoder: str) -> Published:
    """A ``segmentation_models_pytorch.Unet``, translated; ``encoder`` is timm's name of its encoder, ``"resnet34"``."""
    state = convert_unet(module.state_dict())
    num_blocks = len(module.decoder.blocks)
    config = {
        "kind": "unet",
        "backbone": {"kind": "timm", "name": encoder},
        "widths": [state[f"decoder.{block}.fuse.1.conv.weight"].shape[0] for block in range(num_blocks)],
        "upsampling": "nearest",
        "head_size": state["head.weight"].shape[-1],
        "num_classes": state["head.weight"].shape[0],
    }
    return Published(f"segmentation-models-pytorch/{encoder}", state, config, None, module.eval())
