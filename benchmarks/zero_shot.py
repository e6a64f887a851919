"""CLIP ViT-B/32 against open_clip with the same weights, 1,000 classes by 80 templates, and search in 100,000 vectors.

The weights are random, because none are to be had here: speed does not depend on them, and both sides must give the
same vectors. Answers are another matter: a faster copy is admitted only where its answers agree, so the classes are the
directions in which drawn scenes differ most, scaled until the answers are as decisive as those of a trained model.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from measure import Row, compare, parser, report
from saccade.data.synthetic import SceneConfig, SyntheticClassification
from saccade.engine import text_cache
from saccade.engine.checkpoint import save_model
from saccade.engine.predict import Predictor, ready, run
from saccade.engine.retrieval import Entry, PictureIndex
from saccade.models.build import adopt
from saccade.models.clip import Clip
from saccade.models.zero_shot import ZeroShotClassifier
from saccade.text.prompts import templates
from saccade.types import ImageBatch
from saccade.weights.open_clip import publish

NAME = "ViT-B-32-quickgelu"
CLASSES = 8
SHARPNESS = 8.0
"""Largest spread of the logits of one picture."""


def models() -> tuple[Any, Clip]:
    """The peer with random weights, and ours with the same."""
    torch.manual_seed(0)
    peer = open_clip.create_model(NAME, pretrained=None).eval()
    model = adopt(publish(peer, NAME)).eval()
    assert isinstance(model, Clip)
    return peer, model


def towers(peer: Any, model: Clip, repeats: int, batch: int) -> list[Row]:
    """Both forward passes in float32."""
    pixels = torch.randn(batch, 3, 224, 224)
    images = ImageBatch.of(pixels)
    words = [f"a photo of a {shape} in front of number {number}" for shape in ("ring", "star") for number in range(16)]
    ids = model.tokenizer(words).ids
    theirs = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))

    def both(ours: Callable[[], Tensor], other: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
        return {"ours": torch.inference_mode()(ours), "open_clip": torch.inference_mode()(other)}

    image = both(lambda: model.encode_images(images), lambda: peer.encode_image(pixels, normalize=True))
    text = both(lambda: model.encode_text(words), lambda: peer.encode_text(theirs, normalize=True))
    return [
        _row(f"image tower, {batch} pictures", image, repeats),
        _row(f"text tower, {len(words)} texts, tokens included", text, repeats, ", filled up to 77 tokens"),
    ]


def _row(what: str, ways: dict[str, Callable[[], Tensor]], repeats: int, told: str = "") -> Row:
    gap = float((ways["ours"]() - ways["open_clip"]()).abs().max())
    times = compare(ways, repeats)
    return {
        "what": what,
        "ours_s": times["ours"],
        "other_s": times["open_clip"],
        "ratio": times["ratio"],
        "reach": "<= 1.0",
        "remark": f"other: open_clip, eager float32{told}; largest difference {gap:.1e}",
    }


def predict(peer: Any, model: Clip, repeats: int, batch: int) -> Row:
    """A zero-shot classifier as ``saccade.predict`` runs it, against open_clip in eager float32 on the same pixels."""
    scenes = SyntheticClassification(2 * batch, SceneConfig(size=(224, 224)), seed=0)
    pictures = [scenes[index].image for index in range(len(scenes))]
    with torch.inference_mode():
        vectors = torch.cat([model.encode_images(model.preprocess(pictures[i : i + 16])) for i in range(0, batch, 16)])
    # Random towers put all pictures into one place: the directions in which they differ are what tells them apart.
    directions = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False).Vh[: CLASSES // 2]
    weight = torch.cat([directions, -directions])
    classifier = model.with_class_embeddings([f"class {k}" for k in range(CLASSES)], weight)
    spread = float((vectors @ weight.T).std(0).max())
    classifier.logit_scale.fill_(SHARPNESS / spread)
    predictor = Predictor(classifier)
    list(predictor.stream(pictures[:32]))
    plan = predictor.plan
    assert plan is not None
    images = ready(classifier, pictures[-batch:])
    assert isinstance(images, ImageBatch)
    scale = classifier.logit_scale

    def theirs() -> Tensor:
        with torch.inference_mode():
            return (scale * peer.encode_image(images.pixels, normalize=True) @ weight.T).softmax(-1)

    times = compare({"open_clip": theirs, "ours": lambda: run(predictor._runner, classifier, images)}, repeats)
    ours = torch.stack([one.scores for one in run(predictor._runner, classifier, images)])  # type: ignore[union-attr]
    same = float((ours.argmax(1) == theirs().argmax(1)).float().mean())
    rejected = f"; not taken: {'; '.join(plan.rejected)}" if plan.rejected else ""
    return {
        "what": f"saccade.predict, {batch} pictures",
        "ours_s": times["ours"],
        "other_s": times["open_clip"],
        "ratio": times["ratio"],
        "reach": ">= 2.5",
        "remark": f"ours runs: {plan.name}; {same:.0%} of the answers the same{rejected}",
    }


def class_vectors(model: Clip, classes: int, measured: int) -> list[Row]:
    """The text side of a zero-shot evaluation: every class in 80 templates, for the first time and for the second.

    Each class costs the same, so a part of them tells the time of all.
    """
    chosen = templates("imagenet80")
    names = [f"kind of thing number {number}" for number in range(classes)]
    part = names[:measured]
    start, worked = time.perf_counter(), time.process_time()
    vectors = model.class_embeddings(part, chosen)
    took, worked = time.perf_counter() - start, time.process_time() - worked
    told = "all measured" if len(part) == classes else f"{len(part)} classes were measured, the others reckoned"
    first = {
        "what": f"{classes} classes x {len(chosen)} templates, the first time",
        "ours_s": took * classes / len(part),
        "other_s": "",
        "ratio": "",
        "reach": "told",
        "remark": f"float32; {told}; of processor {worked * classes / len(part):.0f} s",
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_model(model, file)
        # What the first time leaves beside the weights; which vectors they are changes nothing about reading them.
        kept = vectors[torch.arange(classes) % len(part)]
        place = text_cache.place_of(file, names, chosen)
        assert place is not None
        text_cache.write(place, kept)
        start = time.perf_counter()
        classifier = text_cache.classifier_of(model, names, chosen, file)
        again = time.perf_counter() - start
    assert isinstance(classifier, ZeroShotClassifier)
    assert torch.equal(classifier.weight, kept)
    return [
        first,
        {
            **first,
            "what": f"{classes} classes x {len(chosen)} templates, again",
            "ours_s": again,
            "remark": "from what is kept beside the weights",
        },
    ]


def search(repeats: int, count: int = 100_000, width: int = 512) -> Row:
    """One question to an index of 100,000 pictures, against reading its vectors once."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)
    index = PictureIndex(Path(), "", tuple(Entry(f"{n}.jpg", 0, 0) for n in range(count)), vectors)
    question = vectors[:1].clone()
    assert index.search(question, 10)[0][0].path == Path("0.jpg")
    worked: list[float] = []

    def ours() -> None:
        start = time.process_time()
        index.search(question, 10)
        worked.append(time.process_time() - start)

    times = compare({"ours": ours, "floor": lambda: vectors.sum()}, repeats)
    return {
        "what": f"search in {count:,} x {width}",
        "ours_s": times["ours"],
        "other_s": times["floor"],
        "ratio": times["ratio"],
        "reach": "<= 0.05 s",
        "remark": f"other: adding up the same {vectors.nbytes / 1e6:.0f} MB; 10 best, exact; "
        f"of processor {statistics.median(worked) * 1e3:.0f} ms",
    }


def main() -> list[Row]:
    """Measure, print, save."""
    options = parser(__doc__ or "")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--classes", type=int, default=1000)
    options.add_argument("--measured", type=int, default=10, help="how many of the classes are timed")
    options.set_defaults(repeats=5)
    options.add_argument("--parts", nargs="+", default=["towers", "predict", "classes", "search"])
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    rows: list[Row] = []
    if set(given.parts) - {"search"}:
        peer, model = models()
        rows += towers(peer, model, given.repeats, given.batch) if "towers" in given.parts else []
        rows += [predict(peer, model, given.repeats, given.batch)] if "predict" in given.parts else []
        rows += (
            class_vectors(model, given.classes, min(given.measured, given.classes)) if "classes" in given.parts else []
        )
    rows += [search(max(given.repeats, 15))] if "search" in given.parts else []
    report(rows, given.json)
    return rows


if __name__ == "__main__":
    main()
