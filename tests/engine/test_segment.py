"""Many pictures at once: each must come out as it does alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saccade.engine import segment
from saccade.engine.segment import segment_pictures
from saccade.engine.tiles import CPU_PIXELS, TileConfig, segment_picture
from saccade.errors import InputError
from saccade.models.build import create
from saccade.models.segmenter import Segmenter
from saccade.types import ImageBatch, Segmentation


def unet(policy: str = "native") -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create("unet_plain_test", overrides={"preprocess.policy": policy}).eval()
    assert isinstance(model, Segmenter)
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=False).mul_(1.5)
    return model


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes]


SIZES = ((32, 40), (32, 40), (45, 33), (32, 40), (45, 33), (45, 33), (7, 9))


def assert_alike(one: Segmentation, other: Segmentation) -> None:
    assert one.labels.shape == other.labels.shape
    # Sums in another order may tip a pixel between two classes that are equally likely.
    assert float((one.labels == other.labels).float().mean()) > 0.998
    torch.testing.assert_close(one.confidence, other.confidence, atol=2e-3, rtol=0)
    assert one.classes == other.classes


@pytest.mark.parametrize("policy", ["native", "letterbox", "stretch"])
def test_together_one_by_one_and_by_hand_give_the_same_in_order(policy: str) -> None:
    model, images = unet(policy), pictures(*SIZES)
    together = segment_pictures(model, images)
    assert [tuple(one.labels.shape) for one in together] == list(SIZES)
    for image, found in zip(images, together, strict=True):
        (alone,) = segment_pictures(model, [image])
        batch = model.preprocess([image])
        (written,) = model.postprocess(model(batch), batch)
        assert_alike(found, alone)
        assert_alike(found, written)
        assert found.labels.device.type == found.confidence.device.type == "cpu"
    assert max(one.labels.unique().numel() for one in together) > 1, "a constant would agree with itself"


def test_neighbours_of_one_size_share_a_pass_and_no_picture_gets_a_foreign_canvas() -> None:
    model = unet()
    seen: list[torch.Size] = []

    def run(images: ImageBatch):
        seen.append(images.pixels.shape)
        return model(images)

    segment_pictures(model, pictures(*SIZES), run)
    assert [(shape[0], *shape[2:]) for shape in seen] == [(2, 32, 40), (1, 45, 33), (1, 32, 40), (2, 45, 33), (1, 7, 9)]


def test_a_pass_on_a_processor_holds_no_more_than_its_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet()
    counts: list[int] = []

    def run(images: ImageBatch):
        counts.append(len(images))
        return model(images)

    assert CPU_PIXELS >= 3 * 32 * 40
    monkeypatch.setattr(segment, "CPU_PIXELS", 3 * 32 * 40 + 5)
    assert len(segment_pictures(model, pictures(*[(32, 40)] * 7), run)) == 7
    assert counts == [3, 3, 1]
    counts.clear()
    monkeypatch.setattr(segment, "CPU_PIXELS", 10)
    segment_pictures(model, pictures((32, 40), (32, 40)), run)
    assert counts == [1, 1], "a picture larger than that goes alone"


def test_large_pictures_are_tiled_also_beside_others_of_their_size() -> None:
    model, plan = unet(), TileConfig(whole_pixels=1000, size=(32, 32))
    images = pictures((60, 70), (60, 70), (20, 30))
    seen: list[torch.Size] = []

    def run(batch: ImageBatch):
        seen.append(batch.pixels.shape[2:])
        return model(batch)

    found = segment_pictures(model, images, run, plan)
    assert set(seen[:-1]) == {torch.Size([32, 32])}
    assert seen[-1] == (20, 30)
    for image, one in zip(images, found, strict=True):
        expected = segment_picture(model, image, model, plan)
        assert torch.equal(one.labels, expected.labels)
        assert torch.equal(one.confidence, expected.confidence)


def test_a_faster_copy_is_what_runs_and_the_models_own_classes_hold() -> None:
    model, images = unet(), pictures((16, 16), (16, 16), (8, 8))

    def always_third(batch: ImageBatch):
        outputs = model(batch)
        logits = torch.zeros_like(outputs.logits)
        logits[:, 3] = 9
        return outputs._replace(logits=logits)

    for one in segment_pictures(model, images, always_third):
        assert (one.labels == 3).all()
        assert one.classes == model.classes


def test_nothing_gives_nothing_and_a_picture_without_pixels_is_refused() -> None:
    assert segment_pictures(unet(), []) == []
    for count in (1, 2):
        with pytest.raises(InputError, match="image"):
            segment_pictures(unet(), [torch.zeros(3, 0, 4, dtype=torch.uint8)] * count)
