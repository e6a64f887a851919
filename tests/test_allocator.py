"""A command keeps freed memory; whoever imports the library keeps the allocator as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
if sys.argv[1] == "keep":
    from saccade.allocator import keep_freed_memory
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until the heap has found its size
    torch.ones(24_000_000)
start = faults()
for _ in range(5):
    torch.ones(24_000_000)
print(faults() - start)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROBE, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_are_used_again() -> None:
    assert faults("keep") * 4 < faults("leave")
