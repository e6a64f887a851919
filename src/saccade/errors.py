"""Every error a user can cause, each one sentence: what, where, expected, remedy.

    SaccadeError
    ├── ConfigError         a config value, a dotted override, a command-line option
    ├── UnknownNameError    a model, method, class or option that does not exist; offers the nearest name
    ├── InputError          an array, tensor or size given by the caller
    ├── DataError           a data set on disk
    │   └── ImageError      one image file
    ├── WeightsError        a file of weights, or weights of another architecture
    ├── RunError            a run folder: exists already, cannot be written, cannot be resumed
    ├── TrainingError       training cannot go on (non-finite loss)
    └── ExplainError        an explanation that cannot be computed for this model

The command line prints the sentence and exits with status 2; the traceback appears with ``--debug`` only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SaccadeError(Exception):
    """A mistake the user can mend.

    Args:
        what: what is wrong, as a clause ("the image is empty").
        where: file, index or key path at fault.
        expected: what would have been right.
        remedy: what to do now, as an imperative.
    """

    def __init__(
        self, what: str, *, where: str | None = None, expected: str | None = None, remedy: str | None = None
    ) -> None:
        self.what, self.where, self.expected, self.remedy = what, where, expected, remedy
        super().__init__(what)

    def __str__(self) -> str:
        sentence = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            sentence += f"; expected {self.expected}"
        if self.remedy:
            sentence += f"; {self.remedy}"
        return sentence

    def __reduce__(self) -> tuple[object, ...]:
        # Loader processes send their exceptions to the parent: keyword arguments have to survive that.
        return (_rebuild, (type(self), self.what, self.where, self.expected, self.remedy))


def _rebuild(
    kind: type[SaccadeError], what: str, where: str | None, expected: str | None, remedy: str | None
) -> SaccadeError:
    error = kind.__new__(kind)
    SaccadeError.__init__(error, what, where=where, expected=expected, remedy=remedy)
    return error


class ConfigError(SaccadeError):
    """A config value, a dotted override or an option is wrong."""


class UnknownNameError(SaccadeError):
    """A name that does not exist; the message offers the nearest one.

    Args:
        kind: what the name stands for ("model", "method", "class").
        name: the name as given.
        choices: the names that exist.
    """

    def __init__(self, kind: str, name: str, choices: Iterable[str], *, where: str | None = None) -> None:
        self.kind, self.name, self.choices = kind, name, tuple(choices)
        near = nearest(name, self.choices)
        shown = ", ".join(self.choices[:12]) + (", ..." if len(self.choices) > 12 else "")
        super().__init__(
            f"unknown {kind} {name!r}",
            where=where,
            expected=None if near else f"one of: {shown or '(none)'}",
            remedy=f"did you mean {near!r}?" if near else None,
        )


class InputError(SaccadeError):
    """An array, tensor or size given by the caller is wrong."""


class DataError(SaccadeError):
    """A data set on disk is wrong."""


class ImageError(DataError):
    """One image file cannot be used."""


class WeightsError(SaccadeError):
    """A file of weights is damaged, foreign, or of another architecture."""


class RunError(SaccadeError):
    """A run folder exists already, cannot be written, or cannot be resumed."""


class TrainingError(SaccadeError):
    """Training cannot go on."""


class ExplainError(SaccadeError):
    """An explanation cannot be computed for this model."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of an accelerator is full, by whatever class."""
    # torch is not imported for this: its class for accelerators is known by name, and of the processor's memory it
    # tells with a plain RuntimeError.
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``name``, ignoring case, or None where nothing comes close."""
    lowered = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None
