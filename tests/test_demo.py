"""What a demo may remove: an earlier demo, and nothing that anybody else put there."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from saccade import demo
from saccade.errors import RunError


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job writes its folder and trains nothing."""

    def one(folder: Path, recipe: object, console: Console) -> demo.Part:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        return demo.Part(folder.name, "", [], [])

    monkeypatch.setattr(demo, "_one", one)


def run(out: Path, *, overwrite: bool = False) -> Path:
    return demo.run(out, overwrite=overwrite, console=Console(file=io.StringIO()))


def test_a_demo_replaces_a_demo(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    run(out)
    (out / "detection" / "old.txt").touch()
    with pytest.raises(RunError, match="exists already"):
        run(out)
    assert run(out, overwrite=True).is_file()
    assert not (out / "detection" / "old.txt").exists()


def test_runs_of_the_same_names_are_not_touched(tmp_path: Path) -> None:
    run_folder = tmp_path / "runs" / "classification"
    run_folder.mkdir(parents=True)
    (run_folder / "config.json").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match=r"no demo, so it is not replaced; expected a folder with demo\.json"):
        run(tmp_path / "runs", overwrite=True)
    assert (run_folder / "config.json").read_text(encoding="utf-8") == "mine"


def test_a_demo_with_something_beside_it_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    run(out)
    (out / "my_run").mkdir()
    with pytest.raises(RunError, match=r"what no demo wrote \(my_run\)"):
        run(out, overwrite=True)
    assert (out / "report.html").is_file()
    assert (out / "my_run").is_dir()
