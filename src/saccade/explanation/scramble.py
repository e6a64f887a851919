"""Copies of a model that have forgotten what they learned: every weight is kept, its place is not.

Shuffling within a tensor keeps the distribution of the weights and loses what training arranged. For a randomly
initialised model, whose weights are independent draws, a shuffled copy is another draw from the same distribution,
whatever the initialiser was: nothing measured on such a model can tell it from its copies, except by chance. A trained
model differs from its own. That makes shuffled copies a fairer control than fresh initialisation (Adebayo et al. 2018,
arXiv 1810.03292), whose scale may be far from that of the weights under test.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from saccade.explanation.copies import deep_copy
from saccade.explanation.record import unwrap

Extent = Literal["rows", "all"]
"""``all`` shuffles every tensor wholly, norms and their statistics too; ``rows`` shuffles the weights of each output
channel (of a transposed convolution: each input channel) among themselves and leaves norms alone, so that activations
keep their scale."""


def scrambled(model: nn.Module, extent: Extent, seed: int, *, is_late: bool = False) -> nn.Module:
    """A deep copy of the model with shuffled weights, in evaluation mode.

    The model itself and global randomness are untouched. Weights shared between modules stay shared; integer buffers
    and single numbers stay as they are.

    Args:
        model: left as it is.
        extent: what is shuffled.
        seed: of the private random generator.
        is_late: only the later half of the weight tensors, in the order in which the modules were made; the first
            layers keep what they learned.

    Raises:
        ExplainError: where the model cannot be copied.
    """
    random = np.random.default_rng(seed)
    # A copy made in the caller's inference mode could never be differentiated.
    with torch.inference_mode(False), torch.no_grad():
        other = deep_copy(unwrap(model)).eval().requires_grad_(False)
        kept = _first_modules(other) if is_late else set()
        for name, tensor in [*other.named_parameters(), *other.named_buffers()]:
            if not tensor.is_floating_point() or tensor.numel() < 2 or name.rpartition(".")[0] in kept:
                continue
            if extent == "all":
                _refill(tensor, random.permuted(_flat(tensor)))
            elif _rows(tensor) > 1:
                _refill(tensor, random.permuted(_flat(tensor).reshape(_rows(tensor), -1), axis=1))
    return other


def _first_modules(model: nn.Module) -> set[str]:
    """Paths of the modules that hold the first half of the parameters; their buffers stay with them."""
    names = [name for name, _ in model.named_parameters()]
    return {name.rpartition(".")[0] for name in names[: len(names) // 2]}


def _rows(tensor: Tensor) -> int:
    """Rows of a weight: its output channels, of a transposed convolution its input channels.

    1 for vectors and for what has a single row, which ``rows`` leaves alone.
    """
    return tensor.shape[0] if tensor.ndim > 1 and tensor.numel() > tensor.shape[0] else 1


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().flatten().cpu().numpy()


def _refill(tensor: Tensor, values: np.ndarray) -> None:
    tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)).reshape(tensor.shape).to(tensor))
