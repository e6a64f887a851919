"""The demo: the main jobs on embedded data, end to end - train, evaluate, predict, explain, report."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console

from saccade import render
from saccade.api import explain, finished, predict, search, start, task_of
from saccade.atomic import check_folder, whole_file, write_json
from saccade.config import to_dict
from saccade.console import bold, clock, print_evaluation, show_training
from saccade.data.dataset import Dataset
from saccade.data.decode import read_image
from saccade.data.source import open_data
from saccade.engine.recipes import BLOOD_CELLS, CLOTHES, EMOJI, NUCLEI, SINGLE_NUCLEI, Recipe
from saccade.errors import RunError
from saccade.opening import AnyModel
from saccade.report import Part, ReportConfig, evaluate_and_report, write_page
from saccade.report.page import Card, Section, figure, overlay, picture, verdict_of
from saccade.tasks.base import percent
from saccade.types import Caption, Classification, Embedding, Prediction, Sample, Segmentation

TASKS = (
    ("classification", CLOTHES),
    ("segmentation", NUCLEI),
    ("detection", BLOOD_CELLS),
    ("instances", SINGLE_NUCLEI),
    ("zero_shot", EMOJI),
)
"""Folder and recipe of each job."""

SHOWN = "instances"
"""The folder that the last line speaks of."""

PAGE = "report.html"
"""The page of the whole demo."""

MARKER = "demo.json"
"""The file that lists the folders that a demo wrote: only these are ever replaced."""

QUERIES = ("face", "red heart")
"""What the zero-shot part looks for: words that people used of other pictures."""


def run(out: Path, *, overwrite: bool, console: Console) -> Path:
    """Run the demo into the folder ``out``; returns the report.

    Raises:
        RunError: where the folder exists and may not be replaced, or is no earlier demo.
    """
    began = time.monotonic()
    check_folder(out)
    _make_room(out, overwrite=overwrite)
    write_json(out / MARKER, {"written by": "saccade demo", "folders": [name for name, _ in TASKS]})
    parts = [_one(out / name, recipe, console) for name, recipe in TASKS]
    lead = "What `saccade demo` made of the embedded data: each part is a run of its own, in a folder beside this page."
    page = write_page(out / PAGE, "Saccade demo", lead, parts)
    console.print(f"\n{clock(time.monotonic() - began)} minutes in all. Open", bold(page))
    folder = out / SHOWN
    console.print(f"Next: saccade predict {folder} photo.png --out maps   saccade explain {folder} photo.png")
    return page


def _one(folder: Path, recipe: Recipe, console: Console) -> Part:
    """Train, evaluate, predict and explain one recipe; returns its part of the page."""
    source = open_data(recipe.data, task=task_of(recipe.model))
    counts = ", ".join(f"{len(dataset)} {name}" for name, dataset in source.splits.items())
    console.print(bold(f"\n{folder.name}: train"), f" {recipe.model} on {recipe.data} ({counts} images)")
    overrides = [f"model.{override}" for override in recipe.overrides]
    _, records = start(recipe.model, source, out=folder, settings=to_dict(recipe.train), assignments=overrides)
    show_training(records, console)
    trained = finished(folder)

    split = source.scored
    console.print(bold(f"\n{folder.name}: evaluate"), f" on the images of {split}")
    # Half of what a report explains otherwise: five of them are made.
    config = ReportConfig(split=split, title=f"{recipe.model} on {recipe.data}", mistakes=4, regions=2, compared=1)
    evaluation, part = evaluate_and_report(trained.model, source, folder, config)
    print_evaluation(evaluation, console)

    held_out = source.split(split)
    if trained.model.task == "zero_shot":
        part = replace(part, sections=[*_in_words(trained.model, folder, held_out, console), *part.sections])
        write_page(folder / "report.html", part.title, part.lead, [part])
        return part
    console.print(bold(f"\n{folder.name}: predict"), " three of them")
    samples = [held_out[index] for index in range(3)]
    for sample, prediction in zip(samples, predict(trained.model, [s.image for s in samples]), strict=True):
        console.print(f"  {sample.source}: {_words(prediction)}")

    console.print(bold(f"\n{folder.name}: explain"), " why, and how far to trust the answer")
    heat = explain(trained.model, samples[0].image)
    picture = heat.save(folder / "why.png")
    if heat.verdict is not None:
        console.print(f"  {heat.of}: {heat.verdict.status} - {heat.verdict.reasons[0]} ({picture})")
    return part


def _in_words(model: AnyModel, folder: Path, held_out: Dataset, console: Console) -> list[Section]:
    """What a model of pictures and texts is asked in words: to find, to name, and why."""
    samples = [held_out[index] for index in range(len(held_out))]
    return [_found(model, folder, samples, console), _named(model, folder, held_out, samples, console)]


def _found(model: AnyModel, folder: Path, samples: Sequence[Sample], console: Console) -> Section:
    """The held-out pictures, in a folder, and which of them words find."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for sample in samples:
        with whole_file(pictures / Path(sample.source).name) as temporary:
            Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    texts = {Path(sample.source).name: _text(sample).partition(", ")[0] for sample in samples}
    console.print(bold(f"\n{folder.name}: search"), f" in {len(samples)} held-out pictures")
    plots = []
    for query in QUERIES:
        found = search(model, pictures, query, top=5)
        names = [texts[one.path.name] for one in found]
        console.print(f"  {query!r}: {'; '.join(names)}")
        images, scores = [read_image(one.path) for one in found], [one.score for one in found]
        sheet = render.found_sheet(images, scores, names, title=f"{query}: the most similar of {len(samples)}")
        plots.append(figure(sheet, f"Pictures found by the words {query}"))
    note = "None of these pictures was shown in training, nor was its text. The number is the cosine with the words."
    return Section("Found by words", note, plots=plots)


