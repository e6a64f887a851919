"""From repeated measurements to a verdict: intervals of differences between arms, never single numbers.

Trials of one seed share their initial numbers, their order of pictures and their augmentation, so arms are compared
seed by seed: the interval is Student's, of the mean difference (of logarithms where a ratio is asked for). A share
lies between 0 and 1, and so does its interval: Student's, of the angle whose squared sine it is, which evens out the
spread of shares near the ends. A difference of two shares is cut at what it can be; times get the interval of their
logarithms, around the geometric mean. Values of single pictures are
another matter: hits get Wilson's interval (Wilson 1927), other figures a bootstrap over the pictures (Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtrit

Status = Literal["holds", "does not hold here", "undecided"]
Form = Literal["percent", "points", "number", "ratio"]
"""Of figures: shares, differences of shares, plain numbers, ratios."""

LEVEL = 0.95
"""Level of all intervals."""

FEWEST = 3
"""Pairs of values below which nothing is decided."""

RESAMPLES = 2000
"""Of a bootstrap."""


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
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(count)
    return Interval(mean, mean - reach, mean + reach, count)


def share_interval(values: Sequence[float]) -> Interval:
    """The interval of a mean share, in [0, 1]: Student's of the angles arcsin √p, which spread alike for every p.

    Values that are NaN are left out; where one is no share, it is Student's of the values themselves.
    """
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2 or not all(0 <= value <= 1 for value in known):
        return interval(known)
    angles = interval([math.asin(math.sqrt(value)) for value in known])
    low, high = (math.sin(min(max(end, 0.0), math.pi / 2)) ** 2 for end in (angles.low, angles.high))
    mean = math.fsum(known) / len(known)
    return Interval(mean, min(low, mean), max(high, mean), len(known))


def positive_interval(values: Sequence[float]) -> Interval:
    """The interval of the geometric mean of values above 0, such as times: Student's of the logarithms.

    A machine that does other work now and then makes some times far longer, and none shorter than the work itself.
    Values that are NaN are left out; where one is not above 0, it is Student's of the values themselves.
    """
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2 or min(known) <= 0:
        return interval(known)
    logs = interval([math.log(value) for value in known])
    return Interval(_exp(logs.mean), _exp(logs.low), _exp(logs.high), logs.count)


def hit_interval(values: Sequence[float]) -> Interval:
    """Wilson's score interval of the share of hits; each value is one try, 1 or 0, or between for a tie."""
    known = [value for value in values if math.isfinite(value)]
    count = len(known)
    if not count:
        return Interval(math.nan, -math.inf, math.inf, 0)
    mean, z = math.fsum(known) / count, float(ndtri((1 + LEVEL) / 2))
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return Interval(mean, max(centre - reach, 0.0), min(centre + reach, 1.0), count)


def picture_interval(values: Sequence[float]) -> Interval:
    """The bootstrap interval of a mean over pictures, which never leaves the range of the values."""
    known = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    if len(known) < 2:
        return interval(known.tolist())
    drawn = np.random.default_rng(0).integers(len(known), size=(RESAMPLES, len(known)))
    low, high = np.quantile(known[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(known.mean()), float(low), float(high), len(known))


def more(
    what: str, higher: Sequence[float], lower: Sequence[float], *, by: float = 0.0, form: Form = "percent"
) -> Finding:
    """Whether one arm's figure lies more than ``by`` above another's.

    Args:
        what: the part of the claim.
        higher: values of the arm that is said to be higher, by seed.
        lower: of the other, in the same order.
        by: by how much.
        form: what the figures are.
    """
    found = _difference(higher, lower, form)
    status: Status = "holds" if found.low > by else "does not hold here" if found.high <= by else "undecided"
    return _finding(what, status, found, form, f"difference {_signed(found, form)}")


def same(
    what: str, first: Sequence[float], second: Sequence[float], *, within: float, form: Form = "percent"
) -> Finding:
    """Whether two arms differ by less than ``within``: the interval of the difference lies inside, or outside."""
    found = _difference(first, second, form)
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
    found = share_interval(values) if form == "percent" else interval(values)
    found = _cut(found, 1.0) if form == "points" else found
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


def told_interval(found: Interval, form: Form | Literal["count", "time"] = "number") -> str:
    """A mean with its interval, for people."""
    if not found.count:
        return "–"
    if form == "count":
        around = "" if found.mean == found.low else f" ± {found.high - found.mean:,.0f}"
        return f"{found.mean:,.0f}{around}"
    if not math.isfinite(found.high):
        return f"{_one(found.mean, form)} (one value)"
    if found.low == found.high:
        return _one(found.mean, form)
    return f"{_one(found.mean, form)} ({_one(found.low, form)} to {_one(found.high, form)})"


def _difference(higher: Sequence[float], lower: Sequence[float], form: Form) -> Interval:
    """Of a mean difference; of shares it is at most 1, of differences of shares at most 2."""
    found = interval([a - b for a, b in zip(higher, lower, strict=True)])
    are_shares = all(0 <= value <= 1 for value in (*higher, *lower) if math.isfinite(value))
    if form == "percent" and are_shares:
        return _cut(found, 1.0)
    return _cut(found, 2.0) if form == "points" else found


def _cut(found: Interval, most: float) -> Interval:
    """An interval cut at the values that are possible; one that is unknown stays so."""
    if not math.isfinite(found.low):
        return found
    return Interval(found.mean, max(found.low, -most), min(found.high, most), found.count)


def _finding(what: str, status: Status, found: Interval, form: Form, told: str) -> Finding:
    if found.count < FEWEST:
        return Finding(what, "undecided", f"only {found.count} pairs of values, {FEWEST} are needed")
    return Finding(what, status, told)


def _signed(found: Interval, form: Form) -> str:
    return f"{_one(found.mean, form, '+')} ({_one(found.low, form, '+')} to {_one(found.high, form, '+')})"


def _one(value: float, form: Form | Literal["time"], sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} %" if form in ("percent", "points") else f"{value:{sign}.3g}"


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
