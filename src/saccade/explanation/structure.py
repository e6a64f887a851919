"""Whether the weights of a model show that anything was learned; no picture is needed to tell.

Random weights are independent draws: the rows of a weight matrix correlate by chance only, whatever the initialiser
was, and the sum of their squared correlations is known with its spread (Schott 2005, Biometrika 92, "Testing for
complete independence in high dimensions"; the sum is that of the fourth powers of the singular values, whose limits for
random matrices are those of Marchenko and Pastur 1967). Training makes rows alike, and the sum leaves those limits by
tens of spreads after some hundred steps. Rows that were shuffled, each within itself, are independent again.

R rows (output channels; input channels of a transposed convolution) · C columns
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from saccade.explanation.record import exact

LEAST = 8
"""Rows and columns below which a matrix says nothing: the limits hold for large ones."""

MOST_ROWS = 512
"""Rows that are compared, evenly spread; more would only cost time."""

FEWEST = 3
"""Matrices below which they say too little together."""

BOUNDS = (-3.0, 6.0)
"""What one matrix may count, in spreads: neither rows that are orthogonal by design nor one filter that somebody set by
hand may decide for all."""


def structure(model: nn.Module) -> float | None:
    """How far the weight matrices of a model together lie above random ones, in spreads.

    Biases, norms, embeddings of one row and what has fewer than eight rows or columns do not count, nor do weights that
    are all zero or not finite.

    Returns:
        The sum of what each matrix lies above chance over the root of their number (Stouffer's rule), about normal with
        mean 0 and spread 1 for random weights; None where there are fewer than three such matrices.
    """
    found = [excess for excess in map(row_excess, model.parameters()) if excess is not None]
    if len(found) < FEWEST:
        return None
    low, high = BOUNDS
    return sum(min(max(excess, low), high) for excess in found) / math.sqrt(len(found))


@exact()
def row_excess(weight: Tensor) -> float | None:
    """How far the squared correlations of the rows lie above what independent rows have, in spreads.

    Args:
        weight: output channels first, of a transposed convolution input channels; everything behind them is one row.

    Returns:
        About normal with mean 0 and spread 1 for independent draws; None where the matrix is too small to tell.
    """
    if weight.ndim < 2 or not weight.is_floating_point() or not weight.numel():
        return None
    with torch.no_grad():
        rows = weight.detach().flatten(1)
        rows = rows[:: -(-len(rows) // MOST_ROWS)].float()
        rows = rows - rows.mean(dim=1, keepdim=True)
        lengths = rows.norm(dim=1)
        rows = rows[(lengths > 0) & lengths.isfinite()]
        count, free = len(rows), rows.shape[1] - 1
        if min(count, free + 1) < LEAST:
            return None
        rows = rows / rows.norm(dim=1, keepdim=True)
        # The diagonal of the correlations is 1; each pair stands on both sides of it.
        total = (float((rows @ rows.T).double().square().sum()) - count) / 2
    pairs = count * (count - 1) / 2
    spread = math.sqrt(2 * pairs * (free - 1) / (free + 2)) / free
    return (total - pairs / free) / spread
