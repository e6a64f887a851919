"""What a model declares about itself, so that explanation need not know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from saccade.errors import InputError


def as_grid(activation: Tensor, canvas: tuple[int, int]) -> Tensor:
    """An activation ``[B, C, h, w]`` that is a grid over the whole canvas already."""
    return activation


@dataclass(frozen=True)
class GridLayer:
    """A layer whose activation can be laid out on the picture.

    Attributes:
        path: dotted name of the module ("" is the model itself).
        to_grid: (recorded activation, canvas size ``(H, W)``) -> ``[B, C, h, w]``; a view, so that gradients pass. By
            default the activation itself, as convolutions leave it.
        is_input: record what enters the module instead of what leaves it.
    """

    path: str
    to_grid: Callable[[Tensor, tuple[int, int]], Tensor] = as_grid
    is_input: bool = False


@dataclass(frozen=True)
class AttentionSite:
    """A softmax over tokens that can be observed.

    Attributes:
        path: dotted name of a module that passes the attention probabilities ``[B, heads, queries, keys]`` through
            unchanged whenever somebody listens (see ``saccade.nn.attention``).
        num_prefix: tokens before the patches (class token, registers).
        grid: canvas size ``(H, W)`` -> patches ``(h, w)``.
    """

    path: str
    num_prefix: int
    grid: Callable[[tuple[int, int]], tuple[int, int]]


class LinearHead(NamedTuple):
    """The layer after global average pooling of ``layers["final"]``: plain CAM weights the channels with it.

    Attributes:
        weight: ``[K, C]``.
        bias: ``[K]``.
    """

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class ExplainSpec:
    """What a model declares about itself so that explanation need not know it.

    Attributes:
        layers: grid layers by name, in the order of the forward pass; ``"final"`` is required and is the last one that
            a gradient of the score reaches.
        usual_layer: the layer that explains best where nobody chose one. The last layer of a segmenter can only point
            at the very pixels it was asked about; why they got their class is seen further in.
        attention: observable softmaxes, in the order of the forward pass; empty for convolutional models.
        has_class_token: whether the class is read from token 0 (else from the mean of the patches).
        linear_head: returns the linear layer where plain CAM applies; None where it does not.
    """

    layers: Mapping[str, GridLayer]
    attention: Sequence[AttentionSite] = ()
    has_class_token: bool = False
    linear_head: Callable[[], LinearHead] | None = None
    usual_layer: str = "final"

    def __post_init__(self) -> None:
        if "final" not in self.layers:
            raise InputError("an ExplainSpec has no layer 'final'", expected="the last layer that a gradient reaches")
        if self.usual_layer not in self.layers:
            raise InputError(f"usual_layer {self.usual_layer!r} is no layer", expected=", ".join(self.layers))

    def under(self, prefix: str) -> ExplainSpec:
        """The same spec for a model that holds this one as its submodule ``prefix``."""

        def join(path: str) -> str:
            return f"{prefix}.{path}" if path else prefix

        layers = {name: replace(layer, path=join(layer.path)) for name, layer in self.layers.items()}
        return replace(self, layers=layers, attention=[replace(s, path=join(s.path)) for s in self.attention])
