"""A DETR-R50 of transformers that finds drawn shapes: its decoder and heads are fitted to a few scenes.

Published weights are not to be had here, and of random ones every answer is a near tie, so that a check that admits a
faster copy would mean nothing. So the frozen norms get the statistics of drawn scenes, the residual branches are quiet
as those of trained networks are (see ``fitted_detector.py``), and what the encoder says of the scenes is kept. From it
the decoder learns with the published loss, each query beginning with a look at its own place. It knows these scenes by
heart, which is enough to answer them as clearly as a trained network does.

N scenes · T tokens · Q queries · C width
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection

from fitted_detector import QUIET, SIZE, scenes
from saccade.matching.hungarian import Objects
from saccade.models.set_loss import SetLossConfig
from saccade.nn.embed import window_sincos
from saccade.ops.image import IMAGENET_MEAN, IMAGENET_STD

CLASSES = 91
SCENES = 12
"""Scenes that are learned."""
STEPS, BATCH, RATE = 1500, 4, 3e-4
NOISE = 0.05
"""On what the encoder says, in the measure of what it says."""
LOCAL = 1.5
"""How sharply a query first looks at its own place."""


def random_peer() -> Any:
    """Theirs, with random weights."""
    return DetrForObjectDetection(
        DetrConfig(backbone="resnet50", use_timm_backbone=True, use_pretrained_backbone=False, num_labels=CLASSES)
    ).eval()


def normalised(pictures: Sequence[Tensor]) -> Tensor:
    """As a script does it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (torch.stack(list(pictures)).float() / 255 - mean) / std


def fitted(folder: Path | None = None, steps: int = STEPS) -> Any:
    """Theirs, knowing ``scenes(SCENES, seed=0)``; kept in ``folder``, where one is given, and read from there."""
    torch.manual_seed(0)
    peer = random_peer()
    path = folder / "detr_r50_scenes.safetensors" if folder else None
    if path and path.exists():
        peer.load_state_dict(load_file(path))
        return peer
    drawn = scenes(SCENES, seed=0)
    _calibrate(peer, [scene.image for scene in drawn[:4]])
    with torch.no_grad():
        memory, places = zip(*(_remember(peer, scene.image) for scene in drawn), strict=True)
    objects = Objects.of([scene.target for scene in drawn], torch.tensor(SIZE).expand(SCENES, 2))
    _learn(peer, torch.cat(memory), places[0], objects, steps)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().clone() for name, value in peer.state_dict().items()}, path)
    return peer


@torch.no_grad()
def _calibrate(peer: Any, pictures: Sequence[Tensor]) -> None:
    """Statistics of scenes for the frozen norms, quiet branches, and queries that look at places of their own."""
    norms = {name: part for name, part in peer.named_modules() if hasattr(part, "running_mean")}
    handles = [norm.register_forward_pre_hook(_settle) for norm in norms.values()]
    for name, norm in norms.items():
        if name.endswith(".bn3"):
            norm.weight.fill_(QUIET)
    for name, part in peer.named_modules():
        if name.startswith("model.encoder") and name.endswith(("self_attn.out_proj", "self_attn.o_proj")):
            part.weight.mul_(QUIET)
        if name.endswith(("encoder_attn.q_proj", "encoder_attn.k_proj")):
            part.weight.copy_(LOCAL * torch.eye(len(part.weight)))
    queries = peer.model.query_position_embeddings.weight
    rows = int(len(queries) ** 0.5)
    queries.copy_(window_sincos([(rows, rows)], (rows, rows), queries.shape[1])[0])
    peer(pixel_values=normalised(pictures))
    for handle in handles:
        handle.remove()


def _settle(norm: Any, given: tuple[Tensor]) -> None:
    """Give a frozen norm the statistics of what comes in, before it looks at them."""
    norm.running_mean.copy_(given[0].mean((0, 2, 3)))
    norm.running_var.copy_(given[0].var((0, 2, 3)))


def _remember(peer: Any, picture: Tensor) -> tuple[Tensor, Tensor]:
    """What the encoder says of a picture and where its tokens are, ``[1, T, C]`` each."""
    kept: dict[str, Tensor] = {}

    def keep(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kept["memory"], kept["places"] = kwargs["encoder_hidden_states"], kwargs["spatial_position_embeddings"]

    handle = peer.model.decoder.register_forward_pre_hook(keep, with_kwargs=True)
    peer(pixel_values=normalised([picture]))
    handle.remove()
    return kept["memory"], kept["places"]


def _learn(peer: Any, memory: Tensor, places: Tensor, objects: Objects, steps: int) -> None:
    """Train decoder, queries and heads on what is remembered, with the published loss of all layers."""
    decoder, queries = peer.model.decoder, peer.model.query_position_embeddings.weight
    heads = (peer.class_labels_classifier, peer.bbox_predictor)
    learned = [queries, *decoder.parameters(), *(value for head in heads for value in head.parameters())]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    loss, size = SetLossConfig(), float(memory.square().mean().sqrt())
    peer.config.auxiliary_loss = True
    for step in range(steps):
        chosen = torch.randperm(len(memory))[:BATCH]
        seen = memory[chosen] + NOISE * size * torch.randn(BATCH, *memory.shape[1:])
        with torch.autocast("cpu", torch.bfloat16):
            said = decoder(
                inputs_embeds=torch.zeros(BATCH, *queries.shape),
                encoder_hidden_states=seen,
                spatial_position_embeddings=places.expand(BATCH, -1, -1),
                object_queries_position_embeddings=queries.expand(BATCH, -1, -1),
            ).intermediate_hidden_states
            logits, boxes = (head(said) for head in heads)
        terms = loss(logits.float(), boxes.float().sigmoid(), Objects(*(part[chosen] for part in objects)))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(learned, 0.1)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            told = "  ".join(f"{name} {value.item():.3f}" for name, value in terms.items() if "aux" not in name)
            print(f"  step {step + 1} of {steps}: {told}", flush=True)
    peer.config.auxiliary_loss = False
