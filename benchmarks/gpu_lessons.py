"""What lessons and consolidations of true size take on a GPU: memory and time.

python -m benchmarks.gpu_lessons: SD1.5 and SD2.1 at 512 pixels, SDXL at 1024, random weights in
bf16, with the family's usual settings, one process per family. Nothing is learned here; what a
batch takes depends on sizes alone. Memory is the peak of PyTorch's tensors on the GPU, the base
model's among them; ComfyUI and the driver come on top. That of a lesson is reached where the
library's own VAE, in fp32, draws the noun's pictures: two at a time here.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from benchmarks.child import answer_of
from benchmarks.consolidation_case import PHASES, Case, resident_mib
from benchmarks.record import RESULTS, Recorder
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import make_task
from lifelong_core.consolidation import consolidation_defaults
from lifelong_core.evaluation.phases import Phase, measured
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import CACHE
from lifelong_core.lesson import defaults_for
from lifelong_core.methods import learn
from lifelong_core.training import Progress
from lifelong_core.world.streams import toys5

FAMILIES = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
BATCHES, PRIORS, PHOTOS, STREAM_SEED = 6, 2, 5, 2
CONCEPTS, SUBSET = 4, 5
PHASES_SHOWN = ("fisher", "distillation")


@dataclass
class Clock:
    """Seconds of every batch, first ones apart; give it to a lesson or a phase."""

    device: torch.device
    seconds: list[float] = field(default_factory=list)
    _began: float | None = None

    def __call__(self, progress: Progress) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if progress.step > 1 and self._began is not None:
            self.seconds.append(now - self._began)
        self._began = now


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_lessons")
    parser.add_argument("--families", default=",".join(FAMILIES), help="some of them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, help="pixels, else the family's own")
    parser.add_argument("--batches", type=int, default=BATCHES, help="of every kind")
    parser.add_argument("--case", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.families, options.device, options.size, options.batches)))
        return
    whole = options.device == "cuda" and options.size is None and options.batches == BATCHES
    recorder = Recorder(
        "gpu_lessons",
        "python -m benchmarks.gpu_lessons",
        {"batches": options.batches, "concepts": CONCEPTS, "subset": SUBSET, "dtype": "bfloat16"},
        folder=RESULTS if whole else CACHE / "gpu_lessons",
    )
    summary: dict[str, Any] = {}
    for name in options.families.split(","):
        summary[name] = _in_a_process(name, options)
        say(f"{name}: {json.dumps(summary[name])}")
    path = recorder.write(summary, [])
    say(f"Recorded in {path.name}.")


def _in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a fresh process. Raises SetupError with what it said when it fails."""
    arguments = ["--case", "--families", name, "--device", options.device]
    arguments += ["--batches", str(options.batches)]
    arguments += ["--size", str(options.size)] if options.size else []
    return answer_of(name, "benchmarks.gpu_lessons", arguments)


def measure(name: str, device: str, size: int | None, batches: int) -> dict[str, Any]:
    """A family's model, a lesson and both phases of DSC EWC DC."""
    backbone = random_backbone(FAMILIES[name], dtype=torch.bfloat16, device=device)
    size = size or backbone.family.default_size
    found: dict[str, Any] = {"size": size, "model_mib": round(resident_mib(backbone.device))}
    found["lesson"] = _lesson(backbone, size, batches)
    for phase in PHASES_SHOWN:
        found[phase] = _phase(backbone, phase, size, batches)
    return found


def _lesson(backbone: Backbone, size: int, batches: int) -> dict[str, Any]:
    """A lesson of few batches with a few pictures of the plain noun."""
    toy = toys5(STREAM_SEED)[0]
    task = make_task(toy.token, toy.noun, toy.photos(PHOTOS), size=size)
    usual = defaults_for(backbone.family.name)
    settings = replace(usual, steps=batches, accumulation=1, prior_count=PRIORS)
    clock = Clock(backbone.device)
    with measured(backbone.device) as phase:
        learn(backbone, task, settings=settings, on_progress=clock)
    return _told(phase, clock, usual.steps * usual.accumulation)


def _phase(backbone: Backbone, name: str, size: int, batches: int) -> dict[str, Any]:
    """A phase after the lesson of a fourth concept, k = 5."""
    usual = consolidation_defaults(backbone.family.name)
    work, state = Case(name, CONCEPTS, SUBSET).prepared(backbone, batches, size)
    work = replace(work, settings=replace(work.settings, accumulation=1))
    clock = Clock(backbone.device)
    with measured(backbone.device) as phase:
        PHASES[name](work, state, clock)
    iterations = usual.fisher_iterations if name == "fisher" else usual.distillation_iterations
    return _told(phase, clock, iterations * usual.accumulation)


def _told(phase: Phase, clock: Clock, usual_batches: int) -> dict[str, Any]:
    each = median(clock.seconds)
    return {
        "peak_mib": round(phase.peak_mib or 0.0),
        "seconds_per_batch": round(each, 4),
        "usual_batches": usual_batches,
        "usual_minutes": round(each * usual_batches / 60, 2),
    }


if __name__ == "__main__":
    main()
