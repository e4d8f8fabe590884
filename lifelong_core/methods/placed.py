"""What draws a concept in a place of its own, where no other concept is to be seen."""

from __future__ import annotations

from ..consolidation.routing import route, routed_tokens
from ..state import LifelongState
from .table import Records, any_prompt_state, newest_method


def placed_state(state: LifelongState, prompt: str) -> LifelongState | None:
    """The state that draws `prompt` in a region of a picture; for drawing only. None: the base
    model alone, for a prompt that names no concept.

    With the adapter of the lesson on the concept that the prompt names, whatever the method: what
    was learned later does not show in it. Several: the mean of their changes. What C-LoRA's
    lessons kept is nothing without those before, and a state of joint training has kept nothing;
    both draw with all that they know.

    Raises StateError when some lesson's adapter is missing.
    """
    if not routed_tokens(state, prompt):
        return None
    method = newest_method(state)
    added = method is not None and method.records is Records.ADDED
    if added or not any(record.adapter for record in state.records):
        return any_prompt_state(state)
    return route(state, prompt)
