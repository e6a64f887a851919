"""The report: one file that needs nothing else, with every mistake explained."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import saccade
from saccade.data.dataset import ArrayDataset, Dataset
from saccade.data.source import DataSource, open_data
from saccade.errors import RunError
from saccade.report import ReportConfig, evaluate_and_report, report_run, write_report
from saccade.tasks.classification import ClassificationEvaluation
from saccade.types import Classes, MapTarget, Sample, Segmentation

pytestmark = pytest.mark.xdist_group("verbs")

LINKS = {"href", "src", "srcset", "data", "action", "formaction", "poster", "background", "cite", "ping", "manifest"}
"""Attributes through which a page can point elsewhere."""


class Page(HTMLParser):
    """A page taken apart.

    Attributes:
        text: words of each element by tag, in order.
        links: values of the attributes that can point elsewhere.
        tags: names of all elements.
        articles: all words of each card.
        num_card_pictures: pictures in all cards together.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.text: dict[str, list[str]] = {}
        self.links: list[str] = []
        self.tags: list[str] = []
        self.articles: list[str] = []
        self.num_card_pictures = 0
        self._open: list[str] = []
        self.feed(self.raw)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in LINKS]
        if tag not in {"img", "meta", "br", "link", "input"}:
            self._open.append(tag)
            self.text.setdefault(tag, []).append("")
        self.num_card_pictures += tag == "img" and "article" in self._open
        if tag == "article":
            self.articles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "the elements are nested"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text[self._open[-1]][-1] += data
        if "article" in self._open:
            self.articles[-1] += data

    def pictures(self) -> list[Image.Image]:
        """Every embedded picture, decoded."""
        found = []
        for link in self.links:
            kind, _, content = link.partition(",")
            assert kind == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
                picture.load()
                found.append(picture.copy())
        return found


def assert_needs_nothing_else(page: Page) -> None:
    assert page.links
    assert all(link.startswith("data:") for link in page.links)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(|javascript:|\son\w+=", page.raw)
    without_data = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page.raw)
    assert not re.search(r"https?:|ftp:|file:|//\w", without_data)


@pytest.fixture(scope="module")
def run_page(trained: Path) -> Page:
    return Page(trained / "report.html")


def test_the_page_of_a_run_needs_nothing_else(run_page: Page) -> None:
    assert_needs_nothing_else(run_page)
    pictures = run_page.pictures()
    assert len(pictures) > 10
    assert all(min(picture.size) >= 32 for picture in pictures)
    assert all(np.asarray(picture).std() > 1 for picture in pictures), "none of them is blank"


def test_the_check_would_notice_a_reference(tmp_path: Path) -> None:
    for reference in ('<img src="a.png">', '<a href="https://a.org">a</a>', "<style>b{background:url(a)}</style>"):
        (tmp_path / "page.html").write_text(f'<p>word</p><img src="data:image/png;base64,AA==">{reference}')
        with pytest.raises(AssertionError):
            assert_needs_nothing_else(Page(tmp_path / "page.html"))
    (tmp_path / "page.html").write_text('<img src="data:image/png;base64,AAAA">')
    with pytest.raises((OSError, binascii.Error)):
        Page(tmp_path / "page.html").pictures()


def test_the_page_of_a_run_tells_what_the_files_hold(run_page: Page, trained: Path) -> None:
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert run_page.text["h1"] == ["tiny"]
    assert run_page.text["h2"] == [
        "Training",
        "Where it is right and wrong",
        "Worst mistakes, explained",
        "Methods side by side",
        "How these figures came about",
    ]
    assert f"{100 * evaluation['metrics']['top1']:.1f} %" in run_page.text["b"]
    low, high = evaluation["interval"]
    assert any(f"95 % interval {100 * low:.1f} % to {100 * high:.1f} %" in words for words in run_page.text["span"])
    cells = run_page.text["td"]
    for row in evaluation["per_class"]:
        assert cells[cells.index(row["name"]) + 4] == str(row["support"])
    settings = [json.loads(text) for text in run_page.text["pre"]]
    assert settings[0] == evaluation["settings"]
    assert settings[1] == json.loads((trained / "config.json").read_text())
    assert settings[2] == json.loads((trained / "environment.json").read_text())


