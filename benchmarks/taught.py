"""A stream's state by one method, found where `bench run` left it or taught now."""

from __future__ import annotations

from pathlib import Path

from lifelong_core.backbone import Backbone
from lifelong_core.evaluation.extractors import WORLD, extractor_named
from lifelong_core.evaluation.protocol import Protocol
from lifelong_core.evaluation.reference import Bench
from lifelong_core.evaluation.run import Run, usual_settings
from lifelong_core.evaluation.stream import stream_named
from lifelong_core.evaluation.ways import way_named
from lifelong_core.launch.console import say
from lifelong_core.state import LifelongState, load_state


def given_or_taught(
    backbone: Backbone,
    given: Path | None,
    source: str,
    seed: int,
    method: str,
    work: Path,
    precision: str,
) -> LifelongState:
    """The state in the file `given`; without one, `taught_state`."""
    if given:
        return load_state(given)
    return taught_state(backbone, source, seed, method, work, precision)


def taught_state(
    backbone: Backbone, source: str, seed: int, method: str, work: Path, precision: str
) -> LifelongState:
    """After the last lesson of `bench run --stream source --stream-seed seed --methods method`.

    work, precision: that command's. Raises what lessons raise, and InputError for unknown names.
    """
    family = backbone.family
    stream = stream_named(source, seed, size=family.default_size)
    protocol = Protocol(precision=precision)
    bench = Bench(backbone, (extractor_named(WORLD),), protocol, work)
    settings = usual_settings(family.name, seed, precision)
    run = Run(bench, stream, way_named(method.strip()), *settings)
    if run.state_path.exists():
        return load_state(run.state_path)
    say(f"Teaching {method} the concepts of {source}.")
    tasks = [subject.task for subject in stream.subjects]
    state: LifelongState | None = None
    for number in range(len(tasks) if run.way.at_once else 1, len(tasks) + 1):
        state = run.way.lesson(run.room, tasks[:number], state)
    assert state is not None
    return state
