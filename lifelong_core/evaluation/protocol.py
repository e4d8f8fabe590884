"""How much is drawn when: after which lessons which concepts are measured, and with what."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

FULL = 5
"""Streams up to this length are measured completely after every lesson."""
MANY = 10
"""Streams longer than this are followed on about this many concepts, chosen beforehand."""


@dataclass(frozen=True)
class Protocol:
    """prompts x pictures per cell of the matrix, last_prompts x pictures for the last row, whose
    first prompts are those of all other rows: 20 and 80 pictures. steps: of the sampler. precision:
    of lessons and pictures alike."""

    prompts: int = 5
    last_prompts: int = 20
    pictures: int = 4
    steps: int = 20
    precision: str = "fp32"

    @property
    def per_cell(self) -> int:
        """Pictures per cell, and those of the last row that other rows are compared to."""
        return self.prompts * self.pictures

    def to_json(self) -> dict[str, Any]:
        """Plain values, for records and hashes."""
        return asdict(self)


def chosen(lessons: int) -> tuple[int, ...]:
    """The concepts that are followed to the end: all, or about ten (1, 6, 11, … of 50)."""
    return tuple(range(1, lessons + 1, max(1, lessons // MANY)))


def schedule(lessons: int) -> dict[int, tuple[int, ...]]:
    """Lesson i -> concepts that are measured after it, both from 1.

    Each concept after its own lesson. Besides, up to 5 lessons, all those before; of longer
    streams the `chosen` ones after a fifth, a half and all of the lessons.
    """
    rows = {math.ceil(lessons / 5), math.ceil(lessons / 2), lessons}
    if lessons <= FULL:
        rows = set(range(1, lessons + 1))
    return {
        after: tuple(sorted({*(c for c in chosen(lessons) if after in rows and c <= after), after}))
        for after in range(1, lessons + 1)
    }
