"""Foreign classifiers: their grids, attention and heads are found and verified."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError, InputError
from saccade.explanation.adapt import adapt
from saccade.explanation.attention import AttentionRelevance, AttentionRollout
from saccade.explanation.cam import CAM, GradCAM, HiResCAM
from saccade.explanation.explain import explain
from saccade.explanation.scores import class_score
from saccade.ops.image import Preprocess
from saccade.types import ImageBatch

SCORES = [class_score(0), class_score(2)]
SMALL = Preprocess(size=(64, 64))


def pictures(size: tuple[int, int] = (64, 64), batch: int = 2) -> ImageBatch:
    return ImageBatch.of(torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(7)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny_vit(**options) -> nn.Module:
    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
    return timm.models.vision_transformer.VisionTransformer(**(sizes | options))


def test_a_residual_network_is_read_where_it_is_pooled():
    net = torchvision.models.resnet18(num_classes=5).eval()
    adapted = adapt(net, SMALL)
    spec = adapted.explain_spec()
    assert spec.layers["final"].path == "module.layer4"
    images = pictures()
    cam, gradcam = (method(adapted, images, SCORES, spec).values for method in (CAM(), GradCAM()))
    with torch.no_grad():
        maps = nn.Sequential(*list(net.children())[:-2])(images.pixels)
        expected = torch.einsum("kc,bchw->kbhw", net.fc.weight[[0, 2]], maps)
    torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradcam, expected.clamp_min(0) / 4, rtol=1e-4, atol=1e-6)
    assert HiResCAM("layer2")(adapted, images, SCORES, spec).values.shape == (2, 2, 8, 8)


def test_timm_models_bring_their_preprocessing_along():
    net = timm.create_model("mobilenetv3_small_050", num_classes=5)
    adapted = adapt(net)
    assert adapted.preprocess.mean == tuple(net.pretrained_cfg["mean"])
    assert adapted.preprocess.size == (224, 224)
    assert adapted.preprocess.crop_fraction == pytest.approx(0.875)
    with pytest.raises(ConfigError, match="how its pictures are prepared"):
        adapt(nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize(
    ("options", "final", "num_prefix", "has_class_token"),
    [
        ({}, "module.blocks.2.norm1", 1, True),
        ({"reg_tokens": 4}, "module.blocks.2.norm1", 5, True),
        ({"global_pool": "avg", "class_token": False}, "module.blocks.2", 0, False),
        ({"global_pool": "avg", "class_token": False, "fc_norm": False}, "module.norm", 0, False),
        ({"global_pool": "map", "class_token": False}, "module.norm", 0, False),
    ],
)
def test_transformers_of_timm_are_read_whatever_their_readout(options, final, num_prefix, has_class_token):
    net = tiny_vit(**options).eval()
    adapted = adapt(net, SMALL)
    spec = adapted.explain_spec()
    assert spec.layers["final"].path == final
    assert spec.has_class_token == has_class_token
    assert {site.num_prefix for site in spec.attention} == {num_prefix}
    assert len(spec.attention) == 3 + (options.get("global_pool") == "map")
    images = pictures()
    for method in (AttentionRelevance(), AttentionRollout(), HiResCAM()):
        values = method(adapted, images, SCORES, spec).values
        assert values.shape == (2, 2, 4, 4)
        assert values.any()


def test_fused_and_explicit_attention_give_the_same_relevance():
    net = tiny_vit().eval()
    adapted = adapt(net, SMALL)
    explicit = copy.deepcopy(net)
    for block in explicit.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    by_hand = adapt(explicit, SMALL)
    found, expected = (
        AttentionRelevance()(model, pictures(), SCORES, model.explain_spec()).values for model in (adapted, by_hand)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert found.any()


def test_the_relevance_of_a_foreign_transformer_follows_the_recurrence():
    net = tiny_vit().eval()
    for block in net.blocks:
        block.attn.fused_attn = False
    adapted, images = adapt(net, SMALL), pictures(batch=1)
    attention: list[Tensor] = []
    hooks = [
        block.attn.attn_drop.register_forward_hook(lambda _, __, out: attention.append(out)) for block in net.blocks
    ]
    logit = net(images.pixels)[0, 2]
    gradients = torch.autograd.grad(logit, attention)
    for hook in hooks:
        hook.remove()
    relevance = torch.eye(17)
    for probabilities, gradient in zip(attention, gradients, strict=True):
        relevance = relevance + (probabilities * gradient).clamp_min(0).mean(dim=1)[0].detach() @ relevance
    found = AttentionRelevance()(adapted, images, SCORES[1:], adapted.explain_spec()).values
    torch.testing.assert_close(found.flatten(), relevance[0, 1:], rtol=1e-4, atol=1e-7)


def test_transformers_of_torchvision_are_read():
    net = torchvision.models.VisionTransformer(64, 16, 3, 3, 24, 48, num_classes=5).eval()
    with pytest.raises(ExplainError, match="do not depend on the picture"):
        adapt(net, SMALL)  # its head starts with zeros
    nn.init.normal_(net.heads.head.weight)
    adapted = adapt(net, SMALL)
    spec = adapted.explain_spec()
    assert (len(spec.attention), spec.has_class_token) == (3, True)
    assert spec.layers["final"].path == "module.encoder.layers.encoder_layer_2.ln_1"
    torch.testing.assert_close(adapted(pictures()), net(pictures().pixels))
    assert AttentionRelevance()(adapted, pictures(), SCORES, spec).values.any()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_transformers_of_hugging_face_are_read(implementation):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.ViTConfig(
        **sizes, image_size=64, patch_size=16, num_labels=5, attn_implementation=implementation
    )
    net = transformers.ViTForImageClassification(config).eval()
    adapted = adapt(net, SMALL)
    spec = adapted.explain_spec()
    assert (len(spec.attention), spec.has_class_token, spec.attention[0].num_prefix) == (2, True, 1)
    for method in (AttentionRelevance(), HiResCAM()):
        assert method(adapted, pictures(), SCORES, spec).values.shape == (2, 2, 4, 4)


def test_windowed_attention_is_not_mistaken_for_attention_over_the_picture():
    net = timm.models.swin_transformer.SwinTransformer(
        img_size=64, patch_size=4, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=5
    )
    spec = adapt(net, SMALL).explain_spec()
    assert not spec.attention
    assert spec.layers["final"].path == "module.norm"
    values = HiResCAM()(adapt(net, SMALL), pictures(), SCORES, spec).values
    assert values.shape == (2, 2, 8, 8)  # channels come last in this network


def test_mixers_without_attention_are_read():
    net = timm.models.mlp_mixer.MlpMixer(num_classes=5, img_size=64, patch_size=16, num_blocks=2, embed_dim=24)
    nn.init.normal_(net.head.weight)
    adapted = adapt(net, SMALL)
    assert HiResCAM()(adapted, pictures(), SCORES, adapted.explain_spec()).values.shape == (2, 2, 4, 4)
    assert adapted.explain_spec().linear_head is not None


class Handmade(nn.Module):
    """A small network with in-place activations, whose output has a name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.mix = nn.Conv2d(6, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.act(self.mix(self.act(self.stem(pixels))))
        return self.head(maps.mean(dim=(2, 3)))


def test_layers_can_be_named_and_canvases_need_not_be_square():
    adapted = adapt(Handmade(), Preprocess(size=(32, 48)), layer="stem", classes=["a", "b", "c", "d", "e"])
    spec = adapted.explain_spec()
    assert spec.layers["final"].path == "module.stem"
    assert adapted.classes.id("c") == 2
    assert HiResCAM()(adapted, pictures((32, 48)), SCORES, spec).values.shape == (2, 2, 8, 12)
    assert spec.linear_head is None  # CAM holds for the pooled layer only
    assert adapt(Handmade(), Preprocess(size=(32, 48))).explain_spec().linear_head is not None


def test_copies_speak_of_their_own_head():
    adapted = adapt(Handmade(), SMALL)
    other = copy.deepcopy(adapted)
    with torch.no_grad():
        other.module.head.weight.zero_()
    assert adapted.explain_spec().linear_head().weight.any()
    assert not other.explain_spec().linear_head().weight.any()


def test_adapting_leaves_the_classifier_as_it_was():
    net = Handmade().train()
    random = torch.get_rng_state()
    adapt(net, SMALL)
    assert net.training
    assert net.act.training
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_compiled_classifiers_are_unwrapped():
    net = Handmade()
    assert adapt(torch.compile(net, backend="eager"), SMALL).module is net


def test_errors_name_the_fix():
    with pytest.raises(ExplainError, match="did you mean 'stem'"):
        adapt(Handmade(), SMALL, layer="stam")
    with pytest.raises(ExplainError, match="does not lie on the picture"):
        adapt(Handmade(), SMALL, layer="head")
    with pytest.raises(ConfigError, match="2 class names for 5 logits"):
        adapt(Handmade(), SMALL, classes=["a", "b"])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5))
    with pytest.raises(ExplainError, match="method='gradient'"):
        adapt(flat, SMALL)

    class Dictionary(Handmade):
        def forward(self, pixels):
            return {"logits": super().forward(pixels)}

    with pytest.raises(ExplainError, match="hold no class logits"):
        adapt(Dictionary(), SMALL)


