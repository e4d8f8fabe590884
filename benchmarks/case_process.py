"""The other end of `consolidation_case`: starts its processes and lets them take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from benchmarks.consolidation_case import Case
from lifelong_core.errors import SetupError
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import ROOT

SEEN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc then gives every tensor back when it is freed, so that resident memory is that of tensors.
It costs time, which is why time and memory are measured in different processes."""
MEMORY_ITERATIONS = 3
LOG_TAIL = 4000


@dataclass
class Times:
    """Seconds of a case's iterations on the clock and of the processor. first: with all that the
    phase does before; it counts nowhere else."""

    first: dict[str, float] = field(default_factory=dict)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class CaseProcess:
    """A case that waits for its turns; use it as a context manager.

    about: what it told when it was ready.
    """

    def __init__(
        self, case: Case, *, iterations: int, device: str, threads: int, memory: bool = False
    ) -> None:
        self.case = case
        self.times = Times()
        self.about: dict[str, Any] = {}
        options = {
            "case": asdict(case),
            "iterations": iterations,
            "device": device,
            "threads": threads,
            "memory": memory,
        }
        self._command = [sys.executable, "-m", "benchmarks.consolidation_case", json.dumps(options)]
        self._env = {**os.environ, "OMP_NUM_THREADS": str(threads), **(SEEN if memory else {})}
        self._process: subprocess.Popen[str] | None = None
        self._log: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> CaseProcess:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._log = Path(folder) / "log.txt"
        log = self._stack.enter_context(self._log.open("wb"))
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        )
        try:
            self.about = self._answer()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def step(self) -> None:
        """One iteration."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        took = self._answer()
        if not self.times.first:
            self.times.first = took
            return
        self.times.wall.append(took["wall"])
        self.times.cpu.append(took["cpu"])

    def end(self) -> float | None:
        """After the last iteration: the peak of memory in MiB, if the system tells."""
        peak: float | None = self._answer()["peak_mib"]
        return peak

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            assert self._log is not None
            log = self._log.read_text(encoding="utf-8", errors="replace")
            raise SetupError(f"{self.case.name} ended early:\n{log[-LOG_TAIL:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
        self._stack.close()


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
    about = process.about
    found = {
        "consolidation_mib": round(peak - about["loaded_mib"], 1),
        "loaded_mib": round(peak - about["bare_mib"], 1),
        "process_mib": round(peak, 1),
    }
    say(f"{case.name}: {found['consolidation_mib']} MiB")
    return found
