"""Memory that a process of our own keeps instead of handing it back to the system after every layer.

glibc gives blocks above 32 MB back as soon as they are free, and the system clears every page of the next one: feature
maps of a few dozen photographs cost more time in that than in arithmetic (half of the time of a MobileNetV2 forward
pass of 32 pictures on two cores). A command is a short-lived process that can keep its memory; a library must not
decide this for the program that imports it, so only the command line does.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of malloc.h
_KEEP = 1 << 30


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks of up to a gigabyte for this process; whether it agreed."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEEP)) and bool(mallopt(_TRIM_THRESHOLD, _KEEP))
