"""The public names, and the promise that `import saccade` is light."""

from __future__ import annotations

import subprocess
import sys

import saccade


def test_public_names_are_frozen() -> None:
    assert saccade.__all__ == [
        "SaccadeError",
        "__version__",
        "convert",
        "create",
        "evaluate",
        "explain",
        "load",
        "predict",
        "register",
        "search",
        "study",
        "train",
    ]


def test_every_public_name_resolves_and_has_a_docstring() -> None:
    for name in saccade.__all__:
        value = getattr(saccade, name)
        assert value is not None
        if name != "__version__":
            assert value.__doc__


def test_import_needs_no_torch() -> None:
    code = "import sys, saccade; sys.exit(int(any(name in sys.modules for name in ('torch', 'numpy', 'PIL', 'timm'))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['saccade', '--help']\n"
        "from saccade.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(saccade, "no_such_name")


def test_a_public_function_is_not_shadowed_by_a_package() -> None:
    """A subpackage of the same name would replace the function as soon as it is imported."""
    import saccade.explanation.gradients

    assert callable(saccade.explain)
