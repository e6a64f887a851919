"""Selective search: boxes that may hold an object, from the pixels alone.

Uijlings et al. 2013, "Selective Search for Object Recognition", IJCV 104 (the method of R-CNN's proposals, arXiv
1311.2524). A picture is cut into many small parts (Felzenszwalb and Huttenlocher 2004, by scikit-image); the two most
similar neighbours are joined, over and over, until one part is left. The box around every part that ever was is a
proposal. Similarity is of colour, texture, size, and of how well two parts fill their common box. Several colour
spaces, scales and measures give several hierarchies, whose proposals are put together.

Differs from the paper: texture comes of Gaussian derivatives of each channel in 8 directions with 10 bins up to the
picture's strongest (there up to a fixed one); the random numbers that mix the ranks of the hierarchies are the same in
every call, so that the same pixels give the same boxes; the whole picture is always the first proposal.

Cost, on one core: 0.035 s for one hierarchy at 128 x 128 pixels and 0.5 s at 500 x 375; the default's eight take 1.9 s
for a photograph of 640 x 480, which is reduced to that.

h, w picture · N parts · R proposals · C channels
"""

from __future__ import annotations

import hashlib
import heapq
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError, InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Colour = Literal["rgb", "hsv", "lab", "rgi", "grey"]
Measure = Literal["colour", "texture", "size", "fill"]

COLOUR_BINS = 25
DIRECTIONS = 8
TEXTURE_BINS = 10


@dataclass(frozen=True, kw_only=True)
class SelectiveSearch(Config):
    """How parts of a picture are found and joined; the default is the paper's "fast" setting, 8 hierarchies."""

    colours: tuple[Colour, ...] = ("hsv", "lab")
    """Colour spaces; ``rgi`` is red and green as shares of the sum, and intensity."""
    scales: tuple[float, ...] = (50.0, 100.0)
    """How readily pixels are joined to begin with, for values in [0, 255]: a larger one gives larger parts."""
    measures: tuple[tuple[Measure, ...], ...] = (("colour", "texture", "size", "fill"), ("texture", "size", "fill"))
    """What counts as similar; each set of measures gives hierarchies of its own."""
    side: int = 500
    """Larger pictures are reduced until their longer side is of so many pixels."""
    blur: float = 0.8
    """Standard deviation of the smoothing before the first cut, in pixels."""
    min_area: int = 30
    """Pixels of the smallest part of the first cut."""
    min_side: float = 6.0
    """Shortest side of a proposal, in pixels of the reduced picture."""
    limit: int = 1000
    """Most proposals of one picture, the highest ranks first."""

    def __post_init__(self) -> None:
        if not self.colours or not self.scales or not self.measures or not all(self.measures):
            raise ConfigError("colours, scales or measures is empty", where="search", expected="one or more of each")
        if min(self.side, self.min_area, self.limit) < 1 or min(self.blur, self.min_side) < 0:
            raise ConfigError("side, blur, min_area, min_side or limit is out of range", where="search")
        if min(self.scales) <= 0:
            raise ConfigError(f"the scales are {self.scales}", where="search.scales", expected="positive numbers")

    def __call__(self, picture: Tensor) -> Tensor:
        """Proposals ``[R, 4]`` float32 xyxy of a picture, best first.

        Args:
            picture: ``[3, h, w]`` uint8 RGB, on any device.

        Raises:
            InputError: where the picture is anything else.
        """
        if picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype != torch.uint8:
            got = f"{tuple(picture.shape)} {picture.dtype}"
            raise InputError(f"the picture is {got}", expected="[3, h, w] uint8 RGB")
        if not picture.numel():
            return torch.zeros(0, 4)
        height, width = int(picture.shape[1]), int(picture.shape[2])
        values = _reduced(picture, self.side)
        boxes = _ranked(*self._hierarchies(values), self.min_side)[: self.limit]
        factors = np.array([width / values.shape[1], height / values.shape[0]] * 2)
        return torch.from_numpy((boxes * factors).astype(np.float32))

    def _hierarchies(self, values: Floats) -> tuple[Ints, Floats]:
        """Boxes of all parts of all hierarchies, and their ranks: low is good, 0 is the whole picture."""
        mix = np.random.default_rng(0)
        found, ranks = [], []
        for colour in self.colours:
            channels = _SPACES[colour](values)
            steps = _texture(channels)
            for scale in self.scales:
                parts = _parts(_first_cut(channels, scale, self.blur, self.min_area), channels, steps)
                for measures in self.measures:
                    boxes = _join(parts, measures)
                    found.append(boxes)
                    # The last to be joined are the largest; chance keeps one hierarchy from ruling, as in the paper.
                    ranks.append(np.arange(len(boxes))[::-1] * mix.random(len(boxes)))
        return np.concatenate(found), np.concatenate(ranks)


