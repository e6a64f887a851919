"""From repeated measurements to a verdict: intervals of differences between arms, never single numbers.

Trials of one seed share their initial numbers, their order of pictures and their augmentation, so arms are compared
seed by seed: the interval is Student's, of the mean difference (of logarithms where a ratio is asked for).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

Status = Literal["holds", "does not hold here", "undecided"]
Form = Literal["percent", "number", "ratio"]

LEVEL = 0.95
"""Level of all intervals."""

FEWEST = 3
"""Pairs of values below which nothing is decided."""


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies.

    Attributes:
        mean: of the values.
        low: lower end; infinite where there are too few values.
        high: upper end.
        count: values that were defined.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Finding:
    """One part of a claim, decided or not.

    Attributes:
        what: the part, as a sentence.
        status: what the figures say.
        told: the figures.
    """

    what: str
    status: Status
    told: str


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean; values that are NaN are left out."""
    known = [value for value in values if math.isfinite(value)]
    count = len(known)
    if not count:
        return Interval(math.nan, -math.inf, math.inf, 0)
    mean = math.fsum(known) / count
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (count - 1))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - reach, mean + reach, count)


def more(
    what: str, higher: Sequence[float], lower: Sequence[float], *, by: float = 0.0, form: Form = "percent"
) -> Finding:
    """Whether one arm's figure lies more than ``by`` above another's.

    Args:
        what: the part of the claim.
        higher: values of the arm that is said to be higher, by seed.
        lower: of the other, in the same order.
        by: by how much.
        form: how the figures are written.
    """
    found = interval([a - b for a, b in zip(higher, lower, strict=True)])
    status: Status = "holds" if found.low > by else "does not hold here" if found.high <= by else "undecided"
    return _finding(what, status, found, form, f"difference {_signed(found, form)}")


def same(
    what: str, first: Sequence[float], second: Sequence[float], *, within: float, form: Form = "percent"
) -> Finding:
    """Whether two arms differ by less than ``within``: the interval of the difference lies inside, or outside."""
    found = interval([a - b for a, b in zip(first, second, strict=True)])
    if found.low > -within and found.high < within:
        status: Status = "holds"
    else:
        status = "does not hold here" if found.low >= within or found.high <= -within else "undecided"
    return _finding(what, status, found, form, f"difference {_signed(found, form)}, allowed {_one(within, form)}")


def times(what: str, larger: Sequence[float], smaller: Sequence[float], *, at_least: float = 1.0) -> Finding:
    """Whether one arm's figure is more than ``at_least`` times another's."""
    logs = [math.log(a) - math.log(b) if a > 0 and b > 0 else math.nan for a, b in zip(larger, smaller, strict=True)]
    found, line = interval(logs), math.log(at_least)
    status: Status = "holds" if found.low > line else "does not hold here" if found.high <= line else "undecided"
    mean, low, high = (_exp(value) for value in (found.mean, found.low, found.high))
    told = f"{mean:.3g} times ({low:.3g} to {high:.3g}), asked for more than {at_least:g}"
    return _finding(what, status, found, "ratio", told)


def above(what: str, values: Sequence[float], line: float, *, form: Form = "percent") -> Finding:
    """Whether a figure lies above a line."""
    found = interval(values)
    status: Status = "holds" if found.low > line else "does not hold here" if found.high <= line else "undecided"
    return _finding(what, status, found, form, f"{told_interval(found, form)}, line at {_one(line, form)}")


def exact(what: str, gaps: Sequence[float], tolerance: float) -> Finding:
    """Whether two computations agree in every trial, up to rounding."""
    known = [gap for gap in gaps if math.isfinite(gap)]
    largest = max(known, default=math.nan)
    is_equal = len(known) == len(gaps) and largest <= tolerance
    status: Status = "undecided" if not known else "holds" if is_equal else "does not hold here"
    return Finding(what, status, f"largest difference {largest:.2g}, allowed {tolerance:.0e}, in {len(known)} trials")


def overall(findings: Sequence[Finding]) -> Status:
    """A claim holds where all of its parts do, and does not where one of them does not."""
    found = {finding.status for finding in findings}
    if "does not hold here" in found:
        return "does not hold here"
    return "holds" if found == {"holds"} else "undecided"


def told_interval(found: Interval, form: Form | Literal["count"] = "number") -> str:
    """A mean with its interval, for people."""
    if not found.count:
        return "–"
    if form == "count":
        around = "" if found.mean == found.low else f" ± {found.high - found.mean:,.0f}"
        return f"{found.mean:,.0f}{around}"
    if not math.isfinite(found.low):
        return f"{_one(found.mean, form)} (one value)"
    if found.low == found.high:
        return _one(found.mean, form)
    return f"{_one(found.mean, form)} ({_one(found.low, form)} to {_one(found.high, form)})"


def _finding(what: str, status: Status, found: Interval, form: Form, told: str) -> Finding:
    if found.count < FEWEST:
        return Finding(what, "undecided", f"only {found.count} pairs of values, {FEWEST} are needed")
    return Finding(what, status, told)


def _signed(found: Interval, form: Form) -> str:
    return f"{_one(found.mean, form, '+')} ({_one(found.low, form, '+')} to {_one(found.high, form, '+')})"


def _one(value: float, form: Form, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} %" if form == "percent" else f"{value:{sign}.3g}"


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
