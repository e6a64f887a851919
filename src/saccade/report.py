"""A run or an evaluation as one self-contained page: figures, curves, the worst mistakes with their explanations.

The page is made of what is in the folder (``config.json``, ``history.jsonl``, ``environment.json``,
``evaluation.json``) and of explanations of pictures from the data; nothing in it points outside.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image
from torch import Tensor

import saccade
from saccade import render
from saccade.atomic import check_folder, write_bytes
from saccade.config import Config
from saccade.data.dataset import Dataset
from saccade.data.source import DataSource, open_data
from saccade.engine.checkpoint import load_model
from saccade.engine.evaluate import EvaluateConfig, Evaluation, Mistake, evaluate_split
from saccade.engine.run import RunFolder
from saccade.errors import RunError
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.heatmap import Heatmap
from saccade.explanation.methods import suited
from saccade.explanation.routing import has_experts, routing_maps
from saccade.models.base import VisionModel

AnyModel = VisionModel[Any, Any, Any]
MARKS = {"supported": "●", "weak": "◐", "failed": "○"}
"""A shape beside the word, so that a verdict is never told by colour alone."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """What the page shows."""

    title: str = "Evaluation"
    """Heading."""
    split: str | None = None
    """Which split to evaluate on; the one that is held out where it is None."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How to evaluate."""
    mistakes: int = 9
    """How many of the worst mistakes are explained."""
    compared: int = 3
    """On how many pictures the methods are drawn side by side."""
    methods: tuple[str, ...] = ("relevance", "gradcam", "hirescam", "gradient", "integrated_gradients", "occlusion")
    """Methods drawn side by side, where they suit the model."""


@dataclass(frozen=True)
class Picture:
    """One picture of the page, as a data URI."""

    data: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """Some pictures that belong together, with words and perhaps a verdict."""

    pictures: Sequence[Picture]
    lines: Sequence[str]
    source: str
    verdict: dict[str, str] | None = None


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    title: str
    note: str = ""
    plots: Sequence[Picture] = ()
    cards: Sequence[Card] = ()
    table: dict[str, Any] | None = None
    details: Sequence[dict[str, str]] = field(default_factory=list)


def evaluate_and_report(
    model: AnyModel, source: DataSource, folder: Path, config: ReportConfig | None = None
) -> Evaluation:
    """Evaluate on one split and write the page into ``folder``.

    Raises:
        RunError: where the folder cannot be written; told before the work begins.
        DataError: where model and data do not know the same classes, or no picture can be read.
    """
    config = config or ReportConfig()
    check_folder(folder)
    dataset, evaluation = evaluate_split(model, source, config.split, config.evaluate)
    write_report(folder, model, dataset, evaluation, config)
    return evaluation


def report_run(folder: Path, data: Any = None, *, strict: bool = False) -> Evaluation:
    """Evaluate the best model of a finished run on its held-out pictures; the page lands in the run folder.

    Where the data has a ``test`` split that one is taken: ``val`` has chosen the model.

    Args:
        folder: the run folder.
        data: what it was trained on; opened by the name in the run folder where it is None.
        strict: fail at the first unreadable picture.
    """
    if data is None:
        data = RunFolder(folder).read_json("config.json")["data"]["name"]
    source = open_data(data, strict=strict)
    split = "test" if "test" in source.splits else source.held_out
    model = load_model(RunFolder(folder).best)
    config = ReportConfig(title=folder.name, split=split, evaluate=EvaluateConfig(strict=strict))
    return evaluate_and_report(model, source, folder, config)


def write_report(
    folder: Path,
    model: AnyModel,
    dataset: Dataset,
    evaluation: Evaluation,
    config: ReportConfig | None = None,
) -> Path:
    """Write ``report.html`` (and ``evaluation.json``) into ``folder``.

    Args:
        folder: a run folder, or any folder; what it holds of a run is shown.
        model: what was evaluated.
        dataset: what it was evaluated on; mistakes are read from it again.
        evaluation: the result.
        config: what to show.

    Raises:
        RunError: where the folder cannot be written.
    """
    config = config or ReportConfig()
    output = RunFolder(folder)
    subject = Subject(model)
    sections = [
        *_training(folder),
        _figures(evaluation),
        _mistakes(subject, dataset, evaluation, config),
        _methods(subject, dataset, evaluation, config),
        _experts(model, folder, dataset, config),
        _facts(folder, evaluation),
    ]
    low, high = evaluation.interval
    headline = evaluation.metrics[evaluation.headline]
    figures = [
        {
            "value": _percent(headline),
            "label": f"{evaluation.headline}, 95 % interval {_percent(low)} to {_percent(high)}",
        },
        *(
            {"value": f"{value:.3f}", "label": name}
            for name, value in evaluation.metrics.items()
            if value is not None and name != evaluation.headline
        ),
        {"value": f"{evaluation.num_images:,}", "label": "images evaluated"},
    ]
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        resources.files("saccade.assets").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    lead = f"{len(evaluation.classes)} classes. Every mistake below is explained, and every explanation is measured."
    page = template.render(
        title=config.title, lead=lead, figures=figures, sections=[s for s in sections if s], version=saccade.__version__
    )
    output.write_json("evaluation.json", evaluation.to_dict())
    return write_bytes(folder / "report.html", page.encode("utf-8"))


