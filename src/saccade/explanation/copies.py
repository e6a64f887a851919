"""Deep copies of models, also of those that keep an activation on themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saccade.errors import ExplainError


def deep_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model; tensors that were computed become constants of it.

    torch refuses to copy a tensor with a history (``self.last = features``, the weight of ``weight_norm``), because a
    copy could not be differentiated through it. Nobody will do that here.

    Raises:
        ExplainError: where something that a module holds cannot be copied, naming the module.
    """
    try:
        with _Constants():
            return copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:  # locks, files, processes, ...
        path, what = _uncopied(model)
        raise ExplainError(
            f"this module holds something that cannot be copied: {what or error}",
            where=f"module {path!r}" if path else type(model).__name__,
            remedy="leave the verdict out, which compares with copies: verdict=False",
        ) from error


class _Constants(TorchFunctionMode):
    """Tensors with a history are copied without it, wherever they are kept."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]


def _uncopied(model: nn.Module) -> tuple[str, str | None]:
    """Path of the first module that holds what cannot be copied, and a sentence about it; ``("", None)``: not found."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                with _Constants():
                    copy.deepcopy(value)
            except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
                return path, f"{name!r} ({error})"
    return "", None
