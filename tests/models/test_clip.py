"""What is special about CLIP: texts, captions that repeat, classes in words, vectors of patches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saccade.config import to_dict
from saccade.engine.checkpoint import load_model, save_model
from saccade.errors import ConfigError, InputError
from saccade.models.build import create, find_config, load_weights, read_config
from saccade.models.clip import Clip, ClipConfig, ClipOutputs
from saccade.types import Caption, ImageBatch

NAMES = ("clip_test", "clip_cnn_test", "siglip_test")
TEXTS = ["a red dot", "two blue dots beside", "green", "a red dot"]


def make(name: str = "clip_test") -> Clip:
    torch.manual_seed(0)
    model = create(name)
    assert isinstance(model, Clip)
    return model.eval()


def images(count: int = 4) -> ImageBatch:
    return ImageBatch.of(torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def units(rows: int, width: int = 5) -> Tensor:
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    return vectors / vectors.norm(dim=1, keepdim=True)


def outputs_of(image: Tensor, text: Tensor, scale: float = 2.0, bias: float = 0.0) -> ClipOutputs:
    counts = torch.ones(len(image), dtype=torch.int64)
    return ClipOutputs(image, text, torch.tensor(scale), torch.tensor(bias), counts)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_does_not_depend_on_its_neighbours(name: str) -> None:
    model = make(name)
    together = model.encode_text(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(model.encode_text([text])[0], vector, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.embed_texts(TEXTS), together.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))


def test_many_texts_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    monkeypatch.setattr("saccade.models.clip.TEXTS_AT_ONCE", 2)
    done: list[int] = []
    texts = ["a long text first", "b", "cc c", "d", "e e e"]
    vectors = model.embed_texts(texts, done.append)
    torch.testing.assert_close(vectors, model.encode_text(texts).detach(), rtol=0, atol=1e-6)
    assert done == [2, 2, 1]


def test_texts_that_are_broken_off_leave_the_mode_as_it_was() -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    model = make().train()
    with pytest.raises(KeyboardInterrupt):
        model.embed_texts(TEXTS, stop)
    assert model.text.training


def test_the_scale_comes_down_again_from_its_limit() -> None:
    model = make().train()
    assert model.config.max_scale == 100
    with torch.no_grad():
        model.log_scale.fill_(math.log(250.0))
    optimizer = torch.optim.SGD([model.log_scale], lr=1e-3)
    for wanted in (1.0, -1.0):  # once it shall grow, once shrink
        scale = model.scale()
        assert scale.item() == 100
        optimizer.zero_grad()
        (-wanted * scale).backward()
        assert model.log_scale.grad is not None
        assert model.log_scale.grad.item() == pytest.approx(-wanted * 100, rel=1e-5)  # that of the exponential
        optimizer.step()
    # What grew beyond was held at the limit, so one step down is one step below it.
    assert model.scale().item() == pytest.approx(100 * math.exp(-0.1), rel=1e-5)


def test_a_causal_text_is_read_from_the_left() -> None:
    model = make()
    seen: list[Tensor] = []
    handle = model.text.blocks[-1].output.register_forward_hook(lambda _m, _given, result: seen.append(result))
    model.encode_text(["red dot", "red cat"])
    handle.remove()
    tokens = seen[0]  # start, three bytes of "red", then what differs
    torch.testing.assert_close(tokens[0, :4], tokens[1, :4])
    assert not torch.allclose(tokens[0, 4], tokens[1, 4])


def test_texts_are_counted_per_picture() -> None:
    model = make()
    targets = [Caption(("one", "two")), Caption(("three",))]
    outputs = model(images(2), targets)
    assert outputs.counts.tolist() == [2, 1]
    first, second = model.postprocess(outputs, images(2))
    torch.testing.assert_close(first.texts, model.encode_text(["one", "two"]).detach())
    assert second.texts.shape == (1, 16)
    with pytest.raises(InputError, match="there are 3 texts for 2 pictures; expected one per picture"):
        model.loss(outputs, targets)
    with pytest.raises(InputError, match="there are 0 texts for 2 pictures"):
        model.loss(model(images(2)), targets)


def test_equal_texts_are_all_right() -> None:
    """Pictures 0 and 1 have the same text: swapping their vectors must not change the loss."""
    for name in ("clip_test", "siglip_test"):
        model = make(name)
        image, text = units(3), units(2)[[0, 0, 1]]
        targets = [Caption((text,)) for text in ("same", "same", "other")]
        one = model.loss(outputs_of(image, text, bias=-1.0), targets).total
        other = model.loss(outputs_of(image[[1, 0, 2]], text, bias=-1.0), targets).total
        torch.testing.assert_close(one, other)
        if name == "siglip_test":  # taken for different texts, the two would be pushed away from what is their own
            apart = model.loss(outputs_of(image, text, bias=-1.0), [Caption((text,)) for text in "abc"]).total
            assert abs(apart.item() - one.item()) > 0.01


@pytest.mark.parametrize("name", ["clip_test", "siglip_test"])
def test_what_is_also_true_of_a_picture_is_no_wrong_answer(name: str) -> None:
    """Picture 1 brings "dot", which picture 0 has too: taken for wrong, picture 0 would be pushed away from it."""
    model = make(name)
    image, text = units(3).requires_grad_(), units(3).flip(0)
    known = [
        Caption(("red dot",), ("red dot", "red", "dot")),
        Caption(("dot",), ("blue dot", "dot")),
        Caption(("cat",)),
    ]
    strangers = [Caption(target.texts) for target in known]
    pulls = []
    for targets in (known, strangers):
        loss = model.loss(outputs_of(image, text, bias=-1.0), targets).total
        pulls.append(-torch.autograd.grad(loss, image)[0][0] @ text[1])
    assert pulls[0] > pulls[1]
    ahead = torch.stack([text[1], text[1], text[2]])  # picture 0 picks the text of picture 1
    assert model.loss(outputs_of(ahead, text, bias=-1.0), known).logs["matched"] == 1
    assert model.loss(outputs_of(ahead, text, bias=-1.0), strangers).logs["matched"] == pytest.approx(2 / 3)


def test_perfect_pairs_with_equal_texts_have_no_gradient() -> None:
    model = make()
    image = torch.tensor([[1.0, 0], [1, 0], [0, 1]], requires_grad=True)
    text = image.detach().clone()
    targets = [Caption((text,)) for text in ("same", "same", "other")]
    losses = model.loss(outputs_of(image, text, scale=100.0), targets)
    assert float(losses.logs["matched"]) == 1
    assert losses.total.item() == pytest.approx(2 * math.log(2) / 3, abs=1e-4)  # that two are the same stays unknown
    (gradient,) = torch.autograd.grad(losses.total, image)
    assert float(gradient.abs().max()) < 1e-4


def test_the_loss_of_parts_put_together_is_the_loss_of_the_whole() -> None:
    model = make("clip_cnn_test")
    targets = [Caption((text,)) for text in ("one", "two two", "three", "four")]
    whole = model(images(), targets)
    parts = [model(images()[index], [target]) for index, target in enumerate(targets)]
    joined = ClipOutputs(
        torch.cat([part.image for part in parts]),
        torch.cat([part.text for part in parts]),
        whole.logit_scale,
        whole.logit_bias,
        torch.cat([part.counts for part in parts]),
    )
    torch.testing.assert_close(model.loss(joined, targets).total, model.loss(whole, targets).total)


def test_temperature_has_a_limit() -> None:
    model = make()
    with torch.no_grad():
        model.log_scale.fill_(10.0)
    assert model.scale().item() == 100
    siglip = make("siglip_test")
    with torch.no_grad():
        siglip.log_scale.fill_(math.log(120.0))
    assert siglip.scale().item() == pytest.approx(120)


@pytest.mark.parametrize("name", NAMES)
def test_classifier_asks_for_the_nearest_prompt(name: str) -> None:
    model = make(name)
    classifier = model.classifier(["cat", "dog", "red car"], ["a {}.", "the {}"])
    expected = torch.stack(
        [model.encode_text([f"a {name}.", f"the {name}"]).mean(0) for name in ("cat", "dog", "red car")]
    )
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(classifier.weight, expected.detach(), rtol=0, atol=1e-6)
    outputs = model(images())
    logits = outputs.logit_scale * outputs.image @ expected.T + outputs.logit_bias
    found = classifier(images())
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-4)
    assert classifier.postprocess(found, images())[0].classes.names == ("cat", "dog", "red car")
    assert classifier.backbone is model.backbone  # shared, not copied
    assert not classifier.training


def test_classifier_uses_the_templates_of_the_config() -> None:
    model = make()
    plain = model.class_embeddings(["cat", "dog"])
    torch.testing.assert_close(plain, model.encode_text(["cat", "dog"]).detach())
    model.config = replace(model.config, templates=("a {}",))
    torch.testing.assert_close(model.class_embeddings(["cat"]), model.encode_text(["a cat"]).detach())
    assert model.classifier(["cat"]).config.templates == ("a {}",)
    given = model.with_class_embeddings(["x", "y"], plain)
    torch.testing.assert_close(given.weight, plain)
    with pytest.raises(InputError, match=r"vectors of classes have shape \(2, 16\); expected \[3, 16\]"):
        model.with_class_embeddings(["x", "y", "z"], plain)


@pytest.mark.parametrize("name", NAMES)
def test_classifier_is_a_file_of_its_own(name: str, tmp_path: object) -> None:
    classifier = make(name).classifier(["cat", "dog"])
    path = f"{tmp_path}/two.safetensors"
    save_model(classifier, path)
    again = load_model(path)
    assert again.classes.names == ("cat", "dog")
    assert torch.equal(again(images()).logits, classifier(images()).logits)


def test_vocabulary_is_trained_once_and_travels(tmp_path: object) -> None:
    config = find_config("clip_test")
    fitted = config.fitted(lambda: ["a red square", "a red circle"] * 4)
    assert isinstance(fitted, ClipConfig)
    assert "circl e</w>" in fitted.tokenizer.merges
    assert fitted.fitted(lambda: ["something else"]) is fitted
    assert read_config(to_dict(fitted)) == fitted
    model = fitted.build().eval()
    save_model(model, f"{tmp_path}/clip.safetensors")
    again = load_model(f"{tmp_path}/clip.safetensors")
    assert isinstance(again, Clip)
    assert torch.equal(again.encode_text(["a red cube"]), model.encode_text(["a red cube"]))
    assert find_config("clip_vit_b32").fitted(lambda: ["x"]) is find_config("clip_vit_b32")


def test_the_image_tower_takes_weights_of_a_classifier(tmp_path: object) -> None:
    torch.manual_seed(1)
    classifier = create("resnet_test")
    save_model(classifier, f"{tmp_path}/resnet.safetensors")
    model = make("clip_cnn_test")
    report = load_weights(model, f"{tmp_path}/resnet.safetensors")
    assert torch.equal(model.backbone(images().pixels).maps[-1], classifier.eval().backbone(images().pixels).maps[-1])
    assert all(name.startswith("backbone.") for name in report.taken)
    assert set(report.left) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_patches_have_places_too(name: str) -> None:
    model = make(name)
    patches = model.encode_patches(images(2))
    assert patches.shape == (2, 16, 4, 4)
    torch.testing.assert_close(patches.norm(dim=1), torch.ones(2, 4, 4))
    classifier = model.classifier(["cat", "dog", "cow"])
    logits = classifier.patch_logits(images(2))
    assert logits.shape == (2, 3, 4, 4)
    expected = model.scale() * torch.einsum("bdhw,kd->bkhw", patches, classifier.weight)
    torch.testing.assert_close(logits, expected + (0 if model.bias is None else model.bias), rtol=0, atol=1e-4)


def test_patches_of_a_picture_without_structure_are_the_picture() -> None:
    """Where all patches are alike, looking at oneself is looking at all: each patch lies where the picture does."""
    flat = ImageBatch.of(torch.full((1, 3, 32, 32), 0.7))
    model = make("siglip_test")
    with torch.no_grad():
        model.backbone.positions.table.zero_()  # type: ignore[union-attr,operator]
    image, patches = model.encode_images(flat), model.encode_patches(flat)
    torch.testing.assert_close(patches, image[:, :, None, None].expand_as(patches), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"text.causal": False}, "a text would depend on how long its neighbours are"),
        ({"text.pool": "last"}, "the last place is read, but texts are not filled up"),
        ({"text.num_heads": 5}, "num_heads is 5 for a width of 32"),
        ({"templates": ["cat"]}, "the template 'cat' has 0 places"),
        ({"pool": "token", "backbone.has_class_token": False}, "no class token to read"),
        ({"image_projection": "none"}, "without a projection the width 32 has to be embed_dim 16"),
        ({"backbone.moe.num_experts": 4}, "has no experts"),
    ],
)
def test_wrong_configs_are_refused(override: dict, message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        create("clip_test", overrides=override)


# --- a bag of words


def words_model(texts: list[str]) -> Clip:
    config = find_config("clip_words_test").fitted(lambda: texts)
    torch.manual_seed(0)
    model = create(config)
    assert isinstance(model, Clip)
    return model.eval()


def test_a_bag_of_words_is_the_mean_of_its_words() -> None:
    model = words_model(["red dot", "blue dot", "red cat"])
    both, turned = model.encode_text(["red dot", "dot red"])
    torch.testing.assert_close(both, turned)
    tokens = model.tokenizer(["red", "dot"])
    assert tokens.ends.tolist() == [2, 2]  # each word is one token, for it is in the captions
    red, dot = model.text.tokens(tokens.ids[:, 1])
    torch.testing.assert_close(both, torch.nn.functional.normalize(red + dot, dim=0))
    torch.testing.assert_close(model.encode_text(["red"])[0], torch.nn.functional.normalize(red, dim=0))


def test_words_of_no_caption_say_nothing() -> None:
    model = words_model(["red dot", "blue dot", "red cat"])
    assert model.unknown(["red", "zebra", "a zebra dot"]) == ["zebra"]
    alone, beside = model.encode_text(["dot", "zebra dot"])
    torch.testing.assert_close(alone, beside)


def test_words_are_left_out_in_training_only_and_never_all() -> None:
    model = words_model(["red dot", "blue dot", "red cat"])
    text = ["red dot"]
    whole = model.encode_text(text)
    torch.testing.assert_close(model.encode_text(text), whole)
    model.train()
    torch.manual_seed(0)
    seen = torch.cat([model.encode_text(text) for _ in range(60)]).detach()
    allowed = torch.cat([whole, model.encode_text(["red"]), model.encode_text(["dot"])]).detach()
    nearest = (seen @ allowed.T).max(dim=1)
    torch.testing.assert_close(nearest.values, torch.ones(60))
    assert set(nearest.indices.tolist()) == {0, 1, 2}


def test_what_all_features_have_in_common_does_not_matter_to_a_normalised_vector() -> None:
    model = words_model(["red dot"])
    pooled = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.project_pooled(pooled), model.project_pooled(7 * pooled + 3), rtol=0, atol=1e-5)


def test_a_trained_backbone_stays_and_its_words_are_learned() -> None:
    config = find_config("clip_words_test")
    assert config.train_settings([])["weight_decay"] == 0.3
    assert "freeze" not in config.train_settings([])
    assert find_config("clip_test").train_settings([]) == {}
    assert config.train_settings(["backbone.conv.weight"])["freeze"] == ["backbone"]
    assert config.train_settings(["backbone.conv.weight", "text.tokens.weight"]) == {}
    assert find_config("clip_test").train_settings(["backbone.conv.weight"]) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text.depth": 0}, "the mean of the words is read; expected 'mean'"),
        ({"text.word_dropout": 0.5}, "the mean of the words is read; expected 'mean'"),
        ({"text.word_dropout": 1.0, "text.pool": "mean"}, "word_dropout in \\[0, 1\\)"),
        ({"text.token_weights": [1.0]}, "there are 1 weights for 514 tokens; expected one per token"),
        ({"image_dropout": 1.0}, "image_dropout is 1.0; expected in \\[0, 1\\)"),
    ],
)
def test_wrong_bags_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create("clip_test", overrides=options)
