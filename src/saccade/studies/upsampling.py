"""The kinds of upsampling in one encoder-decoder: overlap, boundaries, and the checkerboard that some leave.

B pictures · K classes · H, W canvas
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from saccade.nn.resample import UpsampleKind
from saccade.studies.base import Arm, Column, Measured, Results, Spend, Study
from saccade.studies.intervals import Finding, more, same
from saccade.studies.setups import NUCLEI, nuclei
from saccade.studies.trial import Trial, count_flops, count_parameters

KINDS: tuple[UpsampleKind, ...] = get_args(UpsampleKind)


def measure(trial: Trial) -> Measured:
    """Overlap, boundary score and checkerboard energy after equally many pictures."""
    model = trial.build()
    trial.train(model)
    metrics = trial.evaluate(model).metrics
    held = trial.data.split("val")
    images = model.preprocess([held[index].image for index in range(trial.pick(2, 6, 16))])
    with torch.no_grad():
        logits = model.eval()(images).logits
    return Measured(
        figures={
            "miou": metrics["miou"] or 0.0,
            "boundary": metrics["boundary_f"] or 0.0,
            "checkerboard": checkerboard(logits),
            "parameters": count_parameters(model),
            "flops": count_flops(model) / 1e6,
        }
    )


def checkerboard(logits: Tensor) -> float:
    """Energy of the alternation from pixel to pixel over that of its neighbouring frequencies, ``[B, K, H, W]``.

    1 where the finest frequency is nothing special; large where every second row or column differs.
    """
    height, width = logits.shape[-2] // 2 * 2, logits.shape[-1] // 2 * 2
    flat = logits[..., :height, :width].double()
    energy = torch.fft.fft2(flat - flat.mean((-2, -1), keepdim=True)).abs().square()
    rows, columns = energy.sum(-1), energy.sum(-2)
    alternating = rows[..., height // 2] + columns[..., width // 2]
    beside = [rows[..., height // 2 + k] + columns[..., width // 2 + k] for k in (-2, -1, 1, 2)]
    return float(alternating.sum() / torch.stack(beside).mean(0).sum().clamp_min(1e-30))


def judge(results: Results) -> list[Finding]:
    """The kinds of the claim all work; the one that is said to leave a pattern leaves it."""

    def of(arm: str, key: str) -> list[float]:
        return results.values(arm, key)

    found = [
        same(f"{kind} overlaps as well as unpooling", of(kind, "miou"), of("max_unpool", "miou"), within=0.03)
        for kind in ("transposed", "nearest")
    ]
    left = more(
        "transposed convolution leaves more of a checkerboard than bilinear",
        of("transposed", "checkerboard"),
        of("bilinear", "checkerboard"),
        form="number",
    )
    return [*found, left]


STUDY = Study(
    name="upsampling",
    claim="This involves operations like unpooling, transposed convolutions, or nearest-neighbor upsampling",
    place="Semantic or image segmentation: Unpooling",
    method="One encoder-decoder, trained on nuclei with each kind of upsampling. The notes treat the kinds as "
    "alternatives, and others say of transposed convolution that it leaves a checkerboard. Refuted if it or nearest "
    "neighbour lies more than 3 points of mean IoU from unpooling, or if its logits alternate from pixel to pixel no "
    "more than those of bilinear upsampling (checkerboard energy; 1 is none).",
    arms={
        kind: Arm(
            model="segnet_small",
            overrides={
                "upsample": kind,
                "widths": [16, 24, 32],
                "convs": [1, 1, 1],
                "preprocess.size": [64, 64],
                # Nuclei are a tenth of the pixels: by cross-entropy alone some kinds find none for hundreds of steps.
                "loss.dice": 1.0,
            },
            train=NUCLEI,
        )
        for kind in KINDS
    },
    spend=Spend(unit="images", smoke=16, quick=560, full=2880),
    data=nuclei,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="miou", heading="mean IoU", form="percent", is_drawn=True),
        Column(key="boundary", heading="boundary score", form="percent", is_drawn=True),
        Column(key="checkerboard", heading="checkerboard energy", is_drawn=True),
        Column(key="parameters", heading="parameters", form="count"),
        Column(key="flops", heading="million operations", form="count"),
    ),
    seeds=4,
    source=__file__,
)
