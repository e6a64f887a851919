"""What explanations cost, ours against pytorch-grad-cam, captum, xaitk and the published procedure of relevance.

``--parts cam forward relevance gradients masks objects`` chooses among six groups of rows:

* class activation maps of a ResNet-50 at 224, of 1, 5 and 20 classes;
* Grad-CAM of 20 classes against our own forward pass;
* relevance of a ViT-B/16, 8 pictures, against attention times gradient carried out picture by picture;
* integrated gradients of a ResNet-50 with 50 points, against captum as it is and at its best, gaps beside;
* RISE of a ResNet-50 with the same masks, against xaitk; how far ours comes when it stops at a stated error;
* D-RISE of a YOLO with the same masks, against xaitk.

Both sides run on the same model, with random weights but for D-RISE, whose YOLO learns drawn scenes first. Before
anything is timed their maps are compared: where both define them alike they correlate by at least ``AGREEMENT``, or the
benchmark stops. (xaitk scales and centres RISE otherwise; there the same sum of our own scores is compared. D-RISE
compares other scores and is not compared.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from measure import Row, compare, parser, report
from saccade.config import from_dict
from saccade.data.dataset import Dataset
from saccade.data.source import DataSource
from saccade.data.synthetic import SceneConfig, SyntheticObjects
from saccade.engine.plan import TrainConfig
from saccade.engine.train import train
from saccade.explanation.asking import ask
from saccade.explanation.attention import AttentionRelevance
from saccade.explanation.attribution import Explainer
from saccade.explanation.cam import GradCAM, HiResCAM, LayerCAM
from saccade.explanation.explain import Subject
from saccade.explanation.gradients import IntegratedGradients
from saccade.explanation.perturbation import DRISE, RISE, baseline_pixels, draw_masks, masked_scores
from saccade.explanation.record import find_module
from saccade.explanation.scores import class_score
from saccade.models.build import create, find_config
from saccade.ops.image import to_original
from saccade.types import ImageBatch

SIZE = (224, 224)
AGREEMENT = 0.999
"""Correlation below which two maps are not called the same."""

REACH = {1: 2.0, 5: 8.0, 20: 20.0}
"""How many times as fast maps of so many classes should be."""

LEARNED = 600
"""Scenes that the detector learns from."""

Maps = Callable[[], Tensor]


class Plain(nn.Module):
    """Our classifier as the peers call models: a tensor in, logits out."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        return self.classifier(ImageBatch.of(pixels)).logits


# Class activation maps


def cam_rows(name: str, batch: int, repeats: int) -> list[Row]:
    """Grad-CAM, HiResCAM and LayerCAM against both peers, as far as they have them."""
    model, images = classifier(name), pictures(batch)
    rows = []
    for explainer in (GradCAM(), HiResCAM(), LayerCAM()):
        for count, reach in REACH.items():
            ours = cam_of(model, images, range(count), explainer)
            for peer, theirs in cam_peers(model, images, range(count), explainer.name).items():
                what = f"{explainer.name}, {name}, {batch} pictures, classes: {count}"
                rows.append(faster(what, peer, ours, theirs, reach, repeats if count == 1 else 2))
    return rows


def forward_rows(name: str, batch: int, repeats: int) -> list[Row]:
    """Grad-CAM of 20 classes over one forward pass."""
    model, images = classifier(name), pictures(batch)
    ours, forward = cam_of(model, images, range(20), GradCAM()), forward_of(model, images)
    times = compare({"ours": ours, "forward": forward}, repeats=repeats)
    what = f"gradcam, {name}, {batch} pictures, classes: 20"
    return [row(what, "our forward", times["ours"], times["forward"], times["ratio"], "<= 1.15")]


def cam_of(model: nn.Module, images: ImageBatch, labels: Sequence[int], explainer: Explainer) -> Maps:
    """Maps ``[T, B, 224, 224]`` of all classes, positive part."""
    spec = model.explain_spec()
    scores = [class_score(label) for label in labels]

    def run() -> Tensor:
        values = explainer(model, images, scores, spec).values.clamp_min(0)
        return to_original(values, SIZE, images.geometries[0])[0]

    return run


