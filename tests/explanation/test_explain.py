"""From pictures and questions to heat maps: classes by name, batches, contrasts, verdicts, bad input."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from saccade.errors import ConfigError, ExplainError, ImageError, InputError, UnknownNameError
from saccade.explanation import attention, cam
from saccade.explanation.adapt import adapt
from saccade.explanation.explain import ExplainOptions, explain, explain_batch
from saccade.explanation.methods import METHODS, default_method, method, suited
from saccade.models.build import create
from saccade.ops.image import Preprocess
from saccade.types import Classes, Classification, ExplainSpec, GridLayer, ImageBatch, LinearHead

COLOURS = ("red", "green", "blue")
QUICK = ExplainOptions(verdict=False)


class ColourNet(nn.Module):
    """Knows by construction that evidence for a colour is where that colour is."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = Preprocess(size=(32, 32), policy="letterbox", mean=(0, 0, 0), std=(1, 1, 1))
        self.classes = Classes(COLOURS)
        self.maps = nn.Conv2d(3, 3, 4, stride=4, bias=False)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.maps.weight.copy_(torch.eye(3)[:, :, None, None].expand(-1, -1, 4, 4) / 16)
            self.head.weight.copy_(8 * (torch.eye(3) - 0.3))
            self.head.bias.zero_()

    def forward(self, images: ImageBatch) -> Tensor:
        return self.head(self.maps(images.pixels).relu().mean(dim=(2, 3)))

    def explain_spec(self) -> ExplainSpec:
        layer = GridLayer("maps", lambda activation, canvas: activation)
        return ExplainSpec({"final": layer}, linear_head=lambda: LinearHead(self.head.weight, self.head.bias))


