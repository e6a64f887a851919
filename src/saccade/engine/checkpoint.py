"""Weights and training states on disk: safetensors with a JSON header, written atomically, never pickled.

A model file carries everything needed to use it: config, class names, preprocessing (inside the config), metrics,
fingerprint of the data, licences, version, and a SHA-256 digest of all that with the tensors, so that an altered file
is noticed. A training state (``last.ckpt``) is the same container with the tensors of model, optimizer, average and
random generators, and a tree of plain values that says where each tensor belongs.

Container: https://github.com/huggingface/safetensors, https://docs.pytorch.org/docs/stable/notes/serialization.html
on pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import saccade
from saccade import registry
from saccade.atomic import plain_json, whole_file
from saccade.config import from_dict, to_dict
from saccade.errors import ConfigError, WeightsError, nearest
from saccade.models.base import ModelConfig, VisionModel
from saccade.types import Classes

FORMAT = 1
"""Version of the container's header."""

ContainerKind = Literal["model", "state", "batch"]

_KEY = "saccade"
_FOREIGN = {
    b"PK\x03\x04": "a PyTorch (pickle) or zip file",
    b"\x80": "a pickle file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"BM": "a BMP picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a WebP picture or other RIFF file",
    b"\x1f\x8b": "a gzip file",
    b"{": "a JSON text",
}


@dataclass(frozen=True)
class ModelHeader:
    """What a model file says about itself beside the weights.

    Attributes:
        name: registry name or source the model came from, where known.
        metrics: figures measured at saving.
        data: fingerprints, sources of the data it was trained on.
        licences: of code, weights and data, by part.
        version: of Saccade, at saving.
    """

    name: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    licences: Mapping[str, Any] = field(default_factory=dict)
    version: str = saccade.__version__


def save_model(
    model: VisionModel[Any, Any, Any],
    path: str | Path,
    *,
    name: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    licences: Mapping[str, Any] | None = None,
) -> None:
    """Write a model so that ``load_model`` needs nothing else.

    Raises:
        RunError: where the file cannot be written; an older file of that name is left as it was.
    """
    about = ModelHeader(name, plain_json(metrics or {}), data or {}, licences or {})
    header = {**describe_model(model), **about.__dict__}
    write_container(path, model.state_dict(), header, "model")


def load_model(path: str | Path, device: torch.device | str = "cpu") -> VisionModel[Any, Any, Any]:
    """Rebuild a model from its file, in evaluation mode.

    Args:
        path: the file.
        device: where the model shall live, as torch names it.

    Raises:
        WeightsError: where the file is missing, truncated, altered, or not one of ours.
    """
    tensors, header = read_container(path, "model")
    # Building draws random weights that are replaced at once; the caller's random state must not notice.
    with torch.random.fork_rng(devices=[]):
        model = build_described(header, where=str(path))
    load_weights(model, tensors, where=str(path))
    return model.to(device).eval()


def read_header(path: str | Path) -> ModelHeader:
    """What a model file says about itself; the weights are verified on the way.

    Raises:
        WeightsError: as ``load_model``.
    """
    _, header = read_container(path, "model")
    return ModelHeader(header["name"], header["metrics"], header["data"], header["licences"], header["version"])


def stored_digest(path: str | Path) -> str | None:
    """The digest that a file of ours says it has; None for any other file. Nothing is verified: loading does that."""
    try:
        with safe_open(path, framework="pt") as file:
            digest = json.loads((file.metadata() or {}).get(_KEY, "{}")).get("digest")
    except (OSError, SafetensorError, json.JSONDecodeError):
        return None
    return digest if isinstance(digest, str) else None


def describe_model(model: VisionModel[Any, Any, Any]) -> dict[str, Any]:
    """Architecture, config and classes as plain data."""
    return {
        "architecture": type(model.config).__name__,
        "config": to_dict(model.config),
        "classes": list(model.classes),
    }


def build_described(description: Mapping[str, Any], *, where: str) -> VisionModel[Any, Any, Any]:
    """The model that ``describe_model`` described, with random weights.

    Raises:
        WeightsError: where the architecture is unknown or the config does not fit it.
    """
    kinds = _config_kinds()
    architecture = description["architecture"]
    if architecture not in kinds:
        near = nearest(str(architecture), kinds)
        raise WeightsError(
            f"the file needs the architecture {architecture!r}, which this version does not have",
            where=where,
            remedy=f"did it mean {near!r}? Import the module that defines it, or update saccade",
        )
    try:
        model = from_dict(kinds[architecture], description["config"]).build()
    except ConfigError as error:
        raise WeightsError(f"its config does not fit this version ({error})", where=where) from error
    model.classes = Classes(tuple(description["classes"]))
    return model


