"""What the text encoders hand to the UNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: `context` [B, T, W]; `pooled` [B, P] where the family has it, else None."""

    context: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return self.context.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        """The rows of a slice or of a LongTensor of positions (repeats allowed)."""
        if isinstance(index, Tensor):
            index = index.to(self.context.device)
        return Conditioning(
            self.context[index], None if self.pooled is None else self.pooled[index]
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """A copy on `device` in `dtype`; shares memory where nothing changes."""
        pooled = None if self.pooled is None else self.pooled.to(device=device, dtype=dtype)
        return Conditioning(self.context.to(device=device, dtype=dtype), pooled)

    def detach(self) -> Conditioning:
        """The same numbers without a gradient path."""
        return Conditioning(
            self.context.detach(), None if self.pooled is None else self.pooled.detach()
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Stack along the batch. Shorter contexts are repeated to the common length.

        Repeating every token equally often leaves softmax attention as it was, so prompts of one
        and of several chunks of 77 tokens share a batch (ComfyUI does the same).
        """
        length = math.lcm(*(part.context.shape[1] for part in parts))
        context = torch.cat(
            [part.context.repeat(1, length // part.context.shape[1], 1) for part in parts]
        )
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(context, torch.cat(pooled) if pooled else None)
