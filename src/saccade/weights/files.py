"""Files of weights: read without unpickling, unwrapped, recognised, renamed.

``.safetensors`` is preferred. Anything else goes through ``torch.load(weights_only=True)``, which builds tensors and
plain containers and nothing else.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from saccade.errors import WeightsError
from saccade.weights import open_clip, smp, timm, torchvision, transformers, transformers_clip, yolox
from saccade.weights.published import State, first_line

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt", ".onnx")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "ema")


class Converter(NamedTuple):
    """A way from published names to ours.

    Attributes:
        name: whose names it reads.
        matches: whether a state dict has these names.
        convert: the state dict under our names.
    """

    name: str
    matches: Callable[[State], bool]
    convert: Callable[[State], dict[str, Tensor]]


def is_ours(state: State) -> bool:
    """Whether these are weights under our own names."""
    return all(any(name.startswith(part) for name in state) for part in ("backbone.", "head."))


CONVERTERS = (
    Converter("saccade", is_ours, dict),
    Converter("open_clip or OpenAI CLIP", open_clip.is_clip, open_clip.convert),
    Converter("transformers CLIP or SigLIP", transformers_clip.is_clip, transformers_clip.convert),
    Converter("transformers ViT", transformers.is_vit, transformers.convert_vit),
    Converter("torchvision ViT", torchvision.is_vit, torchvision.convert_vit),
    Converter("torchvision MobileNetV2", torchvision.is_mobilenet_v2, torchvision.convert_mobilenet_v2),
    Converter("torchvision FCN", torchvision.is_fcn, torchvision.convert_fcn),
    Converter("segmentation-models-pytorch Unet", smp.is_unet, smp.convert_unet),
    Converter("timm ViT", timm.is_vit, timm.convert_vit),
    Converter("timm or torchvision CNN", timm.is_cnn, timm.convert_cnn),
)
"""From the most particular names to the least."""


def recognise(state: State) -> Converter:
    """The converter that reads these names.

    Raises:
        WeightsError: where none does.
    """
    for converter in CONVERTERS:
        if converter.matches(state):
            return converter
    raise WeightsError(
        f"the names of these {len(state)} tensors are of no known source (the first is {next(iter(state), None)!r})",
        expected="weights of " + ", ".join(converter.name for converter in CONVERTERS),
    )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file by name, without wrappers like ``{"state_dict": ...}`` and ``module.`` prefixes.

    Raises:
        WeightsError: where the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError("there is no such file", where=str(path))
    if path.suffix == ".onnx":
        return yolox.read(path)
    try:
        if path.suffix == ".safetensors":
            return unwrap(safetensors.torch.load_file(path), str(path))
        with warnings.catch_warnings():
            # torch warns of a pickle's dialect before it refuses what is inside; the refusal says enough.
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        return unwrap(loaded, str(path))
    except (safetensors.SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(
            f"this is no readable file of weights ({_reason(error)})",
            where=str(path),
            expected="tensors by name, as .safetensors or a plain state dict",
            remedy="download it again, or save it with torch.save(model.state_dict(), ...)",
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        # torch's own sentence advises to switch the protection off.
        return "it holds something else than tensors, and is not opened for safety, or it is damaged"
    return first_line(error)


def read_description(path: str | Path) -> dict[str, Any]:
    """What a file of ours says of its model (``config``, ``classes``); empty for files from elsewhere.

    A file that cannot be read says nothing either; whoever reads its tensors is told why.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("saccade", "{}")
    except safetensors.SafetensorError:
        return {}
    try:
        described = json.loads(text)
    except json.JSONDecodeError as error:
        raise WeightsError("the header is damaged", where=str(path), expected="JSON") from error
    return described if isinstance(described, dict) else {}


def unwrap(loaded: Any, where: str) -> dict[str, Tensor]:
    """The state dict inside of what a file held."""
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not all(torch.is_tensor(t) for t in loaded.values()):
        raise WeightsError("the file holds no state dict", where=where, expected="a mapping of names to tensors")
    state = {str(name): tensor for name, tensor in loaded.items()}
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
