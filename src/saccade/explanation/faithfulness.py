"""Measures of an explanation, as pure functions: does hiding what the map calls important change the score?

Deletion and insertion: Petsiuk et al. 2018, arXiv 1806.07421. Pointing game: Zhang et al. 2016, arXiv 1608.00507.
Energy inside a mask: Wang et al. 2020, arXiv 1910.01279. Rank similarity under randomised weights: Adebayo et al. 2018,
arXiv 1810.03292. Differs from the papers: deletion and insertion use one and the same baseline, so a map without
information scores the same in both; the axis of a curve is the real share of cells; ties are broken at random, several
times, mirrored between the two curves.

N places (pixels or cells) · S orders · P points of a curve · M masks
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError

Evaluate = Callable[[Tensor], Tensor]
"""Scores ``[M]`` of keep masks ``[M, N]`` (True: the place is shown, False: it shows the baseline)."""


@dataclass(frozen=True, eq=False)
class Curve:
    """How a score goes as places are hidden (deletion) or revealed (insertion).

    Attributes:
        fractions: ``[P]`` real share of the places hidden or revealed, from 0 to 1.
        scores: ``[P]`` mean score over the orders.
    """

    fractions: Tensor
    scores: Tensor

    @property
    def area(self) -> float:
        """Area under the curve by the trapezoid rule, both ends included."""
        return float(torch.trapezoid(self.scores.double(), self.fractions.double()))


def counts_of(num_places: int, steps: int) -> list[int]:
    """How many places are changed at each point of a curve: 0 to all, in at most ``steps`` even steps."""
    steps = min(steps, num_places)
    return sorted({round(step * num_places / steps) for step in range(steps + 1)})


def orders(values: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Places from most to least important, ``[S, N]``, with ties broken at random.

    Args:
        values: ``[N]`` signed importance.
        samples: number of random orders; one only where nothing is tied, all of them where there are no more than that.
        generator: private source of randomness.
    """
    flat = values.detach().flatten().double().cpu()
    groups = [torch.nonzero(flat == value)[:, 0] for value in torch.unique(flat).flip(0)]
    number = math.prod(min(math.factorial(min(len(group), 12)), samples + 1) for group in groups)
    if number <= samples:
        rows: list[list[int]] = [[]]
        for group in groups:
            rows = [[*row, *tail] for row in rows for tail in _permutations(group.tolist())]
        return torch.tensor(rows)
    shuffled = [
        torch.cat([group[torch.randperm(len(group), generator=generator)] for group in groups]) for _ in range(samples)
    ]
    return torch.stack(shuffled)


def mirrored_ties(order: Tensor, values: Tensor) -> Tensor:
    """The orders ``[S, N]`` with every run of equal values reversed: the order that insertion uses.

    Hiding by one order and revealing by the other shows complementary pictures, so a map without information (all
    tied) gets exactly the same area in deletion as in insertion.
    """
    flat = values.detach().flatten().double().cpu()
    mirrored = order.flip(-1)
    back = torch.sort(flat[mirrored], dim=-1, descending=True, stable=True).indices
    return mirrored.gather(-1, back)


def keep_masks(order: Tensor, counts: list[int], *, is_deletion: bool) -> Tensor:
    """Keep masks ``[S, P, N]`` bool that hide (deletion) or reveal (insertion) the first places of each order."""
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).expand_as(order))
    first = rank[:, None, :] < torch.tensor(counts)[:, None]
    return ~first if is_deletion else first


def deletion(
    evaluate: Evaluate, values: Tensor, *, steps: int, samples: int = 8, generator: torch.Generator | None = None
) -> Curve:
    """The score as the most important places are hidden first; a faithful map makes it fall early (small area)."""
    generator = generator or torch.Generator().manual_seed(0)
    order = orders(values, samples, generator)
    return _curve(evaluate, order, steps, is_deletion=True)


def insertion(
    evaluate: Evaluate, values: Tensor, *, steps: int, samples: int = 8, generator: torch.Generator | None = None
) -> Curve:
    """The score as the most important places are revealed first; a faithful map makes it rise early (large area)."""
    generator = generator or torch.Generator().manual_seed(0)
    order = mirrored_ties(orders(values, samples, generator), values)
    return _curve(evaluate, order, steps, is_deletion=False)


def random_control(
    evaluate: Evaluate, num_places: int, *, steps: int, samples: int, generator: torch.Generator
) -> Curve:
    """The deletion curve of random orders, their mean; in expectation its area is that of random insertion too."""
    shuffled = torch.stack([torch.randperm(num_places, generator=generator) for _ in range(samples)])
    return _curve(evaluate, shuffled, steps, is_deletion=True)


def centre_map(size: tuple[int, int]) -> Tensor:
    """The control map that knows only that photographers aim: a Gaussian at the centre, a quarter of the sides wide."""
    # From integers, so that mirrored places tie exactly.
    rows, columns = ((2 * torch.arange(side) + 1 - side) / (2 * side) for side in size)
    return torch.exp(-(rows[:, None].square() + columns[None, :].square()) / (2 * 0.25**2))


