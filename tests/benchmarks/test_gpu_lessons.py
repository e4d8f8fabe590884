"""Every batch but the first is timed, and all three kinds of work run, here on the demo model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import consolidation_case, gpu_lessons
from benchmarks.gpu_lessons import PHASES_SHOWN, Clock, measure
from lifelong_core.consolidation import consolidation_defaults
from lifelong_core.lesson import defaults_for
from lifelong_core.training import Progress


def test_the_time_between_two_batches_is_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(torch.device("cpu"))
    for step, now in ((0, 1.0), (1, 5.0), (2, 7.0), (3, 10.0)):
        monkeypatch.setattr(gpu_lessons.time, "perf_counter", lambda now=now: now)
        clock(Progress(step, 3, {}))
    assert clock.seconds == [2.0, 3.0]


def test_a_lesson_and_both_phases_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_lessons.FAMILIES, "small", "demo")
    monkeypatch.setattr(
        gpu_lessons, "defaults_for", lambda name: replace(defaults_for(name), precision="bf16")
    )
    monkeypatch.setattr(
        consolidation_case,
        "consolidation_defaults",
        lambda name: replace(consolidation_defaults(name), precision="bf16"),
    )
    found = measure("small", "cpu", 32, 3)
    assert set(found) == {"size", "model_mib", "lesson", *PHASES_SHOWN}
    usual, after = defaults_for("demo"), consolidation_defaults("demo")
    assert found["lesson"]["usual_batches"] == usual.steps * usual.accumulation
    assert found["fisher"]["usual_batches"] == after.fisher_iterations * after.accumulation
    for kind in ("lesson", *PHASES_SHOWN):
        assert found[kind]["seconds_per_batch"] > 0
        minutes = found[kind]["seconds_per_batch"] * found[kind]["usual_batches"] / 60
        assert found[kind]["usual_minutes"] == pytest.approx(minutes, abs=0.01)
