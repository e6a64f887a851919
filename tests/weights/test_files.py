from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from saccade.config import to_dict
from saccade.errors import UnknownNameError, WeightsError
from saccade.models.build import SOURCES, create, fetch, from_source, load_weights
from saccade.types import ImageBatch
from saccade.weights.files import read_state_dict, recognise, unwrap
from saccade.weights.published import unique
from saccade.weights.timm import publish
from saccade.weights.transfer import load_matching


def test_both_formats_give_the_same_tensors(tmp_path: Path) -> None:
    state = create("vit_average_test").state_dict()
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    one, other = read_state_dict(tmp_path / "a.safetensors"), read_state_dict(tmp_path / "a.pth")
    assert one.keys() == other.keys() == state.keys()
    assert all(torch.equal(one[name], other[name]) for name in state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_wrappers_and_prefixes_are_taken_off(wrapper: str) -> None:
    wrapped = {wrapper: {"module.head.weight": torch.ones(2)}, "epoch": 7}
    assert list(unwrap(wrapped, "file")) == ["head.weight"]


class Trap:
    """Pickled code that a careless loader would run."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"head.weight": Trap(str(tmp_path / "ran"))}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match="not opened for safety"):
        read_state_dict(tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign"])
def test_damaged_files_give_one_sentence(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    state = create("vit_average_test").state_dict()
    if name.endswith("pth"):
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "truncated": content[: len(content) // 2], "foreign": b"PNG and so on " * 9}[damage]
    )
    with pytest.raises(WeightsError, match="no readable file of weights") as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_file_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        read_state_dict(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        read_state_dict(tmp_path / "list.pth")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"no known source.*'linear.weight'"):
        recognise({"linear.weight": torch.ones(2, 2)})


def test_mobilenet_from_a_torchvision_file_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torchvision.models.mobilenet_v2(num_classes=5).eval()
    for buffer_name, buffer in module.named_buffers():
        if buffer_name.endswith("running_var"):
            buffer.fill_(0.05)  # else the signal of an untrained network dies on its way
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in module.state_dict().items()}}
    torch.save(wrapped, tmp_path / "net.pth")
    model = create("mobilenetv2_100", num_classes=5).eval()
    report = load_weights(model, tmp_path / "net.pth")
    assert report.fresh == report.left == ()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = module(pixels)
        assert float(expected.std()) > 1e-3
        torch.testing.assert_close(model(ImageBatch.of(pixels)).logits, expected, rtol=1e-4, atol=1e-4)


def test_another_number_of_classes_leaves_the_head_fresh() -> None:
    source, model = create("vit_average_test", num_classes=7), create("vit_average_test", num_classes=3)
    head = model.head.weight.clone()
    report = load_matching(model, source.state_dict())
    assert set(report.fresh) == set(report.left) == {"head.weight", "head.bias"}
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.backbone.norm.weight, source.backbone.norm.weight)
    assert len(report.taken) + 2 == len(model.state_dict())
    assert "head.weight" in str(report)


def test_the_head_can_be_left_on_purpose() -> None:
    source, model = create("vit_average_test"), create("vit_average_test")
    assert load_matching(model, source.state_dict()).fresh == ()
    report = load_matching(model, source.state_dict(), takes_head=False)
    assert report.fresh == report.left == ("head.weight", "head.bias")


def test_positions_of_another_canvas_are_resampled() -> None:
    source = create("vit_average_test")
    model = create("vit_average_test", overrides=["backbone.image_size=[64, 64]"])
    report = load_matching(model, source.state_dict())
    assert report.resampled == ("backbone.positions.table",)
    expected = source.backbone.positions((8, 8)).view(1, 8, 8, 32)
    torch.testing.assert_close(model.backbone.positions.table, expected)


def test_a_class_token_may_be_left() -> None:
    source = create("vit_average_test", overrides=["backbone.has_class_token=true"])
    assert load_matching(create("vit_average_test"), source.state_dict()).left == ("backbone.class_token",)


@pytest.mark.parametrize(
    ("name", "overrides", "first"),
    [
        ("resnet_test", [], "backbone.body.conv1.weight"),
        ("vit_average_test", ["backbone.embed_dim=16"], "backbone.embed.project.weight"),
        ("vit_average_test", ["backbone.depth=3"], "backbone.blocks.2.norm1.weight"),
        ("vit_average_test", ["backbone.depth=1"], "backbone.blocks.1.norm1.weight"),
        ("vit_swiglu_test", [], "backbone.blocks.0.mlp.widen.weight"),
        ("vit_token_test", ["backbone.num_registers=0", "backbone.qk_norm=false"], "backbone.class_token"),
    ],
)
def test_weights_of_another_architecture_are_refused(name: str, overrides: list[str], first: str) -> None:
    state = create("vit_average_test").state_dict()
    model = create(name, overrides=overrides)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=f"another architecture.*'{first}'"):
        load_matching(model, state)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_file_of_another_architecture_is_named(tmp_path: Path) -> None:
    torch.save(create("vit_average_test").state_dict(), tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"vit\.pth.*another architecture"):
        load_weights(create("resnet_test"), tmp_path / "vit.pth")


@pytest.mark.parametrize(("classes", "is_taken"), [(["a", "b", "c"], True), (["b", "a", "c"], False)])
def test_our_own_file_gives_its_head_only_to_its_own_classes(
    tmp_path: Path, classes: list[str], is_taken: bool
) -> None:
    source = create("vit_average_test", classes=["a", "b", "c"], overrides={"preprocess.mean": [0.1, 0.2, 0.3]})
    about = {"classes": list(source.classes), "config": to_dict(source.config)}
    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file(source.state_dict(), path, metadata={"saccade": json.dumps(about)})
    model = create("vit_average_test", classes=classes)
    report = load_weights(model, path)
    assert report.fresh == (() if is_taken else ("head.weight", "head.bias"))
    assert torch.equal(model.head.weight, source.head.weight) == is_taken
    assert model.preprocess.mean == (0.1, 0.2, 0.3)


def test_a_published_source_gives_its_statistics_and_keeps_our_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    module = timm.create_model("resnet18")
    monkeypatch.setitem(SOURCES, "timm", lambda name: publish(module, name))
    model = create(
        "resnet18", num_classes=3, overrides={"preprocess.size": [64, 64], "preprocess.mean": [0.0, 0.0, 0.0]}
    )
    report = load_weights(model, "timm/resnet18")
    assert report.fresh == ("head.weight", "head.bias")
    assert model.preprocess.size == (64, 64)
    assert model.preprocess.mean == (0.485, 0.456, 0.406)


def test_repeated_class_names_are_told_apart() -> None:
    assert unique(["crane", "cat", "crane"]) == ("crane (0)", "cat", "crane (2)")


@pytest.mark.parametrize("source", ["nowhere/resnet18", "timm/resnet81", "torchvision/vit_b_61", "resnet18"])
def test_unknown_sources_offer_the_nearest(source: str) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean|expected"):
        fetch(source)


def test_a_torchvision_network_we_do_not_build_is_refused_before_any_download() -> None:
    with pytest.raises(UnknownNameError, match="torchvision model 'squeezenet1_0'"):
        fetch("torchvision/squeezenet1_0")


def test_unreachable_weights_give_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("name resolution failed\nand a long story")

    monkeypatch.setattr("timm.create_model", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    for source in ("timm/resnet18", "torchvision/resnet18", "torchvision/fcn_resnet50"):
        with pytest.raises(WeightsError, match=r"cannot be had \(name resolution failed\).*file of weights") as caught:
            from_source(source)
        assert "\n" not in str(caught.value)


def test_the_hub_offline_gives_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("transformers/nobody/nothing", "timm/vit_tiny_patch16_224.augreg_in21k"):
        with pytest.raises(WeightsError, match="cannot be had") as caught:
            from_source(source)
        assert "\n" not in str(caught.value)
