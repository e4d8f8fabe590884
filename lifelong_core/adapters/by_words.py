"""Several adapters on one UNet at once, each heard in its own concept's words alone.

Keys and values of cross-attention are made row by row of the prompt. Where a look was learned in a
concept's own words, its adapter needs no other rows: with all other rows read by the base model,
several concepts stand in one picture as the base model's own things do (gated edits of keys and
values by their words: Perfusion, Tewel et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import StateError
from .layers import Attachment, Forward, base_forward, target_layers
from .protocol import Adapter
from .spec import KEY_VALUE, AdapterSpec

if TYPE_CHECKING:
    from ..backbone import Backbone


def changes_words_alone(spec: AdapterSpec) -> bool:
    """Whether an adapter changes nothing but how the rows of prompts are read."""
    return set(spec.targets) <= set(KEY_VALUE) and bool(spec.targets) and not spec.text_encoder


class AdaptersByWords:
    """Adapter number i answers in the rows that `Conditioning.owners` says are i's; all of one
    spec.

    Raises StateError for adapters that change anything but keys and values of cross-attention.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        for adapter in adapters:
            if not changes_words_alone(adapter.spec):
                raise StateError(
                    f"An adapter of {adapter.spec.describe()} changes more than how words are "
                    f"read; only {' and '.join(KEY_VALUE)} can be kept to some words."
                )
        self.adapters = tuple(adapters)

    @contextmanager
    def attached(self, backbone: Backbone) -> Iterator[None]:
        """Attach all adapters for as long as a block lasts.

        Raises StateError when the layers do not fit or are taken.
        """
        layers = target_layers(backbone, self.adapters[0].spec)
        each = [adapter.forwards(layers) for adapter in self.adapters]
        forwards = {
            key: _Forward(backbone, layer, [own[key] for own in each])
            for key, layer in layers.items()
        }
        attachment = Attachment(layers, forwards)
        try:
            yield
        finally:
            attachment.remove()


class _Forward:
    """What a layer computes from the rows [B, T, W] of the prompts of a pass."""

    def __init__(self, backbone: Backbone, layer: nn.Module, forwards: Sequence[Forward]) -> None:
        self.backbone = backbone
        self.layer = layer
        self.forwards = forwards

    def __call__(self, x: Tensor) -> Tensor:
        answer = base_forward(self.layer, x)
        owners = self.backbone.owners
        if owners is None:
            return answer
        for number, forward in enumerate(self.forwards):
            rows = owners == number
            if bool(rows.any()):
                answer = torch.index_put(answer, (rows,), forward(x[rows]).to(answer.dtype))
        return answer
