"""Search in a folder of pictures: by words, where the model knows words, or by another picture.

Every picture is embedded once; the vectors are kept in one file beside the pictures and are made anew only for files
that changed. A search is one product of the matrix of vectors with the vector of the question: exact, and as fast as
memory can be read (100,000 vectors of 512 numbers are 205 MB). For collections that do not fit into memory an
approximate index is the tool; this is none.

N pictures · Q questions · D width of the vectors
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saccade.data.decode import SUFFIXES, ImageSource, read_image
from saccade.data.walk import pictures_in
from saccade.engine.checkpoint import save_tensors, weights_digest
from saccade.engine.features import Embeds
from saccade.engine.modes import evaluating
from saccade.errors import ConfigError, DataError, ImageError, InputError, RunError
from saccade.models.base import VisionModel
from saccade.types import ImageBatch

AT_ONCE = 32
"""Pictures per forward pass."""

_FORMAT = "1"
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@runtime_checkable
class EncodesPictures(Protocol):
    """A model whose pictures have vectors of their own."""

    def encode_images(self, images: ImageBatch) -> Tensor:
        """Unit vectors ``[B, D]``."""
        ...


@runtime_checkable
class EncodesTexts(Protocol):
    """A model that puts words into the same space as pictures."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``[Q, D]``."""
        ...


class Entry(NamedTuple):
    """One picture file of an index.

    Attributes:
        name: path relative to the folder, with slashes.
        size: bytes.
        time: when it was last changed, in nanoseconds.
    """

    name: str
    size: int
    time: int


@dataclass(frozen=True)
class Found:
    """One result.

    Attributes:
        path: the picture.
        score: cosine of its vector with that of the question, in [-1, 1].
    """

    path: Path
    score: float


