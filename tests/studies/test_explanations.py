"""The study of explanations: its games on a model whose answer is known, its control, and a user's own data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from saccade.data.dataset import ArrayDataset
from saccade.data.source import DataSource
from saccade.explanation.cam import LayerCAM
from saccade.explanation.explain import Subject
from saccade.explanation.methods import METHODS
from saccade.explanation.scores import class_score
from saccade.explanation.scramble import scrambled
from saccade.models.build import create
from saccade.ops.image import Preprocess
from saccade.studies import explanations as study
from saccade.studies import map_figures, run
from saccade.studies.base import SMOKE, Measured, Outcome, Results
from saccade.types import Classes, ImageBatch


class Corner(nn.Module):
    """The brighter the upper left quarter, the higher the only class that counts."""

    preprocess = Preprocess(size=(28, 28), policy="stretch", mean=(0, 0, 0), std=(1, 1, 1))

    def forward(self, images: ImageBatch) -> Tensor:
        corner = images.pixels[:, :, :14, :14].mean(dim=(1, 2, 3))
        return torch.stack([corner, torch.zeros_like(corner)], dim=1)


def test_the_games_tell_a_map_that_knows_from_one_that_does_not() -> None:
    picture = torch.full((3, 28, 28), 200, dtype=torch.uint8)
    model, truth = Corner(), torch.zeros(28, 28)
    truth[:14, :14] = 1
    images = model.preprocess([picture])
    case = map_figures.Case(picture, 0, class_score(0), images, "final", truth > 0, is_within=False)
    found = map_figures.played(case, model, {"right": truth, "wrong": 1 - truth, "flat": torch.ones(28, 28)}, 6)
    assert found["right"]["advantage"] > 0.5
    assert found["wrong"]["advantage"] < -0.3
    assert found["flat"]["advantage"] == pytest.approx(0, abs=0.01)
    for figures in found.values():
        assert 0 <= figures["deletion"] <= 1
        assert 0 <= figures["insertion"] <= 1
        assert figures["advantage"] == pytest.approx(figures["insertion"] - figures["deletion"])


def test_the_copy_keeps_what_the_first_layers_learned() -> None:
    model = create("resnet_test", num_classes=3).eval()
    copy = scrambled(model, "all", 0, is_late=True)
    same = {name: torch.equal(own, copy.state_dict()[name]) for name, own in model.state_dict().items()}
    names = [name for name in same if name.endswith("conv1.weight")]
    assert same[names[0]]
    assert not same[names[-1]]


def test_the_usual_method_is_measured_first_and_the_control_only_where_it_is_defined() -> None:
    network, transformer = Subject(create("resnet_test").eval()), Subject(create("vit_token_test").eval())
    assert next(iter(map_figures.explainers_of(network, "quick"))) == "hirescam"
    assert next(iter(map_figures.explainers_of(transformer, "quick"))) == "relevance"
    assert map_figures.NEGATIVE in map_figures.explainers_of(network, "quick")
    assert map_figures.NEGATIVE not in map_figures.explainers_of(transformer, "quick")
    assert map_figures.explainers_of(network, "full")["rise"] == METHODS["rise"](num_masks=150)  # type: ignore[call-arg]
    usual = map_figures.explainers_of(Subject(create("unet_plain_test").eval()), "quick")["layercam"]
    assert usual == LayerCAM("stage0"), "as it is where nobody asks for a method"


def results(figures: dict[str, dict[str, float]]) -> Results:
    """Three seeds of one arm; every picture alike but for a little."""
    keys = ("advantage", "similarity", "inside", "area")
    outcomes = []
    for seed in range(3):
        details = {
            name: {key: [found.get(key, 0.0) + 0.01 * seed * (key != "area")] for key in keys}
            for name, found in figures.items()
        }
        outcomes.append(
            Outcome(arm="boxes", seed=seed, measured=Measured(figures={}, details=details), spent={}, seconds=1.0)
        )
    return Results(outcomes)


def test_the_findings_follow_from_the_pictures() -> None:
    good = {
        "hirescam": {"advantage": 0.5, "similarity": 0.1, "inside": 0.6, "area": 0.1},
        "gradient": {"advantage": 0.7, "similarity": 0.2, "inside": 0.3, "area": 0.1},
        "guided_backprop": {"advantage": 0.9, "similarity": 0.9},
        "random order": {"advantage": 0.0},
    }
    assert {finding.status for finding in study.judge(results(good))} == {"holds"}
    assert study.advice(results(good)) == [
        "boxes: gradient shows best what decides (0.71 of the range), the usual hirescam 0.51."
    ]
    passes = {**good, "guided_backprop": {"advantage": 0.9, "similarity": 0.1}}
    assert [finding.status for finding in study.judge(results(passes))][2:] == ["does not hold here"] * 2
    blind = {**good, "hirescam": {"advantage": 0.0, "similarity": 0.9, "inside": 0.1, "area": 0.3}}
    assert [finding.status for finding in study.judge(results(blind))][:2] == ["does not hold here"] * 2


def test_data_of_ones_own_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = Classes(("dark", "bright"))
    images = torch.randint(0, 255, (24, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ArrayDataset(images, torch.arange(24) % 2, classes, "squares")
    source = DataSource({"train": data, "test": data}, classes, "squares", "squares")
    monkeypatch.setattr(study, "OWN", {"classification": ("resnet_test",)})
    (report,) = run.study("explanations", source, out=tmp_path, budget=SMOKE)
    assert report.results.arms() == ["resnet_test"]
    assert set(map_figures.CONTROLS) < set(report.results.measured_on("resnet_test"))
    page = (tmp_path / "explanations-classification.html").read_text(encoding="utf-8")
    assert "evidence inside" in page
    assert "resnet_test: all methods" in page
    assert "random order" in page


def test_other_studies_take_no_data(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, _, err = command("study", "skips", "nuclei", "--out", tmp_path)
    assert status == 2
    assert "explanations DATA" in err
