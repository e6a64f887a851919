"""Norm before the branches against norm after the sums: which trainings survive without warm-up."""

from __future__ import annotations

from saccade.studies import norms
from saccade.studies.base import Column, Plot, Results, Spend, Study
from saccade.studies.intervals import Finding, more
from saccade.studies.norms import DEPTHS, arms, failures, measure
from saccade.studies.setups import clothes


def judge(results: Results) -> list[Finding]:
    """More failures with post-norm, and most of the difference in deep networks."""
    shallow, deep = DEPTHS
    post, pre = failures(results, "post"), failures(results, "pre")
    gaps = {
        depth: [a - b for a, b in zip(*(failures(results, k, [depth]) for k in ("post", "pre")), strict=True)]
        for depth in DEPTHS
    }
    return [
        more("pre-norm breaks or stalls in fewer runs than post-norm", post, pre),
        more(
            f"the advantage is larger with {deep} blocks than with {shallow}", gaps[deep], gaps[shallow], form="points"
        ),
    ]


STUDY = Study(
    name="norm-position",
    claim="By placing the layer normalization before the self-attention and MLP ... more stable training and better "
    "performance for very deep networks",
    place="Optimizations and Tweaks: Layer Normalization",
    method="Transformers with the norm before each branch or after each sum are trained without warm-up and without "
    "clipping, over two depths and three learning rates. A run fails where its loss is not finite or ends above 0.9 "
    "times that of guessing. Refuted if post-norm does not fail more often, or not more so in deeper networks.",
    arms=arms({"pre": {"backbone.norm_position": "pre"}, "post": {"backbone.norm_position": "post"}}),
    spend=Spend(unit="images", smoke=50, quick=1500, full=10_000),
    data=clothes,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="failed", heading="share of runs that fail", form="percent", is_drawn=True),
        Column(key="loss", heading="last loss"),
        Column(key="accuracy", heading="accuracy", form="percent"),
        Column(key="imbalance", heading="gradient at the start, last over first block, log"),
    ),
    plots=(Plot(series="gradient", title="Gradient at the start", across="block", up="norm"),),
    source=__file__,
    shared=(norms.__file__,),
)
