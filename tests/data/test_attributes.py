"""``attributes.csv``: which classes there are, those without pictures too."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import saccade
from saccade.data.attributes import is_held_out, read_attributes, scene_table, write_table
from saccade.data.shapes import COLOURS, SHAPES
from saccade.data.source import open_data
from saccade.data.write import write_scenes
from saccade.errors import DataError

CSV = "class,hooves,stripes\nzebra,yes,1\nhorse,1,0\ntiger,no,0.9\n"


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    root = tmp_path / "animals"
    for place in ("train/horse", "train/tiger", "test/zebra"):
        (root / place).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (40 * number, 90, 20)).save(root / place / f"{number}.png")
    (root / "attributes.csv").write_text(CSV)
    return root


def test_the_table_says_which_classes_there_are(animals: Path) -> None:
    source = open_data(animals, task="classification")
    assert source.classes.names == ("zebra", "horse", "tiger")
    assert source.attributes is not None
    assert source.attributes.seen == ("horse", "tiger")
    assert source.attributes.unseen == ("zebra",)
    assert source.attributes.values == ((1, 1), (1, 0), (0, 0.9))
    test = source.split("test")
    assert {int(test[index].target.label) for index in range(3)} == {0}
    assert any("training shows 2 of them, not 'zebra'" in note for note in source.notes)
    # Unseen classes are meant: strictness has nothing against them.
    open_data(animals, task="classification", strict=True)


def test_a_folder_without_a_table_has_none(animals: Path) -> None:
    (animals / "attributes.csv").unlink()
    assert open_data(animals, task="classification").attributes is None


def test_an_attribute_in_which_no_seen_classes_differ_is_told(animals: Path) -> None:
    (animals / "attributes.csv").write_text("class,hooves,wings\nzebra,1,1\nhorse,1,0\ntiger,0,0\n")
    notes = open_data(animals, task="classification").notes
    assert any("differ in 'wings'" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("yes", "perhaps"), "class 'zebra': 'perhaps' does not say"),
        (CSV.replace("0.9", "9"), "class 'tiger': '9' does not say"),
        (CSV.replace("horse,1,0", "horse,1"), "row 3: the row has 2 cells"),
        (CSV.replace("horse,1,0", "horse,1,1"), "'zebra' and 'horse' have the same attributes"),
        (CSV.replace("tiger", "tigre"), r"does not describe; did you mean 'tigre'\?"),
        ("class\nhorse\n", "describes nothing"),
    ],
)
def test_faults_are_named(animals: Path, text: str, message: str) -> None:
    (animals / "attributes.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_data(animals, task="classification")


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    table = scene_table()
    write_table(tmp_path / "attributes.csv", table)
    assert read_attributes(tmp_path) == table


def test_every_colour_and_shape_is_shown_though_some_combinations_are_not() -> None:
    shown = [(colour, shape) for colour in COLOURS for shape in SHAPES if not is_held_out(colour, shape)]
    assert len(shown) == 40
    assert {colour for colour, _ in shown} == set(COLOURS)
    assert {shape for _, shape in shown} == set(SHAPES)


def test_scenes_keep_the_held_out_combinations_for_the_test(tmp_path: Path) -> None:
    source = open_data(write_scenes(tmp_path / "scenes", count=120, size=24, task="attributes"), task="classification")
    assert source.attributes is not None
    for name, split in source.splits.items():
        labels = [split[index].target.label for index in range(len(split))]
        for label in labels:
            assert is_held_out(*source.classes[int(label)].split()) == (name == "test")


def test_a_model_is_trained_on_it_and_knows_all_classes(animals: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 2, "limit_steps": 2}
    run = saccade.train("attributes_test", animals, out=tmp_path / "run", quiet=True, **settings)
    assert run.model.classes.names == ("zebra", "horse", "tiger")
    prediction = saccade.predict(run.model, animals / "test" / "zebra" / "0.png")[0]
    assert len(prediction.scores) == 3
    assert saccade.evaluate(tmp_path / "run", animals, split="test").num_images == 3
