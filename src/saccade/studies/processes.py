"""Processes for trials, each a copy of one that has imported everything and done nothing else.

Importing takes as long as a short trial, so it is done once, and beside whatever else has to be done first. That
process is started afresh: a copy of the caller could inherit locks of its threads.
"""

from __future__ import annotations

import sys
from multiprocessing import get_context
from multiprocessing.context import BaseContext


def new_context() -> BaseContext:
    """How processes are started; where the system cannot copy them, each imports for itself."""
    if sys.platform == "win32":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["saccade.studies.run"])
    return context


def prepare() -> None:
    """Start the process that copies are made of, and do not wait for it."""
    if sys.platform != "win32":
        from multiprocessing.forkserver import ensure_running  # which win32 has not

        new_context()
        ensure_running()
