"""A stream's state by one method, found where `bench run` left it or taught now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lifelong_core.backbone import Backbone
from lifelong_core.consolidation import consolidation_defaults
from lifelong_core.evaluation.extractors import WORLD, extractor_named
from lifelong_core.evaluation.protocol import Protocol
from lifelong_core.evaluation.reference import Bench
from lifelong_core.evaluation.run import Run
from lifelong_core.evaluation.stream import stream_named
from lifelong_core.evaluation.ways import way_named
from lifelong_core.launch.console import say
from lifelong_core.lesson import defaults_for
from lifelong_core.state import LifelongState, load_state


def given_or_taught(
    backbone: Backbone, given: Path | None, source: str, seed: int, method: str, work: Path
) -> LifelongState:
    """The state in the file `given`; without one, `taught_state`."""
    return load_state(given) if given else taught_state(backbone, source, seed, method, work)


def taught_state(
    backbone: Backbone, source: str, seed: int, method: str, work: Path
) -> LifelongState:
    """After the last lesson of `bench run --stream source --stream-seed seed --methods method`.

    work: that command's folder. Raises what lessons raise, and InputError for unknown names.
    """
    family = backbone.family.name
    stream = stream_named(source, seed, size=backbone.family.default_size)
    usual = replace(defaults_for(family), seed=seed)
    after = replace(consolidation_defaults(family), precision=usual.precision, seed=seed)
    bench = Bench(backbone, (extractor_named(WORLD),), Protocol(), work)
    run = Run(bench, stream, way_named(method.strip()), usual, after)
    if run.state_path.exists():
        return load_state(run.state_path)
    say(f"Teaching {method} the concepts of {source}.")
    tasks = [subject.task for subject in stream.subjects]
    state: LifelongState | None = None
    for number in range(len(tasks) if run.way.at_once else 1, len(tasks) + 1):
        state = run.way.lesson(run.room, tasks[:number], state)
    assert state is not None
    return state
