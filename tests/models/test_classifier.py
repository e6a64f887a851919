from __future__ import annotations

import pytest
import torch

from saccade.config import override
from saccade.errors import ConfigError, InputError, UnknownNameError
from saccade.models.base import ModelConfig
from saccade.models.build import build, create, find_config, read_config
from saccade.models.classifier import stack_labels
from saccade.registry import names
from saccade.types import Classes, ClassTarget, ImageBatch


def targets(*labels: object) -> list[ClassTarget]:
    return [ClassTarget(torch.as_tensor(label)) for label in labels]


def test_hard_labels_stack_to_integers_and_mixed_ones_to_probabilities() -> None:
    assert stack_labels(targets(2, 0), 3).tolist() == [2, 0]
    assert stack_labels(targets(2, [0.5, 0.5, 0.0]), 3).tolist() == [[0, 0, 1], [0.5, 0.5, 0]]


def test_soft_and_hard_targets_give_the_same_loss() -> None:
    torch.manual_seed(0)
    model = create("vit_average_test").eval()
    outputs = model(ImageBatch.of(torch.randn(2, 3, 32, 32)))
    hard = model.loss(outputs, targets(1, 3))
    soft = model.loss(outputs, targets([0.0, 1, 0, 0, 0], [0.0, 0, 0, 1, 0]))
    torch.testing.assert_close(hard.total, soft.total)
    torch.testing.assert_close(hard.logs["accuracy"], soft.logs["accuracy"])


def test_accuracy_is_the_share_of_right_labels() -> None:
    model = create("vit_average_test").eval()
    outputs = model(ImageBatch.of(torch.randn(4, 3, 32, 32)))
    best = outputs.logits.argmax(1)
    wrong = (best + torch.tensor([0, 0, 0, 1])) % 5
    assert float(model.loss(outputs, targets(*wrong)).logs["accuracy"]) == 0.75


def test_a_label_outside_the_classes_is_refused() -> None:
    model = create("vit_average_test")
    with pytest.raises(InputError, match="label 5 is no class"):
        model.loss(model(ImageBatch.of(torch.randn(1, 3, 32, 32))), targets(5))


def test_create_takes_class_names() -> None:
    model = create("vit_average_test", classes=["cat", "dog", "eel"])
    assert model.classes == Classes(("cat", "dog", "eel"))
    assert model.config.num_classes == 3
    assert model.head.out_features == 3


def test_create_takes_overrides() -> None:
    model = create("vit_average_test", num_classes=7, overrides=["backbone.depth=1", "backbone.mlp=swiglu"])
    assert len(model.backbone.blocks) == 1
    assert type(model.backbone.blocks[0].mlp).__name__ == "SwiGLU"
    assert len(model.classes) == 7


def test_experts_can_be_switched_on_by_an_override() -> None:
    model = create("vit_average_test", overrides=["backbone.moe.num_experts=3"])
    assert model(ImageBatch.of(torch.randn(1, 3, 32, 32))).routing.load.shape == (1, 3)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["backbone.detph=1"], "did you mean 'depth'"),
        (["backbone.norm=batch"], "'layer' or 'rms'"),
        (["pool=token"], "no class token"),
        (["backbone.num_heads=5"], "divisor"),
        (["head=[0]"], "at least 1"),
        (["num_classes=0"], "at least 2"),
    ],
)
def test_wrong_overrides_are_explained(overrides: list[str], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        create("vit_average_test", overrides=overrides)


def test_names_and_number_of_classes_must_agree() -> None:
    with pytest.raises(ConfigError, match="num_classes is 2, but 3"):
        create("vit_average_test", num_classes=2, classes=["a", "b", "c"])
    with pytest.raises(ConfigError, match="2 classes for a model of 5"):
        build(find_config("vit_average_test"), Classes(("a", "b")))


def test_unknown_models_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'vit_average_test'"):
        create("vit_averge_test")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        create("timm/resnet81")
    with pytest.raises(UnknownNameError, match="kind of model config"):
        read_config({"kind": "detector"})


def test_any_timm_network_is_a_backbone() -> None:
    model = create("timm/mobilenetv3_small_050", num_classes=3).eval()
    images = ImageBatch.of(torch.randn(1, 3, 64, 64))
    assert model(images).logits.shape == (1, 3)
    spec = model.explain_spec()
    assert spec.linear_head is not None
    assert all(layer.path == "backbone.maps" or model.get_submodule(layer.path) for layer in spec.layers.values())


def test_a_timm_transformer_is_no_convolutional_backbone() -> None:
    with pytest.raises(ConfigError, match="no feature map"):
        create("timm/test_vit")


def test_wrong_timm_arguments_are_named() -> None:
    config = override(find_config("resnet18"), {"backbone.arguments": {"colour": 1}})
    with pytest.raises(ConfigError, match="colour"):
        config.build()


def test_channels_and_stride_are_measured() -> None:
    backbone = find_config("resnet_test").backbone.build()  # type: ignore[attr-defined]
    features = backbone(torch.randn(1, 3, 64, 96))
    assert features.maps[0].shape == (1, backbone.channels[0], 64 // backbone.strides[0], 96 // backbone.strides[0])


def test_head_widths_are_layers_before_the_last() -> None:
    model = create("vit_average_test", overrides=["head=[16, 12]"])
    assert [tuple(p.shape) for p in model.hidden.parameters()] == [(16, 32), (16,), (12, 16), (12,)]
    assert model.head.in_features == 12
    assert model.explain_spec().linear_head is None


def test_every_registered_config_is_valid_and_well_named() -> None:
    for name in names():
        config = find_config(name)
        assert isinstance(config, ModelConfig)
        assert name == name.lower()
    assert {"vit_ti16", "vit_s16", "vit_b16", "vit_l16", "vit_ti32", "vit_s32", "vit_b32", "vit_l32"} <= set(names())
