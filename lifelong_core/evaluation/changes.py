"""Settings that a row of the tables changes, as its name says them: `ewc+ewc_weight=10`.

A plain name is a lesson's setting, `consolidation.<name>` one of what comes after the lesson,
`memory.<name>` one of the pictures that it replays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..consolidation import ConsolidationSettings
from ..errors import InputError
from ..lesson import LessonSettings
from ..memory import MemorySettings

AFTER, MEMORY = "consolidation.", "memory."
KINDS = {AFTER: ConsolidationSettings, MEMORY: MemorySettings, "": LessonSettings}
FIXED = ("adapter", "seed", "selection")
"""The kind of adapter is said by `+vera`, how memories are chosen by the method; seeds come from
the stream and are equal for all rows."""


@dataclass(frozen=True)
class Changes:
    """Setting -> new value, of lessons, of what comes after them, and of what they replay."""

    lesson: dict[str, Any]
    consolidation: dict[str, Any]
    memory: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Every change as it is written in a row's name; equal for equal values."""
        groups = {"": self.lesson, AFTER: self.consolidation, MEMORY: self.memory}
        return [
            f"{prefix}{key}={_written(value)}"
            for prefix, group in groups.items()
            for key, value in group.items()
        ]

    def of_lesson(self, settings: LessonSettings) -> LessonSettings:
        """`settings` with the changes. A method may still fix some of them."""
        return dataclasses.replace(settings, **self.lesson)

    def of_consolidation(self, settings: ConsolidationSettings) -> ConsolidationSettings:
        """`settings` with the changes."""
        return dataclasses.replace(settings, **self.consolidation)

    def of_memory(self, settings: MemorySettings) -> MemorySettings:
        """`settings` with the changes."""
        return dataclasses.replace(settings, **self.memory)


def read_changes(texts: Sequence[str]) -> Changes:
    """Changes from texts such as `ewc_weight=10` and `consolidation.delta=0.5`.

    Raises InputError for a setting that there is not, said twice, or of a value out of range.
    """
    changes = Changes({}, {}, {})
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise InputError(
                f"{text!r} changes no setting; write <name>=<value>, such as ewc_weight=10 or "
                f"{AFTER}delta=0.5."
            )
        prefix = next(prefix for prefix in KINDS if name.startswith(prefix))
        group = {AFTER: changes.consolidation, MEMORY: changes.memory, "": changes.lesson}[prefix]
        key = name.removeprefix(prefix)
        if key in group:
            raise InputError(f"Setting {name} is given twice; give it one value.")
        group[key] = _value(prefix, name, key, value)
    changes.of_lesson(LessonSettings())
    changes.of_consolidation(ConsolidationSettings())
    changes.of_memory(MemorySettings())
    return changes


def _value(prefix: str, name: str, key: str, text: str) -> Any:
    """`text` as the setting `key` has it."""
    kind: type[Any] = KINDS[prefix]
    defaults = {
        item.name: item.default for item in dataclasses.fields(kind) if item.name not in FIXED
    }
    if key not in defaults:
        known = ", ".join(prefix + other for other in defaults)
        raise InputError(f"There is no setting {name!r} to change; choose from {known}.")
    default = defaults[key]
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise InputError(f"{name} is either true or false, not {text!r}.")
        return text == "true"
    if isinstance(default, str):
        return text
    whole = isinstance(default, int)
    try:
        return int(text) if whole else float(text)
    except ValueError as error:
        what = "whole number" if whole else "number"
        raise InputError(f"{name} must be a {what}, not {text!r}.") from error


def _written(value: Any) -> str:
    """Equal for equal values."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)
