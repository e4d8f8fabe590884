"""How much a method trains and stores, as a share of the base model's UNet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..adapters.distance import change_norm, measured_change
from ..backbone import Backbone
from ..methods import METHODS
from ..sharing.naming import layers
from ..state import LifelongState


def trained_percent(backbone: Backbone, state: LifelongState) -> float:
    """100 · (parameters that the newest lesson trained) / (parameters of the UNet).

    The adapter counts unless its learning rate was 0, without the parts that the method freezes;
    the token's vectors unless their learning rate was 0.
    """
    record = state.records[-1]
    method = METHODS.get(str(record.settings.get("method")))
    frozen = tuple(f".{part}" for part in method.frozen) if method is not None else ()
    count = 0
    if record.settings["learning_rate"]:
        trained = (value for key, value in state.adapter.items() if not key.endswith(frozen))
        count += _numbers(trained)
    if record.settings["token_learning_rate"]:
        count += _numbers(record.concept.vectors.values())
    return 100.0 * count / _unet(backbone)


def stored_percent(backbone: Backbone, state: LifelongState) -> float:
    """100 · (numbers that the newest lesson's method needs to go on and to draw all concepts) /
    (parameters of the UNet).

    The tokens, what methods carry along (the Fisher), and the adapter, unless it changes nothing
    as with Textual Inversion. The adapters of single lessons only where the method uses them, as
    teachers (DSC) or to draw with (C-LoRA, merging, routing); the newest one only where it differs
    from the state's. A saved state may hold more: it keeps them for whatever method comes next.
    """
    count = sum(_numbers(concept.vectors.values()) for concept in state.concepts)
    count += sum(_numbers(group.values()) for group in state.extras.values())
    for adapter in _needed(state):
        if change_norm(measured_change(state.adapter_spec, adapter, layers(state.family))):
            count += _numbers(adapter.values())
    return 100.0 * count / _unet(backbone)


def _needed(state: LifelongState) -> list[Mapping[str, Tensor]]:
    """The adapters that the newest lesson's method goes on from and draws with."""
    method = METHODS.get(str(state.records[-1].settings.get("method")))
    if method is None or not method.needs_records:
        return [state.adapter]
    *earlier, newest = (record.adapter for record in state.records)
    if all(torch.equal(value, state.adapter[key].to(value)) for key, value in newest.items()):
        return [*earlier, state.adapter]
    return [*earlier, newest, state.adapter]


def _unet(backbone: Backbone) -> int:
    return _numbers(backbone.unet.parameters())


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
