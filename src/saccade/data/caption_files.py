"""Files that say what is on pictures: CSV tables, JSON and JSON lines, COCO captions, Karpathy's JSON, tar shards.

Whatever the file, one line of it becomes a ``CaptionRow``. Columns are known by their names: a file name, one or more
captions, lists of words (aliases, tags), a category, a split.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saccade.data.cocofile import is_coco_file
from saccade.data.decode import SUFFIXES
from saccade.data.shards import ShardMember, read_shard
from saccade.data.splits import SPLIT_NAMES
from saccade.data.tables import known_split, read_table, with_slashes
from saccade.errors import DataError

TABLES = frozenset({".csv", ".tsv"})
JSONS = frozenset({".json", ".jsonl", ".ndjson"})
SHARD = ".tar"

_PATH = re.compile(r"^(path|file|file_?name|file_?path|image|image_?(name|path|file)|picture|key)$")
_TEXT = re.compile(r"^(caption|captions|description|sentence|sentences|text|texts|title|alt|alt_text|comment)[_-]?\d*$")
_WORDS = re.compile(r"^(alias|aliases|synonyms|tags?|keywords?|words)$")
_CATEGORY = re.compile(r"^(category|class|class_name|label)$")
_DELIMITERS = ",;\t|"
_SPLIT = re.compile(r"^(split|set|subset|fold)$")
_HEAD_BYTES = 65536
_JSON_TEXT = re.compile(rb'"(captions?|descriptions?|sentences?|texts?)"\s*:')

_BLANK = b"\xef\xbb\xbf \t\r\n"
_FIRST_KEY = re.compile(rb'\{\s*"([^"]+)"')


class CaptionRow(NamedTuple):
    """What one line says of one picture.

    Attributes:
        where: the line, for messages.
        picture: name of the file as it is given, or its place in a shard.
        texts: captions that are not empty.
        words: other words for it.
        category: its category, or None.
        split: its split, or None where nobody said.
        is_empty: whether a caption was there but empty.
    """

    where: str
    picture: str | ShardMember
    texts: tuple[str, ...]
    words: tuple[str, ...]
    category: str | None
    split: str | None
    is_empty: bool


def is_caption_file(path: Path) -> bool:
    """Whether a file, by its ending and its beginning, holds captions of pictures."""
    suffix = path.suffix.lower()
    if suffix == SHARD:
        return True
    if suffix in TABLES or path.name == "captions.txt":
        return _has_columns(_header(path))
    if suffix not in JSONS:
        return False
    if suffix == ".json" and is_coco_file(path):
        # In a COCO file the annotations may stand behind megabytes of pictures.
        return path.name.startswith("captions") or _holds(path, b'"caption"') or _holds(path, b'"sentences"')
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if suffix == ".json" and not head.lstrip(_BLANK).startswith(b"["):
        first = _FIRST_KEY.match(head.lstrip(_BLANK))
        return first is not None and Path(first.group(1).decode("utf-8", "replace")).suffix.lower() in SUFFIXES
    return _JSON_TEXT.search(head) is not None


def _holds(path: Path, word: bytes) -> bool:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word) >= 0


def split_of(name: str) -> str | None:
    """The split in the name of a file, such as ``captions_train2017`` or ``val-000012``, or None."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_NAMES]
    return SPLIT_NAMES[words[-1]] if words else None


def read_rows(path: Path, split: str | None) -> Iterator[CaptionRow]:
    """The rows of one file.

    Args:
        path: a file that ``is_caption_file`` knows.
        split: of rows that do not say theirs.

    Raises:
        DataError: a file that is damaged, or columns that are not there.
    """
    suffix = path.suffix.lower()
    if suffix == SHARD:
        yield from _shard_rows(path, split)
    elif suffix in JSONS:
        yield from _json_rows(path, split)
    else:
        yield from _table_rows(path, split)


def _header(path: Path) -> list[str]:
    with path.open("r", encoding="utf-8-sig", errors="replace") as stream:
        line = stream.readline(_HEAD_BYTES)
    return [name.strip().strip('"') for name in line.split(_delimiter(line))]


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def _has_columns(names: Sequence[str]) -> bool:
    folded = [name.lower() for name in names]
    return any(map(_PATH.match, folded)) and any(map(_TEXT.match, folded))


def _table_rows(path: Path, split: str | None) -> Iterator[CaptionRow]:
    names, rows = read_table(path, _DELIMITERS)
    if not _has_columns(names):
        got = ", ".join(names) or "nothing"
        expected = "a file name and a caption (and aliases, tags, category, split, if you like)"
        raise DataError(f"the columns are {got}", where=str(path), expected=expected)
    for where, cells in rows:
        yield row_of({name: value for name, value in cells.items() if name}, where, split)


