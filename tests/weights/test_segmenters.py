"""Weights that come into segmenters: from classifiers, from published segmenters, from files of unknown origin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from saccade.config import to_dict
from saccade.errors import WeightsError
from saccade.models.build import SOURCES, create, from_source, load_weights
from saccade.types import ImageBatch
from saccade.weights.files import recognise
from saccade.weights.timm import publish
from saccade.weights.transfer import load_matching

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24]}


def unsure_norms(module: nn.Module) -> nn.Module:
    """Running statistics that are not those of a fresh network, so that a lost one is noticed."""
    dice = torch.Generator().manual_seed(0)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=dice))
    return module.eval()


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "efficientnet_b0"])
@pytest.mark.parametrize("segmenter", ["unet_resnet_test", "fcn8s_test"])
def test_a_timm_classifier_gives_its_backbone(monkeypatch: pytest.MonkeyPatch, name: str, segmenter: str) -> None:
    module = unsure_norms(timm.create_model(name))
    monkeypatch.setitem(SOURCES, "timm", lambda name: publish(module, name))
    overrides = {"backbone.name": name, "backbone.arguments": {}, "preprocess.mean": [0.0, 0.0, 0.0]}
    model = create(segmenter, overrides=overrides).eval()
    report = load_weights(model, f"timm/{name}")
    assert not any(fresh.startswith("backbone.") for fresh in report.fresh)
    assert any(fresh.startswith("head.") for fresh in report.fresh)
    assert {left.split(".")[2] for left in report.left if left.startswith("backbone.")} <= {"conv_head", "bn2"}
    assert model.preprocess.mean == module.pretrained_cfg["mean"]
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = module.forward_intermediates(pixels, intermediates_only=True)
        for ours, theirs in zip(model.backbone(pixels).maps, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_plain_torchvision_file_gives_the_backbone(tmp_path: Path) -> None:
    module = unsure_norms(torchvision.models.resnet18())
    torch.save(module.state_dict(), tmp_path / "resnet18.pth")
    model = create("unet_resnet_test", overrides={"backbone.arguments": {}})
    report = load_weights(model, tmp_path / "resnet18.pth")
    assert report.left == ("head.weight", "head.bias")
    assert torch.equal(model.backbone.body.layer3[1].conv2.weight, module.layer3[1].conv2.weight)
    assert torch.equal(model.backbone.body.bn1.running_var, module.bn1.running_var)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_our_own_classifier_gives_its_backbone(tmp_path: Path, suffix: str) -> None:
    source = create("resnet_test", overrides={"backbone.arguments": SMALL, "preprocess.mean": [0.1, 0.2, 0.3]})
    path = tmp_path / f"own{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        about = {"classes": list(source.classes), "config": to_dict(source.config)}
        safetensors.torch.save_file(source.state_dict(), path, metadata={"saccade": json.dumps(about)})
    model = create("fcn8s_test")
    report = load_weights(model, path)
    assert set(report.left) == {"head.weight", "head.bias"}
    assert all(name.startswith("head.") for name in report.fresh)
    assert torch.equal(model.backbone.body.layer4[0].conv1.weight, source.backbone.body.layer4[0].conv1.weight)
    assert model.preprocess.mean == ((0.485, 0.456, 0.406) if suffix == ".pth" else (0.1, 0.2, 0.3))


def test_our_own_transformer_gives_its_backbone() -> None:
    source = create("vit_token_test", overrides={"backbone.num_registers": 0, "backbone.qk_norm": False})
    model = create("vit_seg_test", overrides={"backbone.image_size": [64, 64]})
    report = load_matching(model, source.state_dict(), takes_head=False)
    assert report.resampled == ("backbone.positions.table",)
    assert set(report.left) == {"head.weight", "head.bias"}
    assert torch.equal(model.backbone.norm.weight, source.backbone.norm.weight)
    assert all(name.startswith(("decoder.", "head.")) for name in report.fresh)


def test_a_backbone_of_another_architecture_is_refused() -> None:
    state = create("resnet_test", overrides={"backbone.arguments": {**SMALL, "layers": [1, 1, 2, 1]}}).state_dict()
    with pytest.raises(WeightsError, match=r"another architecture: the model has no 'backbone\.body\.layer3\.1"):
        load_matching(create("unet_resnet_test"), state)


@pytest.mark.parametrize("name", ["segnet_nearest_test", "patch_cnn_test"])
def test_a_segmenter_without_a_backbone_takes_all_but_the_head(tmp_path: Path, name: str) -> None:
    source, model = create(name), create(name, num_classes=6)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    report = load_weights(model, tmp_path / "own.pth")
    assert set(report.fresh) == set(report.left) == {"head.weight", "head.bias"}
    assert len(report.taken) == len(source.state_dict()) - 2
    with pytest.raises(WeightsError, match="another architecture"):
        load_matching(model, create("unet_plain_test").state_dict())


def test_the_auxiliary_scores_are_left_with_the_head() -> None:
    source, model = create("fcn_dilated_test"), create("fcn_dilated_test")
    report = load_matching(model, source.state_dict(), takes_head=False)
    heads = {"head.scores.0.weight", "head.scores.0.bias", "auxiliary.head.weight", "auxiliary.head.bias"}
    assert set(report.fresh) == set(report.left) == heads


def test_torchvisions_fcn_by_name_with_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    build = torchvision.models.segmentation.fcn_resnet50
    published = unsure_norms(build(weights=None, weights_backbone=None, aux_loss=True)).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    model = from_source("torchvision/fcn_resnet50")
    assert model.task == "semantic"
    assert model.classes.names[0] == "background"
    assert model.classes.names[15] == "person"
    assert model.preprocess.policy == "native"
    assert torch.equal(model.head.scores[0].weight, published["classifier.4.weight"])
    changed = from_source("torchvision/fcn_resnet50", classes=["sky", "sea"])
    assert changed.head.scores[0].out_channels == changed.auxiliary.head.out_channels == 2
    assert torch.equal(changed.neck[0].conv.weight, published["classifier.0.weight"])


def test_a_file_of_torchvisions_fcn_without_its_auxiliary_head(tmp_path: Path) -> None:
    module = unsure_norms(torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None))
    torch.save({"model": module.state_dict()}, tmp_path / "fcn.pth")
    model = create("fcn_resnet50", overrides=["has_auxiliary=false"]).eval()
    report = load_weights(model, tmp_path / "fcn.pth")
    assert report.fresh == report.left == ()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(ImageBatch.of(pixels)).logits, module(pixels)["out"], rtol=1e-4, atol=1e-4)


def test_torchvisions_deeplab_is_not_taken_for_an_fcn() -> None:
    module = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    with pytest.raises(WeightsError, match="no known source"):
        recognise(module.state_dict())


def test_a_file_of_an_smp_unet(tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    module = unsure_norms(smp.Unet("resnet18", encoder_weights=None, classes=3))
    torch.save(module.state_dict(), tmp_path / "unet.pth")
    model = create("unet_r18", num_classes=3).eval()
    report = load_weights(model, tmp_path / "unet.pth")
    assert report.fresh == report.left == ()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(ImageBatch.of(pixels)).logits, module(pixels), rtol=1e-4, atol=1e-4)
