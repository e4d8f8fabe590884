"""How each name in the tables goes through a stream.

`<method>` of `methods.METHODS` teaches one task after another, each from the state before;
`<method>+vera` does the same with VeRA as adapter. What draws a concept is the method's own affair
(`methods.drawing_state`). A method that needs more than the newest task (all pictures at once)
gets an entry in `OTHERS`, and nothing else in the measuring needs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters import AdapterSpec
from ..backbone import Backbone
from ..concepts import ConceptTask
from ..errors import InputError
from ..lesson import LessonSettings
from ..methods import METHODS, teach
from ..state import LifelongState

VERA = "+vera"
VERA_RATE = 10.0
"""VeRA's learning rate over LoRA's."""


@dataclass(frozen=True)
class Room:
    """What lessons need besides pictures. workspace: shared by all runs, so that priors and equal
    lessons are made once."""

    backbone: Backbone
    settings: LessonSettings
    workspace: Path


Lesson = Callable[[Room, Sequence[ConceptTask], LifelongState | None], LifelongState]
"""Room, all tasks so far, state after the one before the newest -> state after the newest."""


@dataclass(frozen=True)
class Way:
    """A row of the tables: its lessons, and the settings it has instead of those given."""

    name: str
    lesson: Lesson
    settings: Callable[[LessonSettings], LessonSettings]


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
            workspace=room.workspace,
        )

    return lesson


OTHERS: dict[str, Lesson] = {}


def way_named(name: str) -> Way:
    """The way of a name. Raises InputError that names all methods."""
    method = name.removesuffix(VERA)
    settings = _with_vera if name.endswith(VERA) else _as_given
    if method in OTHERS:
        return Way(name, OTHERS[method], settings)
    if method not in METHODS:
        raise InputError(
            f"Method {method!r} is unknown; choose from {', '.join([*METHODS, *OTHERS])}, each "
            f"also with {VERA!r} after it."
        )
    return Way(name, one_after_another(method), settings)


def _as_given(settings: LessonSettings) -> LessonSettings:
    return settings


def _with_vera(settings: LessonSettings) -> LessonSettings:
    spec = AdapterSpec(kind="vera", targets=settings.adapter.targets)
    return replace(settings, adapter=spec, learning_rate=VERA_RATE * settings.learning_rate)
