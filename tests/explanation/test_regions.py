"""Explanations of regions: closed forms on a linear segmenter, where maps lie, what the verdict says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import saccade
from saccade.backbones.base import Routing
from saccade.errors import ConfigError, ExplainError
from saccade.explanation.attention import AttentionRelevance, AttentionRollout
from saccade.explanation.cam import GradCAM, HiResCAM, LayerCAM
from saccade.explanation.explain import ExplainOptions, Subject, explain, explain_batch
from saccade.explanation.gradients import Gradient, InputGradient
from saccade.explanation.perturbation import Occlusion
from saccade.explanation.record import recording
from saccade.explanation.scores import region_score
from saccade.models.build import create
from saccade.models.segmenter import Segmenter, SegmenterConfig, SegmenterOutputs
from saccade.ops.image import Preprocess
from saccade.types import ExplainSpec, GridLayer, ImageBatch

pytestmark = pytest.mark.xdist_group("verbs")

SIDE = 24
PLAIN = Preprocess(size=(SIDE, SIDE), policy="native", mean=(0, 0, 0), std=(1, 1, 1))


class Linear(Segmenter):
    """A 3x3 convolution to four maps, and a 1x1 convolution to the classes: linear, with known weights."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(SegmenterConfig(num_classes=num_classes, preprocess=PLAIN))
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.head = nn.Conv2d(4, num_classes, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def segment(self, pixels: Tensor) -> SegmenterOutputs:
        logits = self.head(self.body(pixels))
        return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), Routing.none(pixels))

    def explain_spec(self) -> ExplainSpec:
        return ExplainSpec({"final": GridLayer("body", lambda maps, _: maps)})


@pytest.fixture
def model() -> Linear:
    return Linear().eval()


def pictures(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> ImageBatch:
    return ImageBatch.of(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed)))


