"""A network per pixel against one pass over the picture: the same weights, the same answer, another time.

H, W picture · K classes
"""

from __future__ import annotations

import time

import torch

from saccade.studies.base import Arm, Column, Measured, Plot, Results, Study
from saccade.studies.intervals import Finding, exact, more, times
from saccade.studies.trial import Trial, seconds_of
from saccade.types import ImageBatch


def measure(trial: Trial) -> Measured:
    """Time of both ways over the side of the picture, and how far their logits lie apart."""
    one_pass = trial.build().eval()
    sliding = trial.build(overrides={"inference": "sliding"}).eval()
    sliding.load_state_dict(one_pass.state_dict())
    sides = trial.pick((16, 24), (24, 48, 96), (32, 64, 128, 192))
    generator = torch.Generator().manual_seed(trial.seed)
    slow, fast, gap = [], [], 0.0
    with torch.no_grad():
        for side in sides:
            images = ImageBatch.of(torch.randn(1, 3, side, side, generator=generator))
            start = time.perf_counter()
            # So many passes need no warm-up, and no repetition.
            patches = sliding(images).logits
            slow.append(time.perf_counter() - start)
            fast.append(seconds_of(lambda images=images: one_pass(images), 9))  # type: ignore[misc]
            gap = max(gap, float((one_pass(images).logits - patches).abs().max()))
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return Measured(
        figures={"gap": gap, "sliding": slow[-1], "one_pass": fast[-1], "ratio": ratios[-1], "first_ratio": ratios[0]},
        series={"ratio": (sides, ratios)},
    )


def judge(results: Results) -> list[Finding]:
    """Equal logits, many times the time, and more so the larger the picture."""
    (arm,) = results.arms()

    def of(key: str) -> list[float]:
        return results.values(arm, key)

    return [
        exact("both ways give the same logits", of("gap"), 1e-4),
        times("a network per pixel takes far longer", of("sliding"), of("one_pass"), at_least=10),
        more("the ratio grows with the picture", of("ratio"), of("first_ratio"), form="number"),
    ]


STUDY = Study(
    name="patch-vs-fcn",
    claim="This method is extremely time-consuming as it requires running a full network for every single pixel",
    place="Semantic or image segmentation",
    method="One network with random weights labels every pixel from its own patch, and once in one pass with the same "
    "weights read as convolutions. Refuted if the logits differ, or if the first way takes less than 10 times as long.",
    arms={"patch_cnn": Arm(model="patch_cnn")},
    measure=measure,
    judge=judge,
    columns=(
        Column(key="sliding", heading="s per picture, sliding", form="time"),
        Column(key="one_pass", heading="s per picture, one pass", form="time"),
        Column(key="ratio", heading="ratio at the largest size"),
        Column(key="gap", heading="largest difference of logits"),
    ),
    plots=(Plot(series="ratio", title="How many times as long", across="side of the picture", up="time ratio"),),
    source=__file__,
)
