"""Imports run only downwards. Each line of LAYERS may import from the lines below it; names on one line do not know
each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import saccade

ROOT = Path(saccade.__file__).parent

LAYERS = [
    {"__init__", "__main__"},
    {"cli"},
    {"demo", "batch"},
    {"studies"},
    {"api", "server"},
    {"opening"},
    {"report", "console"},
    {"engine"},
    {"tasks", "explanation"},
    {"models", "data", "metrics", "render"},
    {"backbones", "matching", "weights"},
    {"nn", "losses"},
    {"text", "ops"},
    {"types", "registry"},
    {"config", "atomic", "allocator"},
    {"errors"},
]
LEVEL = {name: len(LAYERS) - line for line, names in enumerate(LAYERS) for name in names}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and first-level part of every import of our own package, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
            if node.module == "saccade":
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif (node.module or "").startswith("saccade."):
                yield node.lineno, (node.module or "").split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("saccade."):
                    yield node.lineno, alias.name.split(".")[1]


SOURCES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    part = part_of(path)
    assert part in LEVEL, f"{part} has no place in the layers; give it one in docs/design.md and here"
    for line, other in imported_parts(path):
        if other == part or other in {"__version__"}:
            continue
        assert other in LEVEL, f"{path.name}:{line} imports saccade.{other}, which has no place in the layers"
        assert LEVEL[other] < LEVEL[part], (
            f"{path.relative_to(ROOT)}:{line}: {part} imports {other}, which is not below it"
        )


def test_no_grab_bag_modules() -> None:
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_the_checker_sees_an_upward_import(tmp_path: Path) -> None:
    source = tmp_path / "losses.py"
    source.write_text("def f():\n    from saccade.engine.train import train\n")
    assert list(imported_parts(source)) == [(2, "engine")]
