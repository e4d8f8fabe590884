"""Memory and time of a server's process while it runs a workflow."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import psutil

from benchmarks.machine import GIB

INTERVAL = 0.05
"""Seconds between two looks at the memory."""


class MemoryWatch:
    """The memory of a process while inside: what is resident, files mapped into it included."""

    def __init__(self, process: psutil.Process) -> None:
        self.process = process
        self.samples: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def peak_gib(self, start: float = 0.0, end: float = float("inf")) -> float:
        """The most between two readings of `time.monotonic`, what was there before included."""
        before = [size for moment, size in self.samples if moment < start][-1:]
        found = [size for moment, size in self.samples if start <= moment <= end]
        return round(max(before + found, default=0) / GIB, 2)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                self._look()
            except psutil.NoSuchProcess:
                return

    def _look(self) -> None:
        self.samples.append((time.monotonic(), self.process.memory_info().rss))


@dataclass
class Timeline:
    """When each node of a workflow ran in a server's process. Give it to a run as `on_event`."""

    workflow: Mapping[str, Any]
    process: psutil.Process
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Node id -> begin and end, each by the clock and by the processor's work for the process."""
    _current: str | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["type"] not in ("executing", "execution_success"):
            return
        work = self.process.cpu_times()
        now = (time.monotonic(), work.user + work.system)
        if self._current is not None:
            self.spans[self._current].append(now)
        node = event["data"].get("node")
        self._current = node if node in self.workflow else None
        if self._current is not None:
            self.spans[self._current] = [now]

    def table(self, memory: MemoryWatch) -> list[dict[str, Any]]:
        """Per node: its kind, seconds by the clock, seconds of work on the processor (which a busy
        machine does not stretch), and the most memory while it ran."""
        return [
            {
                "node": self.workflow[node]["class_type"],
                "seconds": round(end - start, 2),
                "cpu_seconds": round(work_end - work_start, 2),
                "peak_memory_gib": memory.peak_gib(start, end),
            }
            for node, ((start, work_start), (end, work_end)) in self.spans.items()
        ]
