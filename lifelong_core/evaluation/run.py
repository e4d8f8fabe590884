"""One run: a stream taught by one method, measured as it goes. It can be stopped at any time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import consolidation, methods
from ..classifier import SCORE_MEANS
from ..consolidation import ConsolidationSettings, consolidation_defaults
from ..consolidation.context import REPORT
from ..files import read_json, write_json
from ..lesson import LessonSettings, defaults_for
from ..state import LifelongState, TaskRecord, load_state, save_state
from .drawing import Cell, drawn_cell, pictures_of
from .measures import measure
from .parameters import stored_percent, trained_percent
from .phases import PartsWatch, highest, measured
from .prompts import concept_free_prompts
from .protocol import chosen, schedule
from .record import hardware, versions
from .reference import FREE, Bench, reference, usual_memory
from .sheet import write_sheet
from .stream import Stream
from .ways import Room, Way

CODE_VERSION = 2
"""Raised when a change of code changes results: finished runs then count anew."""

LESSON_KEYS = ("seconds", "peak_mib", "phases")
"""What a result tells of each lesson; lessons of earlier versions have no phases."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One method on one stream. `folder` holds its state, cells, times, sheet and result.

    usual, consolidation: the settings of a lesson and of what comes after it, before the way
    changes them; the LoRAs that the run is compared to are learned with these.
    """

    bench: Bench
    stream: Stream
    way: Way
    usual: LessonSettings
    consolidation: ConsolidationSettings

    @property
    def room(self) -> Room:
        """With what the way's lessons are taught."""
        way, settings = self.way, self.way.settings(self.usual)
        memory = way.memory(usual_memory(settings))
        return self.bench.room(settings, way.consolidation(self.consolidation), memory)

    @property
    def key(self) -> str:
        """Of its own for everything that the run depends on, on every machine."""
        return self.folder.name

    @property
    def folder(self) -> Path:
        """Named with `key`."""
        room = self.room
        memory = room.memory.to_json() if self.way.replays else None
        settings = (room.settings.to_json(), room.consolidation.to_json(), memory)
        versions = (CODE_VERSION, methods.CODE_VERSION, consolidation.CODE_VERSION)
        name = self.way.name
        return self.bench.folder(self.stream, name, name, *settings, *versions)

    @property
    def result_path(self) -> Path:
        """The JSON that a finished run leaves."""
        return self.folder / "result.json"

    @property
    def state_path(self) -> Path:
        """The state after the last lesson, which a finished run leaves."""
        return _state_path(self, len(self.stream.subjects))

    @property
    def sheet_path(self) -> Path:
        """Photos of every concept, its pictures after its own lesson, and at the end."""
        return self.folder / "sheet.jpg"


def usual_settings(
    family: str, seed: int, precision: str | None = None
) -> tuple[LessonSettings, ConsolidationSettings]:
    """A family's own for a stream of this seed, both of the same precision: the lesson's usual one,
    or another."""
    lesson, after = defaults_for(family), consolidation_defaults(family)
    precision = precision or lesson.precision
    return (
        replace(lesson, precision=precision, seed=seed),
        replace(after, precision=precision, seed=seed),
    )


def run_stream(run: Run) -> dict[str, Any]:
    """Teach and measure the whole stream and return the result; a finished run's is read.

    A run that was stopped goes on with the lesson or the cell that it was in. Raises what lessons
    and sampling raise, and FileError when the work folder cannot be written.
    """
    if run.result_path.exists():
        logger.info("%s was run before: %s.", run.way.name, run.folder.name)
        known: dict[str, Any] = read_json(run.result_path)
        return known
    cells: dict[tuple[int, int], Cell] = {}
    rows = _rows(run)
    begin = max((number for number in rows if _lesson_path(run, number).exists()), default=0)
    state = load_state(_state_path(run, begin)) if begin else None
    for after, concepts in rows.items():
        if after > begin:
            state = _lesson(run, after, state)
        for concept in concepts:
            cells[after, concept] = _cell(run, after, concept, state)
    assert state is not None  # a stream has at least one lesson
    return _finish(run, state, cells)


