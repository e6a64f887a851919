"""A run or an evaluation as one self-contained page: figures, curves, what went wrong and why.

The page is made of what is in the folder (``config.json``, ``history.jsonl``, ``environment.json``,
``evaluation.json``) and of explanations of pictures from the data; nothing in it points outside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saccade.atomic import check_folder, write_json
from saccade.data.dataset import Dataset
from saccade.data.source import DataSource, open_data
from saccade.engine.checkpoint import load_model
from saccade.engine.evaluate import evaluate_split
from saccade.engine.machine import find_device
from saccade.engine.run import RunFolder
from saccade.errors import DataError
from saccade.explanation.explain import Subject
from saccade.models.base import VisionModel
from saccade.report import classification, detection, run, semantic, zero_shot
from saccade.report.config import ReportConfig
from saccade.report.page import Part, Section, panel, write_page
from saccade.tasks import EvaluateConfig, Evaluation
from saccade.tasks.base import percent
from saccade.tasks.classification import ClassificationEvaluation
from saccade.tasks.detection import DetectionEvaluation
from saccade.tasks.semantic import SemanticEvaluation
from saccade.tasks.zero_shot import ZeroShotEvaluation

__all__ = ["Part", "ReportConfig", "evaluate_and_report", "panel", "report_run", "write_page", "write_report"]

AnyModel = VisionModel[Any, Any, Any]


def evaluate_and_report(
    model: AnyModel, source: DataSource, folder: Path, config: ReportConfig | None = None
) -> tuple[Evaluation, Part]:
    """Evaluate on one split and write the page into ``folder``; returns the result and what the page shows.

    Raises:
        RunError: where the folder cannot be written; told before the work begins.
        DataError: where model and data do not know the same classes, or no picture can be read.
    """
    config = config or ReportConfig()
    check_folder(folder)
    dataset, evaluation = evaluate_split(model, source, config.split, config.evaluate)
    return evaluation, write_report(folder, model, dataset, evaluation, config)


def report_run(folder: Path, data: Any = None, *, strict: bool = False) -> Evaluation:
    """Evaluate the best model of a finished run on its held-out pictures; the page lands in the run folder.

    Where the data has a ``test`` split that one is taken: ``val`` has chosen the model.

    Args:
        folder: the run folder.
        data: what it was trained on; opened by the name in the run folder where it is None.
        strict: fail at the first unreadable picture.

    Raises:
        DataError: where there are no other pictures than those of the training.
    """
    if data is None:
        data = RunFolder(folder).read_json("config.json")["data"]["name"]
    model = load_model(RunFolder(folder).best, find_device(_trained_on(folder)))
    source = open_data(data, task=model.task, strict=strict)
    if source.scored == "train":
        remedy = 'pass {"train": data, "val": other}, or evaluate it by itself'
        raise DataError("the pictures may be those of the training", where=source.name, remedy=remedy)
    config = ReportConfig(title=folder.name, evaluate=EvaluateConfig(strict=strict))
    return evaluate_and_report(model, source, folder, config)[0]


def _trained_on(folder: Path) -> str:
    """Where a run is scored: on the processor if it was to be trained there, else on the best device there is."""
    run = RunFolder(folder)
    settings = run.read_json("config.json") if (folder / "config.json").is_file() else {}
    return "cpu" if settings.get("train", {}).get("device") == "cpu" else "auto"


def write_report(
    folder: Path,
    model: AnyModel,
    dataset: Dataset,
    evaluation: Evaluation,
    config: ReportConfig | None = None,
) -> Part:
    """Write ``report.html`` (and ``evaluation.json``) into ``folder``; returns what the page shows.

    Args:
        folder: a run folder, or any folder; what it holds of a run is shown.
        model: what was evaluated.
        dataset: what it was evaluated on; pictures are read from it again.
        evaluation: the result.
        config: what to show.

    Raises:
        RunError: where the folder cannot be written.
    """
    config = config or ReportConfig()
    sections = [
        run.training(folder, evaluation.headline),
        *_sections(model, dataset, evaluation, config),
        run.experts(model, folder, dataset, config),
        run.facts(folder, evaluation),
    ]
    low, high = evaluation.interval
    headline = percent(evaluation.metrics[evaluation.headline])
    figures = [
        (headline, f"{evaluation.headline}, 95 % interval {percent(low)} to {percent(high)}"),
        *(
            (f"{value:.3f}", name)
            for name, value in _shown_metrics(evaluation).items()
            if value is not None and name != evaluation.headline
        ),
        (f"{evaluation.num_images:,}", "images evaluated"),
    ]
    lead = f"{len(evaluation.classes)} classes. Every mistake below is explained, and every explanation is measured."
    if isinstance(evaluation, ZeroShotEvaluation):
        lead = "Texts look for pictures and pictures for texts. Chance stands beside every figure."
    part = Part(config.title, lead, figures, [section for section in sections if section])
    write_json(folder / "evaluation.json", evaluation.to_dict())
    write_page(folder / "report.html", part.title, part.lead, [part])
    return part


def _shown_metrics(evaluation: Evaluation) -> dict[str, float | None]:
    """The metrics at the top of the page: all of them where they are few."""
    if isinstance(evaluation, DetectionEvaluation):
        return {name: evaluation.metrics.get(name) for name in detection.top_figures(evaluation)}
    return evaluation.metrics


def _sections(model: AnyModel, dataset: Dataset, evaluation: Evaluation, config: ReportConfig) -> list[Section | None]:
    """What there is to say of a task."""
    if isinstance(evaluation, ZeroShotEvaluation):
        return zero_shot.sections(dataset, evaluation, config)
    subject = Subject(model)
    if isinstance(evaluation, ClassificationEvaluation):
        return [
            classification.figures(evaluation),
            classification.mistakes(subject, dataset, evaluation, config),
            classification.methods(subject, dataset, evaluation, config),
        ]
    if isinstance(evaluation, DetectionEvaluation):
        return detection.sections(subject, dataset, evaluation, config)
    assert isinstance(evaluation, SemanticEvaluation)
    return semantic.sections(subject, dataset, evaluation, config)