def _history(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's history; none where the folder holds no run.

    Raises:
        RunError: where a line is damaged, as a killed run may leave its last one.
    """
    history = folder / "history.jsonl"
    if not history.is_file():
        return []
    try:
        return [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        remedy = "resume the run, or choose another --out"
        raise RunError(f"a line is damaged ({error})", where=str(history), remedy=remedy) from error


def _training(folder: Path) -> list[Section]:
    """How the training went, where the folder holds a run."""
    lines = _history(folder)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    if not epochs:
        return []
    best = max(epochs, key=lambda line: line["metrics"].get("top1", 0.0))
    note = (
        f"{len(epochs)} epochs; the best on the validation pictures was epoch {best['epoch']}, which is the model kept."
    )
    steps = [line for line in lines if line["kind"] == "step"]
    loss = render.curves({"loss": _thinned(steps)}, title="Training loss", across="step", up="loss")
    accuracy = render.curves(
        {
            f"{name} weights": (
                [line["epoch"] for line in epochs],
                [line["evaluations"][name]["top1"] for line in epochs],
            )
            for name in epochs[0]["evaluations"]
        },
        title="Validation accuracy",
        across="epoch",
        up="top-1",
    )
    return [Section("Training", note, plots=[_figure(loss, "Training loss"), _figure(accuracy, "Validation accuracy")])]


def _thinned(steps: Sequence[dict[str, Any]], most: int = 150) -> tuple[list[float], list[float]]:
    """Steps and losses for a curve, neighbours averaged so that at most ``most`` points are left."""
    width = -(-len(steps) // most)
    groups = [steps[start : start + width] for start in range(0, len(steps), width)]
    places = [sum(line["step"] for line in group) / len(group) for group in groups]
    return places, [sum(line["total"] for line in group) / len(group) for group in groups]


def _figures(evaluation: Evaluation) -> Section:
    """Confusion and calibration beside each other, classes below."""
    confusion = render.confusion_matrix(evaluation.confusion, evaluation.classes)
    bins = evaluation.reliability
    reliability = render.reliability_diagram(
        [row.confidence for row in bins],
        [row.accuracy for row in bins],
        [row.count for row in bins],
        error=evaluation.metrics["ece"],
    )
    pictures = [_figure(confusion, "Confusion matrix"), _figure(reliability, "Reliability diagram")]
    rows = [
        [row.name, _percent(row.precision), _percent(row.recall), _percent(row.f1), f"{row.support:,}"]
        for row in evaluation.per_class
    ]
    return Section(
        "Where it is right and wrong",
        "Rows of the matrix are true classes. A calibrated model lies on the diagonal of the second picture.",
        plots=pictures,
        table={"head": ["class", "precision", "recall", "F1", "images"], "rows": rows},
    )


def _mistakes(subject: Subject, dataset: Dataset, evaluation: Evaluation, config: ReportConfig) -> Section | None:
    """The wrong predictions that the model was surest of, each with why it said so and what spoke for the truth."""
    worst = evaluation.mistakes[: config.mistakes]
    if not worst:
        return None
    cards = []
    for mistake in worst:
        image = dataset[mistake.index].image
        heat, truth = explain_batch(subject, [image], [mistake.predicted, mistake.true], ExplainOptions())[0]
        pictures = [
            _picture(image, "the picture", "picture"),
            _overlay(heat, f"why {mistake.predicted}"),
            _overlay(truth, f"why {mistake.true}"),
        ]
        cards.append(Card(pictures, _words(mistake), mistake.source, _verdict(heat)))
    note = (
        "The mistakes whose true class got the least probability. The second picture shows what spoke for the answer, "
        "the third what spoke for the truth. The verdict says how far the second can be trusted."
    )
    return Section("Worst mistakes, explained", note, cards=cards)


def _methods(subject: Subject, dataset: Dataset, evaluation: Evaluation, config: ReportConfig) -> Section | None:
    """Several methods on the same pictures, each with its verdict."""
    reasons = suited(subject.spec)
    names = [name for name in config.methods if reasons.get(name, "unknown") is None]
    wrong = {mistake.index for mistake in evaluation.mistakes}
    labels = dataset.labels().tolist()
    chosen: dict[int, int] = {}
    for index, label in enumerate(labels):
        if len(chosen) < config.compared and label not in chosen and index not in wrong:
            chosen[label] = index
    if not names or not chosen:
        return None
    rows = []
    for index in chosen.values():
        sample = dataset[index]
        row = [render.Panel(image=sample.image, title=dataset.classes[int(sample.target.label)], caption="picture")]
        for name in names:
            heat = explain_batch(subject, [sample.image], [None], ExplainOptions(method=name))[0][0]
            row.append(panel(heat, title=name))
        rows.append(row)
    page = _figure(render.side_by_side(rows), "Methods side by side")
    note = (
        "The same pictures explained by several methods. Methods that disagree are a warning in themselves; a map that "
        "failed its checks is crossed out rather than shown as if it were fine."
    )
    return Section("Methods side by side", note, plots=[page])


def _experts(model: AnyModel, folder: Path, dataset: Dataset, config: ReportConfig) -> Section | None:
    """Who does the work in a mixture of experts: load over the training, and the routing of some pictures."""
    if not has_experts(model):
        return None
    chosen = [dataset[index].image for index in range(min(config.compared, len(dataset)))]
    title = "last routed layer"
    plots = [
        _figure(render.routing_map(one.seen, one.experts[-1], one.num_experts, title=title), "Routing map")
        for one in routing_maps(model, chosen)
    ]
    note = "Which expert handled which patch"
    loads = [line["expert_load"] for line in _history(folder) if "expert_load" in line]
    if not loads:
        return Section("Experts", f"{note}.", plots=plots)
    rows = [[str(layer), *(_percent(share) for share in shares)] for layer, shares in enumerate(loads[-1])]
    table = {"head": ["routed layer", *(f"expert {expert}" for expert in range(len(loads[-1][-1])))], "rows": rows}
    note += "; below, the share of the tokens that each took in the last epoch."
    return Section("Experts", note, plots=[_figure(_load_chart(loads), "Load of the experts"), *plots], table=table)


def _load_chart(loads: Sequence[Sequence[Sequence[float]]]) -> Any:
    """Share of the tokens per expert of the last routed layer over the epochs; ``loads`` by epoch, layer, expert."""
    epochs = [float(epoch + 1) for epoch in range(len(loads))]
    num_experts = len(loads[0][-1])
    lines = {f"expert {expert}": (epochs, [load[-1][expert] for load in loads]) for expert in range(num_experts)}
    lines["even control"] = (epochs, [1 / num_experts] * len(loads))
    return render.curves(lines, title="Load of the experts, last routed layer", across="epoch", up="share of tokens")


def panel(heat: Heatmap, title: str = "") -> render.Panel:
    """A heat map as a panel of a page."""
    status = heat.verdict.status if heat.verdict else None
    caption = "whatever the class" if heat.is_class_agnostic else heat.of
    return render.Panel(
        image=heat.image, heat=heat.map, is_signed=heat.is_signed, title=title, caption=caption, status=status
    )


def _facts(folder: Path, evaluation: Evaluation) -> Section:
    """Everything needed to get the same figures again."""
    details = [{"title": "Settings of the evaluation", "text": json.dumps(evaluation.settings, indent=2)}]
    for name, title in (("config.json", "Settings of the training"), ("environment.json", "Machine and versions")):
        path = folder / name
        if path.is_file():
            details.append({"title": title, "text": path.read_text(encoding="utf-8")})
    if evaluation.skipped:
        details.append({"title": f"{len(evaluation.skipped)} unreadable images", "text": "\n".join(evaluation.skipped)})
    return Section("How these figures came about", details=details)


def _words(mistake: Mistake) -> list[str]:
    said = f"said {mistake.predicted} ({_percent(mistake.score)})"
    return [f"{said}, is {mistake.true} ({_percent(mistake.true_score)})"]


def _verdict(heat: Heatmap) -> dict[str, str] | None:
    if heat.verdict is None:
        return None
    reason = heat.verdict.reasons[0] if heat.verdict.reasons else ""
    return {"status": heat.verdict.status, "mark": MARKS[heat.verdict.status], "reason": reason}


def _overlay(heat: Heatmap, caption: str) -> Picture:
    return _picture(heat.overlay(), caption, caption)


def _picture(image: Tensor, alt: str, caption: str) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(render.enlarged(image).permute(1, 2, 0).numpy()).save(buffer, "PNG", optimize=True)
    return Picture(_uri(buffer.getvalue()), alt, caption)


def _figure(figure: Any, alt: str) -> Picture:
    return Picture(_uri(render.to_png(figure, dpi=110)), alt)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
