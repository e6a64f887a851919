"""FCN-ResNet50 against torchvision, U-Net-ResNet34 against segmentation-models-pytorch; one pass against sliding.

The same weights on both sides, float32 for the others. The weights are random (published ones are not to be had here).
For ``predict`` that would make every pixel a near tie, and the check that admits a faster copy would mean nothing.
Therefore the norms are given the statistics of real pictures (mosaics of the embedded nuclei), and the last layer is
fitted to their masks by least squares; the other classes, of which there are 21 as in VOC, never win.

* forward: eager, both in evaluation mode, both in one memory format, on pixels that are ready;
* predict: ``saccade.predict`` on 16 pictures of bytes after it has decided how, against their eager forward with
  normalisation and argmax, one or four at a time, whichever is faster;
* step: ``Session.step`` as training takes it (precision of its own choice, channels last, clipping, moving average,
  history file), against forward, cross-entropy, backward and AdamW in float32;
* patch: ``PatchCNN.convolve`` against ``PatchCNN.slide``, logits compared before.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure import Row, compare, parser, report
from saccade.data.loader import Batch
from saccade.data.source import DataSource, open_data
from saccade.data.transforms import Augment
from saccade.engine.plan import Precision, TrainConfig
from saccade.engine.predict import PredictConfig, Predictor
from saccade.engine.run import RunFolder
from saccade.engine.session import Session
from saccade.models.build import adopt, create
from saccade.models.patch_cnn import PatchCNN
from saccade.ops.image import IMAGENET_MEAN, IMAGENET_STD
from saccade.types import Classes, ImageBatch, MapTarget, Sample
from saccade.weights import smp as smp_weights
from saccade.weights import torchvision as torchvision_weights

NUM_CLASSES = 21
SIDE = 512
STEP_SIDE, STEP_BATCH = 256, 8
PATCH_SIDE = 256
SHARPNESS = 20.0
"""Logit of a class that the least squares are sure of."""

Logits = Callable[[Tensor], Tensor]


class Pair:
    """A network of another library and ours with its weights.

    Attributes:
        name: of the architecture.
        against: the library.
        peer: its module.
        logits: pixels ``[B, 3, H, W]`` to the peer's logits.
        last: its last convolution.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "FCN-R50":
            import torchvision

            # Without the auxiliary head, which torchvision computes in evaluation too.
            options = {"weights": None, "weights_backbone": None, "aux_loss": False, "num_classes": NUM_CLASSES}
            self.against = "torchvision"
            self.peer: nn.Module = torchvision.models.segmentation.fcn_resnet50(**options)
            self.last: nn.Conv2d = self.peer.classifier[4]  # type: ignore[assignment, index]
            self.logits: Logits = lambda pixels: self.peer(pixels)["out"]
        else:
            import segmentation_models_pytorch as smp

            self.against = "segmentation-models-pytorch"
            self.peer = smp.Unet("resnet34", encoder_weights=None, classes=NUM_CLASSES)
            self.last = self.peer.segmentation_head[0]
            self.logits = lambda pixels: self.peer(pixels)

    def ours(self) -> nn.Module:
        """Our model with the peer's weights of this moment; it checks itself that the logits are equal."""
        if self.name == "FCN-R50":
            return adopt(torchvision_weights.publish(self.peer, "fcn_resnet50")).eval()
        return adopt(smp_weights.publish(self.peer, "resnet34")).eval()


def row(what: str, against: str, ours: float, other: float, ratio: float, of: str, reach: str, told: str) -> Row:
    """One line of the results; ``of`` says what over what the ratio is."""
    figures = {"ours_s": ours, "other_s": other, "ratio": ratio, "ratio of": of, "reach": reach}
    return {"what": what, "against": against, **figures, "note": told}


def forward(pair: Pair, batch: int, layout: torch.memory_format, repeats: int) -> Row:
    """Eager forward passes in one memory format."""
    pair.peer.eval()
    ours = pair.ours().to(memory_format=layout)
    peer = pair.peer.to(memory_format=layout)
    pixels = torch.randn(batch, 3, SIDE, SIDE).contiguous(memory_format=layout)
    images = ImageBatch.of(pixels)
    with torch.no_grad():
        gap = float((ours(images).logits - pair.logits(pixels)).abs().max())
        times = compare({"ours": lambda: ours(images).logits, "peer": lambda: pair.logits(pixels)}, repeats)
    peer.to(memory_format=torch.contiguous_format)
    told = f"{'channels last' if layout is torch.channels_last else 'contiguous'}, logits differ by {gap:.1g}"
    what = f"{pair.name} forward, batch {batch}"
    return row(what, pair.against, times["ours"], times["peer"], times["ratio"], "ours / other", "<= 1", told)


