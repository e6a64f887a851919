"""The command-line surface is frozen: an option appears or goes only together with this list."""

from __future__ import annotations

import typer.main

from saccade.cli import app

SURFACE = {
    "data convert": ["--copy", "--lossy", "--strict", "--task", "--to", "DATA", "DESTINATION"],
    "data inspect": ["--out", "--strict", "--task", "DATA"],
    "data make": ["--count", "--seed", "--size", "--task", "OUT"],
    "demo": ["--out", "--overwrite"],
    "evaluate": [
        "--batch-size",
        "--classes",
        "--device",
        "--out",
        "--predictions",
        "--split",
        "--strict",
        "--templates",
        "DATA",
        "MODEL",
    ],
    "explain": [
        "--against",
        "--classes",
        "--device",
        "--layer",
        "--method",
        "--of",
        "--out",
        "--templates",
        "--verdict",
        "IMAGES...",
        "MODEL",
    ],
    "models": ["--json", "--task"],
    "predict": [
        "--boxes",
        "--classes",
        "--device",
        "--exact",
        "--json",
        "--map",
        "--out",
        "--score",
        "--templates",
        "--top",
        "IMAGES...",
        "MODEL",
    ],
    "search": ["--device", "--half", "--json", "--out", "--top", "FOLDER", "MODEL", "QUERY"],
    "study": ["--out", "--quick", "--quiet", "--task", "--workers", "DATA", "NAME"],
    "train": [
        "--batch-size",
        "--epochs",
        "--freeze",
        "--lr",
        "--out",
        "--quiet",
        "--resume",
        "--seed",
        "--set",
        "--strict",
        "--weights",
        "DATA",
        "MODEL",
    ],
}


def surface() -> dict[str, list[str]]:
    found = {}
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None) or {"": command}
        for sub, leaf in inner.items():
            words = [p.metavar if p.param_type_name == "argument" else p.opts[0] for p in leaf.params]
            found[f"{name} {sub}".strip()] = sorted(words)
    return found


def test_surface_is_frozen() -> None:
    assert surface() == SURFACE


def test_every_option_says_what_it_does() -> None:
    root = typer.main.get_command(app)
    for command in root.commands.values():  # type: ignore[attr-defined]
        for leaf in (getattr(command, "commands", None) or {"": command}).values():
            assert leaf.help, leaf.name
            assert all(parameter.help for parameter in leaf.params), leaf.name
