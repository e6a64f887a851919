"""Weights of YOLOX (nano) out of a published ONNX file.

Ge et al. 2021, https://github.com/Megvii-BaseDetection/YOLOX, Apache-2.0. Such a file holds the network as a list of
operations; its tensors have numbers for names, and its norms are folded into the convolutions. But the convolutions
stand in the order in which they run, and so do ours: the first of theirs is the first of ours. What a file says of its
operations is only read, never run.

A folded norm comes back as one that changes nothing but adds the bias, which holds only while it evaluates; so a model
with such weights keeps its norms in evaluation when it learns (``YoloxConfig.freeze_norms``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saccade.errors import WeightsError
from saccade.weights.published import Published, first_line

NORM_EPS = 1e-5
"""What our norms add to variances."""

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of COCO in the order of its ids, which is that of the published weights."""


class _Conv(NamedTuple):
    """One of our convolutions.

    Attributes:
        name: of the module that holds it.
        has_norm: whether a norm follows.
    """

    name: str
    has_norm: bool = True


def read(path: str | Path) -> dict[str, Tensor]:
    """The weights of a YOLOX of separable convolutions (the nano) under our names.

    Raises:
        WeightsError: where the file is no ONNX file, or holds another network.
    """
    graph = _graph(path)
    given = _convolutions(graph, path)
    depth = _depth(given, path)
    ours = list(_order(depth))
    if len(given) != len(ours):
        raise _other_network(path, f"it has {len(given)} convolutions, a YOLOX of this depth {len(ours)}")
    state: dict[str, Tensor] = {}
    for place, (conv, (weight, bias)) in enumerate(zip(ours, given, strict=True)):
        if bias is None:
            raise _other_network(path, f"convolution {place + 1} has no bias")
        _place(state, conv, _unfolded(weight) if place == 0 else weight, bias)
    return state


def publish(path: str | Path) -> Published:
    """The network of a file, translated, beside the original as onnxruntime runs it.

    Raises:
        WeightsError: as ``read``.
    """
    state = read(path)
    num_classes = int(state["heads.0.head.weight"].shape[0])
    size = _canvas(_graph(path), path)
    byte = [1 / 255] * 3
    config: dict[str, Any] = {
        "kind": "yolox",
        "num_classes": num_classes,
        "width": int(state["backbone.stem.conv.weight"].shape[0]),
        "depth": _depth_of(state),
        "head_width": int(state["heads.0.stem.conv.weight"].shape[0]),
        "freeze_norms": True,
        "preprocess": {"size": list(size), "policy": "letterbox", "mean": [0.0] * 3, "std": byte, "fill": 114},
    }
    classes = COCO if num_classes == len(COCO) else None
    return Published(str(path), state, config, classes, _Original(path, config["depth"]))


class _Original:
    """The file as onnxruntime runs it: pixels ``[B, 3, H, W]`` to logits of the classes ``[B, P, K]``.

    The file gives probabilities, from which small logits cannot be had back; so what its last convolutions say is made
    an output.
    """

    def __init__(self, path: str | Path, depth: int) -> None:
        import onnx

        try:
            import onnxruntime
        except ImportError as error:
            raise _missing("onnxruntime", path) from error
        model = _model(path)
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        heads = [place for place, conv in enumerate(_order(depth)) if conv.name.endswith(".head")]
        self.outputs = [convolutions[place].output[0] for place in heads]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs)
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def __call__(self, pixels: Tensor) -> Tensor:
        name = self.session.get_inputs()[0].name
        turned = np.ascontiguousarray(pixels.flip(1).numpy())  # theirs has blue first
        rows = []
        for index in range(len(turned)):
            maps = self.session.run(self.outputs, {name: turned[index : index + 1]})
            rows.append(torch.cat([torch.from_numpy(one).flatten(2) for one in maps], dim=2).mT)
        return torch.cat(rows)


def _graph(path: str | Path) -> Any:
    return _model(path).graph


