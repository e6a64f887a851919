"""Measuring two ways of doing one thing fairly: interleaved in one process, medians, tables and JSON rows."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def compare(ways: Mapping[str, Callable[[], object]], repeats: int = 7, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each way, and ``ratio``: the median over rounds of first over second way.

    In every round each way runs once, and the order turns from round to round, so that a busy machine, caches and clock
    speed meet all of them alike.
    """
    for _ in range(warmup):
        for way in ways.values():
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            ways[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    if len(names) >= 2:
        pairs = zip(seconds[names[0]], seconds[names[1]], strict=True)
        medians["ratio"] = statistics.median(first / second for first, second in pairs)
    return medians


def machine() -> Row:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def peak_memory() -> float:
    """The most MiB this process has held at once.

    The kernel's figure of the address space, where there is one: that of ``getrusage`` starts at what the parent held.
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def parser(description: str) -> argparse.ArgumentParser:
    """Options every benchmark has: ``--json``, ``--repeats``, ``--threads``."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", type=Path, default=None, help="write the rows here")
    options.add_argument("--repeats", type=int, default=7, help="interleaved rounds")
    options.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's own choice")
    return options


def table(rows: Sequence[Row]) -> str:
    """Rows as an aligned text table; numbers with four significant digits."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def report(rows: Sequence[Row], path: Path | None = None) -> None:
    """Print the rows and, where asked, save them with the machine they were measured on."""
    print(table(rows))
    if path is not None:
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps({"machine": machine(), "rows": list(rows)}, indent=2) + "\n", encoding="utf-8")
        part.replace(path)


def _processor() -> str:
    """Name of the processor and which fast multiplications it has."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = [flag for flag in ("avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if flag in text]
    return " ".join([*(names[:1] or [platform.machine()]), f"({' '.join(flags)})" if flags else ""]).strip()


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
