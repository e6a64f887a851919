"""Heat maps: evidence in the pixels of the original picture, with everything that is needed to judge and reproduce it.

h, w original picture · gh, gw grid of the attribution
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saccade.atomic import whole_file
from saccade.errors import InputError

if TYPE_CHECKING:
    from saccade.explanation.fired import Fired
    from saccade.explanation.verdict import Verdict


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Why a model gave one score to one picture.

    Attributes:
        map: ``[h, w]`` float32 in original pixels, in units of the method; zero where the model did not look.
        seen: ``[h, w]`` bool, False where the picture was cropped away before the model saw it.
        image: ``[3, h, w]`` uint8, the original picture.
        is_signed: whether negative values mean evidence against the score.
        is_class_agnostic: whether the map is the same whatever is asked.
        name: of the method.
        method: the explainer with its options.
        of: what is explained, in words ("sneaker", "sneaker rather than boot").
        score: value of the explained score.
        layer: layer that was read; None where it was the pixels.
        error: relative completeness gap or Monte-Carlo error; None where the method has neither.
        negative: share of the evidence that spoke against the score; None where unknown.
        blank: why the map is empty; None where it is not.
        verdict: how far the map can be trusted; None where it was not asked for.
        region: ``[h, w]`` bool, the pixels whose class is explained; None where it is that of the whole picture.
        fired: of an object, the cell, proposal or query that it came from; None elsewhere.
        manifest: how the map came about: model, versions, options.
        notes: one sentence per peculiarity.
    """

    map: Tensor
    seen: Tensor
    image: Tensor
    is_signed: bool
    is_class_agnostic: bool
    name: str
    method: str
    of: str
    score: float
    layer: str | None = None
    error: float | None = None
    negative: float | None = None
    blank: str | None = None
    verdict: Verdict | None = None
    region: Tensor | None = None
    fired: Fired | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What the map shows, for a caption; says where the method ignores the class or the map is blank."""
        if self.blank:
            return f"{self.of}: blank, because {self.blank}"
        if self.is_class_agnostic:
            return "what the model looked at (this method ignores the class)"
        return self.of

    @property
    def peak(self) -> float:
        """Largest absolute value."""
        return float(self.map.abs().max())

    def display(self, scale: float | None = None) -> Tensor:
        """The map for showing, ``[h, w]``: divided by ``scale`` and clamped to [-1, 1] or [0, 1].

        Args:
            scale: value that becomes 1; None: the largest absolute value of this map. Give the maps of several pictures
                one scale to make them comparable.
        """
        scale = self.peak if scale is None else scale
        if scale <= 0:
            return torch.zeros_like(self.map)
        return (self.map / scale).clamp(-1 if self.is_signed else 0, 1)

    @property
    def outlined(self) -> Tensor:
        """The picture ``[3, h, w]`` uint8, with a line around the region that is asked about."""
        from saccade import render

        return self.image if self.region is None else render.outlined(self.image, self.region)

    def overlay(self, scale: float | None = None) -> Tensor:
        """The map drawn over the picture, ``[3, h, w]`` uint8; crossed out where its verdict is "failed".

        Args:
            scale: value drawn at full strength; None: that beyond which a tenth of the evidence lies.
        """
        from saccade import render  # matplotlib's colour maps are loaded only when something is drawn

        is_failed = self.verdict is not None and self.verdict.status == "failed"
        drawn: Tensor = render.overlay(self.outlined, self.map, self.is_signed, scale=scale, is_failed=is_failed)
        return drawn

    def save(self, path: str | Path, scale: float | None = None) -> Path:
        """Write the overlay as a picture; the suffix chooses the format.

        A PNG file carries everything about the map as JSON in its text field ``saccade``.

        Raises:
            InputError: where the suffix is no picture format.
            RunError: where the file cannot be written.
        """
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        path = Path(path)
        if path.suffix.lower() not in Image.registered_extensions():
            raise InputError(f"no picture format has the suffix {path.suffix!r}", where=str(path), expected=".png")
        picture = Image.fromarray(self.overlay(scale).permute(1, 2, 0).cpu().numpy())
        kind = Image.registered_extensions()[path.suffix.lower()]
        story: dict[str, Any] = {}
        if kind == "PNG":
            story["pnginfo"] = PngInfo()
            story["pnginfo"].add_text("saccade", json.dumps(self.about() | {"scale": scale}))
        with whole_file(path) as temporary:
            picture.save(temporary, format=kind, **story)
        return path

    def save_array(self, path: str | Path) -> Path:
        """Write the numbers: ``.npy`` the map alone; ``.npz`` the map, ``seen`` and a JSON text ``about``.

        Where the query of an object looked at points, ``.npz`` has these too: ``points`` and ``point_weights``.

        Raises:
            InputError: where the suffix is another one.
            RunError: where the file cannot be written.
        """
        path = Path(path)
        array = self.map.cpu().numpy()
        if path.suffix == ".npy":
            with whole_file(path) as temporary:
                np.save(temporary, array)
        elif path.suffix == ".npz":
            about = json.dumps(self.about())
            points = {} if self.fired is None else self.fired.arrays()
            with whole_file(path) as temporary:
                np.savez_compressed(temporary, map=array, seen=self.seen.cpu().numpy(), about=about, **points)
        else:
            raise InputError(f"an array cannot be saved as {path.suffix!r}", where=str(path), expected=".npy or .npz")
        return path

    def about(self) -> dict[str, Any]:
        """Everything but the arrays, as plain data for JSON."""
        verdict = self.verdict
        judged: dict[str, Any] | None = None
        if verdict is not None:
            judged = {"status": verdict.status, "reasons": list(verdict.reasons), "figures": dict(verdict.figures)}
            judged["cost_forwards"] = verdict.cost_forwards
        names = (
            "name",
            "method",
            "of",
            "score",
            "layer",
            "error",
            "negative",
            "blank",
            "is_signed",
            "is_class_agnostic",
        )
        facts = {name: getattr(self, name) for name in names}
        fired = None if self.fired is None else self.fired.about()
        return facts | {"notes": list(self.notes), "fired": fired, "verdict": judged, "manifest": dict(self.manifest)}


def shared_scale(heatmaps: Sequence[Heatmap]) -> float:
    """The largest absolute value of several maps, which makes their pictures comparable as ``scale``.

    Raises:
        InputError: where there is none, or the maps are of different methods, models or layers, whose units differ.
    """
    if not heatmaps:
        raise InputError("there are no maps to share a scale", expected="at least one")
    for what, plural in (("model", "models"), ("weights", "weights"), ("method", "methods"), ("layer", "layers")):
        several = sorted({str(heat.manifest.get(what)) for heat in heatmaps})
        if len(several) > 1:
            raise InputError(
                f"maps of different {plural} share no scale: {', '.join(several)}",
                where="scale",
                expected="maps of one model, method and layer",
            )
    return max(heat.peak for heat in heatmaps)
