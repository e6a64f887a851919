"""The gradient of a contrastive loss over more pictures than a forward pass, or a process, can hold.

Such a loss compares each picture with every text of the batch, so it cannot be added up part by part. Gradient caching
(Gao et al. 2021, arXiv 2101.06983): all parts are embedded without a graph, the loss of the whole batch gives the
gradient of every embedding, and each part is embedded again with a graph to carry its own on. The gradient is that of
the whole batch; the price is one more forward pass. With several processes the embeddings of all are gathered in
between, so that each picture sees the texts of all of them.

Differs from the paper: batch norm normalises over a part, and its running statistics move in the second pass alone.

B pictures of this process · W processes · D width of the space
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from saccade.data.loader import Batch
from saccade.engine.failure import seed_step
from saccade.models.base import VisionModel
from saccade.types import Caption, Losses, Target


class ContrastivePass:
    """The loss of one batch over all parts and processes, and the gradient of every embedding.

    Args:
        fabric: of the run.
        module: what Fabric wrapped, for the moment when gradients are exchanged.
        forward: embeds a batch through ``module``.
        model: whose loss it is.
        batch: the pictures of this process, each with one text.
        chunk: pictures per part; 0 for all at once.
        seeds: name this batch; a part is embedded under the same seed both times.

    Attributes:
        losses: of the whole batch.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: Any,
        forward: Callable[[Batch], Any],
        model: VisionModel[Any, Any, Any],
        batch: Batch,
        *,
        chunk: int,
        seeds: tuple[int, ...],
    ) -> None:
        self.fabric, self.module, self.forward, self.seeds = fabric, module, forward, seeds
        size = chunk or len(batch)
        self.parts = [_part(batch, slice(start, start + size)) for start in range(0, len(batch), size)]
        # A single part is embedded once: its graph is kept.
        self._kept = self._embed(0) if len(self.parts) == 1 else None
        if self._kept is None:
            with torch.no_grad(), still_statistics(model):
                outputs = [self._embed(number) for number in range(len(self.parts))]
        else:
            outputs = [self._kept]
        self._measure(model, outputs, batch.targets)

    def backward(self, share: float) -> None:
        """Add ``share`` of the gradient of the loss to the gradients of the parameters."""
        start = 0
        for number, part in enumerate(self.parts):
            is_last = number == len(self.parts) - 1
            with self.fabric.no_backward_sync(self.module, enabled=not is_last):
                outputs = self._kept or self._embed(number)
                rows = slice(start, start + len(part))
                start += len(part)
                carried = (outputs.image * self._image[rows]).sum() + (outputs.text * self._text[rows]).sum()
                # Gradients of the processes are averaged afterwards, but each holds its own rows of one sum.
                total = carried * self.fabric.world_size
                if is_last:
                    total = total + outputs.logit_scale * self._scale + outputs.logit_bias * self._bias
                self.fabric.backward(total * share)

    def _embed(self, number: int) -> Any:
        if len(self.parts) > 1:
            seed_step(*self.seeds, number)
        return self.forward(self.parts[number])

    def _measure(self, model: VisionModel[Any, Any, Any], outputs: list[Any], targets: tuple[Target, ...]) -> None:
        """Compute the loss of everything and the gradient of each embedding and of the temperature."""
        image, text = (
            self._gathered(torch.cat(side)) for side in zip(*((o.image, o.text) for o in outputs), strict=True)
        )
        scale, bias = (value.detach().requires_grad_() for value in (outputs[0].logit_scale, outputs[0].logit_bias))
        counts = torch.ones(len(image), dtype=torch.int64, device=image.device)
        with torch.enable_grad():
            whole = outputs[0]._replace(image=image, text=text, logit_scale=scale, logit_bias=bias, counts=counts)
            self.losses: Losses = model.loss(whole, self._all(targets))
            leaves = (image, text, scale, bias)
            grads = torch.autograd.grad(self.losses.total, leaves, allow_unused=True)
        filled = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]
        own = slice(self.fabric.global_rank * len(targets), (self.fabric.global_rank + 1) * len(targets))
        self._image, self._text, self._scale, self._bias = filled[0][own], filled[1][own], filled[2], filled[3]

    def _gathered(self, own: Tensor) -> Tensor:
        """The rows of all processes ``[W * B, D]``, as leaves."""
        rows = own.detach()
        if self.fabric.world_size > 1:
            found = self.fabric.all_gather(rows)
            assert isinstance(found, Tensor)
            rows = found.flatten(0, 1)
        return rows.requires_grad_()

    def _all(self, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        """The captions of all processes, in the order of the rows."""
        if self.fabric.world_size == 1:
            return targets
        found: list[list[Caption]] = [[] for _ in range(self.fabric.world_size)]
        own = [target for target in targets if isinstance(target, Caption)]
        torch.distributed.all_gather_object(found, own)
        return tuple(target for part in found for target in part)


def _part(batch: Batch, rows: slice) -> Batch:
    whole = batch.images
    images = replace(whole, pixels=whole.pixels[rows], sizes=whole.sizes[rows], geometries=whole.geometries[rows])
    return replace(
        batch, images=images, targets=batch.targets[rows], sources=batch.sources[rows], indices=batch.indices[rows]
    )


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norm as they are, in whatever mode it is."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [
        (norm.momentum, norm.num_batches_tracked.clone() if norm.num_batches_tracked is not None else None)
        for norm in norms
    ]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if tracked is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(tracked)
