"""YOLOX out of an ONNX file: convolutions are known by the order in which they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saccade
from saccade.engine.checkpoint import save_model
from saccade.errors import WeightsError
from saccade.models.build import load_weights
from saccade.models.yolox import Yolox
from saccade.nn.conv import ConvNorm
from saccade.types import ImageBatch
from saccade.weights import yolox

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

NAME = "yolox_test"


def made(num_classes: int = 5) -> Yolox:
    """A network whose norms do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = saccade.create(NAME, num_classes=num_classes)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    assert isinstance(model, Yolox)
    return model.eval()


class _Writer:
    """An ONNX graph, written as the published one is: four pictures of half the size, folded norms, blue first."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def tensor(self, value: Tensor) -> str:
        name = str(600 + len(self.tensors))
        self.tensors.append(onnx.numpy_helper.from_array(value.detach().numpy(), name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def conv(self, module: nn.Conv2d, norm: nn.Module, given: str, *, is_first: bool = False) -> str:
        weight, bias = module.weight, module.bias
        if isinstance(norm, nn.BatchNorm2d):
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
            weight, bias = weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor  # type: ignore[operator]
        if is_first:  # ours: colour, row, column; theirs: column, row, colour from blue to red
            colours = weight.reshape(-1, 3, 2, 2, 3, 3).flip(1)
            weight = colours.permute(0, 3, 2, 1, 4, 5).reshape(-1, 12, 3, 3)
        assert bias is not None
        pad, side = [module.padding[0]] * 4, list(module.kernel_size)
        return self.node(
            "Conv",
            [given, self.tensor(weight.contiguous()), self.tensor(bias)],
            kernel_shape=side,
            pads=pad,
            strides=list(module.stride),
            group=module.groups,
        )

    def block(self, module: ConvNorm, given: str, *, is_first: bool = False) -> str:
        said = self.conv(module.conv, module.norm, given, is_first=is_first)
        return self.node("Mul", [said, self.node("Sigmoid", [said])])

    def chain(self, module: nn.Module, given: str) -> str:
        """Blocks one after the other."""
        for part in [module] if isinstance(module, ConvNorm) else module:
            given = self.block(part, given)
        return given

    def cross(self, module: Any, given: str) -> str:
        long, short = self.block(module.long, given), self.block(module.short, given)
        for step in module.steps:
            looked = self.chain(step.look, self.block(step.narrow, long))
            long = self.node("Add", [looked, long]) if step.is_residual else looked
        return self.block(module.join, self.node("Concat", [long, short], axis=1))

    def pools(self, module: Any, given: str) -> str:
        narrow = self.block(module.narrow, given)
        found = [narrow]
        for side in (5, 9, 13):
            pads = [side // 2] * 4
            found.append(self.node("MaxPool", [narrow], kernel_shape=[side] * 2, pads=pads, strides=[1, 1]))
        return self.block(module.join, self.node("Concat", found, axis=1))

    def larger(self, given: str) -> str:
        scales = self.tensor(torch.tensor([1.0, 1.0, 2.0, 2.0]))
        return self.node("Resize", [given, self.tensor(torch.zeros(0)), scales], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric")  # fmt: skip

    def folded(self, given: str) -> str:
        """Even and odd rows and columns: both even, odd rows, odd columns, both odd."""
        axes, steps, ends = (self.tensor(torch.tensor(value)) for value in ([2, 3], [2, 2], [1 << 30] * 2))
        starts = [self.tensor(torch.tensor(start)) for start in ([0, 0], [1, 0], [0, 1], [1, 1])]
        return self.node("Concat", [self.node("Slice", [given, start, ends, axes, steps]) for start in starts], axis=1)


def write(model: Yolox, path: Path) -> Path:
    """The network as a file of the published form."""
    writer, backbone, pyramid = _Writer(), model.backbone, model.pyramid
    maps, seen = writer.block(backbone.stem, writer.folded("images"), is_first=True), []
    for index, stage in enumerate(backbone.stages):
        maps = writer.chain(stage[0], maps)  # type: ignore[index]
        if index == 3:
            maps = writer.pools(stage[1], maps)  # type: ignore[index]
        maps = writer.cross(stage[-1], maps)  # type: ignore[index]
        seen.append(maps)
    _, fine, middle, coarse = seen

    def joined(*parts: str) -> str:
        return writer.node("Concat", list(parts), axis=1)

    coarse = writer.block(pyramid.lateral, coarse)
    middle = writer.block(pyramid.reduce, writer.cross(pyramid.down_middle, joined(writer.larger(coarse), middle)))
    fine = writer.cross(pyramid.down_fine, joined(writer.larger(middle), fine))
    middle = writer.cross(pyramid.up_middle, joined(writer.chain(pyramid.shrink_fine, fine), middle))
    coarse = writer.cross(pyramid.up_coarse, joined(writer.chain(pyramid.shrink_middle, middle), coarse))
    rows = []
    for head, level in zip(model.heads, (fine, middle, coarse), strict=True):
        stem = writer.block(head.stem, level)
        towers = []
        for blocks, lasts in ((head.class_tower, (head.head,)), (head.box_tower, (head.codes, head.objectness))):
            told = stem
            for part in blocks:
                told = writer.chain(part, told)
            towers += [writer.conv(last, nn.Identity(), told) for last in lasts]
        logits, codes, objectness = towers
        parts = [codes, writer.node("Sigmoid", [objectness]), writer.node("Sigmoid", [logits])]
        shape = writer.tensor(torch.tensor([1, 5 + model.config.num_classes, -1]))
        rows.append(writer.node("Reshape", [joined(*parts), shape]))
    last = writer.node("Transpose", [writer.node("Concat", rows, axis=2)], perm=[0, 2, 1])
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        writer.nodes,
        "network",
        [info("images", onnx.TensorProto.FLOAT, [1, 3, 64, 64])],
        [info(last, onnx.TensorProto.FLOAT, None)],
        writer.tensors,
    )
    whole = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=8)
    onnx.save(whole, str(path))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(made(), tmp_path_factory.mktemp("yolox") / "tiny.onnx")


def images(count: int = 2) -> ImageBatch:
    return ImageBatch.of(torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 8)


def test_a_file_gives_the_numbers_of_the_network_that_it_holds(file: Path) -> None:
    model, expected = saccade.load(file).eval(), made()
    assert model.config.num_classes == 5
    assert model.preprocess.fill == 114
    with torch.no_grad():
        for ours, theirs in zip(model(images()), expected(images()), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_original_gives_the_same_logits(file: Path) -> None:
    published = yolox.publish(file)
    with torch.no_grad():
        expected = made()(images()).logits
    torch.testing.assert_close(published.reference(images().pixels), expected, rtol=1e-3, atol=1e-3)


def test_weights_are_taken_into_a_model_of_other_classes(file: Path) -> None:
    model = saccade.create(NAME, num_classes=3)
    report = load_weights(model, file)
    assert set(report.fresh) == {f"heads.{level}.head.{leaf}" for level in range(3) for leaf in ("weight", "bias")}
    state = yolox.read(file)
    assert torch.equal(model.state_dict()["heads.0.codes.weight"], state["heads.0.codes.weight"])


@pytest.mark.parametrize("is_created", [False, True], ids=["loaded", "created, then given weights"])
def test_training_begins_with_the_function_of_the_file(file: Path, tmp_path: Path, is_created: bool) -> None:
    """The norms are folded into the convolutions: statistics of a batch would be another function."""
    if is_created:
        model = saccade.create(NAME)
        load_weights(model, file)
    else:
        model = saccade.load(file)
    assert isinstance(model, Yolox)
    with torch.no_grad():
        expected, learning = model.eval()(images()), model.train()(images())
    assert model.training
    for one, other in zip(learning, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert model.state_dict()["backbone.stem.norm.num_batches_tracked"] == 0
    # What was saved from it tells the next one, which has other classes.
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    assert saccade.load(path).config.freeze_norms  # type: ignore[attr-defined]
    other_classes = saccade.create(NAME, num_classes=3)
    assert isinstance(other_classes, Yolox)
    load_weights(other_classes, path)
    assert other_classes.config.freeze_norms
    assert not other_classes.train().backbone.stem.norm.training


def test_folding_keeps_the_places_of_pixels() -> None:
    """The first convolution of the file on its four pictures is ours on the unfolded one."""
    weight = torch.randn(2, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    turned = pixels.flip(1)
    pictures = [turned[..., row::2, column::2] for column, row in ((0, 0), (0, 1), (1, 0), (1, 1))]
    theirs = F.conv2d(torch.cat(pictures, 1), weight, padding=1)
    ours = F.conv2d(F.pixel_unshuffle(pixels, 2), yolox._unfolded(weight), padding=1)
    torch.testing.assert_close(ours, theirs)


def test_files_of_something_else_are_refused(tmp_path: Path, file: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing of the kind" * 9)
    with pytest.raises(WeightsError, match="ONNX"):
        saccade.load(broken)
    model = onnx.load(str(file))
    convolution = next(index for index, node in enumerate(model.graph.node) if node.op_type == "Conv")
    del model.graph.node[convolution]
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(WeightsError, match="another network"):
        saccade.load(tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match="no such file"):
        yolox.read(tmp_path / "none.onnx")


def test_the_classes_of_coco_are_eighty() -> None:
    assert len(set(yolox.COCO)) == 80
    assert (yolox.COCO[0], yolox.COCO[-1]) == ("person", "toothbrush")
