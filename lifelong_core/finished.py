"""Results that were computed before and are kept in a workspace."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from .errors import FileError
from .files import CHECKSUM, content_hash, load_tensors, save_tensors
from .state import LifelongState, load_state, save_state

LATENTS = "latents"

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


def keep_finished(state: LifelongState, path: Path | None) -> None:
    """Save a result where `finished_before` finds it. A full disk costs only that, with a warning:
    what was learned is worth more than finding it again.
    """
    if path is None:
        return
    try:
        save_state(state, path)
    except FileError as error:
        logger.warning("This result cannot be taken from disk next time: %s", error)


def keep_latents(path: Path, latents: Tensor) -> Path:
    """Write drawn pictures [B, 4, h, w] where `kept_latents` finds them. Raises FileError."""
    return save_tensors(path, {LATENTS: latents}, {CHECKSUM: content_hash(latents)})


def kept_latents(path: Path | None, what: str) -> Tensor | None:
    """The latents that were kept at `path`; None when there are none, or, with a warning that
    `what` is drawn again, when they are damaged.
    """
    if path is None or not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
    except FileError as error:
        logger.warning("Drawing %s again: %s", what, error)
        return None
    latents = tensors.get(LATENTS)
    if latents is None or metadata.get(CHECKSUM) != content_hash(latents):
        logger.warning("Drawing %s again: %s is damaged.", what, path.name)
        return None
    return latents