def block(top: int, left: int, height: int, width: int, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    region = torch.zeros(size, dtype=torch.bool)
    region[top : top + height, left : left + width] = True
    return region


REGION = block(6, 10, 4, 5)
NEAR = block(5, 9, 6, 7)
"""The pixels that REGION can see."""


def direction(model: Linear, label: int, against: int | None) -> Tensor:
    """What the score adds up of the maps, ``[4]``."""
    weights = model.head.weight.detach()[:, :, 0, 0]
    others = [k for k in range(len(weights)) if k != label] if against is None else [against]
    return weights[label] - weights[others].mean(dim=0)


# --- closed forms


@pytest.mark.parametrize("against", [None, 0])
def test_hirescam_is_weights_times_activations_inside_the_region(model: Linear, against: int | None) -> None:
    images, score = pictures(), region_score(1, REGION, against)
    found = HiResCAM()(model, images, [score], model.explain_spec()).values[0, 0]
    with torch.no_grad():
        maps = model.body(images.pixels)[0]
    expected = torch.einsum("c,chw->hw", direction(model, 1, against), maps) * REGION / REGION.sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    bias = model.head.bias.detach()
    others = bias[[0, 2]].mean() if against is None else bias[against]
    with torch.no_grad():
        value = float(score(model(images)))
    assert float(found.sum()) == pytest.approx(value - float(bias[1] - others), rel=1e-4)


def test_the_gradient_is_the_kernel_over_the_region_and_zero_beyond_its_reach(model: Linear) -> None:
    found = Gradient()(model, pictures(), [region_score(1, REGION)], model.explain_spec()).values[0, 0]
    kernel = torch.einsum("k,kcyx->cyx", direction(model, 1, None), model.body.weight.detach())
    share = (REGION.float() / REGION.sum())[None, None]
    expected = F.conv_transpose2d(share, kernel[None], padding=1)[0].abs().amax(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert not found[~NEAR].any()
    assert (found[NEAR] > 0).all()


def test_occlusion_of_single_pixels_is_their_contribution_near_the_region(model: Linear) -> None:
    images, score = pictures(), region_score(2, REGION)
    found = Occlusion(patch=1, stride=1)(model, images, [score], model.explain_spec()).values[0, 0]
    exact = InputGradient()(model, images, [score], model.explain_spec()).values[0, 0]
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)
    assert not found[~NEAR].abs().gt(1e-6).any()


def test_two_regions_of_one_picture_give_two_maps_that_add_up(model: Linear) -> None:
    one, other = block(2, 2, 3, 3), block(14, 15, 3, 3)
    scores = [region_score(1, one), region_score(1, other), region_score(1, one | other)]
    first, second, both = HiResCAM()(model, pictures(), scores, model.explain_spec()).values[:, 0]
    assert first[one].any()
    assert not first[other].any()
    assert second[other].any()
    assert not second[one].any()
    torch.testing.assert_close(both, (first + second) / 2)


# --- from the picture to the heat map


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def test_questions_of_one_picture_each_get_their_own_map_and_region(model: Linear) -> None:
    picture = noise(20, 30)
    masks = [block(2, 3, 4, 5, (20, 30)), block(11, 20, 4, 5, (20, 30))]
    asked = [*masks, (7, 9), "component:1"]
    heats = explain_batch(model, [picture], asked, ExplainOptions(method="hirescam", verdict=False))[0]
    assert len(heats) == 4
    with torch.no_grad():
        labels = model(PLAIN([picture])).logits[0].argmax(dim=0)
    for heat, mask in zip(heats, masks, strict=False):
        assert heat.region is not None
        assert torch.equal(heat.region, mask)
        assert heat.map[mask].any()
        assert not heat.map[~mask].any()
        assert heat.layer == "final"
        label = int(torch.mode(labels[mask]).values)
        assert heat.of == f"class_{label} in a mask"
        assert heat.manifest["score"].startswith(f"RegionScore(label={label}, pixels=20, box=")
        alone = explain(model, picture, of=mask, method="hirescam", verdict=False)
        torch.testing.assert_close(heat.map, alone.map)
        assert heat.score == pytest.approx(alone.score)
    assert torch.nonzero(heats[2].map).tolist() == [[9, 7]], "a 1x1 convolution asks its own pixel alone"
    assert heats[2].of == f"class_{int(labels[9, 7])} at 7,9"


def test_pictures_of_a_segmenter_are_explained_each_on_its_own_canvas(model: Linear) -> None:
    several = [noise(20, 30), noise(13, 11)]
    together = explain_batch(model, several, [None, (3, 4)], ExplainOptions(method="gradient", verdict=False))
    for picture, row in zip(several, together, strict=True):
        for question, heat in zip((None, (3, 4)), row, strict=True):
            assert heat.map.shape == picture.shape[1:]
            alone = explain(model, picture, of=question, method="gradient", verdict=False)
            torch.testing.assert_close(heat.map, alone.map)
            assert heat.of == alone.of


def test_explaining_leaves_the_model_as_it_was(model: Linear) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for method in ("hirescam", "gradient", "occlusion", "smoothgrad"):
        explain(model, noise(20, 30), of=(5, 5), method=method)
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_that_slides_says_what_to_do_instead() -> None:
    model = create("patch_cnn_test", 3, overrides={"inference": "sliding"}).eval()
    with pytest.raises(
        ExplainError, match=r"a model that slides has no maps of the picture; set model\.inference=one_"
    ):
        explain(model, noise(16, 16))


def test_a_crop_leaves_pixels_without_a_label() -> None:
    with pytest.raises(ConfigError, match="a crop leaves pixels without a label; expected 'native', 'letterbox' or"):
        create("unet_plain_test", 3, overrides={"preprocess.policy": "crop"})


# --- sides that are no multiples of the stride


class Blob(Segmenter):
    """Says "bright" where the picture, averaged over 8x8 cells, is bright; its layer has one cell per 8 pixels."""

    stride = 8

    def __init__(self) -> None:
        super().__init__(SegmenterConfig(num_classes=2, preprocess=PLAIN))
        self.body = nn.AvgPool2d(8)
        self.scale = nn.Parameter(torch.ones(()))

    def segment(self, pixels: Tensor) -> SegmenterOutputs:
        cells = self.body(pixels * self.scale).mean(dim=1, keepdim=True)
        bright = F.interpolate(cells - 0.3, scale_factor=8.0, mode="nearest")
        logits = torch.cat([torch.zeros_like(bright), bright], dim=1)
        return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), Routing.none(pixels))

    def explain_spec(self) -> ExplainSpec:
        return ExplainSpec({"final": GridLayer("body", lambda maps, _: maps)})


@pytest.mark.parametrize("size", [(37, 51), (33, 57), (40, 64), (39, 50)])
@pytest.mark.parametrize("place", [(8, 16), (24, 40)])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam", "gradient", "occlusion"])
def test_evidence_lies_on_the_blob_whatever_the_sides(
    method: str, place: tuple[int, int], size: tuple[int, int]
) -> None:
    top, left = place
    picture = torch.zeros(3, *size, dtype=torch.uint8)
    picture[:, top : top + 8, left : left + 8] = 250
    heat = explain(Blob().eval(), picture, of="class_1", method=method, verdict=False)
    assert heat.map.shape == size
    assert heat.region is not None
    assert torch.equal(heat.region, block(top, left, 8, 8, size))
    weight = heat.map.clamp_min(0)
    rows = (weight.sum(dim=1) * (torch.arange(size[0]) + 0.5)).sum() / weight.sum()
    columns = (weight.sum(dim=0) * (torch.arange(size[1]) + 0.5)).sum() / weight.sum()
    # The centre of what speaks for it is the centre of the blob, up to a pixel; stretching would move it by several.
    assert float(rows) == pytest.approx(top + 4, abs=1.0)
    assert float(columns) == pytest.approx(left + 4, abs=1.0)
    row, column = divmod(int(heat.map.argmax()), size[1])
    assert top <= row < top + 8
    assert left <= column < left + 8