# --- layouts: verified, not concluded from shapes


def test_every_stage_of_a_windowed_network_is_read_and_windows_are_refused():
    net = timm.models.swin_transformer.SwinTransformer(
        img_size=64, patch_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=5
    )
    spec = adapt(net, SMALL).explain_spec()
    shapes = {"layers.0.blocks.1": (16, 16), "layers.1.blocks.1": (8, 8)}
    for path, size in shapes.items():
        adapted = adapt(net, SMALL, layer=path)
        assert HiResCAM(path)(adapted, pictures(), SCORES, spec).values.shape == (2, 2, *size)
    with pytest.raises(ExplainError, match=r"16 windows or regions\) does not lie on the picture"):
        adapt(net, SMALL, layer="layers.0.blocks.1.attn")


def test_tokens_in_another_order_than_the_picture_are_refused():
    # This network sorts its tokens by window until the last of its poolings: their number fits a grid all the same.
    net = timm.models.hiera.Hiera(
        img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 1, 1), q_pool=2, num_classes=5
    ).eval()
    nn.init.normal_(net.head.fc.weight)
    adapted = adapt(net, SMALL)
    paths = {layer.path for layer in adapted.explain_spec().layers.values()}
    assert "module.blocks.0" not in paths
    assert adapted.explain_spec().layers["final"].path == "module.blocks.3"
    with pytest.raises(ExplainError, match="in the order of the picture's rows"):
        adapt(net, SMALL, layer="blocks.0")


