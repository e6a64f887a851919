"""The same weights give the same logits as the published implementation, with random weights at ti and s size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from saccade.errors import WeightsError
from saccade.models.build import adopt
from saccade.types import ImageBatch
from saccade.weights import smp as from_smp
from saccade.weights import timm as from_timm
from saccade.weights import torchvision as from_torchvision
from saccade.weights import transformers as from_transformers
from saccade.weights.published import Published

TOLERANCE = 1e-4


def randomise(module: nn.Module) -> Any:
    """Weights at which every part matters: nothing is one, zero or symmetric any more."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim <= 1:
                mean = 1.0 if name.endswith("weight") or name.endswith("gamma") else 0.0
                parameter.copy_(mean + 0.2 * torch.randn(parameter.shape, generator=dice))
            elif parameter.ndim == 4:
                fan = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=dice) * (1.5 / fan) ** 0.5)
            else:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=dice))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=dice))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.2 * torch.rand(buffer.shape, generator=dice))
    return module.eval()


def gap(published: Published) -> float:
    """Largest difference of the logits, which must themselves be far from equal."""
    model = adopt(published).eval()
    size = (64, 96) if model.preprocess.policy == "native" else model.preprocess.size
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(ImageBatch.of(pixels)).logits, published.reference(pixels)
    assert float(theirs.std()) > 0.05
    assert float((theirs[0] - theirs[1]).abs().max()) > 1e-2
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch16_224", {"img_size": 96}),
        ("vit_small_patch32_224", {"global_pool": "avg", "img_size": 128}),  # keeps the class token, norm after pooling
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False, "fc_norm": False}),
        ("vit_tiny_patch16_224", {"qkv_bias": False, "qk_norm": True, "init_values": 0.1, "img_size": (64, 96)}),
        ("vit_tiny_patch16_224", {"reg_tokens": 3, "img_size": 64}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4, "no_embed_class": True, "img_size": 64}),
    ],
)
def test_timm_vit(name: str, arguments: dict[str, Any]) -> None:
    module = randomise(timm.create_model(name, num_classes=11, **arguments))
    assert gap(from_timm.publish(module, name)) < TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_timm_cnn(name: str) -> None:
    module = randomise(timm.create_model(name, num_classes=11))
    assert gap(from_timm.publish(module, name)) < TOLERANCE


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6)])
def test_torchvision_vit(width: int, heads: int) -> None:
    module = torchvision.models.VisionTransformer(64, 16, 12, heads, width, 4 * width, num_classes=11)
    assert gap(from_torchvision.publish(randomise(module), "vit_b_16")) < TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_cnn(name: str) -> None:
    module = randomise(torchvision.models.get_model(name, num_classes=11))
    assert gap(from_torchvision.publish(module, name)) < TOLERANCE


def test_torchvision_fcn() -> None:
    weights = torchvision.models.segmentation.FCN_ResNet50_Weights.DEFAULT
    module = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    published = from_torchvision.publish(randomise(module), "fcn_resnet50", weights)
    assert gap(published) < TOLERANCE
    model = adopt(published).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model.auxiliary(model.backbone(pixels).maps[-2])
        torch.testing.assert_close(ours, module(pixels)["aux"], rtol=1e-4, atol=TOLERANCE)


@pytest.mark.parametrize("encoder", ["resnet34", "resnet50"])
def test_smp_unet(encoder: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    module = randomise(smp.Unet(encoder, encoder_weights=None, classes=21))
    assert gap(from_smp.publish(module, encoder)) < TOLERANCE


def test_an_smp_unet_with_foreign_parts_is_refused() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    module = smp.Unet("resnet18", encoder_weights=None, decoder_attention_type="scse")
    with pytest.raises(WeightsError, match=r"attention1.*no place in our U-Net"):
        from_smp.publish(module, "resnet18")


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6)])
def test_transformers_vit(width: int, heads: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=12,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=64,
        num_labels=11,
    )
    module = randomise(transformers.ViTForImageClassification(config))
    published = from_transformers.publish(module, "tiny")
    assert gap(published) < TOLERANCE
    assert published.classes is not None
    assert published.classes[3] == "LABEL_3"


def test_transformers_names_of_release_4_are_read_too() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    state = transformers.ViTForImageClassification(config).state_dict()
    old = {}
    for name, tensor in state.items():
        inside = name.replace("vit.layers.", "vit.encoder.layer.")
        for new, former in {
            "attention.q_proj": "attention.attention.query",
            "attention.k_proj": "attention.attention.key",
            "attention.v_proj": "attention.attention.value",
            "attention.o_proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }.items():
            inside = inside.replace(new, former)
        old[inside] = tensor
    assert old.keys() != state.keys()
    converted, again = from_transformers.convert_vit(old), from_transformers.convert_vit(state)
    assert converted.keys() == again.keys()
    assert all(torch.equal(converted[name], again[name]) for name in again)


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: timm.create_model("mobilenetv3_small_050"), "incomplete"),
        (lambda: timm.create_model("convnext_atto"), "other logits"),
    ],
)
def test_networks_with_layers_in_front_of_the_head_are_refused(build: Callable[[], nn.Module], complaint: str) -> None:
    module = build()
    with pytest.raises(WeightsError, match=complaint):
        adopt(from_timm.publish(module, module.pretrained_cfg["architecture"]))


def test_a_vit_with_foreign_parts_is_refused() -> None:
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, pre_norm=True)
    with pytest.raises(WeightsError, match="norm_pre"):
        from_timm.publish(module, "vit_tiny_patch16_224")


def test_the_head_is_replaced_for_other_classes() -> None:
    module = randomise(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=11))
    published = from_timm.publish(module, "vit_tiny_patch16_224")
    model = adopt(published, classes=["ape", "bee"])
    assert model.head.out_features == 2
    assert model.classes.names == ("ape", "bee")
    assert torch.equal(model.backbone.norm.weight, module.norm.weight)


def test_timm_preprocessing_is_taken_over() -> None:
    module = timm.create_model("vit_tiny_patch16_224")
    preprocess = adopt(from_timm.publish(module, "vit_tiny_patch16_224")).preprocess
    assert preprocess.size == (224, 224)
    assert (preprocess.policy, preprocess.crop_fraction, preprocess.interpolation) == ("crop", 0.9, "bicubic")
    assert preprocess.mean == preprocess.std == (0.5, 0.5, 0.5)


def test_torchvision_preprocessing_and_classes_are_taken_over() -> None:
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    model = adopt(from_torchvision.publish(torchvision.models.resnet18(), "resnet18", weights))
    assert model.preprocess.size == (224, 224)
    assert model.preprocess.crop_fraction == 224 / 256
    assert model.preprocess.interpolation == "bilinear"
    assert model.preprocess.mean == (0.485, 0.456, 0.406)
    assert model.classes[0] == "tench"
    assert len(set(model.classes)) == 1000


def test_transformers_preprocessing_is_taken_over() -> None:
    processor = {
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    assert from_transformers.preprocess_of(processor) == {
        "size": [224, 224],
        "policy": "stretch",
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