def test_every_mistake_is_explained_and_judged(run_page: Page, trained: Path) -> None:
    mistakes = json.loads((trained / "evaluation.json").read_text())["mistakes"]
    shown = mistakes[: ReportConfig().mistakes]
    assert len(run_page.articles) == len(shown) > 0
    for words, mistake in zip(run_page.articles, shown, strict=True):
        assert f"said {mistake['predicted']} ({100 * mistake['score']:.1f} %), is {mistake['true']}" in words
        assert f"why {mistake['predicted']}" in words
        assert f"why {mistake['true']}" in words
        assert mistake["source"] in words
        badge = re.search(r"(●|◐|○) (supported|weak|failed) (\S.+)", words.replace(mistake["source"], ""))
        assert badge is not None
        assert badge[1] == {"supported": "●", "weak": "◐", "failed": "○"}[badge[2]]
        assert len(badge[3]) > 10, "the verdict has a reason"
    assert run_page.num_card_pictures == 3 * len(shown), "the picture, what spoke for the answer, what for the truth"


@pytest.mark.usefixtures("short_report")
def test_the_test_split_is_reported_where_there_is_one(trained: Path, colours: Path, tmp_path: Path) -> None:
    source = open_data(colours)
    three = DataSource({**source.splits, "test": source.splits["train"]}, source.classes, "three", "three")
    for name in ("best.safetensors", "history.jsonl"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert report_run(tmp_path, three).num_images == 40
    assert report_run(tmp_path, source).num_images == 20


def test_a_history_cut_in_a_line_is_named(trained: Path, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_bytes((trained / "history.jsonl").read_bytes()[:-9])
    with pytest.raises(RunError, match=r"history\.jsonl: a line is damaged .*; resume the run, or choose another"):
        evaluate_and_report(saccade.load(trained), open_data(colours), tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]


# --- pages of small evaluations


@pytest.fixture(scope="module")
def dataset() -> ArrayDataset:
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = Classes(("<script>alert(1)</script>", "a & b"))
    return ArrayDataset(images, torch.tensor([0, 1, 0, 1, 0, 1]), names, "<i>noise</i>")


SMALL = ReportConfig(title="<b>bold</b>", mistakes=1, compared=1, methods=("gradient",))


def small_page(name: str, dataset: Dataset, folder: Path, **changes: Any) -> tuple[Page, ClassificationEvaluation]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = saccade.create(name, classes=dataset.classes.names).eval()
    source = DataSource({"val": dataset}, dataset.classes, "noise", "noise")
    evaluation, _ = evaluate_and_report(model, source, folder, SMALL)
    assert isinstance(evaluation, ClassificationEvaluation)
    if changes:
        evaluation = dataclasses.replace(evaluation, **changes)
        write_report(folder, model, dataset, evaluation, SMALL)
    return Page(folder / "report.html"), evaluation


def test_names_are_text_and_never_markup(dataset: ArrayDataset, tmp_path: Path) -> None:
    page, evaluation = small_page("vit_average_test", dataset, tmp_path / "deep/er")
    assert_needs_nothing_else(page)
    assert page.text["h1"] == ["<b>bold</b>"]
    assert "<script>alert(1)</script>" in page.text["td"]
    assert "i" not in page.tags
    assert len(page.articles) == 1
    assert evaluation.mistakes[0].source in page.articles[0]
    assert "Training" not in page.text["h2"], "the folder holds no run"
    assert "Experts" not in page.text["h2"], "the model has none"


def test_a_page_without_mistakes(dataset: ArrayDataset, tmp_path: Path) -> None:
    page, _ = small_page("vit_average_test", dataset, tmp_path, mistakes=())
    assert "Worst mistakes, explained" not in page.text["h2"]
    assert "Where it is right and wrong" in page.text["h2"]
    assert page.articles == []


@pytest.mark.usefixtures("short_report")
def test_experts_are_shown_where_there_are_some(command: Any, colours: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--epochs", 2, "--set", "train.limit_steps=1", "--set", "model.backbone.moe.num_experts=3", "--out", run]
    ended = command("train", "vit_moe_test", colours, *words)
    assert ended.status == 0
    assert re.search(r"expert load, routed layer 0: \d+% \d+% \d+%", ended.out)
    page = Page(run / "report.html")
    assert_needs_nothing_else(page)
    assert "Experts" in page.text["h2"]
    assert [head for head in page.text["th"] if head.startswith("expert ")] == ["expert 0", "expert 1", "expert 2"]
    epochs = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    load = [line["expert_load"] for line in epochs if line["kind"] == "epoch"][-1]
    cells = page.text["td"][-4 * len(load) :]
    for layer, shares in enumerate(load):
        row = cells[4 * layer : 4 * layer + 4]
        assert row == [str(layer), *(f"{100 * share:.1f} %" for share in shares)]
        assert sum(shares) == pytest.approx(1)


def test_a_place_that_takes_no_page_is_refused_before_the_work(
    dataset: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("saccade.report.evaluate_split", lambda *_: pytest.fail("evaluated in vain"))
    for folder in (tmp_path / "file", tmp_path / "file/folder"):
        with pytest.raises(RunError, match=r"file.*expected a folder; choose another --out"):
            small_page("vit_average_test", dataset, folder)


# --- label maps


@pytest.fixture(scope="module")
def map_page(trained_segmenter: Path, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    folder = tmp_path_factory.mktemp("maps")
    model, source = saccade.load(trained_segmenter), open_data(painted, task="semantic")
    config = ReportConfig(title="maps", regions=2, compared=1, methods=("gradient", "relevance", "layercam"))
    _, part = evaluate_and_report(model, source, folder, config)
    assert [section.title for section in part.sections] == Page(folder / "report.html").text["h2"]
    return Page(folder / "report.html"), folder


def test_the_page_of_label_maps_needs_nothing_else(map_page: tuple[Page, Path]) -> None:
    page, folder = map_page
    assert_needs_nothing_else(page)
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "report.html"}
    assert all(np.asarray(picture.convert("RGB")).std() > 1 for picture in page.pictures())
    assert page.text["h2"][0] == "Where it is right and wrong"
    assert {"Worst label maps", "Best label maps", "Largest mistakes, explained"} <= set(page.text["h2"])
    assert "Training" not in page.text["h2"], "the folder holds no run"


def test_the_page_of_label_maps_tells_what_the_files_hold(map_page: tuple[Page, Path]) -> None:
    page, folder = map_page
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert f"{100 * evaluation['metrics']['miou']:.1f} %" in page.text["b"]
    for row in evaluation["per_class"]:
        place = page.text["td"].index(row["name"])
        shown = page.text["td"][place + 1 : place + 8]
        keys = ("iou", "dice", "precision", "recall", "boundary_f", "share")
        assert shown == [*(f"{100 * row[key]:.1f} %" for key in keys), str(row["images"])]
    galleries = {"worst", "median", "best"}
    shown_cards = [shown for kind in galleries for shown in evaluation[kind]]
    assert shown_cards
    for shown in shown_cards:
        words = f"mean IoU {100 * shown['miou']:.1f} %"
        assert any(words in card and shown["source"] in card for card in page.articles), shown


def test_the_gallery_shows_truth_prediction_and_mistakes_with_a_legend(map_page: tuple[Page, Path]) -> None:
    page, folder = map_page
    evaluation = json.loads((folder / "evaluation.json").read_text())
    cards = [card for card in page.articles if "mean IoU" in card]
    assert len(cards) == sum(len(evaluation[kind]) for kind in ("worst", "median", "best"))
    explained = [card for card in page.articles if "of the picture: said" in card]
    assert 4 * len(cards) + 2 * len(explained) == page.num_card_pictures
    for card in cards:
        assert all(word in card for word in ("picture", "truth", "predicted", "mistakes"))
    colours = {name: code for code, name in re.findall(r"(#[0-9a-f]{6})[^>]*>(?:<[^>]+>)*\s*(red|blue)\b", page.raw)}
    assert set(colours) == {"red", "blue"}, "a background is not tinted, so it needs no colour"
    assert colours["red"] != colours["blue"]


def test_the_largest_mistakes_are_explained_against_the_truth(map_page: tuple[Page, Path], painted: Path) -> None:
    page, folder = map_page
    worst = json.loads((folder / "evaluation.json").read_text())["worst"]
    explained = [card for card in page.articles if "of the picture: said" in card]
    assert len(explained) == 2
    for card, shown in zip(explained, worst, strict=False):
        assert shown["source"] in card
        found = re.search(r"([\d.]+) % of the picture: said (\w+) in a mask rather than (\w+)", card)
        assert found is not None
        share, said, true = float(found[1]), found[2], found[3]
        assert said != true
        assert 0 < share < 20
        assert re.search(r"(supported|weak|failed)", card)


def test_a_perfect_segmenter_has_no_mistakes_to_explain(trained_segmenter: Path, painted: Path, tmp_path: Path) -> None:
    model = saccade.load(trained_segmenter)
    dataset = open_data(painted, task="semantic").split("val")

    class Agreed:
        """The pictures of the data set with the model's own answers for their truth."""

        task, classes, licence = "semantic", dataset.classes, None

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            sample = dataset[index]
            found = saccade.predict(model, sample.image, speed="exact")[0]
            assert isinstance(found, Segmentation)
            return Sample(sample.image, MapTarget(found.labels), sample.source)

        def fingerprint(self) -> str:
            return "agreed"

    source = DataSource({"val": Agreed()}, dataset.classes, "agreed", "agreed")
    config = ReportConfig(compared=1, methods=("gradient",))
    evaluation, _ = evaluate_and_report(model, source, tmp_path, config)
    assert evaluation.metrics["miou"] == 1
    page = Page(tmp_path / "report.html")
    assert "Largest mistakes, explained" not in page.text["h2"]
    assert any("mean IoU 100.0 %" in card for card in page.articles)
