"""Sections on the run: how the training went, who did the work among experts, how the figures came about."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saccade import render
from saccade.data.dataset import Dataset
from saccade.errors import RunError
from saccade.explanation.routing import has_experts, routing_maps
from saccade.models.base import VisionModel
from saccade.report.config import ReportConfig
from saccade.report.page import Section, figure
from saccade.tasks import Evaluation, Table
from saccade.tasks.base import percent


def training(folder: Path, headline: str) -> Section | None:
    """How the training went, where the folder holds a run."""
    lines = _history(folder)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    if not epochs:
        return None
    best = [line for line in epochs if line["is_best"]][-1]
    note = (
        f"{len(epochs)} epochs; the best on the validation pictures was epoch {best['epoch']}, which is the model kept."
    )
    steps = [line for line in lines if line["kind"] == "step"]
    loss = render.curves({"loss": _thinned(steps)}, title="Training loss", across="step", up="loss")
    validated = [line for line in epochs if line["metrics"]]
    quality = render.curves(
        {
            f"{name} weights": (
                [line["epoch"] for line in validated],
                [line["evaluations"][name][headline] for line in validated],
            )
            for name in validated[0]["evaluations"]
        },
        title=f"Validation: {headline}",
        across="epoch",
        up=headline,
    )
    return Section("Training", note, plots=[figure(loss, "Training loss"), figure(quality, f"Validation {headline}")])


def experts(model: VisionModel[Any, Any, Any], folder: Path, dataset: Dataset, config: ReportConfig) -> Section | None:
    """Who does the work in a mixture of experts: load over the training, and the routing of some pictures."""
    if not has_experts(model):
        return None
    chosen = [dataset[index].image for index in range(min(config.compared, len(dataset)))]
    title = "last routed layer"
    plots = [
        figure(render.routing_map(one.seen, one.experts[-1], one.num_experts, title=title), "Routing map")
        for one in routing_maps(model, chosen)
    ]
    note = "Which expert handled which patch"
    loads = [line["expert_load"] for line in _history(folder) if "expert_load" in line]
    if not loads:
        return Section("Experts", f"{note}.", plots=plots)
    rows = [(str(layer), *map(percent, shares)) for layer, shares in enumerate(loads[-1])]
    table = Table(("routed layer", *(f"expert {expert}" for expert in range(len(loads[-1][-1])))), rows)
    note += "; below, the share of the tokens that each took in the last epoch."
    return Section("Experts", note, plots=[figure(_load_chart(loads), "Load of the experts"), *plots], table=table)


def facts(folder: Path, evaluation: Evaluation) -> Section:
    """Everything needed to get the same figures again."""
    details = [{"title": "Settings of the evaluation", "text": json.dumps(evaluation.settings, indent=2)}]
    for name, title in (("config.json", "Settings of the training"), ("environment.json", "Machine and versions")):
        path = folder / name
        if path.is_file():
            details.append({"title": title, "text": path.read_text(encoding="utf-8")})
    if evaluation.skipped:
        details.append({"title": f"{len(evaluation.skipped)} unreadable images", "text": "\n".join(evaluation.skipped)})
    return Section("How these figures came about", details=details)


def _history(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's history; none where the folder holds no run.

    Raises:
        RunError: where a line is damaged, as a killed run may leave its last one.
    """
    history = folder / "history.jsonl"
    if not history.is_file():
        return []
    try:
        lines = history.read_text(encoding="utf-8").splitlines()
        return [_with_nan(json.loads(line)) for line in lines]
    except ValueError as error:
        remedy = "resume the run, or choose another --out"
        raise RunError(f"a line is damaged ({error})", where=str(history), remedy=remedy) from error


def _with_nan(content: Any) -> Any:
    """A line as it was before it became JSON, which knows no figure that is no number: null is NaN."""
    if content is None:
        return math.nan
    if isinstance(content, dict):
        return {key: _with_nan(value) for key, value in content.items()}
    return [_with_nan(value) for value in content] if isinstance(content, list) else content


def _thinned(steps: Sequence[dict[str, Any]], most: int = 150) -> tuple[list[float], list[float]]:
    """Steps and losses for a curve, neighbours averaged so that at most ``most`` points are left."""
    width = -(-len(steps) // most)
    groups = [steps[start : start + width] for start in range(0, len(steps), width)]
    places = [sum(line["step"] for line in group) / len(group) for group in groups]
    return places, [sum(line["total"] for line in group) / len(group) for group in groups]


def _load_chart(loads: Sequence[Sequence[Sequence[float]]]) -> Any:
    """Share of the tokens per expert of the last routed layer over the epochs; ``loads`` by epoch, layer, expert."""
    epochs = [float(epoch + 1) for epoch in range(len(loads))]
    num_experts = len(loads[0][-1])
    lines = {f"expert {expert}": (epochs, [load[-1][expert] for load in loads]) for expert in range(num_experts)}
    lines["even control"] = (epochs, [1 / num_experts] * len(loads))
    return render.curves(lines, title="Load of the experts, last routed layer", across="epoch", up="share of tokens")
