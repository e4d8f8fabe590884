"""Several learned concepts in one picture: in given regions, in automatic ones, and without.

python -m benchmarks.regions: pairs and triples of the characters of toys10, taught one after
another, from the same noise for every way of drawing. A picture is right when it shows every
concept once, in its own look, and nothing else; placed, when each is also in its region, a strip.
What a picture can have before that: every concept's noun, and no looks swapped.
Beside every share stands the judge's ceiling: the same questions of rendered scenes, after the VAE;
and what the base model can: of the plain nouns (`base`), and told the looks in words (`base_told`).

It says what it will cost before it begins, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import ge
from pathlib import Path
from typing import Any

import torch

from benchmarks.guidance_table import sheet
from benchmarks.options import add_drawing_options
from benchmarks.record import RESULTS, Recorder
from benchmarks.region_cells import QUESTIONS, WAYS, Studio, cell_path, judged, judged_cell
from benchmarks.region_groups import PLACES, Row, character_rows
from benchmarks.taught import given_or_taught
from lifelong_core.backbone import load_backbone
from lifelong_core.errors import InputError
from lifelong_core.evaluation.interval import interval
from lifelong_core.files import read_json
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import CACHE
from lifelong_core.state import LifelongState
from lifelong_core.world.evaluate import reconstructed
from lifelong_core.world.judge import load_judge
from lifelong_core.world.shipped import weights_path
from lifelong_core.world.streams import Character, toys10

PAIRS, TRIPLES, PICTURES, STEPS = 10, 5, 1, 25
WORK = CACHE / "regions"
BESIDE = ("plain", "caa_oaa", "regions_at_once", "base_told", "ceiling")
"""Ways whose shares stand beside those that the requirements name."""
LAYERWISE = "layerwise_minus_single_ia"
Answers = Mapping[tuple[str, str, str], Mapping[str, Sequence[bool]]]
"""Kind, row and way (or "ceiling") -> question -> one answer per picture."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    backbone = load_backbone(weights_path("demo"), device=options.device)
    seed = options.stream_seed
    state = given_or_taught(
        backbone,
        options.state,
        "toys10",
        seed,
        options.adapter,
        options.work,
        options.precision,
    )
    rows = _rows(options, state)
    studio = Studio(
        backbone,
        state,
        load_judge(),
        options.pictures,
        options.steps,
        options.guidance or backbone.family.guidance,
        options.precision,
        seed,
        WORK,
    )
    counts = (options.pairs, options.triples, options.pictures)
    whole = all(map(ge, counts, (PAIRS, TRIPLES, PICTURES)))
    recorder = Recorder(
        "regions",
        f"python -m benchmarks.regions --stream-seed {seed} --adapter {options.adapter} "
        f"--pairs {options.pairs} --triples {options.triples} --pictures {options.pictures} "
        f"--steps {options.steps} --guidance {studio.guidance:g} "
        f"--precision {options.precision}",
        {
            "stream": "toys10",
            "stream_seed": options.stream_seed,
            "adapter": options.adapter,
            "pictures_per_place": options.pictures,
            "places": list(PLACES),
            "sampling_steps": options.steps,
            "guidance": studio.guidance,
            "precision": options.precision,
            "weights": backbone.fingerprint,
        },
        folder=RESULTS if whole and not options.state else WORK,
    )
    _tell_cost(studio, rows)
    found: dict[tuple[str, str, str], Mapping[str, Sequence[bool]]] = {}
    strips: dict[tuple[str, str], list[Path]] = {}
    for row in rows:
        for way in WAYS:
            cell = judged_cell(studio, row, way)
            found[row.kind, row.name, way] = cell.answers
            strips.setdefault((row.kind, row.name), []).append(cell.strip)
            say(f"{row.name}, {way}: {sum(cell.answers['right'])} right")
        scenes = reconstructed(backbone, row.scenes(options.pictures * len(PLACES)))
        found[row.kind, row.name, "ceiling"] = judged(studio.judge, scenes, row)
    runs = [
        {"kind": kind, "row": row, "way": way, **{q: share(a[q]) for q in QUESTIONS}}
        for (kind, row, way), a in found.items()
    ]
    path = recorder.write(
        summarised(found, options.stream_seed) | layerwise_difference(RESULTS),
        runs,
        {"pictures": sheet(strips)},
    )
    say(f"Recorded in {path.name}.")


