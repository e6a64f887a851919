"""What a model declares about itself, so that explanation need not know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class QueryLayer:
    """One layer of a decoder, in which queries look at each other and at the picture.

    Attributes:
        own: dotted name of the module that the softmax ``[B, heads, Q, Q]`` of queries over queries passes.
        cross: the same of queries over the picture: ``[B, heads, Q, cells]``, or ``[B, heads, Q, levels * points]``.
        points: the module that the points ``[B, Q, heads, levels, points, 2]`` pass, x and y as shares of the canvas;
            None where queries look at all cells.
    """

    own: str
    cross: str
    points: str | None = None


@dataclass(frozen=True)
class QueryLooks:
    """Where the queries of a detector look.

    Attributes:
        layers: of the decoder, in the order of the forward pass.
        grids: canvas size ``(H, W)`` -> cells ``(h, w)`` of every map that is looked at, finest first; where queries
            look at all cells there is one map.
        encoder: softmaxes of the cells over each other, before the queries look at them.
    """

    layers: Sequence[QueryLayer]
    grids: Callable[[tuple[int, int]], Sequence[tuple[int, int]]]
    encoder: Sequence[AttentionSite] = ()

    def under(self, prefix: str) -> QueryLooks:
        """The same for a model that holds this one as its submodule ``prefix``."""
        layers = [
            QueryLayer(f"{prefix}.{one.own}", f"{prefix}.{one.cross}", one.points and f"{prefix}.{one.points}")
            for one in self.layers
        ]
        encoder = [replace(site, path=f"{prefix}.{site.path}") for site in self.encoder]
        return replace(self, layers=layers, encoder=encoder)


class Rows(NamedTuple):
    """Where all that raw candidates read of the layers passes, one row for each candidate of a picture.

    Attributes:
        path: dotted name of a module that gives ``[R, ...]``.
        again: (levels by name, outputs, candidates ``[n]``) -> the rows of these, ``[n, ...]``, differentiable.
    """

    path: str
    again: Callable[[Mapping[str, Tensor], Any, Tensor], Tensor]


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
        early_layer: the first map, through which every way from the picture to the answer leads, where later maps carry
            a part of the evidence each; LayerCAM reads it where nobody chose a method. None where one later map carries
            all of it.
        attention: observable softmaxes, in the order of the forward pass; empty for convolutional models.
        has_class_token: whether the class is read from token 0 (else from the mean of the patches).
        linear_head: returns the linear layer where plain CAM applies; None where it does not.
        queries: where the queries of a detector look; None where it has none.
        levels: names of layers of which each raw candidate of a detector reads one and no other; none where candidates
            may read all layers.
        rows: where all that raw candidates read of ``levels`` passes; None where they do not read one by one.
    """

    layers: Mapping[str, GridLayer]
    attention: Sequence[AttentionSite] = ()
    has_class_token: bool = False
    linear_head: Callable[[], LinearHead] | None = None
    usual_layer: str = "final"
    early_layer: str | None = None
    queries: QueryLooks | None = None
    levels: Sequence[str] = ()
    rows: Rows | None = None

    def __post_init__(self) -> None:
        if "final" not in self.layers:
            raise InputError("an ExplainSpec has no layer 'final'", expected="the last layer that a gradient reaches")
        for role, name in (("usual_layer", self.usual_layer), ("early_layer", self.early_layer)):
            if name is not None and name not in self.layers:
                raise InputError(f"{role} {name!r} is no layer", expected=", ".join(self.layers))

    def under(self, prefix: str) -> ExplainSpec:
        """The same spec for a model that holds this one as its submodule ``prefix``."""

        def join(path: str) -> str:
            return f"{prefix}.{path}" if path else prefix

        layers = {name: replace(layer, path=join(layer.path)) for name, layer in self.layers.items()}
        return replace(
            self,
            layers=layers,
            attention=[replace(s, path=join(s.path)) for s in self.attention],
            queries=self.queries and self.queries.under(prefix),
            rows=self.rows and self.rows._replace(path=join(self.rows.path)),
        )
