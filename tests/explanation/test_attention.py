"""Attention methods on transformers of both kinds of read-out, held against matrices written out by hand."""

import pytest
import torch

from saccade.errors import ExplainError
from saccade.explanation import attention, rounded
from saccade.explanation.attention import AttentionRelevance, AttentionRollout
from saccade.explanation.cam import HiResCAM
from saccade.explanation.record import recording
from saccade.explanation.scores import class_score, logits_of
from saccade.models.build import create
from saccade.types import ExplainSpec, GridLayer, ImageBatch

NAMES = ["vit_token_test", "vit_average_test", "vit_attention_test", "vit_rotary_test", "vit_moe_test"]
SCORES = [class_score(0), class_score(2)]


def pictures(batch: int = 2, size: tuple[int, int] = (32, 32)) -> ImageBatch:
    return ImageBatch.of(torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(7)))


def model_of(name: str):
    torch.manual_seed(0)
    return create(name).eval()


def square_attention(model, images, scores=None):
    """Attention of all blocks and, for each score, its gradient."""
    spec = model.explain_spec()
    sites = [site for site in spec.attention if "blocks" in site.path]
    with recording(model, attention=sites) as record:
        record.run(images)
        attention = record.attention()
        gradients = [next(record.gradients([score], attention)) for score in (scores or [])]
    return [a.detach() for a in attention], gradients, sites[0].num_prefix


@pytest.mark.parametrize("name", NAMES)
def test_watched_attention_gives_the_same_scores(name):
    model, images = model_of(name), pictures()
    with torch.no_grad():
        expected = logits_of(model(images))
    with recording(model, attention=model.explain_spec().attention) as record:
        torch.testing.assert_close(logits_of(record.run(images)), expected, rtol=1e-4, atol=1e-5)
        for attention in record.attention():
            torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))


@pytest.mark.parametrize("name", ["vit_token_test", "vit_average_test", "vit_rotary_test"])
def test_rollout_is_the_product_of_the_attentions(name):
    model, images = model_of(name), pictures()
    attention, _, num_prefix = square_attention(model, images)
    rolled = torch.eye(attention[0].shape[-1]).expand(2, -1, -1)
    for matrix in attention:
        rolled = (matrix.mean(dim=1) + torch.eye(matrix.shape[-1])) / 2 @ rolled
    spec = model.explain_spec()
    row = rolled[:, 0] if spec.has_class_token else rolled[:, num_prefix:].mean(dim=1)
    found = AttentionRollout()(model, images, SCORES, spec).values
    torch.testing.assert_close(found[0].flatten(1), row[:, num_prefix:])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["vit_token_test", "vit_average_test", "vit_moe_test"])
def test_relevance_follows_the_published_recurrence(name):
    model, images = model_of(name), pictures()
    attention, gradients, num_prefix = square_attention(model, images, SCORES)
    spec = model.explain_spec()
    found = AttentionRelevance()(model, images, SCORES, spec).values
    for index, gradient in enumerate(gradients):
        eye = torch.eye(attention[0].shape[-1])
        relevance = eye.expand(2, -1, -1)
        for probabilities, slope in zip(attention, gradient, strict=True):
            weighed = (probabilities * slope[0]).clamp_min(0).mean(dim=1)
            relevance = relevance + weighed @ relevance
        relevance = relevance - eye
        row = relevance[:, 0] if spec.has_class_token else relevance[:, num_prefix:].mean(dim=1)
        torch.testing.assert_close(found[index].flatten(1), row[:, num_prefix:])


@pytest.mark.parametrize("num_registers", [0, 2])
def test_with_attention_pooling_the_pooling_reads_the_relevance(num_registers):
    torch.manual_seed(0)
    model = create("vit_attention_test", overrides={"backbone.num_registers": num_registers}).eval()
    images, spec = pictures(), model.explain_spec()
    with recording(model, attention=spec.attention) as record:
        record.run(images)
        attention = record.attention()
        slopes = next(record.gradients(SCORES[:1], attention))
    assert attention[-1].shape[-2] == 1
    relevance = torch.eye(attention[0].shape[-1])
    weighed = [(a.detach() * g[0]).clamp_min(0).mean(dim=1) for a, g in zip(attention, slopes, strict=True)]
    for matrix in weighed[:-1]:
        relevance = relevance + matrix @ relevance
    expected = (weighed[-1] @ relevance[..., num_registers:, :])[:, 0, num_registers:]
    found = AttentionRelevance()(model, images, SCORES[:1], spec).values
    torch.testing.assert_close(found[0].flatten(1), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [AttentionRelevance(), HiResCAM()])
def test_maps_differ_between_classes_and_not_between_batches(name, method):
    model, images = model_of(name), pictures()
    together = method(model, images, SCORES, model.explain_spec()).values
    assert together.any()
    assert not torch.allclose(together[0], together[1], rtol=1e-3)
    for index in range(2):
        alone = method(model, images[index], SCORES[:1], model.explain_spec()).values
        torch.testing.assert_close(alone[0, 0], together[0, index], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["vit_token_test", "vit_rotary_test", "vit_sincos_test"])
def test_canvases_that_are_not_square(name):
    model = model_of(name)
    images = pictures(1, (32, 48))
    for method in (AttentionRelevance(), AttentionRollout(), HiResCAM()):
        values = method(model, images, SCORES, model.explain_spec()).values
        assert values.shape[-1] * 2 == values.shape[-2] * 3


def test_every_declared_layer_of_a_transformer_can_be_read():
    model = model_of("vit_token_test")
    for layer in model.explain_spec().layers:
        assert HiResCAM(layer)(model, pictures(), SCORES, model.explain_spec()).values.any()


def test_models_without_attention_are_sent_to_another_method():
    spec = ExplainSpec({"final": GridLayer("", lambda a, c: a)})
    for method in (AttentionRelevance(), AttentionRollout()):
        with pytest.raises(ExplainError, match="hirescam"):
            method(torch.nn.Identity(), pictures(), SCORES, spec)


@pytest.mark.parametrize(("lowest", "is_rounded"), [(0.99, True), (1.1, False)])
def test_relevance_of_several_pictures_is_rounded_only_where_the_first_map_stays(
    lowest: float, is_rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = create("vit_token_test", num_classes=4).eval()
    images, scores = ImageBatch.of(torch.randn(4, 3, *model.preprocess.size)), [class_score(1), class_score(2)]
    exact = attention.AttentionRelevance(precision="float32")(model, images, scores, model.explain_spec())
    monkeypatch.setattr(attention, "can_round", lambda model, device: True)
    monkeypatch.setattr(rounded, "MIN_CORRELATION", lowest)
    for _ in range(2):  # the second time the answer is remembered
        found = attention.AttentionRelevance()(model, images, scores, model.explain_spec())
        assert (found.notes == ("in bfloat16",)) == is_rounded
        assert torch.equal(found.values, exact.values) != is_rounded
        assert rounded.maps_agree(exact.values, found.values) == is_rounded
    single = attention.AttentionRelevance()(model, images[0], scores, model.explain_spec())
    assert not single.notes


def test_what_was_remembered_is_forgotten_when_weights_change() -> None:
    model = create("vit_token_test", num_classes=4)
    assert rounded.remembered(model) is None
    rounded.remember(model, is_agreed=True)
    assert rounded.remembered(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert rounded.remembered(model) is None
