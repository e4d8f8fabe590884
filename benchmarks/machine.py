"""What a result was measured on and with: what the library says of itself, and what a benchmark in
a real ComfyUI adds."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil

from lifelong_core.evaluation import record
from lifelong_core.launch import comfyui
from lifelong_core.launch.paths import ROOT

GIB = 2**30


def versions() -> dict[str, str]:
    """Of this pack, Python, the packages that matter, and ComfyUI if it is here."""
    found = {"lifelong": _version_in(ROOT / "pyproject.toml", r'^version = "(.+)"')}
    found |= record.versions()
    located = comfyui.locate()
    if located is not None:
        file = located.path / "comfyui_version.py"
        found["comfyui"] = _version_in(file, r"__version__ = \"(.+)\"")
    return found


def hardware() -> dict[str, Any]:
    """Processor, how much of it this process may use, memory, GPU and system."""
    cores = psutil.cpu_count()
    return record.hardware() | {
        "cores_used": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def load() -> float:
    """Processes that wanted a core, mean over the last minute, of this and all other programs."""
    return round(psutil.getloadavg()[0], 2)


def _version_in(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else "unknown"
