"""``saccade study`` and ``saccade.study``: listing, running, the ladder, and one clear sentence for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import saccade
from saccade.data.dataset import ArrayDataset
from saccade.data.source import DataSource
from saccade.errors import DataError
from saccade.studies import ladder as ladders
from saccade.studies import run
from saccade.studies.base import SMOKE, Measured, Outcome, Results, Study
from saccade.studies.ladder import advice
from saccade.studies.one_answer import of_commonest, of_same_boxes
from saccade.types import BoxTarget, Classes, Sample

StudyMaker = Callable[..., Study]
Command = Callable[..., tuple[int, str, str]]


def test_without_a_name_studies_are_listed_with_their_claims(command: Command) -> None:
    status, out, _ = command("study")
    assert status == 0
    assert "norm-position" in out
    assert "running a full network for every single pixel" in out
    assert "saccade study ladder DATA" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("skps",), "did you mean 'skips'?"),
        (("ladder",), "the ladder needs DATA"),
        (("skips", "nuclei"), "this study has its own data"),
        (("ladder", "no/such/folder"), "no/such/folder"),
    ],
)
def test_bad_input_is_one_sentence(command: Command, words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    status, _, err = command("study", *words, "--out", tmp_path / "out")
    assert status == 2
    assert told in err
    assert err.count("\n") == 1


def test_a_study_writes_page_and_figures(
    make_study: StudyMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setattr(run, "find", lambda name: make_study(name=name))
    monkeypatch.setattr(run, "names", lambda: ("one", "two"))
    status, out, _ = command("study", "all", "--quick", "--out", tmp_path)
    assert status == 0
    assert "one: ● holds" in out
    assert "good is better than bad: holds" in out
    records = json.loads((tmp_path / "studies.json").read_text())
    assert [record["study"] for record in records] == ["one", "two"]
    assert records[0]["arms"]["good"]["accuracy"]["mean"] == pytest.approx(0.91)
    assert records[0]["arms"]["good"]["undefined"]["mean"] is None
    assert records[0]["command"] == "saccade study one --quick"
    assert (tmp_path / "studies.html").is_file()


def test_an_interrupted_command_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "study", interrupted)
    status, _, err = command("study", "skips")
    assert status == 130
    assert "goes on where it stopped" in err


def squares(count: int, *, has_test: bool = True) -> DataSource:
    classes = Classes(("dark", "bright"))
    images = torch.randint(0, 255, (count, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ArrayDataset(images, torch.arange(count) % 2, classes, "squares")
    splits = {"train": data, "test": data} if has_test else {"train": data}
    return DataSource(splits, classes, "squares", "squares")


def test_the_ladder_compares_what_fits_and_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = ladders.Rungs(
        models=("resnet_test", "vit_pico_p4_28"), headline="top1", told="accuracy", train={"batch_size": 8}
    )
    monkeypatch.setattr(ladders, "RUNGS", {"classification": short})
    monkeypatch.setattr(ladders, "LEARNED", -1.0)  # two steps teach nothing
    (report,) = saccade.study("ladder", squares(24), out=tmp_path, budget=SMOKE)
    assert report.results.arms() == ["resnet_test", "vit_pico_p4_28"]
    assert set(report.results.of("resnet_test")[0].measured.figures) >= {"quality", "parameters", "flops", "ms"}
    assert report.advice[0].startswith("Highest accuracy: ")
    assert any("saccade train" in words for words in report.advice)
    page = (tmp_path / "ladder-classification.html").read_text(encoding="utf-8")
    assert "What to choose" in page
    assert "resnet_test: why" in page


def test_data_without_a_held_out_split_is_split() -> None:
    source = ladders.open_ladder(squares(40, has_test=False))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 30, "val": 10}


@pytest.mark.parametrize(("count", "told"), [(6, "only 6 pictures to train on"), (10, "held out to measure on")])
def test_data_too_small_for_splits_is_refused(count: int, told: str) -> None:
    with pytest.raises(DataError, match=told):
        ladders.open_ladder(squares(count, has_test=False))


def test_the_fastest_that_is_not_clearly_worse_is_chosen() -> None:
    def results(quality: dict[str, list[float]], ms: dict[str, float]) -> Results:
        return Results(
            [
                Outcome(
                    arm=arm,
                    seed=seed,
                    measured=Measured(figures={"quality": value, "ms": ms[arm]}),
                    spent={},
                    seconds=0,
                )
                for arm, values in quality.items()
                for seed, value in enumerate(values)
            ]
        )

    quality = {"old": [0.5, 0.51, 0.5], "slow": [0.8, 0.82, 0.81], "fast": [0.79, 0.83, 0.8]}
    words = ladders.advice(results(quality, {"old": 1.0, "slow": 9.0, "fast": 2.0}), "accuracy")
    assert words[0] == "Highest accuracy: slow with 81.0 %."
    assert words[1].startswith("fast is not clearly worse and takes 2.0 ms")
    words = ladders.advice(results(quality, {"old": 1.0, "slow": 1.5, "fast": 2.0}), "accuracy")
    assert words[-1] == "To train it longer: saccade train slow DATA."


def test_every_method_of_the_ladders_exists() -> None:
    from saccade.models.build import find_config

    for task, rungs in ladders.RUNGS.items():
        for name in rungs.models:
            assert find_config(name).task == task


def test_what_learned_nothing_is_not_advised_however_fast() -> None:
    figures = {"slow": ([0.1, 0.5, 0.3], 90.0), "near": ([0.3, 0.3, 0.25], 60.0), "blind": ([0.0, 0.0, 0.0], 10.0)}
    outcomes = [
        Outcome(arm=arm, seed=seed, measured=Measured(figures={"quality": one, "ms": ms}), spent={}, seconds=1.0)
        for arm, (values, ms) in figures.items()
        for seed, one in enumerate(values)
    ]
    told = advice(Results(outcomes), "AP50")
    assert told[0] == "Highest AP50: slow with 30.0 %."
    assert told[1].startswith("near is not clearly worse")


def test_where_nothing_was_learned_no_method_is_advised() -> None:
    outcomes = [
        Outcome(
            arm=arm,
            seed=seed,
            measured=Measured(figures={"quality": quality, "chance": 0.5, "ms": ms}),
            spent={},
            seconds=1.0,
        )
        for arm, quality, ms in (("slow", 0.54, 9.0), ("fast", 0.5, 1.0))
        for seed in range(3)
    ]
    told = advice(Results(outcomes), "accuracy")
    assert told[0] == "Highest accuracy: slow with 54.0 %."
    assert told[1].startswith("The same answer for everything would give 50.0 %: no method has learned enough")
    assert len(told) == 2


@pytest.mark.parametrize(("task", "chance"), [("classification", 0.75), ("semantic", 0.375)])
def test_what_one_class_for_everything_gives(task: str, chance: float) -> None:
    evaluation = SimpleNamespace(task=task, confusion=((4, 2), (1, 1), (0, 0)))
    assert of_commonest(evaluation) == pytest.approx(chance)  # type: ignore[arg-type]


class Boxes:
    """Blank pictures with the boxes that are given for each, in shares of its sides."""

    task, licence, classes = "detection", None, Classes(("cat", "dog"))

    def __init__(self, *pictures: tuple[tuple[int, int], dict[str, list[float]]]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        (height, width), things = self.pictures[index]
        boxes = torch.tensor([*things.values()]).reshape(-1, 4) * torch.tensor([width, height, width, height])
        labels = torch.tensor([self.classes.id(name) for name in things], dtype=torch.int64)
        return Sample(torch.zeros(3, height, width, dtype=torch.uint8), BoxTarget.of(boxes, labels), f"picture {index}")


def test_what_the_same_boxes_for_everything_give() -> None:
    middle, corner, elsewhere = [0.2, 0.2, 0.8, 0.8], [0.0, 0.0, 0.2, 0.2], [0.7, 0.0, 1.0, 0.3]
    train = Boxes(
        ((40, 80), {"cat": middle}),
        ((90, 30), {"cat": [0.2, 0.2, 0.8, 0.75], "dog": corner}),
        ((50, 50), {"cat": corner}),
    )
    # The cat in the middle is found whatever the size of the picture; of the two dogs in the corner one is missed.
    held = Boxes(((100, 200), {"cat": middle, "dog": corner}), ((60, 60), {"cat": middle, "dog": elsewhere}))
    assert of_same_boxes(train, held) == pytest.approx((1.0 + 0.5) / 2, abs=0.01)  # type: ignore[arg-type]
    for nothing in ((Boxes(((9, 9), {})), held), (train, Boxes(((9, 9), {})))):
        assert of_same_boxes(*nothing) == 0  # type: ignore[arg-type]
