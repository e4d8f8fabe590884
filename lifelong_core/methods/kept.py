"""Lessons in a workspace: finished ones are found again, stopped ones go on where they stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..files import check_writable
from ..finished import finished_before, keep_finished
from ..state import LifelongState
from ..training import Session


def kept_lesson(
    workspace: Path | None,
    key: str,
    learn: Callable[[Session | None, Path | None], LifelongState],
) -> LifelongState:
    """The state after the lesson named `key`: the one kept in `workspace`, else what `learn` gives.

    learn: gets the session to go on from and the folder of pictures of nouns, both None without a
    workspace. What it raises is passed on, and the session stays. Raises FileError when the
    workspace cannot be written.
    """
    if workspace is None:
        return learn(None, None)
    finished = workspace / "lessons" / f"{key}.lifelong.safetensors"
    known = finished_before(finished)
    if known is not None:
        return known
    check_writable(workspace)
    session = Session(workspace / "sessions" / f"{key}.safetensors", key)
    learned = learn(session, workspace / "priors")
    keep_finished(learned, finished)
    session.remove()
    return learned
