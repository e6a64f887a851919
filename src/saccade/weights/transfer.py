"""Weights into a model that differs where it may: other classes, another canvas, a head of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.errors import WeightsError
from saccade.nn.embed import resample
from saccade.weights.published import State


@dataclass(frozen=True)
class TransferReport:
    """What became of every tensor.

    Attributes:
        taken: names in the model that now hold the given weights.
        resampled: those of ``taken`` whose position table was laid over another grid.
        fresh: names in the model that kept their random values.
        left: names in the weights that the model has no place for.
    """

    taken: tuple[str, ...]
    resampled: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} tensors taken"]
        for word, names in (("resampled", self.resampled), ("left fresh", self.fresh), ("not used", self.left)):
            if names:
                shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                parts.append(f"{len(names)} {word} ({shown})")
        return "; ".join(parts)


def load_matching(model: nn.Module, state: State, *, takes_head: bool = True) -> TransferReport:
    """Load weights under our names; the whole backbone must fit, what follows it may differ and then stays fresh.

    A class token, registers and layers behind the last stage that the model lacks are left out, and a learned position
    table of another grid is resampled. Nothing is changed when an error is raised.

    Args:
        model: whose backbone is called ``backbone``; of a model without one, all but the head must fit.
        state: from a converter of this package.
        takes_head: whether to take what is called ``head`` where its shape fits; say no where the classes are others.

    Raises:
        WeightsError: naming the first tensor that does not fit.
    """
    ours = model.state_dict()
    plan: dict[str, Tensor] = {}
    resampled, fresh = [], []
    has_backbone = any(name.startswith("backbone.") for name in ours)
    for name, tensor in ours.items():
        given = state.get(name)
        is_needed = name.startswith("backbone.") if has_backbone else not _is_head(name)
        if given is not None and _is_other_grid(name, given, tensor):
            given = resample(given, (int(tensor.shape[1]), int(tensor.shape[2])))
            resampled.append(name)
        fits = given is not None and given.shape == tensor.shape
        if given is not None and fits and (takes_head or not _is_head(name)):
            plan[name] = given
        elif is_needed and not (given is None and name.endswith("num_batches_tracked")):
            raise _misfit(name, tensor, given)
        else:
            fresh.append(name)
    left = [name for name in state if name not in plan]
    spared = {"class_token", "registers", *getattr(getattr(model, "backbone", None), "left_out", ())}
    for name in left:
        if name.startswith("backbone.") and name.removeprefix("backbone.") not in spared:
            raise WeightsError(
                f"the weights are of another architecture: the model has no {name!r}",
                expected=f"{len(ours)} tensors like the model's",
                remedy="create the model that these weights were trained in",
            )
    with torch.no_grad():
        for name, given in plan.items():
            ours[name].copy_(given)
    return TransferReport(tuple(plan), tuple(resampled), tuple(fresh), tuple(left))


def _is_head(name: str) -> bool:
    """Whether a tensor depends on the classes: the model's head, or that of an auxiliary branch."""
    return not name.startswith("backbone.") and "head" in name.split(".")


def _is_other_grid(name: str, given: Tensor, tensor: Tensor) -> bool:
    is_table = name.endswith("positions.table") and given.ndim == tensor.ndim == 4
    return is_table and given.shape[-1] == tensor.shape[-1] and given.shape != tensor.shape


def _misfit(name: str, tensor: Tensor, given: Tensor | None) -> WeightsError:
    found = "is missing" if given is None else f"has shape {tuple(given.shape)}"
    return WeightsError(
        f"the weights are of another architecture: {name!r} {found}",
        expected=f"shape {tuple(tensor.shape)}",
        remedy="create the model that these weights were trained in",
    )
