"""Hard routing: a prompt is drawn with the adapter of the concept that it names.

The weights of elastic weight aggregation (CIDM, eq. 3) as ψ_i = 1[the prompt has the token of i],
normalised. Nothing that was learned is ever changed, so nothing is forgotten: the upper bound of
all methods that keep one adapter per concept.
"""

from __future__ import annotations

from ..concepts import mentions
from ..state import LifelongState
from .merge import weighted_state


def routed_tokens(state: LifelongState, prompt: str) -> tuple[str, ...]:
    """The state's concept tokens that `prompt` names, in the order of their lessons."""
    return tuple(c.token for c in state.concepts if mentions(prompt, c.token))


def route(state: LifelongState, prompt: str) -> LifelongState:
    """The state that draws `prompt`, with the adapter that it chooses; for drawing only.

    One token: the adapter that its lesson kept, bit for bit. Several: the mean of their changes.
    None: an adapter of zeros, with which the base model draws bit for bit what it draws alone.

    Raises StateError when the state has not kept every lesson's adapter.
    """
    tokens = routed_tokens(state, prompt)
    share = 1.0 / max(len(tokens), 1)
    return weighted_state(state, [share * (c.token in tokens) for c in state.concepts])