@dataclass(frozen=True, eq=False)
class PictureIndex:
    """The vectors of all pictures of a folder.

    Attributes:
        folder: the folder.
        digest: of the model that made the vectors; another model's vectors cannot be compared with them.
        entries: the N files, in the order of their names.
        vectors: ``[N, D]`` float32, of length one.
        skipped: files that could not be read, one sentence each.
        num_embedded: pictures that were embedded to make this, rather than taken from an earlier index.
    """

    folder: Path
    digest: str
    entries: tuple[Entry, ...]
    vectors: Tensor
    skipped: tuple[str, ...] = ()
    num_embedded: int = 0

    def __len__(self) -> int:
        return len(self.entries)

    @classmethod
    def build(
        cls, model: VisionModel[Any, Any, Any], folder: str | Path, *, known: PictureIndex | None = None
    ) -> PictureIndex:
        """Embed the pictures of a folder and of the folders in it.

        Args:
            model: any model whose pictures have vectors; left as it is.
            folder: holds the pictures.
            known: an earlier index of the same model; files whose size and time are as they were keep their vectors.

        Raises:
            DataError: no such folder, or no readable picture in it.
            ConfigError: a model without such vectors.
        """
        return _brought_up_to_date(model, Path(folder), weights_digest(model), known)

    def search(self, query: Tensor, top: int = 10) -> list[list[Found]]:
        """The most similar pictures, most similar first; of equal ones, in the order of their names.

        Args:
            query: ``[Q, D]`` unit vectors.
            top: how many per question.

        Raises:
            InputError: vectors of another width, or ``top`` below 1.
        """
        if query.ndim != 2 or query.shape[1] != self.vectors.shape[1]:
            expected = f"[Q, {self.vectors.shape[1]}]"
            raise InputError(f"the question has shape {tuple(query.shape)}", expected=expected)
        if top < 1:
            raise InputError(f"top is {top}", where="top", expected="at least 1")
        # One product for each question: a single vector is multiplied at the speed of memory, a narrow matrix is not.
        return [self._best(torch.mv(self.vectors, row), top) for row in query.float().cpu()]

    def _best(self, scores: Tensor, top: int) -> list[Found]:
        # Not `topk` alone: which of several equal scores it takes is nowhere promised.
        least = scores.topk(min(top, len(scores))).values[-1]
        places = torch.nonzero(scores >= least)[:, 0]
        order = scores[places].argsort(descending=True, stable=True)[:top]
        return [Found(self.folder / self.entries[i].name, float(scores[i])) for i in places[order].tolist()]

    def save(self, path: str | Path | None = None, *, dtype: Literal["float32", "float16"] = "float32") -> Path:
        """Write the index; the file appears whole or not at all.

        Args:
            path: where; by default beside the pictures, where ``open_index`` looks for it.
            dtype: ``float16`` halves the file and moves scores by less than a thousandth.

        Raises:
            RunError: where it cannot be written.
        """
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype is {dtype!r}", where="dtype", expected=" or ".join(_DTYPES))
        names = "\0".join(entry.name for entry in self.entries).encode("utf-8", "surrogateescape")
        tensors = {
            "vectors": self.vectors.to(_DTYPES[dtype]).contiguous(),
            "sizes": torch.tensor([entry.size for entry in self.entries], dtype=torch.int64),
            "times": torch.tensor([entry.time for entry in self.entries], dtype=torch.int64),
            "names": torch.from_numpy(np.frombuffer(names, dtype=np.uint8).copy()),
        }
        path = index_path(self.folder, self.digest) if path is None else Path(path)
        save_tensors(path, tensors, {"saccade_index": _FORMAT, "digest": self.digest})
        return path

    @classmethod
    def load(cls, path: str | Path, folder: str | Path | None = None) -> PictureIndex:
        """Read an index.

        Args:
            path: its file.
            folder: of the pictures; that of the file where it is None.

        Raises:
            DataError: where the file is missing, damaged, or something else.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("saccade_index") != _FORMAT:
                    raise DataError("this is no index of pictures", where=str(path), remedy="delete it")
                parts = {name: file.get_tensor(name) for name in ("vectors", "sizes", "times", "names")}
        except (SafetensorError, OSError) as error:
            what = f"the index cannot be read ({str(error).splitlines()[0]})"
            raise DataError(what, where=str(path), remedy="delete it; the next search makes a new one") from error
        names = parts["names"].numpy().tobytes().decode("utf-8", "surrogateescape").split("\0")
        entries = tuple(map(Entry, names, parts["sizes"].tolist(), parts["times"].tolist()))
        if len(entries) != len(parts["vectors"]):
            raise DataError("the index is damaged: names and vectors do not fit", where=str(path), remedy="delete it")
        return cls(Path(folder) if folder else path.parent, about["digest"], entries, parts["vectors"].float())


def open_index(
    model: VisionModel[Any, Any, Any],
    folder: str | Path,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    leave_out: Path | None = None,
) -> tuple[PictureIndex, tuple[str, ...]]:
    """The index of a folder, brought up to date and written beside the pictures where anything changed.

    Args:
        model: any model whose pictures have vectors.
        folder: holds the pictures.
        dtype: how the vectors are kept.
        leave_out: a folder in it whose pictures do not count: the one that results are written to.

    Returns:
        The index, and what the user should know, one sentence each.
    """
    folder = Path(folder)
    notes: list[str] = []
    digest = weights_digest(model)
    place = index_path(folder, digest)
    known, kept = None, None
    if place.is_file():
        try:
            known, kept = PictureIndex.load(place, folder), _kept_dtype(place)
        except DataError as error:
            notes.append(f"{error}; made anew")
    index = _brought_up_to_date(model, folder, digest, known, leave_out)
    notes += [f"left out: {sentence}" for sentence in index.skipped]
    # Vectors in 16 bits are near enough to stay where 32 are asked for; the other way the file is to become smaller.
    if known is None or known.entries != index.entries or (dtype == "float16" and kept != dtype):
        try:
            index.save(place, dtype=dtype)
        except RunError as error:
            notes.append(f"the index was not kept: {error}")
    return index, tuple(notes)


def _brought_up_to_date(
    model: VisionModel[Any, Any, Any],
    folder: Path,
    digest: str,
    known: PictureIndex | None,
    leave_out: Path | None = None,
) -> PictureIndex:
    listed = list_pictures(folder, leave_out=leave_out)
    old: dict[Entry, Tensor] = {}
    if known is not None and known.digest == digest:
        old = dict(zip(known.entries, known.vectors, strict=True))
    skipped: list[str] = []
    made: dict[Entry, Tensor] = {}
    for part, vectors in _embedded(model, folder, [entry for entry in listed if entry not in old], skipped):
        made |= zip(part, vectors, strict=True)
    kept = tuple(entry for entry in listed if entry in old or entry in made)
    if not kept:
        raise DataError(f"none of the {len(listed)} pictures can be read", where=str(folder))
    vectors = torch.stack([made[entry] if entry in made else old[entry] for entry in kept])
    return PictureIndex(folder, digest, kept, vectors, tuple(skipped), len(made))


def _kept_dtype(place: Path) -> str | None:
    """How the vectors of an index are kept: ``float16`` or ``float32``."""
    with safe_open(place, framework="pt") as file:
        return {"F16": "float16", "F32": "float32"}.get(file.get_slice("vectors").get_dtype())


def index_path(folder: Path, digest: str) -> Path:
    """Where the index of a folder lies; each model has its own."""
    return folder / f"saccade-index-{digest[:12]}.safetensors"


def list_pictures(folder: Path, *, leave_out: Path | None = None) -> list[Entry]:
    """The picture files of a folder and of the folders in it, by name; hidden ones and ``leave_out`` do not count.

    Raises:
        DataError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        what = "this is a file" if folder.exists() else "there is no such folder"
        raise DataError(what, where=str(folder), expected="a folder of pictures")
    found: list[Entry] = []
    for path in pictures_in(folder, leave_out=leave_out):
        try:
            facts = path.stat()
        except OSError:
            continue  # a link to nowhere, or deleted meanwhile
        found.append(Entry(path.relative_to(folder).as_posix(), facts.st_size, facts.st_mtime_ns))
    if not found:
        expected = f"files ending in {', '.join(sorted(SUFFIXES))}"
        raise DataError("there is no picture in this folder", where=str(folder), expected=expected)
    return sorted(found)


