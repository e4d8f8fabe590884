"""What drawing costs when every prompt chooses its adapters, over plain sampling.

python -m benchmarks.routing_speed: on the demo model, with a state of 50 made concepts.

- One concept by hard routing and by elastic weights against the base model alone.
- One, two, four and eight concepts in a prompt, each adapter heard in its own words, against the
  same.
- One, two and three regions, each with its own concept, and automatic regions for two concepts,
  against the same.
- Preparing a prompt: its weights, the adapter that they make, and attaching it; for prompts that
  name more and more of the 50 concepts.

All cases run in one process and take turns, one generation each in changing order. Time is the
processor's on a CPU, which other programs stretch least, and the clock's on a GPU; medians.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.made_state import made_state
from benchmarks.record import RESULTS, Recorder
from benchmarks.regional_cases import regional_ratios, regional_works
from benchmarks.word_cases import ACTIVE, word_ratios, word_works
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.concepts import make_task
from lifelong_core.consolidation.elastic_weights import SHARPNESS, elastic_state
from lifelong_core.consolidation.routing import route
from lifelong_core.drawing import knowing
from lifelong_core.launch.console import say
from lifelong_core.sampling import generate
from lifelong_core.state import LifelongState
from lifelong_core.world.shipped import weights_path
from lifelong_core.world.streams import toys5

CONCEPTS = 50
STEPS, ROUNDS, THREADS = 20, 15, 1
STREAM_SEED = 2
PLAIN = "plain"

Work = Callable[[], object]
"""What is timed."""


@dataclass(frozen=True)
class Bench:
    """A base model and a state of many concepts on it. steps: of a generation."""

    backbone: Backbone
    state: LifelongState
    steps: int

    def prompt(self, concepts: int) -> str:
        """One that names the state's first concepts."""
        phrases = [concept.phrase for concept in self.state.concepts[:concepts]]
        return f"a photo of {' and '.join(phrases)}"

    def draw(self, state: LifelongState | None, prompt: str) -> None:
        """One picture's latents."""
        with knowing(self.backbone, state) as vectors:
            generate(
                self.backbone, [prompt], seed=0, steps=self.steps, vectors=vectors, as_latents=True
            )


def plain(bench: Bench) -> Work:
    """The base model draws the noun."""
    return lambda: bench.draw(None, f"a photo of {bench.state.concepts[0].noun}")


def hard_routing(bench: Bench) -> Work:
    """One concept with its own adapter."""
    prompt = bench.prompt(1)
    routed = route(bench.state, prompt)
    return lambda: bench.draw(routed, prompt)


def elastic_weights(bench: Bench) -> Work:
    """One concept with the adapter that its elastic weights make."""
    prompt = bench.prompt(1)
    weighted = elastic_state(bench.state, prompt, bench.backbone.text)
    return lambda: bench.draw(weighted, prompt)


CASES: dict[str, Callable[[Bench], Work]] = {
    PLAIN: plain,
    "hard_routing": hard_routing,
    "elastic_weights": elastic_weights,
}
RATIOS: dict[str, tuple[str, ...]] = {
    "routed_over_plain": ("hard_routing", "elastic_weights"),
}
"""Key of the result -> cases; the largest of their times over the plain one's is recorded."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing_speed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="that are timed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(True)
    recorder = Recorder(
        "routing_speed" + "_gpu" * on_gpu,
        "python -m benchmarks.routing_speed"
        + f" --device {options.device}" * on_gpu
        + f" --rounds {options.rounds}" * (options.rounds != ROUNDS),
        {
            "weights": weights_path("demo").name,
            "precision": "fp32",
            "threads": THREADS,
            "device": options.device,
            "rounds": options.rounds,
            "steps": STEPS,
            "concepts": f"{CONCEPTS}, made, not learned",
            "sharpness": SHARPNESS,
            "time": "median; by the clock" if on_gpu else "median; processor time of the process",
        },
        folder=options.out,
    )
    bench = made_bench(load_backbone(weights_path("demo"), device=options.device), STEPS)
    clock = wall_clock if on_gpu else time.process_time
    works = {name: case(bench) for name, case in CASES.items()}
    works |= word_works(bench.backbone, bench.state, bench.steps)
    works |= regional_works(bench.backbone, bench.state, bench.steps)
    drawing = interleaved(works, rounds=options.rounds, clock=clock)
    preparing = interleaved(
        {f"prepare_{count}": preparation(bench, count) for count in ACTIVE},
        rounds=options.rounds,
        clock=clock,
    )
    result = summary(drawing, preparing) | word_ratios(drawing, PLAIN)
    result |= regional_ratios(drawing, PLAIN)
    recorder.write(result, [row(name, took) for name, took in (drawing | preparing).items()])
    say(json.dumps(result, indent=1))


def made_bench(backbone: Backbone, steps: int, concepts: int = CONCEPTS) -> Bench:
    """A bench with a state of made concepts."""
    toy = toys5(STREAM_SEED)[0]
    size = backbone.family.default_size
    task = make_task(toy.token, toy.noun, toy.photos(1), toy.captions(1), size=size)
    return Bench(backbone, made_state(backbone, task, concepts), steps)


def preparation(bench: Bench, active: int) -> Work:
    """All that is done once for a prompt that names `active` concepts, before it is encoded."""
    prompt = bench.prompt(active)

    def prepare() -> None:
        with knowing(bench.backbone, elastic_state(bench.state, prompt, bench.backbone.text)):
            pass

    return prepare


def interleaved(
    works: Mapping[str, Work], *, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each, in turns of changing order; a first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in works if number % 2 == 0 else reversed(list(works)):
            began = clock()
            works[name]()
            seconds[name].append(clock() - began)
    return {name: took[1:] for name, took in seconds.items()}


def wall_clock() -> float:
    """Seconds, when the GPU has finished what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def summary(
    drawing: Mapping[str, Sequence[float]], preparing: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The ratios, and the seconds of preparing a prompt by how many concepts it names."""
    base = median(drawing[PLAIN])
    result: dict[str, Any] = {
        key: round(max(median(drawing[name]) for name in names) / base, 4)
        for key, names in RATIOS.items()
    }
    by_active = {count: round(median(preparing[f"prepare_{count}"]), 4) for count in ACTIVE}
    result[f"prepare_prompt_seconds_{CONCEPTS}"] = by_active[1]
    result[f"prepare_prompt_seconds_{CONCEPTS}_by_active"] = by_active
    return result


def row(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    """A case's row of the result."""
    return {
        "run": name,
        "median_seconds": round(median(seconds), 4),
        "seconds": [round(one, 4) for one in seconds],
    }


if __name__ == "__main__":
    main()