@pytest.mark.parametrize("name", ["unet_plain_test", "segnet_max_unpool_test", "fcn8s_test", "vit_seg_test"])
def test_every_segmenter_is_explained_on_odd_sides(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, 3).eval()
    picture = noise(37, 45)
    for layer in ("auto", *model.explain_spec().layers):
        heat = explain(model, picture, of=(20, 30), method="hirescam", layer=layer, verdict=False)
        assert heat.map.shape == (37, 45)
        assert heat.seen.all()
        assert heat.region is not None
        assert torch.nonzero(heat.region).tolist() == [[30, 20]]
    with torch.no_grad():
        label = int(model(model.preprocess([picture])).logits[0, :, 30, 20].argmax())
    assert heat.of == f"class_{label} at 20,30"


# --- attention is read where the region is


@pytest.mark.parametrize("name", ["vit_seg_test", "vit_seg_moe_test"])
def test_rollout_starts_at_the_patches_of_the_region(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, 3).eval()
    images, spec = pictures(1, (32, 32)), model.explain_spec()
    num_prefix, (height, width) = spec.attention[0].num_prefix, spec.attention[0].grid((32, 32))
    assert (height, width) == (4, 4)
    with recording(model, attention=spec.attention, with_gradients=False) as record:
        record.run(images)
        attention = [matrix.mean(dim=1)[0].detach() for matrix in record.attention()]
    # Three quarters of the region lie in the patch (1, 2), a quarter in the patch (1, 3).
    region = block(8, 18, 4, 8, (32, 32))
    start = torch.zeros(num_prefix + 16)
    start[num_prefix + 6], start[num_prefix + 7] = 0.75, 0.25
    rolled = torch.eye(len(start))
    for matrix in attention:
        rolled = (matrix + torch.eye(len(start))) / 2 @ rolled
    expected = (start @ rolled)[num_prefix:].reshape(4, 4)
    scores = [region_score(0, region), region_score(2, region), region_score(0, block(0, 0, 8, 8, (32, 32)))]
    found = AttentionRollout()(model, images, scores, spec).values[:, 0]
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert divmod(int(found[2].argmax()), 4) == (0, 0), "half of it stays at the patch that is read"


@pytest.mark.parametrize("name", ["vit_seg_test", "vit_seg_moe_test"])
def test_relevance_of_a_region_follows_the_recurrence_from_its_patches(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, 3).eval()
    images, spec = pictures(1, (32, 32)), model.explain_spec()
    num_prefix = spec.attention[0].num_prefix
    regions = [block(8, 18, 4, 8, (32, 32)), block(24, 0, 8, 8, (32, 32))]
    scores = [region_score(1, region) for region in regions]
    found = AttentionRelevance()(model, images, scores, spec).values[:, 0]
    for score, patches, values in zip(scores, ({6: 0.75, 7: 0.25}, {12: 1.0}), found, strict=True):
        with recording(model, attention=spec.attention) as record:
            record.run(images)
            attention = record.attention()
            slopes = next(record.gradients([score], attention))
        start = torch.zeros(num_prefix + 16)
        for patch, weight in patches.items():
            start[num_prefix + patch] = weight
        relevance = torch.eye(len(start))
        for matrix, slope in zip(attention, slopes, strict=True):
            weighed = (matrix.detach() * slope[0]).clamp_min(0).mean(dim=1)[0]
            relevance = relevance + weighed @ relevance
        expected = (start @ relevance - start)[num_prefix:].reshape(4, 4)
        torch.testing.assert_close(values, expected)
    assert not torch.allclose(found[0], found[1])


# --- verdicts


@pytest.fixture(scope="module")
def blocks(painted: Path) -> list[Tensor]:
    return [
        torch.from_numpy(np.array(Image.open(painted / "images/val" / name))).permute(2, 0, 1)
        for name in ("17.png", "20.png")
    ]


@pytest.fixture(scope="module")
def subject(trained_segmenter: Path) -> Subject:
    return Subject(saccade.load(trained_segmenter))


