"""RMSNorm against LayerNorm: a little more stable, and cheaper."""

from __future__ import annotations

from saccade.studies import norms
from saccade.studies.base import Column, Plot, Results, Spend, Study
from saccade.studies.intervals import Finding, more, times
from saccade.studies.norms import arms, failures, grid, measure
from saccade.studies.setups import clothes


def judge(results: Results) -> list[Finding]:
    """Fewer failures, lower losses where nothing fails, less time per step."""
    layer, rms = grid("layer"), grid("rms")
    return [
        more("RMSNorm breaks or stalls in fewer runs", failures(results, "layer"), failures(results, "rms")),
        more(
            "its loss ends lower over the same learning rates",
            results.mean(layer, "loss"),
            results.mean(rms, "loss"),
            form="number",
        ),
        times("a step takes less time", results.mean(layer, "step"), results.mean(rms, "step")),
    ]


STUDY = Study(
    name="norm-type",
    claim="RMS Norm ... has been empirically shown to make training a little bit more stable",
    place="Optimizations and Tweaks: Root Mean Squared Norm",
    method="The grid of the study norm-position, all with the norm before the branches, once with LayerNorm and once "
    "with RMSNorm. Refuted if runs with RMSNorm fail as often or more, end with a loss as high or higher, or if a step "
    "costs as much or more.",
    arms=arms({"layer": {"backbone.norm": "layer"}, "rms": {"backbone.norm": "rms"}}),
    spend=Spend(unit="images", smoke=50, quick=1500, full=10_000),
    data=clothes,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="failed", heading="share of runs that fail", form="percent", is_drawn=True),
        Column(key="loss", heading="last loss", is_drawn=True),
        Column(key="accuracy", heading="accuracy", form="percent"),
        Column(key="step", heading="ms per step of 50", form="time"),
    ),
    plots=(Plot(series="gradient", title="Gradient at the start", across="block", up="norm"),),
    source=__file__,
    shared=(norms.__file__,),
)
