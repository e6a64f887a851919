"""The run folder: where a training writes, and what it says about the machine it ran on.

config.json        model, training config and data, enough to build all of it again
environment.json   versions, device, processor, threads, seed
history.jsonl      one line per step and per epoch; no clock in it, so that equal runs give equal files
last.ckpt          state to resume from
best.safetensors   the best model so far, ready to use
metrics.json       figures of the best model, when the run is finished
failure.safetensors  the batch that made the loss non-finite, if one did
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saccade.atomic import plain_json, unwritable, write_json
from saccade.errors import RunError


class RunFolder:
    """One run on disk. Only the first process of a distributed run writes; elsewhere the writing methods do nothing.

    Args:
        path: the folder.
        is_writer: whether this process writes.
    """

    def __init__(self, path: str | Path, *, is_writer: bool = True) -> None:
        self.path = Path(path)
        self.is_writer = is_writer

    @property
    def last(self) -> Path:
        """State to resume from."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The best model so far."""
        return self.path / "best.safetensors"

    @property
    def history(self) -> Path:
        """One line per step and per epoch."""
        return self.path / "history.jsonl"

    def check_free(self) -> None:
        """Refuse a folder that holds something already.

        Raises:
            RunError: where it exists with something in it.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            remedy = "choose another --out, or continue that run with --resume"
            raise RunError("the run folder exists already", where=str(self.path), remedy=remedy)

    @contextmanager
    def created(self) -> Iterator[None]:
        """Make the folder for the first files, which the block writes; where that fails, nothing is left of it.

        Raises:
            RunError: where it exists already with something in it, or cannot be written.
        """
        if not self.is_writer:
            yield
            return
        self.check_free()
        was_there = self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.history.touch()
            yield
        except BaseException as error:
            for file in self.path.iterdir() if self.path.is_dir() else ():
                file.unlink()
            if not was_there and self.path.is_dir():
                self.path.rmdir()
            if isinstance(error, OSError):
                raise unwritable(self.path, error) from error
            raise

    def check_resumable(self) -> None:
        """Refuse a folder that holds no state to resume from.

        Raises:
            RunError: where the folder or its ``last.ckpt`` does not exist.
        """
        if not self.path.is_dir():
            raise RunError(
                "there is no such run folder", where=str(self.path), remedy="check the path given to --resume"
            )
        if self.last.is_file() and (self.path / "config.json").is_file():
            return
        if self.history.is_file():
            remedy = "delete the folder and start the run again"
            raise RunError("the run stopped before its first checkpoint", where=str(self.path), remedy=remedy)
        expected = "a folder with config.json, history.jsonl and last.ckpt"
        raise RunError("this is no run folder", where=str(self.path), expected=expected)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write ``content`` to the file ``name`` in one atomic step.

        Raises:
            RunError: where it cannot be written.
        """
        if not self.is_writer:
            return
        write_json(self.path / name, content)

    def read_json(self, name: str) -> dict[str, Any]:
        """Content of the file ``name``.

        Raises:
            RunError: where it is missing or damaged.
        """
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{name} cannot be read ({error})", where=str(self.path)) from error
        return content

    def append_history(self, line: Mapping[str, Any]) -> None:
        """Add one line to the history.

        Raises:
            RunError: where it cannot be written.
        """
        if not self.is_writer:
            return
        try:
            with self.history.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain_json(line), allow_nan=False) + "\n")
        except OSError as error:
            raise unwritable(self.history, error) from error

    def settled_history(self) -> int:
        """Bytes of the history so far; they are on the disk when this returns, as a checkpoint relies on them.

        Raises:
            RunError: where it is gone, or cannot be written.
        """
        if not self.is_writer:
            return 0
        try:
            with self.history.open("ab") as file:
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            raise unwritable(self.history, error) from error

    def cut_history(self, size: int) -> str | None:
        """Drop what was written after the checkpoint; those steps are about to be taken again.

        A history that is shorter than it was keeps its whole lines: nothing of the training depends on it.

        Args:
            size: bytes that it had at the checkpoint.

        Returns:
            What to tell of a history that was shortened.

        Raises:
            RunError: where it cannot be written.
        """
        if not self.is_writer:
            return None
        try:
            content = self.history.read_bytes() if self.history.is_file() else b""
            if len(content) >= size:
                os.truncate(self.history, size)
                return None
            whole = content[: content.rfind(b"\n") + 1]
            self.history.write_bytes(whole)
        except OSError as error:
            raise unwritable(self.history, error) from error
        return f"{self.history} was shortened since the checkpoint ({size:,} bytes then): its curves have a gap"


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold back Ctrl-C until the end of the block, so that no step is left half done."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    caught: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if caught:
        previous(*caught[0])
