"""DETR against transformers: the same random weights give the same logits, boxes and losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saccade.errors import WeightsError
from saccade.models.build import adopt
from saccade.models.detr import Detr
from saccade.ops.boxes import from_centres
from saccade.types import BoxTarget, Geometry, ImageBatch
from saccade.weights.transformers_detr import convert, is_detr, preprocess_of, publish

transformers = pytest.importorskip("transformers")
CANVAS = (96, 128)
SIZES = ((96, 80), (70, 128))


def randomise(module: nn.Module) -> Any:
    """Weights at which every part matters."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.3 * torch.rand(tensor.shape, generator=dice))
            elif tensor.ndim == 4:
                tensor.copy_(torch.randn(tensor.shape, generator=dice) * (1.5 / tensor[0].numel()) ** 0.5)
            elif "query_position" in name:
                tensor.copy_(3 * torch.randn(tensor.shape, generator=dice))
            else:
                mean = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
                tensor.copy_(mean + 0.3 * torch.randn(tensor.shape, generator=dice))
    return module.eval()


def original(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "use_timm_backbone": True,
        "backbone": "resnet18",
        "use_pretrained_backbone": False,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_queries": 9,
        "id2label": {0: "N/A", 1: "person", 2: "car", 3: "N/A", 4: "cat"},
    }
    config = transformers.DetrConfig(**{**arguments, **changes})
    return randomise(transformers.DetrForObjectDetection(config))


def ours_of(module: Any) -> Detr:
    published = publish(module, "tiny")
    published.config["preprocess"] = {"size": list(CANVAS), "policy": "letterbox"}
    model = adopt(published)
    assert isinstance(model, Detr)
    return model.eval()


def pixels() -> tuple[ImageBatch, Tensor]:
    """Two pictures of two sizes on one canvas, ours and as pixels with a mask."""
    values = torch.randn(2, 3, *CANVAS, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, *CANVAS)
    for plane, (height, width) in zip(mask, SIZES, strict=True):
        plane[:height, :width] = 1
    return ImageBatch(values, SIZES, tuple(Geometry(size) for size in SIZES)), mask


@torch.no_grad()
def test_the_same_logits_and_boxes_with_padding_and_without() -> None:
    theirs = original()
    ours = ours_of(theirs)
    images, mask = pixels()
    rows = [1, 2, 4, 5]
    whole = theirs(pixel_values=images.pixels)
    for given, expected in (
        (images, theirs(pixel_values=images.pixels, pixel_mask=mask)),
        (ImageBatch.of(images.pixels), whole),
    ):
        found = ours(given)
        assert float(expected.logits.std()) > 0.3
        assert float(expected.pred_boxes.std(1).mean()) > 2e-3
        torch.testing.assert_close(found.logits, expected.logits[..., rows], rtol=0, atol=1e-4)
        torch.testing.assert_close(found.boxes, expected.pred_boxes, rtol=0, atol=1e-5)
    padded = ours(images)
    assert float((padded.logits - whole.logits[..., rows]).abs().max()) > 1e-2  # the mask does matter
    assert ours.classes.names == ("person", "car", "cat")


def test_the_same_losses() -> None:
    theirs = original(id2label={0: "person", 1: "car", 2: "cat"})
    ours = ours_of(theirs)
    images, mask = pixels()
    boxes = [torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.2, 0.3, 0.1, 0.1], [0.7, 0.7, 0.5, 0.4]]), torch.ones(1, 4) * 0.4]
    labels = [torch.tensor([0, 2, 2]), torch.tensor([1])]
    told = [{"class_labels": label, "boxes": box} for label, box in zip(labels, boxes, strict=True)]
    expected = theirs(pixel_values=images.pixels, pixel_mask=mask, labels=told).loss_dict
    targets = [
        BoxTarget.of(from_centres(box) * torch.tensor([width, height, width, height]), label)
        for box, label, (height, width) in zip(boxes, labels, SIZES, strict=True)
    ]
    terms = ours.loss(ours(images), targets).terms
    torch.testing.assert_close(terms["class"], expected["loss_ce"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["boxes"], 5 * expected["loss_bbox"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["giou"], 2 * expected["loss_giou"], rtol=1e-4, atol=1e-4)


def test_names_of_older_releases() -> None:
    state = original().state_dict()
    older = {}
    for name, tensor in state.items():
        renamed = name.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
        if "backbone" not in name:
            renamed = renamed.replace("o_proj", "out_proj").replace(".mlp.fc", ".fc")
        older[renamed] = tensor
    assert older.keys() != state.keys()
    assert is_detr(older)
    assert is_detr(state)
    expected, found = convert(state, [1, 2, 4]), convert(older, [1, 2, 4])
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_other_parts_are_refused() -> None:
    with pytest.raises(WeightsError, match="no place in our DETR"):
        convert({"model.encoder.layers.0.self_attn.gate.weight": torch.zeros(1)}, [0])
    with pytest.raises(WeightsError, match="position_embedding_type"):
        publish(original(position_embedding_type="learned"), "tiny")


def test_preprocessing_is_theirs() -> None:
    given = {
        "size": {"shortest_edge": 800, "longest_edge": 1333},
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    told = preprocess_of(given)
    assert told["size"] == [800, 1333]
    assert (told["policy"], told["interpolation"]) == ("shorter", "bilinear")
