"""One small network, one patch, one pixel: the patch-wise CNN, and its conversion to one pass over the picture.

A network that classifies the middle pixel of a patch is slid over every pixel: Ciresan et al. 2012, Deep neural
networks segment neuronal membranes in electron microscopy images. Neighbouring patches share almost all of their
pixels, so the same parameters can be read as convolutions over the whole picture (Sermanet et al. 2013, arXiv
1312.6229; Long et al. 2014, arXiv 1411.4038): dense layers become convolutions, and where a pooling skipped places the
layers behind it are dilated instead (Giusti et al. 2013, arXiv 1302.1700; Yu and Koltun 2015, arXiv 1511.07122). The
logits are the same.

Differs from Ciresan et al.: colour, ReLU, one narrow dense layer; beyond the border the outermost pixels are repeated
instead of mirrored, so that a picture may be smaller than a patch. There is no batch norm: sliding and one pass would
see different statistics in training.

B batch · K classes · N patches · C channels · p side of a patch · H, W canvas
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.base import Routing
from saccade.errors import ConfigError, ExplainError
from saccade.models.segmenter import Segmenter, SegmenterConfig, SegmenterOutputs, native
from saccade.registry import register
from saccade.types import ExplainSpec, GridLayer

PATCHES_AT_ONCE = 512
"""Patches that go through the network together when sliding; bounds the memory (about 130 MB at 33x33 pixels)."""


@dataclass(frozen=True, kw_only=True)
class PatchCNNConfig(SegmenterConfig):
    """A patch-wise CNN: how much of the surroundings it sees, and with what."""

    kind: Literal["patch_cnn"] = "patch_cnn"
    patch: int = 33
    """Side of the patch in pixels; of an even one the labelled pixel is the lower right of the middle four."""
    widths: tuple[int, ...] = (32, 48, 64)
    """Channels of each stage: a convolution without padding, ReLU, 2x2 max pooling."""
    kernels: tuple[int, ...] = (4, 4, 3)
    """Side of each stage's convolution kernel. Where a map of odd side is pooled, its last row and column are lost."""
    dense: tuple[int, ...] = (128,)
    """Neurons of the dense layers between the stages and the classifying layer."""
    inference: Literal["one_pass", "sliding"] = "one_pass"
    """How pictures are predicted; the logits are equal, the time is not. Training is in one pass always: the loss over
    all pixels of a crop is the loss over all of their patches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or len(self.widths) != len(self.kernels) or min(*self.widths, *self.kernels) < 1:
            found = f"widths is {self.widths}, kernels {self.kernels}"
            raise ConfigError(found, where="kernels", expected="one number of at least 1 per stage in each")
        if not self.dense or min(self.dense) < 1:
            raise ConfigError(f"dense is {self.dense}", where="dense", expected="at least one layer of neurons")
        if self.final_side < 1:
            least = 1
            for kernel in reversed(self.kernels):
                least = 2 * least + kernel - 1
            raise ConfigError(
                f"nothing is left of a patch of {self.patch}", where="patch", expected=f"at least {least}"
            )

    @property
    def final_side(self) -> int:
        """Side of what the stages leave of a patch; below 1 where it is too small."""
        side = self.patch
        for kernel in self.kernels:
            side = (side - kernel + 1) // 2
        return side

    def build(self) -> PatchCNN:
        """The segmenter, with random weights."""
        return PatchCNN(self)


class PatchStage(nn.Module):
    """Convolution without padding, ReLU, 2x2 max pooling.

    Attributes:
        convolution: ``[C_out, C_in, k, k]`` weights.
    """

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, kernel)
        nn.init.kaiming_normal_(self.convolution.weight, nonlinearity="relu")
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def on_patches(self, maps: Tensor) -> Tensor:
        """Maps of patches ``[N, C_in, h, w]`` to ``[N, C_out, h', w']``, which the pooling has halved."""
        return F.max_pool2d(F.relu(self.convolution(maps), inplace=True), 2)

    def forward(self, maps: Tensor, dilation: int) -> Tensor:
        """Maps of whole pictures ``[B, C_in, h, w]`` to ``[B, C_out, h', w']``: the pooling leaves no place out.

        Args:
            maps: of whole pictures.
            dilation: pixels between two neighbours of a patch's map.
        """
        maps = F.conv2d(maps, self.convolution.weight, self.convolution.bias, dilation=dilation)
        # Many times as fast as a dilated max_pool2d, which also notes where each maximum was.
        maps = torch.maximum(maps[:, :, dilation:], maps[:, :, :-dilation])
        return F.relu(torch.maximum(maps[..., dilation:], maps[..., :-dilation]), inplace=True)


class PatchDense(nn.Linear):
    """A dense layer over all places of a patch's map; ``[D, C * s * s]`` weights."""

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__(channels * side**2, width)
        self.kernel = (channels, side, side)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)

    def on_patches(self, maps: Tensor) -> Tensor:
        """Maps of patches ``[N, C, s, s]`` to ``[N, D]``."""
        return F.linear(maps.flatten(1), self.weight, self.bias)

    def forward(self, maps: Tensor, dilation: int) -> Tensor:  # type: ignore[override]
        """Maps of whole pictures ``[B, C, h, w]`` to ``[B, D, h', w']``: the same weights are a convolution.

        Args:
            maps: of whole pictures.
            dilation: pixels between two neighbours of a patch's map.
        """
        return F.conv2d(maps, self.weight.reshape(-1, *self.kernel), self.bias, dilation=dilation)