def cam_peers(model: nn.Module, images: ImageBatch, labels: Sequence[int], name: str) -> dict[str, Maps]:
    """The same maps by the peers, one class after the other, as their interfaces have it."""
    import pytorch_grad_cam
    from captum.attr import LayerAttribution, LayerGradCam, LayerGradientXActivation
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    plain = Plain(model)
    layer = find_module(model, model.explain_spec().layers["final"].path)
    explainer = {"gradcam": "GradCAM", "hirescam": "HiResCAM", "layercam": "LayerCAM"}[name]
    of_pgc = getattr(pytorch_grad_cam, explainer)(plain, [layer])

    def by_pgc() -> Tensor:
        maps = [of_pgc(images.pixels, [ClassifierOutputTarget(label)] * len(images)) for label in labels]
        return torch.from_numpy(np.stack(maps))

    def by_captum() -> Tensor:
        maps = []
        for label in labels:
            if name == "gradcam":
                evidence = LayerGradCam(plain, layer).attribute(images.pixels, label, relu_attributions=True)
            else:
                evidence = LayerGradientXActivation(plain, layer).attribute(images.pixels, label)
                evidence = evidence.sum(1, keepdim=True).clamp_min(0)
            maps.append(LayerAttribution.interpolate(evidence.detach(), SIZE, "bilinear")[:, 0])
        return torch.stack(maps)

    # Captum has no LayerCAM.
    return {"pytorch-grad-cam": by_pgc} | ({"captum": by_captum} if name != "layercam" else {})


# Relevance of a transformer


def relevance_rows(name: str, repeats: int) -> list[Row]:
    """Attention times gradient of 8 pictures; whether bfloat16 is harmless is tried before anything is timed."""
    model, images = classifier(name), pictures(8, model_size(name))
    spec, scores = model.explain_spec(), [class_score(3)]

    def ours() -> Tensor:
        return AttentionRelevance()(model, images, scores, spec).values[0]

    def published() -> Tensor:
        return torch.stack([published_relevance(model, images[index], 3) for index in range(len(images))])

    return [faster(f"relevance, {name}, 8 pictures", "published procedure", ours, published, 3.0, repeats)]


def published_relevance(model: nn.Module, image: ImageBatch, label: int) -> Tensor:
    """Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6, as their text has it: ``[h, w]`` of one picture.

    One backward pass from the logit with all parameters, then the whole matrix R of every token to every token.
    """
    spec, seen = model.explain_spec(), []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handles = [find_module(model, site.path).register_forward_hook(keep) for site in spec.attention]
    try:
        model.zero_grad()
        model(image).logits[0, label].backward()
    finally:
        for handle in handles:
            handle.remove()
    relevance = torch.eye(seen[0].shape[-1])
    for attention in seen:
        weighed = (attention.grad * attention.detach())[0].clamp_min(0).mean(0)
        relevance = relevance + weighed @ relevance
    site = spec.attention[0]
    start = relevance[0] if spec.has_class_token else relevance[site.num_prefix :].mean(0)
    canvas = (int(image.pixels.shape[-2]), int(image.pixels.shape[-1]))
    return start[site.num_prefix :].reshape(site.grid(canvas))


# Gradients at the pixels


def gradient_rows(name: str, repeats: int) -> list[Row]:
    """Integrated gradients with 50 points from the mean colour to the picture, captum as it is and at its best."""
    from captum.attr import IntegratedGradients as PeerIntegrated

    model, images = classifier(name), pictures(1)
    spec, peer = model.explain_spec(), PeerIntegrated(Plain(model))

    def by_captum(at_once: int | None) -> Tensor:
        return peer.attribute(
            images.pixels, images.pixels * 0, 3, n_steps=50, method="gausslegendre", internal_batch_size=at_once
        )

    def ours() -> Tensor:
        return IntegratedGradients(steps=50)(model, images, [class_score(3)], spec).values[0]

    with torch.no_grad():
        whole, nothing = (Plain(model)(pixels)[0, 3] for pixels in (images.pixels, images.pixels * 0))
    ways = {size: compare({"it": lambda size=size: by_captum(size)}, repeats=1)["it"] for size in (8, 16)}
    rows = []
    for at_once in (None, min(ways, key=ways.get)):
        what = f"integrated gradients, {name}, 1 picture, 50 points"
        told = "captum, as it is" if at_once is None else f"captum at its best: {at_once} points at a time"
        found = faster(what, told, ours, lambda at_once=at_once: by_captum(at_once).sum(1), 1.5, repeats)
        for column, maps in (("gap_ours", ours()), ("gap_peer", by_captum(at_once))):
            found[column] = float((maps.sum() - (whole - nothing)).abs() / (whole - nothing).abs())
        rows.append(found)
    return rows