def edge_map(pixels: Tensor) -> Tensor:
    """The control map that knows only the picture: strength of the edges of ``[..., C, H, W]``, ``[..., H, W]``."""
    grey = pixels.float().mean(-3, keepdim=True)
    padded = F.pad(grey.flatten(0, -4) if grey.ndim > 3 else grey[None], (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return (across.square() + down.square()).sqrt().reshape(*pixels.shape[:-3], *pixels.shape[-2:])


def pointing_hit(values: Tensor, region: Tensor, *, tolerance: int = 0) -> float:
    """The pointing game: does the maximum lie in the region? 1 or 0; ties count by their share; a blank map is a miss.

    Args:
        values: ``[h, w]``.
        region: ``[h, w]`` bool, the object.
        tolerance: pixels around the object that still count (15 in the paper).

    Raises:
        InputError: where the region is empty, so that there is nothing to hit, or of another size.
    """
    _check_region(values, region)
    peak = values == values.max()
    if not bool(torch.isfinite(values).all()) or float(values.max()) <= 0 or bool(peak.all()):
        return 0.0
    if tolerance:
        rows, columns = (torch.arange(-tolerance, tolerance + 1).square() for _ in range(2))
        disc = (rows[:, None] + columns[None, :] <= tolerance**2).float()[None, None]
        region = F.conv2d(region[None, None].float(), disc.to(region.device), padding=tolerance)[0, 0] > 0
    return float((peak & region).sum() / peak.sum())


def energy_inside(values: Tensor, region: Tensor) -> tuple[float, float]:
    """Share of the positive evidence that lies in a region, and the region's share of the area (what chance gives).

    A map without positive evidence has no share inside: 0.

    Raises:
        InputError: where the region is empty or of another size.
    """
    _check_region(values, region)
    positive = values.clamp(min=0).double()
    total = float(positive.sum())
    inside = float(positive[region.bool()].sum()) / total if total > 0 else 0.0
    return inside, float(region.double().mean())


def negative_share(values: Tensor) -> float:
    """Share of the evidence, by absolute size, that speaks against the score; 0 for a blank map."""
    return float(negative_shares(values.reshape(1, -1)))


def negative_shares(values: Tensor) -> Tensor:
    """The same of each of several maps, ``[..., h, w] -> [...]``."""
    values = values.double()
    total = values.abs().sum(dim=(-2, -1))
    against = values.clamp_max(0).abs().sum(dim=(-2, -1))
    return (against / total.clamp_min(torch.finfo(total.dtype).tiny)).float()


def rank_similarity(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two maps (ties share their mean rank).

    0 where one of them is constant; NaN where one holds a number that is not finite, which has no rank.
    """
    if not bool(first.isfinite().all()) or not bool(second.isfinite().all()):
        return math.nan
    ranks = [_ranks(m.detach().flatten()) for m in (first, second)]
    centred = [r - r.mean() for r in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum()) * float((centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / scale if scale > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Places ``[N]`` float64 of values ``[N]`` in ascending order, equal ones at the mean of theirs."""
    found: tuple[Tensor, Tensor, Tensor] = torch.unique(values, return_inverse=True, return_counts=True)
    _, which, counts = found
    return (counts.cumsum(0).double() - (counts - 1) / 2)[which]


def structural_similarity(first: Tensor, second: Tensor, *, window: int = 7) -> float:
    """Mean SSIM of two maps ``[h, w]``, each divided by its largest absolute value (Wang et al. 2004, flat window)."""
    maps = []
    for m in (first, second):
        flat = m.detach().double()
        maps.append((flat / flat.abs().max().clamp(min=1e-30))[None, None])
    window = min(window, *first.shape[-2:])
    a, b = maps

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, window, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    cov = mean(a * b) - mean_a * mean_b
    # Maps lie in [-1, 1]: a dynamic range of 2 in the paper's constants (0.01 L)^2 and (0.03 L)^2.
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(ssim.mean())


def _curve(evaluate: Evaluate, order: Tensor, steps: int, *, is_deletion: bool) -> Curve:
    counts = counts_of(order.shape[-1], steps)
    masks = keep_masks(order, counts, is_deletion=is_deletion)
    scores = evaluate(masks.flatten(0, 1)).reshape(masks.shape[:2]).mean(0)
    return Curve(torch.tensor(counts, dtype=torch.float64) / order.shape[-1], scores)


def _permutations(items: list[int]) -> list[list[int]]:
    if len(items) <= 1:
        return [items]
    return [[item, *rest] for i, item in enumerate(items) for rest in _permutations(items[:i] + items[i + 1 :])]


def _check_region(values: Tensor, region: Tensor) -> None:
    if values.shape != region.shape:
        raise InputError(f"the map is {tuple(values.shape)}, the region {tuple(region.shape)}", expected="one size")
    if not bool(region.any()):
        raise InputError("the region is empty", expected="at least one pixel of the object")
