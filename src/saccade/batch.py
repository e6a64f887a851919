"""A verb applied to many files: pictures and folders in, results for machines and for people in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saccade import render
from saccade.api import AnyModel
from saccade.data.decode import SUFFIXES
from saccade.engine.predict import PredictConfig, Predictor
from saccade.errors import DataError
from saccade.explanation.explain import ExplainOptions, explain_batch
from saccade.explanation.heatmap import Heatmap
from saccade.explanation.methods import suited
from saccade.report import make_folder, panel


def picture_paths(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and all pictures inside the folders, sorted.

    Raises:
        DataError: where a path does not exist or a folder holds no picture.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise DataError("there is no picture in this folder", where=str(path))
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError("there is no such file or folder", where=str(path), remedy="check the path")
    return found


def predict_files(model: AnyModel, paths: Iterable[Path], *, top: int, exact: bool) -> Iterator[dict[str, Any]]:
    """One plain record per picture: its path and its likeliest classes, likeliest first."""
    files = picture_paths(paths)
    predictor = Predictor(model, PredictConfig(speed="exact" if exact else "auto"))
    for path, prediction in zip(files, predictor.stream(files), strict=True):
        scores = [{"class": name, "score": score} for name, score in prediction.top(top)]
        yield {"image": str(path), "top": scores}


def explain_files(
    model: AnyModel,
    paths: Iterable[Path],
    of: Sequence[str],
    options: ExplainOptions,
    methods: Sequence[str],
    out: Path,
) -> Iterator[str]:
    """Explain every class on every picture by every method; writes a picture, an array and a manifest for each.

    With several methods, one page per picture shows them side by side.

    Yields:
        One line per heat map, for people.
    """
    make_folder(out)
    names = _methods(model, methods)
    questions: list[str | None] = list(of) or [None]
    for path in picture_paths(paths):
        maps: list[Heatmap] = []
        for name in names:
            row = explain_batch(model, [path], questions, replace(options, method=name))[0]
            for heat in row:
                stem = _file_name(f"{path.stem}-{heat.of}-{_name_of(heat)}")
                heat.save(out / f"{stem}.png")
                heat.save_array(out / f"{stem}.npz")
                write_json(out / f"{stem}.json", heat.about())
                yield f"{path}: {describe(heat)}"
            maps += row
        if len(names) > 1:
            first = render.Panel(image=maps[0].image, title="picture", caption=str(path.name))
            panels = [panel(heat, title=_name_of(heat)) for heat in maps]
            rows = [panels[start : start + 5] for start in range(0, len(panels), 5)]
            render.save(render.side_by_side([[first], *rows]), out / f"{_file_name(path.stem)}-methods.png")


def describe(heat: Heatmap) -> str:
    """A heat map in one line: what, by which method, how far to trust it and the first reason."""
    line = f"{heat.label} by {_name_of(heat)}"
    if heat.verdict is None:
        return line
    reason = f" - {heat.verdict.reasons[0]}" if heat.verdict.reasons else ""
    return f"{line}: {heat.verdict.status}{reason}"


def write_json(path: Path, content: Any) -> None:
    """Write plain data in one atomic step.

    Raises:
        RunError: where the file cannot be written; nothing is left behind.
    """
    make_folder(path.parent)
    render.write_bytes(path, (json.dumps(content, indent=2) + "\n").encode("utf-8"))


def _methods(model: AnyModel, asked: Sequence[str]) -> list[str]:
    if "all" not in asked:
        return list(asked)
    return [name for name, reason in suited(model.explain_spec()).items() if reason is None]


def _name_of(heat: Heatmap) -> str:
    return heat.method.partition("(")[0]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")