# Random masks


def mask_rows(name: str, repeats: int, count: int) -> list[Row]:
    """RISE with the same masks, and RISE that stops at a stated error."""
    from smqtk_classifier.interfaces.classify_image import ClassifyImage
    from xaitk_saliency.impls.gen_classifier_conf_sal.rise_scoring import RISEScoring
    from xaitk_saliency.impls.gen_image_classifier_blackbox_sal.occlusion_based import PerturbationOcclusion

    canvas = model_size(name)
    model, picture = classifier(name), photograph(canvas)
    images, names = model.preprocess([picture]), [*model.classes.names]

    class BlackBox(ClassifyImage):
        """Our classifier as the peer asks it: pictures in, one dictionary of probabilities each."""

        def get_labels(self) -> list[str]:
            """Names of the classes."""
            return names

        def classify_images(self, img_iter: Iterable[np.ndarray]) -> Iterator[dict[str, float]]:
            """Probabilities, eight pictures at a time."""
            for part in chunks(img_iter, 8):
                with torch.no_grad():
                    logits = model(model.preprocess(part)).logits.numpy()
                yield from (dict(zip(names, one, strict=True)) for one in logits)

        def get_config(self) -> dict[str, Any]:
            """Nothing to tell."""
            return {}

    stack = PerturbationOcclusion(same_masks(count, 7, canvas), RISEScoring(p1=0.5))
    stack.fill = mean_colour(model)
    explainer, spec = RISE(num_masks=count), model.explain_spec()

    def ours() -> Tensor:
        return explainer(model, images, [class_score(3)], spec).values[0]

    def theirs() -> Tensor:
        return torch.from_numpy(stack(picture.permute(1, 2, 0).numpy(), BlackBox()))[3:4]

    # The peer adds up score times (mask - 0.5); the same sum of our scores shows that both saw the same pictures.
    masks = torch.from_numpy(same_masks(count, 7, canvas).perturb(np.empty(0)))
    parts = [part[None] for part in masks.split(8)]
    seen = masked_scores(model, images, baseline_pixels(model, images, "mean"), parts, [class_score(3)])
    by_hand = torch.einsum("m,mhw->hw", torch.cat([*seen], dim=-1)[0, 0], masks - 0.5)
    correlation = agreement_of(theirs(), by_hand[None])
    assert correlation >= AGREEMENT, f"the peer did not see the same pictures: correlation {correlation:.4f}"
    rows = [faster(f"RISE, {name}, {count} masks", "xaitk", ours, theirs, 2.0, repeats, is_compared=False)]
    rows[0]["correlation"] = correlation
    return [*rows, early_stop(name, model, images, count)]


def early_stop(name: str, model: nn.Module, images: ImageBatch, count: int) -> Row:
    """RISE with up to ten times as many masks that stops at an error of 0.2, against all of them."""
    spec, scores = model.explain_spec(), [class_score(3)]
    every, stopped = RISE(num_masks=10 * count), RISE(num_masks=10 * count, tolerance=0.2)
    times = compare(
        {"all": lambda: every(model, images, scores, spec), "stopped": lambda: stopped(model, images, scores, spec)},
        repeats=1,
        warmup=0,
    )
    found = stopped(model, images, scores, spec)
    error = float(found.error.max())
    what = f"RISE, {name}, stopped at error 0.2: {found.notes[0]}, error {error:.3f}"
    return row(what, f"all {10 * count} masks", times["stopped"], times["all"], times["ratio"], "error <= 0.2")