def _named(model: AnyModel, folder: Path, held_out: Dataset, samples: Sequence[Sample], console: Console) -> Section:
    """Some held-out pictures named by words alone, each with the reason."""
    names = held_out.classes.names
    console.print(bold(f"\n{folder.name}: predict and explain"), f" {len(names)} names, by their words alone")
    cards = []
    for sample in samples[:: max(len(samples) // 3, 1)][:3]:
        prediction = predict(model, sample.image, classes=names)[0]
        assert isinstance(prediction, Classification)
        (first, _), (second, _) = top = prediction.top(2)
        heat = explain(model, sample.image, classes=names, of=first, against=second)
        console.print(f"  {_text(sample)!r}: {', '.join(f'{name} {percent(score)}' for name, score in top)}")
        told = f"{first} rather than {second}"
        pictures = [picture(sample.image, _text(sample), _text(sample)), overlay(heat, told)]
        lines = [f"{name} {percent(score)}" for name, score in prediction.top(3)]
        cards.append(Card(pictures, lines, sample.source, verdict_of(heat)))
    note = "The names are read as texts. What is orange speaks for the first name and against the second."
    return Section("Named and explained by words", note, cards=cards)


def _text(sample: Sample) -> str:
    assert isinstance(sample.target, Caption)
    return sample.target.texts[0]


def _words(prediction: Prediction) -> str:
    if isinstance(prediction, Classification):
        return f"{prediction.name} {percent(prediction.score)}"
    if isinstance(prediction, Embedding):
        return f"a vector of {len(prediction.image)} numbers"
    if not isinstance(prediction, Segmentation):
        counts = Counter(prediction.name(index) for index in range(len(prediction.above(0.5))))
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"
    return ", ".join(f"{name} {percent(share)} of the pixels" for name, share in prediction.areas().items())


def _make_room(out: Path, *, overwrite: bool) -> None:
    """Remove an earlier demo, and nothing else: a folder of runs may lie there, with names like those of a demo.

    Raises:
        RunError: where the folder holds something and may not be replaced, is no earlier demo, or holds anything that
            no demo wrote.
    """
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise RunError("the folder exists already", where=str(out), remedy="choose another --out, or add --overwrite")
    if not (out / MARKER).is_file():
        told = "the folder holds something that is no demo, so it is not replaced"
        raise RunError(told, where=str(out), expected=f"a folder with {MARKER}", remedy="choose another --out")
    # A page that was being written when a demo was stopped, and what systems leave in folders that were looked at.
    ours = {name for name, _ in TASKS} | {MARKER, PAGE, ".DS_Store", "Thumbs.db"}
    foreign = [path.name for path in sorted(out.iterdir()) if path.name not in ours]
    foreign = [name for name in foreign if not name.startswith((f".{Path(PAGE).stem}.", f".{Path(MARKER).stem}."))]
    if foreign:
        names = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        remedy = "move it elsewhere, or choose another --out"
        raise RunError(f"the folder holds what no demo wrote ({names})", where=str(out), remedy=remedy)
    # The marker goes last, so that a removal that was cut short can be taken up again.
    for path in sorted(out.iterdir(), key=lambda path: path.name == MARKER):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
