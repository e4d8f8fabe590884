"""How much a method trains and stores, as a share of the base model's UNet."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..backbone import Backbone
from ..state import LifelongState


def trained_percent(backbone: Backbone, state: LifelongState) -> float:
    """100 · (parameters that the newest lesson trained) / (parameters of the UNet).

    The adapter counts unless its learning rate was 0, the token's vectors unless theirs was.
    """
    record = state.records[-1]
    count = 0
    if record.settings["learning_rate"]:
        count += _numbers(state.adapter.values())
    if record.settings["token_learning_rate"]:
        count += _numbers(record.concept.vectors.values())
    return 100.0 * count / _unet(backbone)


def stored_percent(backbone: Backbone, state: LifelongState) -> float:
    """100 · (numbers that a saved state holds) / (parameters of the UNet).

    The adapter, the weights kept of every lesson (the teachers), tokens, and whatever a method
    carries along; a state keeps teachers for every method.
    """
    count = _numbers(state.adapter.values())
    for record in state.records:
        count += _numbers(record.adapter.values()) + _numbers(record.concept.vectors.values())
    for group in state.extras.values():
        count += _numbers(group.values())
    return 100.0 * count / _unet(backbone)


def _unet(backbone: Backbone) -> int:
    return _numbers(backbone.unet.parameters())


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
