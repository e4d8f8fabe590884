"""Turns are taken one at a time, memory is what tensors take, ratios are the right way round."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import case_process
from benchmarks.case_process import CaseProcess, Times, timed
from benchmarks.consolidation_case import PHASES, Case, Turns, run_case
from benchmarks.consolidation_speed import (
    BATCHED,
    DISTIL,
    FISHER,
    GROUPS,
    ONE_UNET,
    PICTURES,
    SEPARATE,
    THREE_UNETS,
    row,
    summary,
)
from lifelong_core.backbone import random_backbone
from lifelong_core.consolidation import consolidation_defaults
from lifelong_core.errors import SetupError

CASES = [case for group in GROUPS for case in group]


def test_a_phase_waits_for_a_turn_before_every_iteration() -> None:
    backbone = random_backbone("demo")
    case = Case("fisher", concepts=3, subset=3, single=True)
    work, state = case.prepared(backbone, iterations=2, size=32)
    usual = consolidation_defaults("demo")
    pictures = usual.batch_size * usual.accumulation
    assert (work.settings.batch_size, work.settings.accumulation) == (1, pictures) != (1, 1)
    events: list[Any] = []
    turns = Turns(lambda: events.append("turn"), events.append)
    peak = run_case(case, work, state, turns, all_prompts=True)
    assert [event if event == "turn" else sorted(event) for event in events] == [
        "turn",
        ["cpu", "wall"],
        "turn",
        ["cpu", "wall"],
    ]
    assert all(event["cpu"] > 0 for event in events[1::2])
    assert peak is None or peak > 0


def test_cases_are_what_their_ratios_say() -> None:
    assert {case.phase for case in CASES} == set(PHASES)
    assert len(set(CASES)) == len(CASES) == 13
    for k, few in ((3, 2), (5, 4)):
        for cases, phase in ((FISHER, "fisher"), (DISTIL, "distillation")):
            assert cases[k, few] == Case(phase, few, k) and cases[k, 50] == Case(phase, 50, k)
    for compared in (
        {FISHER[3, 2], FISHER[3, 50]},
        {FISHER[5, 4], FISHER[5, 50], SEPARATE, PICTURES},
        {DISTIL[3, 2], DISTIL[3, 50]},
        {DISTIL[5, 4], DISTIL[5, 50], THREE_UNETS},
    ):
        assert any(compared <= set(group) for group in GROUPS)
    assert BATCHED.concepts == SEPARATE.concepts == 50 and ONE_UNET.concepts == 50


def times_of(cpu: float) -> Times:
    return Times({"cpu": 9.0, "wall": 9.0}, wall=[2 * cpu, 2 * cpu, 99.0], cpu=[cpu, cpu, 77.0])


def example() -> tuple[dict[Case, Times], dict[Case, dict[str, float]]]:
    times = {case: times_of(1.0) for case in CASES}
    memory = {
        case: {"consolidation_mib": 100.0, "loaded_mib": 200.0, "process_mib": 900.0}
        for case in CASES
    }
    return times, memory


def test_ratios_are_the_right_way_round_and_the_worse_one_leads() -> None:
    times, memory = example()
    times[SEPARATE] = times_of(3.0)
    times[PICTURES] = times_of(1.5)
    times[DISTIL[3, 50]] = times_of(1.2)
    times[FISHER[5, 4]] = times_of(0.5)
    times[THREE_UNETS] = times_of(1.25)
    times[FISHER[7, 50]] = times_of(1.75)
    memory[FISHER[3, 50]] |= {"consolidation_mib": 104.0}
    memory[ONE_UNET] |= {"loaded_mib": 160.0}
    result = summary(times, memory, clock=False)
    assert result["batched_speedup"] == result["clock_batched_speedup"] == 3.0
    assert result["batched_speedup_one_picture"] == 2.0
    assert result["iteration_50_over_2"] == result["iteration_50_over_2_dsc"] == 1.2
    assert result["iteration_50_over_2_fisher"] == 1.0
    assert result["iteration_50_over_4"] == result["iteration_50_over_4_fisher"] == 2.0
    assert result["dsc_one_unet_speedup"] == 1.25
    assert result["seconds_by_k"] == {"2": 1.0, "3": 1.0, "5": 1.0, "7": 1.75}
    assert result["clock_seconds_by_k"]["7"] == 3.5
    assert result["memory_50_over_2"] == result["memory_50_over_2_fisher"] == 1.04
    assert result["memory_50_over_2_dsc"] == result["loaded_memory_50_over_2"] == 1.0
    assert result["dsc_one_unet_memory"] == 0.8
    assert "clock_batched_speedup" not in summary(times, memory, clock=True)


def test_a_row_has_the_medians_and_all_that_they_are_made_of() -> None:
    times, memory = example()
    found = row(BATCHED, times[BATCHED], memory[BATCHED])
    assert found["cpu_seconds_per_iteration"] == 1.0
    assert found["wall_seconds_per_iteration"] == 2.0
    assert found["cpu_seconds"] == [1.0, 1.0, 77.0] and found["process_mib"] == 900.0


class Fake(CaseProcess):
    """A case without a process."""

    log: list[str] = []

    def __enter__(self) -> Fake:
        return self

    def step(self) -> None:
        self.log.append(self.case.phase)
        self.times.wall.append(1.0)
        self.times.cpu.append(1.0)

    def end(self) -> float | None:
        return None


def test_cases_take_turns_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_process, "CaseProcess", Fake)
    monkeypatch.setattr(Fake, "log", [])
    cases = (Case("a", 2, 3), Case("b", 50, 3))
    assert list(timed(cases, iterations=2, device="cpu", threads=1)) == list(cases)
    assert Fake.log == ["a", "b", "b", "a", "a", "b"]


def test_a_case_that_breaks_off_says_why() -> None:
    class Broken(CaseProcess):
        def command(self, folder: Path) -> list[str]:
            return [*super().command(folder)[:1], "-c", "raise SystemExit('that went wrong')"]

    broken = Broken(Case("no such phase", 2, 3), iterations=1, device="cpu", threads=1)
    with pytest.raises(SetupError, match="no such phase.*\n.*that went wrong"), broken:
        pass
    assert json.loads(json.dumps(asdict(broken.case)))["phase"] == "no such phase"
