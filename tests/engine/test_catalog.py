"""The list of models: counted once, kept, and counted anew where it may have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from saccade.engine import catalog as catalog_module
from saccade.engine.catalog import catalog, counts_file
from saccade.models.build import create

NAMES = ("vit_nano_p4_28", "unet_nano", "unet_test")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the models that were counted so far, with a cache of their own."""
    seen: list[str] = []
    measure = catalog_module.measure

    def watched(name: str, config: catalog_module.ModelConfig) -> catalog_module.Entry:
        seen.append(name)
        return measure(name, config)

    monkeypatch.setattr(catalog_module, "measure", watched)
    monkeypatch.setattr(catalog_module, "names", lambda: NAMES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return seen


def test_what_was_counted_is_kept(counted: list[str]) -> None:
    first = catalog()
    assert counted == ["vit_nano_p4_28", "unet_nano"], "models for tests are left out"
    assert catalog() == first
    assert len(counted) == 2
    (entry,) = [entry for entry in first if entry.name == "unet_nano"]
    assert entry.parameters == sum(parameter.numel() for parameter in create("unet_nano").parameters())


def test_only_the_models_of_the_task_are_counted(counted: list[str]) -> None:
    assert [entry.name for entry in catalog("semantic")] == ["unet_nano"]
    assert counted == ["unet_nano"]
    assert len(catalog()) == 2
    assert counted == ["unet_nano", "vit_nano_p4_28"]


def test_other_code_counts_anew(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = catalog("semantic")
    monkeypatch.setattr(catalog_module, "_maker", lambda: "somebody else")
    assert catalog("semantic") == first
    assert counted == ["unet_nano"] * 2


@pytest.mark.parametrize("content", ["", "[]", '{"maker": 1}', "not JSON"])
def test_a_broken_cache_is_replaced(counted: list[str], content: str) -> None:
    counts_file().parent.mkdir(parents=True)
    counts_file().write_text(content, encoding="utf-8")
    first = catalog("semantic")
    assert catalog("semantic") == first
    assert counted == ["unet_nano"]


def test_a_cache_that_cannot_be_written_does_no_harm(counted: list[str]) -> None:
    counts_file().parent.parent.mkdir()
    counts_file().parent.write_text("a file where the folder should be", encoding="utf-8")
    assert catalog("semantic") == catalog("semantic")
    assert counted == ["unet_nano"] * 2