def object_rows(repeats: int, count: int) -> list[Row]:
    """D-RISE of one object with the same masks."""
    from smqtk_detection.interfaces.detect_image_objects import DetectImageObjects
    from smqtk_image_io.bbox import AxisAlignedBoundingBox
    from xaitk_saliency.impls.gen_detector_prop_sal.drise_scoring import DRISEScoring
    from xaitk_saliency.impls.gen_object_detector_blackbox_sal.occlusion_based import PerturbationOcclusion

    model, picture = detector_and_scene()
    names = [*model.classes.names]

    class BlackBox(DetectImageObjects):
        """Our detector as the peer asks it: pictures in, boxes with probabilities of all classes."""

        def detect_objects(self, img_iter: Iterable[np.ndarray]) -> Iterator[Iterator[tuple[Any, dict[str, float]]]]:
            """The twenty likeliest objects of every picture, one picture at a time as they are large."""
            for part in chunks(img_iter, 1):
                images = model.preprocess(part)
                with torch.no_grad():
                    outputs = model(images)
                    found = model.postprocess(outputs, images)[0]
                    scores = model.candidates(outputs, images)[0].scores[found.source].numpy()
                boxes = found.boxes.numpy()
                yield (
                    (AxisAlignedBoundingBox(box[:2], box[2:]), dict(zip(names, one, strict=True)))
                    for box, one in zip(boxes, scores, strict=True)
                )

        def get_config(self) -> dict[str, Any]:
            """Nothing to tell."""
            return {}

    subject = Subject(model)
    images = subject.model.preprocess([picture])
    with torch.no_grad():
        found = model.postprocess(model(images), images)[0]
        of = model.candidates(model(images), images)[0].scores[found.source[:1]].numpy()
    with torch.no_grad():
        question = ask(subject.model, subject.model(images), images, [(found, 0)], None)[0][0]
    explainer = DRISE(num_masks=count)

    def ours() -> Tensor:
        return explainer(subject.model, images, [question.score], subject.spec).values[0]

    stack = PerturbationOcclusion(same_masks(count, explainer.grid, (480, 640)), DRISEScoring())
    stack.fill = mean_colour(model)

    def theirs() -> Tensor:
        maps = stack(picture.permute(1, 2, 0).numpy(), found.boxes[:1].numpy(), of, BlackBox())
        return torch.from_numpy(maps)

    (told,) = explainer(subject.model, images, [question.score], subject.spec).notes
    # The peer compares all class scores and knows twenty candidates; ours the asked class and all candidates.
    return [faster(f"D-RISE, YOLO, {told}", "xaitk", ours, theirs, 2.0, repeats, is_compared=False)]


def detector_and_scene() -> tuple[Any, Tensor]:
    """``yolo_n`` after some minutes with drawn scenes, and a scene that it never saw.

    Of random weights every object is a near tie, and then no rounding is small enough.
    """
    scenes = SceneConfig(size=(480, 640), objects=(2, 5))
    splits: dict[str, Dataset] = {
        "train": SyntheticObjects(LEARNED, scenes, task="detection"),
        "val": SyntheticObjects(4, scenes, start=100_000, task="detection"),
    }
    source = DataSource(splits, splits["train"].classes, "synthetic scenes", "scenes")
    torch.manual_seed(0)
    overrides = {"selection.max_detections": 20, "selection.min_score": 0.0}
    model: Any = create("yolo_n", classes=source.classes.names, overrides=overrides)
    settings = {"epochs": 1, "batch_size": 4, "learning_rate": 2e-3, "ema_decay": 0.0, "workers": 0, "augment": {}}
    with tempfile.TemporaryDirectory() as folder:
        for _ in train(model, source, from_dict(TrainConfig, settings), out=Path(folder) / "run"):
            pass
    return model.eval(), splits["val"][0].image


def same_masks(count: int, grid: int, size: tuple[int, int]) -> Any:
    """The random masks of ours, for the peer."""
    from xaitk_saliency.interfaces.perturb_image import PerturbImage

    class Ours(PerturbImage):
        """Draws what RISE of ours draws."""

        def perturb(self, ref_image: np.ndarray) -> np.ndarray:
            """Masks ``[M, H, W]``."""
            draws = draw_masks(count, grid, 0.5, torch.Generator().manual_seed(0))
            parts = [draws.enlarged(start, min(8, count - start), size) for start in range(0, count, 8)]
            return torch.cat(parts).numpy()

        def get_config(self) -> dict[str, Any]:
            """Nothing to tell."""
            return {}

    return Ours()


def chunks(pictures: Iterable[np.ndarray], size: int) -> Iterator[list[Tensor]]:
    """Pictures ``[H, W, 3]`` as tensors ``[3, H, W]``, so many at a time."""
    part: list[Tensor] = []
    for picture in pictures:
        part.append(torch.from_numpy(picture).permute(2, 0, 1))
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