def summarised(found: Answers, seed: int) -> dict[str, Any]:
    """Shares over the rows of each kind, and the keys that the requirements name.

    `pairs_right` and `triples_right` are about given regions, each concept in its own;
    `automatic_pairs_right` about regions that nobody gave, so that places do not count.
    """
    tables: dict[str, Any] = {}
    for kind, way in dict.fromkeys((kind, way) for kind, _, way in found):
        mine = [answers for (k, _, w), answers in found.items() if (k, w) == (kind, way)]
        tables.setdefault(kind, {})[way] = {
            question: _over(seed, [share(answers[question]) for answers in mine])
            for question in QUESTIONS
        }
    asked = {
        "pairs_right": ("pairs", "regions", "placed"),
        "triples_right": ("triples", "regions", "placed"),
        "automatic_pairs_right": ("pairs", "automatic", "right"),
    }
    keys: dict[str, Any] = {}
    for key, (kind, way, question) in asked.items():
        for name, shown in (("", way), *((f"_{w}", w) for w in BESIDE)):
            if kind in tables:
                keys[f"{key}{name}"] = tables[kind][shown][question][0]
    return keys | tables


def layerwise_difference(folder: Path) -> dict[str, float]:
    """What vectors per layer are worth, where `benchmarks.layerwise` has recorded it."""
    path = folder / "layerwise.json"
    return {LAYERWISE: read_json(path)["summary"][LAYERWISE]} if path.exists() else {}


def share(answers: Sequence[bool]) -> float:
    """Of True."""
    return round(sum(answers) / len(answers), 4)


def _over(seed: int, values: Sequence[float]) -> list[float]:
    """[mean, low, high] of shares, of rows drawn with replacement."""
    found = interval({seed: dict(enumerate(values))})
    assert found is not None, "there is a row"
    return [round(value, 4) for value in found]


def _rows(options: argparse.Namespace, state: LifelongState) -> list[Row]:
    known = {concept.token for concept in state.concepts}
    seed = options.stream_seed
    toys = [one for one in toys10(seed) if isinstance(one, Character) and one.token in known]
    rows = [
        *character_rows(toys, 2, options.pairs, seed),
        *character_rows(toys, 3, options.triples, seed),
    ]
    if not rows:
        raise InputError(
            f"The state knows {len(toys)} characters of stream {seed}; a pair needs two with "
            "different nouns. Give the --stream-seed that it was taught with."
        )
    return rows


def _tell_cost(studio: Studio, rows: Sequence[Row]) -> None:
    """Say how many pictures are left to draw and how long they take, from one of each way."""
    left = [(row, way) for row in rows for way in WAYS if not cell_path(studio, row, way).exists()]
    one = replace(studio, pictures=1)
    took: dict[tuple[str, str], float] = {}
    for row, way in left:
        if (row.kind, way) not in took:
            began = time.perf_counter()
            WAYS[way](one, row, PLACES[0])
            took[row.kind, way] = time.perf_counter() - began
    pictures = studio.pictures * len(PLACES)
    minutes = sum(took[row.kind, way] * pictures for row, way in left) / 60
    say(f"{len(left)} cells of {pictures} pictures are left: about {minutes:.0f} minutes.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regions")
    parser.add_argument("--stream-seed", type=int, default=2)
    parser.add_argument("--adapter", default="cidm", help="a method of `bench run`")
    parser.add_argument("--state", type=Path, help="a state of this stream, in place of --adapter")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--triples", type=int, default=TRIPLES)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="per row and place")
    parser.add_argument("--guidance", type=float, help="scale, else the base model's usual one")
    add_drawing_options(parser, STEPS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
