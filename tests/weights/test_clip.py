"""CLIP and SigLIP against open_clip and transformers: the same random weights give the same vectors and logits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor, nn

from saccade.errors import WeightsError
from saccade.models.build import adopt, build, load_weights, read_config
from saccade.models.clip import Clip
from saccade.types import Caption, ImageBatch
from saccade.weights import open_clip as from_open_clip
from saccade.weights import transformers_clip as from_transformers
from saccade.weights.files import recognise
from saccade.weights.published import Published

TEXTS = ["a diagram", "a photo of a dog.", "two red squares above a blue circle", "cat"]
WORDS = ["</s>", "<pad>", *(" ".join(TEXTS).replace(".", "").split())]


def randomise(module: nn.Module) -> Any:
    """Weights at which every part matters."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name in {"logit_scale", "logit_bias"} or not tensor.is_floating_point():
                continue
            mean = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
            spread = 0.3 if tensor.ndim < 2 else 1.5 / tensor[0].numel() ** 0.5
            tensor.copy_(mean + spread * torch.randn(tensor.shape, generator=dice))
    return module.eval()


def vocabulary_of_words() -> str:
    """A vocabulary like SigLIP's: one token per known word here, an end token behind, nothing in front."""
    library = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(WORDS))}, "<pad>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    definition: str = library.to_str()
    return definition


def openai_like(**changes: Any) -> Any:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16}
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
    arguments = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    return randomise(open_clip.model.CLIP(**{**arguments, **changes}))


def siglip_of_open_clip() -> Any:
    open_clip = pytest.importorskip("open_clip")
    vision = {
        "image_size": 64,
        "timm_model_name": "test_vit",  # 64 wide, 6 blocks
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "none",
    }
    text = {
        "context_length": 16,
        "vocab_size": len(dict.fromkeys(WORDS)),
        "width": 64,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    }
    module = open_clip.model.CustomTextCLIP(embed_dim=64, vision_cfg=vision, text_cfg=text, init_logit_bias=-10)
    timm = pytest.importorskip("timm")
    module.visual.trunk = timm.create_model(
        "test_vit", num_classes=0, global_pool="map", class_token=False, act_layer="gelu_tanh", img_size=64
    )
    return randomise(module)


def clip_of_transformers() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**sizes, "hidden_size": 64, "intermediate_size": 96, "image_size": 32, "patch_size": 8}
    text = {**sizes, "hidden_size": 32, "intermediate_size": 80, "vocab_size": 49408, "max_position_embeddings": 20}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=24)
    return randomise(transformers.CLIPModel(config))


def siglip_of_transformers() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 96}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    size = len(dict.fromkeys(WORDS))
    ends = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 1}
    text = {**sizes, "vocab_size": size, "max_position_embeddings": 16, "projection_size": 64, **ends}
    return randomise(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)))


def ours_of(published: Published) -> Clip:
    model = adopt(published)
    assert isinstance(model, Clip)
    return model.eval()


def pixels_for(model: Clip) -> ImageBatch:
    return ImageBatch.of(torch.randn(3, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(1)))


def check_same(model: Clip, image: Tensor, text: Tensor, logits: Tensor) -> None:
    outputs = model(pixels_for(model), [Caption(tuple(TEXTS)), Caption(("cat",)), Caption(("cat",))])
    assert outputs.counts.tolist() == [4, 1, 1]
    torch.testing.assert_close(outputs.image, image, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.text[:4], text, rtol=0, atol=1e-5)
    ours = outputs.logit_scale * outputs.image @ outputs.text[:4].T + outputs.logit_bias
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-4)
    # The vectors differ by far more than the tolerance, or the comparison would mean nothing.
    assert float((image[0] - image[1]).abs().max()) > 0.02
    assert float((text[0] - text[1]).abs().max()) > 0.02


@torch.no_grad()
@pytest.mark.parametrize("is_quick", [True, False])
def test_clip_of_open_clip(is_quick: bool) -> None:
    theirs = openai_like(quick_gelu=is_quick)
    model = ours_of(from_open_clip.publish(theirs, "tiny"))
    activation = "quick_gelu" if is_quick else "gelu"
    assert model.config.backbone.activation == model.config.text.activation == activation  # type: ignore[union-attr]
    ids = model.tokenizer(TEXTS, fills=True).ids
    image, text, scale = theirs(pixels_for(model).pixels, ids)[:3]
    check_same(model, image, text, scale * image @ text.T)


