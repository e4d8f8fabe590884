"""Seconds per training step on the demo model: ours, plain PEFT, and ComfyUI's TrainLoraNode.

python -m benchmarks.training_speed: all learn from the same cached latents in fp32, batches of 8
pictures of a concept and 4 others, on one thread, taking turns every few steps. Pairs that are
compared train the same weights:

- LoRA of rank 16 on key and value of cross-attention, with and without the new token's vector:
  ours against the loop of diffusers' training scripts.
- Every weight that TrainLoraNode trains: ours against that node in a ComfyUI process of its own.

The time of a step is the processor time of its process, the median over all steps: on one thread
that is the time on the clock of an idle machine, and other programs stretch it least. The time on
the clock is recorded beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch

from benchmarks.comfyui_trainer import ComfyTrainer, weights_in
from benchmarks.everything_adapter import EverythingAdapter
from benchmarks.plain_peft import PlainPeft
from benchmarks.record import Recorder
from benchmarks.speed_data import BATCH, PHOTOS, PRIOR_BATCH, PRIORS, SpeedData, speed_data
from benchmarks.speed_lessons import OurLesson, everything_lesson, lora_lesson, settings
from benchmarks.step_profile import operators_of, parts_of
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.errors import SetupError
from lifelong_core.launch.console import ended_by_signals, say
from lifelong_core.world.shipped import weights_path

THREADS = 1
ROUNDS, STEPS = 9, 2
FEW_STEPS = 1

OURS, PLAIN = "ours: LoRA and token", "plain PEFT: LoRA and token"
OURS_LORA, PLAIN_LORA = "ours: LoRA", "plain PEFT: LoRA"
OURS_ALL = "ours: all of TrainLoraNode's weights"
COMFYUI = {
    "one_prompt": "TrainLoraNode: a batch with one prompt",
    "accumulated": "TrainLoraNode: single pictures, accumulated",
    "batch": "TrainLoraNode: a batch with a prompt per picture",
}


class Trainer(Protocol):
    """Something that trains in this process."""

    def run(self, steps: int, after_step: Callable[[], None]) -> None: ...

    def trained(self) -> int: ...


@dataclass
class Way:
    """One way to train, and the seconds of its steps so far: on the clock and of the processor.

    trained: how many weights; rows: of the UNet's batches per step.
    """

    name: str
    trained: int
    measure: Callable[[int], Mapping[str, Any]]
    rows: float = BATCH + PRIOR_BATCH
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def go(self, steps: int) -> None:
        """Train for `steps` steps that count."""
        found = self.measure(steps)
        self.wall += found["wall"]
        self.cpu += found["cpu"]
        self.rows = found.get("rows", self.rows)

    def row(self) -> dict[str, Any]:
        """Its row of the result."""
        return {
            "run": self.name,
            "trained_weights": self.trained,
            "unet_rows_per_step": self.rows,
            "steps": len(self.cpu),
            "cpu_seconds_per_step": round(median(self.cpu), 4),
            "wall_seconds_per_step": round(median(self.wall), 4),
            "core_share": round(sum(self.cpu) / sum(self.wall), 3),
            "cpu_seconds": [round(seconds, 4) for seconds in self.cpu],
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed")
    parser.parse_args()
    torch.set_num_threads(THREADS)
    weights = weights_path("demo")
    recorder = Recorder(
        "training_speed",
        "python -m benchmarks.training_speed",
        {
            "weights": weights.name,
            "precision": "fp32",
            "threads": THREADS,
            "batch": [BATCH, PRIOR_BATCH],
            "pictures": [PHOTOS, PRIORS],
            "latents": "cached",
            "prompts": "one for the concept's pictures, one for the others",
            "gradient_checkpointing": False,
            "rounds": ROUNDS,
            "steps_per_round": STEPS,
            "time": "processor time of the process, median over all steps",
            "adapter": settings().adapter.to_json(),
        },
    )
    with ended_by_signals(), ExitStack() as stack:
        data = speed_data(load_backbone(weights))
        turns, few, about = ways(stack, data)
        take_turns(turns, ROUNDS, STEPS)
        for way in few:
            say(f"{way.name}: {FEW_STEPS} steps")
            way.go(FEW_STEPS)
        table = {way.name: way for way in (*turns, *few)}
        runs = [way.row() for way in table.values()]
        profiled = load_backbone(weights)
        with lora_lesson(profiled, data, token=True) as lesson:
            runs.append({"run": f"profile of {OURS}", "parts": parts_of(lesson, profiled)})
            runs[-1]["operators"] = operators_of(lesson)
    result = summary(table) | about
    recorder.write(result, runs)
    say(json.dumps(result, indent=1))


def ways(
    stack: ExitStack, data: SpeedData
) -> tuple[list[Way], list[Way], dict[str, float | int | str]]:
    """Ways that take turns, slow ones that run for a few steps, and facts for the summary.

    Raises SetupError when the two sides of a pair would not train the same weights.
    """
    backbone, rank = _fresh(), settings().adapter.rank
    adapter = EverythingAdapter(backbone, rank, seed=settings().seed)
    comfyui = stack.enter_context(_comfyui(data, rank))
    if adapter.comfyui_shapes() != comfyui.weights:
        raise SetupError(
            f"TrainLoraNode trains {len(comfyui.weights)} tensors, our adapter "
            f"{len(adapter.comfyui_shapes())}, or others: the comparison would not be fair."
        )
    ours = {
        OURS: stack.enter_context(lora_lesson(_fresh(), data, token=True)),
        OURS_LORA: stack.enter_context(lora_lesson(_fresh(), data, token=False)),
        OURS_ALL: stack.enter_context(everything_lesson(backbone, adapter, data)),
    }
    targets = list(settings().adapter.targets)
    plain = {
        PLAIN: PlainPeft(_fresh(), data, targets, rank, token=True),
        PLAIN_LORA: PlainPeft(_fresh(), data, targets, rank, token=False),
    }
    count = weights_in(comfyui.weights)
    theirs = {way: Way(name, count, partial(comfyui.run, way)) for way, name in COMFYUI.items()}
    pairs = ((PLAIN, OURS), (PLAIN_LORA, OURS_LORA))
    for one, other in pairs:
        if plain[one].trained() != ours[other].trained():
            raise SetupError(f"{one} and {other} do not train the same number of weights.")
    turns = [here(name, trainer) for pair in pairs for name, trainer in _pair(pair, plain, ours)]
    turns += [theirs["one_prompt"], here(OURS_ALL, ours[OURS_ALL])]
    about: dict[str, float | int | str] = {
        "trained_tensors_both": len(comfyui.weights),
        "trained_weights_both": count,
        "comfyui_attention": comfyui.ready["attention"],
        "comfyui_weights": comfyui.ready["dtype"],
    }
    return turns, [theirs["accumulated"], theirs["batch"]], about


def _pair(
    names: tuple[str, str], plain: Mapping[str, PlainPeft], ours: Mapping[str, OurLesson]
) -> Iterator[tuple[str, Trainer]]:
    yield names[0], plain[names[0]]
    yield names[1], ours[names[1]]


def _fresh() -> Backbone:
    """A model of its own for every way: adapters stay attached."""
    return load_backbone(weights_path("demo"))


@contextmanager
def _comfyui(data: SpeedData, rank: int) -> Iterator[ComfyTrainer]:
    backbone = _fresh()
    prompts = [*data.captions, *(data.prior_prompt for _ in data.prior)]
    vectors = {data.token: backbone.text.noun_vector(data.noun)}
    with torch.no_grad():
        context = backbone.text.encode(prompts, vectors).context
    latents = torch.cat([data.concept, data.prior])
    checkpoint = weights_path("demo")
    with ComfyTrainer(checkpoint, latents, context, rank=rank, threads=THREADS) as trainer:
        yield trainer


def here(name: str, trainer: Trainer) -> Way:
    """A way whose steps are timed in this process."""

    def measure(steps: int) -> dict[str, list[float]]:
        marks: list[tuple[float, float]] = []
        # The first step also warms up, and its beginning is not known.
        trainer.run(steps + 1, lambda: marks.append((time.perf_counter(), time.process_time())))
        spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:], strict=False)]
        return {"wall": [wall for wall, _ in spans], "cpu": [cpu for _, cpu in spans]}

    return Way(name, trainer.trained(), measure)


def take_turns(ways: Sequence[Way], rounds: int, steps: int) -> None:
    """Some steps of every way in every round, in changing order: what disturbs one disturbs all."""
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            way.go(steps)
        times = ", ".join(f"{way.name} {median(way.cpu):.3f}" for way in ways)
        say(f"Round {number + 1} of {rounds}, processor seconds per step: {times}")


def summary(table: Mapping[str, Way]) -> dict[str, float | int | str]:
    """How many times as fast ours is, by processor time and by the clock.

    ComfyUI's node is compared with in the fastest of its ways; against the way that its batch
    setting takes, with a prompt per picture, the key says `_batch`.
    """
    fastest = min((table[name] for name in COMFYUI.values()), key=lambda way: median(way.cpu))
    pairs = {
        "plain_peft": (table[PLAIN], table[OURS]),
        "plain_peft_lora_only": (table[PLAIN_LORA], table[OURS_LORA]),
        "comfyui_train_lora": (fastest, table[OURS_ALL]),
        "comfyui_train_lora_batch": (table[COMFYUI["batch"]], table[OURS_ALL]),
    }
    result: dict[str, float | int | str] = {}
    for key, (theirs, ours) in pairs.items():
        result[f"speedup_over_{key}"] = round(median(theirs.cpu) / median(ours.cpu), 3)
    for key, (theirs, ours) in pairs.items():
        result[f"clock_speedup_over_{key}"] = round(median(theirs.wall) / median(ours.wall), 3)
    return result | {"comfyui_way": fastest.name}


if __name__ == "__main__":
    main()
