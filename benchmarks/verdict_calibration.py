"""Where the lines of the verdict are drawn, and how often it is right on networks with known ground truth.

Run ``python benchmarks/verdict_calibration.py``. Small networks of every task (``calibration_nets.py``) are trained on
drawn scenes, of which it is known which pixels decide, and explained on held-out scenes that they get right. Others are
trained on scenes where only a planted sign gives the class away. Others know nothing: fresh weights, or trained ones
shuffled. Their maps are judged as ``saccade explain`` judges them, and counted.

Networks of even seeds are there to draw the lines by, those of odd seeds to report on, those of ``--first 4`` to try
both on; no picture is in two of them. A map is called good where the network is right, the method is no control, and
the deciding pixels hold at least twice the share of the evidence that chance would put there. Intervals are Wilson's,
95 %; maps of one network are not independent of each other, so the true ones are somewhat wider.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration_nets import FAMILIES, NAMES, Family, Scene, explainable, kept
from measure import Row, machine, table
from saccade.errors import SaccadeError
from saccade.explanation.attribution import Attribution, Explainer
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.faithfulness import energy_inside
from saccade.explanation.gradients import Gradient
from saccade.explanation.perturbation import DRISE
from saccade.explanation.questions import Question
from saccade.explanation.rules import Lines, rule
from saccade.explanation.scramble import scrambled
from saccade.explanation.verdict import VerdictConfig
from saccade.ops.boxes import box_iou
from saccade.studies.intervals import hit_interval, picture_interval
from saccade.types import ImageBatch

NEAR = 5
"""Pixels around an object that belong to what decides about it: its border and what it stands on."""
GOOD = 2.0
"""Times the share of the evidence that chance would put on the deciding pixels, for a map to be called good."""
ON_SIGN = 5.0
"""The same for a planted sign to count as found."""
SURE = 0.5
"""Least score of a detection that is explained."""


@dataclass(frozen=True)
class Noise:
    """A control: a map drawn at random, another for every model, so that only the hiding games can find it out."""

    name: ClassVar[str] = "noise"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = False
    is_costly: ClassVar[bool] = True

    def __call__(self, model: nn.Module, images: ImageBatch, scores: Sequence[Any], spec: Any) -> Attribution:
        """Uniform noise on 7 x 7 cells."""
        seed = int(images.pixels.double().abs().sum() * 1000) % 2**31
        shape = (len(scores), len(images), 7, 7)
        return Attribution(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))


@dataclass(frozen=True)
class Inverse:
    """A control: the gradient upside down, so that what matters least comes first."""

    name: ClassVar[str] = "inverse"
    is_signed: ClassVar[bool] = False
    is_class_agnostic: ClassVar[bool] = False

    def __call__(self, model: nn.Module, images: ImageBatch, scores: Sequence[Any], spec: Any) -> Attribution:
        """Its largest value, less its values."""
        values = F.avg_pool2d(Gradient()(model, images, scores, spec).values, 5, 1, 2)
        return Attribution(values.amax(dim=(2, 3), keepdim=True) - values)


CONTROLS: dict[str, Explainer] = {"noise": Noise(), "inverse": Inverse()}
METHODS: dict[str, dict[str, str | Explainer]] = {
    "convolutions": {name: name for name in ("gradcam", "hirescam", "integrated_gradients", "occlusion")},
    "transformer": {name: name for name in ("relevance", "integrated_gradients", "occlusion")},
    "semantic": {name: name for name in ("auto", "gradient", "occlusion")},
    "objects": {"auto": "auto", "gradient": "gradient", "drise": DRISE(num_masks=200)},
}
NEGATIVE: dict[str, dict[str, str | Explainer]] = {"convolutions": {"guided_backprop": "guided_backprop"}}
"""Shown, but neither good nor bad: the methods that are known to mislead."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One question about one scene.

    Attributes:
        kind: class, region, side, mask.
        of: as ``explain`` takes it.
        truth: ``[h, w]`` bool, the pixels that decide.
    """

    kind: str
    of: Question
    truth: Tensor


def methods_of(family: Family) -> dict[str, str | Explainer]:
    """What is tried on a family, controls included."""
    kind = family.name.split()[0] if family.task == "classification" else family.task
    return {**METHODS[kind], **NEGATIVE.get(kind, {}), **CONTROLS}


def questions(family: Family, subject: Subject, scene: Scene, *, is_right: bool, is_marked: bool) -> list[Asked]:
    """What is asked about a scene; of networks that learned something only where they are right.

    Args:
        family: of the network.
        subject: the network.
        scene: the scene.
        is_right: whether the network has to be right.
        is_marked: whether a sign decides, and not the object.
    """
    model: Any = subject.model
    images = model.preprocess([scene.image])
    with torch.no_grad():
        outputs = model(images)
    decisive = scene.signs if is_marked else scene.masks
    if family.task == "classification":
        is_so = int(outputs.argmax(1)) == int(scene.labels[0])
        return [Asked("class", None, decisive[0])] if is_so or not is_right else []
    if family.task == "semantic":
        return [_region(outputs, scene, decisive)] if is_right else [Asked("region", None, scene.masks.any(0))]
    return _objects(model, outputs, images, scene, decisive, is_right=is_right)


def _region(outputs: Any, scene: Scene, decisive: Tensor) -> Asked:
    """The largest object whose pixels are mostly labelled right, and of them those that are."""
    found = outputs.logits.argmax(1)[0, : scene.image.shape[-2], : scene.image.shape[-1]]
    rights = [mask & (found == label + 1) for label, mask in zip(scene.labels.tolist(), scene.masks, strict=True)]
    shares = [float(right.sum()) / float(mask.sum()) for right, mask in zip(rights, scene.masks, strict=True)]
    best = max(range(len(shares)), key=lambda index: shares[index])
    label = int(scene.labels[best])
    same = [index for index, other in enumerate(scene.labels.tolist()) if other == label]
    truth = torch.stack([decisive[index] for index in same]).any(0)
    is_signed = not torch.equal(decisive, scene.masks)
    return Asked("region", NAMES[label], truth if is_signed else wider(truth))


def _objects(
    model: Any, outputs: Any, images: ImageBatch, scene: Scene, decisive: Tensor, *, is_right: bool
) -> list[Asked]:
    """The likeliest object that is right, asked in every way that the model can be."""
    found = model.detections(outputs, images)[0]
    for index in range(min(len(found), 10)):
        which = 0
        if is_right:
            overlap = box_iou(found.boxes[index : index + 1].float(), scene.boxes)[0]
            which = int(overlap.argmax())
            is_found = float(overlap[which]) > 0.5 and int(found.labels[index]) == int(scene.labels[which])
            if not is_found or float(found.scores[index]) < SURE:
                continue
        mask, sign = scene.masks[which], decisive[which]
        box = torch.zeros_like(mask)
        left, top, right, bottom = [int(place) for place in scene.boxes[which].tolist()]
        box[top:bottom, left:right] = True
        is_signed = not torch.equal(mask, sign)
        asked = [Asked("box", f"box:{index}", sign if is_signed else wider(mask))]
        if not is_signed:
            asked += [Asked("side", f"box:{index}/{side}", wider(box)) for side in ("left", "bottom")]
            asked += [Asked("mask", f"mask:{index}", wider(box))] if found.masks is not None else []
        return asked
    return []


def wider(mask: Tensor) -> Tensor:
    """A region and what is near it."""
    return F.max_pool2d(mask[None, None].float(), 2 * NEAR + 1, 1, NEAR)[0, 0] > 0


def examine(family: Family, model: Any, scenes: Iterator[Scene], count: int, kind: str, seed: int) -> list[Row]:
    """Explain and judge until ``count`` scenes gave an answer: one row of figures for each map."""
    subject = Subject(explainable(family, model))
    is_random, is_marked = kind.startswith("random"), kind == "marked"
    rows: list[Row] = []
    answered = 0
    for scene in scenes:
        asked = questions(family, subject, scene, is_right=not is_random, is_marked=is_marked)
        if not asked:
            continue
        for name, method in methods_of(family).items():
            try:
                heats = explain_batch(subject, [scene.image], [one.of for one in asked], ExplainOptions(method=method))
            except SaccadeError as error:
                if not is_random:
                    raise
                # A network that knows nothing may find nothing to be asked about.
                print(f"  {family.name}, {kind}, {name}: {error}", flush=True)
                continue
            for one, heat in zip(asked, heats[0], strict=True):
                assert heat.verdict is not None
                values = heat.map.abs() if one.kind == "side" else heat.map
                inside, area = energy_inside(values, one.truth)
                rows.append(
                    {
                        "family": family.name,
                        "kind": kind,
                        "seed": seed,
                        "question": one.kind,
                        "method": name,
                        "is_agnostic": heat.is_class_agnostic,
                        "inside": inside,
                        "area": area,
                        "is_blank": heat.blank is not None,
                        "status": heat.verdict.status,
                        "reason": heat.verdict.reasons[0],
                        "cost": heat.verdict.cost_forwards,
                        "figures": dict(heat.verdict.figures),
                    }
                )
        answered += 1
        if answered == count:
            break
    return rows


def held_out(family: Family, seed: int, *, is_marked: bool) -> Iterator[Scene]:
    """Scenes that no network was trained on and no other seed is judged on."""
    for index in range(400):
        yield family.scene(50_000_000 + 10_000 * seed + index, is_marked=is_marked)


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        seeds: of the networks of each kind.
        pictures: scenes for each network.
        random: networks that know nothing, for each seed.
        networks: where trained networks are kept; None: nowhere.
    """

    seeds: range
    pictures: int
    random: int
    networks: Path | None