def _lesson(run: Run, number: int, state: LifelongState | None) -> LifelongState:
    """Teach lesson `number`. Its JSON is written last and says that the lesson is done."""
    tasks = [subject.task for subject in run.stream.subjects[:number]]
    logger.info("%s: lesson %d of %d", run.way.name, number, len(run.stream.subjects))
    with measured(run.bench.backbone.device) as phase:
        watch = PartsWatch(run.bench.backbone.device)
        state = run.way.lesson(replace(run.room, on_progress=watch), tasks, state)
    # The watch has forgotten the peaks that it told.
    parts = watch.parts
    phase.peak_mib = highest(phase.peak_mib, *(part.peak_mib for part in parts.values()))
    # A lesson that was stopped, or is known from another run, took longer than this call.
    phase.seconds = max(phase.seconds, float(state.records[-1].metrics["seconds"]))
    save_state(state, _state_path(run, number))
    info = {
        **asdict(phase),
        "phases": {name: asdict(part) for name, part in parts.items()},
        "trained_percent": trained_percent(run.bench.backbone, state),
    }
    write_json(_lesson_path(run, number), info)
    _state_path(run, number - 1).unlink(missing_ok=True)
    return state


def _cell(run: Run, after: int, concept: int, state: LifelongState | None) -> Cell:
    """The pictures of `concept` (0: of none) by the model after lesson `after`."""
    bench, stream = run.bench, run.stream
    free = concept == FREE
    prompts = concept_free_prompts() if free else stream.subjects[concept - 1].prompts
    last = after == len(stream.subjects)
    pictures = pictures_of(prompts, bench.protocol, last=last, seed=stream.seed, concept=concept)
    path = run.folder / f"cell_{after}_{concept}.safetensors"
    shown = bench.protocol.pictures
    return drawn_cell(path, bench.drawn, bench.backbone, state, pictures, bench.extractors, shown)


def _finish(
    run: Run, state: LifelongState, cells: Mapping[tuple[int, int], Cell]
) -> dict[str, Any]:
    bench, stream = run.bench, run.stream
    last = len(stream.subjects)
    final = chosen(last)
    known = reference(bench, stream, bench.room(run.usual, run.consolidation), final)
    free = _cell(run, last, FREE, state)
    lessons = [read_json(_lesson_path(run, number)) for number in _rows(run)]
    result = {
        "key": run.key,
        "method": run.way.name,
        "stream": stream.name,
        "stream_seed": stream.seed,
        "weights": bench.backbone.fingerprint,
        "concepts": [{"token": s.task.token, "noun": s.task.noun} for s in stream.subjects],
        "trained_percent": lessons[-1]["trained_percent"],
        "stored_percent": stored_percent(bench.backbone, state),
        "lessons": [{key: one[key] for key in LESSON_KEYS if key in one} for one in lessons],
        "scores": [_scores(record) for record in state.records],
        "drawing": _drawing([*cells.values(), free]),
        "measured": measure(bench, stream, cells, known, free),
        "settings": {
            "lesson": dict(state.records[-1].settings),
            "consolidation": run.room.consolidation.to_json(),
            **({"memory": run.room.memory.to_json()} if run.way.replays else {}),
            "protocol": bench.protocol.to_json(),
        },
        "versions": versions(),
        "hardware": hardware(),
    }
    write_sheet(run.sheet_path, run.folder, stream, final)
    write_json(run.result_path, result)
    return result


def _scores(record: TaskRecord) -> dict[str, dict[str, float]]:
    """Phase -> what the classifier's scores were like in it, for the phases that read them."""
    phases = record.metrics.get(REPORT, {})
    return {
        name: {key: report[key] for key in SCORE_MEANS}
        for name, report in phases.items()
        if SCORE_MEANS[0] in report
    }


def _drawing(cells: Sequence[Cell]) -> dict[str, Any]:
    """What all pictures of the run took together."""
    return {
        "pictures": sum(len(next(iter(cell.features.values()))) for cell in cells),
        "seconds": sum(cell.phase.seconds for cell in cells),
        "peak_mib": highest(*(cell.phase.peak_mib for cell in cells)),
    }


def _rows(run: Run) -> dict[int, tuple[int, ...]]:
    """Lesson -> the concepts that are measured after it."""
    last = len(run.stream.subjects)
    return {last: chosen(last)} if run.way.at_once else schedule(last)


def _lesson_path(run: Run, number: int) -> Path:
    return run.folder / f"lesson_{number}.json"


def _state_path(run: Run, number: int) -> Path:
    return run.folder / f"state_{number}.lifelong.safetensors"
