"""The ablations of EWC DC and DSC: one axis at a time around the defaults, on one stream.

python -m benchmarks.ablations_dc: the stream that hyper-parameters are chosen on. Every value is a
run of the bench, in the same work folder, so what was measured before is not measured again, a
stopped command goes on where it was, and all axes share their defaults' runs. The result is
written after every axis; axes that are not asked for stay in it.

- k, delta, tau, ewc_weight: with EWC DC. gamma, lambda, iterations, rate of distilling: with DSC
  EWC DC. overlap_weight: with C-LoRA, which they are compared to.
- teacher: DSC's second teacher is a random earlier lesson, or always the one before.
- method: with and without DSC and scores; unseen pictures classified by the scores of each model,
  and the Fisher with and without the classifier's term at the same weights.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation_axes import METHOD, NAMES, score_reports, ways_of
from benchmarks.ablation_probes import TRIALS, classification, spectra
from benchmarks.record import RESULTS, Recorder
from lifelong_core.backbone import load_backbone
from lifelong_core.consolidation import ConsolidationSettings
from lifelong_core.errors import InputError
from lifelong_core.evaluation.extractors import WORLD, extractor_named
from lifelong_core.evaluation.interval import paired_difference, rounded
from lifelong_core.evaluation.protocol import Protocol
from lifelong_core.evaluation.reference import Bench
from lifelong_core.evaluation.run import Run, run_stream, usual_settings
from lifelong_core.evaluation.stream import Stream, stream_named
from lifelong_core.evaluation.table import summarise
from lifelong_core.evaluation.values import values
from lifelong_core.fields import PRECISIONS
from lifelong_core.files import read_json, write_json
from lifelong_core.launch.console import say
from lifelong_core.lesson import LessonSettings
from lifelong_core.state import load_state
from lifelong_core.world.shipped import weights_path

STREAM, SEED, CONCEPTS = "toys5", 1, 5
PLAIN = "ewc_dc"
"""Whose weights the Fisher is looked at with and without the classifier's term."""
COMPARED = ("kept_gain", "a_mmd", "f_mmd", "kid")
"""Metrics whose paired difference to the axis's default is recorded."""
METRICS = ("ia", "ta", "tfr_ia", "a_mmd", "f_mmd", "bwt_mmd", "kid", "kept_gain", "base_drift")
QUICK_PROTOCOL = Protocol(prompts=2, last_prompts=3, pictures=2, steps=4)


@dataclass(frozen=True)
class Ablations:
    """The bench that all runs share, and their usual settings. trials: of a classification."""

    bench: Bench
    stream: Stream
    lesson: LessonSettings
    consolidation: ConsolidationSettings
    trials: int = TRIALS

    def runs(self, axis: str) -> dict[str, Run]:
        """Value -> run."""
        ways = ways_of(axis, self.lesson, self.consolidation)
        return {
            value: Run(self.bench, self.stream, way, self.lesson, self.consolidation)
            for value, way in ways.items()
        }

    def settings(self) -> dict[str, Any]:
        """What results of the same table have in common."""
        return {
            "stream": self.stream.name,
            "stream_seed": self.stream.seed,
            "concepts": len(self.stream.subjects),
            "weights": self.bench.backbone.fingerprint,
            "lesson": self.lesson.to_json(),
            "consolidation": self.consolidation.to_json(),
            "protocol": self.bench.protocol.to_json(),
            "classification_trials": self.trials,
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations_dc")
    parser.add_argument("--axis", default=",".join(NAMES), help="some of them, commas between")
    parser.add_argument("--stream-seed", type=int, default=SEED)
    parser.add_argument("--concepts", type=int, default=CONCEPTS, help="the first so many")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="20 steps per lesson, 4 iterations per phase, few pictures, to see that it works; "
        "the result, ablations_dc_quick.json, goes to the work folder",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="as in `bench run`")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"), help="of the runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    axes = chosen_axes(options.axis)
    ablations = prepared(options)
    command = "python -m benchmarks.ablations_dc" + " --quick" * options.quick
    if len(ablations.stream.subjects) != CONCEPTS:
        command += f" --concepts {options.concepts}"
    if options.precision != "fp32":
        command += f" --precision {options.precision}"
    recorder = Recorder(
        "ablations_dc" + "_quick" * options.quick,
        command + f" --stream-seed {options.stream_seed}" * (options.stream_seed != SEED),
        ablations.settings(),
        folder=options.work if options.quick else RESULTS,
    )
    for axis in axes:
        say(f"Axis {axis}")
        result, rows = measured_axis(axis, ablations)
        write(recorder, axis, result, rows)
        say(json.dumps(result, indent=1))


