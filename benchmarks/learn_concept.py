"""How well one concept is learned: the five toys of a stream, each taught alone.

python -m benchmarks.learn_concept: pictures of 20 prompts x 4, of the learned concept and of the
base model given the plain noun, from the same noise; their similarity to 20 renders of the toy
that the lesson never saw (IA), and to their own prompts (TA), by the world CLIP. What a perfect
lesson would change of TA is measured too: that of the toy's own renders, against the same scenes
with an object of one colour in the toy's place.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.record import Recorder
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.drawing import knowing
from lifelong_core.evaluation.features import (
    FeatureSpace,
    clip_space,
    image_alignment,
    text_alignment,
)
from lifelong_core.evaluation.prompts import evaluation_prompts
from lifelong_core.files import file_hash
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import CACHE
from lifelong_core.methods import learn
from lifelong_core.sampling import generate
from lifelong_core.state import LifelongState
from lifelong_core.world.backgrounds import PHRASES
from lifelong_core.world.clip import WorldClip, load_world_clip
from lifelong_core.world.dice import Dice
from lifelong_core.world.looks import plain_look
from lifelong_core.world.scenes import Scene, render
from lifelong_core.world.shipped import weights_path
from lifelong_core.world.streams import Character, toys5

PHOTOS, UNSEEN, PER_PROMPT, STEPS = 5, 20, 4, 20
SHOWN = 6
"""Pictures of each kind in the sheet."""
WORKSPACE = CACHE / "learn_concept"
"""Finished lessons; other benchmarks that teach the same find them there."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learn_concept", description=__doc__)
    parser.add_argument("--stream-seed", type=int, default=2)
    seed = parser.parse_args().stream_seed
    recorder = Recorder(
        "learn_concept",
        f"python -m benchmarks.learn_concept --stream-seed {seed}",
        {
            "stream": "toys5",
            "stream_seed": seed,
            "photos": PHOTOS,
            "unseen_renders": UNSEEN,
            "prompts": evaluation_prompts("<concept>"),
            "pictures_per_prompt": PER_PROMPT,
            "sampling_steps": STEPS,
            "world_clip": clip_hash(),
        },
    )
    backbone = load_backbone(weights_path("demo"))
    rows, sheet = [], []
    for toy in toys5(seed):
        row, pictures = measure(backbone, toy, WORKSPACE)
        say(json.dumps(row))
        rows.append(row)
        sheet.append(pictures)
    keys = ("ia_gain", "ia_gain_centred", "ta_change", "ta_change_of_renders")
    summary: dict[str, Any] = {
        key: round(sum(row[key] for row in rows) / len(rows), 4) for key in keys
    }
    summary["weights"] = backbone.fingerprint
    recorder.write(summary, rows, {"pictures": contact_sheet(sheet)})
    say(json.dumps(summary))


def clip_hash() -> str:
    """Which CLIP measured: a share of its file's hash."""
    return file_hash(weights_path("clip"))[:16]


def measure(
    backbone: Backbone, toy: Character, workspace: Path
) -> tuple[dict[str, Any], list[Tensor]]:
    """Teach one toy and compare its pictures with the base model's: the row of the result, and
    photos, base pictures and learned pictures for the sheet."""
    task = task_of(toy, backbone.family.default_size)
    began = time.monotonic()
    state = learn(backbone, task, workspace=workspace)
    seconds = time.monotonic() - began
    learned, prompts = draw(backbone, task.phrase, state)
    base, _ = draw(backbone, toy.noun, None)
    clip = load_world_clip()
    raw = clip_space(clip)
    unseen = toy.photos(UNSEEN, unseen=True)
    row = {
        "concept": toy.token,
        "noun": toy.noun,
        "lesson_seconds": round(seconds, 1),
        **gains("ia", raw, learned, base, unseen),
        **gains("ia_centred", raw.centred_on(base), learned, base, unseen),
    }
    ta = [float(text_alignment(clip, pictures, prompts).mean()) for pictures in (learned, base)]
    row |= {"ta": round(ta[0], 4), "ta_base": round(ta[1], 4), "ta_change": round(ta[0] - ta[1], 4)}
    row["ta_change_of_renders"] = round(ta_of_renders(clip, toy) - ta_of_renders(clip, toy, 0), 4)
    return row, [toy.photos(PHOTOS), base[::PER_PROMPT][:SHOWN], learned[::PER_PROMPT][:SHOWN]]


def task_of(toy: Character, size: int) -> ConceptTask:
    """The lesson: photos with captions that tell their backgrounds."""
    return make_task(toy.token, toy.noun, toy.photos(PHOTOS), toy.captions(PHOTOS), size=size)


def ta_of_renders(clip: WorldClip, toy: Character, seed: int | None = None) -> float:
    """TA of UNSEEN renders of the toy or, with a seed, of plain objects in its place."""
    scenes = toy.scenes(UNSEEN, unseen=True)
    prompts = [f"a photo of a {toy.noun} {PHRASES[scene.background]}" for scene in scenes]
    if seed is not None:
        scenes = [plain_scene(scene, Dice(seed, "plain", n)) for n, scene in enumerate(scenes)]
    pictures = torch.stack([render(scene).image for scene in scenes])
    return float(text_alignment(clip, pictures, prompts).mean())


def plain_scene(scene: Scene, dice: Dice) -> Scene:
    """The same scene, with an object of one colour in the toy's place."""
    (thing,) = scene.things
    return replace(scene, things=(replace(thing, look=plain_look(dice)),))


def draw(backbone: Backbone, phrase: str, state: LifelongState | None) -> tuple[Tensor, list[str]]:
    """PER_PROMPT pictures of every evaluation prompt, by the state's model or the base model."""
    prompts = [prompt for prompt in evaluation_prompts(phrase) for _ in range(PER_PROMPT)]
    with knowing(backbone, state) as vectors:
        return generate(backbone, prompts, seed=0, steps=STEPS, vectors=vectors), prompts


def gains(
    name: str, space: FeatureSpace, learned: Tensor, base: Tensor, references: Tensor
) -> dict[str, float]:
    """Mean similarity to the references with the concept, without it, and the difference."""
    after, before = (
        float(image_alignment(space, pictures, references).mean()) for pictures in (learned, base)
    )
    kind = name.removeprefix("ia")
    return {
        name: round(after, 4),
        f"{name}_base": round(before, 4),
        f"ia_gain{kind}": round(after - before, 4),
    }


def contact_sheet(rows: list[list[Tensor]]) -> Image.Image:
    """One row per concept: its photos, the base model's pictures, the learned ones."""
    gap = torch.ones(3, rows[0][0].shape[2], 12)
    lines = []
    for groups in rows:
        parts = [torch.cat(list(pictures), dim=2) for pictures in groups]
        lines.append(torch.cat([parts[0], gap, parts[1], gap, parts[2]], dim=2))
    sheet = torch.cat(lines, dim=1)
    return Image.fromarray((sheet.permute(1, 2, 0) * 255).round().byte().numpy())


if __name__ == "__main__":
    main()
