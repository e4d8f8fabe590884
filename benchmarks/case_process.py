"""The other end of `consolidation_case`: starts its processes and lets them take turns."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.child import Child
from benchmarks.consolidation_case import Case
from lifelong_core.errors import SetupError
from lifelong_core.launch.console import say

SEEN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc then gives every tensor back when it is freed, so that resident memory is that of tensors.
It costs time, which is why time and memory are measured in different processes."""
MEMORY_ITERATIONS = 3


@dataclass
class Times:
    """Seconds of a case's iterations on the clock and of the processor. first: with all that the
    phase does before; it counts nowhere else."""

    first: dict[str, float] = field(default_factory=dict)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class CaseProcess(Child):
    """A case that waits for its turns; use it as a context manager.

    ready: what it told when it was.
    """

    def __init__(
        self, case: Case, *, iterations: int, device: str, threads: int, memory: bool = False
    ) -> None:
        self.case = case
        self.times = Times()
        self.options = {
            "case": asdict(case),
            "iterations": iterations,
            "device": device,
            "threads": threads,
            "memory": memory,
        }
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), **(SEEN if memory else {})}
        super().__init__(case.name, env)

    def command(self, folder: Path) -> list[str]:
        """The same Python with another module; it keeps nothing in `folder`."""
        return [sys.executable, "-m", "benchmarks.consolidation_case", json.dumps(self.options)]

    def __enter__(self) -> CaseProcess:
        super().__enter__()
        return self

    def step(self) -> None:
        """One iteration."""
        took = self.ask()
        if not self.times.first:
            self.times.first = took
            return
        self.times.wall.append(took["wall"])
        self.times.cpu.append(took["cpu"])

    def end(self) -> float | None:
        """After the last iteration: the peak of memory in MiB, if the system tells."""
        peak: float | None = self.answer()["peak_mib"]
        return peak


def timed(
    cases: Sequence[Case], *, iterations: int, device: str, threads: int
) -> dict[Case, Times]:
    """Let the cases take turns, one iteration each in changing order: what disturbs one disturbs
    all. `iterations` count, after one that does not."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                CaseProcess(case, iterations=iterations + 1, device=device, threads=threads)
            )
            for case in cases
        ]
        for number in range(iterations + 1):
            for one in running if number % 2 == 0 else reversed(running):
                one.step()
        for one in running:
            one.end()
            seconds = f"{median(one.times.cpu):.3f} s of the processor"
            say(f"{one.case.name}: {seconds}, {median(one.times.wall):.3f} s by the clock")
        return {one.case: one.times for one in running}


def memory_of(case: Case, *, device: str, threads: int) -> dict[str, float]:
    """MiB at the peak of a few iterations. consolidation_mib: above what was there before them;
    loaded_mib: above a bare process, with model, state and pictures. Raises SetupError where the
    system does not tell.
    """
    process = CaseProcess(
        case, iterations=MEMORY_ITERATIONS, device=device, threads=threads, memory=True
    )
    with process:
        for _ in range(MEMORY_ITERATIONS):
            process.step()
        peak = process.end()
    if peak is None:
        raise SetupError("This system does not tell the peak of a process's memory; use Linux.")
    about = process.ready
    found = {
        "consolidation_mib": round(peak - about["loaded_mib"], 1),
        "loaded_mib": round(peak - about["bare_mib"], 1),
        "process_mib": round(peak, 1),
    }
    say(f"{case.name}: {found['consolidation_mib']} MiB")
    return found
