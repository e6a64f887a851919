"""A mixture of experts against dense layers of equal operations and of equal parameters."""

from __future__ import annotations

from saccade import render
from saccade.explanation.routing import routing_maps
from saccade.studies.base import Arm, Column, Measured, Results, Shot, Spend, Study
from saccade.studies.intervals import Finding, more, times
from saccade.studies.setups import CLOTHES, clothes
from saccade.studies.trial import AnyModel, Trial, count_flops, count_parameters, seconds_per_picture

EXPERTS = 4


def measure(trial: Trial) -> Measured:
    """Accuracy after equally many pictures, size and cost; who saw what."""
    model = trial.build()
    trial.train(model)
    flops, tokens = count_flops(model), 49
    figures = {
        "accuracy": trial.evaluate(model).metrics["top1"] or 0.0,
        "parameters": count_parameters(model),
        "flops": flops / 1e6,
        "per_token": flops / tokens / 1e3,
        "us_per_token": 1e6 * seconds_per_picture(model, batch=32, repeats=trial.pick(1, 5, 9)) / tokens,
    }
    return Measured(figures=figures, shots=_routing(model, trial) if trial.draws and "moe" in trial.name else ())


def _routing(model: AnyModel, trial: Trial) -> list[Shot]:
    held = trial.data.split("test")
    shots = []
    for number in range(trial.pick(1, 2, 4)):
        routing = routing_maps(model, [held[number].image])[0]
        drawn = render.routing_map(routing.seen, routing.experts[-1], routing.num_experts, title="last routed layer")
        shots.append(Shot(png=render.to_png(drawn, dpi=80), caption="which expert took which patch"))
    return shots


def judge(results: Results) -> list[Finding]:
    """Capacity grows faster than cost, and it serves for something."""

    def of(arm: str, key: str) -> list[float]:
        return results.values(arm, key)

    def growth(key: str) -> list[float]:
        return [a / b for a, b in zip(of("moe", key), of("dense", key), strict=True)]

    return [
        times(
            "the experts have more parameters than one dense layer", of("moe", "parameters"), of("dense", "parameters")
        ),
        times("parameters grow more than operations", growth("parameters"), growth("flops"), at_least=1.5),
        times("parameters grow more than time per token", growth("parameters"), growth("us_per_token")),
        times(
            "a dense layer of as many parameters takes more time", of("wide", "us_per_token"), of("moe", "us_per_token")
        ),
        more("more accurate than the dense layer of equal operations", of("moe", "accuracy"), of("dense", "accuracy")),
    ]


def _arm(**overrides: object) -> Arm:
    return Arm(model="vit_pico_p4_28", overrides={k.replace("__", "."): v for k, v in overrides.items()}, train=CLOTHES)


STUDY = Study(
    name="moe",
    claim="A significant increase in the total number of parameters ... without a proportional increase in the "
    "computational cost per token",
    place="Optimizations and Tweaks: Mixture of Experts",
    method=f"{EXPERTS} experts of which each token visits one, in every block, against the dense layer of the same "
    "operations and against a dense layer of as many parameters. Refuted if time per token grows as much as the "
    "parameters do, or if the experts bring no accuracy over the dense layer.",
    arms={
        "dense": _arm(),
        "moe": _arm(backbone__moe__num_experts=EXPERTS, backbone__moe__every=1),
        "wide": _arm(backbone__mlp_ratio=4.0 * EXPERTS),
    },
    spend=Spend(unit="images", smoke=100, quick=3000, full=10_000),
    data=clothes,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="accuracy", heading="accuracy", form="percent", is_drawn=True),
        Column(key="parameters", heading="parameters", form="count"),
        Column(key="flops", heading="million operations", form="count"),
        Column(key="per_token", heading="thousand operations per token", form="count"),
        Column(key="us_per_token", heading="µs per token", form="time", is_drawn=True),
    ),
    source=__file__,
)
