"""The recorded table of a stream: all runs with its weights, and their summary."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..files import locked, read_json
from .interval import Values, interval, rounded
from .orderings import best_single_adapter, orderings
from .record import write_record
from .stream import TOYS
from .values import VALUES, Result, values

logger = logging.getLogger(__name__)


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """`methods` -> name -> metric -> [mean, low, high] (null where a run has no value), on the
    first extractor of the runs; `best_single_adapter`, `orderings`, `weights`, and the same
    `methods` on every further extractor that all runs have. Raises FileError without runs."""
    if not results:
        raise FileError("There are no runs to sum up; measure some with `bench run` first.")
    names = [name for name in results[0]["measured"] if all(name in r["measured"] for r in results)]
    if not names:
        raise FileError("The runs share no extractor; measure them with the same ones.")
    methods = list(dict.fromkeys(result["method"] for result in results))
    tables = {name: _table(results, methods, name) for name in names}
    first = tables[names[0]]
    kept = {method: first[method]["kept_gain"] for method in methods}

    def values_of(method: str, metric: str) -> Values:
        return values(results, method, metric, names[0])

    return {
        "extractor": names[0],
        "methods": first,
        "best_single_adapter": best_single_adapter(kept, Counter(r["method"] for r in results)),
        "weights": results[0]["weights"],
        "orderings": orderings(methods, values_of),
        "seeds": sorted({result["stream_seed"] for result in results}),
        "other_extractors": {name: tables[name] for name in names[1:]},
    }


def _table(results: Sequence[Result], methods: Sequence[str], extractor: str) -> dict[str, Any]:
    return {
        method: {
            metric: rounded(interval(values(results, method, metric, extractor)))
            for metric in VALUES
        }
        for method in methods
    }


def update_table(path: Path, new: Sequence[Result]) -> dict[str, Any]:
    """Put runs into the table at `path`, in place of those of equal method and seed; returns the
    summary. Recorded runs with other weights than the new ones are dropped, with a warning.

    Processes that measure at the same time take turns. Raises FileError when the table is there
    but cannot be read, or cannot be written.
    """
    with locked(path):
        return _update(path, new)


def _update(path: Path, new: Sequence[Result]) -> dict[str, Any]:
    weights = new[0]["weights"]
    runs = {(run["method"], run["stream_seed"]): run for run in _recorded(path, weights)}
    runs |= {(run["method"], run["stream_seed"]): run for run in new}
    results = list(runs.values())
    summary = summarise(results)
    settings = {"protocol": _shared_protocol(results), "extractor": summary["extractor"]}
    write_record(path, summary=summary, runs=results, command=_command(results), settings=settings)
    return summary


def precision_of(result: Result) -> str:
    """The number format of a run's lessons and pictures."""
    return str(result["settings"]["protocol"]["precision"])


def _shared_protocol(results: Sequence[Result]) -> dict[str, Any]:
    """What all runs have in common; processors differ in the precision that is fast on them."""
    first, *others = (result["settings"]["protocol"] for result in results)
    return {key: one for key, one in first.items() if all(o.get(key) == one for o in others)}


def _command(results: Sequence[Result]) -> str:
    """The command for all these runs, one per precision."""
    precisions = dict.fromkeys(map(precision_of, results))
    return " && ".join(
        _command_in(precision, [run for run in results if precision_of(run) == precision])
        for precision in precisions
    )


def _command_in(precision: str, results: Sequence[Result]) -> str:
    """One command that makes all these runs; folders of photos have no public name."""
    stream = results[0]["stream"]
    seeds = ",".join(str(seed) for seed in sorted({run["stream_seed"] for run in results}))
    methods = ",".join(dict.fromkeys(run["method"] for run in results))
    source = stream if stream in TOYS else "FOLDER"
    return (
        f"python -m lifelong_core bench run --stream {source} --stream-seed {seeds} "
        f"--methods {methods} --precision {precision}"
    )


def recorded_runs(path: Path) -> dict[str, Result]:
    """Key -> run, of all runs in the table at `path`; none where no table is."""
    if not path.exists():
        return {}
    return {run["key"]: run for run in read_table(path)["runs"]}


def read_table(path: Path) -> dict[str, Any]:
    """A recorded table. Raises FileError when it is missing or something else."""
    table = read_json(path)
    if not isinstance(table, dict) or not {"summary", "runs"} <= set(table):
        raise FileError(f"{path.name} is no table of runs; make one with `bench run`.")
    return table


def _recorded(path: Path, weights: str) -> list[Result]:
    if not path.exists():
        return []
    runs = read_table(path)["runs"]
    kept = [run for run in runs if run["weights"] == weights]
    if len(kept) < len(runs):
        logger.warning(
            "%d of %d runs in %s were measured with other weights of the base model and are "
            "dropped. Run them again.",
            len(runs) - len(kept),
            len(runs),
            path.name,
        )
    return kept