class RegionMemory:
    """A search that knows the proposals of the pictures it saw last: the same pixels are searched once.

    Copies of a model share it, for it holds nothing that could differ. It may be asked from several threads.

    Args:
        search: what finds the proposals.
        pictures: how many pictures' proposals are kept, 16 bytes per box; the one not asked for longest goes first.
    """

    def __init__(self, search: SelectiveSearch, pictures: int) -> None:
        self.search, self.pictures = search, pictures
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, picture: Tensor) -> Tensor:
        """Proposals ``[R, 4]`` of a picture ``[3, h, w]`` uint8, as the search gives them; not to be written to."""
        picture = picture.contiguous().cpu()
        digest = hashlib.blake2b(repr(tuple(picture.shape)).encode(), digest_size=16)
        digest.update(picture.numpy().tobytes())
        key = digest.digest()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        with torch.inference_mode(False):  # what prediction finds may be wanted for training
            boxes = self.search(picture)
        with self._lock:
            self._known[key] = boxes
            while len(self._known) > self.pictures:
                self._known.popitem(last=False)
        return boxes

    def __deepcopy__(self, _: object) -> RegionMemory:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return RegionMemory, (self.search, self.pictures)


class _Parts(NamedTuple):
    """The N parts of a first cut.

    Attributes:
        sizes: ``[N]`` pixels.
        boxes: ``[N, 4]`` left, top, right, bottom, by edges.
        colour: ``[N, C * 25]`` histogram that sums to 1.
        texture: ``[N, C * 80]`` histogram that sums to 1.
        pairs: ``[M, 2]`` neighbours, the smaller index first.
        total: pixels of the picture.
    """

    sizes: Floats
    boxes: Ints
    colour: Floats
    texture: Floats
    pairs: Ints
    total: int


def _reduced(picture: Tensor, side: int) -> Floats:
    """The picture as ``[h, w, 3]`` in [0, 1], no larger than ``side``."""
    values = picture.cpu()[None].float() / 255
    height, width = int(values.shape[2]), int(values.shape[3])
    ratio = side / max(height, width)
    if ratio < 1:
        size = (max(round(height * ratio), 1), max(round(width * ratio), 1))
        values = F.interpolate(values, size, mode="bilinear", antialias=True).clamp(0, 1)
    return values[0].permute(1, 2, 0).numpy().astype(np.float64)


def _hsv(values: Floats) -> Floats:
    from skimage.color import rgb2hsv  # takes a second to import

    return np.asarray(rgb2hsv(values), dtype=np.float64)


def _lab(values: Floats) -> Floats:
    from skimage.color import rgb2lab

    lab = np.asarray(rgb2lab(values), dtype=np.float64)
    scaled: Floats = lab / np.array([100.0, 255.0, 255.0]) + np.array([0.0, 0.5, 0.5])
    return np.clip(scaled, 0, 1)


def _rgi(values: Floats) -> Floats:
    total: Floats = values.sum(axis=2, keepdims=True)
    shares = values[..., :2] / np.maximum(total, 1e-6)
    return np.concatenate([shares, total / 3], axis=2)


def _grey(values: Floats) -> Floats:
    grey: Floats = values @ np.array([0.299, 0.587, 0.114])
    return grey[..., None]


