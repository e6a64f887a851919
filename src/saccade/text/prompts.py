"""From class names to prompts: templates with a place for the name.

An ensemble of templates: Radford et al. 2021 (CLIP), arXiv 2103.00020, section 3.1.4. The packaged templates are those
of its repository.

K classes · M templates
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from saccade.errors import InputError, UnknownNameError

Templates = tuple[str, ...]
"""Texts with one ``{}`` each, where the name of the class goes."""

PLACE = "{}"
"""Where the name of the class goes."""

PHOTO: Templates = ("a photo of a {}.",)
"""The template that CLIP was published with."""


def names() -> tuple[str, ...]:
    """Names of the packaged sets of templates."""
    return ("plain", "photo", *_packaged()["templates"])


def templates(name: str) -> Templates:
    """A packaged set of templates by name, or one read from a text file with a template per line.

    Raises:
        UnknownNameError: where there is neither such a set nor such a file.
        InputError: where a line is no template.
    """
    if name == "plain":
        return (PLACE,)
    if name == "photo":
        return PHOTO
    if name in _packaged()["templates"]:
        return tuple(_packaged()["templates"][name])
    path = Path(name)
    if path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return check_templates([line for line in lines if line and not line.startswith("#")], where=name)
    if PLACE in name:
        return check_templates([name])
    raise UnknownNameError("set of templates", name, names(), where="templates")


def class_names(given: str) -> tuple[str, ...]:
    """Class names from one text: between commas, or the lines of the file that it names.

    Raises:
        InputError: where there is none, one is empty, or one repeats.
    """
    path = Path(given)
    # A long list of names is no path, and some systems refuse to look for one.
    if "," not in given and path.is_file():
        return check_names([line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()])
    return check_names(given.split(",") if given.strip() else [])


def as_templates(given: str | Sequence[str] | None) -> Templates | None:
    """Templates by the name of a set or a file, or as they are; None stays None.

    Raises:
        UnknownNameError: as ``templates``.
        InputError: where one has no place for the name.
    """
    if given is None:
        return None
    return templates(given) if isinstance(given, str) else check_templates(given)


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 names that CLIP's authors gave the classes of ImageNet; two pairs of classes share a name."""
    return tuple(_packaged()["imagenet_classes"])


def check_templates(given: Sequence[str], where: str | None = None) -> Templates:
    """The templates, each with one place for the name.

    Raises:
        InputError: where there is none, or one has no place or several.
    """
    if isinstance(given, str):
        raise InputError("templates are one text", where=where or "templates", expected="a sequence of texts")
    if not given:
        raise InputError(
            "there is no template", where=where or "templates", expected="texts such as 'a photo of a {}.'"
        )
    for template in given:
        if template.count(PLACE) != 1:
            raise InputError(
                f"the template {template!r} has {template.count(PLACE)} places for the name",
                where=where or "templates",
                expected="one {}, as in 'a photo of a {}.'",
            )
    return tuple(given)


def check_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names without spaces around them.

    Raises:
        InputError: where there is none, one is empty, or one repeats.
    """
    if isinstance(classes, str):
        raise InputError("classes are one text", where="classes", expected="a sequence of names")
    cleaned = tuple(name.strip() for name in classes)
    if not cleaned:
        raise InputError("there are no classes", where="classes", expected="at least one name")
    for place, name in enumerate(cleaned):
        if not name:
            raise InputError(f"the name of class {place} is empty", where="classes", expected="a prompt in words")
    folded = [name.casefold() for name in cleaned]
    for place, name in enumerate(folded):
        first = folded.index(name)
        if first != place:
            raise InputError(
                f"the class name {cleaned[place]!r} is there twice, as classes {first} and {place}",
                where="classes",
                expected="every name once",
                remedy="remove one, or say how they differ",
            )
    return cleaned


def fill(classes: Sequence[str], templates: Sequence[str] = PHOTO) -> list[str]:
    """The prompts of all classes, ``[K * M]``: all templates of the first class, then all of the second.

    Raises:
        InputError: where a name is empty or repeats, or a template has no place for it.
    """
    checked = check_templates(templates)
    return [template.replace(PLACE, name) for name in check_names(classes) for template in checked]


@functools.cache
def _packaged() -> dict[str, Any]:
    path = files("saccade").joinpath("assets", "clip_text", "prompts.json")
    packaged: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return packaged