class PatchCNN(Segmenter):
    """Classifies every pixel by the patch around it.

    Attributes:
        stages: convolutions and poolings.
        dense: dense layers, each followed by ReLU.
        final: what the last dense layer gives passes here, for explanation to record.
        head: the dense layer that classifies; the only part that depends on the classes.
    """

    config: PatchCNNConfig

    def __init__(self, config: PatchCNNConfig) -> None:
        super().__init__(config)
        before = (3, *config.widths)
        self.stages = nn.ModuleList(
            PatchStage(channels, width, kernel)
            for channels, width, kernel in zip(before, config.widths, config.kernels, strict=False)
        )
        sides = (config.final_side, *(1 for _ in config.dense[1:]))
        widths = (config.widths[-1], *config.dense)
        self.dense = nn.ModuleList(
            PatchDense(channels, side, width)
            for channels, side, width in zip(widths, sides, config.dense, strict=False)
        )
        self.final = nn.Identity()
        self.head = PatchDense(widths[-1], 1, config.num_classes)
        nn.init.normal_(self.head.weight, std=0.02)

    def segment(self, pixels: Tensor) -> SegmenterOutputs:
        """Pixels ``[B, 3, H, W]`` to logits ``[B, K, H, W]``, as ``config.inference`` says; in training in one pass."""
        is_sliding = self.config.inference == "sliding" and not self.training
        logits = self.slide(pixels) if is_sliding else self.convolve(pixels)
        return SegmenterOutputs(logits, logits.new_zeros(0, *logits.shape), Routing.none(pixels))

    def classify_patches(self, patches: Tensor) -> Tensor:
        """Patches ``[N, 3, p, p]`` to the logits ``[N, K]`` of their middle pixels."""
        maps = patches
        for stage in self.stages:
            maps = cast(PatchStage, stage).on_patches(maps)
        for layer in self.dense:
            maps = F.relu(cast(PatchDense, layer).on_patches(maps), inplace=True)
        return self.head.on_patches(self.final(maps))

    def slide(self, pixels: Tensor) -> Tensor:
        """Logits ``[B, K, H, W]`` from a patch cut out around every pixel, ``PATCHES_AT_ONCE`` at a time.

        Slow by design: each pixel goes through the network as often as it is in a patch.
        """
        count, _, height, width = pixels.shape
        side = self.config.patch
        windows = self._surround(pixels).unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5)
        logits = []
        for start in range(0, count * height * width, PATCHES_AT_ONCE):
            place = torch.arange(start, min(start + PATCHES_AT_ONCE, count * height * width), device=pixels.device)
            patches = windows[place // (height * width), place // width % height, place % width]
            logits.append(self.classify_patches(patches))
        return torch.cat(logits).reshape(count, height, width, -1).permute(0, 3, 1, 2)

    def convolve(self, pixels: Tensor) -> Tensor:
        """The logits ``[B, K, H, W]`` of ``slide``, up to rounding, in one pass over the picture.

        Two neighbours in a patch's map after i poolings are 2^i pixels apart: so far apart does a convolution here
        reach for its neighbours, while every pixel keeps a place of its own.
        """
        maps = self._surround(pixels)
        for index, stage in enumerate(self.stages):
            maps = stage(maps, 2**index)
        for layer in self.dense:
            maps = F.relu(layer(maps, 2 ** len(self.stages)), inplace=True)
        # Where a pooling loses the end of a patch, cells beyond the last pixel are left over.
        logits: Tensor = self.head(self.final(maps), 1)
        return logits[:, :, : pixels.shape[2], : pixels.shape[3]]

    def explain_spec(self) -> ExplainSpec:
        """``stage1`` ... and ``final``, what the classifying layer reads; each has one cell per pixel.

        Raises:
            ExplainError: where the model slides: its layers see patches, and no map of the picture is ever there.
        """
        if self.config.inference == "sliding":
            raise ExplainError(
                "a model that slides has no maps of the picture",
                where="inference",
                remedy="set model.inference=one_pass, which computes the same",
            )
        layers, extent = {}, 1
        for index, kernel in enumerate(self.config.kernels):
            extent += kernel * 2**index  # kernel - 1 more cells for the convolution, one for the pooling
            # A cell sees ``extent`` pixels, the first cell from the corner of the first patch on; it belongs to the
            # pixel in the middle of what it sees.
            first = self.config.patch // 2 - (extent - 1) // 2
            layers[f"stage{index + 1}"] = GridLayer(f"stages.{index}", _Window(first))
        layers["final"] = GridLayer("final", _Window(0))
        return ExplainSpec(layers, usual_layer=f"stage{len(self.stages)}")

    def _surround(self, pixels: Tensor) -> Tensor:
        """The picture with its border repeated, so that every pixel has a patch: ``[B, 3, H + p - 1, W + p - 1]``."""
        before = self.config.patch // 2
        after = self.config.patch - 1 - before
        return F.pad(pixels, (before, after, before, after), mode="replicate")


@dataclass(frozen=True)
class _Window:
    """The part of a map ``[B, C, h, w]`` that lies over the canvas.

    Attributes:
        first: row and column of the cell over the first pixel.
    """

    first: int

    def __call__(self, maps: Tensor, canvas: tuple[int, int]) -> Tensor:
        return maps[..., self.first : self.first + canvas[0], self.first : self.first + canvas[1]]


def _variants() -> dict[str, PatchCNNConfig]:
    plain = PatchCNNConfig(num_classes=2)
    tiny = PatchCNNConfig(
        patch=13,
        widths=(8, 16),
        kernels=(4, 2),
        dense=(24,),
        num_classes=3,
        preprocess=native(32),
    )
    return {"patch_cnn": plain, "patch_cnn_sliding": replace(plain, inference="sliding"), "patch_cnn_test": tiny}


register(_variants())
