"""Segmenters through the verbs: from the words on the line to the files on the disk; and what is said to bad input."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import saccade
from saccade.data.source import open_data
from saccade.errors import DataError
from saccade.ops.masks import connected_components
from saccade.types import Segmentation

pytestmark = pytest.mark.xdist_group("verbs")

CLASSES = ("background", "red", "blue")


@pytest.fixture
def places(
    tmp_path: Path,
    painted: Path,
    trained_segmenter: Path,
    colours: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Path]:
    """What a line of words may name, as ``{name}``; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    picture = painted / "images/val/17.png"
    return {"data": painted, "run": trained_segmenter, "picture": picture, "colours": colours, "classifier": trained}


@pytest.fixture
def refused(command: Any, places: dict[str, Path], tmp_path: Path) -> Callable[[str], str]:
    """``refused("evaluate {run} {data}")`` -> the one sentence that this is answered with, leaving nothing behind."""

    def run(line: str) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        ended = command(*line.format(**places).split())
        assert ended.status == 2, ended
        assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return str(ended.err[len("error: ") : -1])

    return run


def truth_of(painted: Path, number: int) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(painted / f"masks/val/{number}.png")))


# --- what works


def test_train_gives_a_run_that_finds_the_blocks(trained_segmenter: Path, painted: Path) -> None:
    names = {path.name for path in trained_segmenter.iterdir()}
    assert {"best.safetensors", "metrics.json", "evaluation.json", "report.html", "last.ckpt"} <= names
    metrics = json.loads((trained_segmenter / "metrics.json").read_text())
    assert metrics["headline"] == "miou"
    assert metrics["metrics"]["miou"] > 0.7, "the other tests need a model that finds most of the blocks"
    model = saccade.load(trained_segmenter)
    assert model.classes.names == CLASSES
    assert model.task == "semantic"
    evaluation = json.loads((trained_segmenter / "evaluation.json").read_text())
    assert evaluation["num_images"] == 6
    # Validation in training may run in bfloat16.
    assert evaluation["metrics"]["miou"] == pytest.approx(metrics["metrics"]["miou"], abs=0.01)
    assert evaluation["metrics"]["boundary_f"] > 0.5


