from __future__ import annotations

from pathlib import Path

import pytest

from saccade.errors import InputError, UnknownNameError
from saccade.text import prompts


def test_every_class_goes_into_every_template() -> None:
    filled = prompts.fill(["cat", " dog "], ["a {}.", "the {} in front"])
    assert filled == ["a cat.", "the cat in front", "a dog.", "the dog in front"]


def test_packaged_templates() -> None:
    assert prompts.templates("plain") == ("{}",)
    assert prompts.templates("photo") == ("a photo of a {}.",)
    sizes = {name: len(prompts.templates(name)) for name in ("imagenet80", "imagenet7", "cifar")}
    assert sizes == {"imagenet80": 80, "imagenet7": 7, "cifar": 18}
    for name in prompts.names():
        assert prompts.check_templates(prompts.templates(name))
    assert len(prompts.imagenet_classes()) == 1000


def test_templates_of_a_file_and_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("# two\na drawing of a {}\n\n{} on paper\n")
    assert prompts.templates(str(path)) == ("a drawing of a {}", "{} on paper")
    assert prompts.templates("one {} alone") == ("one {} alone",)
    path.write_text("a drawing\n")
    with pytest.raises(InputError, match="the template 'a drawing' has 0 places for the name"):
        prompts.templates(str(path))
    with pytest.raises(UnknownNameError, match="did you mean 'imagenet80'"):
        prompts.templates("imagenet8")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "there are no classes"),
        (["cat", " "], "the name of class 1 is empty"),
        (["cat", "dog", "Cat"], "the class name 'Cat' is there twice, as classes 0 and 2"),
        ("cat", "classes are one text"),
    ],
)
def test_wrong_names_are_refused(classes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prompts.fill(classes)


@pytest.mark.parametrize(
    ("templates", "message"),
    [([], "there is no template"), (["{} and {}"], "has 2 places"), ("a {}", "templates are one text")],
)
def test_wrong_templates_are_refused(templates: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prompts.fill(["cat"], templates)
