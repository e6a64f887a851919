"""The documentation says what the code says: names, defaults, links."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from saccade.backbones.vit import ViTConfig
from saccade.config import Config
from saccade.data.transforms import Augment, Mix
from saccade.engine.plan import TrainConfig
from saccade.explanation.methods import METHODS
from saccade.explanation.verdict import VerdictConfig
from saccade.models.classifier import ClassifierConfig
from saccade.nn.moe import MoEConfig
from saccade.ops.image import Preprocess

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted(DOCS.glob("*.md"))]
CONFIGS = (ViTConfig, MoEConfig, ClassifierConfig, TrainConfig, Augment, Mix, Preprocess)


def rows_of(page: str, heading: str = "") -> dict[str, list[str]]:
    """The rows of all tables after a heading, by the name in backticks that they start with."""
    text = (DOCS / page).read_text(encoding="utf-8")
    if heading:
        text = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
        text = re.split(r"^#", text, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    return {first.strip("`"): rest for first, *rest in cells}


def default_of(told: str) -> object:
    """A default as the tables write it: a number, a word or a list in backticks, true, false, none."""
    words = {"true": True, "false": False, "none": None}
    text = told.strip("`")
    if text in words:
        return words[text]
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def test_every_method_is_described_as_it_is() -> None:
    rows = rows_of("verdict.md", "The methods")
    assert list(rows) == list(METHODS)
    for name, (_, signed, specific, *_) in rows.items():
        assert (signed == "yes") == METHODS[name].is_signed, name
        assert (specific == "no") == METHODS[name].is_class_agnostic, name


def test_every_line_of_the_verdict_is_told_with_its_default() -> None:
    rows = rows_of("verdict.md", "Where the lines are")
    told = {name: default_of(row[0]) for name, row in rows.items()}
    assert told == dataclasses.asdict(VerdictConfig())


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_field_of_a_config_is_told_with_its_default(kind: type[Config]) -> None:
    rows = rows_of("classification.md", kind.__name__)
    config = kind()
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    plain = {name: value for name, value in fields.items() if name != "kind"}
    assert list(rows) == list(plain)
    for name, value in plain.items():
        told = default_of(rows[name][0])
        if isinstance(told, list):
            assert tuple(told) == pytest.approx(value, rel=1e-3), name
        else:
            assert told == (type(value).__name__ if dataclasses.is_dataclass(value) else value), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in relative if not (page.parent / target.partition("#")[0]).exists()]
    assert not missing
