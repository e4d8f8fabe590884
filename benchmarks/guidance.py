"""Several learned concepts in one picture: plain sampling, attend-and-excite, CAA, OAA and both.

python -m benchmarks.guidance: pairs of a stream's five toys (the paper's five and the other five),
pairs of plain objects (noun and colour) and triples, 8 prompts x 8 pictures each, from the same
noise for every way of guiding; and every toy alone, plain, as the most that can be hoped for.
Judged picture by picture, beside the judge's own ceiling. It says what it will cost before it
begins, and a run that was stopped goes on where it was.

Choose settings on one stream (`--stream-seed 1 --set caa_oaa.step_size=40`) and report another.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.guidance_cells import Cell, Studio, cell_path, cell_values, judged_cell
from benchmarks.guidance_groups import ALONE, Group, base_pairs, toy_pairs, toy_triples, toys_alone
from benchmarks.guidance_judging import judge_ceiling
from benchmarks.guidance_table import BASE, COUNTED, CellKey, Values, sheet, summarised
from benchmarks.options import add_drawing_options
from benchmarks.record import RESULTS, Recorder
from benchmarks.taught import taught_state
from lifelong_core.attention import AttentionGuidance, GuidanceSettings, map_layers
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.errors import InputError
from lifelong_core.evaluation.extractors import WORLD, extractor_named
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import CACHE
from lifelong_core.sampling import generate
from lifelong_core.state import LifelongState, load_state
from lifelong_core.training.precision import autocast_dtype
from lifelong_core.world.judge import load_judge
from lifelong_core.world.shipped import weights_path
from lifelong_core.world.streams import toys5

PLAIN = "plain"
METHODS: dict[str, GuidanceSettings | None] = {
    PLAIN: None,
    "attend_and_excite": GuidanceSettings(attend_and_excite=1.0),
    "caa": GuidanceSettings(caa=1.0),
    "oaa": GuidanceSettings(oaa=1.0),
    "caa_oaa": GuidanceSettings(caa=1.0, oaa=1.0),
}
NAME = "guidance"
ADAPTERS = "ewc_dc,joint"
PAIRS, TRIPLES, PICTURES, STEPS = 10, 3, 8, 50
CEILING_PICTURES = 8
WORK = CACHE / "guidance"


@dataclass(frozen=True)
class Job:
    """One cell to fill."""

    adapter: str
    state: LifelongState | None
    group: Group
    method: str
    settings: GuidanceSettings | None
    path: Path


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    backbone = load_backbone(weights_path("demo"), device=options.device)
    methods = changed(METHODS, options.set)
    extractor = extractor_named(WORLD)
    judge = load_judge()
    studio = Studio(
        backbone,
        judge,
        extractor,
        options.pictures,
        options.steps,
        options.precision,
        options.stream_seed,
        WORK,
    )
    states = _states(options, backbone)
    whole = (options.pairs, options.triples, options.pictures) == (PAIRS, TRIPLES, PICTURES)
    recorder = Recorder(
        options.record or NAME,
        command(options),
        {
            "stream": "toys5",
            "stream_seed": options.stream_seed,
            "adapters": list(states),
            "methods": {name: one and asdict(one) for name, one in methods.items()},
            "pictures_per_prompt": options.pictures,
            "sampling_steps": options.steps,
            "precision": options.precision,
            "layers": list(map_layers(backbone.family.name)),
            "weights": backbone.fingerprint,
        },
        folder=RESULTS if options.record or (whole and not options.state) else WORK,
    )
    jobs = _jobs(studio, states, methods, options)
    _tell_cost(studio, jobs)
    cells: dict[CellKey, Values] = {}
    strips: dict[tuple[str, str], list[Path]] = {}
    for number, job in enumerate(jobs, 1):
        cell = judged_cell(studio, job.path, job.state, job.group, job.settings)
        cells[job.adapter, job.group.kind, job.group.name, job.method] = cell_values(
            studio, job.group, cell
        )
        strips.setdefault((job.adapter, job.group.name), []).append(cell.strip)
        say(f"{number} of {len(jobs)}: {job.adapter}, {job.group.name}, {job.method} {_told(cell)}")
    groups = {job.group.name: job.group for job in jobs if job.group.kind in COUNTED}
    ceiling = judge_ceiling(judge, backbone, list(groups.values()), options.pictures)
    summary = summarised(cells, options.stream_seed) | {"judge_ceiling": ceiling}
    runs = [
        {"adapter": adapter, "kind": kind, "group": group, "method": method, **values}
        for (adapter, kind, group, method), values in cells.items()
    ]
    path = recorder.write(summary, runs, {"pictures": sheet(strips)})
    say(f"Recorded in {path.name}: {summary['methods']}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance")
    parser.add_argument("--stream-seed", type=int, default=2)
    parser.add_argument("--adapters", default=ADAPTERS, help="methods of `bench run`, with commas")
    parser.add_argument("--state", type=Path, help="a state of this stream, in place of --adapters")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, with commas")
    parser.add_argument(
        "--set", action="append", default=[], metavar="METHOD.NAME=VALUE",
        help="another value of a guidance setting, such as caa_oaa.step_size=40",
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of toys, and of plain objects")
    parser.add_argument("--triples", type=int, default=TRIPLES)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="per prompt")
    parser.add_argument("--record", help="the result's name, for a table beside the usual one")
    add_drawing_options(parser, STEPS)
    return parser.parse_args()


def command(options: argparse.Namespace) -> str:
    """What a reader types to find the same, with all options that are not the usual ones."""
    usual = {
        "adapters": ADAPTERS,
        "methods": ",".join(METHODS),
        "pairs": PAIRS,
        "triples": TRIPLES,
        "pictures": PICTURES,
        "steps": STEPS,
        "record": None,
    }
    words = ["python -m benchmarks.guidance"]
    words += [f"--stream-seed {options.stream_seed}", f"--precision {options.precision}"]
    words += [
        f"--{name} {getattr(options, name)}"
        for name, value in usual.items()
        if getattr(options, name) != value
    ]
    words += [f"--set {change}" for change in options.set]
    return " ".join(words + ["--state FILE"] * bool(options.state))


def changed(
    methods: Mapping[str, GuidanceSettings | None], changes: Sequence[str]
) -> dict[str, GuidanceSettings | None]:
    """The methods with other settings, each "METHOD.NAME=VALUE". Raises InputError."""
    result = dict(methods)
    for text in changes:
        name, _, value = text.partition("=")
        method, _, field = name.partition(".")
        settings = result.get(method)
        if settings is None or not value or not hasattr(settings, field):
            guided = ", ".join(name for name, one in methods.items() if one)
            raise InputError(
                f"{text!r} changes nothing: write METHOD.NAME=VALUE with one of {guided} and a "
                f"setting of {', '.join(asdict(GuidanceSettings()))}."
            )
        kind = type(getattr(settings, field))
        read = value == "True" if kind is bool else kind(value)
        result[method] = replace(settings, **{field: read})
    return result


def _states(options: argparse.Namespace, backbone: Backbone) -> dict[str, LifelongState]:
    """Name -> state with all toys. Taught unless a run of the bench, or of this, did before."""
    if options.state:
        return {options.state.name.split(".")[0]: load_state(options.state)}
    return {
        name: taught_state(
            backbone, "toys5", options.stream_seed, name, options.work, options.precision
        )
        for name in options.adapters.split(",")
    }


def _jobs(
    studio: Studio,
    states: Mapping[str, LifelongState],
    methods: Mapping[str, GuidanceSettings | None],
    options: argparse.Namespace,
) -> list[Job]:
    chosen = [name.strip() for name in options.methods.split(",")]
    unknown = [name for name in chosen if name not in methods]
    if unknown:
        raise InputError(f"Method {unknown[0]!r} is unknown; choose from {', '.join(methods)}.")
    asked: list[tuple[str, LifelongState | None, Group]] = []
    for name, state in states.items():
        known = {concept.token for concept in state.concepts}
        toys = [toy for toy in toys5(studio.seed) if toy.token in known]
        if len(toys) < 2:
            raise InputError(
                f"The state {name!r} knows {len(toys)} toys of stream {studio.seed}; a pair needs "
                "two. Give the --stream-seed that it was taught with."
            )
        groups = [*toy_pairs(toys, options.pairs), *toy_triples(toys, options.triples)]
        groups += toys_alone(toys)
        asked += [(name, state, group) for group in groups]
    asked += [(BASE, None, group) for group in base_pairs(studio.seed, options.pairs)]
    return [
        Job(
            adapter,
            state,
            group,
            method,
            methods[method],
            cell_path(studio, adapter, state, group, methods[method], method),
        )
        for adapter, state, group in asked
        for method in chosen
        if group.kind != ALONE or method == PLAIN
    ]


def _tell_cost(studio: Studio, jobs: Sequence[Job]) -> None:
    """Say how many pictures are left to draw and how long they take, from one of each kind."""
    left = [job for job in jobs if not job.path.exists()]
    per_cell = studio.pictures * 8
    if not left:
        say(f"All {len(jobs)} cells are there.")
        return
    seconds = 0.0
    took: dict[str, float] = {}
    for job in left:
        if job.method not in took:
            prompt = base_pairs(studio.seed, 1)[0]
            attention = AttentionGuidance(job.settings, [prompt.pairs]) if job.settings else None
            began = time.perf_counter()
            generate(
                studio.backbone,
                prompt.prompts[:1],
                seed=0,
                steps=studio.steps,
                autocast=autocast_dtype(studio.precision),
                attention=attention,
            )
            took[job.method] = time.perf_counter() - began
        seconds += took[job.method] * per_cell
    say(
        f"{len(left)} of {len(jobs)} cells of {per_cell} pictures are left: about "
        f"{seconds / 60:.0f} minutes, drawn one by one; a GPU draws many at once."
    )


def _told(cell: Cell) -> str:
    return ", ".join(f"{name} {sum(v) / len(v):.2f}" for name, v in cell.questions.items())


if __name__ == "__main__":
    main()
