"""How each name in the tables goes through a stream.

`<method>` of `methods.METHODS` teaches one task after another, each from the state before;
`<method>+vera` does the same with VeRA as adapter, `<method>+attention` with an adapter on all of
self- and cross-attention, `<method>+<setting>=<value>` with another value of a setting
(`changes`). What draws a concept is the method's own affair (`methods.drawing_state`).
What is no method of that table gets an entry in `OTHERS`, and nothing else in the measuring needs
to know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters import AdapterSpec
from ..adapters.spec import TARGETS
from ..backbone import Backbone
from ..concepts import ConceptTask
from ..consolidation import ConsolidationSettings
from ..errors import InputError
from ..lesson import LessonSettings, for_adapter
from ..memory import MemorySettings
from ..methods import METHODS, learn_joint, teach
from ..methods.joint import METHOD as JOINT
from ..methods.real_replay import METHOD as REPLAY_REAL
from ..methods.real_replay import learn_with_real_replay
from ..state import LifelongState
from ..training import ProgressCallback
from .changes import Changes, read_changes

VERA, ATTENTION = ADAPTERS = ("vera", "attention")
BETWEEN = re.compile(r"\+(?!\d)")
"""The sign between the parts of a name, which is not that of 1e+6."""


@dataclass(frozen=True)
class Room:
    """What lessons need besides pictures. workspace: shared by all runs, so that priors and equal
    lessons are made once. memory: of methods that replay. on_progress: called as `teach` does."""

    backbone: Backbone
    settings: LessonSettings
    consolidation: ConsolidationSettings
    workspace: Path
    memory: MemorySettings
    on_progress: ProgressCallback | None = None


Lesson = Callable[[Room, Sequence[ConceptTask], LifelongState | None], LifelongState]
"""Room, all tasks so far, state after the one before the newest -> state after the newest."""


@dataclass(frozen=True)
class Way:
    """A row of the tables.

    settings, consolidation, memory: make its own settings of the usual ones.
    replays: whether its lessons draw memories, so that `memory` matters.
    at_once: it has one lesson, on all tasks, and is measured after that only.
    """

    name: str
    lesson: Lesson
    settings: Callable[[LessonSettings], LessonSettings]
    consolidation: Callable[[ConsolidationSettings], ConsolidationSettings]
    memory: Callable[[MemorySettings], MemorySettings]
    replays: bool = False
    at_once: bool = False


def one_after_another(method: str) -> Lesson:
    """The newest task only, from the state before."""

    def lesson(
        room: Room, tasks: Sequence[ConceptTask], state: LifelongState | None
    ) -> LifelongState:
        return teach(
            room.backbone,
            tasks[-1],
            state=state,
            method=method,
            settings=room.settings,
            consolidation=room.consolidation,
            memory=room.memory,
            on_progress=room.on_progress,
            workspace=room.workspace,
        )

    return lesson


def all_at_once(
    room: Room, tasks: Sequence[ConceptTask], _state: LifelongState | None
) -> LifelongState:
    """Joint training on the pictures of all tasks."""
    return learn_joint(
        room.backbone,
        tasks,
        settings=room.settings,
        on_progress=room.on_progress,
        workspace=room.workspace,
    )


def with_earlier_pictures(
    room: Room, tasks: Sequence[ConceptTask], state: LifelongState | None
) -> LifelongState:
    """The newest task and the pictures of all before it, from the state before."""
    return learn_with_real_replay(
        room.backbone,
        tasks,
        state=state,
        settings=room.settings,
        on_progress=room.on_progress,
        workspace=room.workspace,
    )


OTHERS: dict[str, Lesson] = {JOINT: all_at_once, REPLAY_REAL: with_earlier_pictures}
NOTES = {
    JOINT: "one lesson on the pictures of all concepts at once; not lifelong learning",
    REPLAY_REAL: "replay of real pictures; breaks the rule that no pictures are kept",
}
"""What a reader of a table must know about rows that are no methods of lifelong learning."""


def way_named(name: str) -> Way:
    """The way of a name.

    Raises InputError that names all methods, or all settings, and for an adapter that the method
    cannot have, or a setting that it fixes.
    """
    method, *variations = BETWEEN.split(name)
    if method not in OTHERS and method not in METHODS:
        raise InputError(
            f"Method {method!r} is unknown; choose from {', '.join([*METHODS, *OTHERS])}, each "
            f"also with '+{VERA}', '+{ATTENTION}' or '+<setting>=<value>' after it."
        )
    adapters = [name for name in ADAPTERS if name in variations]
    changes = read_changes([text for text in variations if text not in ADAPTERS])
    if method in METHODS:
        given = _lesson_settings(LessonSettings(), adapters, changes)
        used = METHODS[method].settings(given)
        if adapters and used.adapter != given.adapter:
            raise InputError(
                f"Method {method!r} has an adapter of its own, so '+{'+'.join(adapters)}' would "
                "change nothing; leave it out."
            )
        fixed = [name for name in changes.lesson if getattr(used, name) != getattr(given, name)]
        if fixed:
            raise InputError(
                f"Method {method!r} fixes {', '.join(fixed)} itself, so the row would be the plain "
                "one under another name; leave it out."
            )
    return Way(
        "+".join([method, *adapters, *changes.names]),
        OTHERS[method] if method in OTHERS else one_after_another(method),
        lambda settings: _lesson_settings(settings, adapters, changes),
        changes.of_consolidation,
        changes.of_memory,
        replays=method in METHODS and METHODS[method].replays is not None,
        at_once=method == JOINT,
    )


def _lesson_settings(
    settings: LessonSettings, adapters: Sequence[str], changes: Changes
) -> LessonSettings:
    if VERA in adapters:
        adapter = AdapterSpec(kind="vera", targets=settings.adapter.targets)
        settings = for_adapter(settings, adapter)
    if ATTENTION in adapters:
        settings = replace(settings, adapter=replace(settings.adapter, targets=TARGETS))
    return changes.of_lesson(settings)
