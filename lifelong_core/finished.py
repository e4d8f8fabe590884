"""Results that were computed before and are kept in a workspace."""

from __future__ import annotations

import logging
from pathlib import Path

from .errors import FileError
from .state import LifelongState, load_state

logger = logging.getLogger(__name__)


def finished_before(path: Path | None) -> LifelongState | None:
    """The state that was saved at `path`; None, with a warning if it is damaged, otherwise."""
    if path is None or not path.exists():
        return None
    try:
        state = load_state(path)
    except FileError as error:
        logger.warning("Computing a finished result again: %s", error)
        return None
    logger.info("This was done before; the result is taken from %s.", path)
    return state
