"""What vectors per cross-attention layer are worth: toys taught with them and with one set for all.

python -m benchmarks.layerwise: the five toys of a stream, each taught alone, twice with the same
settings, and drawn from the same noise: with a set of vectors per layer, with the mean of these
sets, which is what stock nodes get, and with the single set of the other lesson. Compared is the
similarity to 20 renders of the toy that no lesson saw (IA), by the world CLIP.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.learn_concept import PER_PROMPT, STEPS, UNSEEN, WORKSPACE, clip_hash, task_of
from benchmarks.record import RESULTS, Recorder
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.drawing import knowing
from lifelong_core.evaluation.features import FeatureSpace, clip_space, image_alignment
from lifelong_core.evaluation.interval import paired_difference
from lifelong_core.evaluation.prompts import evaluation_prompts
from lifelong_core.launch.console import say
from lifelong_core.lesson import defaults_for
from lifelong_core.methods import learn
from lifelong_core.sampling import generate
from lifelong_core.state import LifelongState
from lifelong_core.world.clip import load_world_clip
from lifelong_core.world.shipped import weights_path
from lifelong_core.world.streams import Character, toys5

SINGLE, LAYERWISE, MEAN = "single", "layerwise", "mean"
WORK = WORKSPACE.with_name("layerwise")
"""Where shortened runs are recorded."""


def main() -> None:
    options = _options()
    seed = options.stream_seed
    usual = (options.toys, options.pictures, options.lesson_steps) == (5, PER_PROMPT, 0)
    recorder = Recorder(
        "layerwise",
        f"python -m benchmarks.layerwise --stream-seed {seed}",
        {
            "stream": "toys5",
            "stream_seed": seed,
            "toys": options.toys,
            "lesson_steps": options.lesson_steps or defaults_for("demo").steps,
            "unseen_renders": UNSEEN,
            "pictures_per_prompt": options.pictures,
            "sampling_steps": STEPS,
            "world_clip": clip_hash(),
        },
        folder=RESULTS if usual else WORK,
    )
    backbone = load_backbone(weights_path("demo"), device=options.device)
    toys = toys5(seed)[: options.toys]
    summary, rows = measure_layerwise(backbone, toys, options.pictures, options.lesson_steps)
    path = recorder.write(summary | {"weights": backbone.fingerprint}, rows)
    say(f"Recorded in {path.name}: {json.dumps(summary)}")


def measure_layerwise(
    backbone: Backbone, toys: Sequence[Character], pictures: int, lesson_steps: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The mean IAs, their differences with the 95 % interval over the toys, and one row per toy.

    pictures: per prompt. lesson_steps: 0 for the family's own.
    """
    space = clip_space(load_world_clip())
    scores: dict[str, dict[int, float]] = {kind: {} for kind in (SINGLE, LAYERWISE, MEAN)}
    rows = []
    for number, toy in enumerate(toys):
        for kind, state in taught(backbone, toy, lesson_steps).items():
            found = alignment(backbone, space, toy, state, pictures)
            scores[kind][number] = float(found.mean())
        told = {f"ia_{kind}": round(values[number], 4) for kind, values in scores.items()}
        rows.append({"concept": toy.token, "noun": toy.noun} | told)
        say(json.dumps(rows[-1]))
    summary: dict[str, Any] = {
        f"ia_{kind}": round(mean(values.values()), 4) for kind, values in scores.items()
    }
    for more, less in ((LAYERWISE, SINGLE), (MEAN, LAYERWISE), (MEAN, SINGLE)):
        difference = paired_difference({0: scores[more]}, {0: scores[less]})
        assert difference is not None, "every toy was drawn by all three"
        name = f"{more}_minus_{less}_ia"
        summary[name] = round(difference.mean, 4)
        summary[f"{name}_interval"] = [round(difference.low, 4), round(difference.high, 4)]
    return summary, rows


def taught(backbone: Backbone, toy: Character, lesson_steps: int = 0) -> dict[str, LifelongState]:
    """The states to compare; lessons that are finished are found again."""
    usual = defaults_for(backbone.family.name)
    settings = replace(usual, steps=lesson_steps or usual.steps)
    task = task_of(toy, backbone.family.default_size)
    single, layerwise = (
        learn(backbone, task, settings=given, workspace=WORKSPACE)
        for given in (settings, replace(settings, layerwise_tokens=True))
    )
    return {SINGLE: single, LAYERWISE: layerwise, MEAN: with_means(layerwise)}


def with_means(state: LifelongState) -> LifelongState:
    """The state as stock nodes draw it, with one set of vectors per concept."""
    records = [replace(record, concept=record.concept.single()) for record in state.records]
    return replace(state, records=tuple(records))


def alignment(
    backbone: Backbone, space: FeatureSpace, toy: Character, state: LifelongState, pictures: int
) -> Tensor:
    """IA of every picture of the evaluation prompts, [20 · pictures]."""
    phrase = state.concepts[-1].phrase
    prompts = [prompt for prompt in evaluation_prompts(phrase) for _ in range(pictures)]
    with knowing(backbone, state) as vectors:
        drawn = generate(backbone, prompts, seed=0, steps=STEPS, vectors=vectors)
    return image_alignment(space, drawn, toy.photos(UNSEEN, unseen=True))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layerwise", description=__doc__)
    parser.add_argument("--stream-seed", type=int, default=2)
    parser.add_argument("--toys", type=int, default=5, help="the first so many")
    parser.add_argument("--pictures", type=int, default=PER_PROMPT, help="per prompt")
    parser.add_argument("--lesson-steps", type=int, default=0, help="0: the usual number")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
