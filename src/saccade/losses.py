"""Losses as pure functions: tensors in, one scalar out.

Cross-entropy with soft labels as in Szegedy et al. 2015, arXiv 1512.00567. Load balance: Fedus et al. 2021, arXiv
2101.03961, equation 4. Router z: Zoph et al. 2022, arXiv 2202.08906, equation 5.

B batch · K classes · S tokens · E experts
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy ``[]`` of logits ``[B, K]``, in float32.

    Args:
        logits: ``[B, K]``.
        labels: ``[B]`` int64, or ``[B, K]`` probabilities.

    Raises:
        InputError: where a label is no class of the model. Checked on the CPU only; an accelerator would have to wait.
    """
    if labels.ndim == 1 and not labels.is_cuda and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise InputError(
                f"label {low if low < 0 else high} is no class of this model",
                expected=f"0 to {logits.shape[1] - 1}",
                remedy="create the model with the classes of the data set",
            )
    if labels.ndim == 2 and labels.shape != logits.shape:
        raise InputError(f"soft labels have shape {tuple(labels.shape)}", expected=f"{tuple(logits.shape)}")
    return F.cross_entropy(logits.float(), labels.float() if labels.ndim == 2 else labels)


def load_balance(probabilities: Tensor, load: Tensor) -> Tensor:
    """Load-balance loss ``[]`` of one router: E times the dot product of use and probability; 1 where both are uniform.

    Args:
        probabilities: ``[S, E]`` softmax of the router.
        load: ``[E]`` share of assignments each expert was given; sums to 1.
    """
    return load.shape[0] * (load * probabilities.mean(dim=0)).sum()


def router_z(logits: Tensor) -> Tensor:
    """Router-z loss ``[]``: the mean square of the log-partition of logits ``[S, E]``, which keeps them small."""
    return logits.logsumexp(dim=-1).square().mean()
