"""The rules of the verdict, as pure functions: measured figures in, status and reasons out.

Nothing is measured here and no model is known. The lines stand in one object, ``Lines``; ``docs/verdict.md`` tells
where each comes from, and ``benchmarks/verdict_calibration.py`` how often the rules are right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from saccade.config import Config

Status = Literal["supported", "weak", "failed"]

Figures = Mapping[str, float]
"""What was measured of one map, by name; what could not be measured is missing."""

NEEDED = (
    "score_range",
    "deletion",
    "insertion",
    "deletion_random",
    "advantage",
    "advantage_chance",
    "advantage_centre",
)
"""Figures without which nothing can be said."""

EVEN = 0.8
"""A map whose lowest value is more than this share of its highest looks like one flat colour; that is remarked on."""


@dataclass(frozen=True, kw_only=True)
class Lines(Config):
    """Where the lines are drawn."""

    min_structure: float = 4.0
    """How far the weight matrices lie above random ones, in spreads; less is "failed": nothing was learned."""
    min_response: float = 3.0
    """Where the weights tell nothing (few or small matrices): the model's answer to the picture over that of its
    shuffled copies; less is "failed"."""
    min_over_chance: float = 0.5
    """An advantage that is less than this many times what random orders get (root mean square) is "failed"."""
    min_region_advantage: float = 0.1
    """Of a question about a region: an advantage below this is "failed"; pointing at the region gets far more."""
    max_similarity: float = 0.9
    """Rank similarity with the maps of shuffled copies; more is "failed"."""
    max_late: float = 0.5
    """Rank similarity with the maps of copies of which only the later half is shuffled; more is "failed" where the
    plain gradient changes more than the map."""
    late_margin: float = 0.05
    """How much more alike than the plain gradient a map has to stay for that."""
    weak_over_chance: float = 2.0
    """An advantage that is less than this many times what random orders get is "weak"."""
    weak_advantage: float = 0.1
    """Area between insertion and deletion over the range of the score (0 by chance); less is "weak"."""
    centre_margin: float = 0.1
    """An advantage further than this below that of a blob at the centre is "weak"."""
    weak_similarity: float = 0.7
    """A similarity above this is "weak"."""
    weak_error: float = 0.5
    """A relative completeness gap or Monte-Carlo error above this is "weak"."""


class Ruling(NamedTuple):
    """What follows from the figures.

    Attributes:
        status: "supported", "weak" or "failed".
        reasons: one sentence each, the gravest first; at least one.
    """

    status: Status
    reasons: tuple[str, ...]


def rule(figures: Figures, lines: Lines, *, is_class_agnostic: bool = False) -> Ruling:
    """The verdict on a map that can be read.

    Args:
        figures: those of ``NEEDED`` at least; see ``Verdict``. A number that is not finite was not measured.
        lines: where the lines are drawn.
        is_class_agnostic: whether the method ignores what was asked.
    """
    is_error_unknown = not math.isfinite(figures.get("error", 0.0))
    figures = measured(figures)
    # No comparison with a number that is none is ever true, so no line below would find it out.
    if any(name not in figures for name in NEEDED):
        return Ruling("failed", ("the score is not a number where parts of the picture are hidden",))
    failures = [*_of_the_model(figures, lines), *_of_the_map(figures, lines)]
    doubts = [*_of_the_method(is_class_agnostic), *_doubts(figures, lines)]
    if is_error_unknown:
        doubts.append("the method cannot tell its own error")
    remarks = _remarks(figures)
    if failures:
        return Ruling("failed", (*failures, *doubts, *remarks))
    if doubts:
        return Ruling("weak", (*doubts, *remarks))
    praise = f"hiding what it points at moves the score {figures['advantage']:.2f} of its range more than chance"
    return Ruling("supported", (praise, *remarks))


def measured(figures: Figures) -> dict[str, float]:
    """The figures that are finite numbers."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def has_learned(figures: Figures, lines: Lines) -> bool:
    """Whether anything shows that the model was trained: its weights, or how strongly it answers to the picture.

    Where the weights tell they decide. Elsewhere (few or small matrices, numbers of eight bits) the answers do, and a
    model of which neither could be measured gets the benefit of the doubt.
    """
    if "structure" in figures:
        return figures["structure"] >= lines.min_structure
    return figures.get("response_ratio", lines.min_response) >= lines.min_response


