"""Wall time and peak memory of the phases of a run."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..training import Progress

MIB = 2**20
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

PARTS = {
    "remembered": "memory",
    "prior": "lesson",
    "dsc": "distillation",
    "fisher": "fisher",
}
"""How the name of a phase begins in `Progress` -> the part of a lesson that it belongs to."""


@dataclass
class Phase:
    """seconds: wall time; peak_mib: most memory at a time, of the GPU's tensors where the model
    lies on one, else of this process; None where the system does not tell."""

    seconds: float = 0.0
    peak_mib: float | None = None


@contextlib.contextmanager
def measured(device: torch.device) -> Iterator[Phase]:
    """Fills the phase when the block ends."""
    phase = Phase()
    _forget_peak(device)
    began = time.monotonic()
    yield phase
    phase.seconds = time.monotonic() - began
    phase.peak_mib = _peak_mib(device)


class PartsWatch:
    """An `on_progress` that tells the parts of a lesson apart: what went on since the call before
    belongs to the part of the phase that is named. Parts that are not run are not in `parts`.
    """

    def __init__(self, device: torch.device) -> None:
        self.parts: dict[str, Phase] = {}
        self._device = device
        self._since = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        phase, now = progress.phase, time.monotonic()
        name = next((part for start, part in PARTS.items() if phase.startswith(start)), phase)
        part = self.parts.setdefault(name, Phase())
        part.seconds += now - self._since
        part.peak_mib = highest(part.peak_mib, _peak_mib(self._device))
        self._since = now
        _forget_peak(self._device)


def highest(*peaks: float | None) -> float | None:
    """The largest of those that are known; None where none is."""
    return max((peak for peak in peaks if peak is not None), default=None)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        with contextlib.suppress(OSError):
            _RESET.write_text("5")  # Linux: the highest resident size counts anew from now on


def _peak_mib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    if not _RESET.exists():
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else None
