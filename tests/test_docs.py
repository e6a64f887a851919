"""The documentation says what the code says: names, defaults, links."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer.main
from PIL import Image

from saccade.backbones.vit import ViTConfig
from saccade.cli import app
from saccade.config import Config, override
from saccade.data.source import open_data
from saccade.data.transforms import Augment, Mix
from saccade.engine.catalog import measure
from saccade.engine.plan import TrainConfig
from saccade.engine.tiles import TileConfig
from saccade.explanation.methods import METHODS, default_method
from saccade.explanation.verdict import VerdictConfig
from saccade.models.build import create, find_config
from saccade.models.classifier import ClassifierConfig
from saccade.models.segmenter import MapLoss
from saccade.nn.moe import MoEConfig
from saccade.ops.image import Preprocess
from saccade.registry import names
from saccade.types import MapTarget

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted(DOCS.glob("*.md"))]
CONFIGS = {
    **dict.fromkeys(
        (ViTConfig, MoEConfig, ClassifierConfig, TrainConfig, Augment, Mix, Preprocess), "classification.md"
    ),
    **dict.fromkeys((MapLoss, TileConfig), "semantic.md"),
}
PRESET_FIELDS = ("flip", "flip_vertical", "colour")


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


def test_every_method_is_told_with_what_it_shows_where_it_misleads_its_cost_and_its_source() -> None:
    rows, verdict = rows_of("explain.md", "The methods"), rows_of("verdict.md", "The methods")
    assert list(rows) == list(METHODS)
    for name, (shows, misleads, cost, source) in rows.items():
        assert min(len(shows), len(misleads)) > 10, name
        assert cost == verdict[name][3], name
        numbers = re.findall(r"arxiv.org/abs/([\d.]+)", source)
        assert numbers == re.findall(r"arxiv.org/abs/([\d.]+)", verdict[name][4]), name


def test_what_auto_means_is_told_as_it_is() -> None:
    text = (DOCS / "explain.md").read_text(encoding="utf-8")
    usual = dict(
        re.findall(r"^\| ([a-z, ]+) \| `(\w+)`", re.split(r"^## Which", text, flags=re.MULTILINE)[1], re.MULTILINE)
    )
    network, transformer = (create(name).explain_spec() for name in ("resnet_test", "vit_token_test"))
    assert usual["class, convolutions"] == default_method(network).name
    assert usual["class, transformer"] == default_method(transformer).name
    assert usual["region of a label map"] == default_method(network, has_regions=True).name
    assert usual["box, mask"] == default_method(network, has_boxes=True).name


def test_every_line_of_the_verdict_is_told_with_its_default() -> None:
    config = dataclasses.asdict(VerdictConfig())
    for title, values in (("Where the lines are", config.pop("lines")), ("What is run", config)):
        told = {name: default_of(row[0]) for name, row in rows_of("verdict.md", title).items()}
        assert told == values


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_field_of_a_config_is_told_with_its_default(kind: type[Config]) -> None:
    rows = rows_of(CONFIGS[kind], kind.__name__)
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


def test_every_segmenter_is_told_with_its_size() -> None:
    rows = rows_of("semantic.md", "Variants")
    configs = {name: find_config(name) for name in sorted(names()) if not name.endswith("_test")}
    segmenters = {name: config for name, config in configs.items() if config.task == "semantic"}
    assert list(rows) == list(segmenters)
    for name, config in segmenters.items():
        entry = measure(name, override(config, {"preprocess.size": [256, 256]}))
        told = [f"{entry.parameters:,}", f"{entry.flops / 1e9:.1f}", str(config.preprocess.size[0])]
        assert rows[name] == told, name


def test_every_preset_for_label_maps_is_told_as_it_is() -> None:
    rows = rows_of("semantic.md", "Augmentation")
    assert list(rows) == ["microscope", "scenes"]
    for name, told in rows.items():
        zoom, *others = map(default_of, told)
        assert Augment.preset(name) == Augment(zoom=tuple(zoom), **dict(zip(PRESET_FIELDS, others, strict=True)))


def test_the_nuclei_of_dsb2018_become_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        name = f"{number:064d}"
        folder = tmp_path / "stage1_train" / f"{number}{name[1:]}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        Image.new("RGBA", (8, 6), "gray").save(folder / "images" / f"{folder.name}.png")
        for nucleus in range(2):
            mask = Image.new("L", (8, 6))
            mask.paste(255, (4 * nucleus, 1, 4 * nucleus + 2, 3))
            mask.save(folder / "masks" / f"{nucleus}.png")
    text = (DOCS / "semantic.md").read_text(encoding="utf-8")
    script = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "stage1_train" in block)
    exec(compile(script, "docs/semantic.md", "exec"), {})
    source = open_data("dsb2018")
    assert source.classes.names == ("background", "nucleus")
    assert sum(len(split) for split in source.splits.values()) == 6
    for split in source.splits.values():
        target = split[0].target
        assert isinstance(target, MapTarget)
        expected = torch.zeros(6, 8, dtype=torch.uint8)
        expected[1:3, [0, 1, 4, 5]] = 1
        assert torch.equal(target.labels, expected)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in relative if not (page.parent / target.partition("#")[0]).exists()]
    assert not missing


def commands_of(page: Path) -> list[list[str]]:
    """The words of every command on a page; comments and optional parts left out."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks = "\n".join(block for language, block in found if not language).splitlines()
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [re.split(r"\s{2,}#|\s\[", line)[0] for line in (*blocks, *inline) if line.startswith("saccade ")]
    return [shlex.split(line)[1:] for line in lines if "..." not in line and "|" not in line]


USED = [page for page in PAGES if page.name != "design.md"]  # which also tells of commands that are planned


@pytest.mark.parametrize("page", USED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_has_options_that_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    for words in commands_of(page):
        leaf, rest = root, words
        while rest and rest[0] in getattr(leaf, "commands", {}):
            leaf, rest = leaf.commands[rest[0]], rest[1:]  # type: ignore[attr-defined]
        known = {option for parameter in leaf.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= known | {"--help"}, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_training_names_a_model_and_fields_that_exist(page: Path) -> None:
    for words in commands_of(page):
        if words[0] != "train" or len(words) < 2 or words[1].startswith("-") or words[1].isupper():
            continue
        given = [value for word, value in itertools.pairwise(words) if word == "--set"]
        fields = {"model": find_config(words[1]), "train": TrainConfig()}
        for part, config in fields.items():
            chosen = [value.partition(".")[2] for value in given if value.startswith(f"{part}.")]
            override(config, [value for value in chosen if not value.startswith("FIELD")])
        assert all(value.partition(".")[0] in fields for value in given), words
