"""The form of every recorded result: one JSON that says what was measured, how, and on what."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..files import write_json

PACKAGES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "timm")


def write_record(
    path: Path,
    *,
    summary: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    command: str,
    settings: Mapping[str, Any],
) -> Path:
    """Write `summary` and `runs` with the command, settings, versions, hardware and date."""
    value = {
        "summary": dict(summary),
        "runs": [dict(run) for run in runs],
        "command": command,
        "settings": dict(settings),
        "versions": versions(),
        "hardware": hardware(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    return write_json(path, value)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def hardware() -> dict[str, Any]:
    """Processor, threads in use, and the GPU if there is one."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _processor() -> str:
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