def _model(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise WeightsError("there is no such file", where=str(path))
    try:
        import onnx
    except ImportError as error:
        raise _missing("onnx", path) from error
    try:
        return onnx.load(str(path))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        told = f"this is no readable ONNX file ({first_line(error)})"
        raise WeightsError(told, where=str(path), remedy="download it again") from error
    except Exception as error:
        # protobuf's own DecodeError; importing its class for this would tie us to one of its versions.
        if type(error).__name__ != "DecodeError":
            raise
        raise WeightsError("this is no ONNX file", where=str(path), remedy="download it again") from error


def _missing(package: str, path: str | Path) -> WeightsError:
    remedy = "pip install '.[export]' in the folder of Saccade's sources"
    return WeightsError(f"reading ONNX needs the package {package}", where=str(path), remedy=remedy)


def _other_network(path: str | Path, what: str) -> WeightsError:
    expected = "the ONNX file of a YOLOX with separable convolutions, such as yolox_nano"
    return WeightsError(f"the file holds another network: {what}", where=str(path), expected=expected)


def _convolutions(graph: Any, path: str | Path) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of every convolution, in the order in which they run."""
    from onnx import numpy_helper

    tensors = {one.name: one for one in graph.initializer}

    def tensor(name: str) -> Tensor:
        if name not in tensors:
            raise _other_network(path, f"the tensor {name!r} of a convolution is not among its weights")
        return torch.from_numpy(numpy_helper.to_array(tensors[name]).astype(np.float32))

    found = []
    for node in graph.node:
        if node.op_type == "Conv":
            found.append((tensor(node.input[1]), tensor(node.input[2]) if len(node.input) > 2 else None))
    return found


def _depth(given: list[tuple[Tensor, Tensor | None]], path: str | Path) -> int:
    """Steps per block, by the number of convolutions; see ``_order``."""
    for depth in range(1, 5):
        if len(given) == len(list(_order(depth))):
            return depth
    raise _other_network(path, f"it has {len(given)} convolutions")


def _depth_of(state: dict[str, Tensor]) -> int:
    return len({name.split(".")[4] for name in state if name.startswith("backbone.stages.0.1.steps.")})


def _canvas(graph: Any, path: str | Path) -> tuple[int, int]:
    sides = [axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim]
    if len(sides) != 4 or min(sides[2:]) < 1:
        raise _other_network(path, f"its first input is {sides}")
    return sides[2], sides[3]


def _order(depth: int) -> Iterator[_Conv]:
    """Our convolutions in the order in which they run."""

    def separable(name: str) -> Iterator[_Conv]:
        yield from (_Conv(f"{name}.0"), _Conv(f"{name}.1"))

    def block(name: str, steps: int) -> Iterator[_Conv]:
        yield from (_Conv(f"{name}.long"), _Conv(f"{name}.short"))
        for step in range(steps):
            yield _Conv(f"{name}.steps.{step}.narrow")
            yield from separable(f"{name}.steps.{step}.look")
        yield _Conv(f"{name}.join")

    yield _Conv("backbone.stem")
    for stage in range(4):
        yield from separable(f"backbone.stages.{stage}.0")
        if stage == 3:
            yield from (_Conv(f"backbone.stages.3.1.{part}") for part in ("narrow", "join"))
        yield from block(f"backbone.stages.{stage}.{2 if stage == 3 else 1}", depth if stage in {0, 3} else 3 * depth)
    yield _Conv("pyramid.lateral")
    yield from block("pyramid.down_middle", depth)
    yield _Conv("pyramid.reduce")
    yield from block("pyramid.down_fine", depth)
    for shrink, up in (("shrink_fine", "up_middle"), ("shrink_middle", "up_coarse")):
        yield from separable(f"pyramid.{shrink}")
        yield from block(f"pyramid.{up}", depth)
    for level in range(3):
        yield _Conv(f"heads.{level}.stem")
        for tower, heads in (("class_tower", ("head",)), ("box_tower", ("codes", "objectness"))):
            for layer in range(2):
                yield from separable(f"heads.{level}.{tower}.{layer}")
            yield from (_Conv(f"heads.{level}.{head}", has_norm=False) for head in heads)


def _place(state: dict[str, Tensor], conv: _Conv, weight: Tensor, bias: Tensor) -> None:
    """A convolution under our names; a folded norm comes back as one that, in evaluation, only adds the bias."""
    if not conv.has_norm:
        state |= {f"{conv.name}.weight": weight, f"{conv.name}.bias": bias}
        return
    ones = torch.ones_like(bias)
    state |= {
        f"{conv.name}.conv.weight": weight,
        f"{conv.name}.norm.weight": ones,
        f"{conv.name}.norm.bias": bias,
        f"{conv.name}.norm.running_mean": torch.zeros_like(bias),
        f"{conv.name}.norm.running_var": ones - NORM_EPS,
        f"{conv.name}.norm.num_batches_tracked": torch.tensor(0),
    }


def _unfolded(weight: Tensor) -> Tensor:
    """The first weight ``[C, 12, 3, 3]``: theirs has four pictures of blue, green, red; ours colours of four places.

    Their four pictures are those of the even and odd rows and columns: both even, odd rows, odd columns, both odd.
    """
    pictures = weight.reshape(len(weight), 2, 2, 3, 3, 3)  # odd column, odd row, colour
    return pictures.flip(3).permute(0, 3, 2, 1, 4, 5).reshape(len(weight), 12, 3, 3)
