"""The verbs as Python functions, on tiny data: what they take, what they give, what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import saccade
from saccade.api import start
from saccade.config import from_dict
from saccade.data.source import open_data
from saccade.data.synthetic import synthetic_objects
from saccade.engine.plan import TrainConfig
from saccade.errors import (
    ConfigError,
    DataError,
    ImageError,
    InputError,
    RunError,
    SaccadeError,
    UnknownNameError,
    WeightsError,
)
from saccade.explanation.adapt import adapt
from saccade.models import build
from saccade.models.build import find_config
from saccade.models.yolo import YoloConfig
from saccade.ops.image import Preprocess
from saccade.registry import names
from saccade.types import Segmentation
from saccade.weights.published import Published

pytestmark = pytest.mark.xdist_group("verbs")


@pytest.fixture
def pictures(colours: Path) -> list[Path]:
    """One picture of each colour, in the order of the classes."""
    return [colours / "val" / name / "1.png" for name in ("blue", "dark", "green", "grey", "red")]


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# --- create and load


def test_create_takes_classes_or_their_number_and_overrides() -> None:
    model = saccade.create("vit_average_test", classes=["cat", "dog", "owl"], overrides={"backbone.depth": 1})
    assert model.classes.names == ("cat", "dog", "owl")
    assert model.head.weight.shape[0] == 3
    assert len(model.backbone.blocks) == 1
    other = saccade.create("vit_average_test", num_classes=4, overrides=["backbone.depth=3"])
    assert other.classes.names == ("class_0", "class_1", "class_2", "class_3")
    assert len(other.backbone.blocks) == 3


@pytest.mark.parametrize(
    ("name", "options", "kind", "words"),
    [
        ("vit_s61", {}, UnknownNameError, "did you mean 'vit_s16'"),
        ("timm/resnet81", {}, UnknownNameError, "did you mean 'resnet"),
        ("vit_average_test", {"overrides": {"backbone.detph": 3}}, ConfigError, "did you mean 'depth'"),
        ("vit_average_test", {"overrides": ["preprocess.size=[30,30]"]}, ConfigError, "patches of 8 do not tile"),
        ("vit_average_test", {"classes": ["a", "b"], "num_classes": 3}, ConfigError, "num_classes is 3, but 2"),
        ("vit_average_test", {"classes": ["a", "b", "a"]}, InputError, "class names repeat: a"),
        ("vit_average_test", {"num_classes": 0}, ConfigError, "num_classes"),
    ],
)
def test_create_refuses(name: str, options: dict[str, Any], kind: type[SaccadeError], words: str) -> None:
    with pytest.raises(kind, match=words):
        saccade.create(name, **options)


def test_load_takes_a_file_or_its_run_folder(trained: Path) -> None:
    one, other = saccade.load(trained), saccade.load(str(trained / "best.safetensors"))
    assert one.classes.names == ("blue", "dark", "green", "grey", "red")
    assert not one.training
    assert one.config == other.config
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "nowhere: there is no such file; expected a .safetensors file, a run folder"),
        ("vit_s16", "an architecture without weights; train it first"),
        (".", "best.safetensors: the file does not exist"),
        ("last.ckpt", "the file holds a state; expected a model; use best.safetensors"),
    ],
)
def test_load_refuses(trained: Path, tmp_path: Path, source: str, words: str) -> None:
    place: Any = {".": tmp_path, "last.ckpt": trained / "last.ckpt"}.get(source, source)
    with pytest.raises(WeightsError, match=words):
        saccade.load(place)


def test_load_asks_every_published_source(monkeypatch: pytest.MonkeyPatch) -> None:
    for source in build.SOURCES:
        asked: list[str] = []

        def fetch(name: str, asked: list[str] = asked) -> Published:
            asked.append(name)
            raise WeightsError("nothing is downloaded in a test", where=name)

        monkeypatch.setitem(build.SOURCES, source, fetch)
        with pytest.raises(WeightsError, match="nothing is downloaded"):
            saccade.load(f"{source}/some/name")
        assert asked == ["some/name"]


# --- train


def test_train_gives_the_finished_run(
    colours: Path, tmp_path: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = saccade.train("vit_average_test", colours, out=out, epochs=4, batch_size=10, learning_rate=5e-3, quiet=True)
    assert capsys.readouterr().out == ""
    assert run.folder == out
    assert run.metrics["top1"] == 1.0, "five plain colours can be learned"
    assert run.metrics == json.loads((out / "metrics.json").read_text())["metrics"]
    assert not run.model.training
    names = [prediction.name for prediction in saccade.predict(run.model, pictures)]
    assert names == ["blue", "dark", "green", "grey", "red"]
    assert saccade.evaluate(out, colours).metrics["top1"] == 1.0


def test_train_starts_from_a_run_and_keeps_what_is_frozen(trained: Path, colours: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "limit_steps": 1, "ema_decay": 0.0, "quiet": True}
    run = saccade.train(
        "vit_average_test", colours, out=tmp_path / "run", weights=trained, freeze=("backbone",), **settings
    )
    before, after = state(saccade.load(trained)), state(run.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_train_takes_a_model_and_data_in_memory(colours: Path, tmp_path: Path) -> None:
    source = open_data(colours)
    model = saccade.create("vit_average_test", classes=("red", "grey", "green", "dark", "blue"))
    start = state(model)
    run = saccade.train(model, source, out=tmp_path / "run", epochs=1, limit_steps=1, quiet=True)
    assert run.model.classes.names == ("red", "grey", "green", "dark", "blue"), "joined by name, not by number"
    assert not torch.equal(start["head.weight"], model.state_dict()["head.weight"]), "the model itself is trained"


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"epocs": 3}, ConfigError, "unknown config key 'epocs'; did you mean 'epochs'"),
        ({"epochs": 0}, ConfigError, "epochs is 0; expected at least 1"),
        ({"learning_rate": float("nan")}, ConfigError, "learning_rate: input should be a finite number"),
        ({"optimizer": "adam"}, ConfigError, "optimizer: .*'adamw' or 'sgd'"),
        ({"freeze": ("bakbone",)}, SaccadeError, "did you mean 'backbone'"),
        ({"weights": "nowhere.pt"}, WeightsError, "nowhere.pt: there is no such file"),
    ],
)
def test_train_refuses_before_anything_is_written(
    colours: Path, tmp_path: Path, settings: dict[str, Any], kind: type[SaccadeError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        saccade.train("vit_average_test", colours, out=tmp_path / "run", quiet=True, **settings)
    assert not any(tmp_path.iterdir())


def test_a_model_is_trained_as_it_is_known_to_learn_where_nothing_else_is_asked(tmp_path: Path) -> None:
    data = {
        "train": synthetic_objects(4, 64, 0, task="detection"),
        "val": synthetic_objects(2, 64, 1, task="detection"),
    }
    asked = ["train.epochs=1", "train.augment.flip=0.25"]
    settings = {"learning_rate": 1e-4}
    out, records = start("yolo_test", data, out=tmp_path / "run", assignments=asked, settings=settings)
    notes = [note for record in records for note in record.notes]
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))["train"]
    usual = YoloConfig().train_settings(())
    assert config["batch_size"] == usual["batch_size"]
    assert config["clip_norm"] == usual["clip_norm"]
    assert config["augment"]["zoom"] == usual["augment"]["zoom"]
    assert (config["learning_rate"], config["augment"]["flip"]) == (1e-4, 0.25)
    assert any("settings of this model's own" in note for note in notes)


@pytest.mark.parametrize("name", [name for name in names() if find_config(name).train_settings(())])
def test_the_settings_that_models_name_exist(name: str) -> None:
    config = from_dict(TrainConfig, dict(find_config(name).train_settings(())))
    assert config != TrainConfig()


def test_train_leaves_an_older_run_alone(trained: Path, colours: Path) -> None:
    before = {path: path.read_bytes() for path in trained.iterdir()}
    with pytest.raises(RunError, match="exists already"):
        saccade.train("vit_average_test", colours, out=trained, epochs=1, quiet=True)
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


# --- evaluate


def test_evaluate_takes_a_path_or_a_model_and_the_split(trained: Path, colours: Path) -> None:
    by_path = saccade.evaluate(trained, colours, batch_size=7)
    by_model = saccade.evaluate(saccade.load(trained), open_data(colours))
    assert by_path.num_images == 20, "the held-out split"
    assert by_path.metrics == pytest.approx(by_model.metrics)
    assert by_path.metrics["top1"] == json.loads((trained / "metrics.json").read_text())["metrics"]["top1"]
    assert by_path.settings["split"] == "val"
    assert saccade.evaluate(trained, colours, split="train").num_images == 40
    whole = saccade.evaluate(trained, colours, split="all")
    assert (whole.num_images, whole.settings["split"]) == (60, "all")


def test_evaluate_agrees_with_predict(trained: Path, colours: Path) -> None:
    evaluation = saccade.evaluate(trained, colours)
    files = sorted((colours / "val").rglob("*.png"))
    predictions = saccade.predict(trained, files, speed="exact")
    wrong = {str(f): p for f, p in zip(files, predictions, strict=True) if p.name != f.parent.name}
    assert {mistake.source for mistake in evaluation.mistakes} == set(wrong)
    for mistake in evaluation.mistakes:
        assert mistake.predicted == wrong[mistake.source].name
        assert mistake.score == pytest.approx(wrong[mistake.source].score, rel=1e-4)


def test_evaluate_refuses(trained: Path, colours: Path) -> None:
    with pytest.raises(DataError, match="there is no split 'test'; expected one of: train, val, all"):
        saccade.evaluate(trained, colours, split="test")
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        saccade.evaluate(trained, colours, batchsize=3)
    stranger = saccade.create("vit_average_test", classes=["ant", "bee"])
    with pytest.raises(DataError, match=r"colours0: the data set has 5 class\(es\) that the model does not know: blue"):
        saccade.evaluate(stranger, colours)


# --- predict


def test_predict_takes_one_or_many_of_any_kind(trained: Path, pictures: list[Path]) -> None:
    model = saccade.load(trained)
    with Image.open(pictures[4]) as opened:
        picture = opened.copy()
    array = np.asarray(picture)
    kinds: list[Any] = [
        pictures[4],
        str(pictures[4]),
        pictures[4].read_bytes(),
        picture,
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        array.astype(np.float32) / 255,
    ]
    expected = saccade.predict(model, pictures[4])
    assert len(expected) == 1
    for found in saccade.predict(model, kinds):
        torch.testing.assert_close(found.scores, expected[0].scores, rtol=1e-5, atol=1e-6)
    together = saccade.predict(trained, pictures, batch_size=2)
    alone = [saccade.predict(model, path)[0] for path in pictures]
    assert len({tuple(one.scores.tolist()) for one in alone}) == 5, "the pictures differ, and so do the answers"
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-6)
    assert float(alone[0].scores.sum()) == pytest.approx(1)
    assert alone[0].top(1) == [(alone[0].name, alone[0].score)]
    assert saccade.predict(model, []) == []


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((9, 8, 4), np.uint8), "has 4 channels; expected 1 or 3; pass Image.fromarray"),
        (np.zeros((9, 8, 2), np.uint8), r"has shape \(9, 8, 2\); expected \[h, w\] grey"),
        (np.zeros((3, 9, 3), np.uint8), "can be read as .* and as"),
        (np.zeros((2, 3, 9, 8), np.uint8), "is a batch; pass a list of pictures"),
        (np.full((9, 8, 3), 200.0), r"float values run from 200 to 200; expected \[0, 1\]; if they are 0 to 255"),
        (np.full((9, 8, 3), 1.2, np.float32), r"expected \[0, 1\]; if they are 0 to 255"),
        (np.full((9, 8, 3), -0.3, np.float32), r"expected \[0, 1\]; undo the normalisation"),
        (np.full((9, 8, 3), np.nan), "NaN or infinite values"),
        (np.zeros((9, 8, 3), np.int64), "holds int64; expected uint8"),
        (torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(0)), "undo the normalisation"),
    ],
)
def test_arrays_that_are_not_clearly_pictures_are_refused(trained: Path, array: Any, words: str) -> None:
    model = saccade.load(trained)
    for verb in (saccade.predict, saccade.explain):
        with pytest.raises(InputError, match=words):
            verb(model, array)


def test_predict_refuses(trained: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.jpg: this is not a picture"):
        saccade.predict(trained, [*pictures, tmp_path / "text.jpg"])
    with pytest.raises(InputError, match="int is no picture"):
        saccade.predict(trained, 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size is 0; expected at least 1"):
        saccade.predict(trained, pictures, batch_size=0)
    with pytest.raises(ConfigError, match="speed: input should be 'auto' or 'exact'"):
        saccade.predict(trained, pictures, speed="fast")  # type: ignore[arg-type]


# --- explain


def test_explain_answers_by_name_label_or_prediction(trained: Path, pictures: list[Path], tmp_path: Path) -> None:
    model = saccade.load(trained)
    before = state(model)
    prediction = saccade.predict(model, pictures[2])[0]
    for of in (None, prediction, prediction.name, prediction.label):
        heat = saccade.explain(model, pictures[2], of=of, method="gradcam", verdict=False)
        assert heat.of == prediction.name
        assert heat.map.shape == (32, 32)
        assert heat.verdict is None
    other = next(name for name in model.classes if name != prediction.name)
    contrast = saccade.explain(trained, pictures[2], of=prediction, against=other, method="gradcam")
    assert contrast.of == f"{prediction.name} rather than {other}"
    assert contrast.score > 0, "the predicted class has the largest logit"
    assert not torch.allclose(contrast.map, heat.map)
    assert contrast.verdict is not None
    assert contrast.verdict.status in {"supported", "weak", "failed"}
    with Image.open(contrast.save(tmp_path / "why.png")) as drawn:
        assert drawn.size == (32, 32)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_explain_takes_a_model_that_is_not_ours(pictures: list[Path]) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=r"does not say how its pictures are prepared; say it: adapt\(model"):
        saccade.explain(model, pictures[0])
    heat = saccade.explain(adapt(model, Preprocess(size=(24, 24))), pictures[0], of=2, method="gradient")
    assert heat.map.shape == (32, 32)
    assert heat.peak > 0
    assert heat.verdict is not None


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"of": "rd"}, UnknownNameError, "unknown class 'rd'; did you mean 'red'"),
        ({"of": 5}, InputError, "class 5 does not exist; expected 0 to 4"),
        ({"of": "red", "against": "red"}, InputError, "'red' is contrasted with itself"),
        ({"method": "gradcamm"}, UnknownNameError, "did you mean 'gradcam'"),
        ({"layer": "blok1"}, UnknownNameError, "did you mean 'block1'"),
        ({"method": "rise", "layer": "block1"}, ConfigError, "'rise' reads no layer"),
    ],
)
def test_explain_refuses(
    trained: Path, pictures: list[Path], options: dict[str, Any], kind: type[SaccadeError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        saccade.explain(trained, pictures[0], **options)


def test_altered_weights_leave_a_given_model_as_it_was(trained: Path, colours: Path, tmp_path: Path) -> None:
    content = bytearray((trained / "best.safetensors").read_bytes())
    content[-5] ^= 0xFF
    (tmp_path / "altered.safetensors").write_bytes(bytes(content))
    model = saccade.load(trained)
    with torch.no_grad():
        model.head.weight.zero_()
    with pytest.raises(WeightsError, match="altered"):
        saccade.train(model, colours, weights=tmp_path / "altered.safetensors", out=tmp_path / "run", quiet=True)
    assert not model.head.weight.any()
    assert not (tmp_path / "run").exists()


# --- label maps


def test_the_verbs_take_a_segmenter(trained_segmenter: Path, painted: Path, tmp_path: Path) -> None:
    path = painted / "images/val/17.png"
    model = saccade.load(trained_segmenter)
    before = state(model)
    several = saccade.predict(model, [path, np.zeros((30, 70, 3), np.uint8)])
    assert [tuple(one.labels.shape) for one in several] == [(44, 52), (30, 70)], "each in the size of its picture"
    assert all(isinstance(one, Segmentation) for one in several)
    truth = torch.from_numpy(np.array(Image.open(painted / "masks/val/17.png")))
    assert (several[0].labels == truth).float().mean() > 0.85
    region = torch.zeros(44, 52, dtype=torch.bool)
    region[12:20, 30:38] = True
    for of, words in (
        (None, "red"),
        ("blue", "blue"),
        (1, "red"),
        ((3, 2), "background at 3,2"),
        (region, " in a mask"),
    ):
        heat = saccade.explain(model, path, of=of, method="gradient", verdict=False)
        assert heat.of.endswith(words)
        assert heat.region is not None
        assert heat.map.shape == heat.region.shape == (44, 52)
    contrast = saccade.explain(trained_segmenter, path, of="blue", against="background", method="occlusion")
    assert contrast.of == "blue rather than background"
    assert contrast.verdict is not None
    assert "advantage_region" in contrast.verdict.figures
    with Image.open(contrast.save(tmp_path / "why.png")) as drawn:
        assert drawn.size == (52, 44)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_segmenter_continues_from_a_run_on_other_classes(
    trained_segmenter: Path, painted: Path, tmp_path: Path
) -> None:
    (tmp_path / "more/images").mkdir(parents=True)
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            shutil.copytree(painted / kind / split, tmp_path / "more" / kind / split)
    (tmp_path / "more/classes.json").write_text('["background", "red", "blue", "green"]')
    settings: dict[str, Any] = {"epochs": 1, "limit_steps": 1, "ema_decay": 0.0, "quiet": True, "batch_size": 4}
    run = saccade.train(
        "unet_plain_test",
        tmp_path / "more",
        out=tmp_path / "run",
        weights=trained_segmenter,
        freeze=("backbone",),
        **settings,
    )
    assert run.model.classes.names == ("background", "red", "blue", "green")
    old, new = state(saccade.load(trained_segmenter)), state(run.model)
    same = [
        name for name in old if name.startswith("backbone.") and "running" not in name and "num_batches" not in name
    ]
    assert same
    assert all(torch.equal(old[name], new[name]) for name in same), "the frozen part is that of the run"
    assert new["head.weight"].shape[0] == 4


def test_evaluate_of_a_segmenter_refuses_other_data(trained_segmenter: Path, colours: Path, painted: Path) -> None:
    with pytest.raises(DataError, match="holds 60 pictures but no masks"):
        saccade.evaluate(trained_segmenter, colours)
    with pytest.raises(DataError, match="there is no split 'test'; expected one of: train, val, all"):
        saccade.evaluate(trained_segmenter, painted, split="test")
    stranger = saccade.create("unet_plain_test", classes=["sky", "sea"])
    with pytest.raises(DataError, match=r"3 class\(es\) that the model does not know: background, red, blue"):
        saccade.evaluate(stranger, painted)
