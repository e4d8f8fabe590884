"""Memory peaks and times of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from benchmarks import watch
from benchmarks.machine import GIB
from benchmarks.watch import INTERVAL, MemoryWatch, Timeline


class Process:
    """Stands for a process whose memory the test decides."""

    gib = 1.0

    def memory_info(self) -> SimpleNamespace:
        return SimpleNamespace(rss=int(self.gib * GIB))


def test_a_peak_is_seen_and_only_while_it_lasts() -> None:
    process = Process()
    with MemoryWatch(cast(psutil.Process, process)) as memory:
        process.gib = 3.0
        wait_for_samples(memory)
        process.gib = 2.0
        wait_for_samples(memory)
        after = time.monotonic()
        wait_for_samples(memory)
    assert memory.peak_gib() == 3.0
    assert memory.peak_gib(end=memory.samples[0][0]) == 1.0
    assert memory.peak_gib(start=after) == 2.0
    assert memory.peak_gib(start=time.monotonic()) == 2.0


def test_the_memory_of_a_real_process_is_read() -> None:
    with MemoryWatch(psutil.Process()) as memory:
        assert 0.01 < memory.peak_gib() < 1000


def wait_for_samples(memory: MemoryWatch) -> None:
    seen = len(memory.samples)
    while len(memory.samples) < seen + 2:
        time.sleep(INTERVAL)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ticks = count()
    monkeypatch.setattr(watch.time, "monotonic", lambda: float(next(ticks)))
    yield


def test_nodes_are_timed(clock: None) -> None:
    process = psutil.Process()
    timeline = Timeline({"1": {"class_type": "Loader"}, "2": {"class_type": "Lesson"}}, process)
    events = [
        ("execution_start", {}),
        ("executing", {"node": "1"}),
        ("executing", {"node": "2"}),
        ("progress", {"node": "2", "value": 1, "max": 20}),
        ("status", {}),
        ("execution_success", {"prompt_id": "x"}),
    ]
    for kind, data in events:
        if kind == "progress":
            sum(range(20_000_000))
        timeline({"type": kind, "data": data})
    with MemoryWatch(process) as memory:
        memory.samples[:] = [(0.5, 2**31), (1.5, 2**30), (9.0, 2**32)]
        table = timeline.table(memory)
    idle, busy = (row.pop("cpu_seconds") for row in table)
    assert 0 <= idle < busy
    assert table == [
        {"node": "Loader", "seconds": 1.0, "peak_memory_gib": 2.0},
        {"node": "Lesson", "seconds": 1.0, "peak_memory_gib": 2.0},
    ]