def run(families: Sequence[Family], sizes: Sizes, keep: Callable[[list[Row]], None]) -> list[Row]:
    """All rows of the study; what is there is kept after each network."""
    rows: list[Row] = []
    pictures, random = sizes.pictures, sizes.random
    for seed in sizes.seeds:
        for family in families:
            began = time.perf_counter()
            model = kept(sizes.networks, family, seed, is_marked=False)
            rows += examine(family, model, held_out(family, seed, is_marked=False), pictures, "trained", seed)
            for number in range(random // 4):
                # Two networks are shuffled in every way, with other dice each time.
                for extent in ("all", "rows"):
                    other = scrambled(model, extent, 100 * seed + number)  # type: ignore[arg-type]
                    one = held_out(family, 100 + 1000 * seed + number, is_marked=False)
                    rows += examine(family, _willing(other), one, 1, f"random, {extent} shuffled", seed)
            rows += _of_fresh(family, seed, random)
            if family.reads_signs:
                marked = kept(sizes.networks, family, seed, is_marked=True)
                rows += examine(family, marked, held_out(family, seed, is_marked=True), pictures, "marked", seed)
            keep(rows)
            print(f"{family.name}, seed {seed}: {len(rows)} maps, {time.perf_counter() - began:.0f} s", flush=True)
    return rows


def _of_fresh(family: Family, seed: int, count: int) -> list[Row]:
    rows = []
    for number in range(count // 2):
        torch.manual_seed(10_000 + 1000 * seed + number)
        one = held_out(family, 200 + 1000 * seed + number, is_marked=False)
        rows += examine(family, _willing(family.build().eval()), one, 1, "random, fresh", seed)
    return rows


def _willing(model: Any) -> Any:
    """A detector names objects even where it is sure of none."""
    for part in model.modules():
        if hasattr(part, "selection"):
            part.selection = replace(part.selection, min_score=0.0, max_detections=10)
        if hasattr(part, "config") and hasattr(part.config, "selection"):
            part.config = replace(part.config, selection=replace(part.config.selection, min_score=0.0))
    return model


# --- counting


GROUPS = ("lines drawn on", "held out", "never looked at")


def group_of(seed: int) -> str:
    """What a network is there for; those from seed 4 on were trained after the lines were drawn."""
    return GROUPS[2] if seed >= 4 else GROUPS[seed % 2]


def is_good(row: Row) -> bool:
    """A map that is known to show what decides."""
    is_method = row["method"] not in {*CONTROLS, "guided_backprop"}
    return row["kind"] == "trained" and is_method and row["inside"] >= GOOD * row["area"]


def judged(row: Row, lines: Lines) -> str:
    """The status that a row gets where the lines are drawn like this."""
    return "failed" if row["is_blank"] else rule(row["figures"], lines, is_class_agnostic=row["is_agnostic"]).status


def told(hits: int, count: int) -> str:
    """A share with its interval."""
    if not count:
        return "none"
    found = hit_interval([1.0] * hits + [0.0] * (count - hits))
    return f"{hits}/{count} = {hits / count:.1%} ({found.low:.1%} to {found.high:.1%})"


def counts(rows: Sequence[Row], lines: Lines) -> list[Row]:
    """One line per task and question: what was reached."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["family"], row["question"]), []).append(row)
    found = [_line(family, question, members, lines) for (family, question), members in groups.items()]
    return [*found, _line("all", "all", rows, lines)]


def _line(family: str, question: str, rows: Sequence[Row], lines: Lines) -> Row:
    def share(chosen: Sequence[Row], test: Callable[[Row], bool]) -> str:
        return told(sum(map(test, chosen)), len(chosen))

    def has_failed(row: Row) -> bool:
        return judged(row, lines) == "failed"

    signs = [r for r in rows if r["kind"] == "marked" and r["method"] not in {*CONTROLS, "guided_backprop"}]
    return {
        "network": family,
        "question": question,
        "random called failed": share([row for row in rows if row["kind"].startswith("random")], has_failed),
        "sign found": share(signs, lambda row: row["inside"] >= ON_SIGN * row["area"] and not has_failed(row)),
        "good called failed": share([row for row in rows if is_good(row)], has_failed),
        "good called supported": share(
            [row for row in rows if is_good(row)], lambda row: judged(row, lines) == "supported"
        ),
        "noise called supported": share(
            [row for row in rows if row["kind"] == "trained" and row["method"] == "noise"],
            lambda row: judged(row, lines) == "supported",
        ),
        "inverse called failed": share(
            [row for row in rows if row["kind"] == "trained" and row["method"] == "inverse"], has_failed
        ),
        "guided_backprop called failed": share(
            [row for row in rows if row["kind"] == "trained" and row["method"] == "guided_backprop"], has_failed
        ),
    }


def by_method(rows: Sequence[Row], lines: Lines) -> list[Row]:
    """One line per network, question and method, of all trained networks: what the choice of a usual method rests on.

    Intervals are of the bootstrap over maps, 95 %.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    signs: dict[tuple[str, str, str], list[bool]] = {}
    for row in rows:
        key = (row["family"], row["question"], row["method"])
        if row["kind"] == "trained" and row["method"] not in CONTROLS:
            groups.setdefault(key, []).append(row)
        elif row["kind"] == "marked":
            is_found = row["inside"] >= ON_SIGN * row["area"] and judged(row, lines) != "failed"
            signs.setdefault(key, []).append(is_found)
    found = []
    for key, members in groups.items():
        statuses = [judged(row, lines) for row in members]
        hits = signs.get(key, [])
        found.append(
            {
                **dict(zip(("network", "question", "method"), key, strict=True)),
                "evidence on what decides": _mean([row["inside"] for row in members], "%"),
                "its share of the area": f"{sum(row['area'] for row in members) / len(members):.0%}",
                "advantage": _mean([row["figures"]["advantage"] for row in members], ""),
                "supported, weak, failed": " ".join(
                    str(statuses.count(status)) for status in ("supported", "weak", "failed")
                ),
                "signs found": f"{sum(hits)} of {len(hits)}" if hits else "-",
            }
        )
    return found


def _mean(values: Sequence[float], unit: str) -> str:
    found = picture_interval(values)
    ends = [f"{value:.0%}" if unit else f"{value:.2f}" for value in (found.mean, found.low, found.high)]
    return "{} ({} to {})".format(*ends)


def written(path: Path, data: Any) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def main() -> None:
    """Run the study, print the tables, save the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", default=[family.name for family in FAMILIES])
    parser.add_argument("--seeds", type=int, default=4, help="networks of each kind; an even number")
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    parser.add_argument("--pictures", type=int, default=12, help="held-out scenes for each network")
    parser.add_argument("--random", type=int, default=12, help="networks that know nothing, for each seed")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "verdict_calibration.json")
    parser.add_argument("--networks", type=Path, default=None, help="keep trained networks here, and use those there")
    parser.add_argument("--rows", type=Path, default=None, help="keep every row here, or count those of an earlier run")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    if chosen.rows is not None and chosen.rows.is_file():
        rows = json.loads(chosen.rows.read_text(encoding="utf-8"))
    else:
        named = {family.name: family for family in FAMILIES}
        families = [named[name] for name in chosen.families]
        seeds = range(chosen.first, chosen.first + chosen.seeds)
        sizes = Sizes(seeds, chosen.pictures, chosen.random, chosen.networks)
        rows = run(families, sizes, lambda found: None if chosen.rows is None else written(chosen.rows, found))
    lines = Lines()
    found: list[Row] = []
    for group in GROUPS:
        part = [row for row in rows if group_of(row["seed"]) == group]
        found += [{"networks": group, **row} for row in counts(part, lines)] if part else []
    print(table(found))
    print(f"\n{table(by_method(rows, lines))}")
    saved = {
        "machine": machine(),
        "rows": found,
        "largest_cost": max(row["cost"] for row in rows),
        "seconds": time.perf_counter() - began,
        "config": asdict(VerdictConfig()),
    }
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    written(chosen.json, saved)
    print(f"largest cost {saved['largest_cost']} pictures; {saved['seconds']:.0f} s; {chosen.json}")


if __name__ == "__main__":
    main()
