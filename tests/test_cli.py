"""The verbs as commands, from the words on the line to the files on the disk; and what is said to bad input."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import saccade
from saccade.api import start
from saccade.cli import main
from saccade.engine.checkpoint import load_model
from saccade.errors import DataError

pytestmark = pytest.mark.xdist_group("verbs")

RUN_FILES = {
    "best.safetensors",
    "config.json",
    "environment.json",
    "evaluation.json",
    "history.jsonl",
    "last.ckpt",
    "metrics.json",
    "report.html",
}


def contents(*roots: Path) -> dict[Path, str]:
    """Every file and folder below the roots, with a digest of what is in it."""
    found = [path for root in roots for path in root.rglob("*")]
    readable = [path for path in found if path.is_file() and os.access(path, os.R_OK)]
    return dict.fromkeys(found, "") | {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in readable}


@pytest.fixture
def places(tmp_path: Path, colours: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """What a line of words may name, as ``{name}``; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    return {"data": colours, "run": trained, "picture": colours / "val/red/0.png"}


@pytest.fixture
def refused(command: Any, places: dict[str, Path], tmp_path: Path) -> Callable[[str], str]:
    """``refused("train vit_s61 {data}")`` -> the one sentence that this is answered with, leaving nothing behind."""

    def run(line: str) -> str:
        before = contents(tmp_path, places["data"], places["run"])
        ended = command(*line.format(**places).split())
        assert ended.status == 2, ended
        assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
        assert "Traceback" not in ended.out + ended.err
        assert contents(tmp_path, places["data"], places["run"]) == before
        return str(ended.err[len("error: ") : -1])

    return run


# --- what works


