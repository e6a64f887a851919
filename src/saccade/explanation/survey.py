"""What one forward and backward pass shows of a model that says nothing about itself: grids, attention, linear head.

Shapes tell which activations may be pictures or tokens, the gradient tells which places of them the score reads, and
small changes of the picture tell whether a place of the activation lies where its shape says: tokens in another order
(hierarchical transformers), windows and queries do not. Names of modules say nothing.

T tokens · P prefix tokens · C channels · h, w grid · H, W canvas · N probes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ExplainError, nearest
from saccade.explanation.attribution import ScoreFn
from saccade.explanation.inner import InnerAttention
from saccade.explanation.record import attention_key, recording, unwrap
from saccade.explanation.scores import logits_of
from saccade.types import AttentionSite, ExplainSpec, GridLayer, ImageBatch

MAX_PREFIX = 16
"""More tokens than this before the patches are no class token and registers."""

PROBED = ((0, 3), (1, 6), (2, 1), (3, 4), (4, 7), (5, 0), (6, 5), (7, 2))
"""Where the picture is changed, in eighths down and right: rows and columns hardly correlate."""

SAME_PLACE = 0.75
"""Share of the probes that a layer must answer most strongly where the picture changed."""


class Survey:
    """What is found in a model.

    Args:
        model: called with an ``ImageBatch``; holds the foreign module as ``module``.
        module: the foreign module itself.
        images: one picture, or noise.
        score: what will be asked of the outputs; None for a classifier, of which a random mix of the logits is taken.

    Raises:
        ExplainError: where the score does not depend on the picture, or the outputs hold no logits and no score is
            given.
    """

    def __init__(self, model: nn.Module, module: nn.Module, images: ImageBatch, score: ScoreFn | None) -> None:
        self.canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
        self.modules: dict[str, nn.Module] = {
            path.replace("._orig_mod", ""): unwrap(part) for path, part in module.named_modules() if path
        }
        self._model, self._images = model, images
        self._layers = {path: GridLayer(f"module.{path}", _as_is) for path in self.modules}
        self._sites = {path: InnerAttention(f"module.{path}", 0, _no_grid) for path in ("", *self.modules)}
        self._sites[""] = InnerAttention("module", 0, _no_grid)
        sites = list(self._sites.values())
        with recording(model, self._layers, sites, at_pixels=True, is_survey=True) as record:
            outputs = record.run(images)
            asked = score or _mixed(logits_of(outputs))
            self.logits = _logits(outputs)
            seen = record.all_seen()
            assert record.pixels is not None
            *gradients, at_pixels = _gradients(record, asked, [*seen.values(), record.pixels])
            self._gradients = dict(zip(seen, gradients, strict=True))
        self._seen = {key: activation.detach() for key, activation in seen.items()}
        if not at_pixels.any():
            raise ExplainError(
                "the scores of this model do not depend on the picture: their gradient is zero everywhere",
                remedy="load trained weights, and remove torch.no_grad from its forward",
            )
        self._head = self._find_head()
        self._grid = self._find_token_grid()

    def spec(self, layer: str | None) -> tuple[ExplainSpec, str | None]:
        """The spec and, where plain CAM applies, the path of the linear head; paths relative to the module.

        Args:
            layer: the final layer, or None to find it.

        Raises:
            ExplainError: where no layer lies on the picture, or the asked one does not.
        """
        layers = {path: self._verified[path] for path in self.modules if path in self._verified}
        if layer is not None and layer not in layers:
            self._refuse_layer(layer, layers)
        final = layer if layer is not None else self._find_final(layers)
        named = {**layers, "final": layers[final]}
        spec = ExplainSpec(named, self._find_attention(), self._reads_class_token())
        return spec, self._cam_head(layers[final], final)

    @cached_property
    def _verified(self) -> dict[str, GridLayer]:
        """The layers that lie on the picture: where the picture changes, they change at the same place."""
        ways = {path: self._ways(path, seen) for path, seen in self._seen.items() if path in self.modules}
        moved: dict[str, list[list[Tensor]]] = {path: [[] for _ in several] for path, several in ways.items()}
        down, right = self.canvas[0] // 8, self.canvas[1] // 8
        with recording(self._model, self._layers, with_gradients=False, is_survey=True) as record:
            for row, column in PROBED:
                pixels = self._images.pixels.detach().clone()
                part = pixels[..., row * down : (row + 1) * down, column * right : (column + 1) * right]
                # Within the range of the picture: a model may refuse, or saturate at, what is no colour.
                part.copy_(pixels.amin() + pixels.amax() - part.roll(1, dims=-3))
                record.run(self._images.with_pixels(pixels))
                after = record.all_seen()
                for path, several in ways.items():
                    if path not in after or after[path].shape != self._seen[path].shape:
                        continue
                    change = (after[path].float() - self._seen[path].float()).square()
                    for found, layer in zip(moved[path], several, strict=True):
                        found.append(layer.to_grid(change, self.canvas)[0].sum(0))
        verified: dict[str, GridLayer] = {}
        for path, several in ways.items():
            for found, layer in zip(moved[path], several, strict=True):
                if len(found) == len(PROBED) and _follows(torch.stack(found)):
                    verified.setdefault(path, layer)
        return verified

    def _find_head(self) -> tuple[str, nn.Linear] | None:
        """The linear layer whose output is the logits, by its numbers."""
        for path, module in self.modules.items():
            output = self._seen.get(path)
            if self.logits is None or not isinstance(module, nn.Linear) or output is None:
                continue
            if output.shape == self.logits.shape and torch.equal(output, self.logits):
                return path, module
        return None

    def _find_token_grid(self) -> tuple[int, tuple[int, int]] | None:
        """Tokens before the patches and the grid of the patches, for models that turn the picture into tokens."""
        grids = [(int(a.shape[-2]), int(a.shape[-1])) for a in self._seen.values() if a.ndim == 4]
        counts = [int(a.shape[1]) for p, a in self._seen.items() if p in self.modules and a.ndim == 3]
        for count in reversed(counts):
            for height, width in reversed(grids):
                if min(height, width) > 1 and 0 <= count - height * width <= MAX_PREFIX:
                    return count - height * width, (height, width)
        return None

    def _ways(self, path: str, activation: Tensor) -> list[GridLayer]:
        """Every way in which the shape of an activation can be read as a grid, the likeliest first."""
        if activation.shape[0] != 1 or activation.ndim not in (3, 4) or not activation.is_floating_point():
            return []
        if activation.ndim == 4:
            first, second, third = (int(side) for side in activation.shape[1:])
            ways = [GridLayer(path, _as_is)] if second * third > 1 and self._fits(second, third) else []
            if first * second > 1 and self._fits(first, second):
                ways.append(GridLayer(path, _channels_last))
            return ways
        count = int(activation.shape[1])
        if self._grid is not None and count == self._grid[0] + self._grid[1][0] * self._grid[1][1]:
            return [GridLayer(path, TokenGrid(*self._grid, self.canvas))]
        ways = []
        for num_prefix in range(min(MAX_PREFIX, count - 4) + 1):
            height = round(((count - num_prefix) * self.canvas[0] / self.canvas[1]) ** 0.5)
            if height > 1 and (count - num_prefix) % height == 0:
                grid = height, (count - num_prefix) // height
                if grid[1] > 1 and self._fits(*grid, slack=1):
                    ways.append(GridLayer(path, TokenGrid(num_prefix, grid, self.canvas)))
        return ways[:1]

    def _fits(self, height: int, width: int, slack: int = 2) -> bool:
        """Whether a grid has the proportions of the canvas, up to rounding at its borders."""
        down, across = self.canvas[0] / height, self.canvas[1] / width
        return abs(self.canvas[0] / across - height) <= slack and abs(self.canvas[1] / down - width) <= slack

    def _reaches(self, path: str, layer: GridLayer) -> bool:
        """Whether the scores read any place of a layer's grid."""
        return bool(layer.to_grid(self._gradients[path], self.canvas).any())

    def _find_final(self, layers: Mapping[str, GridLayer]) -> str:
        """The last layer whose places the scores read; of token models only norms and blocks come into question."""
        reached = [path for path in self._seen if path in layers and self._reaches(path, layers[path])]
        pictures = [path for path in reached if self._seen[path].ndim == 4]
        tokens = [path for path in reached if self._seen[path].ndim == 3 and self._is_norm_or_block(path)]
        if tokens and (not pictures or reached.index(tokens[-1]) > reached.index(pictures[-1])):
            return tokens[-1]
        if not pictures:
            raise ExplainError(
                "no layer of this model lies on a grid",
                expected="a module whose output is [B, C, h, w], [B, h, w, C], or tokens [B, T, C] in the order of the"
                " picture's rows",
                remedy="use a method that needs no layer (method='gradient', 'occlusion' or 'rise')",
            )
        return pictures[-1]

    def _is_norm_or_block(self, path: str) -> bool:
        parent = self.modules.get(path.rpartition(".")[0])
        return isinstance(self.modules[path], nn.LayerNorm | nn.RMSNorm) or isinstance(
            parent, nn.Sequential | nn.ModuleList
        )

    def _find_attention(self) -> tuple[AttentionSite, ...]:
        """Softmaxes over all tokens, in the order of the pass; none where any of them sees another set (windows)."""
        if self._grid is None:
            return ()
        num_prefix, (height, width) = self._grid
        patches, sites = height * width, []
        by_key = {attention_key(site): path for path, site in self._sites.items()}
        for key, attention in self._seen.items():
            if key not in by_key:
                continue
            if attention.shape[0] != 1 or attention.shape[-1] not in (patches, num_prefix + patches):
                return ()
            grid = TokenGrid(num_prefix, (height, width), self.canvas).size
            sites.append(InnerAttention(by_key[key], num_prefix, grid))
        squares = [s for s in sites if self._is_square(s)]
        return tuple(sites) if squares and all(self._is_square(site) for site in sites[:-1]) else ()

    def _is_square(self, site: AttentionSite) -> bool:
        attention = self._seen[attention_key(self._sites[site.path])]
        return attention.shape[-1] == attention.shape[-2]

    def _reads_class_token(self) -> bool:
        """Whether the last tokens with a gradient have it at the prefix only."""
        if self._grid is None or self._grid[0] == 0:
            return False
        num_prefix, (height, width) = self._grid
        for path in reversed([path for path in self._seen if path in self.modules]):
            gradient = self._gradients[path]
            if gradient.ndim == 3 and gradient.shape[1] == num_prefix + height * width and gradient.any():
                return not bool(gradient[:, num_prefix:].any())
        return False

    def _cam_head(self, layer: GridLayer, path: str) -> str | None:
        """The path of the linear head, where applied to the mean of the final layer it gives the logits."""
        if self._head is None or self.logits is None:
            return None
        head_path, head = self._head
        maps = layer.to_grid(self._seen[path], self.canvas)
        if maps.shape[1] != head.in_features:
            return None
        logits = F.linear(maps.mean(dim=(-2, -1)), head.weight.detach(), head.bias)
        tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
        if not torch.allclose(logits, self.logits, rtol=tolerance, atol=tolerance * float(self.logits.abs().max())):
            return None
        return head_path

    def _refuse_layer(self, layer: str, layers: Mapping[str, GridLayer]) -> None:
        if layer not in self.modules:
            near = nearest(layer, self.modules)
            remedy = f"did you mean {near!r}?" if near else "print the model's named_modules()"
            raise ExplainError("the model has no such module", where=f"layer {layer!r}", remedy=remedy)
        around = [path for path in layers if layer.startswith(f"{path}.")] or list(layers)
        activation = self._seen.get(layer)
        shape = "never reached" if activation is None else tuple(activation.shape)
        is_windows = activation is not None and activation.ndim >= 3 and activation.shape[0] > 1
        kind = f": {activation.shape[0]} windows or regions" if is_windows and activation is not None else ""
        raise ExplainError(
            f"the output of this module ({shape}{kind}) does not lie on the picture",
            where=f"layer {layer!r}",
            expected="[B, C, h, w], [B, h, w, C] or tokens [B, T, C] in the order of the picture's rows",
            remedy=f"choose for example {around[-1] if around else None!r}, or leave layer out",
        )


