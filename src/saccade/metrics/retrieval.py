"""Figures of retrieval: exact ranks, ties by expectation, recall among the first k.

A query is answered by the best of its right answers. Where wrong answers score as much as it does, their order is
taken as drawn at random, so a model that scores everything alike gets exactly the recall of chance. Interval: the
bootstrap over pictures (Efron 1979) with Poisson weights instead of draws (Chamandy et al. 2012).

N queries · M candidates · P pictures
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EQUAL = 1e-6
"""Cosines that are closer than this count as equal: a product of float32 is no more exact than that."""


class Ranks(NamedTuple):
    """How the best right answer of each query stands.

    Attributes:
        above: ``[N]`` int64, wrong candidates with a higher score.
        tied: ``[N]`` int64, wrong candidates with the same score.
        right: ``[N]`` int64, right candidates with the same score, at least one.
    """

    above: Tensor
    tied: Tensor
    right: Tensor

    def recall(self, count: int) -> Tensor:
        """Chance of each query ``[N]`` float64 that one of the first ``count`` candidates is right."""
        drawn = (count - self.above).clamp(min=0).minimum(self.tied + self.right).double()
        tied, right = self.tied.double(), self.right.double()
        # None of the drawn is right: C(tied, drawn) / C(tied + right, drawn).
        left = (tied - drawn).clamp(min=0)
        log = torch.lgamma(tied + 1) - torch.lgamma(left + 1)
        log = log - torch.lgamma(tied + right + 1) + torch.lgamma(tied + right - drawn + 1)
        return torch.where(drawn > tied, 1.0, 1 - log.exp())

    def place(self) -> Tensor:
        """Expected place of the first right candidate ``[N]`` float64, from 1."""
        return self.above + (self.tied + self.right + 1).double() / (self.right + 1).double()


def rank(scores: Tensor, is_right: Tensor) -> Ranks:
    """Ranks of some queries.

    Args:
        scores: ``[N, M]``.
        is_right: ``[N, M]`` bool, at least one right candidate for each query.
    """
    best = scores.masked_fill(~is_right, -math.inf).amax(dim=1, keepdim=True)
    above = ((scores > best + EQUAL) & ~is_right).sum(dim=1)
    same = (scores - best).abs() <= EQUAL
    return Ranks(above, (same & ~is_right).sum(dim=1), (same & is_right).sum(dim=1))


def chance_recall(num_right: Tensor, num_candidates: int, count: int) -> float:
    """Recall of a model that scores everything alike, the mean over queries.

    Args:
        num_right: ``[N]`` int64, right candidates of each query.
        num_candidates: M.
        count: k.
    """
    ranks = Ranks(torch.zeros_like(num_right), num_candidates - num_right, num_right)
    return float(ranks.recall(count).mean())


def right_share(scores: Tensor, labels: Tensor) -> Tensor:
    """How right the likeliest class of each picture is ``[P]`` float64: 1, 0, or a share where classes tie.

    Args:
        scores: ``[P, K]``.
        labels: ``[P]`` int64.
    """
    is_best = scores >= scores.amax(dim=1, keepdim=True) - EQUAL
    return is_best.gather(1, labels[:, None])[:, 0].double() / is_best.sum(dim=1)


def bootstrap_ratio(
    sums: Tensor, counts: Tensor, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over things that come in groups, such as the texts of a picture.

    Resamples that drew no thing have no mean and are left out; the interval is NaN where that is all of them.

    Args:
        sums: ``[P]`` sum of the figure in each group.
        counts: ``[P]`` things in each group.
        resamples: number of bootstrap samples.
        seed: of the draws.
        level: share of the resampled figures inside the interval.
    """
    if not sums.numel():
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    figures = []
    at_once = max(1, (1 << 24) // sums.numel())
    for start in range(0, resamples, at_once):
        weights = generator.poisson(1.0, (min(at_once, resamples - start), sums.numel()))
        drawn = weights @ counts.double().numpy()
        figures.append((weights @ sums.double().numpy())[drawn > 0] / drawn[drawn > 0])
    means = np.concatenate(figures)
    if not means.size:
        return math.nan, math.nan
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
