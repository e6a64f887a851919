"""A verb applied to many files: pictures and folders in, results for machines and for people in a folder."""

from __future__ import annotations

import itertools
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from saccade import render
from saccade.atomic import check_folder, whole_file, write_json
from saccade.data.decode import SUFFIXES, read_image
from saccade.data.walk import pictures_in
from saccade.engine.open_vocabulary import PromptDetector, PromptSegmenter
from saccade.engine.predict import PredictConfig, Predictor
from saccade.engine.retrieval import embed_query, is_picture_path, open_index
from saccade.errors import ConfigError, DataError, ImageError, InputError, UnknownNameError
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.heatmap import Heatmap
from saccade.explanation.methods import method, suited
from saccade.explanation.questions import check_question
from saccade.explanation.routing import has_experts, routing_maps
from saccade.opening import AnyModel
from saccade.ops.masks import connected_components
from saccade.report import panel
from saccade.tasks import TASKS
from saccade.types import Detections, Segmentation

MOST_PARTS = 200
"""Connected parts of a label map that are listed."""


def picture_paths(paths: Iterable[Path], *, leave_out: Path | None = None) -> list[Path]:
    """The files themselves, and all pictures inside the folders, sorted; what is hidden is no picture.

    Args:
        paths: files and folders.
        leave_out: a folder that is not looked into: what a verb wrote there is no input of the next one.

    Raises:
        DataError: where a path does not exist or a folder holds no picture.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            shown = pictures_in(path, leave_out=leave_out)
            if not shown:
                expected = f"files ending in {', '.join(sorted(SUFFIXES))}"
                raise DataError("there is no picture in this folder", where=str(path), expected=expected)
            found += shown
        elif path.exists():
            found.append(path)
        else:
            raise DataError("there is no such file or folder", where=str(path), remedy="check the path")
    return found


def predict_files(
    model: AnyModel | PromptSegmenter | PromptDetector,
    paths: Iterable[Path],
    *,
    top: int,
    exact: bool,
    score: float,
    out: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """One plain record per picture: its path and its classes, likeliest or largest first.

    Of a picture that cannot be read the record is its path and the ``error``; the others go on.

    Args:
        model: of any task, or what applies prompts to pixels or boxes.
        paths: pictures, and folders of them.
        top: how many classes to tell.
        exact: the float32 model as written, no faster copy.
        score: lowest score of an object that is drawn; all are listed.
        out: folder for what is best looked at: of label maps ``NAME-labels.png``, whose values are the labels, and
            ``NAME-overlay.png``; of objects ``NAME-objects.png``.

    Raises:
        ConfigError: where ``top`` leaves nothing to tell, or ``score`` is none.
        ImageError: after the last record, where some pictures cannot be read; at once, where the only one cannot.
    """
    if top < 1:
        raise ConfigError(f"{top} classes per picture leave nothing to tell", where="--top", expected="at least 1")
    if not 0 <= score <= 1:
        raise ConfigError(f"{score} is not the score of an object", where="--score", expected="in [0, 1]")
    files = picture_paths(paths, leave_out=out)
    predictor = (
        model
        if isinstance(model, PromptSegmenter | PromptDetector)
        else Predictor(model, PredictConfig(speed="exact" if exact else "auto"))
    )
    waiting: deque[tuple[Path, str, ImageError | None]] = deque()

    def readable() -> Iterator[Tensor]:
        """The pictures, as long as they can be read; what becomes of each file is noted in ``waiting``."""
        for path, stem in zip(files, _stems(files), strict=True):
            try:
                picture = read_image(path)
            except ImageError as error:
                waiting.append((path, stem, error))
            else:
                waiting.append((path, stem, None))
                yield picture

    unreadable: list[ImageError] = []

    def faulty() -> Iterator[dict[str, Any]]:
        """Records of the unreadable files that come before the next prediction."""
        while waiting and (error := waiting[0][2]) is not None:
            if len(files) == 1:
                raise error
            unreadable.append(error)
            yield {"image": str(waiting.popleft()[0]), "error": str(error)}

    for prediction in predictor.stream_pictures(readable()):
        yield from faulty()
        path, stem, _ = waiting.popleft()
        record = {"image": str(path), **TASKS[model.task].record(prediction, top)}
        if out is not None and isinstance(prediction, Segmentation):
            record |= _write_maps(prediction, path, out, stem)
        if out is not None and isinstance(prediction, Detections):
            drawn = render.box_overlay(read_image(path), prediction.above(score), prediction.classes)
            record |= {"drawn": _write_picture(drawn, out / f"{stem}-objects.png")}
        yield record
    yield from faulty()
    if unreadable:
        raise ImageError(f"{len(unreadable)} of {len(files)} pictures cannot be read; the first: {unreadable[0]}")


def told(record: Mapping[str, Any], score: float) -> str:
    """A record of ``predict_files`` in one line; of objects those with this score."""
    if "error" in record:
        return f"unreadable: {record['error']}"
    if "top" in record:
        words = "   ".join(f"{entry['class']} {entry['score']:.1%}" for entry in record["top"])
    elif "objects" in record:
        words = _told_objects(record["objects"], score)
    else:
        words = "   ".join(f"{entry['class']} {entry['share']:.1%} of the pixels" for entry in record["classes"])
    return f"{record['image']}: {words}"


def _told_objects(objects: Sequence[Mapping[str, Any]], score: float) -> str:
    """How many objects of each class, and the likeliest of each; those of no great score in a number alone."""
    clear = [entry for entry in objects if entry["score"] >= score]
    best: dict[str, float] = {}
    counts = Counter(entry["class"] for entry in clear)
    for entry in clear:
        best.setdefault(entry["class"], entry["score"])
    words = [f"{count} {name} (best {best[name]:.1%})" for name, count in counts.most_common()]
    if len(clear) < len(objects):
        hint = "" if clear else f", the best {max(entry['score'] for entry in objects):.1%}; --score shows them"
        words.append(f"{len(objects) - len(clear)} below {score:.0%}{hint}")
    return "   ".join(words) or "nothing found"


def _write_picture(image: Tensor, place: Path) -> str:
    """Write a picture ``[3, h, w]`` uint8 as PNG; returns the name of the file."""
    with whole_file(place) as temporary:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    return place.name


def _write_maps(prediction: Segmentation, path: Path, out: Path, stem: str) -> dict[str, Any]:
    """Write the label map and its overlay; returns their names, and the connected parts that can be explained."""
    hidden = prediction.classes.backgrounds
    colours = render.class_colours(len(prediction.classes))
    labels, overlay = out / f"{stem}-labels.png", out / f"{stem}-overlay.png"
    indexed = Image.fromarray(prediction.labels.numpy(), "P")
    indexed.putpalette(colours.flatten().tolist())
    drawn = render.label_overlay(read_image(path), prediction.labels, len(prediction.classes), hidden)
    with whole_file(labels) as temporary:
        indexed.save(temporary, format="PNG")
    _write_picture(drawn, overlay)
    parts = connected_components(prediction.labels, hidden, most=MOST_PARTS)
    listed = [
        {"component": number, "class": prediction.classes[part.label], "pixels": part.area, "box": list(part.box)}
        for number, part in enumerate(parts, 1)
    ]
    return {"labels": labels.name, "overlay": overlay.name, "components": listed}


class SearchResults(NamedTuple):
    """What a search found.

    Attributes:
        records: path and score of each picture, most similar first.
        notes: what the user should know, one sentence each.
    """

    records: list[dict[str, Any]]
    notes: tuple[str, ...]


def search_files(
    model: AnyModel, folder: Path, query: str, *, top: int, out: Path | None = None, is_half: bool = False
) -> SearchResults:
    """The pictures of a folder that fit words or another picture.

    Args:
        model: words want one for zero_shot; pictures any classifier.
        folder: of pictures; the index is kept in it.
        query: words, or the path of a picture.
        top: how many pictures.
        out: folder for ``found.json`` and ``found.png``.
        is_half: keep the vectors in 16 bits.
    """
    if out is not None:
        check_folder(out)
    vector = embed_query(model, query)
    index, notes = open_index(model, folder, dtype="float16" if is_half else "float32", leave_out=out)
    found = index.search(vector, top)[0]
    records = [{"image": str(one.path), "score": one.score} for one in found]
    if out is not None:
        write_json(out / "found.json", {"query": query, "model": index.digest, "of": len(index), "found": records})
        names = [one.path.relative_to(folder).as_posix() for one in found]
        looked_for = read_image(query) if is_picture_path(query) else None
        sheet = render.found_sheet(
            [read_image(one.path) for one in found],
            [one.score for one in found],
            names,
            title=f"{query if looked_for is None else Path(query).name}: the most similar of {len(index)}",
            query=looked_for,
        )
        render.save(sheet, out / "found.png")
    return SearchResults(records, notes)


def explain_files(
    model: AnyModel,
    paths: Iterable[Path],
    of: Sequence[str],
    options: ExplainOptions,
    methods: Sequence[str],
    out: Path,
) -> Iterator[str]:
    """Explain every class on every picture by every method; writes a picture, an array and a manifest for each.

    With several methods, one page per picture shows them side by side; with experts, one more says which of them
    handled which patch. Questions, folder and pictures are checked before the first map is computed, so that a mistake
    leaves nothing behind.

    Yields:
        One line per heat map, for people.
    """
    files = picture_paths(paths, leave_out=out)
    names = _methods(model, methods)
    questions: list[str | None] = list(of) or [None]
    subject = Subject(model)
    _check_questions(subject, of, options, names)
    check_folder(out)
    for path in files:
        read_image(path)
    for path, stem in zip(files, _stems(files), strict=True):
        maps: list[Heatmap] = []
        try:
            for name in names:
                maps += _explained(subject, path, questions, replace(options, method=name))
        except InputError as error:
            # Of many pictures some will not show what is asked for; of a single one that is a mistake.
            if len(files) == 1 or not (subject.has_regions or subject.has_boxes):
                raise
            yield f"left out: {error}"
            continue
        for heat in maps:
            place = out / _file_name(f"{stem}-{heat.of}-{heat.name}")
            heat.save(f"{place}.png")
            heat.save_array(f"{place}.npz")
            write_json(f"{place}.json", {"image": str(path), **heat.about()})
            yield f"{path}: {describe(heat)}"
            yield from (f"{path}: {note}" for note in heat.notes)
        # A box, its sides and its mask come from one candidate, by whatever method they are explained.
        for words, fired in {heat.fired.words: heat.fired for heat in maps if heat.fired is not None}.items():
            _write_picture(fired.drawn(maps[0].image), out / f"{_file_name(f'{stem}-{words}')}-fired.png")
        if len(names) > 1:
            first = render.Panel(image=maps[0].image, title="picture", caption=path.name)
            panels = [first, *(panel(heat, title=heat.name) for heat in maps)]
            rows = [panels[start : start + 6] for start in range(0, len(panels), 6)]
            render.save(render.side_by_side(rows), out / f"{stem}-methods.png")
        if has_experts(model):
            routing = routing_maps(model, [path])[0]
            for layer, shares in enumerate(routing.shares()):
                routing.save(out / f"{stem}-routing-{layer}.png", layer)
                yield f"{path}: routed layer {layer}, patches per expert: " + " ".join(f"{s:.0%}" for s in shares)


def _explained(subject: Subject, path: Path, questions: Sequence[str | None], options: ExplainOptions) -> list[Heatmap]:
    """The heat maps of one picture; whether a pixel or part is there depends on the picture, so that is named."""
    try:
        return explain_batch(subject, [path], questions, options)[0]
    except InputError as error:
        if error.where in ("of", "against"):
            error.where = f"{path}: --{error.where}"
        raise


def describe(heat: Heatmap) -> str:
    """A heat map in one line: what, by which method, how far to trust it, the first reason, what that cost."""
    fired = "" if heat.fired is None else f" from {heat.fired.words},"
    line = f"{heat.label}{fired} by {heat.name}"
    if heat.verdict is None:
        return line
    reason = f" - {heat.verdict.reasons[0]}" if heat.verdict.reasons else ""
    return f"{line}: {heat.verdict.status}{reason} ({heat.verdict.cost_forwards} pictures forward)"


def _methods(model: AnyModel, asked: Sequence[str]) -> list[str]:
    if "all" not in asked:
        return list(asked)
    has_boxes = model.task in {"detection", "instance"}
    return [name for name, reason in suited(model.explain_spec(), has_boxes=has_boxes).items() if reason is None]


def _check_questions(subject: Subject, of: Sequence[str], options: ExplainOptions, names: Sequence[str]) -> None:
    """Refuse methods, layers and classes that do not exist, naming the option."""
    for name in names:
        if name != "auto":
            method(name)
    if options.layer != "auto" and options.layer not in subject.spec.layers:
        raise UnknownNameError("layer", options.layer, ("auto", *subject.spec.layers), where="--layer")
    against = [options.against] if isinstance(options.against, str) else []
    for option, asked in (("--of", of), ("--against", against)):
        is_of = option == "--of"
        for name in asked:
            try:
                check_question(
                    name,
                    subject.classes,
                    has_regions=is_of and subject.has_regions,
                    has_boxes=is_of and subject.has_boxes,
                )
            except UnknownNameError as error:
                error.where = option
                raise


def _stems(files: Sequence[Path]) -> list[str]:
    """A name for what is written about each file; pictures of equal names get numbers, so that none hides another."""
    stems: dict[str, None] = {}
    numbers: dict[str, Iterator[int]] = {}
    for file in files:
        stem = name = _file_name(file.stem) or "picture"
        # Each name goes on counting where it stopped: thousands of cameras call their pictures the same.
        count = numbers.setdefault(stem, itertools.count(2))
        while name in stems:
            name = f"{stem}-{next(count)}"
        stems[name] = None
    return list(stems)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")
