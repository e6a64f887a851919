from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import ConfigError, ExplainError
from saccade.models import patch_cnn
from saccade.models.build import create
from saccade.models.patch_cnn import PatchCNN, PatchCNNConfig, PatchDense, PatchStage


def network(patch: int, kernels: tuple[int, ...], dense: tuple[int, ...] = (12,), **options: object) -> PatchCNN:
    """A network with random weights, biases included."""
    torch.manual_seed(0)
    widths = tuple(6 + 2 * index for index in range(len(kernels)))
    config = PatchCNNConfig(patch=patch, widths=widths, kernels=kernels, dense=dense, num_classes=4, **options)  # type: ignore[arg-type]
    model = PatchCNN(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def picture(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize(
    ("patch", "kernels", "dense", "size"),
    [
        (5, (2,), (7,), (9, 11)),
        (8, (3,), (7, 5), (10, 7)),
        (13, (4, 2), (9,), (17, 15)),  # every pooling takes an even map
        (16, (3, 3), (9,), (12, 19)),
        (18, (2, 3), (9,), (13, 14)),  # poolings that lose the last row and column
        (33, (4, 4, 3), (12,), (16, 13)),  # smaller than the patch
        (40, (3, 3, 3), (12, 8), (11, 12)),
        (46, (3, 3, 3, 2), (6,), (9, 5)),
    ],
)
@torch.no_grad()
def test_one_pass_gives_the_logits_of_sliding(
    patch: int, kernels: tuple[int, ...], dense: tuple[int, ...], size: tuple[int, int]
) -> None:
    model = network(patch, kernels, dense)
    pixels = picture(*size)
    slid = model.slide(pixels)
    assert slid.shape == (2, 4, *size)
    assert slid.std(dim=(2, 3)).min() > 1e-2  # equality of constant maps would prove nothing
    torch.testing.assert_close(model.convolve(pixels), slid, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_registered_variants_agree() -> None:
    torch.manual_seed(0)
    model = create("patch_cnn").eval()
    assert isinstance(model, PatchCNN)
    pixels = picture(19, 22, 1)
    torch.testing.assert_close(model.convolve(pixels), model.slide(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch", [7, 8])
@torch.no_grad()
def test_sliding_classifies_the_patch_around_each_pixel(patch: int) -> None:
    model = network(patch, (2,))
    pixels = picture(6, 9)
    before = patch // 2
    after = patch - 1 - before
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (before, after), (before, after)), mode="edge")
    slid = model.slide(pixels)
    for image, row, column in ((0, 0, 0), (1, 5, 8), (1, 2, 7)):
        around = torch.from_numpy(padded[image : image + 1, :, row : row + patch, column : column + patch])
        expected = model.classify_patches(around)[0]
        torch.testing.assert_close(slid[image, :, row, column], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sliding_holds_few_patches_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(7, (2,))
    pixels = picture(5, 6)
    expected = model.slide(pixels)
    counts: list[int] = []
    classify = model.classify_patches
    monkeypatch.setattr(model, "classify_patches", lambda patches: counts.append(len(patches)) or classify(patches))
    monkeypatch.setattr(patch_cnn, "PATCHES_AT_ONCE", 7)
    torch.testing.assert_close(model.slide(pixels), expected)
    assert max(counts) == 7
    assert sum(counts) == 2 * 5 * 6


def test_training_in_one_pass_is_training_on_all_patches() -> None:
    model = network(13, (4, 2)).train()
    pixels, labels = picture(6, 7), torch.randint(4, (2, 6, 7), generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model.segment(pixels).logits, labels).backward()
    whole = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    F.cross_entropy(model.slide(pixels), labels).backward()
    for parameter, gradient in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_config_says_which_way_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("slide", "convolve"):
        monkeypatch.setattr(PatchCNN, name, lambda _, pixels, name=name: calls.append(name) or pixels)
    network(13, (4, 2)).segment(picture(4, 4))
    network(13, (4, 2), inference="sliding").segment(picture(4, 4))
    network(13, (4, 2), inference="sliding").train().segment(picture(4, 4))
    assert calls == ["convolve", "slide", "convolve"]


@pytest.mark.parametrize(("patch", "kernels"), [(13, (4, 2)), (33, (4, 4, 3)), (34, (4, 4, 3))])
def test_explain_layers_lie_on_the_pixels_they_look_at(patch: int, kernels: tuple[int, ...]) -> None:
    model = network(patch, kernels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    size, (row, column) = (40, 44), (19, 23)
    for layer in model.explain_spec().layers.values():
        recorded: list[Tensor] = []
        module = model.get_submodule(layer.path)
        handle = module.register_forward_hook(lambda _m, _g, result, seen=recorded: seen.append(result))
        # Growing to the lower right everywhere: a maximum is that of the last pixel, a minimum that of the first.
        ramp = torch.arange(size[0])[:, None] + torch.arange(size[1]) + 1.0
        extents = []
        for pixels in (ramp, ramp.flip(0, 1)):
            leaf = pixels.expand(1, 3, *size).clone().requires_grad_()
            model.convolve(leaf)
            grid = layer.to_grid(recorded.pop(), size)
            assert grid.shape[2:] == size
            (gradient,) = torch.autograd.grad(grid[0, 0, row, column], leaf)
            extents.append(gradient[0, 0].nonzero())
        handle.remove()
        seen = torch.cat(extents).float()
        middle = (seen.amin(0) + seen.amax(0)) / 2
        slack = 0.5 if patch != 34 else 1.0  # of 34 pixels a row and a column at the end are lost
        assert (middle - torch.tensor([row, column])).abs().max() <= slack


def test_a_sliding_model_tells_how_to_explain_it() -> None:
    with pytest.raises(ExplainError, match=r"set model\.inference=one_pass"):
        network(13, (4, 2), inference="sliding").explain_spec()


def test_the_smallest_patch_is_named() -> None:
    with pytest.raises(ConfigError, match=r"patch: nothing is left of a patch of 24; expected at least 25"):
        PatchCNNConfig(patch=24)
    assert PatchCNNConfig(patch=25).final_side == 1
    with pytest.raises(ConfigError, match="one number of at least 1 per stage"):
        PatchCNNConfig(widths=(8, 8))
    with pytest.raises(ConfigError, match="at least one layer of neurons"):
        PatchCNNConfig(dense=())


def test_a_layer_says_the_same_of_patches_and_of_the_picture() -> None:
    """The middle of a picture of one patch is that patch; both ways are calls of their own, which take no other."""
    stage, dense = PatchStage(3, 4, 3), PatchDense(4, 2, 5)
    patch = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    pooled, whole = stage.on_patches(patch), stage(patch, 1)
    assert pooled.shape == (1, 4, 2, 2)
    torch.testing.assert_close(whole[:, :, ::2, ::2], pooled)
    torch.testing.assert_close(dense(whole, 2)[..., 0, 0], dense.on_patches(pooled))