def test_a_shuffled_grid_is_found_out_and_a_turned_one_too():
    class Turned(Handmade):
        def __init__(self, how) -> None:
            super().__init__()
            self.how = how
            self.turn = nn.Identity()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.head(self.turn(self.how(self.act(self.mix(self.act(self.stem(pixels)))))).mean(dim=(2, 3)))

    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    ways = (
        lambda maps: maps.transpose(2, 3),
        lambda maps: maps.flip(3),
        lambda maps: maps.flatten(2)[..., order].unflatten(2, (16, 16)),
    )
    for how in ways:
        with pytest.raises(ExplainError, match="does not lie on the picture"):
            adapt(Turned(how), SMALL, layer="turn")
    assert adapt(Turned(lambda maps: maps), SMALL, layer="turn").explain_spec().layers["final"].path == "module.turn"


def test_convnext_and_deit_are_read():
    conv = timm.models.convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=5)
    adapted = adapt(conv, SMALL)
    assert adapted.explain_spec().layers["final"].to_grid(torch.zeros(1, 24, 2, 2), (64, 64)).shape == (1, 24, 2, 2)
    assert HiResCAM("stages.1")(adapted, pictures(), SCORES, adapted.explain_spec()).values.shape == (2, 2, 8, 8)
    deit = timm.models.deit.VisionTransformerDistilled(
        img_size=64, patch_size=16, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    spec = adapt(deit, SMALL).explain_spec()
    assert {site.num_prefix for site in spec.attention} == {2}  # class and distillation token
    assert spec.has_class_token


def test_stages_of_a_hugging_face_swin_are_read():
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=4, num_labels=5
    )
    net = transformers.SwinForImageClassification(config).eval()
    adapted = adapt(net, SMALL)
    spec = adapted.explain_spec()
    assert not spec.attention
    assert HiResCAM()(adapted, pictures(), SCORES, spec).values.shape == (2, 2, 8, 8)
    assert HiResCAM("swin.encoder.layers.0.blocks.1")(adapted, pictures(), SCORES, spec).values.shape == (2, 2, 16, 16)