def load_weights(model: VisionModel[Any, Any, Any], tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy tensors into a model of exactly that shape.

    Raises:
        WeightsError: naming the first tensor that is missing, superfluous or of another shape.
    """
    expected = model.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in tensors:
            problem = f"the weights lack {key!r}"
        elif key not in expected:
            problem = f"the weights hold {key!r}, which the model has not"
        elif tensors[key].shape != expected[key].shape:
            problem = f"{key!r} is {list(tensors[key].shape)} in the weights, {list(expected[key].shape)} in the model"
        else:
            continue
        raise WeightsError(problem, where=where, remedy="load them into the architecture they were made with")
    model.load_state_dict(dict(tensors))


def write_container(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], kind: str) -> None:
    """Write tensors and a JSON header to ``path`` in one atomic step.

    Raises:
        RunError: where the file cannot be written; an older file of that name is left as it was.
    """
    path = Path(path)
    stored = _independent(tensors)
    content = {**header, "format": FORMAT, "kind": kind}
    content["digest"] = _digest(stored, content)
    save_tensors(path, stored, {_KEY: json.dumps(content, sort_keys=True)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that appears whole or not at all.

    Args:
        path: where.
        tensors: contiguous, on the CPU, no two sharing memory.
        about: the words in its header.

    Raises:
        RunError: where the file cannot be written; an older file of that name is left as it was.
    """
    with whole_file(path) as temporary:
        # safetensors makes its files readable for their owner alone; these get the permissions any new file gets here.
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(dict(tensors), temporary, metadata=None if about is None else dict(about))
        except SafetensorError as error:  # its word for what the operating system refused
            raise OSError(str(error)) from error
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def read_container(path: str | Path, kind: ContainerKind) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file written by ``write_container``, verified against its digest.

    Raises:
        WeightsError: where the file is missing, a folder, empty, foreign, truncated, altered, or of another kind.
    """
    path = Path(path)
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"the file is damaged or truncated ({error})", where=str(path), remedy="copy or train it again"
        ) from error
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        given, own_format, own_kind = header.pop("digest"), header["format"], header["kind"]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
        raise WeightsError(
            "the safetensors file was not written by saccade, so its architecture and classes are unknown",
            where=str(path),
            remedy="name a model and pass the file as its --weights",
        ) from None
    if own_format != FORMAT:
        raise WeightsError(f"the file has format {own_format}", where=str(path), expected=f"format {FORMAT}")
    if given != _digest(tensors, header):
        remedy = "copy or train it again"
        raise WeightsError(
            "the file was altered: its digest does not match its content", where=str(path), remedy=remedy
        )
    if own_kind != kind:
        hint = "use best.safetensors of the run" if kind == "model" else None
        raise WeightsError(f"the file holds a {own_kind}", where=str(path), expected=f"a {kind}", remedy=hint)
    return tensors, header


def flatten(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """A tree of dicts, lists, tuples, tensors and plain values as (tensors by key, JSON tree that refers to them)."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node
            return {"tensor": path}
        if isinstance(node, Mapping):
            # JSON keys are text only, and optimizers number their parameters: pairs keep the type of the key.
            return {"items": [[key, walk(value, f"{path}.{key}" if path else str(key))] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            kind = "list" if isinstance(node, list) else "tuple"
            return {kind: [walk(value, f"{path}.{index}") for index, value in enumerate(node)]}
        return {"value": node}

    return tensors, walk(tree, "")


def unflatten(tensors: Mapping[str, Tensor], node: Any) -> Any:
    """The inverse of ``flatten``."""
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: unflatten(tensors, value) for key, value in content}
    if kind == "value":
        return content
    values = [unflatten(tensors, value) for value in content]
    return values if kind == "list" else tuple(values)


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a training state: any tree of tensors and plain values.

    Raises:
        RunError: where the file cannot be written.
    """
    tensors, tree = flatten(state)
    write_container(path, tensors, {"tree": tree, "version": saccade.__version__}, "state")


def load_state(path: str | Path) -> dict[str, Any]:
    """The training state written by ``save_state``.

    Raises:
        WeightsError: as ``read_container``.
    """
    tensors, header = read_container(path, "state")
    state: dict[str, Any] = unflatten(tensors, header["tree"])
    return state


def _config_kinds() -> dict[str, type[ModelConfig]]:
    """Every model config class by its name; the registry has imported all of ours."""
    registry.names()
    kinds: dict[str, type[ModelConfig]] = {}
    waiting: list[type[ModelConfig]] = [ModelConfig]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        kinds[kind.__name__] = kind
    return kinds


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory (tied weights are written twice)."""
    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        address = own.untyped_storage().data_ptr()
        stored[key] = own.clone() if address in storages else own
        storages.add(address)
    return stored


def weights_digest(model: VisionModel[Any, Any, Any]) -> str:
    """A SHA-256 over config and weights of a model: what was computed with it holds as long as this stays the same."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return _digest(tensors, {"config": to_dict(model.config)})


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"\n{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refuse_foreign(path: Path) -> None:
    if path.is_dir():
        raise WeightsError("it is a folder", where=str(path), expected="a file", remedy="name best.safetensors in it")
    if not path.is_file():
        raise WeightsError("the file does not exist", where=str(path), remedy="check the path")
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise WeightsError("the file is empty (zero bytes)", where=str(path), remedy="copy or train it again")
    # A safetensors file opens with the length of its JSON header, then the header itself.
    if len(start) > 8 and start[8:9] == b"{":
        return
    kind = next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), "not a safetensors file")
    raise WeightsError(
        f"the file is {kind}",
        where=str(path),
        expected="a .safetensors file written by saccade",
        remedy="pass foreign weights as --weights to a named model",
    )