@pytest.mark.usefixtures("short_report")
def test_train_takes_a_loss_and_class_weights(command: Any, places: dict[str, Path]) -> None:
    line = (
        "train unet_plain_test {data} --epochs 2 --batch-size 8 --out mine --set model.loss.dice=0.5 "
        "--set model.loss.class_weights=[0.5,2,3]"
    )
    ended = command(*line.format(**places).split())
    assert (ended.status, ended.err) == (0, "")
    history = [json.loads(row) for row in Path("mine/history.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in history] == ["step", "step", "epoch"] * 2
    assert {"cross_entropy", "dice"} <= history[0]["losses"].keys()
    config = json.loads(Path("mine/config.json").read_text())
    assert config["model"]["config"]["loss"]["class_weights"] == [0.5, 2, 3]
    assert config["model"]["classes"] == list(CLASSES)
    assert "miou" in ended.out


@pytest.mark.usefixtures("short_report")
def test_evaluate_counts_what_predict_says(command: Any, places: dict[str, Path]) -> None:
    ended = command("evaluate", places["run"], places["data"], "--out", "score")
    assert (ended.status, ended.err) == (0, "")
    written = json.loads(Path("score/evaluation.json").read_text())
    pairs = np.zeros((3, 3), np.int64)
    for number in range(16, 22):
        found = saccade.predict(places["run"], places["data"] / f"images/val/{number}.png", speed="exact")[0]
        truth = truth_of(places["data"], number)
        np.add.at(pairs, (truth.numpy().ravel(), found.labels.numpy().ravel()), 1)
    assert written["confusion"] == pairs.tolist()
    iou = np.diag(pairs) / (pairs.sum(0) + pairs.sum(1) - np.diag(pairs))
    assert [row["iou"] for row in written["per_class"]] == pytest.approx(iou.tolist())
    assert written["metrics"]["miou"] == pytest.approx(iou.mean())
    assert [row["images"] for row in written["per_class"]] == [6, 6, 6]
    assert f"miou {100 * iou.mean():.1f} %" in ended.out
    assert f"red {100 * iou[1]:.1f} %" in re.sub(" +", " ", ended.out)
    assert re.search(rf"{places['data']}/images/val/\d+\.png: mean IoU \d+\.\d %", ended.out)
    assert "written: score/report.html" in ended.out


def test_classes_are_joined_by_name(places: dict[str, Path]) -> None:
    shutil.copytree(places["data"], "swapped")
    for path in Path("swapped/masks").rglob("*.png"):
        labels = np.array(Image.open(path))
        Image.fromarray(np.array([0, 2, 1], np.uint8)[labels]).save(path)
    Path("swapped/classes.json").write_text('["background", "blue", "red"]')
    assert open_data("swapped", task="semantic").classes.names == ("background", "blue", "red")
    ours = saccade.evaluate(places["run"], places["data"])
    swapped = saccade.evaluate(places["run"], "swapped")
    assert swapped.classes == ours.classes == CLASSES
    assert swapped.confusion == ours.confusion


def test_predict_writes_label_maps_overlays_and_parts(command: Any, places: dict[str, Path]) -> None:
    ended = command("predict", places["run"], places["data"] / "images/val", "--json", "--out", "told")
    assert (ended.status, ended.err) == (0, "written: told/predictions.json\n")
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert records == json.loads(Path("told/predictions.json").read_text())
    names = {f"{number}-{kind}.png" for number in range(16, 22) for kind in ("labels", "overlay")}
    assert {path.name for path in Path("told").iterdir()} == names | {"predictions.json"}
    predictions = saccade.predict(places["run"], [record["image"] for record in records])
    for record, prediction in zip(records, predictions, strict=True):
        assert isinstance(prediction, Segmentation)
        with Image.open(Path("told") / record["labels"]) as indexed:
            assert indexed.mode == "P"
            assert np.array_equal(np.array(indexed), prediction.labels.numpy())
            shown = np.array(indexed.convert("RGB"))
        assert len({tuple(shown[prediction.labels.numpy() == label][0]) for label in range(3)}) == 3
        with Image.open(Path("told") / record["overlay"]) as overlay, Image.open(record["image"]) as picture:
            drawn, before = np.array(overlay), np.array(picture)
        times = drawn.shape[0] // 44  # a small picture is enlarged, so that its borders can be drawn
        assert drawn.shape == (44 * times, 52 * times, 3)
        is_object = prediction.labels.numpy() > 0
        changed = (drawn[times // 2 :: times, times // 2 :: times] != before).any(axis=-1)
        assert np.array_equal(changed, is_object), "tinted where there is an object, untouched elsewhere"
        assert record["size"] == [44, 52]
        areas = {entry["class"]: entry["share"] for entry in record["classes"]}
        assert areas == prediction.areas()
        parts = connected_components(prediction.labels, frozenset({0}))
        assert [part["component"] for part in record["components"]] == list(range(1, len(parts) + 1))
        for told, part in zip(record["components"], parts, strict=True):
            assert told["class"] == CLASSES[part.label]
            assert (told["pixels"], tuple(told["box"])) == (part.area, part.box)


def test_predict_tells_the_classes_that_cover_most(command: Any, places: dict[str, Path], tmp_path: Path) -> None:
    ended = command("predict", places["run"], places["picture"], "--top", 2, "--exact")
    assert (ended.status, ended.err) == (0, "")
    areas = list(saccade.predict(places["run"], places["picture"])[0].areas().items())
    told = "   ".join(f"{name} {100 * share:.1f}% of the pixels" for name, share in areas[:2])
    assert ended.out == f"{places['picture']}: {told}\n"
    assert not list(tmp_path.iterdir())


def test_explain_answers_for_a_class_a_pixel_and_a_part(command: Any, places: dict[str, Path]) -> None:
    line = "explain {run} {picture} --of red --of 30,10 --of component:1 --of COMPONENT:2 --method gradient --out why"
    ended = command(*line.format(**places).split())
    assert (ended.status, ended.err) == (0, "")
    labels = saccade.predict(places["run"], places["picture"], speed="exact")[0].labels
    at = CLASSES[int(labels[10, 30])]
    parts = connected_components(labels, frozenset({0}))
    words = ["red", f"{at} at 30,10", *(f"{CLASSES[parts[n].label]} component {n + 1}" for n in (0, 1))]
    stems = [f"17-{re.sub(r'[ ,]', '_', text)}-gradient" for text in words]
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".npz", ".json")}
    assert {path.name for path in Path("why").iterdir()} == expected
    maps = []
    for text, stem, line in zip(words, stems, ended.out.splitlines(), strict=False):
        manifest = json.loads(Path(f"why/{stem}.json").read_text())
        assert manifest["of"] == text
        assert line.startswith(f"{places['picture']}: {text} by gradient: {manifest['verdict']['status']}")
        assert "advantage_region" in manifest["verdict"]["figures"]
        with np.load(f"why/{stem}.npz") as arrays:
            maps.append(arrays["map"])
            assert maps[-1].shape == (44, 52)
        with Image.open(f"why/{stem}.png") as drawn:
            assert drawn.size == (52, 44)
    assert ended.out.splitlines()[-1] == "written: why"
    assert not np.array_equal(maps[2], maps[3])
    for index, part in ((2, parts[0]), (3, parts[1])):
        inside = part.mask((44, 52)).numpy()
        assert maps[index][inside].mean() > 2 * maps[index][~inside].mean()


def test_explain_contrasts_and_compares_methods(command: Any, places: dict[str, Path]) -> None:
    line = "explain {run} {picture} --of blue --against red --method layercam --method occlusion --out why"
    ended = command(*line.format(**places).split())
    assert (ended.status, ended.err) == (0, "")
    names = {path.name for path in Path("why").iterdir()}
    assert {f"17-blue_rather_than_red-{name}.png" for name in ("layercam", "occlusion")} <= names
    assert "17-methods.png" in names
    assert "17.png: blue rather than red by occlusion: " in ended.out
    manifest = json.loads(Path("why/17-blue_rather_than_red-occlusion.json").read_text())
    assert manifest["manifest"]["score"].startswith("RegionScore(label=2, against=1, pixels=")
    assert manifest["score"] > 0, "in its region the logit of the class is the largest"


def test_explain_without_a_question_takes_what_covers_most(command: Any, places: dict[str, Path]) -> None:
    ended = command("explain", places["run"], places["picture"], "--no-verdict")
    assert (ended.status, ended.err) == (0, "")
    areas = saccade.predict(places["run"], places["picture"], speed="exact")[0].areas()
    main = max((share, name) for name, share in areas.items() if name != "background")[1]
    assert ended.out.startswith(f"{places['picture']}: {main} by layercam")


def test_inspect_tells_the_share_of_the_pixels(command: Any, places: dict[str, Path]) -> None:
    ended = command("data", "inspect", places["data"], "--out", "found")
    assert (ended.status, ended.err) == (0, "")
    assert {path.name for path in Path("found").iterdir()} == {"inspection.json", "train.png", "val.png"}
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}
    for split, numbers in (("train", range(16)), ("val", range(16, 22))):
        masks = [np.array(Image.open(places["data"] / f"masks/{split}/{n}.png")) for n in numbers]
        for label, name in enumerate(CLASSES):
            share = np.mean([mask == label for mask in masks])
            assert f"{100 * share:.1f} %" in lines[name], split
    assert re.search(r"of train pixels +of val pixels", lines["pictures"])
    assert lines["in"].split() == ["in", "all", "16", "6"], "not the sum over the classes"
    assert lines["red"].split()[1:3] == ["16", "6"]
    with Image.open("found/train.png") as sheet:
        assert min(sheet.size) > 100
        assert len(np.unique(np.array(sheet.convert("RGB")).reshape(-1, 3), axis=0)) > 1000


def test_inspect_of_class_folders_counts_pictures(command: Any, places: dict[str, Path]) -> None:
    ended = command("data", "inspect", places["colours"])
    lines = {line.split()[0]: line.split() for line in ended.out.splitlines() if line.strip()}
    assert lines["class"] == ["class", "train", "val"]
    assert lines["grey"] == ["grey", "8", "4"]
    assert lines["in"] == ["in", "all", "40", "20"]


def test_segmenters_are_listed(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saccade.engine.catalog.names", lambda: ("unet_nano", "vit_nano_p4_28", "vit_seg_micro_p4"))
    table = command("models", "--task", "semantic").out
    assert re.search(r"unet_nano +unet, plain +0\.12 M +0\.30 +128x128", table)
    assert "vit_seg_micro_p4" in table
    assert "vit_nano_p4_28" not in table
    entries = json.loads(command("models", "--task", "semantic", "--json").out)
    assert [entry["task"] for entry in entries] == ["semantic"] * 2
    assert command("models", "--task", "segmentation").out == table
    refused = command("models", "--task", "semantics")
    assert refused.err == "error: unknown task 'semantics'; did you mean 'semantic'?\n"


def test_grey_and_deep_pictures_go_into_a_colour_model(command: Any, places: dict[str, Path]) -> None:
    with Image.open(places["picture"]) as picture:
        grey = np.array(picture.convert("L"))
    Image.fromarray(grey).save("grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save("deep.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save("colour.png")
    ended = command("predict", places["run"], "grey.png", "deep.png", "colour.png", "--json", "--exact")
    assert (ended.status, ended.err) == (0, "")
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert records[0]["classes"] == records[1]["classes"] == records[2]["classes"]
    ended = command("explain", places["run"], "deep.png", "--of", "10,10", "--no-verdict")
    assert (ended.status, ended.err) == (0, "")


def test_pictures_of_other_sizes_keep_their_size(command: Any, places: dict[str, Path]) -> None:
    def beside(kind: str) -> Any:
        both = [np.array(Image.open(places["data"] / kind / "val" / name)) for name in ("17.png", "20.png")]
        return np.concatenate([both[0], both[1][:, :38]], axis=1)[:41]

    Image.fromarray(beside("images")).save("wide.png")
    ended = command("predict", places["run"], "wide.png", places["picture"], "--out", "told")
    assert ended.status == 0
    with Image.open("told/wide-labels.png") as indexed:
        assert indexed.size == (90, 41)
        labels = np.array(indexed)
    assert (labels == beside("masks")).mean() > 0.85
    alone = saccade.predict(places["run"], "wide.png", speed="exact")[0]
    assert (labels == alone.labels.numpy()).mean() > 0.995


# --- what is told about words and values


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("explain {run} {picture} --of rde", ["--of: unknown class 'rde'", "did you mean 'red'?"]),
        ("explain {run} {picture} --of gren", ["--of: unknown class 'gren'", "expected one of: background, red, blue"]),
        ("explain {run} {picture} --of 52,0", ["17.png: --of: pixel 52,0 lies outside", "expected at most 51,43"]),
        ("explain {run} {picture} --of component:99", ["17.png: --of: component 99 does not exist", "expected 1 to "]),
        ("explain {run} {picture} --of red --against red", ["--against: class 'red' is contrasted with itself"]),
        ("explain {run} {picture} --against bleu", ["--against: unknown class 'bleu'", "did you mean 'blue'?"]),
        ("explain {run} {picture} --of red --against 3,4", ["--against: unknown class '3,4'"]),
        ("explain {run} {picture} --method relevance", ["no attention that can be observed", "use method="]),
        ("explain {run} {picture} --layer bottlneck", ["--layer: unknown layer", "did you mean 'bottleneck'?"]),
        ("explain {classifier} {picture} --of 3,4", ["--of: unknown class '3,4'", "expected one of: blue, dark"]),
        ("explain {classifier} {picture} --of component:1", ["--of: unknown class 'component:1'"]),
        (
            "train unet_plain_test {data} --set model.preprocess.policy=crop",
            ["preprocess.policy: a crop leaves"],
        ),
        (
            "train unet_plain_test {data} --set model.loss.class_weights=[1,2]",
            ["model.loss.class_weights: 2 class weights for "],
        ),
        ("train unet_plain_test {data} --set model.loss.cross_entropy=0", ["model.loss: the weights are (0.0, 0.0"]),
        ("train unet_plain_test {data} --set model.loss.dise=1", ["unknown config key 'dise'", "did you mean 'dice'?"]),
        # data of another task
        ("train unet_plain_test {colours}", ["holds 60 pictures but no masks", "choose a model for classification"]),
        ("evaluate {run} {colours}", ["holds 60 pictures but no masks", "choose a model for classification"]),
        ("train vit_average_test {data}", ["data for the task semantic; expected one class per picture"]),
        ("evaluate {classifier} {data}", ["data for the task semantic; expected one class per picture"]),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(refused: Any, line: str, parts: list[str]) -> None:
    sentence = refused(line)
    assert all(part in sentence for part in parts), sentence


def test_a_class_that_is_not_in_the_picture(refused: Any, places: dict[str, Path]) -> None:
    with Image.open(places["picture"]) as picture:
        labels = saccade.predict(places["run"], picture, speed="exact")[0].labels
        columns = torch.nonzero((labels == 2).any(dim=0))[:, 0]
        box = (0, 0, int(columns.min()) - 6, 44)
        picture.crop(box).save("part.png")
    there = saccade.predict(places["run"], "part.png", speed="exact")[0].areas()
    assert set(there) == {"background", "red"}
    sentence = refused("explain {run} part.png --of blue")
    assert sentence == (
        "part.png: --of: no pixel was given the class 'blue'; expected a class that is there: background, red; "
        "ask for one pixel, such as --of 120,84, to see why it got another class"
    )


# --- what is told about data


def spoil(root: Path, name: str) -> None:
    """Spoil a copy of the painted scenes in the way its name says."""
    train, val = root / "masks/train", root / "masks/val"
    ignored = Image.fromarray(np.full((44, 52), 255, np.uint8))
    if name == "size":
        with Image.open(train / "3.png") as mask:
            mask.resize((30, 20)).save(train / "3.png")
    elif name == "no masks":
        shutil.rmtree(root / "masks")
    elif name == "values":
        labels = np.array(Image.open(val / "17.png"))
        labels[0, :3] = 7
        Image.fromarray(labels).save(val / "17.png")
    elif name == "ignored":
        for path in (root / "masks").rglob("*.png"):
            ignored.save(path)
    elif name == "photograph":
        levels = np.random.default_rng(0).permutation(44 * 52).reshape(44, 52) % 256
        Image.fromarray(levels.astype(np.uint8)).save(train / "3.png")
    elif name == "coloured":
        shutil.copy(root / "images/train/3.png", train / "3.png")
    elif name == "other names":
        for path in val.iterdir():
            path.rename(val / f"x{path.name}")
        for path in train.iterdir():
            path.rename(train / f"x{path.name}")


SPOILED = {
    "size": ["images/train/3.png: the picture has 52x44 pixels but its mask", "30x20", "scale the mask to the picture"],
    "no masks": ["spoiled: the folder holds 22 pictures but no masks; expected images/ and masks/ with files of the"],
    "values": ["masks/val/17.png: the mask has the value 7 (3 pixels), which stand", "expected one of 0, 1, 2, 255"],
    "ignored": ["spoiled: all pixels of all 22 masks are ignored: 0.png, 1.png", "check the class table"],
    "photograph": ["masks/train/3.png: the mask has 252 different grey levels: it looks like a photograph", "PNG"],
    "coloured": [
        "masks/train/3.png: the mask is coloured, but its classes are numbers",
        "list the colours in classes.",
    ],
    "other names": ["spoiled: no picture has a mask of its name (22 pictures without a mask: ", "rename the masks"],
}


@pytest.mark.parametrize("name", SPOILED)
def test_masks_that_do_not_fit_are_named(refused: Any, places: dict[str, Path], name: str) -> None:
    places["spoiled"] = Path("spoiled")
    shutil.copytree(places["data"], "spoiled")
    spoil(Path("spoiled"), name)
    for line in ("train unet_plain_test {spoiled} --out o", "evaluate {run} {spoiled} --out o"):
        sentence = refused(line)
        assert all(part in sentence for part in SPOILED[name]), sentence
    with pytest.raises(DataError):
        saccade.evaluate(places["run"], "spoiled")
    inspected = refused("data inspect {spoiled} --out o")
    if name != "no masks":
        assert all(part in inspected for part in SPOILED[name]), inspected


@pytest.mark.usefixtures("short_report")
def test_pictures_without_a_mask_are_told_and_left_out(command: Any, refused: Any, places: dict[str, Path]) -> None:
    places["some"] = Path("some")
    shutil.copytree(places["data"], "some")
    for number in (17, 18):
        Path(f"some/masks/val/{number}.png").unlink()
    ended = command("evaluate", places["run"], "some", "--out", "score")
    assert (ended.status, ended.err) == (0, "")
    assert "note: 2 pictures without a mask: 17.png, 18.png: left out" in ended.out
    assert json.loads(Path("score/evaluation.json").read_text())["num_images"] == 4
    sentence = refused("evaluate {run} {some} --strict --out o")
    assert sentence == "some: 2 pictures without a mask: 17.png, 18.png; add or delete the files, or leave out --strict"


@pytest.mark.usefixtures("short_report")
def test_an_empty_class_and_an_ignored_mask_are_told(command: Any, places: dict[str, Path]) -> None:
    shutil.copytree(places["data"], "odd")
    Path("odd/classes.json").write_text('["background", "red", "blue", "green"]')
    Image.fromarray(np.full((44, 52), 255, np.uint8)).save("odd/masks/train/3.png")
    told = ("1 class ('green') without a pixel in any mask", "1 mask with every pixel ignored: 3.png")
    ended = command("data", "inspect", "odd")
    assert ended.status == 0
    assert all(f"- {line}" in ended.out for line in told)
    ended = command("train", "unet_plain_test", "odd", "--epochs", 1, "--batch-size", 8, "--out", "run")
    assert (ended.status, ended.err) == (0, "")
    assert all(f"note: {line}" in ended.out for line in told)
    assert "no image of: green" in ended.out
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    assert evaluation["missing_classes"] == ["green"]
    assert evaluation["per_class"][3]["share"] in (0, None)


def test_classes_that_the_model_does_not_know(refused: Any, places: dict[str, Path]) -> None:
    places["renamed"] = Path("renamed")
    shutil.copytree(places["data"], "renamed")
    Path("renamed/classes.json").write_text('["background", "red", "bleu"]')
    sentence = refused("evaluate {run} {renamed} --out o")
    assert sentence.startswith("renamed: the data set has 1 class(es) that the model does not know: bleu; expected")
    assert sentence.endswith("rename it to 'blue'")


@pytest.mark.usefixtures("short_report")
def test_a_damaged_mask_is_skipped_and_named(command: Any, refused: Any, places: dict[str, Path]) -> None:
    places["cut"] = Path("cut")
    shutil.copytree(places["data"], "cut")
    path = Path("cut/masks/val/17.png")
    path.write_bytes(path.read_bytes()[:60])
    ended = command("evaluate", places["run"], "cut", "--out", "score")
    assert (ended.status, ended.err) == (0, "")
    assert "skipped as unreadable: 1\n" in ended.out
    assert "cut/masks/val/17.png: the mask is damaged" in ended.out
    assert json.loads(Path("score/evaluation.json").read_text())["num_images"] == 5
    assert refused("evaluate {run} {cut} --strict --out o").startswith("cut/masks/val/17.png: the mask is damaged")


# --- a model that slides


def test_a_sliding_model_predicts_and_says_that_it_cannot_be_explained(
    command: Any, places: dict[str, Path], tmp_path: Path
) -> None:
    run = "train patch_cnn_test {data} --epochs 1 --batch-size 8 --set model.inference=sliding --out slide"
    ended = command(*run.format(**places).split())
    assert (ended.status, ended.err) == (0, ""), "what cannot be explained can still be reported"
    assert Path("slide/report.html").is_file()
    ended = command("predict", "slide", places["picture"], "--json")
    assert ended.status == 0
    ended = command("explain", "slide", places["picture"])
    assert ended.status == 2
    assert "a model that slides has no maps of the picture; set model.inference=one_pass" in ended.err
    assert not (tmp_path / "explanations").exists()