# --- models that are no classifiers


RAW = Preprocess(size=(64, 64), policy="stretch", mean=(0.0,) * 3, std=(1.0,) * 3)


def surest(found: list[dict[str, Tensor]]) -> Tensor:
    """The score of the surest detection of every picture; 0 where nothing is found."""
    return torch.stack([one["scores"].max() if len(one["scores"]) else one["scores"].sum() for one in found])


def test_a_torchvision_detector_is_explained_with_a_score():
    net = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=64,
        max_size=64,
        box_score_thresh=0.0,
        box_detections_per_img=3,
        rpn_post_nms_top_n_test=20,
    ).eval()
    for parameter in net.roi_heads.parameters():
        nn.init.normal_(parameter, std=0.05)
    picture = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    adapted = adapt(net, RAW, score=surest, example=picture)
    assert adapted.task == "any"
    assert ".fpn." in adapted.explain_spec().layers["final"].path
    heat = explain(adapted, picture, verdict=False)
    assert heat.map.shape == (40, 60)
    assert heat.map.any()
    assert heat.of == "surest"
    assert heat.manifest["model"] == "FasterRCNN"
    with torch.no_grad():
        assert heat.score == pytest.approx(float(surest(net(adapted.preprocess([picture]).pixels))), rel=1e-4)
    with pytest.raises(InputError, match="adapted with a score function, so it has no classes"):
        explain(adapted, picture, of="dog")


class Named(nn.Module):
    """Outputs in a dictionary, as segmenters of torchvision have them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 3, padding=1))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"out": self.body(pixels)}


def test_any_output_can_be_asked_with_a_function():
    def corner(outputs: dict[str, Tensor]) -> Tensor:
        return outputs["out"][:, 1, :16, :16].mean(dim=(1, 2))

    adapted = adapt(Named(), RAW, score=corner)
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    heat = explain(adapted, picture, method="gradient")
    assert heat.map[:17, :17].all()
    assert not heat.map[18:].any()
    assert heat.verdict is not None  # the games need no logits
    with pytest.raises(ExplainError, match="hold no class logits"):
        adapt(Named(), RAW)
    with pytest.raises(ConfigError, match="beside a score"):
        adapt(Named(), RAW, score=corner, classes=["a", "b"])


def test_a_classifier_can_be_asked_with_a_function_too():
    adapted = adapt(Handmade(), SMALL)
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    logit, asked = (explain(adapted, picture, of=of, verdict=False) for of in (2, lambda logits: logits[:, 2]))
    torch.testing.assert_close(logit.map, asked.map)
    assert asked.of == "the score that was given"
    with pytest.raises(InputError, match="no class to be contrasted with"):
        explain(adapted, picture, of=lambda logits: logits[:, 2], against=1)
