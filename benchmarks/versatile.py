"""Starting from a picture: photos drawn in a learned style, and learned concepts put into photos.

python -m benchmarks.versatile: the two styles and eight characters of `toys10`, taught by one
method. Photos of plain objects by image-to-image with a style's word, against the same adapter
without the word and against the base model; a masked object replaced by a concept (inpainting
with the concept's adapter in the mask's region only), against plain inpainting with the same prompt
and with one of the concept alone, and against image-to-image without a mask, all of the same
strength. All from the same noise and judged picture by picture, beside the judge's own ceiling.

Choose strengths on one stream (`--stream-seed 1 --style-strength 0.5`) and report another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.options import add_drawing_options
from benchmarks.record import RESULTS, Recorder
from benchmarks.taught import given_or_taught
from benchmarks.versatile_cases import edit_cases, style_cases
from benchmarks.versatile_shots import Shot, Studio, edit_shots, style_shots
from benchmarks.versatile_table import ceiling, row, sheet, summarised, told
from lifelong_core.backbone import load_backbone
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import CACHE
from lifelong_core.world.judge import load_judge
from lifelong_core.world.shipped import weights_path
from lifelong_core.world.streams import PersonalStyle, toys10

STREAM = "toys10"
METHOD = "hard_routing"
STYLE_STRENGTH, EDIT_STRENGTH = 0.7, 1.0
PHOTOS, EDITS, PICTURES, STEPS = 20, 6, 2, 20
"""Photos per style, photos per character, pictures of each, sampling steps."""
WORK = CACHE / "versatile"


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    backbone = load_backbone(weights_path("demo"), device=options.device)
    seed = options.stream_seed
    state = given_or_taught(
        backbone, options.state, STREAM, seed, options.method, options.work, options.precision
    )
    studio = Studio(
        backbone, load_judge(), state, options.pictures, options.steps, options.precision, seed
    )
    counts = (options.photos, options.edits, options.pictures, options.steps)
    strengths = (options.style_strength, options.edit_strength)
    whole = (counts, strengths, options.state) == (
        (PHOTOS, EDITS, PICTURES, STEPS),
        (STYLE_STRENGTH, EDIT_STRENGTH),
        None,
    )
    recorder = Recorder(
        "versatile",
        f"python -m benchmarks.versatile --stream-seed {seed} --method {options.method} "
        f"--precision {options.precision}",
        {
            "stream": STREAM,
            "stream_seed": seed,
            "method": options.method,
            "style_strength": options.style_strength,
            "edit_strength": options.edit_strength,
            "photos_per_style": options.photos,
            "photos_per_character": options.edits,
            "pictures_per_photo": options.pictures,
            "sampling_steps": options.steps,
            "precision": options.precision,
            "weights": backbone.fingerprint,
        },
        folder=RESULTS if whole else WORK,
    )
    learned = {known.token for known in state.concepts}
    shots: list[Shot] = []
    for one in (one for one in toys10(seed) if one.token in learned):
        if isinstance(one, PersonalStyle):
            for photo in style_cases(one, options.photos):
                shots += style_shots(studio, photo, options.style_strength)
        else:
            for edit in edit_cases(one, options.edits):
                shots += edit_shots(studio, edit, options.edit_strength)
        say(f"{one.token}: {told([shot for shot in shots if shot.case.token == one.token])}")
    summary = summarised(shots, seed) | {"judge_ceiling": ceiling(studio, shots)}
    path = recorder.write(summary, [row(shot) for shot in shots], {"pictures": sheet(shots)})
    say(f"Recorded in {path.name}: {summary}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versatile")
    parser.add_argument("--stream-seed", type=int, default=2)
    parser.add_argument("--method", default=METHOD, help="of `bench run`; its lessons are found")
    parser.add_argument("--state", type=Path, help="a state of this stream, in place of --method")
    parser.add_argument("--style-strength", type=float, default=STYLE_STRENGTH)
    parser.add_argument("--edit-strength", type=float, default=EDIT_STRENGTH)
    parser.add_argument("--photos", type=int, default=PHOTOS, help="per style")
    parser.add_argument("--edits", type=int, default=EDITS, help="photos per character")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="per photo")
    add_drawing_options(parser, STEPS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
