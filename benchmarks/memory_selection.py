"""What the rainbow memory bank costs, and what its choice is worth.

python -m benchmarks.memory_selection: on the demo model, on one thread.

- The choice of Eq 5 among 8 candidates for each of 5 pictures of 50 concepts, their features given.
- A step of an L2DM lesson against the same step without replay (denoising and prior preservation),
  4 pictures per term, taking turns.
- A whole lesson, its memory drawn and its pictures learned, after 5, 20 and 50 concepts, with all
  of them drawn again and with a bound on the pictures.
- IA at the end of a stream with rainbow selection less that with random selection of the same
  candidates, from the recorded runs of `l2dm` and `l2dm_random`; null while there are none.

Times are processor times of this process, medians, which other programs stretch least. What a
stopped command has measured on the same machine stays for the next one, until it is recorded. With
--part, only that is measured and shown, and nothing is recorded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.kept import kept_json
from benchmarks.machine import hardware
from benchmarks.made_state import made_state
from benchmarks.memory_growth import KNOWN as BEFORE
from benchmarks.memory_growth import LIMIT, growth_summary, lesson_growth
from benchmarks.record import RESULTS, Recorder
from benchmarks.speed_data import STREAM_SEED
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.concepts import concept_phrase, make_task
from lifelong_core.evaluation.interval import paired_difference, rounded
from lifelong_core.evaluation.table import read_table
from lifelong_core.evaluation.values import values
from lifelong_core.files import content_hash
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import CACHE
from lifelong_core.lesson import defaults_for
from lifelong_core.memory import ShortTermMemory, drawer_hash
from lifelong_core.memory.selection import choose_best, rainbow_scores
from lifelong_core.methods import CODE_VERSION, METHODS
from lifelong_core.seeding import generator
from lifelong_core.training import Progress
from lifelong_core.training.lesson import Lesson, prepare_lesson, run_lesson
from lifelong_core.world.shipped import weights_path
from lifelong_core.world.streams import toys5

THREADS = 1
CONCEPTS, ANCHORS, CANDIDATES, WIDTH = 50, 5, 8, 768
REPEATS = 20
KNOWN, PICTURES = 4, 4
"""Concepts before the lesson that is timed; pictures per term and batch."""
ROUNDS, STEPS = 8, 3
TABLE = RESULTS / "toys5.json"
RAINBOW, RANDOM = "l2dm", "l2dm_random"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_selection")
    parser.add_argument("--part", choices=("selection", "step", "growth", "ia"))
    part = parser.parse_args().part
    torch.set_num_threads(THREADS)
    recorder = Recorder(
        "memory_selection",
        "python -m benchmarks.memory_selection",
        {
            "threads": THREADS,
            "selection": {
                "concepts": CONCEPTS,
                "anchors": ANCHORS,
                "candidates": CANDIDATES,
                "width": WIDTH,
                "repeats": REPEATS,
            },
            "step": {
                "weights": weights_path("demo").name,
                "known_concepts": KNOWN,
                "pictures_per_term": PICTURES,
                "rounds": ROUNDS,
                "steps_per_round": STEPS,
            },
            "growth": {"method": RAINBOW, "known_concepts": list(BEFORE), "limit": LIMIT},
            "ia": {"table": TABLE.name, "methods": [RAINBOW, RANDOM]},
        },
    )
    summary: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    work = CACHE / "memory_selection" / content_hash(recorder.settings, hardware(), CODE_VERSION)
    kept = partial(kept_json, work)
    if part in (None, "selection"):
        seconds = kept("selection", selection_seconds)
        summary["seconds_50x5x8"] = round(median(seconds), 5)
        runs.append({"run": "selection", "cpu_seconds": [round(one, 5) for one in seconds]})
    if part in (None, "step"):
        for method in (RAINBOW, "l2dm_lora"):
            measure = partial(step_seconds, load_backbone(weights_path("demo")), method)
            steps = kept(f"step of {method}", measure)
            key = "replay_step_over_plain" + method.removeprefix(RAINBOW)
            summary[key] = round(median(steps["replay"]) / median(steps["plain"]), 3)
            runs += [
                {
                    "run": f"step of {method}, {name}",
                    "cpu_seconds_per_step": round(median(spans), 4),
                    "cpu_seconds": [round(one, 4) for one in spans],
                }
                for name, spans in steps.items()
            ]
    if part in (None, "growth"):
        rows = lesson_growth(load_backbone(weights_path("demo")), RAINBOW, kept=kept)
        summary |= growth_summary(rows)
        runs += rows
    if part in (None, "ia"):
        summary["rainbow_minus_random_ia"] = rainbow_minus_random(TABLE)
    if part is None:
        recorder.write(summary, runs)
        shutil.rmtree(work)
    say(json.dumps(summary, indent=1))


def selection_seconds() -> list[float]:
    """Seconds of scores and choice, `REPEATS` times, after one that warms up."""
    draw = generator(0, "features")
    anchors = F.normalize(torch.randn(CONCEPTS * ANCHORS, WIDTH, generator=draw), dim=1)
    candidates = F.normalize(
        torch.randn(CONCEPTS * ANCHORS * CANDIDATES, WIDTH, generator=draw), dim=1
    )
    concepts = torch.arange(CONCEPTS).repeat_interleave(ANCHORS)
    of_candidates = concepts.repeat_interleave(CANDIDATES)

    def choose() -> None:
        choose_best(rainbow_scores(candidates, anchors, 1.0), concepts, of_candidates)

    return [_cpu(choose) for _ in range(REPEATS + 1)][1:]


def step_seconds(
    backbone: Backbone, method: str, *, rounds: int = ROUNDS, steps: int = STEPS
) -> dict[str, list[float]]:
    """Seconds per step of the lesson of `method` with its memory ("replay") and without ("plain").

    Both train the same weights; some steps of each in every round, in changing order.
    """
    lessons = dict(_lessons(backbone, method, steps))
    spans: dict[str, list[float]] = {name: [] for name in lessons}
    with TemporaryDirectory() as folder:  # the nouns' pictures are drawn once
        for number in range(rounds):
            names = list(lessons) if number % 2 == 0 else list(reversed(lessons))
            for name in names:
                spans[name] += _timed_steps(lessons[name], method, Path(folder))
    return spans


def _lessons(backbone: Backbone, method: str, steps: int) -> Iterator[tuple[str, Lesson]]:
    """The lesson of a new toy after made ones, with pictures of noise to replay, and without."""
    toy = toys5(STREAM_SEED)[0]
    size = backbone.family.default_size
    task = make_task(toy.token, toy.noun, toy.photos(5), size=size)
    settings = METHODS[method].settings(
        replace(
            defaults_for(backbone.family.name),
            steps=steps + 1,  # the first one also warms up
            batch_size=PICTURES,
            prior_batch_size=PICTURES,
            replay_batch_size=PICTURES,
            prior_count=PICTURES,
        )
    )
    # A further concept stands for the newest, which is the one that is learned here.
    other = replace(task, token="made_0")
    state = made_state(backbone, other, KNOWN, settings.adapter)
    shown = torch.rand(KNOWN * 2, 3, size, size, generator=generator(0, "pictures"))
    numbers = tuple(number for number in range(KNOWN) for _ in range(2))
    known = [state.concepts[number] for number in numbers]
    prompts = tuple(f"a photo of {concept_phrase(one.token, one.noun)}" for one in known)
    memory = ShortTermMemory(shown, prompts, numbers, drawer_hash(state))
    start = METHODS[method].start
    yield "plain", prepare_lesson(backbone, task, settings, state, start)
    yield "replay", prepare_lesson(backbone, task, settings, state, start, memory)


def _timed_steps(lesson: Lesson, method: str, priors: Path) -> list[float]:
    marks: list[float] = []

    def mark(progress: Progress) -> None:
        if progress.step and progress.phase == "lesson":
            marks.append(time.process_time())

    terms = [term for term in (make(lesson) for make in METHODS[method].terms) if term]
    run_lesson(lesson, terms, session=None, priors=priors, on_progress=mark)
    return [after - before for before, after in zip(marks, marks[1:], strict=False)]


def rainbow_minus_random(table: Path) -> list[float] | None:
    """[mean, low, high] of IA with rainbow less that with random selection, over the seeds and
    concepts of both; None while the table lacks their runs. Raises FileError for another file."""
    if not table.exists():
        return None
    results = read_table(table)["runs"]
    known = {result["method"] for result in results}
    if not {RAINBOW, RANDOM} <= known:
        return None
    extractor = next(iter(results[0]["measured"]))
    found = paired_difference(
        values(results, RAINBOW, "ia", extractor), values(results, RANDOM, "ia", extractor)
    )
    return rounded(found)


def _cpu(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    main()
