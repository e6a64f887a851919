"""Which modules learn, and in which mode they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from saccade.errors import UnknownNameError


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Stop the parameters of the named submodules from learning.

    Raises:
        UnknownNameError: with the nearest submodule.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise UnknownNameError("submodule", name, [known for known in modules if known], where="freeze")
        modules[name].requires_grad_(False)


def train_mode(model: nn.Module, frozen: Sequence[str]) -> None:
    """Training mode, but evaluation mode for what is frozen, so that its running statistics do not move either."""
    model.train()
    for name in frozen:
        model.get_submodule(name).eval()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; the mode of every single module is restored, frozen ones included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