# What all of them share


def classifier(name: str) -> nn.Module:
    """A model with random weights, the same every time."""
    torch.manual_seed(0)
    return create(name, num_classes=1000).eval()


def model_size(name: str) -> tuple[int, int]:
    """The canvas of a model."""
    height, width = find_config(name).preprocess.size
    return height, width


def pictures(count: int, size: tuple[int, int] = SIZE) -> ImageBatch:
    """Noise on the canvas."""
    torch.manual_seed(0)
    return ImageBatch.of(torch.randn(count, 3, *size))


def photograph(size: tuple[int, int] = SIZE) -> Tensor:
    """Squares of 32 pixels in random colours, ``[3, H, W]`` uint8."""
    torch.manual_seed(0)
    coarse = torch.randint(0, 256, (3, size[0] // 32, size[1] // 32), dtype=torch.uint8)
    return coarse.repeat_interleave(32, -2).repeat_interleave(32, -1)


def mean_colour(model: nn.Module) -> list[int]:
    """What hidden pixels become, 0 to 255 per channel."""
    return [round(255 * share) for share in model.preprocess.mean]


def forward_of(model: nn.Module, images: ImageBatch) -> Callable[[], object]:
    """The forward pass without gradients."""

    def run() -> object:
        with torch.no_grad():
            return model(images)

    return run


def agreement_of(ours: Tensor, peer: Tensor) -> float:
    """The smallest correlation of two sets of maps ``[..., H, W]``; two blank maps are the same."""
    found = []
    for pair in zip(ours.detach().flatten(0, -3), peer.detach().flatten(0, -3), strict=True):
        flat = torch.stack([one.flatten() for one in pair]).double()
        is_blank = flat.amax(dim=1) - flat.amin(dim=1) <= 1e-9 * flat.abs().amax()
        found.append(float(is_blank.all()) if is_blank.any() else float(torch.corrcoef(flat)[0, 1]))
    return min(found)


def faster(
    what: str,
    peer: str,
    ours: Maps,
    theirs: Maps,
    reach: float,
    repeats: int,
    *,
    is_compared: bool = True,
) -> Row:
    """How many times as fast as the peer ours is; where the definitions are the same, after both gave the same maps."""
    correlation = agreement_of(ours(), theirs()) if is_compared else None
    assert correlation is None or correlation >= AGREEMENT, f"{what}: {peer} and ours correlate by {correlation:.4f}"
    times = compare({"peer": theirs, "ours": ours}, repeats=repeats, warmup=0 if is_compared else 1)
    found = row(what, peer, times["ours"], times["peer"], times["ratio"], f">= {reach:g}")
    found["correlation"] = "" if correlation is None else correlation
    print(f"{what}, {peer}: {times['ratio']:.2f} times as fast", flush=True)
    return found


def row(what: str, against: str, ours: float, other: float, ratio: float, reach: str) -> Row:
    """One line of the table."""
    empty = {"correlation": "", "gap_ours": "", "gap_peer": ""}
    return {"what": what, "against": against, "ours_s": ours, "other_s": other, "ratio": ratio, "reach": reach, **empty}


def main() -> None:
    """Compare, measure, print."""
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=2, help="pictures whose class activation maps are drawn")
    options.add_argument("--masks", type=int, default=160, help="random masks")
    options.add_argument("--model", default="resnet50", help="classifier of convolutions")
    options.add_argument("--transformer", default="vit_b16", help="classifier whose relevance is drawn")
    parts = ("cam", "forward", "relevance", "gradients", "masks", "objects")
    options.add_argument("--parts", nargs="*", choices=parts, default=parts)
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    rows: list[Row] = []
    if "cam" in chosen.parts:
        rows += cam_rows(chosen.model, chosen.batch, chosen.repeats)
    if "forward" in chosen.parts:
        rows += forward_rows(chosen.model, chosen.batch, chosen.repeats)
    if "relevance" in chosen.parts:
        rows += relevance_rows(chosen.transformer, chosen.repeats)
    if "gradients" in chosen.parts:
        rows += gradient_rows(chosen.model, chosen.repeats)
    if "masks" in chosen.parts:
        rows += mask_rows(chosen.model, chosen.repeats, chosen.masks)
    if "objects" in chosen.parts:
        rows += object_rows(chosen.repeats, chosen.masks)
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
