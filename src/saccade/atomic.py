"""Files that appear whole or not at all: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from saccade.errors import RunError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """The temporary neighbour to write to; it becomes ``path`` when the block ends well, and vanishes when it does not.

    The folder is made where it does not exist. An older file of that name stays as it was until the last moment.

    Raises:
        RunError: where the operating system refuses.
    """
    path = Path(path)
    # The suffix stays, so that writers and people know the file for what it is; the process id keeps writers apart.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        # The first error tells the user what is wrong; failing to tidy up after it would only hide it.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write bytes to a file that appears whole or not at all.

    Raises:
        RunError: where it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_json(path: str | Path, content: Any) -> Path:
    """Write plain data as JSON to a file that appears whole or not at all; figures that are no numbers become null.

    Raises:
        RunError: where it cannot be written.
    """
    return write_bytes(path, (json.dumps(plain_json(content), indent=2, allow_nan=False) + "\n").encode("utf-8"))


def plain_json(content: Any) -> Any:
    """The same with null for numbers that JSON does not know (NaN and the infinities), which other readers refuse."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: plain_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain_json(value) for value in content]
    return content


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to: long work should not end at a place that takes no results.

    Nothing is made yet, because work that fails should leave nothing behind.

    Raises:
        RunError: naming what is in the way.
    """
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    remedy = "choose another --out"
    if not place.is_dir():
        what = "this is a file" if place == folder else f"cannot be made, because {place} is a file"
        raise RunError(what, where=str(folder), expected="a folder", remedy=remedy)
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"cannot be written, because you may not write to {place}", where=str(folder), remedy=remedy)


def unwritable(path: Path, error: OSError) -> RunError:
    """The sentence for a place that cannot be written to."""
    reason = error.strerror or str(error)
    return RunError(f"cannot be written ({reason})", where=str(path), remedy="free some space or choose another place")