def painted(size: tuple[int, int] = (64, 96)) -> Tensor:
    """Red in the left upper corner, green and larger on the right."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[0, : size[0] // 2, : size[1] // 4] = 255
    image[1, :, size[1] // 2 :] = 255
    return image


def peak(heat) -> tuple[int, int]:
    return divmod(int(heat.map.argmax()), heat.map.shape[1])


@pytest.mark.parametrize(
    "name", ["hirescam", "gradcam", "gradcam++", "xgradcam", "layercam", "cam", "occlusion", "rise"]
)
def test_evidence_for_a_colour_is_where_the_colour_is(name):
    net, image = ColourNet(), painted()
    red, green = explain_batch(net, [image], ["red", "green"], ExplainOptions(method=name, verdict=False))[0]
    assert red.map.shape == green.map.shape == (64, 96)
    assert red.map.dtype == torch.float32
    row, column = peak(red)
    assert row < 36
    assert column < 30
    assert peak(green)[1] > 42
    assert (red.of, green.of) == ("red", "green")


def test_the_predicted_class_is_explained_unless_another_is_asked():
    net, image = ColourNet(), painted()
    heat = explain(net, image, verdict=False)
    assert heat.of == "green"
    assert heat.score == pytest.approx(net(net.preprocess([image]))[0, 1].item(), abs=1e-5)
    for question in ("red", "RED", 0, Classification(torch.tensor([0.8, 0.1, 0.1]), Classes(COLOURS))):
        assert explain(net, image, of=question, verdict=False).of == "red"
    assert explain(net, image, of=np.int64(net.classes.id("red")), verdict=False).of == "red"
    shuffled = Classification(torch.tensor([0.1, 0.1, 0.8]), Classes(("blue", "green", "red")))
    assert explain(net, image, of=shuffled, verdict=False).of == "red"  # joined by name, not by number


def test_a_contrast_is_signed_evidence_for_one_class_against_another():
    net, image = ColourNet(), painted()
    heat = explain(net, image, of="red", against="green", verdict=False)
    assert heat.of == "red rather than green"
    assert heat.map[10, 10] > 0 > heat.map[40, 70]
    assert heat.score < 0
    with pytest.raises(InputError, match="'red' is contrasted with itself"):
        explain(net, image, of="red", against="red", verdict=False)


def test_pictures_of_a_batch_do_not_influence_each_other():
    net = ColourNet()
    images = [painted(), painted((40, 40)), torch.flip(painted(), [2])]
    for name in ("hirescam", "gradient", "integrated_gradients"):
        options = ExplainOptions(method=name, verdict=False, batch_size=2)
        together = explain_batch(net, images, [None, "red"], options)
        assert [len(row) for row in together] == [2, 2, 2]
        for image, row in zip(images, together, strict=True):
            for question, heat in zip((None, "red"), row, strict=True):
                alone = explain(net, image, of=question, method=name, verdict=False)
                assert alone.of == heat.of
                torch.testing.assert_close(alone.map, heat.map, rtol=1e-4, atol=1e-6)


def test_pictures_with_different_predictions_are_each_explained_by_their_own(tmp_path):
    net = ColourNet()
    red = torch.zeros(3, 32, 32, dtype=torch.uint8)
    red[0, 8:16, 8:16] = 200
    for name in ("hirescam", "input_gradient"):
        rows = explain_batch(net, [painted(), red], options=ExplainOptions(method=name, verdict=False))
        assert [row[0].of for row in rows] == ["green", "red"]
        assert [row[0].manifest["score"] for row in rows] == ["ClassScore(label=1)", "ClassScore(label=0)"]


def test_pictures_come_in_every_form(tmp_path):
    net, image = ColourNet(), painted()
    array = image.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "photo.png")
    data = io.BytesIO()
    Image.fromarray(array).save(data, format="PNG")
    sources = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        data.getvalue(),
        Image.fromarray(array),
        array,
        image,
    ]
    maps = [row[0].map for row in explain_batch(net, sources, options=QUICK)]
    assert all(torch.equal(found, maps[0]) for found in maps)


def test_padding_never_reaches_the_map_and_cropping_is_marked():
    net = ColourNet()
    heat = explain(net, painted((30, 96)), verdict=False)
    assert heat.map.shape == (30, 96)
    assert heat.seen.all()
    net.preprocess = Preprocess(size=(32, 32), policy="crop", mean=(0, 0, 0), std=(1, 1, 1))
    heat = explain(net, painted((30, 96)), verdict=False)
    assert not heat.seen[:, :32].any()
    assert not heat.map[:, :32].any()
    assert heat.seen[:, 34:62].all()


def test_a_blank_map_says_why():
    net = ColourNet()
    blank = torch.zeros(3, 32, 32, dtype=torch.uint8)
    blank[1] = 200
    heat = explain(net, blank, of="blue", method="gradcam", verdict=False)
    assert not heat.map.any()
    assert "speaks against" in heat.blank
    assert heat.negative == pytest.approx(1.0)
    black = explain(net, torch.zeros(3, 32, 32, dtype=torch.uint8), method="layercam", verdict=False)
    assert "does not change" in black.blank


def test_the_manifest_says_how_the_map_came_about():
    heat = explain(ColourNet(), painted(), method=method("rise", seed=3, num_masks=64), verdict=False)
    assert heat.manifest["model"] == "ColourNet"
    assert heat.manifest["seed"] == 3
    assert "seed=3" in heat.method
    assert heat.manifest["torch"] == torch.__version__
    assert heat.error is not None


def test_a_verdict_comes_with_the_map_and_fails_random_weights():
    torch.manual_seed(0)
    heat = explain(create("resnet_test"), painted())
    assert heat.verdict is not None
    assert heat.verdict.status == "failed"
    assert heat.about()["verdict"]["status"] == "failed"


def test_verdicts_of_a_batch_belong_to_their_pictures():
    net, images = ColourNet(), [painted(), torch.flip(painted(), [2])]
    rows = explain_batch(net, images, ["green", "red"])
    for image, row in zip(images, rows, strict=True):
        for question, heat in zip(("green", "red"), row, strict=True):
            alone = explain(net, image, of=question).verdict
            assert heat.verdict.status == alone.status
            assert heat.verdict.figures["deletion"] == pytest.approx(alone.figures["deletion"], abs=1e-4)


def test_class_agnostic_maps_are_labelled():
    heat = explain(ColourNet(), painted(), method="eigencam", verdict=False)
    assert heat.is_class_agnostic
    assert "ignores the class" in heat.label


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_may_have_switched_gradients_off(context):
    net = ColourNet()
    expected = explain(net, painted(), verdict=False).map
    with context():
        found = explain(net, painted(), verdict=False).map
    torch.testing.assert_close(found.clone(), expected)


def test_half_precision_and_compiled_models():
    net = ColourNet()
    expected = explain(net, painted(), verdict=False).map
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(explain(compiled, painted(), verdict=False).map, expected)
    half = explain(net.bfloat16(), painted(), verdict=False).map
    assert torch.corrcoef(torch.stack([half.flatten(), expected.flatten()]))[0, 1] > 0.99


NAMES = ["resnet_test", "vit_token_test", "vit_average_test", "vit_attention_test", "vit_moe_test", "vit_rotary_test"]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_runs_on_every_model_it_suits_and_says_why_elsewhere(name):
    torch.manual_seed(0)
    model = create(name)
    image = torch.randint(0, 256, (3, 40, 52), dtype=torch.uint8)
    reasons = suited(model.explain_spec())
    assert reasons.keys() == METHODS.keys()
    for called, reason in reasons.items():
        options = {"samples": 2} if called == "smoothgrad" else {"steps": 4} if called == "integrated_gradients" else {}
        options = {"num_masks": 32} if called == "rise" else options
        explainer = method(called, **options)
        if reason is not None and called != "guided_backprop":
            with pytest.raises(ExplainError, match=r"hirescam|rise"):
                explain(model, image, method=explainer, verdict=False)
        elif called != "guided_backprop":
            heat = explain(model, image, method=explainer, verdict=False)
            assert heat.map.shape == (40, 52)
            assert heat.map.isfinite().all()
            assert heat.map.any() or heat.blank
            assert heat.is_signed or heat.map.min() >= 0


@pytest.mark.parametrize("name", ["resnet_test", "vit_token_test"])
def test_every_declared_layer_can_be_asked_for(name):
    model = create(name)
    for layer in model.explain_spec().layers:
        heat = explain(model, painted(), layer=layer, method="gradcam", verdict=False)
        assert heat.layer == layer
    with pytest.raises(UnknownNameError, match="did you mean"):
        explain(model, painted(), layer=f"{layer}s", verdict=False)  # auto falls back to a method that reads layers


def test_auto_chooses_by_what_the_model_declares():
    assert isinstance(default_method(create("vit_token_test").explain_spec()), attention.AttentionRelevance)
    assert isinstance(default_method(create("resnet_test").explain_spec()), cam.HiResCAM)


def test_foreign_classifiers_are_explained():
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = ColourNet()

        def forward(self, pixels):
            return self.net.head(self.net.maps(pixels).relu().mean(dim=(2, 3)))

    adapted = adapt(Foreign(), ColourNet().preprocess, classes=COLOURS)
    found = explain(adapted, painted(), of="red", verdict=False)
    torch.testing.assert_close(found.map, explain(ColourNet(), painted(), of="red", verdict=False).map)
    with pytest.raises(ConfigError, match=r"adapt\(model, Preprocess"):
        explain(Foreign(), painted())


def test_methods_are_made_by_name_and_option():
    assert method("hirescam", layer="block0") == cam.HiResCAM(layer="block0")
    assert method("Grad-CAM") == cam.GradCAM()
    assert method("integrated_gradients", steps=5).steps == 5
    with pytest.raises(UnknownNameError, match="did you mean 'gradcam'"):
        method("gradcan")
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        method("integrated_gradients", step=5)
    with pytest.raises(ConfigError, match="option steps"):
        method("integrated_gradients", steps="many")
    with pytest.raises(ConfigError, match="it has none"):
        method("gradient", layer="final")
    with pytest.raises(ConfigError, match="make no sense"):
        method("smoothgrad", samples=0)


def test_bad_questions_are_named():
    net, image = ColourNet(), painted()
    with pytest.raises(UnknownNameError, match="did you mean 'green'"):
        explain(net, image, of="grean")
    with pytest.raises(InputError, match="expected 0 to 2"):
        explain(net, image, of=3)
    with pytest.raises(InputError, match="expected 0 to 2"):
        explain(net, image, of="red", against=-1)
    with pytest.raises(UnknownNameError, match="unknown method"):
        explain(net, image, method="gradcamm")
    with pytest.raises(ConfigError, match="reads no layer"):
        explain(net, image, method="gradient", layer="early")
    with pytest.raises(ImageError, match=r"missing\.png"):
        explain(net, "missing.png")
    with pytest.raises(InputError, match="nothing to explain"):
        explain_batch(net, [])
    with pytest.raises(ConfigError, match="batch_size"):
        explain_batch(net, [image], options=ExplainOptions(batch_size=0))


def test_scores_that_are_not_finite_are_refused():
    net = ColourNet()
    with torch.no_grad():
        net.head.bias[0] = float("nan")
    with pytest.raises(ExplainError, match="not finite"):
        explain(net, painted())


def test_explaining_leaves_the_model_as_it_was():
    model = create("vit_moe_test").train()
    random = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    explain(model, painted())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert (np.random.get_state()[1] == numbers).all()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
