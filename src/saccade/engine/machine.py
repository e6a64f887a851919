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
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.plugins.precision import Precision as FabricPrecision
from torch import nn

import saccade
from saccade.engine.plan import Precision, TrainConfig
from saccade.errors import ConfigError

MIN_BFLOAT16_WIDTH = 128
"""Where no matrix of a model is as wide as this on both sides, casting costs a processor more than multiplying saves:
measured on AVX-512 with bf16, transformers' steps of width 64, 128, 192 and 384 run 0.6, 1.0, 1.4 and 1.7 times as
fast."""


def find_device(wanted: str | torch.device = "auto") -> torch.device:
    """A device by the name that a user gave it; ``auto`` is a CUDA GPU where there is one, else the processor.

    Raises:
        ConfigError: no such device here, or no such name.
    """
    text = str(wanted)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, colon, number = text.partition(":")
    if text != "cpu" and (kind != "cuda" or (colon and not number.isdecimal())):
        raise ConfigError(f"{text!r} is no device", where="device", expected="auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= count:
        if not count:
            remedy = "use auto or cpu; a torch built for CUDA and a driver are what a GPU needs"
            raise ConfigError("there is no CUDA device", where="device", remedy=remedy)
        last = f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0"
        raise ConfigError(f"there is no device {text}", where="device", expected=last)
    return torch.device(text)


def build_fabric(config: TrainConfig, width: int) -> tuple[Fabric, str]:
    """Fabric for this process, or for all processes of a ``torchrun``; and why its precision is what it is.

    Args:
        config: device and precision.
        width: of the model, as ``matrix_width`` measures it.
    """
    device = find_device(config.device).type
    precision, reason = choose_precision(config.precision, torch.device(device), width)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes == 1:
        return Fabric(accelerator=device, devices=1, plugins=_plugin(precision, device)), reason
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(num_processes)))
    nodes = num_processes // per_node
    plugin = _plugin(precision, device)
    fabric = Fabric(accelerator=device, devices=per_node, num_nodes=nodes, strategy="ddp", plugins=plugin)
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


def _plugin(precision: Literal["32-true", "bf16-mixed"], device: str) -> FabricPrecision:
    """Fabric's own part for a precision; asked for by name, it would announce itself between our lines."""
    return FabricPrecision() if precision == "32-true" else MixedPrecision("bf16-mixed", device)


def matrix_width(model: nn.Module) -> int:
    """The shorter side of the model's widest matrix; a convolution counts as the matrix of its output channels.

    A model made of convolutions is wide enough in any case: from 8 to 64 channels, their training steps are 1.6 to 3.3
    times as fast in bfloat16 (AVX-512), because float32 has to rearrange its pictures for every kernel.
    """
    parameters = [p for p in model.parameters() if p.ndim > 1 and p.numel()]
    kernels = sum(p.numel() for p in parameters if p.ndim == 4 and p.shape[-1] > 1)
    widest = max((min(len(p), p.numel() // len(p)) for p in parameters), default=0)
    return max(widest, MIN_BFLOAT16_WIDTH) if kernels > sum(p.numel() for p in parameters) / 2 else widest


def choose_precision(
    requested: Precision, device: torch.device, width: int
) -> tuple[Literal["32-true", "bf16-mixed"], str]:
    """Precision of the training in Fabric's words, and why; the same model on the same machine gets the same answer.

    bfloat16 pays only where the machine multiplies it in hardware (an ordinary processor emulates it three to five
    times slower) and, on a processor, where there is enough to multiply.
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
    if has_hardware and device.type == "cpu" and width < MIN_BFLOAT16_WIDTH:
        return "32-true", f"float32: the model is too narrow ({width}) for bfloat16 to pay on a processor"
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