def _of_the_model(figures: Figures, lines: Lines) -> list[str]:
    found = []
    if figures["score_range"] == 0:
        found.append("the score is the same whatever is hidden")
    elif not has_learned(figures, lines):
        if "structure" in figures:
            sign = "its weights look like random numbers"
        else:
            ratio = figures["response_ratio"]
            sign = f"it answers to this picture only {ratio:.1f} times as strongly as its copies with shuffled weights"
        found.append(f"the model cannot be told from one that has learned nothing: {sign}")
    return found


def _of_the_map(figures: Figures, lines: Lines) -> list[str]:
    found = []
    advantage, chance = figures["advantage"], figures["advantage_chance"]
    # Where hiding changes nothing, chance gets nothing either.
    if advantage < lines.min_over_chance * chance or advantage <= 0:
        found.append(
            "hiding what the map points at changes the score no more than hiding at random"
            f" (advantage {advantage:.2f} of its range, random orders {chance:.2f} either way)"
        )
    elif advantage < lines.min_region_advantage and "advantage_region" in figures:
        found.append(
            f"insertion beats deletion by only {advantage:.2f} of the range of the score; merely pointing "
            f"at the region gets {figures['advantage_region']:.2f}"
        )
    if similarity(figures) > lines.max_similarity:
        found.append("the map stays the same when the weights are shuffled, so it does not show what the model learned")
    late, usual = figures.get("similarity_late", 0.0), figures.get("similarity_late_gradient", 1.0)
    if late > max(lines.max_late, usual + lines.late_margin):
        found.append(
            f"the map stays alike when the later half of the weights is shuffled (rank correlation {late:.2f}, of the"
            f" plain gradient {usual:.2f}): it shows what the first layers see, not what the score depends on"
        )
    return found


def _of_the_method(is_class_agnostic: bool) -> list[str]:
    return ["the method ignores what was asked: its map is the same for every class"] if is_class_agnostic else []


def _doubts(figures: Figures, lines: Lines) -> list[str]:
    found = []
    if figures["advantage"] < lines.weak_advantage:
        found.append(f"insertion beats deletion by only {figures['advantage']:.2f} of the range of the score")
    elif figures["advantage"] < lines.weak_over_chance * figures["advantage_chance"]:
        found.append(
            f"insertion beats deletion by {figures['advantage']:.2f} of the range of the score, and random orders get"
            f" {figures['advantage_chance']:.2f} either way"
        )
    if figures["advantage"] < figures["advantage_centre"] - lines.centre_margin:
        found.append(
            f"a blob at the centre of the picture does better ({figures['advantage_centre']:.2f} of the range of the"
            f" score, the map {figures['advantage']:.2f})"
        )
    if similarity(figures) > lines.weak_similarity:
        found.append(f"the map is much like that of shuffled weights (rank correlation {similarity(figures):.2f})")
    if figures.get("error", 0.0) > lines.weak_error:
        found.append(f"the method's own error is {figures['error']:.0%} of the map")
    return found


def similarity(figures: Figures) -> float:
    """With the maps of shuffled copies, signed or not, whichever is larger; 0 where it was not measured."""
    return max(figures.get("similarity", 0.0), figures.get("similarity_abs", 0.0))


def _remarks(figures: Figures) -> list[str]:
    """Worth knowing, no reason for doubt: photographers aim, and scattered holes spoil a picture more than one gap."""
    found = []
    if figures.get("evenness", 0.0) > EVEN:
        found.append(f"the map is almost even: its lowest value is {figures['evenness']:.0%} of its highest")
    if figures["advantage"] <= figures.get("advantage_region", -1.0) + 0.05:
        told = f"{figures['advantage_region']:.2f} of the range"
        found.append(f"pointing at the region itself does as well ({told}): the model decides by what is inside of it")
    if 0 < figures["advantage"] <= figures["advantage_centre"]:
        found.append("a blob at the centre of the picture would have found it too")
    if figures["deletion"] >= figures["deletion_random"]:
        found.append("hiding scattered cells lowers the score as fast as hiding the strongest places")
    if figures["insertion"] <= figures["deletion_random"]:
        found.append("showing scattered cells raises the score as fast as showing the strongest places")
    return found