_SPACES: dict[Colour, Callable[[Floats], Floats]] = {
    "rgb": lambda values: values,
    "hsv": _hsv,
    "lab": _lab,
    "rgi": _rgi,
    "grey": _grey,
}
"""``[h, w, 3]`` RGB in [0, 1] to ``[h, w, C]`` in [0, 1]."""


def _first_cut(channels: Floats, scale: float, blur: float, min_area: int) -> Ints:
    """Number of the part that each pixel is in, ``[h, w]``, without gaps."""
    from skimage.segmentation import felzenszwalb

    if min(channels.shape[:2]) < 2:  # a line of pixels: nothing to cut
        return np.zeros(channels.shape[:2], dtype=np.int64)
    labels = felzenszwalb(channels, scale=scale, sigma=blur, min_size=min_area, channel_axis=-1)
    _, numbers = np.unique(labels, return_inverse=True)
    return numbers.reshape(labels.shape).astype(np.int64)


def _texture(channels: Floats) -> Ints:
    """Bin of the slope of each pixel, channel and direction, ``[h, w, C, 8]``."""
    from scipy.ndimage import gaussian_filter

    across = np.stack([gaussian_filter(plane, 1.0, order=(0, 1)) for plane in np.moveaxis(channels, 2, 0)], axis=2)
    down = np.stack([gaussian_filter(plane, 1.0, order=(1, 0)) for plane in np.moveaxis(channels, 2, 0)], axis=2)
    angles = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
    slopes = np.maximum(across[..., None] * np.cos(angles) + down[..., None] * np.sin(angles), 0)
    strongest = max(float(slopes.max()), 1e-9)
    bins: Ints = np.minimum(slopes * (TEXTURE_BINS / strongest), TEXTURE_BINS - 1).astype(np.int64)
    return bins


def _parts(labels: Ints, channels: Floats, steps: Ints) -> _Parts:
    """Measure the parts of a first cut."""
    count = int(labels.max()) + 1
    flat = labels.ravel()
    shades = np.minimum(channels * COLOUR_BINS, COLOUR_BINS - 1).astype(np.int64)
    columns = shades.reshape(flat.size, -1)
    slopes = steps.reshape(flat.size, -1)
    sizes = np.bincount(flat, minlength=count).astype(np.float64)
    rows, places = np.indices(labels.shape)
    low = np.full((2, count), max(labels.shape), dtype=np.int64)
    high = np.zeros((2, count), dtype=np.int64)
    for axis, values in enumerate((places.ravel(), rows.ravel())):
        np.minimum.at(low[axis], flat, values)
        np.maximum.at(high[axis], flat, values + 1)
    boxes = np.stack([low[0], low[1], high[0], high[1]], axis=1)
    colour = _histograms(flat, columns, count, COLOUR_BINS)
    texture = _histograms(flat, slopes, count, TEXTURE_BINS)
    return _Parts(sizes, boxes, colour, texture, _neighbours(labels, count), flat.size)


def _histograms(flat: Ints, columns: Ints, count: int, bins: int) -> Floats:
    """Histograms ``[count, D * bins]``, each row of which sums to 1, of D columns ``[pixels, D]`` of bins."""
    planes = [np.bincount(flat * bins + column, minlength=count * bins).reshape(count, bins) for column in columns.T]
    together = np.concatenate(planes, axis=1).astype(np.float64)
    shares: Floats = together / together.sum(axis=1, keepdims=True)
    return shares


