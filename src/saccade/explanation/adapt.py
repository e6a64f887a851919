"""Any classifier that is a ``torch.nn.Module``, made explainable: its grids, attention and linear head are found.

One forward and backward pass of noise surveys every module: shapes tell which activations are pictures or tokens, the
gradient tells which places of them the scores read. What is found is verified (shape product, non-zero gradient, the
linear head by its numbers), never concluded from names.

T tokens · P prefix tokens · C channels · h, w grid · H, W canvas
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError, nearest
from saccade.explanation.inner import InnerAttention
from saccade.explanation.record import attention_key, find_module, recording, unwrap
from saccade.explanation.scores import logits_of
from saccade.ops.image import Preprocess
from saccade.types import AttentionSite, Classes, ExplainSpec, GridLayer, ImageBatch, LinearHead

MAX_PREFIX = 16
"""More tokens than this before the patches are no class token and registers."""


class AdaptedClassifier(nn.Module):
    """A classifier that is not ours, called with an ``ImageBatch``; made by ``adapt``.

    Attributes:
        module: the classifier itself, called with pixels ``[B, 3, H, W]``.
        preprocess: how its pictures become pixels.
        classes: names of its classes.
    """

    def __init__(self, module: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.module = module
        self.preprocess = preprocess
        self.classes = Classes(())
        self._spec: ExplainSpec | None = None
        self._head_path: str | None = None

    def forward(self, images: ImageBatch) -> Tensor:
        """Logits ``[B, K]``."""
        return logits_of(self.module(images.pixels))

    def explain_spec(self) -> ExplainSpec:
        """What the survey found."""
        assert self._spec is not None, "adapt() sets it"
        return self._spec if self._head_path is None else replace(self._spec, linear_head=self._linear_head)

    def _linear_head(self) -> LinearHead:
        # Looked up each time, so that a copy of this classifier speaks of its own head.
        head = find_module(self.module, self._head_path or "")
        assert isinstance(head, nn.Linear)
        return LinearHead(head.weight, head.bias)


def adapt(
    module: nn.Module,
    preprocess: Preprocess | None = None,
    *,
    classes: Sequence[str] | None = None,
    layer: str | None = None,
) -> AdaptedClassifier:
    """Make a plain classifier explainable.

    Args:
        module: takes pixels ``[B, 3, H, W]``, gives logits ``[B, K]`` or an object whose ``.logits`` they are.
        preprocess: how its pictures become pixels; may be left out for timm models, which know it themselves.
        classes: names of the K classes.
        layer: dotted name of the module to use as layer "final"; found where it is None.

    Raises:
        ConfigError: where the preprocessing is unknown, or the number of class names is not K.
        ExplainError: where no layer fits, naming what to do.
    """
    module = unwrap(module)
    adapted = AdaptedClassifier(module, preprocess or _own_preprocess(module))
    survey = _Survey(adapted)
    names = classes if classes is not None else Classes.numbered(survey.num_classes).names
    if len(names) != survey.num_classes:
        raise ConfigError(f"{len(names)} class names for {survey.num_classes} logits", where="classes")
    adapted.classes = Classes(tuple(names))
    adapted._spec, adapted._head_path = survey.spec(layer)
    adapted._spec = adapted._spec.under("module")
    return adapted


def model_device(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the floating-point parameters of a model live and what type they are of."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


class _Survey:
    """What one pass over noise shows of a classifier."""

    def __init__(self, adapted: AdaptedClassifier) -> None:
        module = adapted.module
        self.canvas = adapted.preprocess.size
        self.modules: dict[str, nn.Module] = {path: unwrap(m) for path, m in module.named_modules() if path}
        device, dtype = model_device(module)
        noise = torch.randn(1, 3, *self.canvas, generator=torch.Generator().manual_seed(0))
        layers = {path: GridLayer(f"module.{path}", _as_is) for path in self.modules}
        self._sites = {path: InnerAttention(f"module.{path}", 0, _no_grid) for path in ("", *self.modules)}
        self._sites[""] = InnerAttention("module", 0, _no_grid)
        with recording(adapted, layers, list(self._sites.values()), at_pixels=True, is_survey=True) as record:
            self.logits = logits_of(record.run(ImageBatch.of(noise.to(device, dtype)))).detach()
            seen = record.all_seen()
            self.num_classes = int(self.logits.shape[1])
            assert record.pixels is not None
            *gradients, at_pixels = _projected_gradients(record, [*seen.values(), record.pixels])
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
        """The spec and, where plain CAM applies, the path of the linear head; paths relative to the classifier.

        Args:
            layer: the final layer, or None to find it.
        """
        layers = {path: grid for path in self.modules if (grid := self._grid_layer(path)) is not None}
        if layer is not None and layer not in layers:
            self._refuse_layer(layer, layers)
        final = layer if layer is not None else self._find_final(layers)
        attention, has_class_token = self._find_attention(), self._reads_class_token()
        named = {**layers, "final": layers[final]}
        return ExplainSpec(named, attention, has_class_token), self._cam_head(layers[final], final)

    def _find_head(self) -> tuple[str, nn.Linear] | None:
        """The linear layer whose output is the logits, by its numbers."""
        for path, module in self.modules.items():
            output = self._seen.get(path)
            is_last = isinstance(module, nn.Linear) and output is not None and output.shape == self.logits.shape
            if is_last and torch.equal(output, self.logits):  # type: ignore[arg-type]
                return path, module  # type: ignore[return-value]
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

    def _grid_layer(self, path: str) -> GridLayer | None:
        """How the output of a module lies on the picture; None where it does not."""
        activation = self._seen.get(path)
        if activation is None:
            return None
        if activation.ndim == 4 and activation.shape[0] == 1:
            width = None if self._head is None else self._head[1].in_features
            is_last = width is not None and activation.shape[-1] == width and activation.shape[1] != width
            height, across = activation.shape[1:3] if is_last else activation.shape[2:]
            if height * across > 1 and self._fits(int(height), int(across)):
                return GridLayer(path, _channels_last if is_last else _as_is)
        if activation.ndim == 3 and self._grid is not None:
            num_prefix, (height, across) = self._grid
            if activation.shape[1] == num_prefix + height * across:
                return GridLayer(path, _TokenGrid(num_prefix, self._grid[1], self.canvas))
        return None

    def _fits(self, height: int, width: int) -> bool:
        """Whether a grid has the proportions of the canvas, up to rounding at its borders."""
        down, across = self.canvas[0] / height, self.canvas[1] / width
        return abs(self.canvas[0] / across - height) <= 2 and abs(self.canvas[1] / down - width) <= 2

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
                expected="a module whose output is [B, C, h, w] or, with the patch grid of a convolution, [B, T, C]",
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
            grid = _TokenGrid(num_prefix, (height, width), self.canvas).size
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
        if self._head is None:
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
        shape = tuple(self._seen[layer].shape) if layer in self._seen else "never reached"
        raise ExplainError(
            f"the output of this module ({shape}) does not lie on the picture",
            where=f"layer {layer!r}",
            expected="[B, C, h, w], or tokens [B, T, C] of the patch grid",
            remedy=f"choose for example {next(reversed(list(layers)), None)!r}, or leave layer out",
        )


class _TokenGrid:
    """Tokens ``[B, P + h*w, C]`` laid out on the picture, for canvases of any size."""

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


def _projected_gradients(record: Any, activations: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a fixed random mix of the logits: no class can by chance be one that nothing speaks for."""
    if not logits_of(record.outputs).requires_grad:
        return [torch.zeros_like(activation) for activation in activations]
    num_classes = int(logits_of(record.outputs).shape[1])
    mix = torch.randn(num_classes, generator=torch.Generator().manual_seed(1))

    def mixed(outputs: Any) -> Tensor:
        logits = logits_of(outputs).float()
        return logits @ mix.to(logits.device)

    ((*gradients,),) = record.gradients([mixed], activations)
    return [gradient[0] for gradient in gradients]


def _own_preprocess(module: nn.Module) -> Preprocess:
    """The preprocessing that a timm model carries with it.

    Raises:
        ConfigError: where the model carries none.
    """
    known = getattr(module, "pretrained_cfg", None)
    if not isinstance(known, Mapping) or "mean" not in known or "input_size" not in known:
        raise ConfigError(
            "the model does not say how its pictures are prepared",
            where="preprocess",
            remedy="say it: adapt(model, Preprocess(size=(224, 224), mean=..., std=...))",
        )
    interpolation = "bicubic" if known.get("interpolation") == "bicubic" else "bilinear"
    return Preprocess(
        size=tuple(known["input_size"][-2:]),
        crop_fraction=float(known.get("crop_pct") or 1.0),
        interpolation=interpolation,  # type: ignore[arg-type]
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
    )
