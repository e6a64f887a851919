"""Every example runs as a user would run it, without a warning, and writes what its docstring promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def docstring_of(script: Path) -> str:
    return ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""


def promised(script: Path) -> list[str]:
    """The files named after "Writes:" in the docstring."""
    line = re.search(r"^Writes: (.+)$", docstring_of(script), re.MULTILINE)
    return [name.strip() for name in line[1].split(",")] if line else []


def test_there_are_examples() -> None:
    assert SCRIPTS


@each_script
def test_example_says_what_it_shows_how_it_is_run_and_what_it_writes(script: Path) -> None:
    assert f"Run: python examples/{script.name} [FOLDER]" in docstring_of(script)
    assert promised(script)
    assert 15 <= len(script.read_text(encoding="utf-8").splitlines()) <= 50


@each_script
def test_example_is_listed(script: Path) -> None:
    assert f"[{script.name}]({script.name})" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@each_script
def test_example_runs(script: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(script), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    missing = [name for name in promised(script) if not (tmp_path / "out" / name).is_file()]
    assert not missing, f"{script.name} did not write {', '.join(missing)}"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "an example writes into its folder only"