class TokenGrid:
    """Tokens ``[B, P + h*w, C]`` laid out on the picture, for canvases of any size.

    Args:
        num_prefix: P.
        grid: (h, w) on the surveyed canvas.
        canvas: (H, W) that was surveyed.
    """

    def __init__(self, num_prefix: int, grid: tuple[int, int], canvas: tuple[int, int]) -> None:
        self._num_prefix = num_prefix
        self._cell = (canvas[0] / grid[0], canvas[1] / grid[1])

    def size(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """Patches (h, w) of a canvas (H, W)."""
        return round(canvas[0] / self._cell[0]), round(canvas[1] / self._cell[1])

    def __call__(self, tokens: Tensor, canvas: tuple[int, int]) -> Tensor:
        """``[B, C, h, w]``."""
        return tokens[:, self._num_prefix :].mT.reshape(tokens.shape[0], tokens.shape[2], *self.size(canvas))


def _as_is(activation: Tensor, canvas: tuple[int, int]) -> Tensor:
    return activation


def _channels_last(activation: Tensor, canvas: tuple[int, int]) -> Tensor:
    return activation.permute(0, 3, 1, 2)


def _no_grid(canvas: tuple[int, int]) -> tuple[int, int]:
    return canvas


def _follows(changes: Tensor) -> bool:
    """Whether the changes ``[N, h, w]`` of a layer are where those of the picture were.

    Each place is compared with itself over the probes: some tokens of large transformers move with everything.
    """
    changes = changes.double().cpu()
    relative = changes / changes.mean(0).clamp_min(torch.finfo(torch.float64).tiny)
    height, width = changes.shape[1:]
    hits = 0
    for (row, column), change in zip(PROBED, relative, strict=True):
        peak = int(change.argmax())
        down, right = (peak // width + 0.5) / height, (peak % width + 0.5) / width
        # Half a square of the probe, half a cell, and a neighbour on either side.
        near_row = abs(down - (row + 0.5) / 8) <= 1.5 / 8 + 0.5 / height
        near_column = abs(right - (column + 0.5) / 8) <= 1.5 / 8 + 0.5 / width
        hits += near_row and near_column and bool(change.any())
    return hits >= SAME_PLACE * len(PROBED)


def _logits(outputs: Any) -> Tensor | None:
    try:
        return logits_of(outputs).detach()
    except ExplainError:
        return None


def _mixed(logits: Tensor) -> ScoreFn:
    """A fixed random mix of the logits: no class can by chance be one that nothing speaks for."""
    mix = torch.randn(int(logits.shape[1]), generator=torch.Generator().manual_seed(1))

    def mixed(outputs: Any) -> Tensor:
        found = logits_of(outputs).float()
        return found @ mix.to(found.device)

    return mixed


def _gradients(record: Any, score: ScoreFn, activations: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of one score; zeros where no graph leads to it."""
    if not score(record.outputs).requires_grad:
        return [torch.zeros_like(activation) for activation in activations]
    ((*gradients,),) = record.gradients([score], activations)
    return [gradient[0] for gradient in gradients]
