"""What guidance costs: a whole generation with CAA and OAA over a plain one.

python -m benchmarks.guidance_speed: 50 steps, one picture, with the settings of
`benchmarks.guidance`, on the demo model; beside it diffusers' pipeline of attend-and-excite on the
same UNet, with its refinement (on random weights it never reaches its targets, so it always goes
to the cap) and without. `--family sd15` measures SD1.5's size at 512 pixels, on random weights;
`--cases caa_oaa attend_and_excite` leaves the others out.

Every case runs in processes of its own, taking turns on a CPU; on a GPU, where loading takes longer
than drawing, it draws again in one process. Time is the processor's on a CPU, which other programs
stretch least, and the clock's on a GPU; medians. Memory is the peak of the whole process with its
model, of tensors on a GPU. What was measured is kept: a command that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.case_process import SEEN
from benchmarks.checkpoints import checkpoint
from benchmarks.child import answer_of
from benchmarks.guidance import METHODS, PLAIN
from benchmarks.guidance_speed_case import (
    CASES,
    EXCITE,
    EXCITE_ONCE,
    FAMILIES,
    OURS,
    PROMPT,
    Case,
)
from benchmarks.kept import kept_json
from benchmarks.machine import hardware
from benchmarks.record import RESULTS, Recorder
from lifelong_core.attention import map_layers
from lifelong_core.files import content_hash
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import CACHE

WORK = CACHE / "guidance_speed"
STEPS, ROUNDS, MEMORY_STEPS = 50, 3, 2
NAMES = {OURS: "", EXCITE: "attend_and_excite_", EXCITE_ONCE: f"{EXCITE_ONCE}_"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance_speed")
    parser.add_argument("--family", choices=tuple(FAMILIES), default="demo")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=tuple(NAMES), default=list(NAMES))
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    dtype = "float16" if on_gpu and options.family != "demo" else "float32"
    settings = METHODS[OURS]
    assert settings is not None
    layers = list(map_layers(FAMILIES[options.family]))
    say(f"The gradient pass runs to the last of: {', '.join(layers)}")
    shared = {"guidance": asdict(settings), "prompt": PROMPT}
    recorder = Recorder(
        "guidance_speed",
        f"python -m benchmarks.guidance_speed --family {options.family} --rounds {options.rounds} "
        f"--cases {' '.join(options.cases)}",
        shared,
        folder=RESULTS if options.steps == STEPS else WORK,
    )
    names = [name for name in CASES if name in (PLAIN, *options.cases)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, list[float]] = {name: [] for name in names}
    repeats = options.rounds if on_gpu else 1
    about = (options.steps, repeats, options.device, dtype, options.threads)
    work = WORK / content_hash(shared, hardware(), options.family, list(about))
    with tempfile.TemporaryDirectory() as folder:
        weights = checkpoint(FAMILIES[options.family], Path(folder), getattr(torch, dtype))
        cases = {name: Case(name, str(weights), *about) for name in names}
        for number in range(options.rounds // repeats):
            for name, case in cases.items():
                told = kept_json(work, f"{name}, round {number}", partial(_run, case))
                seconds[name] += told["wall" if on_gpu else "cpu"]
                if on_gpu:  # It counts tensors, whatever the system gives back.
                    memory[name].append(told["peak_mib"])
                say(f"{name}: {median(seconds[name]):.2f} s")
        if not on_gpu:
            memory = {
                name: kept_json(work, f"memory of {name}", partial(_memory, case))
                for name, case in cases.items()
            }
    result: dict[str, Any] = {
        f"{NAMES[name]}{kind}_ratio": round(median(of[name]) / median(of[PLAIN]), 4)
        for name in names
        if name != PLAIN
        for kind, of in (("time", seconds), ("memory", memory))
        if of[name] and of[PLAIN]
    }
    result |= {
        "steps": options.steps,
        "layers": layers,
        "device": options.device,
        "dtype": dtype,
        "seconds": {name: round(median(values), 3) for name, values in seconds.items()},
        "peak_mib": {name: round(median(values), 1) for name, values in memory.items() if values},
    }
    run = {"family": options.family, "seconds": seconds, "hardware": hardware()}
    write(recorder, options.family, result, run)
    shutil.rmtree(work)
    say(json.dumps(result, indent=1))


def _run(case: Case, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The case in a fresh process. Raises SetupError with what it said when it fails."""
    threads = {"OMP_NUM_THREADS": str(case.threads)}
    return answer_of(
        case.name,
        "benchmarks.guidance_speed_case",
        [json.dumps(asdict(case))],
        {**os.environ, **threads, **(environment or {})},
    )


def _memory(case: Case) -> list[float]:
    """Peak in MiB of a run of few steps that gives memory back at once; none if not told."""
    few = replace(case, steps=MEMORY_STEPS)
    peak = _run(few, SEEN)["peak_mib"]
    return [] if peak is None else [peak]


def write(recorder: Recorder, family: str, result: dict[str, Any], run: dict[str, Any]) -> None:
    """Put a family's result into the record, beside those of other families."""
    known = recorder.earlier() or {"summary": {}, "runs": []}
    others = [one for one in known["runs"] if one["family"] != family]
    recorder.write({**known["summary"], family: result}, [*others, run])


if __name__ == "__main__":
    main()
