"""What a result was measured on and with."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from lifelong_core.launch import comfyui
from lifelong_core.launch.paths import ROOT

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")
GIB = 2**30


def versions() -> dict[str, str]:
    """Of this pack, Python, the packages that matter, and ComfyUI if it is here."""
    found = {
        "lifelong": _version_in(ROOT / "pyproject.toml", r'^version = "(.+)"'),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }
    located = comfyui.locate()
    if located is not None:
        file = located.path / "comfyui_version.py"
        found["comfyui"] = _version_in(file, r"__version__ = \"(.+)\"")
    return found


def hardware() -> dict[str, Any]:
    """Processor, how much of it this process may use, memory, accelerator and system."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def load() -> float:
    """Processes that wanted a core, mean over the last minute, of this and all other programs."""
    return round(psutil.getloadavg()[0], 2)


def _processor() -> str:
    """The model's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        return _version_in(cpuinfo, r"^model name\s*:\s*(.+)")
    return platform.processor()


def _version_in(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1].strip() if match else "unknown"
