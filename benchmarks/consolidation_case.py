"""One phase of a consolidation in a process of its own, iteration by iteration when asked.

A process for each, so that its peak memory and its processor time are its own. It writes lines of
JSON: what is in memory at the start, each iteration's seconds, and the peak of memory at the end.
Every line that it reads lets it go on with one iteration.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from benchmarks.made_state import made_state
from benchmarks.separate_passes import DistillOnThreeUnets, SeparateFisher
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.concepts import make_task
from lifelong_core.consolidation import Consolidation, Phase, consolidation_defaults
from lifelong_core.consolidation.context import prepare
from lifelong_core.consolidation.distill import DistillPhase
from lifelong_core.consolidation.fisher import UpdateFisher
from lifelong_core.evaluation.phases import MIB, measured
from lifelong_core.state import LifelongState
from lifelong_core.training import Progress
from lifelong_core.world.shipped import weights_path
from lifelong_core.world.streams import toys5

PHASES: dict[str, Phase] = {
    "fisher": UpdateFisher(dc=True),
    "fisher, separate passes": SeparateFisher(),
    "distillation": DistillPhase(),
    "distillation, three UNets": DistillOnThreeUnets(),
}
PHOTOS, STREAM_SEED = 5, 2


@dataclass(frozen=True)
class Case:
    """A phase of `PHASES` after a lesson of a state that then knows `concepts`, with k = `subset`.

    single: one picture per batch and as many batches per iteration as a batch has pictures
        otherwise, as in the paper.
    """

    phase: str
    concepts: int
    subset: int
    single: bool = False

    @property
    def name(self) -> str:
        """For people."""
        end = ", one picture at a time" if self.single else ""
        return f"{self.phase}, k = {self.subset}, {self.concepts} concepts{end}"

    def prepared(
        self, backbone: Backbone, iterations: int, size: int
    ) -> tuple[Consolidation, LifelongState]:
        """What its phase is given. size: side of the pictures in pixels."""
        toy = toys5(STREAM_SEED)[0]
        photos = toy.photos(PHOTOS)
        task = make_task(toy.token, toy.noun, photos, toy.captions(PHOTOS), size=size)
        state = made_state(backbone, task, self.concepts)
        settings = replace(
            consolidation_defaults(backbone.family.name),
            subset=self.subset,
            fisher_iterations=iterations,
            distillation_iterations=iterations,
        )
        if self.single:
            each = settings.batch_size * settings.accumulation
            settings = replace(settings, batch_size=1, accumulation=each)
        return prepare(backbone, task, settings, state), state


class Turns:
    """Waits for a turn before every iteration and tells what it took. Give it to a phase."""

    def __init__(self, wait: Callable[[], None], tell: Callable[[dict[str, Any]], None]) -> None:
        self._wait, self._tell = wait, tell
        self._began = (0.0, 0.0)

    def begin(self) -> None:
        """Wait for the first turn, which the phase's preparation is part of."""
        self._wait()
        self._began = (time.perf_counter(), time.process_time())

    def __call__(self, progress: Progress) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        wall, cpu = self._began
        self._tell({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
        if progress.step < progress.of:
            self.begin()


def run_case(
    case: Case,
    work: Consolidation,
    state: LifelongState,
    turns: Turns,
    *,
    all_prompts: bool,
) -> float | None:
    """Run the phase by turns; returns the peak of memory in MiB, if the system tells.

    all_prompts: encode the prompts of all concepts first, as after many iterations.
    """
    with measured(work.backbone.device) as phase:
        turns.begin()
        if all_prompts:
            work.encode((work.current, work.prior, *work.earlier))
        PHASES[case.phase](work, state, turns)
    return phase.peak_mib


def resident_mib(device: torch.device) -> float:
    """Memory in use: of the GPU's tensors where the model lies on one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MIB
    return psutil.Process().memory_info().rss / MIB


def main() -> None:
    options = json.loads(sys.argv[1])
    case = Case(**options["case"])
    device = torch.device(options["device"])
    torch.set_num_threads(options["threads"])
    torch.set_flush_denormal(True)

    def tell(value: dict[str, Any]) -> None:
        print(json.dumps(value), flush=True)

    bare = resident_mib(device)
    backbone = load_backbone(weights_path("demo"), device=device)
    work, state = case.prepared(backbone, options["iterations"], backbone.family.default_size)
    tell({"bare_mib": bare, "loaded_mib": resident_mib(device), "weights": backbone.fingerprint})
    turns = Turns(_next_line, tell)
    peak = run_case(case, work, state, turns, all_prompts=options["memory"])
    tell({"peak_mib": peak})


def _next_line() -> None:
    if not sys.stdin.readline():
        sys.exit("Nobody asks for more iterations.")


if __name__ == "__main__":
    main()
