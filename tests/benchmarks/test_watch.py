"""Memory peaks and times of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count

import numpy as np
import psutil
import pytest

from benchmarks import watch
from benchmarks.watch import INTERVAL, MemoryWatch, Timeline


def test_a_peak_is_seen_and_only_while_it_lasts() -> None:
    with MemoryWatch(psutil.Process()) as memory:
        before = memory.peak_gib()
        block = np.ones(2**28, np.uint8)
        wait_for_samples(memory)
        del block
        wait_for_samples(memory)
        after = time.monotonic()
        wait_for_samples(memory)
    assert memory.peak_gib() >= before + 0.2
    assert 0 < memory.peak_gib(start=after) <= memory.peak_gib() - 0.2
    assert memory.peak_gib(start=time.monotonic()) == memory.peak_gib(memory.samples[-1][0])


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
