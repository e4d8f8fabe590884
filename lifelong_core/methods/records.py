"""What the adapters in a state's records are, and so which method can go on after which."""

from __future__ import annotations

from ..errors import StateError
from ..state import LifelongState
from .lesson_kinds import LESSON_METHODS
from .table import METHODS, Records


def check_follows(state: LifelongState | None, method: str) -> None:
    """Raise StateError unless a lesson of `method` can follow all lessons of `state`.

    It can where both put the same into their records. Otherwise the lesson would drop what earlier
    ones learned, or what is drawn would have it several times, and nothing would show it.
    """
    wanted = METHODS[method].records
    for record in state.records if state is not None else ():
        before = str(record.settings.get("method", ""))
        found = METHODS[before].records if before in METHODS else Records.WHOLE
        if found is not wanted:
            known = f"method {before!r}" if before else "an unnamed method"
            raise StateError(
                f"The adapter of the lesson on {record.concept.token!r}, learned with {known}, "
                f"holds {found.value}; method {method!r} goes on from adapters that each hold "
                f"{wanted.value}. Choose {_alike(found)}, or begin a new state."
            )


def check_consolidates(state: LifelongState) -> None:
    """Raise StateError when the phases of consolidation mean nothing for `state`.

    They teach and weigh the adapter that knows all concepts; some methods have none.
    """
    for record in state.records:
        method = str(record.settings.get("method", ""))
        if method in METHODS and METHODS[method].records is not Records.WHOLE:
            raise StateError(
                f"The lesson on {record.concept.token!r} was learned with method {method!r}, whose "
                f"adapters each hold {METHODS[method].records.value}; there is nothing to "
                f"consolidate. Learn with {_alike(Records.WHOLE)}."
            )


def check_separate(state: LifelongState) -> None:
    """Raise StateError when a lesson's adapter cannot draw its concept without the others."""
    for record in state.records:
        method = str(record.settings.get("method", ""))
        if method in METHODS and METHODS[method].records is Records.ADDED:
            raise StateError(
                f"The adapter of the lesson on {record.concept.token!r}, learned with method "
                f"{method!r}, holds {Records.ADDED.value}; without them it does not draw its "
                "concept. Use a state of another method."
            )


def _alike(records: Records) -> str:
    *others, last = [repr(name) for name in LESSON_METHODS if METHODS[name].records is records]
    return f"{', '.join(others)} or {last}" if others else last