def embed_query(model: VisionModel[Any, Any, Any], query: str | ImageSource) -> Tensor:
    """The vector of a question, ``[1, D]``.

    Args:
        model: that made the index.
        query: words, or a picture: a path, PIL picture, array or tensor. Text that is the path of a file, or ends as
            picture files do, is taken for a path.

    Raises:
        InputError: empty words, or none that the model knows.
        ImageError: a picture that cannot be read.
        ConfigError: words for a model that knows none.
    """
    if isinstance(query, str) and not is_picture_path(query):
        if not query.strip():
            raise InputError("the question is empty", where="query", expected="words or the path of a picture")
        if not isinstance(model, EncodesTexts):
            raise ConfigError(
                f"{type(model).__name__} knows no words, so {query!r} cannot be searched for",
                expected="the path of a picture to find similar ones",
                remedy="or choose a model with words (saccade models --task zero_shot)",
            )
        with evaluating(model), torch.no_grad():
            vector = model.encode_text([query]).float().cpu()
        if not vector.any():
            told = f"the model knows no word of {query!r}"
            raise InputError(told, where="query", expected="words of the captions it was trained on")
        return vector
    return embed_pictures(model, [read_image(query)])


def embed_pictures(model: VisionModel[Any, Any, Any], pictures: Sequence[Tensor]) -> Tensor:
    """Unit vectors ``[B, D]`` float32 of pictures ``[3, h, w]`` uint8, on the CPU.

    Raises:
        ConfigError: where the model has none.
    """
    if not isinstance(model, EncodesPictures | Embeds):
        what = f"{type(model).__name__} has no vector for a whole picture"
        raise ConfigError(what, expected="a model for zero_shot or classification")
    first = next(model.parameters())
    images = model.preprocess(pictures).to(first.device, first.dtype).channels_last()
    with evaluating(model), torch.no_grad():
        vectors = model.encode_images(images) if isinstance(model, EncodesPictures) else model.embed(images)[0]
    return F.normalize(vectors.float(), dim=1).cpu()


def is_picture_path(text: str) -> bool:
    """Whether a question is the path of a picture rather than words."""
    path = Path(text)
    return path.suffix.lower() in SUFFIXES or (len(text) < 256 and path.is_file())


def _embedded(
    model: VisionModel[Any, Any, Any], folder: Path, entries: Sequence[Entry], skipped: list[str]
) -> Iterator[tuple[list[Entry], Tensor]]:
    """Files and their vectors, some at a time; what cannot be read is told in ``skipped``."""
    for start in range(0, len(entries), AT_ONCE):
        part: list[Entry] = []
        pictures: list[Tensor] = []
        for entry in entries[start : start + AT_ONCE]:
            try:
                pictures.append(read_image(folder / entry.name))
            except (ImageError, InputError) as error:
                skipped.append(str(error))
            else:
                part.append(entry)
        if part:
            yield part, embed_pictures(model, pictures)
