"""CLIP: a picture and its text end at the same place of a shared space; any class that has words is known.

Radford et al. 2021, arXiv 2103.00020. Pairwise sigmoid loss and pooling by a learned query: Zhai et al. 2023 (SigLIP),
arXiv 2303.15343.
Differs from the paper: texts are not filled up to the context, which under a causal mask changes nothing but the time;
a text of the batch that is true of several of its pictures counts as right for each (Yang et al. 2022, arXiv
2204.03610).

B pictures · T texts · D width of the shared space · K classes · M templates
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from saccade.backbones.timm import TimmConfig
from saccade.backbones.vit import ViTConfig
from saccade.errors import ConfigError, InputError
from saccade.losses import clip_loss, siglip_loss
from saccade.models.base import icons
from saccade.models.image_tower import ImageTower, TowerConfig, unit
from saccade.models.text_tower import TextConfig, TextTower
from saccade.models.zero_shot import ZeroShotClassifier, ZeroShotConfig
from saccade.ops.image import Preprocess
from saccade.registry import register
from saccade.text.prompts import PHOTO, check_names, check_templates, fill
from saccade.text.tokenizer import TokenizerConfig, build_tokenizer, rarity, train_merges
from saccade.types import Caption, Classes, Embedding, ImageBatch, Losses, TaskName

TEXTS_AT_ONCE = 128
"""Prompts that go through the text tower together."""

FEW_CAPTIONS: Mapping[str, Any] = {
    "freeze": ["backbone"],
    "epochs": 20,
    "batch_size": 128,
    "learning_rate": 2e-3,
    "weight_decay": 1.0,
    "ema_decay": 0.0,
    "validate_every": 5,
}
"""How a few hundred captions are learned on a trained backbone; ``docs/zero_shot.md`` has the figures on the emoji."""


FROM_SCRATCH: Mapping[str, Any] = {
    "learning_rate": 3e-3,
    "weight_decay": 0.3,
    "warmup": 0.1,
    "ema_decay": 0.0,
    "validate_every": 4,
}
"""How a bag of words and a small network learn from nothing. Decay is strong because a network that cannot see a shape
yet learns first that some colours never have it, and only decay takes back what nothing speaks for any more."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig(TowerConfig):
    """An image tower, a text tower, and the loss that brings them together."""

    task: ClassVar[TaskName] = "zero_shot"
    least_classes: ClassVar[int] = 0
    kind: Literal["clip"] = "clip"
    num_classes: int = 0
    """Number of categories of the data, where it has some; the model does not depend on them."""
    text: TextConfig = field(default_factory=TextConfig)
    """What reads texts."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How texts become tokens."""
    templates: tuple[str, ...] = PHOTO
    """What the name of a class is put into where nobody says otherwise."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Each picture against all texts of the batch, or each pair for itself."""
    logit_scale: float = 1 / 0.07
    """What cosines are multiplied with at the start; it is learned."""
    max_scale: float = 100.0
    """The most it may become; 0 for no limit."""
    logit_bias: float = -10.0
    """With ``sigmoid``: what is added to them at the start; it is learned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_templates(self.templates, where="templates")
        if self.logit_scale <= 0 or self.max_scale < 0:
            raise ConfigError("logit_scale is above 0 and max_scale at least 0", where="logit_scale")
        if not self.text.causal and not self.tokenizer.pads_all:
            raise ConfigError(
                "without a causal mask a text would depend on how long its neighbours are",
                where="tokenizer.pads_all",
                expected="true",
            )
        if self.text.pool == "last" and not self.tokenizer.pads_all:
            told = "the last place is read, but texts are not filled up to the context"
            raise ConfigError(told, where="tokenizer.pads_all", expected="true")

    def fitted(self, texts: Callable[[], Iterable[str]]) -> ClipConfig:
        """The same config with a vocabulary trained on these texts, where it wants one and has none yet."""
        if self.tokenizer.kind != "trained" or self.tokenizer.merges:
            return self
        given = list(texts())
        tokenizer = replace(self.tokenizer, merges=train_merges(given, self.tokenizer.vocab_size))
        weights = rarity(build_tokenizer(tokenizer), given) if self.text.is_bag else ()
        return replace(self, tokenizer=tokenizer, text=replace(self.text, token_weights=weights))

    def train_settings(self, taken: Collection[str]) -> Mapping[str, Any]:
        """For a bag of words: beside a backbone trained elsewhere, which stays as it is, or beside a new one."""
        if not self.text.is_bag:
            return {}
        if not taken:
            return FROM_SCRATCH
        return FEW_CAPTIONS if all(name.startswith("backbone.") for name in taken) else {}

    def build(self) -> Clip:
        """The model, with random weights."""
        return Clip(self)


class ClipOutputs(NamedTuple):
    """Raw outputs.

    Attributes:
        image: ``[B, D]`` float32, vectors of length 1.
        text: ``[T, D]`` float32, vectors of length 1, the texts of the first picture first; T = 0 without targets.
        logit_scale: ``[]``, what cosines are multiplied with.
        logit_bias: ``[]``, what is added after that; 0 with the softmax loss.
        counts: ``[B]`` int64, how many of the texts belong to each picture.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    logit_bias: Tensor
    counts: Tensor


