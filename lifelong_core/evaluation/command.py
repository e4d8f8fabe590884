"""`python -m lifelong_core bench …`: measure methods on streams of concepts, and report."""

from __future__ import annotations

import argparse
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..backbone import load_backbone
from ..errors import InputError, LifelongError
from ..fields import PRECISIONS
from ..files import copy_file, locked
from ..world.shipped import weights_path
from .extractors import WORLD, extractor_named
from .protocol import Protocol
from .reference import Bench
from .report import sheet_name, write_report
from .run import Run, run_stream, usual_settings
from .stream import TOYS, stream_named
from .table import recorded_runs, update_table
from .values import Result
from .ways import way_named

logger = logging.getLogger(__name__)

PROTOCOL = Protocol()
RESULTS = Path("benchmarks/results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the `bench` commands."""
    commands = parser.add_subparsers(dest="bench_command", required=True)
    run = commands.add_parser("run", help="teach streams with methods, measure, record")
    run.add_argument(
        "--stream",
        default="toys5",
        help=f"{', '.join(TOYS)}, or a folder with one folder of photos per concept",
    )
    run.add_argument("--stream-seed", default="2", help="one seed, or several: 2,3,4")
    run.add_argument("--methods", default="lora", help="one method, or several: lora,ewc,ewc+vera")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="other value of a setting, such as ewc_weight=10, consolidation.delta=0.5 or "
        "memory.limit=40, for all methods; the table then has rows of their own, named "
        "ewc+ewc_weight=10",
    )
    run.add_argument("--out", type=Path, default=RESULTS, help="folder of the recorded tables")
    run.add_argument("--work", type=Path, default=Path(".cache/bench"), help="folder of the runs")
    run.add_argument("--model", type=Path, help="checkpoint, else the shipped demo model")
    run.add_argument(
        "--extractors",
        default=WORLD,
        help=f"networks for the features, the table's own first: {WORLD},ViT-B-32=clip.pt",
    )
    run.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="number format of lessons and pictures, else the base model's usual one",
    )
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--threads", type=int, default=torch.get_num_threads())
    report = commands.add_parser("report", help="tables, plots and a page of pictures")
    report.add_argument("table", type=Path, nargs="?", default=RESULTS / "toys5.json")
    report.add_argument("--out", type=Path, help="folder, else the one named like the table")


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.bench_command == "report":
        folder = arguments.out or arguments.table.with_suffix("")
        for path in write_report(arguments.table, folder):
            logger.info("%s", path)
        return 0
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # denormals in convolutions cost a third of the speed on a CPU
    return _sweep(_runs(arguments), arguments.out)


def _runs(arguments: argparse.Namespace) -> list[Run]:
    """Every method on every stream; whatever is wrong with the options is said here."""
    names = _listed(arguments.methods)
    ways = [way_named("+".join([name, *arguments.set])) for name in names]
    seeds = _seeds(arguments.stream_seed)
    extractors = tuple(extractor_named(name) for name in _listed(arguments.extractors))
    backbone = load_backbone(arguments.model or weights_path("demo"), device=arguments.device)
    family = backbone.family
    streams = [stream_named(arguments.stream, seed, size=family.default_size) for seed in seeds]
    usual = [usual_settings(family.name, stream.seed, arguments.precision) for stream in streams]
    protocol = replace(PROTOCOL, precision=usual[0][0].precision)
    bench = Bench(backbone, extractors, protocol, arguments.work)
    return [
        Run(bench, stream, way, *settings)
        for stream, settings in zip(streams, usual, strict=True)
        for way in ways
    ]


def _sweep(runs: Sequence[Run], out: Path) -> int:
    """Measure all runs and put each into the table when it is done.

    Runs that a table holds already, from whatever machine, are not run again. Of runs that another
    process is at, others come first: the same command, started several times, shares the work. A
    run that fails is told and does not stop the others; the exit code is then 1.
    """
    tables = {path: recorded_runs(path) for path in {_table(run, out) for run in runs}}
    recorded = [tables[_table(run, out)].get(run.key) for run in runs]
    took = [_seconds(result) for result in recorded if result is not None]
    unrecorded = [run for run, result in zip(runs, recorded, strict=True) if result is None]
    waiting = [run for run in unrecorded if not run.result_path.exists()]
    took += [_record(run, out) for run in unrecorded if run not in waiting]
    logger.info("%d runs were done before, %d are to do%s.", len(took), *_cost(took, len(waiting)))
    queue, failed = deque((run, False) for run in waiting), 0
    while queue:
        run, wait = queue.popleft()
        with locked(run.folder / "run", wait=wait) as ours:
            if not ours:
                queue.append((run, True))
                continue
            seconds = _try(run, out)
        if seconds is None:
            failed += 1
            continue
        took.append(seconds)
        cost = _cost(took, len(queue))
        logger.info("%s took %s; %d runs are left%s.", _name(run), _duration(seconds), *cost)
    return 1 if failed else 0


def _try(run: Run, out: Path) -> float | None:
    """`_record`; None for a run that failed, which is told."""
    try:
        return _record(run, out)
    except LifelongError as error:
        logger.error("%s: %s", _name(run), error)
        return None


def _name(run: Run) -> str:
    return f"{run.way.name}, seed {run.stream.seed}"


def _record(run: Run, out: Path) -> float:
    """Measure one run, or take it as it was measured, into the table; returns its seconds."""
    result = run_stream(run)
    update_table(_table(run, out), [result])
    name = sheet_name(run.way.name, run.stream.seed)
    copy_file(run.sheet_path, out / run.stream.name / name)
    return _seconds(result)


def _table(run: Run, out: Path) -> Path:
    return out / f"{run.stream.name}.json"


def _seconds(result: Result) -> float:
    lessons = sum(lesson["seconds"] for lesson in result["lessons"])
    return float(lessons + result["drawing"]["seconds"])


def _cost(took: Sequence[float], left: int) -> tuple[int, str]:
    """`left`, and about how long so many runs take as far as any is known."""
    if not took or not left:
        return left, ""
    return left, f", which will take about {_duration(left * sum(took) / len(took))}"


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError("An option that names several things, with commas between, is empty.")
    return list(dict.fromkeys(names))


def _seeds(text: str) -> list[int]:
    try:
        return [int(name) for name in _listed(text)]
    except ValueError as error:
        raise InputError(f"Stream seeds {text!r} are no numbers such as 2,3,4.") from error


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
