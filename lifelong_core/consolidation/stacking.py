"""Adapters on top of each other: W_n = W_0 + Σ_{i<n} A_i B_i + A_n B_n (C-LoRA, Smith et al. 2023).

Every lesson keeps an adapter of its own; the model that draws has them all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapters.frozen import frozen_adapter
from ..backbone import Backbone
from ..sharing.naming import layers
from ..state import LifelongState
from .merge import drawing_only, kept_adapters, merge_adapters


@torch.no_grad()
def summed_changes(state: LifelongState, backbone: Backbone) -> dict[str, Tensor]:
    """Layer -> Σ_i ΔW_i [out, in] over the lessons of `state`, fp32 on the backbone's device.

    Raises StateError when the state has not kept every lesson's adapter.
    """
    total: dict[str, Tensor] = {}
    for weights in kept_adapters(state):
        for key, delta in frozen_adapter(state.adapter_spec, backbone, weights).deltas().items():
            total[key] = total[key] + delta if key in total else delta
    return total


def stacked_state(state: LifelongState) -> LifelongState:
    """`state` with the sum of its lessons' adapters as one adapter; for drawing and exporting.

    Raises StateError when the state has not kept every lesson's adapter.
    """
    adapters = kept_adapters(state)
    mean = merge_adapters(state.adapter_spec, adapters, layers(state.family))
    summed = {
        key: value if key.endswith(".down") else len(adapters) * value
        for key, value in mean.adapter.items()
    }
    return drawing_only(state, mean.spec, summed)
