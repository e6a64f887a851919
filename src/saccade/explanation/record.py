"""The one place where hooks are installed: activations, attention and gradients; the model is left as it was found.

The part of the network before the first recorded layer runs without a graph. There the graph is cut: the activation
becomes a cloned leaf, so that a later in-place operation can neither fail nor corrupt it. Gradients come from
``torch.autograd.grad`` only, for all asked scores at once, and so never touch ``.grad``.

T scores · B images · C channels · h, w grid · Q queries · N keys
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from saccade.errors import ExplainError
from saccade.explanation.attribution import ScoreFn
from saccade.explanation.inner import AttentionWatch, InnerAttention
from saccade.types import AttentionSite, GridLayer, ImageBatch

ELEMENTS_AT_ONCE = 32_000_000
"""Gradient elements held at one time (128 MB in float32); more scores than that go in chunks."""


class Record:
    """What was seen in one forward pass; made by ``recording``.

    Attributes:
        outputs: raw outputs of the model.
        pixels: ``[B, 3, H, W]`` leaf, where gradients at the pixels were asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, GridLayer],
        attention: Sequence[AttentionSite],
        *,
        with_gradients: bool,
        at_pixels: bool,
        is_survey: bool = False,
    ) -> None:
        self._model = model
        self.is_survey = is_survey
        self._layers = layers
        self._sites = attention
        self._with_gradients = with_gradients
        self._at_pixels = at_pixels
        self._seen: dict[str, Tensor] = {}
        self._canvas = (0, 0)
        self.outputs: Any = None
        self.pixels: Tensor | None = None

    def run(self, images: ImageBatch) -> Any:
        """One forward pass; returns the raw outputs."""
        self._seen.clear()
        if len(images) > 1:
            refuse_batch_statistics(self._model)
        self._canvas = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
        # A clone is an ordinary tensor even where the caller made the pixels in inference mode.
        self.pixels = images.pixels.detach().clone()
        passed = self.pixels
        if self._at_pixels:
            self.pixels.requires_grad_()
        with torch.set_grad_enabled(self._at_pixels):
            if self._at_pixels:
                passed = self.pixels.clone()
            self.outputs = self._model(images.with_pixels(passed))
        for name in (*self._layers, *map(attention_key, self._sites)):
            if name not in self._seen and not self.is_survey:
                raise ExplainError(
                    "the forward pass never reached this layer", where=f"layer {name!r}", remedy="choose another layer"
                )
        return self.outputs

    def all_seen(self) -> dict[str, Tensor]:
        """Every activation by layer name and every attention by ``attention_key``, in the order they were made."""
        return dict(self._seen)

    def grid(self, name: str) -> Tensor:
        """The activation of a layer laid out on the picture, ``[B, C, h, w]`` float32, without a graph."""
        return self._layers[name].to_grid(self._seen[name].detach(), self._canvas).float()

    def attention(self) -> list[Tensor]:
        """Attention probabilities ``[B, heads, Q, N]`` of every site, in the order of the forward pass."""
        return [self._seen[attention_key(site)] for site in self._sites]

    def scores(self, scores: Sequence[ScoreFn]) -> Tensor:
        """``[T, B]`` float32, with their graph."""
        return torch.stack([score(self.outputs).float() for score in scores])

    def gradients(self, scores: Sequence[ScoreFn], tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Gradients of every score with respect to ``tensors``: chunks of ``[t, *tensor.shape]``, t scores at a time.

        Images do not influence each other in evaluation mode, so the gradient of the sum over the batch is every
        image's own.

        Raises:
            ExplainError: where no graph leads from the scores to the tensors.
        """
        return self.gradients_of(self.scores(scores).sum(dim=1), tensors)

    def gradients_of(
        self, totals: Tensor, tensors: Sequence[Tensor], most: int | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """The same of numbers ``[T]`` that were made of the outputs; at most ``most`` of them at a time.

        Raises:
            ExplainError: where no graph leads from them to the tensors.
        """
        if not totals.requires_grad:
            raise ExplainError(
                "no gradient leads from the score to the recorded layer",
                expected="outputs that depend on the layer by differentiable operations",
                remedy="remove torch.no_grad / inference_mode from the model's forward, or choose an earlier layer",
            )
        size = max(sum(tensor.numel() for tensor in tensors), 1)
        at_once = max(ELEMENTS_AT_ONCE // size, 1)
        at_once = at_once if most is None else min(at_once, most)
        for start in range(0, len(totals), at_once):
            yield _batched_gradient(totals[start : start + at_once], tensors)

    def grid_gradients(self, name: str, scores: Sequence[ScoreFn]) -> Iterator[Tensor]:
        """Gradients of the scores at a layer, laid out on the picture: chunks of ``[t, B, C, h, w]`` float32.

        Raises:
            ExplainError: where the score depends on the layer, but not on any of its places in the picture.
        """
        for (gradient,) in self.gradients(scores, [self._seen[name]]):
            grid = self.as_grid(name, gradient)
            # Only a layout that leaves tokens out can lose the gradient, and looking at twenty large ones takes time.
            if grid.numel() < gradient.numel() and not grid.any() and gradient.any():
                raise ExplainError(
                    "the score reads only the prefix tokens of this layer, so its gradient at every patch is zero",
                    where=f"layer {name!r}",
                    remedy="choose layer 'final', or any layer before the last attention",
                )
            yield grid

    def as_grid(self, name: str, gradients: Tensor) -> Tensor:
        """Gradients ``[t, *activation]`` at a layer laid out on the picture, ``[t, B, C, h, w]`` float32."""
        grid = self._layers[name].to_grid(gradients.flatten(0, 1), self._canvas).float()
        return grid.reshape(*gradients.shape[:2], *grid.shape[1:])

    @property
    def canvas(self) -> tuple[int, int]:
        """``(H, W)`` of the pictures of the last pass."""
        return self._canvas

    def take(self, name: str, activation: Tensor) -> Tensor:
        """Keep an activation and return what the model goes on with; of several calls of a layer the last counts.

        Raises:
            ExplainError: where it holds no real numbers, unless this is a survey.
        """
        if not activation.is_floating_point():
            # Which expert, which class: nothing to be read as evidence, and no gradient leads to it.
            if self.is_survey:
                return activation
            raise _no_numbers(f"numbers of type {str(activation.dtype).removeprefix('torch.')}", name)
        self._seen.pop(name, None)
        if not self._with_gradients:
            self._seen[name] = activation.detach().clone()
            return activation
        if activation.requires_grad:
            kept = activation
        else:
            kept = activation.detach().clone().requires_grad_()
            torch.set_grad_enabled(True)
        self._seen[name] = kept
        return kept.clone()


@contextmanager
def recording(
    model: nn.Module,
    layers: Mapping[str, GridLayer] | None = None,
    attention: Sequence[AttentionSite] = (),
    *,
    with_gradients: bool = True,
    at_pixels: bool = False,
    is_survey: bool = False,
) -> Iterator[Record]:
    """Listens to a model for one block; ``record.run(images)`` inside it makes the forward pass.

    Args:
        model: called with an ``ImageBatch``; compiled modules run their original code inside the block.
        layers: grid layers by name.
        attention: softmaxes to observe.
        with_gradients: whether gradients will be asked for; without them the whole pass runs without a graph.
        at_pixels: take gradients at the pixels; the graph then starts there.
        is_survey: pass over layers that give no tensor or are never reached, instead of refusing them.

    Raises:
        ExplainError: where a layer does not exist, or was not reached.
    """
    model = unwrap(model)
    record = Record(
        model, layers or {}, attention, with_gradients=with_gradients, at_pixels=at_pixels, is_survey=is_survey
    )
    inner = [site for site in attention if isinstance(site, InnerAttention)]
    watch = AttentionWatch(record.take)
    handles = []
    with undisturbed(model):
        try:
            for name, layer in record._layers.items():
                handles.append(_listen(find_module(model, layer.path), name, record, is_input=layer.is_input))
            for site in attention:
                module = find_module(model, site.path)
                if isinstance(site, InnerAttention):
                    handles.append(module.register_forward_pre_hook(watch.entering(attention_key(site))))
                    handles.append(module.register_forward_hook(watch.leaving(), always_call=True))
                else:
                    handles.append(_listen(module, attention_key(site), record, is_input=False))
            with watch if inner else ExitStack():
                yield record
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards training flags and random state are what they were, whatever happened.

    Inside, inference mode is off, compiled parts run their original code (hooks added after compilation never fire) and
    autocast keeps no cache (weights cast without a graph would cost the caller's own training their gradients).
    """
    model = unwrap(model)
    modes = [(module, module.training) for module in model.modules()]
    random_state = torch.get_rng_state()
    device_states = torch.cuda.get_rng_state_all() if _uses_cuda() else []
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            torch.set_rng_state(random_state)
            if device_states:
                torch.cuda.set_rng_state_all(device_states)


@contextmanager
def exact() -> Iterator[None]:
    """The caller's autocast is off for the block, or the function: maps are put together in float32.

    Autocast is about the model. Sums of scores over hundreds of masks, or of products over channels, would lose in
    eight bits what they are about.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside ``torch.compile``, DataParallel or DistributedDataParallel wrappers."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def mixing_layer(model: nn.Module) -> str | None:
    """A batch norm without running statistics: it mixes the pictures of a batch, and their gradients; None: no such."""
    for name, module in unwrap(model).named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return str(name)
    return None


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse a model in which the pictures of a batch influence each other.

    Raises:
        ExplainError: naming the layer.
    """
    name = mixing_layer(model)
    if name is not None:
        raise ExplainError(
            "this layer normalises with the statistics of the batch, so pictures influence each other",
            where=f"layer {name!r}",
            expected="running statistics",
            remedy="explain one picture at a time",
        )


@contextmanager
def counting(model: nn.Module) -> Iterator[list[int]]:
    """Collects how many pictures go through a model in each of its passes."""
    counts: list[int] = []
    handle = unwrap(model).register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    try:
        yield counts
    finally:
        handle.remove()


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path, seen through the wrappers of ``torch.compile``.

    Raises:
        ExplainError: where there is none.
    """
    module = unwrap(model)
    for part in path.split(".") if path else ():
        child = getattr(module, part, None)
        if not isinstance(child, nn.Module):
            near = ", ".join(name for name, _ in module.named_children()) or "(none)"
            raise ExplainError(
                f"{type(module).__name__} has no submodule {part!r}",
                where=f"layer {path!r}",
                expected=f"one of: {near}",
            )
        module = unwrap(child)
    return module


def attention_key(site: AttentionSite) -> str:
    """The name under which the attention of a site is kept, which no layer can have."""
    return f"attention of {site.path}"


def _listen(module: nn.Module, name: str, record: Record, *, is_input: bool) -> torch.utils.hooks.RemovableHandle:
    if is_input:

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            taken: tuple[Any, ...] = _take_first(record, name, inputs)
            return taken

        return module.register_forward_pre_hook(before)

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return _take_first(record, name, output)

    return module.register_forward_hook(after)


def _take_first(record: Record, name: str, value: Any) -> Any:
    """Record the tensor in what a module takes or gives: the value itself, or the first member of a tuple."""
    if isinstance(value, Tensor):
        return record.take(name, value)
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
        members = [record.take(name, value[0]), *value[1:]]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*members)
        return type(value)(members)
    if record.is_survey:
        return value
    raise _no_numbers(f"a {type(value).__name__}", name)


def _no_numbers(what: str, name: str) -> ExplainError:
    return ExplainError(
        f"the layer gives {what}",
        where=f"layer {name!r}",
        expected="a tensor of floating-point numbers, or a tuple whose first member is one",
        remedy="choose a layer inside it",
    )


@exact()
def _batched_gradient(totals: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients ``[t, *tensor.shape]`` of t scalars in one sweep; zeros where a tensor plays no part."""
    count = len(totals)
    if count > 1:
        seeds = torch.eye(count, dtype=totals.dtype, device=totals.device)
        try:
            with warnings.catch_warnings():
                # An operation without a rule for batches is looped over by torch itself, and tells so in a warning.
                warnings.simplefilter("ignore", UserWarning)
                batched = torch.autograd.grad(
                    totals, tensors, seeds, is_grads_batched=True, retain_graph=True, allow_unused=True
                )
        except RuntimeError:
            # Custom autograd functions have no batched backward: one sweep per score gives the same gradients.
            batched = None
        if batched is not None:
            return tuple(_filled(g, t, count) for g, t in zip(batched, tensors, strict=True))
    sweeps = [torch.autograd.grad(total, tensors, retain_graph=True, allow_unused=True) for total in totals.unbind()]
    columns = zip(*sweeps, strict=True)
    return tuple(
        torch.stack([torch.zeros_like(tensor) if gradient is None else gradient for gradient in column])
        for column, tensor in zip(columns, tensors, strict=True)
    )


def _filled(gradient: Tensor | None, tensor: Tensor, count: int) -> Tensor:
    return tensor.new_zeros((count, *tensor.shape)) if gradient is None else gradient


def _uses_cuda() -> bool:
    # Asking a device that nobody uses for its random state would start it.
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