class Clip(ImageTower[ClipOutputs, Caption, Embedding]):
    """The two towers and the temperature between them.

    Attributes:
        tokenizer: texts to tokens.
        text: tokens to vectors.
        log_scale: ``[]``, logarithm of the inverse temperature.
        bias: ``[]`` with the sigmoid loss, else None.
    """

    config: ClipConfig

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self.tokenizer = build_tokenizer(config.tokenizer)
        self.text = TextTower(config.text, self.tokenizer.vocab_size, config.tokenizer.context, config.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        self.bias = nn.Parameter(torch.tensor(config.logit_bias)) if config.loss == "sigmoid" else None

    def forward(self, images: ImageBatch, targets: Sequence[Caption] | None = None) -> ClipOutputs:
        """Vectors of pictures and, where targets are given, of all their texts."""
        return self.match(self.pooled(images), targets)

    def match(self, pooled: Tensor, targets: Sequence[Caption] | None = None) -> ClipOutputs:
        """The same from pooled vectors ``[B, C]``, where these are known already."""
        image = self.project_pooled(pooled)
        texts = [text for target in targets or () for text in target.texts]
        counts = [len(target.texts) for target in targets] if targets else [0] * len(image)
        vectors = self.encode_text(texts) if texts else image.new_zeros(0, image.shape[1])
        bias = image.new_zeros(()) if self.bias is None else self.bias
        return ClipOutputs(image, vectors, self.scale(), bias, torch.tensor(counts, device=image.device))

    def scale(self) -> Tensor:
        """What cosines are multiplied with, ``[]``: at most ``max_scale``, from where it can still come down."""
        most = self.config.max_scale
        if not most:
            return self.log_scale.exp()
        if self.training and torch.is_grad_enabled():
            # The parameter itself is held at the limit, as in OpenAI's training: beyond it, it would wander off.
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(most))
        scale = self.log_scale.exp()
        # Cut off in value alone: through ``clamp`` no gradient would pass any more, and the scale would stay for good.
        return scale.clamp(max=most).detach() + (scale - scale.detach())

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Where texts lie in the shared space, ``[N, D]`` float32 of length 1; gradients pass.

        Raises:
            InputError: where a text is longer than the context.
        """
        tokens = self.tokenizer(texts)
        device = self.log_scale.device
        return unit(self.text(tokens._replace(ids=tokens.ids.to(device), ends=tokens.ends.to(device))))

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """The texts that a bag of words knows no word of: none was in its captions, so they lie nowhere."""
        if not self.config.text.is_bag:
            return []
        vectors = self.embed_texts(texts)
        return [text for text, vector in zip(texts, vectors, strict=True) if not vector.any()]

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], told: Callable[[int], None] | None = None) -> Tensor:
        """The same as ``encode_text`` for any number of texts, without gradients: texts of one length together.

        Args:
            texts: N texts.
            told: called with the number of texts after each part that is done.
        """
        lengths = self.tokenizer.lengths(texts)
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        vectors = self.log_scale.new_empty(len(texts), self.config.embed_dim, dtype=torch.float32)
        was_training = self.text.training
        self.text.eval()
        try:
            for start in range(0, len(order), TEXTS_AT_ONCE):
                part = order[start : start + TEXTS_AT_ONCE]
                vectors[torch.tensor(part, device=vectors.device)] = self.encode_text([texts[index] for index in part])
                if told is not None:
                    told(len(part))
        finally:  # ``told`` may stop it, and so may the memory
            self.text.train(was_training)
        return vectors

    def class_embeddings(
        self,
        classes: Sequence[str],
        templates: Sequence[str] | None = None,
        told: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Where classes lie in the shared space, ``[K, D]`` of length 1: the mean over their prompts.

        Args:
            classes: K names.
            templates: M texts with a place for the name; the config's where it is None.
            told: as in ``embed_texts``, of K * M prompts.

        Raises:
            InputError: where a name is empty or repeats, or a template has no place for it.
        """
        chosen = templates or self.config.templates
        vectors = self.embed_texts(fill(classes, chosen), told)
        return unit(vectors.reshape(-1, len(chosen), vectors.shape[1]).mean(dim=1))

    def classifier(self, classes: Sequence[str], templates: Sequence[str] | None = None) -> ZeroShotClassifier:
        """A classifier for classes that have names; it uses this model's image tower, and is no copy of it.

        Raises:
            InputError: where a name is empty or repeats, or a template has no place for it.
        """
        return self.with_class_embeddings(classes, self.class_embeddings(classes, templates), templates)

    def with_class_embeddings(
        self, classes: Sequence[str], weight: Tensor, templates: Sequence[str] | None = None
    ) -> ZeroShotClassifier:
        """``classifier`` with the vectors ``[K, D]`` of its classes, as ``class_embeddings`` gave them.

        Raises:
            InputError: where there are not as many vectors as classes, or of another width.
        """
        names = check_names(classes)
        if tuple(weight.shape) != (len(names), self.config.embed_dim):
            got = f"vectors of classes have shape {tuple(weight.shape)}"
            raise InputError(got, where="classes", expected=f"[{len(names)}, {self.config.embed_dim}]")
        shared = {one.name: getattr(self.config, one.name) for one in fields(TowerConfig)}
        config = ZeroShotConfig(
            **{**shared, "num_classes": len(names)}, templates=check_templates(templates or self.config.templates)
        )
        model = ZeroShotClassifier(config, self)
        model.classes = Classes(names)
        with torch.no_grad():
            # Vectors that were kept in a file come on the processor.
            model.weight = weight.detach().to(self.log_scale.device, torch.float32, copy=True)
            model.logit_scale = self.scale().detach().float().clone()
            model.logit_bias = torch.zeros_like(model.logit_scale) if self.bias is None else self.bias.detach().clone()
        return model.train(self.training)

    def loss(self, outputs: ClipOutputs, targets: Sequence[Caption]) -> Losses:
        """The contrastive loss of a batch with one text per picture.

        Raises:
            InputError: where a picture has several texts or none.
        """
        image, text, scale, bias, _ = outputs
        if len(image) != len(text) or len(targets) != len(image):
            raise InputError(
                f"there are {len(text)} texts for {len(image)} pictures",
                where="loss",
                expected="one per picture, given to forward as targets",
            )
        right = _true_texts(targets)
        right = None if right is None else right.to(image.device)
        if self.config.loss == "softmax":
            term = clip_loss(image, text, scale, right)
        else:
            term = siglip_loss(image, text, scale, bias, right)
        with torch.no_grad():
            best = (image @ text.T).argmax(dim=1)
            places = torch.arange(len(image), device=image.device)
            matched = best == places if right is None else right[places, best]
        return Losses({"contrastive": term}, {"matched": matched.float().mean(), "scale": scale.detach()})

    def postprocess(self, outputs: ClipOutputs, images: ImageBatch) -> list[Embedding]:
        """One ``Embedding`` per picture, with those of its texts."""
        texts = torch.split(outputs.text.detach(), outputs.counts.tolist())
        return [Embedding(image, own) for image, own in zip(outputs.image.detach(), texts, strict=True)]

    def no_decay(self) -> set[str]:
        """Beside those of the image tower, places of tokens and the temperature."""
        own = {"text.positions"} if self.text.positions is not None else set()
        own |= {"bias"} if self.bias is not None else set()
        return super().no_decay() | own | {"log_scale"}


