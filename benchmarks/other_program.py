"""The surroundings in which another vendor's detectors run, so that both sides are measured alike.

That program is under the AGPL. It is never imported here, only run as the command that it installs, in an environment
of its own. Python reads a file of ours as it starts, which changes what the program is told of the machine:

* It takes one thread less than there are cores, so it is told of one core more than it shall have threads.
* Where processor time counts, as it must on a machine that does other work, its clocks tell that.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""What can be counted; processor time is only for one thread, of which it is what an idle machine would take."""
_THREADS = "import os, time\nos.cpu_count = lambda: {cores}\n"
_PROCESSOR = """_start = time.time()
time.time = lambda: _start + time.process_time()
time.perf_counter = time.process_time
"""


def surroundings(folder: Path, threads: int, clock: str) -> dict[str, str]:
    """Environment variables for the program.

    Args:
        folder: that our file is written into.
        threads: that it shall take.
        clock: of ``CLOCKS``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = _THREADS.format(cores=threads + 1) + (_PROCESSOR if clock == "processor" else "")
    (folder / "sitecustomize.py").write_text(told, encoding="utf-8")
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(folder)}
