"""Combinations of colour and shape that were never shown: how many seen ones it takes to know them by their words.

N pictures · K combinations · D width of the shared space
"""

from __future__ import annotations

import torch

from saccade.config import override
from saccade.data.attributes import is_held_out
from saccade.data.captions import LabelledCaptions, training_texts
from saccade.data.dataset import Dataset
from saccade.data.shapes import COLOURS, SHAPES
from saccade.data.source import DataSource
from saccade.data.synthetic_captions import COMBINATIONS, draw_captioned
from saccade.models.build import build, find_config
from saccade.models.clip import Clip
from saccade.studies.base import Arm, Column, Measured, Results, Scale, Spend, Study
from saccade.studies.intervals import Finding, above, more
from saccade.studies.trial import Trial

SHARES = (1, 2, 5)
"""Shapes that every colour is shown with, of six; one more is kept for the test."""

SEEN = tuple(len(COLOURS) * share for share in SHARES)
CHANCE = 1 / len(COMBINATIONS)
"""The question is which of all combinations a picture shows: among the unseen ones alone the colour would tell."""


def captioned(scale: Scale) -> DataSource:
    """Scenes of one object with a sentence each; the eight combinations of ``test`` are in no training."""
    splits = draw_captioned({"smoke": 240, "quick": 1200, "full": 9600}[scale])
    return DataSource(splits, COMBINATIONS, "captioned scenes", "synthetic scenes with captions")


def seen_combinations(share: int) -> set[str]:
    """Names of the combinations that are shown: each colour with so many shapes, each shape with some colours."""
    ring = len(SHAPES)
    return {
        f"{colour} {shape}"
        for column, colour in enumerate(COLOURS)
        for row, shape in enumerate(SHAPES)
        if 1 <= (column + row) % ring <= share and not is_held_out(colour, shape)
    }


def measure(trial: Trial) -> Measured:
    """Accuracy on pictures of seen and of unseen combinations, by the words for them alone."""
    data = trial.data.split("train")
    assert isinstance(data, LabelledCaptions)
    torch.manual_seed(trial.seed)
    config = override(find_config(trial.arm.model), {**trial.arm.overrides, "num_classes": len(COMBINATIONS)})
    # The vocabulary knows every word; what is withheld is how they look together.
    model = build(config.fitted(lambda: training_texts(data)), COMBINATIONS)
    assert isinstance(model, Clip)
    seen = seen_combinations(int(trial.arm.options["share"]))
    chosen = [index for index, label in enumerate(data.labels().tolist()) if COMBINATIONS[label] in seen]
    trial.train(model, pictures=data.select(chosen))
    unseen = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES if is_held_out(colour, shape)]
    most = trial.pick(16, 200, 800)
    colour, shape, whole = answers(model, trial.data.split("test"), unseen, most)
    known = answers(model, trial.data.split("val"), sorted(seen), most)[2]
    return Measured(
        figures={"unseen": whole, "colour": colour, "shape": shape, "seen": known},
    )


@torch.no_grad()
def answers(model: Clip, dataset: Dataset, names: list[str], most: int) -> tuple[float, float, float]:
    """Share of pictures of ``names`` whose colour, shape, and both are answered right, among all combinations."""
    assert isinstance(dataset, LabelledCaptions)
    labels = [COMBINATIONS[label] for label in dataset.labels().tolist()]
    indices = [index for index, name in enumerate(labels) if name in names][:most]
    vectors = model.embed_texts([f"a {name}" for name in COMBINATIONS])
    images = model.preprocess([dataset[index].image for index in indices])
    best = (model.eval().encode_images(images) @ vectors.T).argmax(dim=1).tolist()
    pairs = [(COMBINATIONS[guess].split(), labels[index].split()) for guess, index in zip(best, indices, strict=True)]
    count = max(len(pairs), 1)
    colour, shape = (sum(said[part] == true[part] for said, true in pairs) / count for part in (0, 1))
    return colour, shape, sum(said == true for said, true in pairs) / count


def judge(results: Results) -> list[Finding]:
    """Unseen combinations are known, and better the more have been seen."""
    few, *_, many = (f"{number} combinations seen" for number in SEEN)
    return [
        above("unseen combinations are recognised more than by chance", results.values(many, "unseen"), CHANCE),
        more("the more were seen, the better", results.values(many, "unseen"), results.values(few, "unseen")),
    ]


STUDY = Study(
    name="zero-shot",
    claim="Zero shot means understanding something new without having a corresponding example in the training data",
    place="Zero shot learning",
    method="A small CLIP learns from sentences about scenes of one object; eight combinations of colour and shape are "
    "never shown, and their pictures have to be told from those of all others by words. Refuted if that succeeds no "
    f"more often than by chance ({CHANCE:.1%}), or no more often when {SEEN[-1]} combinations were seen than when "
    f"{SEEN[0]} were.",
    arms={
        f"{number} combinations seen": Arm(
            model="clip_small",
            overrides={
                "backbone.arguments": {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64], "output_stride": 16},
                "preprocess.size": [48, 48],
                "embed_dim": 32,
                "text.width": 64,
                "text.depth": 2,
            },
            train={"batch_size": 64, "learning_rate": 2e-3, "weight_decay": 0.1, "precision": "32"},
            options={"share": share},
        )
        for number, share in zip(SEEN, SHARES, strict=True)
    },
    spend=Spend(unit="images", smoke=128, quick=3500, full=30_000),
    data=captioned,
    measure=measure,
    judge=judge,
    columns=(
        Column(key="unseen", heading="unseen combinations", form="percent", is_drawn=True),
        Column(key="colour", heading="their colour", form="percent"),
        Column(key="shape", heading="their shape", form="percent"),
        Column(key="seen", heading="seen combinations", form="percent"),
    ),
    seeds=3,
    source=__file__,
)
