"""Class token against pooling: both should turn the transformer's tokens into classes equally well.

T tokens · A heads · h, w grid of patches
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.explanation.record import recording
from saccade.models.classifier import Classifier
from saccade.studies.base import Arm, Column, Measured, Plot, Results, Spend, Study
from saccade.studies.intervals import Finding, above, same
from saccade.studies.setups import CLOTHES, clothes
from saccade.studies.trial import Trial, count_flops, seconds_per_picture

SIDES = (20, 28)


def _arm(pool: str, side: int) -> Arm:
    overrides = {
        "pool": pool,
        "backbone.has_class_token": pool == "token",
        "backbone.image_size": [side, side],
        "preprocess.size": [side, side],
    }
    return Arm(model="vit_pico_p4_28", overrides=overrides, train=CLOTHES)


def measure(trial: Trial) -> Measured:
    """Accuracy after equally many pictures, attention distance per block, cost."""
    model = trial.build()
    assert isinstance(model, Classifier)
    trial.train(model)
    evaluation = trial.evaluate(model)
    distances = attention_distances(model, trial)
    return Measured(
        figures={
            "accuracy": evaluation.metrics["top1"] or 0.0,
            "distance": sum(distances) / len(distances),
            "flops": count_flops(model) / 1e6,
            "ms": 1000 * seconds_per_picture(model, batch=16),
        },
        series={"distance": (range(1, len(distances) + 1), distances)},
    )


def attention_distances(model: Classifier, trial: Trial) -> list[float]:
    """Mean distance between a patch and what it attends to, per block, as a share of the picture's side."""
    held = trial.data.split("test")
    images = model.preprocess([held[index].image for index in range(trial.pick(4, 32, 64))])
    # The pooling's own attention, where there is one, has no patches that ask.
    spec, canvas = model.explain_spec(), model.preprocess.size
    sites = [site for site in spec.attention if site.path.startswith("backbone.")]
    with recording(model, attention=sites, with_gradients=False) as record:
        record.run(images)
        seen = record.attention()
    return [_distance(matrix, site.num_prefix, site.grid(canvas)) for matrix, site in zip(seen, sites, strict=True)]


def _distance(probabilities: Tensor, num_prefix: int, grid: tuple[int, int]) -> float:
    between = probabilities[..., num_prefix:, num_prefix:].double()
    between = between / between.sum(-1, keepdim=True)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten() / grid[0], columns.flatten() / grid[1]], dim=1).double()
    return float((between * torch.cdist(places, places)).sum(-1).mean())


def judge(results: Results) -> list[Finding]:
    """Both learn, and neither is more than three points ahead."""
    found = []
    for side in SIDES:
        token, pooled = (results.values(f"{pool}, {side} px", "accuracy") for pool in ("token", "average"))
        found.append(above(f"the class token learns at {side} px", token, 0.5))
        found.append(above(f"average pooling learns at {side} px", pooled, 0.5))
        found.append(same(f"both are equally accurate at {side} px", token, pooled, within=0.03))
    return found


STUDY = Study(
    name="token",
    claim="There are two common strategies for converting transformer outputs into a classification input: class token "
    "and global average pooling",
    place="Vision Transformer Image Classification Process",
    method="The same transformer reads its class from a token, from the mean of the patches, or from what a learned "
    "query gathers, at two sizes of the pictures. Refuted if one of the two of the claim does not learn (accuracy "
    "above 50 %), or if they lie more than 3 points apart.",
    arms={f"{pool}, {side} px": _arm(pool, side) for side in SIDES for pool in ("token", "average", "attention")},
    spend=Spend(unit="images", smoke=100, quick=3000, full=10_000),
    data=clothes,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="accuracy", heading="accuracy", form="percent", is_drawn=True),
        Column(key="distance", heading="attention distance, share of the side", form="percent"),
        Column(key="flops", heading="million operations", form="count"),
        Column(key="ms", heading="ms per picture", form="time"),
    ),
    plots=(Plot(series="distance", title="How far patches look", across="block", up="share of the side"),),
    source=__file__,
)
