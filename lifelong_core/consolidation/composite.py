"""Several adapters without merging them: all answer every step, or they take turns.

LoRA-C (composite) and LoRA-S (switch) of Zhong et al. 2024. Both let every adapter that a state
has kept take part, whatever the prompt names.
"""

from __future__ import annotations

from ..adapters.frozen import frozen_adapter
from ..adapters.protocol import Adapter
from ..attention import Step
from ..backbone import Backbone
from ..sampling import StepAdapters
from ..state import LifelongState
from .merge import kept_adapters

TURN = 5
"""Steps between two switches, where there are enough steps for every adapter's turn."""


def composite(state: LifelongState, backbone: Backbone) -> StepAdapters:
    """LoRA-C: ε̂ = 1/g Σ_i [ε_i(z) + s (ε_i(z, c) - ε_i(z))] of all g adapters, g times the cost.

    Raises StateError when the state has not kept every lesson's adapter, or one does not fit.
    """
    adapters = _kept(state, backbone)
    return lambda _step: adapters


def switch(state: LifelongState, backbone: Backbone) -> StepAdapters:
    """LoRA-S: one adapter at a time, each for `TURN` steps, in the order of the lessons; for fewer
    where a picture has not as many steps, so that every adapter has a turn if it has a step.

    Raises StateError when the state has not kept every lesson's adapter, or one does not fit.
    """
    adapters = _kept(state, backbone)

    def turn(step: Step) -> list[Adapter]:
        steps = min(TURN, max(1, step.count // len(adapters)))
        return [adapters[step.index // steps % len(adapters)]]

    return turn


def _kept(state: LifelongState, backbone: Backbone) -> list[Adapter]:
    spec = state.adapter_spec
    return [frozen_adapter(spec, backbone, weights) for weights in kept_adapters(state)]