def _json_rows(path: Path, split: str | None) -> Iterator[CaptionRow]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            content = json.loads(text)
        else:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"this is no JSON ({error})", where=str(path), remedy="copy or write it again") from error
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        yield from _coco_rows(content, path, split)
        return
    records = content.get("images", content) if isinstance(content, dict) else content
    if isinstance(records, dict):
        # {"1.jpg": "a cat", "2.jpg": ["a dog", "a brown dog"]}
        records = [{"file": name, "caption": said} for name, said in records.items()]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError("the JSON is no list of captions", where=str(path), expected='[{"file": ..., "caption": ...}]')
    for number, record in enumerate(records):
        yield row_of(record, f"{path}#{number}", split)


def _coco_rows(content: Mapping[str, Any], path: Path, split: str | None) -> Iterator[CaptionRow]:
    """COCO captions: annotations that name their picture by its id."""
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        said: dict[Any, list[str]] = {}
        for number, annotation in enumerate(content["annotations"]):
            if annotation["image_id"] not in names:
                told = f"the caption {number} is of a picture that is not listed ({annotation['image_id']})"
                raise DataError(told, where=str(path))
            said.setdefault(annotation["image_id"], []).append(str(annotation["caption"]))
    except (KeyError, TypeError) as error:
        expected = "images with id and file_name, annotations with image_id and caption"
        raise DataError(f"the COCO file lacks {error}", where=str(path), expected=expected) from error
    for key, name in names.items():
        yield row_of({"file": name, "captions": said.get(key, [])}, f"{path}#{key}", split)


def _shard_rows(path: Path, split: str | None) -> Iterator[CaptionRow]:
    for sample in read_shard(path):
        if sample.picture is None:
            continue
        where = str(sample.picture)
        about = {name: value for name, value in sample.about.items() if not _PATH.match(name.lower())}
        if sample.text is not None:
            # What stands in the text file comes first; the JSON of such shards often repeats it.
            about = {"caption": sample.text} | {n: v for n, v in about.items() if not _TEXT.match(n.lower())}
        if sample.label is not None:
            about |= {"category": sample.label}
        yield row_of(about, where, split, picture=sample.picture)


def row_of(
    record: Mapping[str, Any], where: str, split: str | None, *, picture: ShardMember | None = None
) -> CaptionRow:
    """What a record of named values says.

    Args:
        record: column names and values; texts may be lists.
        where: the line, for messages.
        split: where the record does not say its own.
        picture: where the record does not name a file.

    Raises:
        DataError: no file name, or a split that does not exist.
    """
    texts: list[str] = []
    words: list[str] = []
    name, category, is_empty = "", None, False
    for column, value in record.items():
        key = column.strip().lower()
        if _TEXT.match(key):
            said = _as_texts(value)
            is_empty |= not all(said) or not said
            texts += [text for text in said if text]
        elif _WORDS.match(key):
            words += _as_words(value)
        elif _PATH.match(key):
            name = name or with_slashes(str(value or "").strip())
        elif _CATEGORY.match(key):
            category = category or str(value if value is not None else "").strip() or None
        elif _SPLIT.match(key) and value:
            split = _known_split(str(value), key, where) or split
    if picture is None and not name:
        raise DataError("no picture is named", where=where, expected="a file name", remedy="fill it in or delete it")
    return CaptionRow(where, picture or name, tuple(texts), tuple(words), category, split, is_empty)


def _as_texts(value: Any) -> list[str]:
    """A text, a list of them, or a list of Karpathy's ``{"raw": text}``; white space becomes single blanks."""
    several = value if isinstance(value, list) else [value]
    plain = [one.get("raw", "") if isinstance(one, dict) else one for one in several]
    return [" ".join(str(one).split()) if one is not None else "" for one in plain]


def _as_words(value: Any) -> list[str]:
    """Words given as a list or as one text with ``|``, ``;`` or ``,`` between them; ``_`` stands for a blank."""
    several = value if isinstance(value, list) else re.split(r"[|;,]", str(value or ""))
    return [words for one in several if (words := " ".join(str(one).replace("_", " ").split()))]


def _known_split(word: str, column: str, where: str) -> str | None:
    # Karpathy's "restval" are pictures of the old validation that everybody trains on.
    return "train" if word.lower() == "restval" else known_split(word.strip(), column, where)