def _true_texts(targets: Sequence[Caption]) -> Tensor | None:
    """Which texts of a batch (columns) are true of which pictures (rows), ``[B, B]`` bool; None where each has one."""
    places: dict[str, list[int]] = {}
    for place, target in enumerate(targets):
        places.setdefault(target.texts[0], []).append(place)
    pairs = [
        (row, column)
        for row, target in enumerate(targets)
        for text in {target.texts[0], *target.also}
        for column in places.get(text, ())
    ]
    if len(pairs) == len(targets):
        return None
    right = torch.zeros(len(targets), len(targets), dtype=torch.bool)
    right[tuple(torch.tensor(pairs).T)] = True
    return right


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _published() -> dict[str, ClipConfig]:
    """The sizes of the papers."""
    preprocess = Preprocess(interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
    variants = {}
    for name, patch, (width, depth, heads), embed_dim in (
        ("b32", 32, (768, 12, 12), 512),
        ("b16", 16, (768, 12, 12), 512),
        ("l14", 14, (1024, 24, 16), 768),
    ):
        backbone = ViTConfig(
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            norm_eps=1e-5,
            activation="quick_gelu",
            stem_norm=True,
        )
        variants[f"clip_vit_{name}"] = ClipConfig(
            backbone=backbone,
            pool="token",
            embed_dim=embed_dim,
            text=TextConfig(width=embed_dim, num_heads=embed_dim // 64, activation="quick_gelu"),
            preprocess=preprocess,
        )
    variants["siglip_vit_b16"] = ClipConfig(
        backbone=ViTConfig(embed_dim=768, num_heads=12, has_class_token=False, activation="gelu_tanh"),
        pool="attention",
        pool_heads=12,
        pool_mlp_ratio=4.0,
        pool_activation="gelu_tanh",
        image_projection="none",
        embed_dim=768,
        text=TextConfig(
            width=768,
            num_heads=12,
            activation="gelu_tanh",
            norm_eps=1e-6,
            causal=False,
            pool="last",
            projection="bias",
        ),
        tokenizer=TokenizerConfig(context=64, pads_all=True),
        loss="sigmoid",
        logit_scale=10.0,
        max_scale=0.0,
        preprocess=Preprocess(policy="stretch", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    return variants


def _small() -> dict[str, ClipConfig]:
    """Models for a user's own captions, that a laptop trains; their vocabulary is trained on these captions."""
    text = TextConfig(width=128, depth=4, num_heads=4)
    tokenizer = TokenizerConfig(kind="trained", context=48, vocab_size=2048)
    preprocess = icons(64)
    cnn = {"layers": [1, 1, 1, 1], "channels": [48, 96, 192, 256], "output_stride": 16}
    vit = ViTConfig(
        image_size=(64, 64),
        patch_size=8,
        embed_dim=192,
        depth=6,
        num_heads=6,
        positions="sincos",
        has_class_token=False,
    )
    common: dict[str, Any] = {"embed_dim": 128, "text": text, "tokenizer": tokenizer, "templates": ("{}",)}
    # A few hundred captions teach words, but not what their order means.
    bag = TextConfig(width=512, depth=0, pool="mean", projection="none", token_std=0.1, word_dropout=0.3)
    words: dict[str, Any] = {
        "embed_dim": 512,
        "text": bag,
        "tokenizer": replace(tokenizer, vocab_size=8192),
        "templates": ("{}",),
        "image_norm": True,
        "image_dropout": 0.6,
    }
    photos = Preprocess(policy="stretch")
    return {
        "clip_small": ClipConfig(backbone=TimmConfig(name="resnet18", arguments=cnn), preprocess=preprocess, **common),
        "clip_small_vit": ClipConfig(backbone=vit, preprocess=preprocess, **common),
        "clip_words": ClipConfig(
            # A stem of three convolutions sees colour against ground, not only light against dark, before it shrinks.
            backbone=TimmConfig(
                name="resnet18",
                arguments={**cnn, "channels": [32, 64, 128, 192], "stem_type": "deep", "stem_width": 16},
            ),
            preprocess=preprocess,
            **{
                **words,
                "embed_dim": 128,
                "text": replace(bag, width=128, word_dropout=0.0),
                "image_norm": False,
                "image_dropout": 0.1,
            },
        ),
        "clip_mobilenet": ClipConfig(backbone=TimmConfig(name="mobilenetv2_100"), preprocess=photos, **words),
        # The same network as TensorFlow trained it: padding at the right and bottom, values in [-1, 1].
        "clip_mobilenet_tf": ClipConfig(
            backbone=TimmConfig(name="mobilenetv2_100", arguments={"pad_type": "same"}),
            preprocess=replace(photos, mean=(0.5,) * 3, std=(0.5,) * 3),
            **words,
        ),
    }


def _tests() -> dict[str, ClipConfig]:
    """Under 100k parameters each."""
    vit = ViTConfig(image_size=(32, 32), patch_size=8, embed_dim=32, depth=2, num_heads=4, stem_norm=True)
    cnn = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "output_stride": 8}
    small = TokenizerConfig(kind="trained", context=24, vocab_size=600)
    text = TextConfig(width=32, depth=2, num_heads=4)
    common: dict[str, Any] = {"embed_dim": 16, "preprocess": icons(32), "templates": ("{}",)}
    return {
        "clip_test": ClipConfig(
            backbone=replace(vit, activation="quick_gelu"),
            pool="token",
            text=replace(text, activation="quick_gelu"),
            tokenizer=small,
            **common,
        ),
        "clip_cnn_test": ClipConfig(
            backbone=TimmConfig(name="resnet18", arguments=cnn),
            text=replace(text, projection="bias"),
            tokenizer=small,
            **common,
        ),
        "clip_words_test": ClipConfig(
            backbone=TimmConfig(name="resnet18", arguments=cnn),
            text=TextConfig(width=16, depth=0, pool="mean", projection="none", word_dropout=0.3),
            tokenizer=small,
            image_norm=True,
            image_dropout=0.2,
            **common,
        ),
        "siglip_test": ClipConfig(
            backbone=replace(vit, has_class_token=False, stem_norm=False, activation="gelu_tanh"),
            pool="attention",
            pool_heads=4,
            pool_mlp_ratio=2.0,
            text=replace(text, causal=False, pool="last"),
            tokenizer=replace(small, pads_all=True, pad=1),
            loss="sigmoid",
            logit_scale=10.0,
            max_scale=0.0,
            **common,
        ),
    }


register({**_published(), **_small(), **_tests()})