def _neighbours(labels: Ints, count: int) -> Ints:
    """Parts that touch by a side, ``[M, 2]``, sorted."""
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    first = np.concatenate([one.ravel() for one, _ in sides])
    second = np.concatenate([other.ravel() for _, other in sides])
    keys = np.minimum(first, second) * count + np.maximum(first, second)
    keys = np.unique(keys[first != second])
    return np.stack([keys // count, keys % count], axis=1)


def _join(parts: _Parts, measures: tuple[Measure, ...]) -> Ints:
    """Boxes ``[2 N - 1, 4]`` of the parts and of all that comes of joining them, in the order of joining."""
    count = len(parts.sizes)
    whole = _grown(parts)
    near: list[set[int]] = [set() for _ in range(2 * count - 1)]
    for one, other in parts.pairs.tolist():
        near[one].add(other)
        near[other].add(one)
    alike = _similarity(whole, parts.pairs[:, 0], parts.pairs[:, 1], measures)
    heap = [(-value, one, other) for value, (one, other) in zip(alike.tolist(), parts.pairs.tolist(), strict=True)]
    heapq.heapify(heap)
    is_gone = [False] * (2 * count - 1)
    made = count
    while heap and made < 2 * count - 1:
        _, one, other = heapq.heappop(heap)
        if is_gone[one] or is_gone[other]:
            continue
        _merge(whole, one, other, made)
        is_gone[one] = is_gone[other] = True
        around = sorted((near[one] | near[other]) - {one, other})
        for neighbour in around:
            near[neighbour] -= {one, other}
            near[neighbour].add(made)
        near[made] = set(around)
        if around:
            beside = np.array(around)
            values = _similarity(whole, beside, np.full_like(beside, made), measures)
            for value, neighbour in zip(values.tolist(), around, strict=True):
                heapq.heappush(heap, (-value, neighbour, made))
        made += 1
    return whole.boxes


def _grown(parts: _Parts) -> _Parts:
    """The same parts with room for all that will be joined."""
    room = len(parts.sizes) - 1

    def more(values: Floats) -> Floats:
        return np.concatenate([values, np.zeros((room, *values.shape[1:]))])

    boxes = np.concatenate([parts.boxes, np.zeros((room, 4), dtype=np.int64)])
    return _Parts(more(parts.sizes), boxes, more(parts.colour), more(parts.texture), parts.pairs, parts.total)


def _merge(parts: _Parts, one: int, other: int, made: int) -> None:
    """Write the union of two parts at the place ``made``; histograms are averaged by size (equations 4 and 5)."""
    sizes = parts.sizes
    sizes[made] = sizes[one] + sizes[other]
    for histogram in (parts.colour, parts.texture):
        histogram[made] = (sizes[one] * histogram[one] + sizes[other] * histogram[other]) / sizes[made]
    parts.boxes[made, :2] = np.minimum(parts.boxes[one, :2], parts.boxes[other, :2])
    parts.boxes[made, 2:] = np.maximum(parts.boxes[one, 2:], parts.boxes[other, 2:])


def _similarity(parts: _Parts, one: Ints, other: Ints, measures: tuple[Measure, ...]) -> Floats:
    """How alike the parts are pair by pair ``[M]``, each measure in [0, 1] (equations 2 to 7)."""
    total = np.zeros(len(one))
    if "colour" in measures:
        total += np.minimum(parts.colour[one], parts.colour[other]).sum(axis=1)
    if "texture" in measures:
        total += np.minimum(parts.texture[one], parts.texture[other]).sum(axis=1)
    together = parts.sizes[one] + parts.sizes[other]
    if "size" in measures:
        total += 1 - together / parts.total
    if "fill" in measures:
        low = np.minimum(parts.boxes[one, :2], parts.boxes[other, :2])
        high = np.maximum(parts.boxes[one, 2:], parts.boxes[other, 2:])
        total += 1 - ((high - low).prod(axis=1) - together) / parts.total
    return total


def _ranked(boxes: Ints, ranks: Floats, min_side: float) -> Ints:
    """Boxes by rank, each once, none too narrow but the whole picture."""
    boxes = boxes[np.argsort(ranks, kind="stable")]
    _, first = np.unique(boxes, axis=0, return_index=True)
    boxes = boxes[np.sort(first)]
    is_wide = (boxes[:, 2:] - boxes[:, :2] >= min_side).all(axis=1)
    kept: Ints = boxes[is_wide | (np.arange(len(boxes)) == 0)]
    return kept
