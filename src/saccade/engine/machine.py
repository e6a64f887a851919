"""The machine a training runs on: its processes, its precision, and what it was, for the record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric

import saccade
from saccade.engine.plan import Precision, TrainConfig
from saccade.errors import ConfigError


def build_fabric(config: TrainConfig) -> tuple[Fabric, str]:
    """Fabric for this process, or for all processes of a ``torchrun``; and why its precision is what it is."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device", where="device", remedy="use device=auto or device=cpu")
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    precision, reason = choose_precision(config.precision, torch.device(device))
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes == 1:
        return Fabric(accelerator=device, devices=1, precision=precision), reason
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(num_processes)))
    nodes = num_processes // per_node
    fabric = Fabric(accelerator=device, devices=per_node, num_nodes=nodes, strategy="ddp", precision=precision)
    fabric.launch()
    return fabric, reason


def environment(device: torch.device, precision: str, seed: int) -> dict[str, Any]:
    """What a figure of this run may depend on beside code and data."""
    packages = ("torch", "torchvision", "timm", "numpy", "lightning-fabric", "safetensors")
    return {
        "saccade": saccade.__version__,
        "python": sys.version.split()[0],
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "seed": seed,
    }


def choose_precision(requested: Precision, device: torch.device) -> tuple[Literal["32-true", "bf16-mixed"], str]:
    """Precision of the training in Fabric's words, and why.

    bfloat16 pays only where the machine multiplies it in hardware: an ordinary processor emulates it three to five
    times slower.
    """
    if requested == "32":
        return "32-true", "float32, as asked"
    if device.type == "cuda":
        has_hardware, place = torch.cuda.get_device_capability(device)[0] >= 8, torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        has_hardware = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
        place = "this processor"
    else:
        has_hardware, place = False, str(device)
    if requested == "bf16":
        emulated = "" if has_hardware else f", although {place} only emulates it, several times slower"
        return "bf16-mixed", f"bfloat16 autocast, as asked{emulated}"
    if has_hardware:
        return "bf16-mixed", f"bfloat16 autocast: {place} has the hardware for it"
    return "32-true", f"float32: {place} has no bfloat16 hardware"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
