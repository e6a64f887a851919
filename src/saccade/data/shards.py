"""WebDataset shards: tar files in which ``NAME.jpg`` and ``NAME.txt`` or ``NAME.json`` belong together.

A shard is indexed by reading its headers once; pictures are read at their place in it, in any order, and nothing is
ever unpacked. https://github.com/webdataset/webdataset describes the format.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from saccade.data.decode import SUFFIXES
from saccade.errors import DataError, ImageError

_TEXTS = frozenset({".txt", ".text", ".caption"})
_MOST_TEXT = 1 << 20
"""Bytes of the longest text or JSON that is read."""


@dataclass(frozen=True)
class ShardMember:
    """One file in a shard.

    Attributes:
        path: the shard.
        name: its name in it.
        offset: where its bytes begin.
        size: how many there are.
    """

    path: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            ImageError: where the shard is gone, or ends before it.
        """
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                content = stream.read(self.size)
        except OSError as error:
            raise ImageError(
                "the shard cannot be read", where=str(self), remedy="check that it still exists"
            ) from error
        if len(content) < self.size:
            raise ImageError("the shard ends in the middle of it", where=str(self), remedy="copy it again")
        return content

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


class ShardSample(NamedTuple):
    """What belongs together in a shard.

    Attributes:
        key: the name without endings.
        picture: the picture, or None.
        text: what its text file says, or None.
        about: what its JSON says; empty without one.
        label: what its ``.cls`` file says, or None.
    """

    key: str
    picture: ShardMember | None
    text: str | None
    about: dict[str, Any]
    label: str | None


def read_shard(path: Path) -> Iterator[ShardSample]:
    """The samples of one shard, in its order; texts are read, pictures only located.

    Raises:
        DataError: a file that is no plain tar, or ends too early; a text or JSON that cannot be read.
    """
    samples: dict[str, list[ShardMember]] = {}
    for member in _members(path):
        folder, slash, file = member.name.rpartition("/")
        stem = file.partition(".")[0]
        samples.setdefault(f"{folder}{slash}{stem}", []).append(member)
    for key, members in samples.items():
        yield _sample(key, members)


def _members(path: Path) -> Iterator[ShardMember]:
    try:
        # "r:" takes no compressed file: in one of those nothing can be reached without reading all before it.
        with tarfile.open(path, "r:") as shard:
            end = path.stat().st_size
            for member in shard:
                if not member.isfile() or Path(member.name).name.startswith("."):
                    continue
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                yield ShardMember(path, member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise DataError(
            f"the shard cannot be read ({error})",
            where=str(path),
            expected="an uncompressed tar file",
            remedy="unpack .tar.gz with gunzip, or copy the shard again",
        ) from error


def _sample(key: str, members: list[ShardMember]) -> ShardSample:
    picture, text, label = None, None, None
    about: dict[str, Any] = {}
    for member in members:
        suffix = Path(member.name).suffix.lower()
        if suffix in SUFFIXES:
            picture = picture or member
        elif suffix in _TEXTS:
            text = _text(member)
        elif suffix == ".cls":
            label = _text(member).strip()
        elif suffix == ".json":
            about = _json(member)
    return ShardSample(key, picture, text, about, label)


def _text(member: ShardMember) -> str:
    if member.size > _MOST_TEXT:
        raise DataError(f"the text has {member.size:,} bytes", where=str(member), expected=f"at most {_MOST_TEXT:,}")
    try:
        return member.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("the text is not UTF-8", where=str(member), remedy="save it as UTF-8") from error


def _json(member: ShardMember) -> dict[str, Any]:
    try:
        content = json.loads(_text(member))
    except json.JSONDecodeError as error:
        raise DataError(f"this is no JSON ({error})", where=str(member)) from error
    if not isinstance(content, dict):
        raise DataError("the JSON is no object", where=str(member), expected='{"caption": "...", ...}')
    return content
