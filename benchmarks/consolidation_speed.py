"""What an iteration of a consolidation costs, in time and in memory.

python -m benchmarks.consolidation_speed: on the demo model, with states of made concepts.

- EWC DC, all pictures and concepts of an iteration in one pass, against the paper's way: picture by
  picture, k passes of one row each.
- The Fisher and the distillation at 50 known concepts against 2 (k = 3), and against 4 (k = 5).
- The Fisher at 50 known concepts for k of 2, 3, 5 and 7, in seconds.
- The distillation with its three models on one UNet, against three UNets.

Each case runs in a process of its own; those that are compared take turns, one iteration each. The
time of an iteration is the processor time of its process on one thread, which other programs
stretch least; the time on the clock is recorded beside it, and is what counts on a GPU. Memory is
measured apart, in processes that run alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.case_process import MEMORY_ITERATIONS, Times, memory_of, timed
from benchmarks.consolidation_case import PHOTOS, Case
from benchmarks.record import RESULTS, Recorder
from lifelong_core.consolidation import consolidation_defaults
from lifelong_core.launch.console import ended_by_signals, say
from lifelong_core.world.shipped import weights_path

THREADS = 1
ITERATIONS = 20
FEW, MANY = {3: 2, 5: 4}, 50
"""k -> few concepts that it is told apart from; and many."""

SUBSETS = (2, 3, 5, 7)

FISHER = {(k, n): Case("fisher", n, k) for k, few in FEW.items() for n in (few, MANY)}
FISHER |= {(k, MANY): Case("fisher", MANY, k) for k in SUBSETS}
DISTIL = {(k, n): Case("distillation", n, k) for k, few in FEW.items() for n in (few, MANY)}
BATCHED = FISHER[5, MANY]
PICTURES = Case("fisher", MANY, 5, single=True)
SEPARATE = Case("fisher, separate passes", MANY, 5, single=True)
ONE_UNET = DISTIL[5, MANY]
THREE_UNETS = Case("distillation, three UNets", MANY, 5)
GROUPS = (
    (FISHER[3, 2], FISHER[3, MANY]),
    (FISHER[5, 4], BATCHED, PICTURES, SEPARATE),
    (FISHER[2, MANY], FISHER[7, MANY]),
    (DISTIL[3, 2], DISTIL[3, MANY]),
    (DISTIL[5, 4], ONE_UNET, THREE_UNETS),
)
"""What takes turns."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.consolidation_speed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="that are timed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    recorder = Recorder(
        "consolidation_speed" + "_gpu" * on_gpu,
        "python -m benchmarks.consolidation_speed"
        + f" --device {options.device}" * on_gpu
        + f" --iterations {options.iterations}" * (options.iterations != ITERATIONS),
        {
            "weights": weights_path("demo").name,
            "precision": "fp32",
            "threads": THREADS,
            "device": options.device,
            "iterations": options.iterations,
            "memory_iterations": MEMORY_ITERATIONS,
            "photos": PHOTOS,
            "concepts": "made, not learned",
            "consolidation": consolidation_defaults("demo").to_json(),
            "time": "median; by the clock" if on_gpu else "median; processor time of the process",
        },
        folder=options.out,
    )
    times: dict[Case, Times] = {}
    memory: dict[Case, dict[str, float]] = {}
    with ended_by_signals():
        for group in GROUPS:
            times |= timed(
                group, iterations=options.iterations, device=options.device, threads=THREADS
            )
        for case in times:
            memory[case] = memory_of(case, device=options.device, threads=THREADS)
    result = summary(times, memory, clock=on_gpu)
    recorder.write(result, [row(case, times[case], memory[case]) for case in times])
    say(json.dumps(result, indent=1))


def summary(
    times: Mapping[Case, Times], memory: Mapping[Case, Mapping[str, float]], *, clock: bool
) -> dict[str, Any]:
    """The ratios, and `seconds_by_k` of a Fisher's iteration; the clock's stand beside those of
    processor time, or alone with `clock`.

    Where Fisher and distillation have one ratio each, the key without a phase is the larger one.
    `memory_…` compares what consolidations need above what was in memory before them;
    `loaded_memory_…` what they need with model, state and pictures.
    """

    def ratio(one: Case, other: Case, kind: str) -> float:
        return round(median(getattr(times[one], kind)) / median(getattr(times[other], kind)), 4)

    def share(one: Case, other: Case, kind: str) -> float:
        return round(memory[one][kind] / memory[other][kind], 4)

    result: dict[str, Any] = {}
    for prefix, kind in _kinds(clock):
        seconds = {k: median(getattr(times[FISHER[k, MANY]], kind)) for k in SUBSETS}
        result[f"{prefix}seconds_by_k"] = {str(k): round(value, 4) for k, value in seconds.items()}
        result[f"{prefix}batched_speedup"] = ratio(SEPARATE, BATCHED, kind)
        result[f"{prefix}batched_speedup_one_picture"] = ratio(SEPARATE, PICTURES, kind)
        for k, few in FEW.items():
            key = f"{prefix}iteration_{MANY}_over_{few}"
            fisher = ratio(FISHER[k, MANY], FISHER[k, few], kind)
            distil = ratio(DISTIL[k, MANY], DISTIL[k, few], kind)
            result |= {key: max(fisher, distil), f"{key}_fisher": fisher, f"{key}_dsc": distil}
        result[f"{prefix}dsc_one_unet_speedup"] = ratio(THREE_UNETS, ONE_UNET, kind)
    for prefix, kind in (("", "consolidation_mib"), ("loaded_", "loaded_mib")):
        for k, few in FEW.items():
            key = f"{prefix}memory_{MANY}_over_{few}"
            fisher = share(FISHER[k, MANY], FISHER[k, few], kind)
            distil = share(DISTIL[k, MANY], DISTIL[k, few], kind)
            result |= {key: max(fisher, distil), f"{key}_fisher": fisher, f"{key}_dsc": distil}
    result["dsc_one_unet_memory"] = share(ONE_UNET, THREE_UNETS, "loaded_mib")
    return result


def _kinds(clock: bool) -> tuple[tuple[str, str], ...]:
    """(prefix of the keys, times that they are made of)."""
    return (("", "wall"),) if clock else (("", "cpu"), ("clock_", "wall"))


def row(case: Case, times: Times, memory: Mapping[str, float]) -> dict[str, Any]:
    """A case's row of the result."""
    return {
        "run": case.name,
        "iterations": len(times.cpu),
        "cpu_seconds_per_iteration": round(median(times.cpu), 4),
        "wall_seconds_per_iteration": round(median(times.wall), 4),
        "core_share": round(sum(times.cpu) / sum(times.wall), 3),
        "first_iteration_cpu_seconds": round(times.first["cpu"], 4),
        **memory,
        "cpu_seconds": [round(seconds, 4) for seconds in times.cpu],
        "wall_seconds": [round(seconds, 4) for seconds in times.wall],
    }


if __name__ == "__main__":
    main()