def test_train_writes_a_whole_run(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == RUN_FILES
    config = json.loads((trained / "config.json").read_text())
    assert config["name"] == "vit_average_test"
    assert (config["train"]["epochs"], config["train"]["limit_steps"]) == (1, 2)
    assert config["train"]["learning_rate"] == 8e-4
    assert config["model"]["classes"] == ["blue", "dark", "green", "grey", "red"]
    kinds = [json.loads(line)["kind"] for line in (trained / "history.jsonl").read_text().splitlines()]
    assert kinds == ["step", "step", "epoch"]
    metrics = json.loads((trained / "metrics.json").read_text())["metrics"]
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert evaluation["num_images"] == 20
    assert evaluation["metrics"]["top1"] == metrics["top1"], "the evaluated model is the one that was measured"
    assert 0 < metrics["top1"] < 1, "the tests of mistakes need a model that is neither blind nor perfect"


@pytest.mark.usefixtures("short_report")
def test_ctrl_c_and_resume_give_the_weights_of_an_uninterrupted_run(
    command: Any, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from saccade.engine.session import Session

    words = ["train", "vit_average_test", places["data"], "--epochs", 1, "--lr", 8e-4, "--batch-size", 10]
    words += ["--set", "train.limit_steps=2"]
    original = Session.step

    def interrupted(session: Session, batches: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return original(session, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "step", interrupted)
        for name in ("vit_average_test", "vit_average_test-2"):
            ended = command(*words)
            assert ended.status == 130
            assert ended.err == f"\nstopped; go on with: saccade train --resume runs/{name}\n"
    run = Path("runs/vit_average_test")
    assert not (run / "best.safetensors").exists()
    ended = command("train", "--resume", run)
    assert ended.status == 0
    assert "resumed after step 1 of 2" in ended.out
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert (run / "history.jsonl").read_bytes() == (places["run"] / "history.jsonl").read_bytes()
    expected = load_model(places["run"] / "best.safetensors").state_dict()
    found = load_model(run / "best.safetensors").state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.usefixtures("short_report")
def test_evaluate_scores_and_writes(command: Any, places: dict[str, Path], trained: Path) -> None:
    ended = command("evaluate", trained, places["data"], "--split", "train", "--batch-size", 3, "--out", "score")
    assert (ended.status, ended.err) == (0, "")
    assert {path.name for path in Path("score").iterdir()} == {"evaluation.json", "report.html"}
    written = json.loads(Path("score/evaluation.json").read_text())
    assert written["num_images"] == 40
    assert written["settings"]["batch_size"] == 3
    top1 = written["metrics"]["top1"]
    assert f"top1 {100 * top1:.1f} %" in ended.out
    assert "on 40 images" in ended.out
    for mistake in written["mistakes"]:
        assert Path(mistake["source"]).parent == places["data"] / "train" / mistake["true"]
        assert mistake["predicted"] != mistake["true"]
    assert "written: score/report.html" in ended.out


@pytest.mark.usefixtures("short_report")
def test_evaluate_takes_the_test_split_or_every_picture(command: Any, places: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "three"
    shutil.copytree(places["data"], data)
    shutil.copytree(data / "val", data / "test")
    (data / "val/red/0.png").unlink()
    ended = command("evaluate", places["run"], data, "--out", "test")
    assert "on 20 images" in ended.out
    assert "count as held out" not in ended.out, "the split is the user's own"
    assert json.loads(Path("test/evaluation.json").read_text())["settings"]["split"] == "test"
    ended = command("evaluate", places["run"], data, "--split", "all", "--out", "all")
    assert "on 79 images" in ended.out


@pytest.mark.usefixtures("short_report")
def test_evaluate_of_a_folder_without_splits_says_what_was_scored(command: Any, places: dict[str, Path]) -> None:
    folder = places["data"] / "train"
    ended = command("evaluate", places["run"], folder, "--out", "part", "--device", "cpu")
    told = re.search(r"scored the (\d+) of 40 pictures that count as held out; --split all scores every one", ended.out)
    assert told is not None
    assert f"on {told[1]} images" in ended.out
    ended = command("evaluate", places["run"], folder, "--split", "all", "--out", "whole")
    assert "on 40 images" in ended.out
    assert "count as held out" not in ended.out


def test_predict_tells_and_writes_the_same(command: Any, places: dict[str, Path], trained: Path) -> None:
    (Path("mine") / "deeper").mkdir(parents=True)
    for name, colour in (("b.png", "red"), ("a.PNG", "dark"), ("deeper/c.png", "green")):
        shutil.copy(places["data"] / "val" / colour / "0.png", Path("mine") / name)
    Path("mine/notes.txt").write_text("no picture")
    Path("mine/.hidden.png").write_text("no picture either")
    ended = command("predict", trained, "mine", "--top", 2, "--json", "--out", "told")
    assert ended.status == 0
    assert ended.err == "written: told/predictions.json\n", "standard output is for machines alone"
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert records == json.loads(Path("told/predictions.json").read_text())
    assert [record["image"] for record in records] == ["mine/a.PNG", "mine/b.png", "mine/deeper/c.png"]
    for record, prediction in zip(
        records, saccade.predict(trained, [record["image"] for record in records]), strict=True
    ):
        told = [(entry["class"], entry["score"]) for entry in record["top"]]
        assert told == prediction.top(2)
        assert len(told) == 2
    ended = command("predict", trained, "mine/b.png", "--exact")
    assert (ended.status, ended.err) == (0, "")
    first = re.match(r"mine/b\.png: (\w+) (\d+\.\d)%", ended.out)
    assert first is not None
    assert first[1] == records[1]["top"][0]["class"]
    assert float(first[2]) == pytest.approx(100 * records[1]["top"][0]["score"], abs=0.051)


def test_explain_writes_a_picture_an_array_and_a_manifest(command: Any, places: dict[str, Path], trained: Path) -> None:
    wide = Path("wide.png")
    with Image.open(places["picture"]) as picture:
        picture.resize((48, 40)).save(wide)
    ended = command("explain", trained, wide, "--of", "red", "--against", "dark", "--method", "gradcam", "--out", "why")
    assert (ended.status, ended.err) == (0, "")
    assert sorted(path.suffix for path in Path("why").iterdir()) == [".json", ".npz", ".png"]
    with Image.open(next(Path("why").glob("*.png"))) as drawn:
        assert drawn.size == (48, 40)
    with np.load(next(Path("why").glob("*.npz"))) as arrays:
        assert arrays["map"].shape == arrays["seen"].shape == (40, 48)
        assert arrays["map"].dtype == np.float32
        values = arrays["map"]
    manifest = json.loads(next(Path("why").glob("*.json")).read_text())
    assert manifest["image"] == "wide.png"
    assert manifest["of"] == "red rather than dark"
    assert manifest["verdict"]["status"] in {"supported", "weak", "failed"}
    assert manifest["verdict"]["reasons"]
    assert f"wide.png: red rather than dark by gradcam: {manifest['verdict']['status']} - " in ended.out
    heat = saccade.explain(trained, wide, of="red", against="dark", method="gradcam", verdict=False)
    np.testing.assert_allclose(values, heat.map.numpy(), rtol=1e-4, atol=1e-6)


def test_pictures_of_one_name_do_not_hide_each_other(command: Any, places: dict[str, Path], trained: Path) -> None:
    pictures = [places["data"] / "val" / colour / "0.png" for colour in ("red", "dark")]
    ended = command("explain", trained, *pictures, "--of", "red", "--no-verdict", "--out", "why")
    assert ended.status == 0
    manifests = [json.loads(path.read_text()) for path in Path("why").glob("*.json")]
    assert sorted(manifest["image"] for manifest in manifests) == sorted(map(str, pictures))
    assert all(manifest["verdict"] is None for manifest in manifests)
    maps = []
    for path in Path("why").glob("*.npz"):
        with np.load(path) as arrays:
            maps.append(arrays["map"])
    assert len(maps) == 2
    assert not np.array_equal(*maps)


def test_several_methods_share_a_page(command: Any, places: dict[str, Path], trained: Path) -> None:
    words = ["--method", "gradcam", "--method", "gradient", "--of", "red", "--of", "dark", "--no-verdict"]
    ended = command("explain", trained, places["picture"], *words)
    assert ended.status == 0
    manifests = [json.loads(path.read_text()) for path in Path("explanations").glob("*.json")]
    asked = {(manifest["name"], manifest["of"]) for manifest in manifests}
    assert asked == {(name, of) for name in ("gradcam", "gradient") for of in ("red", "dark")}
    assert [path.name for path in Path("explanations").glob("*methods*")] == ["0-methods.png"]
    assert len(ended.out.splitlines()) == 5


def test_data_is_made_and_inspected(command: Any, places: dict[str, Path]) -> None:
    ended = command("data", "make", "scenes", "--count", 30, "--size", 24, "--seed", 3)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == "30 scenes for classification in scenes\n"
    shutil.copy("scenes/train/star/000003.png", "scenes/val/star/copy.png")
    ended = command("data", "inspect", "scenes", "--out", "found")
    assert (ended.status, ended.err) == (0, "")
    assert {path.name for path in Path("found").iterdir()} == {"inspection.json", "train.png", "val.png"}
    found = json.loads(Path("found/inspection.json").read_text())
    assert {split: sum(counts.values()) for split, counts in found["splits"].items()} == {"train": 24, "val": 7}
    assert found["leaks"] == [["train: scenes/train/star/000003.png", "val: scenes/val/star/copy.png"]]
    assert "more than one split (leakage)" in ended.out
    assert all(name in ended.out for name in found["classes"])


def test_models_are_listed(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ("vit_average_test", "vit_nano_p4_28", "vit_s16")
    monkeypatch.setattr("saccade.engine.catalog.names", lambda: listed)
    entries = {entry["name"]: entry for entry in json.loads(command("models", "--json").out)}
    assert list(entries) == ["vit_nano_p4_28", "vit_s16"], "models for tests are left out"
    assert entries["vit_s16"]["size"] == [224, 224]
    assert entries["vit_s16"]["parameters"] == sum(p.numel() for p in saccade.create("vit_s16").parameters())
    assert command("models", "--task", "captions").out == command("models", "--task", "zero_shot").out
    table = command("models", "--task", "classification").out
    assert table.splitlines()[1].strip() == "classification"
    assert re.search(r"vit_s16 .* 22\.05 M +9\.\d\d +224x224", table)


def test_version_and_help(command: Any) -> None:
    assert command("--version") == (0, f"saccade {saccade.__version__}\n", "")
    ended = command("--help")
    assert (ended.status, ended.err) == (0, "")
    assert all(verb in ended.out for verb in ("demo", "models", "train", "evaluate", "predict", "explain", "data"))


# --- what is told about words, places and values


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        # nothing there
        ("train vit_average_test nowhere", ["nowhere: there is no such folder or file", "check the path"]),
        ("train vit_average_test fashion-mnist", ["fashion-mnist: there is no such", "did you mean 'fashion_mnist'?"]),
        ("evaluate {run} nowhere", ["nowhere: there is no such folder or file", "check the path"]),
        ("evaluate nowhere {data}", ["nowhere: there is no such file", "expected a .safetensors file, a run folder"]),
        ("predict {run} nowhere.png --out o", ["nowhere.png: there is no such file", "check the path"]),
        ("predict nowhere {picture} --out o", ["nowhere: there is no such file", "expected a .safetensors file"]),
        ("predict vit_s16 {picture}", ["vit_s16: this is an architecture without weights", "train it first"]),
        ("predict . {picture}", ["best.safetensors: the file does not exist", "check the path"]),
        ("explain {run} nowhere.png", ["nowhere.png: there is no such file", "check the path"]),
        ("data inspect nowhere --out o", ["nowhere: there is no such folder or file", "check the path"]),
        ("train --resume nowhere", ["nowhere: there is no such run folder", "check the path given to --resume"]),
        # names that do not exist
        ("train vit_s61 {data}", ["unknown model 'vit_s61'", "did you mean 'vit_s16'?"]),
        ("explain {run} {picture} --method gradcamm", ["unknown method 'gradcamm'", "did you mean 'gradcam'?"]),
        ("explain {run} {picture} --method gradcam --method rize", ["unknown method 'rize'", "did you mean 'rise'?"]),
        ("explain {run} {picture} --layer fnal", ["--layer: unknown layer 'fnal'", "did you mean 'final'?"]),
        ("explain {run} {picture} --method gradient --layer block0", ["'gradient' reads no layer", "leave layer out"]),
        ("explain {run} {picture} --of reed", ["--of: unknown class 'reed'", "did you mean 'red'?"]),
        ("explain {run} {picture} --of xyz", ["--of: unknown class 'xyz'", "expected one of: blue, dark, green, grey"]),
        ("explain {run} {picture} --against reed", ["--against: unknown class 'reed'", "did you mean 'red'?"]),
        ("evaluate {run} {data} --split test", ["no split 'test'", "expected one of: train, val, all"]),
        ("models --task segmentatio", ["unknown task 'segmentatio'", "did you mean 'segmentation'?"]),
        ("data inspect {data} --task segmentatio", ["unknown task 'segmentatio'", "did you mean 'segmentation'?"]),
        ("predict {run} {picture} --device gpu", ["device: 'gpu' is no device", "expected auto, cpu, cuda or cuda:N"]),
        ("explain {run} {picture} --device cuda:", ["device: 'cuda:' is no device", "expected auto, cpu, cuda or"]),
        ("evaluate {run} {data} --device cuda:99", ["there is no", "device"]),
        ("data make o --task segmentatio", ["unknown task 'segmentatio'", "did you mean 'segmentation'?"]),
        # config fields
        (
            "train vit_average_test {data} --set model.backbone.detph=3",
            ["model.backbone.detph: unknown config key 'detph'", "did you mean 'depth'?"],
        ),
        (
            "train vit_average_test {data} --set train.clip_nrm=3",
            ["train.clip_nrm: unknown config key", "did you mean 'clip_norm'?"],
        ),
        (
            "train vit_average_test {data} --set model.backbone.depth=deep",
            ["depth: input should be a valid integer", "(got 'deep')"],
        ),
        (
            "train vit_average_test {data} --set backbone.depth=3",
            ["--set: override 'backbone.depth=3'", "expected model.<field>=value or train.<field>=value"],
        ),
        (
            "train vit_average_test {data} --set model.backbone.depth",
            ["--set: override 'model.backbone.depth' has no value", "expected path.to.field=value"],
        ),
        (
            "train vit_average_test {data} --set model.preprocess.size=[30,30]",
            ["model.preprocess.size: patches of 8 do not tile a canvas of 30x30", "expected multiples of 8"],
        ),
        ("train vit_average_test {data} --freeze bakbone", ["unknown submodule 'bakbone'", "did you mean 'backbone'?"]),
        # values
        ("train vit_average_test {data} --epochs 0", ["epochs is 0", "expected at least 1"]),
        ("train vit_average_test {data} --batch-size 0", ["batch_size is 0", "expected at least 1"]),
        ("train vit_average_test {data} --lr nan", ["learning_rate: input should be a finite number", "(got nan)"]),
        ("train vit_average_test {data} --set train.learning_rate=NaN", ["learning_rate: input should be a finite"]),
        ("train vit_average_test {data} --lr -1", ["learning_rate is -1.0", "expected above 0"]),
        ("evaluate {run} {data} --batch-size 0", ["batch_size is 0", "expected at least 1"]),
        ("predict {run} {picture} --top 0", ["--top: 0 classes", "expected at least 1"]),
        ("predict {run} {picture} --top -1 --json", ["--top: -1 classes", "expected at least 1"]),
        ("data make o --count 3", ["count is 3", "expected at least 30"]),
        ("data make o --size 3", ["scenes of (3, 3) pixels are too small", "expected at least 16x16"]),
        # words that do not go together
        ("train vit_average_test", ["train needs MODEL and DATA", "for example: saccade train"]),
        (
            "train vit_average_test {data} --resume {run}",
            ["--resume takes everything from the run, but MODEL is given too", "leave it out"],
        ),
        ("train --resume {run} --epochs 9 --lr 1", ["but --epochs, --lr is given too", "leave it out"]),
        ("train --resume {run}", ["tiny: the run is finished, there is nothing to resume"]),
        ("explain {run} {picture} --of red --against red", ["against", "'red' is contrasted with itself"]),
        # places that are taken or no folders
        ("train vit_average_test {data} --out {run}", ["tiny: the run folder exists already", "choose another --out"]),
        ("train vit_average_test {data} --out {picture}/o", ["0.png/o: cannot be written", "choose another"]),
        ("evaluate {run} {data} --out {picture}", ["0.png: this is a file", "expected a folder", "another --out"]),
        ("evaluate {run} {data} --out {picture}/o", ["0.png is a file", "expected a folder", "another --out"]),
        ("predict {run} {picture} --out {picture}/o", ["0.png is a file", "expected a folder", "another --out"]),
        ("explain {run} {picture} --out {picture}/o", ["0.png is a file", "expected a folder", "another --out"]),
        ("data make {data}", ["the folder exists already", "choose another name or delete it"]),
        ("demo --out {run}", ["tiny: the folder exists already", "add --overwrite"]),
        ("demo --out {data} --overwrite", ["the folder holds something that is no demo", "not replaced"]),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(refused: Any, line: str, parts: list[str]) -> None:
    sentence = refused(line)
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("train vit_average_test {data} --epocs 3", "--epochs"),
        ("explain {run} {picture} --metod gradcam", "--method"),
        ("train vit_average_test {data} --epochs many", "'--epochs'"),
        ("trian vit_average_test {data}", "'train'"),
        ("data inspct {data}", "'inspect'"),
        ("predict {run}", "IMAGES"),
    ],
)
def test_a_word_the_line_does_not_know(
    command: Any, places: dict[str, Path], tmp_path: Path, line: str, part: str
) -> None:
    ended = command(*line.format(**places).split())
    assert ended.status == 2
    last = ended.err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert part in last
    assert "Traceback" not in ended.err
    assert not contents(tmp_path)


def test_debug_shows_where_it_happened(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    for words in (["--debug", "predict", str(trained), "nowhere.png"], ["predict", str(trained), "no.png", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["saccade", *words])
        with pytest.raises(DataError, match="no such file"):
            main()


@pytest.mark.slow
def test_a_real_process_says_one_sentence_or_with_debug_the_traceback(tmp_path: Path) -> None:
    code = "from saccade.cli import main; main()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *words, "data", "inspect", "nowhere"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in ([], ["--debug"])
    ]
    (out, plain), (_, debugged) = (process.communicate() for process in processes)
    assert processes[0].returncode == 2
    assert out == ""
    assert re.fullmatch(r"error: nowhere: there is no such folder or file; [^\n]+\n", plain)
    assert processes[1].returncode not in (0, 2)
    assert debugged.startswith("Traceback")
    assert debugged.splitlines()[-1].startswith("saccade.errors.DataError: nowhere: ")


# --- what is told about data


def bomb_png(side: int) -> bytes:
    """A small file whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 999)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD_PICTURES = {
    "bomb.png": "expected at most 100,000,000 in all",
    "cut.png": "damaged or cut off",
    "text.jpg": "this is not a picture",
    "zero.png": "the file is empty (0 bytes)",
}
"""What a spoiled folder holds beside good pictures, and what is said about it; in the order of their names."""


@pytest.fixture
def spoiled(places: dict[str, Path]) -> Path:
    """A copy of the coloured pictures with four bad ones among the red ones of each split."""
    root = places["spoiled"] = Path("spoiled").absolute()
    shutil.copytree(places["data"], root)
    for split in ("train", "val"):
        folder = root / split / "red"
        (folder / "bomb.png").write_bytes(bomb_png(60_000))
        (folder / "cut.png").write_bytes(places["picture"].read_bytes()[:600])
        (folder / "text.jpg").write_text("hello")
        (folder / "zero.png").touch()
    return root


@pytest.mark.usefixtures("short_report")
def test_evaluate_skips_bad_pictures_with_a_count_and_their_names(command: Any, trained: Path, spoiled: Path) -> None:
    ended = command("evaluate", trained, spoiled, "--out", "score")
    assert (ended.status, ended.err) == (0, "")
    assert "skipped as unreadable: 4\n" in ended.out
    evaluation = json.loads(Path("score/evaluation.json").read_text())
    assert evaluation["num_images"] == 20
    page = Path("score/report.html").read_text(encoding="utf-8")
    assert "4 unreadable images" in page
    assert len(evaluation["skipped"]) == 4
    for line, (name, words) in zip(evaluation["skipped"], BAD_PICTURES.items(), strict=True):
        assert line.startswith(f"{spoiled}/val/red/{name}: ")
        assert words in line
        assert line in ended.out
        assert f"{spoiled}/val/red/{name}" in page


@pytest.mark.usefixtures("short_report")
def test_train_skips_bad_pictures_and_names_them(command: Any, spoiled: Path) -> None:
    ended = command("train", "vit_average_test", spoiled, "--epochs", 1, "--batch-size", 11, "--out", "run")
    assert (ended.status, ended.err) == (0, "")
    for split in ("train", "val"):
        for name, words in BAD_PICTURES.items():
            assert re.search(rf"note: skipped {spoiled}/{split}/red/{name}: .*{re.escape(words)}", ended.out), name
    assert {path.name for path in Path("run").iterdir()} == RUN_FILES


def test_inspect_names_bad_pictures(command: Any, spoiled: Path) -> None:
    ended = command("data", "inspect", spoiled)
    assert ended.status == 0
    assert "8 pictures cannot be read" in ended.out
    assert f"{spoiled}/train/red/bomb.png: " in ended.out


@pytest.mark.parametrize(
    ("line", "first"),
    [
        ("train vit_average_test {spoiled} --strict --out o", "train/red/bomb.png"),
        ("train vit_average_test {spoiled} --set train.strict=true --out o", "train/red/bomb.png"),
        ("evaluate {run} {spoiled} --strict --out o", "val/red/bomb.png"),
    ],
)
def test_strict_stops_at_the_first_bad_picture(refused: Any, spoiled: Path, line: str, first: str) -> None:
    assert refused(line).startswith(f"{spoiled}/{first}: ")


@pytest.mark.parametrize("name", BAD_PICTURES)
@pytest.mark.parametrize("line", ["predict {run} {bad} --out o", "explain {run} {picture} {bad} --out o"])
def test_predict_and_explain_name_a_bad_picture(refused: Any, spoiled: Path, line: str, name: str) -> None:
    sentence = refused(line.replace("{bad}", f"{spoiled}/val/red/{name}"))
    assert sentence.startswith(f"{spoiled}/val/red/{name}: ")
    assert BAD_PICTURES[name] in sentence


def test_predict_goes_on_after_a_bad_picture(command: Any, places: dict[str, Path], spoiled: Path) -> None:
    bad = spoiled / "val" / "red" / next(iter(BAD_PICTURES))
    ended = command("predict", places["run"], bad, places["picture"], "--out", "o")
    assert ended.status == 2
    assert ended.err.startswith(f"unreadable: {bad}: ")
    assert ended.err.splitlines()[-1].startswith(f"error: 1 of 2 pictures cannot be read; the first: {bad}: ")
    failed, told = json.loads(Path("o/predictions.json").read_text(encoding="utf-8"))
    assert failed == {"image": str(bad), "error": ended.err.splitlines()[0].removeprefix("unreadable: ")}
    assert told["image"] == str(places["picture"])
    assert f"{places['picture']}: " in ended.out


needs_rights = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


@needs_rights
@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_a_picture_that_may_not_be_read(refused: Any, places: dict[str, Path], verb: str) -> None:
    shutil.copy(places["picture"], "mine.png")
    Path("mine.png").chmod(0)
    assert refused(f"{verb} {{run}} mine.png --out o").startswith("mine.png: the file may not be read; give yourself")


@needs_rights
@pytest.mark.parametrize(
    "line",
    [
        "train vit_average_test {data} --out shut/o",
        "evaluate {run} {data} --out shut/o",
        "predict {run} {picture} --out shut",
        "explain {run} {picture} --out shut",
        "data make shut/o",
    ],
)
def test_a_folder_that_may_not_be_written(refused: Any, line: str) -> None:
    Path("shut").mkdir(mode=0o500)
    assert re.match(r"shut(/\w+)?: cannot be written.*; (free some space or choose|choose|check rights)", refused(line))


@pytest.mark.parametrize(
    "line", ["train vit_average_test {folder}", "evaluate {run} {folder}", "data inspect {folder}"]
)
def test_folders_without_a_task(refused: Any, places: dict[str, Path], line: str) -> None:
    places["folder"] = Path("folder").absolute()
    places["folder"].mkdir()
    sentence = refused(f"{line} --out o")
    assert sentence.startswith(f"{places['folder']}: the folder is empty; expected class folders with files ending in")
    shutil.copytree(places["data"] / "train/red", places["folder"] / "red")
    sentence = refused(f"{line} --out o")
    assert sentence.startswith(
        f"{places['folder']}: there is only one class, 'red'; expected at least two; add a folder"
    )


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_a_folder_without_pictures(refused: Any, verb: str) -> None:
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("no picture")
    assert re.match(
        r"folder: there is no picture in this folder; expected files ending in", refused(f"{verb} {{run}} folder")
    )


@pytest.mark.parametrize("line", ["train vit_average_test {table}", "evaluate {run} {table}", "data inspect {table}"])
def test_labels_outside_the_classes_of_a_table(refused: Any, places: dict[str, Path], line: str) -> None:
    places["table"] = Path("table.csv")
    for name in ("a.png", "b.png"):
        shutil.copy(places["picture"], name)
    Path("classes.txt").write_text("red\ngreen\n")
    Path("table.csv").write_text("path,label\na.png,0\nb.png,2\n")
    sentence = refused(f"{line} --out o")
    assert sentence.startswith(
        "table.csv:3: the label is 2; expected 0 to 1, as 2 classes are listed; correct the label"
    )
    Path("table.csv").write_text("path,label\na.png,red\nb.png,gren\n")
    sentence = refused(f"{line} --out o")
    assert sentence == "table.csv:3: the label 'gren' is not among the listed classes; did you mean 'green'?"


@pytest.mark.parametrize("line", ["train vit_average_test idx", "evaluate {run} idx", "data inspect idx"])
def test_labels_outside_the_classes_of_idx_files(refused: Any, line: str) -> None:
    Path("idx").mkdir()
    for name, array in (("images-idx3", np.zeros((4, 32, 32))), ("labels-idx1", np.array([0, 1, 2, 9]))):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        Path(f"idx/train-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    Path("idx/classes.json").write_text('["a", "b", "c"]')
    sentence = refused(f"{line} --out o")
    assert sentence.startswith("idx/train-images-idx3-ubyte: sample 3 has label 9; expected 0 to 2")


@pytest.mark.usefixtures("short_report")
def test_a_class_that_differs_between_the_splits_is_told(command: Any, refused: Any, places: dict[str, Path]) -> None:
    shutil.copytree(places["data"], "renamed")
    Path("renamed/val/grey").rename("renamed/val/gray")
    ended = command("evaluate", places["run"], "renamed", "--out", "score")
    assert ended.status == 0
    assert "note: val has a class 'gray' that train has not (did you mean 'grey'?): 4 pictures left out" in ended.out
    assert "no image of: grey" in ended.out
    assert json.loads(Path("score/evaluation.json").read_text())["num_images"] == 16
    sentence = refused("evaluate {run} renamed --strict --out o")
    assert sentence.startswith("renamed: val has a class 'gray' that train has not (did you mean 'grey'?)")
    assert sentence.endswith("make the splits agree, or leave out --strict")


def test_a_class_that_the_model_does_not_know(refused: Any, places: dict[str, Path]) -> None:
    shutil.copytree(places["data"] / "val", "val/other")
    Path("val/other/grey").rename("val/other/gray")
    sentence = refused("evaluate {run} val/other --out o")
    assert re.match(r"val/other: .*does not know: gray; expected some of: blue.*; rename it to 'grey'$", sentence)


# --- what is told about weights


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


class Trap:
    """Pickled code that a careless loader would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("sprung",))


def write_weights(name: str, run: Path, picture: Path) -> Path:
    """A file of weights that is wrong in the way its name says."""
    path, own = Path(name), (run / "best.safetensors").read_bytes()
    if name == "pickle.pt":
        path.write_bytes(pickle.dumps(Trap()))
    elif name == "trap.pt":
        torch.save({"head.weight": Trap()}, path)
    elif name == "resnet.pt":
        torch.save(saccade.create("resnet_test").state_dict(), path)
    elif name == "resnet.safetensors":
        safetensors.torch.save_file(saccade.create("resnet_test").state_dict(), path)
    elif name == "plain.safetensors":
        safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    else:
        damaged = {
            "cut.safetensors": own[: len(own) // 2],
            "altered.safetensors": flipped(own, -5),
            "renamed.safetensors": own.replace(b"grey", b"gray"),
            "empty.safetensors": b"",
            "picture.safetensors": picture.read_bytes(),
            "picture.png": picture.read_bytes(),
        }
        path.write_bytes(damaged[name])
    return path


@pytest.mark.parametrize(
    ("name", "in_train", "in_predict"),
    [
        ("cut.safetensors", "this is no readable file of weights", "the file is damaged or truncated"),
        ("altered.safetensors", "the file was altered", "the file was altered"),
        ("renamed.safetensors", "the file was altered", "the file was altered"),
        ("empty.safetensors", "this is no readable file of weights", "the file is empty (zero bytes)"),
        ("picture.safetensors", "this is no readable file of weights", "the file is a PNG picture"),
        ("picture.png", "this is no readable file of weights", "the file is a PNG picture"),
        ("pickle.pt", "not opened for safety", "the file is a pickle file"),
        ("trap.pt", "not opened for safety", "the file is a PyTorch (pickle) or zip file"),
        ("plain.safetensors", "of no known source (the first is 'weight')", "was not written by saccade"),
        ("resnet.safetensors", "another architecture: 'backbone.embed.project.weight'", "was not written by saccade"),
        ("resnet.pt", "another architecture: 'backbone.embed.project.weight'", "a PyTorch (pickle) or zip file"),
    ],
)
def test_bad_weights(refused: Any, places: dict[str, Path], name: str, in_train: str, in_predict: str) -> None:
    path = write_weights(name, places["run"], places["picture"])
    for line, words in (
        (f"train vit_average_test {{data}} --weights {path} --out o", in_train),
        (f"predict {path} {{picture}} --out o", in_predict),
        (f"evaluate {path} {{data}} --out o", in_predict),
    ):
        sentence = refused(line)
        assert sentence.startswith(f"{path}: ")
        assert words in sentence
        assert "; " in sentence, "there is a remedy, or what was expected"
    assert not Path("sprung").exists()


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere", "no/where.safetensors"])
def test_weights_that_are_not_there(refused: Any, name: str) -> None:
    sentence = refused(f"train vit_average_test {{data}} --weights {name} --out o")
    assert sentence == (
        f"{name}: there is no such file; "
        "expected a .safetensors or .pth file, a run folder, or a source such as timm/NAME"
    )


# --- what is told when it is too late


@contextlib.contextmanager
def almost_full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)


@pytest.mark.usefixtures("short_report")
@pytest.mark.parametrize(
    ("line", "size", "whole"),
    [
        # Without a first checkpoint a run could neither be resumed nor started again: nothing of it stays.
        ("train vit_average_test {data} --epochs 1 --out o", 20_000, set()),
        ("evaluate {run} {data} --out o", 20_000, {"evaluation.json"}),
        ("predict {run} {picture} --out o", 100, set()),
        ("explain {run} {picture} --no-verdict --out o", 100, set()),
        ("data inspect {data} --out o", 20_000, {"inspection.json"}),
        ("data make o", 500, set()),
    ],
)
def test_a_full_disk_leaves_whole_files_or_none(
    command: Any, places: dict[str, Path], line: str, size: int, whole: set[str]
) -> None:
    with almost_full_disk(size):
        ended = command(*line.format(**places).split())
    assert ended.status == 2
    assert re.fullmatch(r"error: o[^\n:]*: [^\n]*File too large[^\n]*; [^\n]+\n", ended.err), ended.err
    left = {path.name for path in Path().rglob("*") if path.is_file()}
    assert left - {"history.jsonl"} == whole, "history.jsonl is the one file that grows line by line"


def test_a_loss_that_is_not_finite_keeps_its_batch(command: Any, places: dict[str, Path]) -> None:
    line = (
        "train vit_average_test {data} --batch-size 10 --lr 1e30 --set train.clip_norm=0 --set train.warmup=0 --out o"
    )
    ended = command(*line.format(**places).split())
    assert ended.status == 2
    assert re.fullmatch(
        r"error: o/failure\.safetensors: [^\n]* not finite [^\n]*; lower the learning rate[^\n]*\n", ended.err
    )
    assert Path("o/failure.safetensors").is_file()
    assert Path("o/last.ckpt").is_file()
    assert not [path for path in Path("o").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("last.ckpt", lambda content: content[:-500], "o/last.ckpt: the file is damaged or truncated"),
        ("last.ckpt", lambda content: flipped(content, -5), "o/last.ckpt: the file was altered"),
        ("config.json", lambda content: content[:-9], "o: config.json cannot be read"),
    ],
)
def test_a_damaged_run_is_not_resumed(
    refused: Any, places: dict[str, Path], name: str, damage: Callable[[bytes], bytes], words: str
) -> None:
    shutil.copytree(places["run"], "o")
    path = Path("o") / name
    path.write_bytes(damage(path.read_bytes()))
    assert refused("train --resume o").startswith(words)


def test_ctrl_c_is_answered_in_words(command: Any, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saccade.batch.predict_files", stopped)
    ended = command("predict", places["run"], places["picture"])
    assert (ended.status, ended.err) == (130, "\nstopped; the same command starts again\n")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_a_full_memory_is_one_sentence(
    command: Any, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("saccade.batch.predict_files", full)
    ended = command("predict", places["run"], places["picture"])
    assert ended.status == 2
    assert re.fullmatch(r"error: the memory is too small \([^\n]+\); take a smaller --batch-size[^\n]+\n", ended.err)


def test_a_name_that_is_no_utf_8_is_told(command: Any, places: dict[str, Path]) -> None:
    shutil.copy(places["picture"], "gr\udcfcn.png")
    ended = command("predict", places["run"], "gr\udcfcn.png", "--out", "o")
    assert ended.status == 0, ended
    assert "gr\\udcfcn.png: " in ended.out
    assert json.loads(Path("o/predictions.json").read_text(encoding="utf-8"))[0]["image"] == "gr\udcfcn.png"


@pytest.mark.usefixtures("short_report")
def test_a_finished_run_without_its_report_gets_it(command: Any, places: dict[str, Path]) -> None:
    shutil.copytree(places["run"], "o")
    Path("o/report.html").unlink()
    assert command("train", "--resume", "o", places["data"]).status == 0
    assert Path("o/report.html").is_file()
    assert "nothing to resume" in command("train", "--resume", "o").err


@pytest.mark.parametrize(
    "how", [{"strict": True}, {"settings": {"strict": True}}, {"assignments": ["train.strict=true"]}]
)
def test_strict_holds_for_the_data_wherever_it_is_set(make_folders: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    root = make_folders({"train/a": 2, "train/b": 2, "val/a": 1, "val/c": 1})
    with pytest.raises(DataError, match="'c' that train has not"):
        start("vit_average_test", root, out=tmp_path / "o", **how)
