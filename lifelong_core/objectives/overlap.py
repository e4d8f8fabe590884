"""C-LoRA's self-regularisation (Smith et al. 2023, eq. 3): new changes avoid changed weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .step import StepBatch


class HasDeltas(Protocol):
    """An adapter, as far as this term looks at it."""

    def deltas(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Overlap:
    """‖ |Σ_{i<n} A_i B_i| ⊙ A_n B_n ‖² summed over all layers; `weight` is λ.

    adapter: the lesson's own change A_n B_n. magnitudes: layer -> |Σ_{i<n} A_i B_i| [out, in],
    formed once per lesson, so that a step costs the same however many lessons there were.
    """

    adapter: HasDeltas
    magnitudes: Mapping[str, Tensor]
    weight: float
    name: str = "overlap"

    def __call__(self, batch: StepBatch) -> Tensor:
        deltas = self.adapter.deltas()
        values = [
            (magnitude * deltas[key]).square().sum() for key, magnitude in self.magnitudes.items()
        ]
        return torch.stack(values).sum()
