"""What the text encoders hand to the UNet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NOBODYS = -1
"""The owner of a row that tells of no concept."""
UNKNOWN = -2
"""The owner of a row of which nothing is known."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: `context` [B, T, W]; `pooled` [B, P] where the family has it, else None.

    layers: [B, L, T, W], a context for each cross-attention layer, if any prompt names a layer-wise
    concept; `context` and `pooled` are then those of the concept's mean vectors. Else None.
    owners: [B, T] int64, whose words stand at each row: the number of a concept, `NOBODYS` or
    `UNKNOWN`; only from `localized_words`, None elsewhere.
    """

    context: Tensor
    pooled: Tensor | None = None
    layers: Tensor | None = None
    owners: Tensor | None = None

    def __len__(self) -> int:
        return self.context.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        """The rows of a slice or of a LongTensor of positions (repeats allowed)."""
        if isinstance(index, Tensor):
            index = index.to(self.context.device)
        own = None if self.owners is None else self.owners[index]
        return replace(self._each(lambda part: part[index]), owners=own)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """A copy on `device` in `dtype`; shares memory where nothing changes."""
        own = None if self.owners is None else self.owners.to(device=device)
        return replace(self._each(lambda part: part.to(device=device, dtype=dtype)), owners=own)

    def detach(self) -> Conditioning:
        """The same numbers without a gradient path."""
        return self._each(Tensor.detach)

    def first_rows(self, length: int) -> Conditioning:
        """The first `length` tokens: a prompt without the repeats that longer ones of its batch
        asked for."""
        return Conditioning(
            self.context[:, :length],
            self.pooled,
            None if self.layers is None else self.layers[:, :, :length],
            None if self.owners is None else self.owners[:, :length],
        )

    def at_layer(self, layer: int) -> Tensor:
        """The context [B, T, W] of cross-attention layer number `layer`."""
        return self.context if self.layers is None else self.layers[:, layer]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(
            change(self.context),
            None if self.pooled is None else change(self.pooled),
            None if self.layers is None else change(self.layers),
            self.owners,
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Stack along the batch. Shorter contexts are repeated to the common length.

        Repeating every token equally often leaves softmax attention as it was, so prompts of one
        and of several chunks of 77 tokens share a batch (ComfyUI does the same).
        """
        length = math.lcm(*(part.context.shape[1] for part in parts))
        context = torch.cat([_repeated(part.context, length) for part in parts])
        pooled = [part.pooled for part in parts if part.pooled is not None]
        layers = None
        count = next((part.layers.shape[1] for part in parts if part.layers is not None), 0)
        if count:
            layers = torch.cat([_repeated(_layers(part, count), length) for part in parts])
        owners = None
        if any(part.owners is not None for part in parts):
            owners = torch.cat([_owners(part, length) for part in parts])
        return Conditioning(context, torch.cat(pooled) if pooled else None, layers, owners)


def _repeated(tokens: Tensor, length: int) -> Tensor:
    """[…, T, W] -> […, length, W]."""
    times = length // tokens.shape[-2]
    return tokens if times == 1 else tokens.repeat(*[1] * (tokens.dim() - 2), times, 1)


def _owners(part: Conditioning, length: int) -> Tensor:
    """[B, length]."""
    if part.owners is None:
        rows = part.context
        return rows.new_full((len(rows), length), UNKNOWN, dtype=torch.long)
    return part.owners.repeat(1, length // part.owners.shape[1])


def _layers(part: Conditioning, count: int) -> Tensor:
    """A context for each of `count` layers, the same where a prompt has only one."""
    if part.layers is not None:
        return part.layers
    return part.context[:, None].expand(-1, count, -1, -1)