@torch.no_grad()
def test_their_tokens_are_ours() -> None:
    open_clip = pytest.importorskip("open_clip")
    model = ours_of(from_open_clip.publish(openai_like(), "tiny"))
    texts = [*TEXTS, "it’s “naïve” — 50% off &amp; more", "Ｗide ﬁne 日本語 😀"]
    theirs = open_clip.tokenizer.SimpleTokenizer(context_length=60)(texts)
    ours = model.tokenizer.__class__.__call__  # the tokens do not depend on the context
    longer = build(read_config({"kind": "clip", "tokenizer": {"context": 60}, "text": {"depth": 1, "width": 8}}))
    assert isinstance(longer, Clip)
    assert torch.equal(ours(longer.tokenizer, texts, fills=True).ids, theirs)


@torch.no_grad()
def test_siglip_of_open_clip() -> None:
    theirs = siglip_of_open_clip()
    model = ours_of(from_open_clip.publish(theirs, "tiny", definition=vocabulary_of_words()))
    assert model.config.loss == "sigmoid"
    assert model.config.backbone.activation == "gelu_tanh"  # type: ignore[union-attr]
    image, text, scale, bias = theirs(pixels_for(model).pixels, model.tokenizer(TEXTS).ids)
    check_same(model, image, text, scale * image @ text.T + bias)


@torch.no_grad()
def test_clip_of_transformers() -> None:
    theirs = clip_of_transformers()
    model = ours_of(from_transformers.publish(theirs, "tiny"))
    outputs = theirs(input_ids=model.tokenizer(TEXTS, fills=True).ids, pixel_values=pixels_for(model).pixels)
    check_same(model, outputs.image_embeds, outputs.text_embeds, outputs.logits_per_image)


@torch.no_grad()
def test_siglip_of_transformers() -> None:
    theirs = siglip_of_transformers()
    model = ours_of(from_transformers.publish(theirs, "tiny", definition=vocabulary_of_words()))
    tokens = model.tokenizer(["A photo of a DOG!", "cat"])
    assert tokens.ids.shape == (2, 16)  # filled up, as it was trained
    assert tokens.ids[1, 1:].tolist() == [0] + [1] * 14
    outputs = theirs(input_ids=model.tokenizer(TEXTS).ids, pixel_values=pixels_for(model).pixels)
    check_same(model, outputs.image_embeds, outputs.text_embeds, outputs.logits_per_image)


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "publish", "name"),
    [
        (openai_like, from_open_clip.publish, "open_clip or OpenAI CLIP"),
        (clip_of_transformers, from_transformers.publish, "transformers CLIP or SigLIP"),
    ],
)
def test_a_file_of_their_weights_is_recognised(make: Any, publish: Any, name: str, tmp_path: Any) -> None:
    theirs = make()
    state = {key: tensor.clone().contiguous() for key, tensor in theirs.state_dict().items()}
    assert recognise(state).name == name
    save_file(state, tmp_path / "theirs.safetensors")
    published = publish(theirs, "tiny")
    model = build(read_config(json.loads(json.dumps(published.config)))).eval()
    report = load_weights(model, tmp_path / "theirs.safetensors")
    assert report.fresh == report.left == ()
    images = pixels_for(model)  # type: ignore[arg-type]
    assert torch.equal(model(images).image, ours_of(published)(images).image)


def test_another_vocabulary_is_refused(tmp_path: Any) -> None:
    theirs = openai_like()
    save_file(
        {key: tensor.clone().contiguous() for key, tensor in theirs.state_dict().items()}, tmp_path / "t.safetensors"
    )
    config = from_open_clip.publish(theirs, "tiny").config
    model = build(read_config({**config, "tokenizer": {"kind": "trained", "context": 20, "vocab_size": 600}}))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match="the weights know 49408 tokens, and the vocabulary of the model has 514"):
        load_weights(model, tmp_path / "t.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(WeightsError, match=r"have a vocabulary of .* tokens, and nobody says which"):
        from_transformers.publish(siglip_of_transformers(), "tiny")


def test_parts_that_ours_has_not_are_refused() -> None:
    theirs = openai_like()
    state = {**theirs.state_dict(), "visual.transformer.resblocks.0.attn.extra.weight": torch.zeros(2, 2)}
    with pytest.raises(WeightsError, match="has no place"):
        from_open_clip.convert(state)


def test_a_wrong_translation_is_noticed() -> None:
    theirs = openai_like()
    published = from_open_clip.publish(theirs, "tiny")
    published.config["text"]["activation"] = "gelu"  # the weights fit, the numbers do not
    with pytest.raises(WeightsError, match="our model gives other"):
        adopt(published)