@pytest.mark.parametrize("method", ["gradient", "input_gradient", "occlusion", "auto"])
def test_maps_of_a_trained_segmenter_stand(method: str, subject: Subject, blocks: list[Tensor]) -> None:
    heats = explain_batch(subject, blocks, ["red", "blue", "component:1"], ExplainOptions(method=method))
    for heat in (heat for row in heats for heat in row):
        assert heat.verdict is not None
        assert heat.verdict.status != "failed", heat.verdict.reasons
        figures = heat.verdict.figures
        assert figures["advantage"] > 0.3
        assert figures["advantage_region"] > 0.3, "the model decides by colour, so the region is all it needs"
        assert figures["response_ratio"] > 3
        assert "similarity_late" not in figures, "within a region all maps follow what the first layers see"
        assert ("similarity" in figures) == (method != "occlusion"), "too costly to run again"
        assert heat.region is not None
        inside, outside = heat.map.abs()[heat.region].mean(), heat.map.abs()[~heat.region].mean()
        assert inside > 2 * outside


def test_maps_of_random_weights_fail(blocks: list[Tensor]) -> None:
    statuses = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = create("unet_plain_test", 3).eval()
        for method in ("gradient", "hirescam", "layercam"):
            options = ExplainOptions(method=method)
            heats = explain_batch(Subject(model), blocks[:1], ["component:1", (10, 10)], options)[0]
            statuses += [heat.verdict.status for heat in heats if heat.verdict is not None]
    assert len(statuses) == 18
    assert statuses.count("failed") >= 15, statuses
    assert "supported" not in statuses


def test_a_few_pixels_leave_nothing_to_compare(subject: Subject, blocks: list[Tensor]) -> None:
    small, large = block(5, 5, 7, 9, (44, 52)), block(5, 5, 8, 8, (44, 52))
    pixel, few, enough = (
        explain_batch(subject, blocks[:1], [of], ExplainOptions(method="gradient"))[0][0]
        for of in ((10, 10), small, large)
    )
    for heat, is_compared in ((pixel, False), (few, False), (enough, True)):
        assert heat.verdict is not None
        assert ("similarity" in heat.verdict.figures) == is_compared
        assert ("similarity_abs" in heat.verdict.figures) == is_compared
        assert "advantage_region" in heat.verdict.figures


def test_a_map_that_points_elsewhere_fails(subject: Subject, blocks: list[Tensor]) -> None:
    class Elsewhere(Gradient):
        """The gradient turned upside down."""

        def __call__(self, model, images, scores, spec):  # type: ignore[no-untyped-def]
            found = super().__call__(model, images, scores, spec)
            return type(found)(found.values.flip(-1, -2))

    right = explain_batch(subject, blocks[:1], ["blue"], ExplainOptions(method="gradient"))[0][0]
    wrong = explain_batch(subject, blocks[:1], ["blue"], ExplainOptions(method=Elsewhere()))[0][0]
    assert right.verdict is not None
    assert wrong.verdict is not None
    assert right.verdict.status != "failed"
    assert wrong.verdict.status == "failed"
    assert wrong.verdict.figures["advantage"] < right.verdict.figures["advantage"] - 0.5


def test_the_usual_method_of_regions_is_layercam_at_the_early_layer(subject: Subject, blocks: list[Tensor]) -> None:
    heat = explain_batch(subject, blocks[:1], ["red"], ExplainOptions(verdict=False))[0][0]
    assert (heat.name, heat.layer) == ("layercam", "stage0")
    by_name = explain_batch(subject, blocks[:1], ["red"], ExplainOptions(method="layercam", verdict=False))[0][0]
    assert by_name.layer == "bottleneck"
    named = explain_batch(subject, blocks[:1], ["red"], ExplainOptions(method=LayerCAM("stage0"), verdict=False))
    torch.testing.assert_close(heat.map, named[0][0].map)
    at_end = explain_batch(subject, blocks[:1], ["red"], ExplainOptions(layer="final", verdict=False))[0][0]
    assert at_end.layer == "final"
    assert heat.region is not None
    assert not at_end.map[~heat.region].any(), "the last layer can only point at what was asked about"
    own = explain_batch(subject, blocks[:1], ["red"], ExplainOptions(method=GradCAM("decoder0"), verdict=False))
    assert own[0][0].layer == "decoder0"


def test_the_region_is_outlined_and_the_picture_is_kept(subject: Subject, blocks: list[Tensor], tmp_path: Path) -> None:
    heat = explain_batch(subject, blocks[:1], ["red"], ExplainOptions(method="gradient", verdict=False))[0][0]
    assert torch.equal(heat.image, blocks[0])
    assert heat.region is not None
    changed = (heat.outlined != heat.image).any(dim=0)
    assert changed.any()
    thick = F.max_pool2d(heat.region[None].float(), 7, 1, 3)[0] > 0
    thin = -F.max_pool2d(-heat.region[None].float(), 7, 1, 3)[0] > 0
    assert not changed[~thick].any()
    assert not changed[thin].any(), "a line around the region, not over it"
    with Image.open(heat.save(tmp_path / "why.png")) as drawn:
        assert drawn.size == (52, 44)
