"""The list of models: counts that come with Saccade agree with the models; others are counted when asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.engine import catalog as catalog_module
from saccade.engine.catalog import COUNTS, catalog, digest, listed, measure, write_counts
from saccade.models.build import create, find_config

KNOWN = json.loads(COUNTS.read_text(encoding="utf-8"))
SMALL = [name for name, config in listed().items() if KNOWN.get(digest(config), (0, 0))[1] < 4e8]
"""Models of few operations, or of none that are known."""


def test_every_model_has_counts_and_every_count_has_a_model() -> None:
    missing = [name for name, config in listed().items() if digest(config) not in KNOWN]
    assert not missing, "write the counts anew: python -m saccade.engine.catalog"
    assert set(KNOWN) == {digest(config) for config in listed().values()}


@pytest.mark.parametrize("name", SMALL)
def test_counts_agree_with_the_model(name: str) -> None:
    config = find_config(name)
    entry = measure(name, config)
    parameters, flops = KNOWN[digest(config)]
    assert entry.parameters == parameters
    # Which regions and experts a random model chooses differs a little between versions of torch.
    assert entry.flops == pytest.approx(flops, rel=0.1)


def test_small_models_of_every_task_are_counted_again() -> None:
    tasks = {find_config(name).task for name in SMALL}
    assert tasks >= {"classification", "semantic", "detection"}


def test_nothing_is_counted_where_counts_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, config: object) -> None:
        raise AssertionError(f"{name} was counted")

    monkeypatch.setattr(catalog_module, "measure", refused)
    entries = {entry.name: entry for entry in catalog()}
    assert not any(name.endswith("_test") for name in entries), "models for tests are left out"
    assert entries["unet_nano"].parameters == sum(parameter.numel() for parameter in create("unet_nano").parameters())
    assert {entry.task for entry in catalog("semantic")} == {"semantic"}


def test_a_model_of_ones_own_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = catalog("semantic")
    few = {"unet_nano": find_config("unet_nano")}
    write_counts(few, tmp_path / "counts.json")
    monkeypatch.setattr(catalog_module, "COUNTS", tmp_path / "counts.json")
    monkeypatch.setattr(catalog_module, "names", lambda: ("fcn8s_small", "unet_nano"))
    assert catalog("semantic") == [entry for entry in expected if entry.name in ("fcn8s_small", "unet_nano")]
