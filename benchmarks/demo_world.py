"""How good the demo model is: what it draws of what is asked, and what it can learn and forget.

python -m benchmarks.demo_world: records `world.json`. Each of its parts is kept in .cache and not
made again for the same weights, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.learn_concept import clip_hash
from benchmarks.record import Recorder
from benchmarks.world_concepts import STREAMS, first_kept_without_prior, measure_concepts
from benchmarks.world_samplers import measure_samplers
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.files import load_tensors, read_json, save_tensors, write_json
from lifelong_core.launch.console import ended_by_signals, say
from lifelong_core.launch.paths import CACHE
from lifelong_core.sharing.preview import to_picture, write_png
from lifelong_core.world.asked import Shown, described
from lifelong_core.world.evaluate import (
    EvaluateSettings,
    Group,
    accuracy,
    evaluate,
    seconds_for_four,
)
from lifelong_core.world.judge import load_judge
from lifelong_core.world.pretrain.dataset import Scenes
from lifelong_core.world.shipped import WEIGHTS, weights_path

COMMAND = "python -m benchmarks.demo_world"
HISTORY = Path(__file__).with_name("world_history.json")
"""What earlier weights reached, and what each change of the recipe gave."""
GRID = 4 * 128
"""Pixels of the grids' upper rows that are recorded; the whole grids stay in .cache."""
SHARES = ("background", "nouns", "colours", "parts", "alone")
Part = Callable[[Path], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="prompts per group")
    parser.add_argument("--sampled", type=int, default=100, help="of these, by stock samplers")
    options = parser.parse_args()
    settings = EvaluateSettings(count=options.count)
    recorder = Recorder(
        "world",
        f"{COMMAND} --count {options.count} --sampled {options.sampled}",
        {
            "prompts_per_group": settings.count,
            "sampling_steps": settings.steps,
            "seed": settings.seed,
            "prompts_by_stock_samplers": options.sampled,
            "concepts_of_toys5_streams": list(STREAMS),
            "world_clip": clip_hash(),
        },
    )
    backbone = load_backbone(weights_path("demo"))
    folder = CACHE / "demo_world" / f"{backbone.fingerprint}-{clip_hash()}"
    parts: dict[str, Part] = {
        "prompts": lambda path: prompts_part(backbone, settings, path),
        "concepts": lambda path: concepts_part(backbone, folder / "prompts", path),
        "forgetting": lambda _path: forgetting_part(backbone, folder / "prompts"),
        "samplers": lambda path: samplers_part(settings, options.sampled, folder / "prompts", path),
        "speed": lambda _path: speed_part(backbone),
    }
    with ended_by_signals():
        found = {name: made(folder / name, make) for name, make in parts.items()}
    summary = summarised(**found) | {"weights": backbone.fingerprint}
    recorder.write(summary, runs(found), grids(folder))
    say(json.dumps(summary))


def made(folder: Path, make: Part) -> dict[str, Any]:
    """The part in `folder`, made first unless it is there."""
    done = folder / "done.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(done, make(folder))
    part: dict[str, Any] = read_json(done)
    return part


def prompts_part(backbone: Backbone, settings: EvaluateSettings, folder: Path) -> dict[str, Any]:
    """What `world evaluate` tells; the drawn pictures stay in `folder`."""

    def keep(group: Group) -> None:
        pictures = (group.drawn * 255).round().to(torch.uint8)
        save_tensors(folder / f"{group.name}.safetensors", {"pictures": pictures})

    evaluate(
        backbone, load_judge(), settings, folder, command=COMMAND, on_progress=say, on_group=keep
    )
    written: dict[str, Any] = read_json(folder / "world.json")
    return {"summary": written["summary"], "runs": written["runs"]}


def concepts_part(backbone: Backbone, prompts: Path, folder: Path) -> dict[str, Any]:
    """Twenty characters learned alone, five in sequence."""
    summary, rows, sheet = measure_concepts(backbone, plain_pictures(prompts))
    write_png(to_picture(sheet), folder / "concepts.png")
    return {"summary": summary, "runs": rows}


def forgetting_part(backbone: Backbone, prompts: Path) -> dict[str, Any]:
    """Five characters in sequence without prior preservation."""
    kept = first_kept_without_prior(backbone, plain_pictures(prompts))
    return {"summary": {"first_kept_without_prior": kept}, "runs": []}


def plain_pictures(prompts: Path) -> Tensor:
    """The base model's pictures of plain objects, [B, 3, H, W] in [0, 1]."""
    return load_tensors(prompts / "plain.safetensors")[0]["pictures"].float() / 255


def samplers_part(
    settings: EvaluateSettings, count: int, prompts: Path, folder: Path
) -> dict[str, Any]:
    """The first described prompts drawn by stock samplers, and by our own."""
    judge = load_judge()
    shown = Shown(Scenes(folder, settings.scenes, settings.scenes_seed, wild=False))
    asked = described(count, settings.seed, shown)
    ours = load_tensors(prompts / "single.safetensors")[0]["pictures"][:count].float() / 255
    found = measure_samplers(
        judge, asked, folder / "base", steps=settings.steps, seed=settings.seed
    )
    return {"summary": found | {"ours": accuracy(judge, ours, asked)}, "runs": []}


def speed_part(backbone: Backbone) -> dict[str, Any]:
    """A part of its own, to be measured again when the machine was not quiet."""
    return {"summary": {"seconds_for_four": seconds_for_four(backbone)}, "runs": []}


def summarised(
    prompts: dict[str, Any],
    concepts: dict[str, Any],
    forgetting: dict[str, Any],
    samplers: dict[str, Any],
    speed: dict[str, Any],
) -> dict[str, Any]:
    """The keys that other pages refer to."""
    learned = concepts["summary"] | forgetting["summary"]
    names = {
        "gain": "concept_gain",
        "margin": "concept_margin",
        "gain_judge": "concept_gain_judge",
        "margin_judge": "concept_margin_judge",
        "background": "concept_background",
        "noun_right": "concept_noun",
        "noun_shift": "plain_noun_shift",
        "first_kept": "first_concept_kept",
        "first_kept_without_prior": "first_concept_kept_without_prior",
    }
    return {
        **{key: _rounded(value) for key, value in prompts["summary"].items()},
        **{name: _rounded(learned[key]) for key, name in names.items()},
        **{key: _rounded(value) for key, value in speed["summary"].items()},
        "stock_sampler_accuracy": {
            sampler: {key: _rounded(shares[key]) for key in SHARES}
            for sampler, shares in samplers["summary"].items()
        },
        "total_megabytes": _rounded(
            sum(f.stat().st_size for f in WEIGHTS.glob("*.safetensors")) / 1e6
        ),
        "history": read_json(HISTORY)["history"],
    }


def runs(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of every part."""
    return [{"part": name, **run} for name, part in found.items() for run in part["runs"]]


def grids(folder: Path) -> dict[str, Image.Image]:
    """The pictures that are recorded: the upper rows of each grid, and the concepts' sheet."""
    names = ("plain", "single", "single-reconstructions", "pair")
    pictures = {
        name.replace("-", "_"): Image.open(folder / "prompts" / f"{name}.png") for name in names
    }
    upper = {name: image.crop((0, 0, image.width, GRID)) for name, image in pictures.items()}
    return upper | {"concepts": Image.open(folder / "concepts" / "concepts.png")}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
