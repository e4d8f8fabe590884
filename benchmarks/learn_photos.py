"""Whether real photos are learned: the error on a photo that the lesson never saw.

python -m benchmarks.learn_photos FOLDER: every subfolder holds photos of one concept. The last
photo of each is kept out; the others teach the demo model. The mean squared error in the model's
own output on the photo kept out is taken at 8 fixed timesteps with fixed noise, before the lesson
with the plain noun and after it with the concept. Photos and pictures stay out of the result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.record import Recorder
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.drawing import knowing
from lifelong_core.images import fit, load_images
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import CACHE
from lifelong_core.methods import learn
from lifelong_core.prompts import ConceptVectors
from lifelong_core.sampling import generate
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState
from lifelong_core.world.shipped import weights_path

TIMESTEPS = (60, 180, 300, 420, 540, 660, 780, 900)
DRAWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learn_photos", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of folders of photos")
    folder = parser.parse_args().folder
    recorder = Recorder(
        "learn_photos",
        "python -m benchmarks.learn_photos FOLDER",
        {"timesteps": list(TIMESTEPS), "lesson": "the family's defaults", "kept_out": "last photo"},
    )
    backbone = load_backbone(weights_path("demo"))
    workspace = CACHE / "learn_photos"
    rows = []
    for concept in sorted(path for path in folder.iterdir() if path.is_dir()):
        row = measure(backbone, concept, workspace)
        say(json.dumps(row))
        rows.append(row)
    falls = [1.0 - row["error_after"] / row["error_before"] for row in rows]
    summary = {
        "concepts": len(rows),
        "concepts_learned": sum(fall > 0 for fall in falls),
        "mean_fall_of_error": round(sum(falls) / len(falls), 4),
        "weights": backbone.fingerprint,
    }
    recorder.write(summary, rows)
    say(json.dumps(summary))


def measure(backbone: Backbone, folder: Path, workspace: Path) -> dict[str, Any]:
    """Teach the photos of one folder: the row of the result. A sheet of photos and pictures for
    one's own eyes is left in the workspace."""
    *known, unseen = load_images(folder)
    size = backbone.family.default_size
    noun = folder.name.split("_")[0]
    task = make_task(f"my-{folder.name}", noun, known, size=size)
    kept_out = fit(unseen, size)[None]
    before = error(backbone, kept_out, f"a photo of a {noun}", {})
    state = learn(backbone, task, workspace=workspace)
    prompt = f"a photo of {task.phrase}"
    with knowing(backbone, state) as vectors:
        after = error(backbone, kept_out, prompt, vectors)
        drawn = generate(backbone, [prompt] * DRAWN, seed=0, vectors=vectors)
    write_sheet(workspace / f"{folder.name}.png", task, kept_out, drawn)
    return {
        "concept": folder.name,
        "photos": len(known),
        "error_before": round(before, 4),
        "error_after": round(after, 4),
        "loss": loss_course(state),
    }


@torch.no_grad()
def error(
    backbone: Backbone, image: Tensor, prompt: str, vectors: Mapping[str, ConceptVectors]
) -> float:
    """Mean squared error of the model's own output on one picture [1, 3, H, W], over TIMESTEPS."""
    latents = backbone.codec.encode(image).expand(len(TIMESTEPS), -1, -1, -1)
    noise = torch.randn(latents.shape, generator=generator(0, "photo"))
    t = torch.tensor(TIMESTEPS)
    conditioning = backbone.text.encode([prompt] * len(t), vectors)
    schedule = backbone.schedule
    output = backbone.predict(schedule.add_noise(latents, noise, t), t, conditioning)
    return float((output - schedule.target(latents, noise, t)).square().mean())


def loss_course(state: LifelongState) -> list[float]:
    """The lesson's loss as ten means over its course."""
    losses = torch.tensor(state.records[-1].metrics["loss"])
    return [round(float(part.mean()), 4) for part in losses.tensor_split(10)]


def write_sheet(path: Path, task: ConceptTask, kept_out: Tensor, drawn: Tensor) -> None:
    """Photos, the photo kept out, and the pictures of the concept, in one row."""
    row = torch.cat(list(torch.cat([task.images, kept_out, drawn])), dim=2)
    Image.fromarray((row.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)


if __name__ == "__main__":
    main()