def mosaics(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures ``[N, 3, SIDE, SIDE]`` uint8, the embedded nuclei side by side; labels ``[N, SIDE, SIDE]`` uint8."""
    dataset = open_data("nuclei", task="semantic").split("train")
    samples = [dataset[index] for index in range(len(dataset))]
    side = samples[0].image.shape[-1]
    across = SIDE // side
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    labels = torch.empty(count, SIDE, SIDE, dtype=torch.uint8)
    for index in range(count):
        chosen = torch.randperm(len(samples), generator=generator)[: across**2].tolist()
        for place, number in enumerate(chosen):
            down, right = (step * side for step in divmod(place, across))
            assert isinstance(samples[number].target, MapTarget)
            pictures[index, :, down : down + side, right : right + side] = samples[number].image
            labels[index, down : down + side, right : right + side] = samples[number].target.labels
    return pictures, labels


def normalised(pictures: Tensor) -> Tensor:
    """As a script does it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pictures.float() / 255 - mean) / std


def make_decisive(pair: Pair) -> None:
    """Give the norms the statistics of pictures, and fit the last layer to their masks by least squares."""
    pictures, labels = mosaics(4, seed=1)
    norms = [module for module in pair.peer.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    read: list[Tensor] = []
    handle = pair.last.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        pair.peer.train()
        for picture in pictures.split(2):
            pair.logits(normalised(picture))
        pair.peer.eval()
        read.clear()
        for picture in pictures.split(1):
            pair.logits(normalised(picture))
        handle.remove()
        features = torch.cat(read).permute(0, 2, 3, 1)  # [N, H / s, W / s, C]
        stride = SIDE // features.shape[1]
        truth = labels[:, stride // 2 :: stride, stride // 2 :: stride].flatten().double()
        rows = features.reshape(-1, features.shape[-1])[:: max(len(truth) // 50_000, 1)].double()
        truth = truth[:: max(len(truth) // 50_000, 1)]
        middle = rows.mean(0)
        rows = rows - middle
        weight = torch.linalg.solve(
            rows.T @ rows + 1e-3 * rows.square().sum() / rows.shape[1] * torch.eye(rows.shape[1]).double(),
            rows.T @ (truth - truth.mean()),
        )
        centre = pair.last.kernel_size[0] // 2
        pair.last.weight.zero_()
        assert pair.last.bias is not None
        pair.last.bias.fill_(-SHARPNESS)
        for label, sign in ((0, -1), (1, 1)):
            pair.last.weight[label, :, centre, centre] = sign * SHARPNESS * weight.float()
            offset = truth.mean() - middle @ weight - 0.5
            pair.last.bias[label] = sign * SHARPNESS * offset.float()


def predict(pair: Pair, count: int, repeats: int) -> Row:
    """``saccade.predict`` as shipped against eager float32."""
    make_decisive(pair)
    pictures, labels = mosaics(count, seed=2)
    listed = list(pictures)
    predictor = Predictor(pair.ours())  # type: ignore[arg-type]
    predictor(listed)  # on its first pictures it decides which copy to use
    plan = predictor.plan
    assert plan is not None

    def theirs(size: int) -> Tensor:
        with torch.inference_mode():
            return torch.cat([pair.logits(normalised(part)).argmax(1) for part in pictures.split(size)])

    alone = compare({"one": lambda: theirs(1), "four": lambda: theirs(4)}, repeats=1)
    size = 1 if alone["one"] < alone["four"] else 4
    found, reference = torch.stack([p.labels for p in predictor(listed)]), theirs(size)  # type: ignore[union-attr]
    agreement = float((found == reference).float().mean())
    right = float((reference == labels).float().mean())
    exact = torch.stack([p.labels for p in Predictor(predictor.model, PredictConfig(speed="exact"))(listed[:2])])  # type: ignore[union-attr]
    same = float((exact == reference[:2]).float().mean())
    times = compare({"peer": lambda: theirs(size), "ours": lambda: predictor(listed)}, repeats)
    for reason in plan.rejected:
        print(f"{pair.name}: not taken: {reason}")
    told = (
        f"runs {plan.name}; labels agree {agreement:.2%} (float32: {same:.2%}; reach 99.5 %); they {size} at a time; "
        f"{right:.0%} of the pixels right"
    )
    what = f"{pair.name} predict, {count} pictures"
    return row(what, pair.against, times["ours"], times["peer"], times["ratio"], "other / ours", ">= 2.5", told)


class _Crops:
    """Pictures in memory with a label map each, of as many classes as the network has."""

    task = "semantic"
    licence = "CC0"

    def __init__(self) -> None:
        self.classes = Classes.numbered(NUM_CLASSES)
        pictures, labels = mosaics(4, seed=3)
        parts = [(slice(y, y + STEP_SIDE), slice(x, x + STEP_SIDE)) for y in (0, STEP_SIDE) for x in (0, STEP_SIDE)]
        self._pictures = torch.cat([pictures[:, :, down, right] for down, right in parts])
        self._labels = torch.cat([labels[:, down, right] for down, right in parts])

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._pictures[index], MapTarget(self._labels[index]), f"mosaic#{index}")

    def fingerprint(self) -> str:
        return "mosaics"


def step(pair: Pair, precision: Precision, repeats: int, folder: Path) -> Row:
    """One step of a training on a batch that is ready."""
    crops = _Crops()
    source = DataSource({"train": crops, "val": crops}, crops.classes, "mosaics", "mosaics")  # type: ignore[dict-item]
    model = pair.ours()
    assert model.preprocess.size == (STEP_SIDE, STEP_SIDE)
    config = TrainConfig(
        epochs=1000, batch_size=STEP_BATCH, precision=precision, checkpoint_seconds=1e6, augment=Augment(), workers=0
    )
    session = Session(model, source, config, RunFolder(folder), None, name=None, resume=False)
    told = session.notes[0]
    batch: Batch = next(iter(session.feed.train.epoch(0)))
    peer = pair.peer.train()
    pixels, labels = batch.images.pixels.clone(), batch.labels.long()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4)

    def plain() -> None:
        optimizer.zero_grad()
        F.cross_entropy(pair.logits(pixels), labels).backward()
        optimizer.step()

    times = compare({"ours": lambda: session.step([batch]), "peer": plain}, repeats, warmup=2)
    session.close()
    what = f"{pair.name} training step, {STEP_SIDE}x{STEP_SIDE}, batch {STEP_BATCH}"
    return row(what, pair.against, times["ours"], times["peer"], times["ratio"], "ours / other", "<= 1", told)


def patch(slid: int, repeats: int) -> Row:
    """One pass over a picture against a patch for every pixel of it.

    Args:
        slid: side of the picture that is slid over; its time is brought to the whole picture by the number of pixels.
        repeats: of the one pass.
    """
    model = create("patch_cnn").eval()
    assert isinstance(model, PatchCNN)
    pixels = torch.randn(1, 3, PATCH_SIDE, PATCH_SIDE)
    part = pixels[:, :, :slid, :slid]
    with torch.inference_mode():
        gap = float((model.slide(part) - model.convolve(part)).abs().max())
        assert gap < 1e-4, f"the two do not compute the same: {gap}"
        once = compare({"slide": lambda: model.slide(part)}, repeats=1, warmup=0)["slide"]
        ours = compare({"convolve": lambda: model.convolve(pixels)}, repeats)["convolve"]
    other = once * (PATCH_SIDE / slid) ** 2
    told = f"logits differ by {gap:.1g}; slid over {slid}x{slid}" + (", times the pixels" if slid < PATCH_SIDE else "")
    what = f"patch_cnn in one pass, {PATCH_SIDE}x{PATCH_SIDE}"
    return row(what, "the same, sliding", ours, other, other / ours, "other / ours", "printed", told)


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    parts, names = ("forward", "predict", "step", "patch"), ("FCN-R50", "U-Net-R34")
    options.add_argument("--parts", nargs="+", default=parts, choices=parts)
    options.add_argument("--models", nargs="+", default=names, choices=names, help="of forward and predict")
    options.add_argument("--batches", nargs="+", type=int, default=[1], help="pictures per forward pass")
    options.add_argument("--count", type=int, default=16, help="pictures that are predicted")
    options.add_argument("--slid", type=int, default=PATCH_SIDE, help="side of the picture that is slid over")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    try:
        for line in measured(given):
            rows.append(line)
            print(f"{line['what']}: {line['ratio']:.3g} ({line['note']})", flush=True)
    finally:  # some lines take minutes, and a later one must not lose them
        if rows:
            report(rows, given.json)
    return rows


def measured(given: argparse.Namespace) -> Iterator[Row]:
    """One row after the other, as asked on the command line."""
    if "forward" in given.parts:
        for name in given.models:
            pair = Pair(name)
            for batch in given.batches:
                for layout in (torch.contiguous_format, torch.channels_last):
                    yield forward(pair, batch, layout, given.repeats)
    if "predict" in given.parts:
        for name in given.models:
            yield predict(Pair(name), given.count, max(given.repeats // 2, 1))
    if "step" in given.parts:
        for precision in ("auto", "32"):
            with tempfile.TemporaryDirectory() as folder:
                yield step(Pair("U-Net-R34"), precision, given.repeats, Path(folder) / "run")
    if "patch" in given.parts:
        yield patch(given.slid, given.repeats)


if __name__ == "__main__":
    main()
