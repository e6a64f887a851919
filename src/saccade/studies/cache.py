"""Finished trials on disk, each in a file of its own, so that an interrupted study goes on where it stopped.

The name of a file says what its figures depend on: arm, seed, budget, data, and the code of the study.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import saccade
from saccade.atomic import write_json
from saccade.studies import trial
from saccade.studies.base import Arm, Budget, Measured, Outcome, Shot, Study

FORMAT = 2
"""Of the files; raised where their meaning changes."""


class Cache:
    """The trials of one study.

    Args:
        folder: of all studies.
        study: which.
        budget: at which scale.
        data: fingerprint of the data of each arm, by split.
    """

    def __init__(self, folder: Path, study: Study, budget: Budget, data: Mapping[str, Mapping[str, str]]) -> None:
        self.folder = folder / "trials" / study.name
        self._data = data
        amount = study.spend.amount(budget.scale) if study.spend else 0.0
        facts: list[Any] = [FORMAT, saccade.__version__, study.name, budget.scale, amount]
        facts += [_digest(file) for file in (study.source, *study.shared, trial.__file__)]
        self._facts = json.dumps(facts, sort_keys=True)

    def path(self, name: str, arm: Arm, seed: int) -> Path:
        """Where a trial is kept."""
        facts = [self._facts, self._data.get(name, {}), name]
        content = json.dumps([*facts, dataclasses.asdict(_plain(arm)), seed], sort_keys=True, default=str)
        words = "".join(letter if letter.isalnum() else "-" for letter in name)
        return self.folder / f"{words}-{seed}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.json"

    def read(self, name: str, arm: Arm, seed: int) -> Outcome | None:
        """A finished trial; None where there is none, or its file is damaged."""
        path = self.path(name, arm, seed)
        if not path.is_file():
            return None
        try:
            return _decoded(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):
            return None

    def write(self, outcome: Outcome, arm: Arm) -> None:
        """Keep a finished trial.

        Raises:
            RunError: where it cannot be written.
        """
        write_json(self.path(outcome.arm, arm, outcome.seed), _encoded(outcome))


def _digest(source: str) -> str:
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def _plain(arm: Arm) -> Arm:
    return Arm(model=arm.model, overrides=dict(arm.overrides), train=dict(arm.train), options=dict(arm.options))


def _number(value: float) -> float | str:
    """JSON has no infinite numbers."""
    return value if math.isfinite(value) else str(value)


def _encoded(outcome: Outcome) -> dict[str, Any]:
    measured = outcome.measured
    return {
        "arm": outcome.arm,
        "seed": outcome.seed,
        "figures": {key: _number(float(value)) for key, value in measured.figures.items()},
        "series": {key: [[_number(float(v)) for v in part] for part in line] for key, line in measured.series.items()},
        "shots": [
            {"caption": shot.caption, "png": base64.b64encode(shot.png).decode("ascii")} for shot in measured.shots
        ],
        "details": {
            thing: {key: [_number(float(value)) for value in values] for key, values in figures.items()}
            for thing, figures in measured.details.items()
        },
        "spent": dict(outcome.spent),
        "seconds": outcome.seconds,
    }


def _decoded(record: dict[str, Any]) -> Outcome:
    series = {key: ([float(v) for v in a], [float(v) for v in b]) for key, (a, b) in record["series"].items()}
    shots = [Shot(png=base64.b64decode(shot["png"]), caption=shot["caption"]) for shot in record["shots"]]
    figures = {key: float(value) for key, value in record["figures"].items()}
    details = {
        thing: {key: [float(value) for value in values] for key, values in found.items()}
        for thing, found in record["details"].items()
    }
    measured = Measured(figures=figures, series=series, shots=shots, details=details)
    return Outcome(
        arm=record["arm"],
        seed=record["seed"],
        measured=measured,
        spent=record["spent"],
        seconds=record["seconds"],
    )