def chosen_axes(text: str) -> list[str]:
    """Names of axes. Raises InputError for others."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in NAMES:
            raise InputError(f"There is no axis {name!r}; choose from {', '.join(NAMES)}.")
    return list(dict.fromkeys(names))


def prepared(options: argparse.Namespace) -> Ablations:
    """The bench and the stream as the options ask for. Raises InputError."""
    backbone = load_backbone(weights_path("demo"), device=options.device)
    family = backbone.family
    stream = stream_named(STREAM, options.stream_seed, size=family.default_size)
    if not 2 <= options.concepts <= len(stream.subjects):
        raise InputError(f"{STREAM} has 2 to {len(stream.subjects)} concepts to choose from.")
    lesson, after = usual_settings(family.name, stream.seed, options.precision)
    protocol = Protocol(precision=options.precision)
    if options.quick:
        lesson = replace(lesson, steps=20, prior_count=4)
        after = replace(after, fisher_iterations=4, distillation_iterations=4)
        protocol = replace(QUICK_PROTOCOL, precision=options.precision)
    bench = Bench(backbone, (extractor_named(WORLD),), protocol, options.work)
    stream = replace(stream, subjects=stream.subjects[: options.concepts])
    return Ablations(bench, stream, lesson, after, 1 if options.quick else TRIALS)


def measured_axis(axis: str, ablations: Ablations) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run all values of an axis, or take them as they were measured: the axis's part of the
    summary, and its rows."""
    runs = ablations.runs(axis)
    results: dict[str, Mapping[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for value, run in runs.items():
        say(f"{axis} = {value}: {run.way.name}")
        results[value] = run_stream(run)
        rows.append({"axis": axis, "value": value, **row(run, results[value])})
        if axis == METHOD:
            rows[-1] |= probes(run, ablations)
    summary: dict[str, Any] = {"values": summarised(runs, results, rows)}
    if axis == METHOD:
        summary["classification"] = {one["value"]: one["classification"] for one in rows}
        summary["fisher"] = next(one["fisher"] for one in rows if "fisher" in one)
    return summary, rows


def row(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """A run's result, and what its phases told of their scores."""
    return {**result, "phases": score_reports(load_state(run.state_path))}


def probes(run: Run, ablations: Ablations) -> dict[str, Any]:
    """What only the axis of methods looks at; kept in the run's folder."""
    path = run.folder / f"probes_{ablations.trials}.json"
    if path.exists():
        known: dict[str, Any] = read_json(path)
        return known
    backbone, subjects = run.bench.backbone, run.stream.subjects
    state = load_state(run.state_path)
    found: dict[str, Any] = {
        "classification": classification(
            backbone,
            state,
            subjects,
            temperature=ablations.consolidation.temperature,
            trials=ablations.trials,
        )
    }
    if run.way.name == PLAIN:
        found["fisher"] = spectra(
            backbone, subjects[-1].task, state, run.room.consolidation, run.room.workspace
        )
    write_json(path, found)
    return found


def summarised(
    runs: Mapping[str, Run],
    results: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Value -> its way, [mean, low, high] of the metrics, the mean over the lessons of what each
    phase told of its scores, and `against_<default>`: the paired differences to the first way
    without changed settings."""
    found = list(results.values())
    table = summarise(found)["methods"]
    default = next(run.way.name for run in runs.values() if "+" not in run.way.name)
    summary = {}
    for (value, run), one in zip(runs.items(), rows, strict=True):
        name = run.way.name
        summary[value] = {
            "way": name,
            **{metric: table[name][metric] for metric in (*METRICS, "seconds")},
            "scores": mean_scores(one["phases"]),
        }
        if name != default:
            differences = {metric: difference(found, name, default, metric) for metric in COMPARED}
            summary[value][f"against_{default}"] = differences
    return summary


def difference(
    results: Sequence[Mapping[str, Any]], name: str, other: str, metric: str
) -> list[float] | None:
    """[mean, low, high] of a metric less another way's, over paired concepts."""
    extractor = next(iter(results[0]["measured"]))
    own, rival = (values(results, way, metric, extractor) for way in (name, other))
    found = paired_difference(own, rival)
    return rounded(found)


def mean_scores(phases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Phase -> entropy, highest score and accuracy, means over the lessons that have them."""
    keys = ("entropy_share", "highest_score", "accuracy")
    found: dict[str, dict[str, list[float]]] = {}
    for lesson in phases:
        for phase, told in lesson.items():
            if phase != "concept" and keys[0] in told:
                for key in keys:
                    found.setdefault(phase, {}).setdefault(key, []).append(told[key])
    return {
        phase: {key: round(sum(told) / len(told), 5) for key, told in groups.items()}
        for phase, groups in found.items()
    }


def write(
    recorder: Recorder, axis: str, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Put an axis into the recorded result. Axes of other settings or weights are dropped."""
    axes: dict[str, Any] = {}
    others: list[Mapping[str, Any]] = []
    if known := recorder.earlier():
        axes = known["summary"]["axes"]
        others = [one for one in known["runs"] if one["axis"] != axis]
    elif recorder.path.exists():
        logging.warning("%s has other settings or weights; it begins anew.", recorder.path.name)
    done = axes | {axis: dict(result)}
    ordered = {name: done[name] for name in NAMES if name in done}
    runs = sorted([*others, *rows], key=lambda one: NAMES.index(one["axis"]))
    recorder.write({"axes": ordered, "weights": recorder.settings["weights"]}, runs)


if __name__ == "__main__":
    main()
