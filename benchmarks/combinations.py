"""Which parts of the papers' methods go together best, from the recorded runs of `bench run`.

python -m benchmarks.combinations: measures nothing itself. Three parts work against forgetting and
can be joined: replay of remembered pictures (L2DM), weights held by their Fisher information with
the classifier's scores (EWC DC), and distilling from earlier lessons (DSC).

- `unions`: union -> part -> metric -> how much better the union is, with the 95 % interval of
  paired toys, on the streams that both were run on; `beats_both` where it is better than every part
  of it, by intervals that leave 0 out.
- `candidates`: kept gain of parts and unions, each on its own streams (`seeds`).
- `default`: of the candidates with a LoRA, which anyone can load, that were run on the most streams
  the one that keeps the most of what lone adapters gain (mean of `kept_gain`), and by how much more
  than the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, Recorder
from lifelong_core.errors import InputError
from lifelong_core.evaluation.interval import (
    Interval,
    Values,
    interval,
    paired_difference,
    pairs_of,
    rounded,
)
from lifelong_core.evaluation.table import read_table
from lifelong_core.evaluation.values import Result, values
from lifelong_core.launch.console import say
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import METHODS

TABLE = RESULTS / "toys5.json"
UNIONS = {
    "l2dm_lora_ewc_dc": ("l2dm_lora", "ewc_dc"),
    "l2dm_ewc_dc": ("l2dm", "ewc_dc"),
    "dsc_ewc_dc": ("dsc", "ewc_dc"),
}
"""Union -> its parts, all of them methods of the table."""
BETTER = {"kept_gain": 1, "a_mmd": -1, "tfr_ia": -1, "base_drift": -1}
"""Metric -> 1 where more of it is better, else -1."""
Of = Callable[[str, str], Values]
"""(method, metric) -> its values."""
SHOWN = ("kept_gain", "ia", "tfr_ia", "a_mmd", "kid", "base_drift", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.combinations", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE, help="a recorded table of runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result is recorded")
    options = parser.parse_args()
    settings = {"table": options.table.name, "unions": UNIONS}
    recorder = Recorder("combinations", "python -m benchmarks.combinations", settings, options.out)
    table = read_table(options.table)
    summary, rows = compared(table["runs"], table["summary"]["extractor"])
    path = recorder.write(summary | {"weights": table["summary"]["weights"]}, rows)
    say(f"Recorded in {path.name}: {json.dumps(summary, indent=1)}")


def compared(runs: Sequence[Result], extractor: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary, and a row per candidate.

    Raises InputError where no union was run on a stream of each of its parts.
    """
    names = _candidates(runs)

    def of(name: str, metric: str) -> Values:
        return values(runs, name, metric, extractor)

    unions = {union: _over_parts(union, of) for union in UNIONS if union in names}
    seeds = {name: sorted(of(name, "kept_gain")) for name in names}
    rows = [
        {"method": name} | {metric: rounded(interval(of(name, metric))) for metric in SHOWN}
        for name in names
    ]
    most = max(map(len, seeds.values()))
    competing = [name for name in names if len(seeds[name]) == most]
    summary = {
        "candidates": {row["method"]: row["kept_gain"] for row in rows},
        "seeds": seeds,
        "unions": unions,
        "beats_both": {union: _beats(union, of) for union in unions},
        "default": _default([name for name in competing if _trains_lora(name)], of),
    }
    return summary, rows


def _candidates(runs: Sequence[Result]) -> list[str]:
    """Unions that were run on a stream of each of their parts, after these."""
    streams: dict[str, set[int]] = {}
    for run in runs:
        streams.setdefault(run["method"], set()).add(run["stream_seed"])
    found = {
        union: parts
        for union, parts in UNIONS.items()
        if all(streams.get(union, set()) & streams.get(part, set()) for part in parts)
    }
    if not found:
        wanted = dict.fromkeys(name for pair in UNIONS.items() for name in (*pair[1], pair[0]))
        raise InputError(
            "No stream has a union and its parts; run some first: python -m lifelong_core bench "
            f"run --methods {','.join(wanted)}"
        )
    return list(dict.fromkeys(name for union, parts in found.items() for name in (*parts, union)))


def _over_parts(union: str, of: Of) -> dict[str, dict[str, list[float] | None]]:
    """Part -> metric -> how much better the union is."""
    return {
        part: {metric: rounded(_better(union, part, metric, of)) for metric in BETTER}
        for part in UNIONS[union]
    }


def _better(first: str, second: str, metric: str, of: Of) -> Interval | None:
    """How much better the first method is than the second, whichever way the metric counts."""
    pair = of(first, metric), of(second, metric)
    return paired_difference(*pair) if BETTER[metric] > 0 else paired_difference(*reversed(pair))


def _beats(union: str, of: Of) -> dict[str, bool]:
    """Metric -> whether every part's interval is above 0; a single value has none."""

    def beats(part: str, metric: str) -> bool:
        found = _better(union, part, metric, of)
        several = pairs_of(of(union, metric), of(part, metric)) > 1
        return found is not None and found.low > 0.0 and several

    return {metric: all(beats(part, metric) for part in UNIONS[union]) for metric in BETTER}


def _trains_lora(method: str) -> bool:
    """Not so where singular values are shifted, which fit into a LoRA only roughly."""
    return METHODS[method].settings(LessonSettings()).adapter.kind == "lora"


def _default(names: Sequence[str], of: Of) -> dict[str, Any]:
    """The method that keeps the most, and by how much more than each of the others."""

    def kept(name: str) -> float:
        found = interval(of(name, "kept_gain"))
        return found.mean if found is not None else float("-inf")

    best = max(names, key=kept)
    others = [name for name in names if name != best]
    return {
        "name": best,
        "why": "the highest mean of kept_gain among the candidates that train a LoRA and were run "
        "on the most streams",
        "kept_gain_more_than": {
            name: rounded(_better(best, name, "kept_gain", of)) for name in others
        },
    }


if __name__ == "__main__":
    main()
